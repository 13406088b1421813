//! `berth cp`: files into and out of containers, by the container's `tar`, as kubectl does it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;

use super::exec::session::Streams;
use super::failure::Usage;
use super::{client, exec, logs, resource};
use crate::store::Kind;

/// Words of `berth cp`.
#[derive(Args, Debug)]
pub struct CpArgs {
    /// What to copy: PATH, or [NAMESPACE/]POD:PATH
    from: String,
    /// Where to: [NAMESPACE/]POD:PATH, or PATH
    to: String,
    /// The container; the pod's first if not given
    #[arg(short, long)]
    container: Option<String>,
    #[command(flatten)]
    namespace: resource::Namespace,
    /// Files in the container get its user as owner and its usual permissions
    #[arg(long)]
    no_preserve: bool,
}

/// A path here or there.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    There { namespace: Option<String>, pod: String, path: String },
}

impl Place {
    /// A word with a colon is a pod's path, unless it begins as a path does.
    fn read(word: &str) -> Result<Place, Usage> {
        if word.is_empty() {
            return Err(Usage("a path is missing".to_owned()));
        }
        let Some((pod, path)) = word.split_once(':').filter(|_| !word.starts_with(['/', '.'])) else {
            return Ok(Place::Here(word.into()));
        };
        let (namespace, pod) = match pod.split_once('/') {
            Some((namespace, pod)) => (Some(namespace.to_owned()), pod),
            None => (None, pod),
        };
        if pod.is_empty() || path.is_empty() || namespace.as_deref() == Some("") {
            return Err(Usage(format!("{word:?} is not of the form [NAMESPACE/]POD:PATH")));
        }
        Ok(Place::There { namespace, pod: pod.to_owned(), path: path.to_owned() })
    }
}

/// A container to copy from or to.
struct Remote<'a> {
    client: &'a kube::Client,
    path: String,
    container: String,
}

impl Remote<'_> {
    async fn run(&self, command: &[&str], streams: Streams) -> anyhow::Result<()> {
        exec::helper(self.client, &self.path, &self.container, command, streams).await
    }
}

/// Copies a file or a folder.
pub async fn run(client: &kube::Client, args: &CpArgs) -> anyhow::Result<ExitCode> {
    let (from, to) = (Place::read(&args.from)?, Place::read(&args.to)?);
    let (namespace, pod) = match (&from, &to) {
        (Place::There { namespace, pod, .. }, Place::Here(_))
        | (Place::Here(_), Place::There { namespace, pod, .. }) => (namespace.clone(), pod),
        _ => return Err(Usage("one of the two must be POD:PATH, the other a path here".to_owned()).into()),
    };
    let namespace = namespace.unwrap_or_else(|| args.namespace.name().to_owned());
    let path = resource::path(Kind::Pod, Some(&namespace), Some(pod));
    let object: Pod = client::get(client, &path, "application/json").await?;
    let container = args.container.clone().unwrap_or_else(|| logs::default_container(&object));
    let remote = Remote { client, path, container };
    match (from, to) {
        (Place::Here(from), Place::There { path, .. }) => {
            upload(&remote, &from, &path, args.no_preserve).await
        }
        (Place::There { path, .. }, Place::Here(to)) => download(&remote, &path, &to).await,
        _ => Ok(()),
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn upload(remote: &Remote<'_>, from: &Path, to: &str, no_preserve: bool) -> anyhow::Result<()> {
    let from = fs::canonicalize(from).with_context(|| format!("{} cannot be copied", from.display()))?;
    let quiet = || Streams { stdin: None, stdout: Box::new(io::sink()), tty: false };
    let mut target = PathBuf::from(to);
    // Into a folder that is there, else to that name.
    if to.ends_with('/') || remote.run(&["test", "-d", to], quiet()).await.is_ok() {
        target.push(from.file_name().context("the root folder cannot be copied")?);
    }
    let name = target.file_name().with_context(|| format!("{to:?} names no file"))?.to_owned();
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.to_str().context("the path is not UTF-8")?;
    let (reader, writer) = io::pipe()?;
    let packing = std::thread::spawn(move || pack(&from, &name, writer));
    let mut command = vec!["tar", "-xmf", "-", "-C", folder];
    if no_preserve {
        command.splice(1..1, ["--no-same-permissions", "--no-same-owner"]);
    }
    let streams = Streams { stdin: Some(Box::new(reader)), stdout: Box::new(io::sink()), tty: false };
    let ran = remote.run(&command, streams).await;
    let packed = packing.join().map_err(|_| anyhow!("packing files panicked"))?;
    // When tar gave up, its word is the reason why nobody took the rest.
    ran?;
    packed
}

fn pack(from: &Path, name: &std::ffi::OsStr, to: io::PipeWriter) -> anyhow::Result<()> {
    let mut archive = tar::Builder::new(io::BufWriter::new(to));
    archive.follow_symlinks(false);
    let result = if from.is_dir() {
        archive.append_dir_all(name, from)
    } else {
        archive.append_path_with_name(from, name)
    };
    result.and_then(|()| archive.into_inner()?.flush()).with_context(|| format!("pack {}", from.display()))
}

async fn download(remote: &Remote<'_>, from: &str, to: &Path) -> anyhow::Result<()> {
    let name = Path::new(from).file_name().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let target = if to.is_dir() { to.join(name) } else { to.to_owned() };
    let (reader, writer) = io::pipe()?;
    let prefix = PathBuf::from(from);
    let unpacking = std::thread::spawn(move || unpack(reader, &prefix, &target));
    let streams = Streams { stdin: None, stdout: Box::new(writer), tty: false };
    let ran = remote.run(&["tar", "cf", "-", from], streams).await;
    let unpacked = unpacking.join().map_err(|_| anyhow!("unpacking files panicked"))?;
    ran.and(unpacked)
}

/// Unpacks what lies below `prefix` to `target`. The container is not trusted: nothing is written outside of the target, and
/// links are passed over, as kubectl does.
fn unpack(from: io::PipeReader, prefix: &Path, target: &Path) -> anyhow::Result<()> {
    let prefix = plain(prefix).context("the path must not contain ..")?;
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries()? {
        let mut entry = entry.context("read what the container's tar sends")?;
        let path = entry.path()?.into_owned();
        let inside = plain(&path).and_then(|path| path.strip_prefix(&prefix).map(Path::to_owned).ok());
        let Some(inside) = inside else {
            bail!("tar in the container sends {}, which was not asked for", path.display())
        };
        let to = if inside.as_os_str().is_empty() { target.to_owned() } else { target.join(&inside) };
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            fs::create_dir_all(&to).with_context(|| format!("make {}", to.display()))?;
        } else if kind.is_file() {
            if let Some(parent) = to.parent().filter(|p| !p.as_os_str().is_empty()) {
                fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            }
            let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
            let mut file = create(&to, mode).with_context(|| format!("write {}", to.display()))?;
            io::copy(&mut entry, &mut file).with_context(|| format!("write {}", to.display()))?;
        } else {
            eprintln!("warning: skipping {}: it is neither a file nor a folder", path.display());
        }
    }
    // What tar pads its output with must be taken, or it would see a broken pipe.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)
}

/// The path without its root and dots; none if it climbs.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let there = |namespace: Option<&str>, pod: &str, path: &str| Place::There {
            namespace: namespace.map(str::to_owned),
            pod: pod.to_owned(),
            path: path.to_owned(),
        };
        assert_eq!(Place::read("web:/x").unwrap(), there(None, "web", "/x"));
        assert_eq!(Place::read("ns/web:x/y").unwrap(), there(Some("ns"), "web", "x/y"));
        assert_eq!(Place::read("./a:b").unwrap(), Place::Here("./a:b".into()));
        assert_eq!(Place::read("/a:b").unwrap(), Place::Here("/a:b".into()));
        assert_eq!(Place::read("a").unwrap(), Place::Here("a".into()));
        for bad in ["", "web:", ":x", "/:x/", "/web:x:"].iter().filter(|w| !w.starts_with('/')) {
            assert!(Place::read(bad).is_err(), "{bad}");
        }
    }

    fn archive(entries: &[(&str, tar::EntryType)]) -> io::PipeReader {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o640);
            header.set_size(if kind.is_file() { 2 } else { 0 });
            // Not set_path: it refuses what a hostile container would send.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, if kind.is_file() { &b"hi"[..] } else { b"" }).unwrap();
        }
        let (reader, mut writer) = io::pipe().unwrap();
        let bytes = builder.into_inner().unwrap();
        std::thread::spawn(move || writer.write_all(&bytes));
        reader
    }

    #[test]
    fn only_what_was_asked_for_is_unpacked_and_only_below_the_target() {
        use tar::EntryType::{Directory, Regular, Symlink};
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("t");
        let good =
            archive(&[("etc", Directory), ("etc/a", Regular), ("etc/s/b", Regular), ("etc/l", Symlink)]);
        unpack(good, Path::new("/etc"), &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("s/b")).unwrap(), "hi");
        assert!(fs::symlink_metadata(target.join("l")).is_err());
        for hostile in ["etc/../../x", "../x", "other", "/root/x"] {
            let error = unpack(archive(&[(hostile, Regular)]), Path::new("/etc"), &target).unwrap_err();
            assert!(error.to_string().contains("not asked for"), "{hostile}: {error}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
