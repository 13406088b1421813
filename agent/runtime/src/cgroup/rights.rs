//! What a runtime may do whose caller is not root of the machine.

use std::fs;
use std::io;

use nix::unistd::geteuid;

use super::Error;

/// Whether this process is not root of the whole machine: another user, or root of a user namespace, who may make
/// cgroups only where somebody has allowed it and device rules nowhere.
pub fn rootless() -> bool {
    let map = || fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !geteuid().is_root() || !is_whole(&map())
}

/// Whether a user namespace has all users, see user_namespaces(7).
fn is_whole(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether an operation failed for want of rights.
pub fn is_denied(error: &Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    // EPERM is PermissionDenied, too.
    matches!(error, Error::Io { source, .. } if [PermissionDenied, ReadOnlyFilesystem].contains(&source.kind()))
}

#[cfg(test)]
mod tests {
    use super::is_whole;

    #[test]
    fn maps_of_the_machine_and_of_a_part() {
        assert!(is_whole("         0          0 4294967295\n"));
        assert!(!is_whole("0 1000 1\n1 100000 65536\n") && !is_whole(""));
    }
}
