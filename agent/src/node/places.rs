//! Where every container has something mounted: `/proc`, `/etc/hosts` and the like.
//!
//! Few images have all of these files and folders, and to make a file in an overlay copies the folders above it first. So they lie in
//! a layer of their own below every image's: an image that has them hides them, and one that has not need not be written to.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Below the agent's state folder.
const FOLDER: &str = "mountpoints";
const FOLDERS: [&str; 4] = ["dev", "etc", "proc", "sys"];
const FILES: [&str; 3] = ["etc/hosts", "etc/hostname", "etc/resolv.conf"];

/// Makes what is missing of the layer, and gives its folder.
///
/// # Errors
/// What the file system says.
pub fn layer(root: &Path) -> io::Result<PathBuf> {
    let layer = root.join(FOLDER);
    DirBuilder::new().recursive(true).mode(0o755).create(&layer)?;
    for name in FOLDERS {
        present(DirBuilder::new().mode(0o755).create(layer.join(name)))?;
    }
    for name in FILES {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(layer.join(name));
        present(file.map(drop))?;
    }
    Ok(layer)
}

fn present(made: io::Result<()>) -> io::Result<()> {
    made.or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        let made = layer(root.path()).unwrap();
        std::fs::remove_dir_all(made.join("etc")).unwrap();
        assert_eq!(layer(root.path()).unwrap(), made);
        let is_empty_file = |name: &&str| std::fs::read(made.join(name)).is_ok_and(|text| text.is_empty());
        assert!(FILES.iter().all(is_empty_file) && FOLDERS.iter().all(|name| made.join(name).is_dir()));
    }
}
