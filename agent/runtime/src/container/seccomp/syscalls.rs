//! Names and numbers of system calls.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
const TABLE: &str = include_str!("syscalls.x86_64");
#[cfg(target_arch = "aarch64")]
const TABLE: &str = include_str!("syscalls.aarch64");
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("there is no table of system calls for this architecture");

/// The architecture as seccomp reports it (`AUDIT_ARCH_*` of linux/audit.h).
pub const ARCH: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

/// The first number that belongs to another ABI under the same architecture: on x86_64 those of x32 have bit 30 set.
pub const FIRST_FOREIGN: Option<u32> = if cfg!(target_arch = "x86_64") { Some(0x4000_0000) } else { None };

/// The number of a system call, if this architecture has it.
pub fn number(name: &str) -> Option<u32> {
    let table = by_name();
    table.binary_search_by_key(&name, |(n, _)| n).ok().map(|at| table[at].1)
}

fn by_name() -> &'static [(&'static str, u32)] {
    static SORTED: OnceLock<Vec<(&'static str, u32)>> = OnceLock::new();
    SORTED.get_or_init(|| {
        let lines = TABLE.lines().filter(|l| !l.starts_with('#'));
        let mut all: Vec<(&str, u32)> =
            lines.filter_map(|l| l.split_once(' ').and_then(|(n, v)| Some((n, v.parse().ok()?)))).collect();
        all.sort_unstable();
        all
    })
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
            assert_eq!(number(name).map(i64::from), Some(expected), "{name}");
        }
        assert_eq!(number("no_such_call"), None);
        assert!(by_name().len() > 300);
    }
}
