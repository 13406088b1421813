//! How a shim that was started ahead of time is told whose it is: its command line comes over a socket that is its
//! standard input, and is then shown as if the process had been started with it.
//!
//! The orders are a little-endian `u32` length and that many bytes: the words, each with a zero byte after it.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;

use crate::sys::shim_process;

/// The first word of a shim that awaits its orders.
pub(super) const AWAIT: &str = "--await-orders";

/// The second: where the command line that comes later has its place.
#[cfg(feature = "agent")]
pub(super) const ROOM: &str = "................................................................................\
                               ................................................................................";

/// Longer orders than these make no sense: the paths in them end at 4 KiB.
const LONGEST: usize = 64 << 10;

/// The orders as they are sent.
#[cfg(feature = "agent")]
pub(super) fn frame(words: &[Vec<u8>]) -> Vec<u8> {
    let text: Vec<u8> = words.iter().flat_map(|word| word.iter().copied().chain([0])).collect();
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes()[..], &text].concat()
}

/// Waits for the orders; nothing when who would give them has gone.
pub(super) fn receive(mut from: impl Read) -> io::Result<Option<Vec<OsString>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > LONGEST {
        return Err(io::Error::other(format!("orders of {length} bytes")));
    }
    let mut text = vec![0; length];
    from.read_exact(&mut text)?;
    let words = text.split_inclusive(|byte| *byte == 0);
    let words = words.map(|word| OsString::from_vec(word.strip_suffix(&[0]).unwrap_or(word).to_vec()));
    Ok(Some(words.collect()))
}

/// Has `ps` show these words after the program's own two.
pub(super) fn show(words: &[OsString]) {
    let line: Vec<u8> = ["berth", "shim"]
        .into_iter()
        .map(OsString::from)
        .chain(words.iter().cloned())
        .flat_map(|word| [word.into_vec(), vec![0]].concat())
        .collect();
    // It is for people who look; who has no /proc does without.
    let _ = shim_process::show_command_line(&line);
}

#[cfg(all(test, feature = "agent"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn orders_arrive_as_they_were_given() {
        let words = [b"--dir".to_vec(), b"/run/\xff x".to_vec(), Vec::new(), b"last".to_vec()];
        let expected: Vec<OsString> = words.iter().cloned().map(OsString::from_vec).collect();
        assert_eq!(receive(&frame(&words)[..]).unwrap(), Some(expected));
        assert_eq!(receive(&frame(&[])[..]).unwrap(), Some(Vec::new()));
    }

    #[test]
    fn who_has_gone_gives_none() {
        assert_eq!(receive(&b""[..]).unwrap(), None);
        assert!(receive(&b"\x09\0\0\0--dir"[..]).is_err());
        assert!(receive(&b"\xff\xff\xff\xff"[..]).unwrap_err().to_string().contains("4294967295"));
    }
}
