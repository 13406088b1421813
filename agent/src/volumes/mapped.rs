//! Images of several layers for pods with users of their own.
//!
//! An overlay cannot be id-mapped, only its layers can. The user namespace for that is made by a process of one thread, which is
//! this program under another word.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use berth_runtime::layers;
use berth_runtime::shim::IdRange;

/// The word for [`main`] on the command line, which is for the agent itself only.
pub const WORD: &str = "mount-image";

/// Mounts layers, top first, on `dir`, so that the users of a pod own what the image's own. `label` is the SELinux context of
/// all of it.
pub(super) fn mount(dir: &Path, layers: &[PathBuf], users: IdRange, label: Option<&str>) -> io::Result<()> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(WORD).arg(format!("{}:{}", users.first, users.count));
    command.arg(label.unwrap_or_default()).arg(dir).args(layers);
    let ended = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
    if ended.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&ended.stderr).trim().to_owned()))
}

/// What the process does with the words after [`WORD`].
///
/// # Errors
/// When there are too few words, and what the kernel says.
pub fn main(mut args: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let users = args.next().and_then(|text| IdRange::parse(text.to_str()?)).context("no range of ids")?;
    let label = args.next().and_then(|text| text.into_string().ok()).context("no label")?;
    let label = Some(label.as_str()).filter(|label| !label.is_empty());
    let dir = PathBuf::from(args.next().context("no folder")?);
    let layers: Vec<PathBuf> = args.map(PathBuf::from).collect();
    layers::mount_mapped(&dir, &layers, users, label).context("mount the mapped layers")
}
