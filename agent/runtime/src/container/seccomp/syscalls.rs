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
    /// Names and numbers, sorted by name.
    pub calls: &'static [Call],
}

/// A name and its number.
pub type Call = (&'static str, u32);

impl Table {
    /// To look names up.
    pub fn search(&self) -> Search {
        Search { calls: self.calls, at: 0 }
    }

    /// The number of a system call, if the table has it.
    #[cfg(test)]
    pub fn number(&self, name: &str) -> Option<u32> {
        self.search().place(name).map(|at| self.calls[at].1)
    }
}

/// A search for many names. It takes little time where they are sorted, as they are in most profiles.
pub struct Search {
    calls: &'static [Call],
    /// Where the last one was found, or would be.
    at: usize,
}

impl Search {
    /// The place of a system call in the table, if that has it.
    pub fn place(&mut self, name: &str) -> Option<usize> {
        let before = |at: usize| self.calls.get(at).is_some_and(|(known, _)| *known < name);
        // It is at or behind `low`, and not behind `high`.
        let (mut low, mut step) = (if self.at > 0 && before(self.at - 1) { self.at } else { 0 }, 1);
        while before(low + step - 1) {
            low += step;
            step *= 2;
        }
        let high = (low + step).min(self.calls.len());
        self.at = low + self.calls[low..high].partition_point(|(known, _)| *known < name);
        self.calls.get(self.at).filter(|(known, _)| *known == name).map(|_| self.at)
    }
}

/// How many calls a text has: one on each line that is no comment.
const fn count(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut at, mut lines) = (0, 0);
    while at < bytes.len() {
        if bytes[at] != b'#' {
            lines += 1;
        }
        while bytes[at] != b'\n' {
            at += 1;
        }
        at += 1;
    }
    lines
}

/// The calls of a text, whose numbers count from `first`. What is wrong with it fails the build.
const fn parse<const N: usize>(text: &'static str, first: u32) -> [Call; N] {
    let bytes = text.as_bytes();
    let mut all = [("", 0); N];
    let (mut at, mut lines) = (0, 0);
    while at < bytes.len() {
        let (begin, comment) = (at, bytes[at] == b'#');
        while !comment && bytes[at] != b' ' {
            at += 1;
        }
        let name = text.split_at(begin).1.split_at(at - begin).0;
        let mut number = 0;
        at += 1;
        while bytes[at] != b'\n' {
            if !comment {
                assert!(bytes[at].is_ascii_digit());
                number = number * 10 + (bytes[at] - b'0') as u32;
            }
            at += 1;
        }
        at += 1;
        if !comment {
            all[lines] = (name, first + number);
            lines += 1;
        }
    }
    all
}

macro_rules! table {
    ($arch:ident, $audit:literal, $first:literal, $file:literal) => {{
        const TEXT: &str = include_str!($file);
        static CALLS: [Call; count(TEXT)] = parse(TEXT, $first);
        Table { arch: Arch::$arch, audit: $audit, first: $first, calls: &CALLS }
    }};
}

/// The machine's own kind first. x32 programs report x86_64 and have bit 30 set in every number.
#[cfg(target_arch = "x86_64")]
pub static TABLES: [Table; 3] = [
    table!(ScmpArchX86_64, 0xc000_003e, 0, "syscalls.x86_64"),
    table!(ScmpArchX86, 0x4000_0003, 0, "syscalls.x86"),
    table!(ScmpArchX32, 0xc000_003e, 0x4000_0000, "syscalls.x32"),
];
/// The machine's own kind first.
#[cfg(target_arch = "aarch64")]
pub static TABLES: [Table; 2] = [
    table!(ScmpArchAarch64, 0xc000_00b7, 0, "syscalls.aarch64"),
    table!(ScmpArchArm, 0x4000_0028, 0, "syscalls.arm"),
];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("there is no table of system calls for this architecture");

/// The table of the machine's own kind of programs.
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
            assert_eq!(native().number(name).map(i64::from), Some(expected), "{name}");
        }
        assert_eq!(native().number("no_such_call"), None);
        assert!(native().calls.len() > 300);
    }

    #[test]
    fn names_are_found_in_whatever_order() {
        let calls = native().calls;
        for step in [1, 2, 7, 100, calls.len() - 1, calls.len() - 3] {
            let mut search = native().search();
            let mut at = 0;
            for _ in 0..2 * calls.len() {
                assert_eq!(search.place(calls[at].0), Some(at));
                assert_eq!(search.place(&format!("{}~", calls[at].0)), None);
                at = (at + step) % calls.len();
            }
        }
        assert_eq!(["", "0", "~"].map(|name| native().search().place(name)), [None; 3]);
    }

    /// By arch/x86/entry/syscalls/syscall_32.tbl, syscall_64.tbl and arch/arm/tools/syscall.tbl.
    #[test]
    fn the_tables_of_other_programs() {
        let tables = [
            table!(ScmpArchX86, 0, 0, "syscalls.x86"),
            table!(ScmpArchX32, 0, 0x4000_0000, "syscalls.x32"),
            table!(ScmpArchArm, 0, 0, "syscalls.arm"),
            table!(ScmpArchAarch64, 0, 0, "syscalls.aarch64"),
        ];
        assert!(tables.iter().chain(&TABLES).all(|table| table.calls.is_sorted_by_key(|(name, _)| *name)));
        let [x86, x32, arm, _] = tables.map(|table| move |name: &str| table.number(name));
        assert_eq!(
            ["mkdir", "socketcall", "clock_gettime64", "mseal"].map(x86),
            [39, 102, 403, 462].map(Some)
        );
        assert_eq!(["mkdir", "execve"].map(x32), [0x4000_0053, 0x4000_0208].map(Some));
        let names = ["mkdir", "openat", "mseal", "set_tls", "futex_time64"];
        assert_eq!(names.map(arm), [39, 322, 462, 0xf_0005, 422].map(Some));
    }
}
