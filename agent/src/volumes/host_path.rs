//! hostPath volumes.

use std::fs::FileType;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use berth_reconciler::node::Failure;
use k8s_openapi::api::core::v1;

use super::failed;

/// What a type says that the path is, and what kubelet calls that.
type Wanted = (fn(&FileType) -> bool, &'static str);

fn wanted(kind: &str) -> Option<Wanted> {
    Some(match kind {
        "DirectoryOrCreate" | "Directory" => (FileType::is_dir, "a directory"),
        "FileOrCreate" | "File" => (FileType::is_file, "a file"),
        "Socket" => (FileType::is_socket, "a socket file"),
        "CharDevice" => (FileType::is_char_device, "a character device"),
        "BlockDevice" => (FileType::is_block_device, "a block device"),
        _ => return None,
    })
}

/// Checks that a path of the host is what its type says; makes it for `DirectoryOrCreate` and `FileOrCreate`, and a folder
/// for no type at all. Links are followed, as a bind mount would.
///
/// # Errors
/// `FailedMount` with the volume's name, in kubelet's words.
pub(super) fn check(name: &str, spec: &v1::HostPathVolumeSource) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(&spec.path);
    let kind = spec.type_.as_deref().unwrap_or_default();
    let create =
        |made: std::io::Result<()>| made.map_err(|e| failed(name, format!("create {}: {e}", spec.path)));
    let found = std::fs::metadata(&path).map(|m| m.file_type()).ok();
    match (kind, found) {
        ("" | "DirectoryOrCreate", None) => create(std::fs::create_dir_all(&path))?,
        ("FileOrCreate", None) => create(std::fs::File::create(&path).map(drop))?,
        (kind, found) => {
            if let Some((_, what)) = wanted(kind).filter(|(is, _)| !found.as_ref().is_some_and(is)) {
                return Err(failed(name, format!("hostPath type check failed: {} is not {what}", spec.path)));
            }
        }
    }
    Ok(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_type_finds_what_it_names_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::create_dir(at("folder")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
        for (name, kind) in
            [("char", nix::sys::stat::SFlag::S_IFCHR), ("block", nix::sys::stat::SFlag::S_IFBLK)]
        {
            nix::sys::stat::mknod(at(name).as_str(), kind, mode, nix::sys::stat::makedev(1, 3)).unwrap();
        }
        let types = [
            ("Directory", "folder", "a directory"),
            ("File", "file", "a file"),
            ("Socket", "socket", "a socket file"),
            ("CharDevice", "char", "a character device"),
            ("BlockDevice", "block", "a block device"),
            ("DirectoryOrCreate", "folder", "a directory"),
            ("FileOrCreate", "file", "a file"),
        ];
        let check = |name: &str, kind: &str| {
            let spec = v1::HostPathVolumeSource { path: at(name), type_: Some(kind.to_owned()) };
            check("v", &spec).map_err(|failure| failure.message)
        };
        for (kind, fits, what) in types {
            for name in ["folder", "file", "socket", "char", "block"] {
                let wanted = format!(
                    "MountVolume.SetUp failed for volume \"v\" : hostPath type check failed: {} is not {what}",
                    at(name)
                );
                let found = check(name, kind);
                assert_eq!(
                    found,
                    if name == fits { Ok(at(name).into()) } else { Err(wanted) },
                    "{kind} {name}"
                );
            }
            let missing = check("missing", kind);
            assert_eq!(missing.is_ok(), kind.ends_with("OrCreate"), "{kind}: {missing:?}");
            let made = dir.path().join("missing");
            assert_eq!(made.is_dir(), kind == "DirectoryOrCreate");
            assert_eq!(made.is_file(), kind == "FileOrCreate");
            let _ = std::fs::remove_dir(&made).or_else(|_| std::fs::remove_file(&made));
        }
        for name in ["folder", "file", "socket", "new/deep"] {
            assert_eq!(check(name, ""), Ok(at(name).into()), "no type");
        }
        assert!(
            check("none/file", "FileOrCreate").unwrap_err().contains("create "),
            "no folder for the file"
        );
    }
}
