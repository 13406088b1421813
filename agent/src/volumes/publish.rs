//! Makes the files of a volume appear, and change, all at once: kubelet's layout of a `..data` link to a
//! timestamped folder, which a rename swaps.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::labels;
use super::payload::Payload;

const DATA: &str = "..data";

/// Writes the payload into the volume at `dir`. Does nothing when the volume shows it already. Every file that is made has
/// the SELinux `label` before it is to be seen.
pub fn publish(dir: &Path, payload: &Payload, group: Option<u32>, label: Option<&str>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    let old = fs::read_link(dir.join(DATA)).ok().filter(|old| is_generation(old));
    if let Some(old) = &old
        && same(&dir.join(old), payload)
    {
        return Ok(());
    }
    let fresh = fresh_name(dir);
    write_all(&dir.join(&fresh), payload, group)?;
    if let Some(label) = label {
        labels::relabel(&dir.join(&fresh), label)?;
    }
    let staged = dir.join("..data_tmp");
    let _ = fs::remove_file(&staged);
    symlink(&fresh, &staged)?;
    set_label(&staged, label)?;
    fs::rename(&staged, dir.join(DATA))?;
    link_names(dir, payload, label)?;
    match old {
        Some(old) if old != Path::new(&fresh) => super::remove_tree(&dir.join(old)),
        _ => Ok(()),
    }
}

fn set_label(path: &Path, label: Option<&str>) -> io::Result<()> {
    label.map_or(Ok(()), |label| labels::set_one(path, label))
}

/// Whether a link leads to a folder that this module made: a name in the volume itself. Containers mount the volume
/// read-only, and what is removed here must not depend on that alone (CVE-2017-1002102).
fn is_generation(target: &Path) -> bool {
    target.to_str().is_some_and(|name| name.len() > 2 && name.starts_with("..") && !name.contains('/'))
}

fn fresh_name(dir: &Path) -> PathBuf {
    let now = jiff::Timestamp::now();
    (0u32..)
        .map(|n| {
            PathBuf::from(format!(
                "..{}.{}",
                now.strftime("%Y_%m_%d_%H_%M_%S"),
                now.subsec_nanosecond() as u32 + n
            ))
        })
        .find(|name| !dir.join(name).exists())
        .expect("some number is free")
}

fn write_all(base: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(base)?;
    for (name, file) in payload {
        let path = base.join(name);
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        // A group that owns the volume must be able to read it.
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        io::Write::write_all(&mut out, &file.data)?;
        if group.is_some() || file.owner.is_some() {
            chown(&path, file.owner, group)?;
        }
        out.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn same(base: &Path, payload: &Payload) -> bool {
    let mut count = 0;
    count_files(base, &mut count);
    count == payload.len()
        && payload.iter().all(|(name, file)| fs::read(base.join(name)).is_ok_and(|d| d == file.data))
}

fn count_files(dir: &Path, count: &mut usize) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => count_files(&entry.path(), count),
            _ => *count += 1,
        }
    }
}

/// The names that a container sees are links through `..data`; those no longer in the payload go.
fn link_names(dir: &Path, payload: &Payload, label: Option<&str>) -> io::Result<()> {
    let tops: std::collections::BTreeSet<&str> =
        payload.keys().map(|name| name.split('/').next().unwrap_or(name)).collect();
    for top in &tops {
        let link = dir.join(top);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(top), &link)?;
            set_label(&link, label)?;
        }
    }
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        let stale = name.to_str().is_some_and(|n| !n.starts_with("..") && !tops.contains(n));
        if stale && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::payload::File;
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(n, d)| ((*n).into(), File { data: (*d).into(), mode: 0o640, owner: None }))
            .collect()
    }

    #[test]
    fn cve_2017_1002102_a_link_out_of_the_volume_is_replaced_and_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let victim = parent.path().join("victim");
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("file"), "kept").unwrap();
        for target in [victim.to_str().unwrap(), "../victim", "..x/../../victim", ".."] {
            let dir = parent.path().join("v");
            fs::create_dir(&dir).unwrap();
            symlink(target, dir.join(DATA)).unwrap();
            publish(&dir, &payload(&[("a", "1")]), None, None).unwrap();
            assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), "kept", "by {target}");
            assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "1");
            fs::remove_dir_all(&dir).unwrap();
        }
    }

    #[test]
    fn a_change_swaps_all_files_at_once_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("v");
        publish(&dir, &payload(&[("a", "1"), ("d/b", "2")]), None, None).unwrap();
        assert_eq!(fs::read_to_string(dir.join("d/b")).unwrap(), "2");
        assert_eq!(fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let first = fs::read_link(dir.join(DATA)).unwrap();
        publish(&dir, &payload(&[("a", "1"), ("d/b", "2")]), None, None).unwrap();
        assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), first, "nothing changed");
        publish(&dir, &payload(&[("a", "3")]), None, None).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(!dir.join("d").exists() && !dir.join(first).exists());
    }
}
