//! emptyDir volumes.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use berth_reconciler::node::Failure;

use super::failed;

/// Makes the folder of an emptyDir, a file system of that many bytes in memory if `memory` says so; can be repeated.
///
/// # Errors
/// `FailedMount` with the volume's name.
pub(super) fn make(
    name: &str,
    memory: Option<u64>,
    path: &Path,
    fs_group: Option<u32>,
) -> Result<(), Failure> {
    let mounted = || berth_runtime::tmpfs::is_mounted(path).map_err(|e| failed(name, e));
    // After a reboot the folder is still there, but the memory is not.
    if path.exists() && (memory.is_none() || mounted()?) {
        return Ok(());
    }
    let hand_over = |path: &Path| -> std::io::Result<()> {
        let mode = if let Some(group) = fs_group {
            chown(path, None, Some(group))?;
            0o2777
        } else {
            0o777
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    };
    let make = || -> std::io::Result<()> {
        if let Some(bytes) = memory {
            std::fs::create_dir_all(path)?;
            berth_runtime::tmpfs::mount(path, Some(bytes).filter(|b| *b > 0))?;
            return hand_over(path);
        }
        // It appears with its permissions: an agent that is killed in between leaves none without. A volume's name has no
        // dots.
        let staged = path.with_extension("new");
        std::fs::create_dir_all(&staged)?;
        hand_over(&staged)?;
        std::fs::rename(&staged, path)
    };
    make().map_err(|e| failed(name, e))
}
