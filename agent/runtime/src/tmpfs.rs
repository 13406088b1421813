//! Memory file systems that several containers share, mounted on the host.

use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount as mount_fs, umount2};

/// Mounts a tmpfs on `dir`, limited to `bytes` when given (else to half of the memory, the kernel's own limit).
///
/// # Errors
/// What mount(2) says.
pub fn mount(dir: &Path, bytes: Option<u64>) -> io::Result<()> {
    let options = match bytes {
        Some(bytes) => format!("mode=1777,size={bytes}"),
        None => "mode=1777".to_owned(),
    };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_fs(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options.as_str())).map_err(io::Error::from)
}

/// Mounts huge pages of `page` bytes each on `dir`, limited to `bytes` when given.
///
/// # Errors
/// What mount(2) says; `EINVAL` when the kernel has no pages of that size.
pub fn mount_huge(dir: &Path, page: u64, bytes: Option<u64>) -> io::Result<()> {
    let mut options = format!("mode=1777,pagesize={page}");
    if let Some(bytes) = bytes {
        options.push_str(&format!(",size={bytes}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_fs(Some("hugetlbfs"), dir, Some("hugetlbfs"), flags, Some(options.as_str()))
        .map_err(io::Error::from)
}

/// Whether anything is mounted on `dir`.
///
/// # Errors
/// What statx(2) says.
pub fn is_mounted(dir: &Path) -> io::Result<bool> {
    crate::sys::mount::is_mount_root(dir)
}

/// Unmounts whatever is mounted on `dir`; nothing mounted there is fine.
pub fn unmount(dir: &Path) {
    // A loop, since an agent killed between mount and record may have mounted twice.
    while umount2(dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
}
