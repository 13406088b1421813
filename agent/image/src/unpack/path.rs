//! Names of archive members.

use crate::{Error, Result};

/// A member's name as a path relative to the layer's root: no leading slash, no `.`, no `..`, no doubled slash.
/// The root itself is empty.
pub(crate) fn clean(name: &[u8]) -> Result<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if parts.pop().is_none() {
                    return Err(Error::corrupt(shown(name), "the name leads out of the image"));
                }
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

/// Folder and last part of a clean path; the folder is empty for the root.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// For messages.
pub(super) fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_become_relative() {
        for (name, want) in [
            ("./", ""),
            ("/", ""),
            ("./a/b/", "a/b"),
            ("/etc//passwd", "etc/passwd"),
            ("a/./../b", "b"),
            ("a/..", ""),
        ] {
            assert_eq!(clean(name.as_bytes()).unwrap(), want.as_bytes(), "{name}");
        }
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["..", "../etc/passwd", "a/../../b", "/../x", "./.."] {
            assert!(matches!(clean(name.as_bytes()), Err(Error::Corrupt { .. })), "{name}");
        }
    }

    #[test]
    fn splits_at_the_last_slash() {
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
    }
}
