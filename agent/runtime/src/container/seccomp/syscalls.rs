//! Names and numbers of system calls, for each kind of program that this machine's kernel may run.

use oci_spec::runtime::Arch;

/// The calls of one kind of program.
#[derive(Debug)]
pub struct Table {
    /// How a spec names it.
    pub arch: Arch,
    /// The architecture as seccomp reports it (`AUDIT_ARCH_*` of linux/audit.h).
    pub audit: u32,
    /// The first number: where two kinds share an architecture, the second counts from here.
    pub first: u32,
    text: &'static str,
}

impl Table {
    const fn new(arch: Arch, audit: u32, first: u32, text: &'static str) -> Table {
        Table { arch, audit, first, text }
    }

    /// The names, to look numbers up. Not kept: a shim that waits for the end of a container has no use for it.
    pub fn names(&self) -> Names {
        let lines = self.text.lines().filter(|l| !l.starts_with('#'));
        let pair = |line: &'static str| {
            let (name, number) = line.split_once(' ')?;
            Some((name, self.first + number.parse::<u32>().ok()?))
        };
        let mut all: Vec<_> = lines.filter_map(pair).collect();
        // They are in the text already, which costs next to nothing then.
        all.sort_unstable();
        Names(all)
    }
}

/// The numbers of a table by name.
pub struct Names(Vec<(&'static str, u32)>);

impl Names {
    /// The number of a system call, if the table has it.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.0.binary_search_by_key(&name, |(n, _)| n).ok().map(|at| self.0[at].1)
    }
}

/// The machine's own kind first. x32 programs report x86_64 and have bit 30 set in every number.
#[cfg(target_arch = "x86_64")]
pub static TABLES: [Table; 3] = [
    Table::new(Arch::ScmpArchX86_64, 0xc000_003e, 0, include_str!("syscalls.x86_64")),
    Table::new(Arch::ScmpArchX86, 0x4000_0003, 0, include_str!("syscalls.x86")),
    Table::new(Arch::ScmpArchX32, 0xc000_003e, 0x4000_0000, include_str!("syscalls.x32")),
];
/// The machine's own kind first.
#[cfg(target_arch = "aarch64")]
pub static TABLES: [Table; 2] = [
    Table::new(Arch::ScmpArchAarch64, 0xc000_00b7, 0, include_str!("syscalls.aarch64")),
    Table::new(Arch::ScmpArchArm, 0x4000_0028, 0, include_str!("syscalls.arm")),
];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("there is no table of system calls for this architecture");

/// The table of the machine's own kind of programs.
#[cfg(test)]
pub fn native() -> &'static Table {
    &TABLES[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_libc() {
        for (name, expected) in [
            ("read", libc::SYS_read),
            ("openat", libc::SYS_openat),
            ("clone3", libc::SYS_clone3),
            ("newfstatat", libc::SYS_newfstatat),
            ("seccomp", libc::SYS_seccomp),
            ("mseal", libc::SYS_mseal),
        ] {
            assert_eq!(native().names().number(name).map(i64::from), Some(expected), "{name}");
        }
        assert_eq!(native().names().number("no_such_call"), None);
        assert!(native().names().0.len() > 300);
    }

    /// By arch/x86/entry/syscalls/syscall_32.tbl, syscall_64.tbl and arch/arm/tools/syscall.tbl.
    #[test]
    fn the_tables_of_other_programs() {
        let parse = |text: &'static str, first| {
            let table = Table::new(Arch::ScmpArchNative, 0, first, text).names();
            move |name: &str| table.number(name)
        };
        let x86 = parse(include_str!("syscalls.x86"), 0);
        assert_eq!(
            ["mkdir", "socketcall", "clock_gettime64", "mseal"].map(x86),
            [39, 102, 403, 462].map(Some)
        );
        let x32 = parse(include_str!("syscalls.x32"), 0x4000_0000);
        assert_eq!(["mkdir", "execve"].map(x32), [0x4000_0053, 0x4000_0208].map(Some));
        let arm = parse(include_str!("syscalls.arm"), 0);
        let names = ["mkdir", "openat", "mseal", "set_tls", "futex_time64"];
        assert_eq!(names.map(arm), [39, 322, 462, 0xf_0005, 422].map(Some));
    }
}
