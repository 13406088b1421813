//! emptyDir volumes.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use berth_reconciler::node::Failure;
use berth_runtime::tmpfs;

use super::failed;

/// What an emptyDir lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    /// The node's disk.
    Disk,
    /// Memory, so many bytes of it; 0 for the kernel's own limit.
    Memory(u64),
    /// Huge pages of so many bytes each, and all of them.
    HugePages { page: u64, bytes: Option<u64> },
}

/// Makes the folder of an emptyDir; can be repeated.
///
/// # Errors
/// `FailedMount` with the volume's name.
pub(super) fn make(name: &str, medium: Medium, path: &Path, fs_group: Option<u32>) -> Result<(), Failure> {
    let mounted = || tmpfs::is_mounted(path).map_err(|e| failed(name, e));
    // After a reboot the folder is still there, but the memory is not.
    if path.exists() && (medium == Medium::Disk || mounted()?) {
        return Ok(());
    }
    // A file system of its own is made sticky, and with a kubelet stays so.
    let sticky = if medium == Medium::Disk { 0 } else { 0o1000 };
    let hand_over = |path: &Path| -> std::io::Result<()> {
        let mode = if let Some(group) = fs_group {
            chown(path, None, Some(group))?;
            0o2777
        } else {
            0o777
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode | sticky))
    };
    let make = || -> std::io::Result<()> {
        if medium != Medium::Disk {
            std::fs::create_dir_all(path)?;
            mount(medium, path)?;
            return hand_over(path);
        }
        // It appears with its permissions: an agent that is killed in between leaves none without. A volume's name has no
        // dots.
        let staged = path.with_extension("new");
        std::fs::create_dir_all(&staged)?;
        hand_over(&staged)?;
        std::fs::rename(&staged, path)
    };
    make().map_err(|e| match medium {
        Medium::HugePages { page, .. } => failed(name, format!("huge pages of {page} bytes: {e}")),
        _ => failed(name, e),
    })
}

fn mount(medium: Medium, path: &Path) -> std::io::Result<()> {
    match medium {
        Medium::Disk => Ok(()),
        Medium::Memory(bytes) => tmpfs::mount(path, Some(bytes).filter(|b| *b > 0)),
        Medium::HugePages { page, bytes } => tmpfs::mount_huge(path, page, bytes),
    }
}
