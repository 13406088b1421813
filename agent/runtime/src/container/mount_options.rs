//! The options of a mount in an OCI spec, as mount(8) writes them.

use crate::sys::mount::Attributes;

/// Options, sorted by who has to deal with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `Some(true)` for rbind, `Some(false)` for bind.
    pub bind: Option<bool>,
    /// Attributes of the mount itself.
    pub attributes: Attributes,
    /// Attributes of the mount and of all below it.
    pub recursive: Attributes,
    /// Propagation changes in the given order, each with "recursive".
    pub propagation: Vec<(u64, bool)>,
    /// Flags of the file system, such as `sync`.
    pub flags: Vec<&'static str>,
    /// Options of the file system, with their values.
    pub data: Vec<(String, Option<String>)>,
    /// `Some(true)` for ridmap, `Some(false)` for idmap: users mapped, with `true` in all mounts below, too.
    pub idmap: Option<bool>,
    /// Fill the new tmpfs with what the image has at that place.
    pub copy_up: bool,
}

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;
const ATIME: u64 = libc::MOUNT_ATTR__ATIME;

/// (name, bits to set, bits to clear). The access time modes are one field, so all of it is cleared first.
const ATTRIBUTES: [(&str, u64, u64); 19] = [
    ("ro", RDONLY, 0),
    ("rw", 0, RDONLY),
    ("nosuid", NOSUID, 0),
    ("suid", 0, NOSUID),
    ("nodev", NODEV, 0),
    ("dev", 0, NODEV),
    ("noexec", NOEXEC, 0),
    ("exec", 0, NOEXEC),
    ("nodiratime", NODIRATIME, 0),
    ("diratime", 0, NODIRATIME),
    ("nosymfollow", NOSYMFOLLOW, 0),
    ("symfollow", 0, NOSYMFOLLOW),
    ("relatime", libc::MOUNT_ATTR_RELATIME, ATIME),
    ("norelatime", libc::MOUNT_ATTR_STRICTATIME, ATIME),
    ("noatime", libc::MOUNT_ATTR_NOATIME, ATIME),
    ("atime", libc::MOUNT_ATTR_RELATIME, ATIME),
    ("strictatime", libc::MOUNT_ATTR_STRICTATIME, ATIME),
    ("nostrictatime", libc::MOUNT_ATTR_RELATIME, ATIME),
    ("defaults", 0, 0),
];

const PROPAGATION: [(&str, u64); 4] = [
    ("private", libc::MS_PRIVATE),
    ("shared", libc::MS_SHARED),
    ("slave", libc::MS_SLAVE),
    ("unbindable", libc::MS_UNBINDABLE),
];

const FLAGS: [&str; 7] = ["sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand"];

impl Options {
    /// Sorts the options of one mount.
    pub fn parse<S: AsRef<str>>(options: &[S]) -> Options {
        let mut parsed = Options::default();
        options.iter().for_each(|o| parsed.add(o.as_ref()));
        parsed
    }

    fn add(&mut self, option: &str) {
        match option {
            "bind" => self.bind = self.bind.or(Some(false)),
            "rbind" => self.bind = Some(true),
            "idmap" => self.idmap = self.idmap.or(Some(false)),
            "ridmap" => self.idmap = Some(true),
            "tmpcopyup" => self.copy_up = true,
            // What mount(8) uses for itself, what only concerns the kernel's log, and what the kernel decides by itself.
            "remount" | "auto" | "noauto" | "user" | "nouser" | "_netdev" | "nofail" | "loud" | "silent"
            | "iversion" | "noiversion" | "acl" | "noacl" => {}
            _ if attribute(&mut self.attributes, option) => {}
            _ if option.starts_with('r') && attribute(&mut self.recursive, &option[1..]) => {}
            _ => {
                if let Some(change) = propagation(option) {
                    self.propagation.push(change);
                } else if let Some(flag) = FLAGS.iter().find(|f| **f == option) {
                    self.flags.push(flag);
                } else {
                    let (key, value) = option.split_once('=').map_or((option, None), |(k, v)| (k, Some(v)));
                    self.data.push((key.to_owned(), value.map(str::to_owned)));
                }
            }
        }
    }
}

fn attribute(attributes: &mut Attributes, option: &str) -> bool {
    let Some((_, set, clear)) = ATTRIBUTES.iter().find(|(name, ..)| *name == option) else { return false };
    attributes.set = attributes.set & !clear | set;
    attributes.clear = attributes.clear & !set | clear;
    true
}

/// A propagation type such as `rslave`, with "recursive".
pub fn propagation(option: &str) -> Option<(u64, bool)> {
    let find = |name: &str| PROPAGATION.iter().find(|(n, _)| *n == name).map(|(_, flag)| *flag);
    find(option).map(|f| (f, false)).or_else(|| find(option.strip_prefix('r')?).map(|f| (f, true)))
}

/// The names of all options that are not handed to a file system as they are, sorted.
pub fn names() -> Vec<String> {
    let attributes = ATTRIBUTES.iter().flat_map(|(n, ..)| [(*n).to_owned(), format!("r{n}")]);
    let propagation = PROPAGATION.iter().flat_map(|(n, _)| [(*n).to_owned(), format!("r{n}")]);
    let mut names: Vec<String> = attributes.chain(propagation).collect();
    names.retain(|n| n != "rdefaults");
    names.extend(FLAGS.iter().chain(&["bind", "rbind", "remount", "tmpcopyup"]).map(|n| (*n).to_owned()));
    names.sort_unstable();
    names
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sorted_by_kind() {
        let o = Options::parse(&[
            "rbind", "ro", "nosuid", "rro", "rslave", "size=64k", "sync", "noatime", "mode=755",
        ]);
        assert_eq!(o.bind, Some(true));
        assert_eq!(o.attributes.set, RDONLY | NOSUID | libc::MOUNT_ATTR_NOATIME);
        assert_eq!(o.attributes.clear & ATIME, ATIME);
        assert_eq!(o.recursive.set, RDONLY);
        assert_eq!(o.propagation, [(libc::MS_SLAVE, true)]);
        assert_eq!(o.flags, ["sync"]);
        assert_eq!(o.data[0], ("size".to_owned(), Some("64k".to_owned())));
        assert_eq!(o.data[1].0, "mode");
    }

    #[test]
    fn the_last_of_two_opposites_wins() {
        let o = Options::parse(&["ro", "rw"]);
        assert_eq!((o.attributes.set & RDONLY, o.attributes.clear & RDONLY), (0, RDONLY));
        let o = Options::parse(&["rw", "ro"]);
        assert_eq!((o.attributes.set & RDONLY, o.attributes.clear & RDONLY), (RDONLY, 0));
    }

    #[test]
    fn relatime_is_not_recursive_latime() {
        let o = Options::parse(&["relatime"]);
        assert!(o.recursive.is_empty());
        assert_eq!(propagation("rprivate"), Some((libc::MS_PRIVATE, true)));
        assert_eq!(propagation("ro"), None);
    }
}
