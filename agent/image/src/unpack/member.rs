//! One archive member, checked.

use std::io::Read;

use rustix::fs::{Timespec, makedev};
use tar::EntryType;

use super::path::{clean, shown};
use crate::{Error, Result};

/// What a member is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Dir,
    File,
    /// A GNU sparse file of the old kind: the tar crate expands it to zeros.
    Holes,
    /// A sparse file as GNU tar writes it in pax archives, with the size when expanded.
    PaxSparse(PaxSparse),
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Char(u64),
    Block(u64),
    Fifo,
}

/// Where the map of a pax sparse file is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PaxSparse {
    pub(super) real_size: u64,
    /// `offset,length,...` from the header (version 0.1); in version 1.0 it stands before the data.
    pub(super) map: Option<String>,
}

/// A member's name, kind and attributes.
#[derive(Debug)]
pub(super) struct Member {
    /// Clean path.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timespec,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Default)]
struct Pax {
    mtime: Option<Timespec>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_major: Option<String>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_map: Option<String>,
}

/// Attributes that an image may set. `trusted.overlay.*` would steer overlayfs itself (redirects into other layers),
/// and `security.selinux` and the like belong to the host.
fn allowed(key: &[u8]) -> bool {
    key == b"security.capability"
        || (key.starts_with(b"user.") && !key.starts_with(b"user.overlay."))
        || key.starts_with(b"system.posix_acl_")
}

/// `1700000000.123456789`, also negative.
fn pax_time(text: &str) -> Option<Timespec> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut tv_sec: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let mut tv_nsec: i64 = digits.parse().ok()?;
    if whole.starts_with('-') && tv_nsec > 0 {
        tv_sec -= 1;
        tv_nsec = 1_000_000_000 - tv_nsec;
    }
    Some(Timespec { tv_sec, tv_nsec })
}

fn read_pax<R: Read>(entry: &mut tar::Entry<'_, R>) -> std::io::Result<Pax> {
    let mut pax = Pax::default();
    let Some(extensions) = entry.pax_extensions()? else { return Ok(pax) };
    for extension in extensions {
        let extension = extension?;
        let (key, value) = (extension.key_bytes(), extension.value_bytes());
        let text = || String::from_utf8_lossy(value).into_owned();
        match key {
            b"mtime" => pax.mtime = pax_time(&text()),
            b"GNU.sparse.major" => pax.sparse_major = Some(text()),
            b"GNU.sparse.name" => pax.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => pax.sparse_size = text().parse().ok(),
            b"GNU.sparse.map" => pax.sparse_map = Some(text()),
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.").filter(|name| allowed(name)) {
                    pax.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(pax)
}

impl Member {
    /// Reads a member's headers. None for members that only describe others.
    pub(super) fn read<R: Read>(entry: &mut tar::Entry<'_, R>, what: &str) -> Result<Option<Member>> {
        let name = entry.path_bytes().into_owned();
        let broken = |e: std::io::Error| Error::corrupt(what, format!("{}: {e}", shown(&name)));
        let pax = read_pax(entry).map_err(broken)?;
        let path = clean(pax.sparse_name.as_deref().unwrap_or(&name))?;
        let header = entry.header();
        let device = || -> std::io::Result<u64> {
            Ok(makedev(header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)))
        };
        let target = || entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
        let kind = match header.entry_type() {
            EntryType::Directory => Kind::Dir,
            // Old archives mark folders only by the slash.
            EntryType::Regular if name.ends_with(b"/") && entry.size() == 0 => Kind::Dir,
            EntryType::Regular | EntryType::Continuous => match (pax.sparse_size, pax.sparse_major) {
                (Some(real_size), major) if major.is_some() || pax.sparse_map.is_some() => {
                    Kind::PaxSparse(PaxSparse { real_size, map: pax.sparse_map })
                }
                (Some(_), _) => {
                    return Err(Error::unsupported(what, format!("{}: sparse format 0.0", shown(&name))));
                }
                _ => Kind::File,
            },
            EntryType::GNUSparse => Kind::Holes,
            EntryType::Symlink => Kind::Symlink(target()),
            EntryType::Link => Kind::Hardlink(clean(&target())?),
            EntryType::Char => Kind::Char(device().map_err(broken)?),
            EntryType::Block => Kind::Block(device().map_err(broken)?),
            EntryType::Fifo => Kind::Fifo,
            EntryType::XGlobalHeader => return Ok(None),
            other => {
                let reason = format!("{}: entry type {:?}", shown(&name), char::from(other.as_byte()));
                return Err(Error::unsupported(what, reason));
            }
        };
        let id = |id: std::io::Result<u64>| -> std::io::Result<u32> {
            // The highest number means "leave as it is" to chown(2).
            u32::try_from(id?)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| std::io::Error::other("owner out of range"))
        };
        let seconds = i64::try_from(header.mtime().map_err(broken)?).unwrap_or(0);
        Ok(Some(Member {
            path,
            kind,
            mode: header.mode().map_err(broken)? & 0o7777,
            uid: id(header.uid()).map_err(broken)?,
            gid: id(header.gid()).map_err(broken)?,
            mtime: pax.mtime.unwrap_or(Timespec { tv_sec: seconds, tv_nsec: 0 }),
            xattrs: pax.xattrs,
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pax_times_keep_nanoseconds() {
        let of = |text| pax_time(text).map(|t| (t.tv_sec, t.tv_nsec));
        assert_eq!(of("17"), Some((17, 0)));
        assert_eq!(of("17.5"), Some((17, 500_000_000)));
        assert_eq!(of("17.1234567891"), Some((17, 123_456_789)));
        assert_eq!(of("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(of("x"), None);
    }

    #[test]
    fn attributes_that_steer_the_host_are_dropped() {
        for key in ["security.capability", "user.x", "system.posix_acl_access"] {
            assert!(allowed(key.as_bytes()), "{key}");
        }
        for key in ["trusted.overlay.redirect", "trusted.x", "user.overlay.opaque", "security.selinux"] {
            assert!(!allowed(key.as_bytes()), "{key}");
        }
    }
}
