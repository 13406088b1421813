//! One line of a log.

use jiff::Timestamp;

/// Which of a container's two output streams a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output, and everything a terminal shows.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The name in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// One line of a log file, without its end of line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The time as it is written in the file.
    pub time: &'a str,
    /// Where it came from.
    pub stream: Stream,
    /// The container's line goes on in the next record of the same stream.
    pub partial: bool,
    /// What the container wrote, without the end of line. Any bytes.
    pub text: &'a [u8],
}

impl Record<'_> {
    /// The time, if it is one.
    #[must_use]
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

/// Reads one line of a log file, given without its end of line. `None` if it is not in the CRI format.
#[must_use]
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // The tag is a list separated by colons, of which only the first is defined.
    let partial = match fields.next()?.first()? {
        b'P' => true,
        b'F' => false,
        _ => return None,
    };
    Some(Record { time, stream, partial, text: fields.next().unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_containerd_writes() {
        let line = b"2026-01-02T03:04:05.123456789Z stdout F hello  world ";
        let record = parse(line).expect("a record");
        assert_eq!(record.text, b"hello  world ");
        assert_eq!(record.stream, Stream::Stdout);
        assert!(!record.partial);
        assert_eq!(record.timestamp(), Some("2026-01-02T03:04:05.123456789Z".parse().expect("a time")));
    }

    #[test]
    fn empty_text_and_tags() {
        assert_eq!(
            parse(b"2026-01-02T03:04:05Z stderr P:x ").map(|r| (r.partial, r.text)),
            Some((true, &b""[..]))
        );
        assert_eq!(parse(b"2026-01-02T03:04:05Z stderr F").map(|r| r.text), Some(&b""[..]));
    }

    #[test]
    fn refuses_what_is_none() {
        for line in
            [&b""[..], b"x", b"x stdout", b"x stdin F y", b"x stdout Q y", b"\xff stdout F y", b"x stdout  y"]
        {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }
}
