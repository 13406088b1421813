//! Where the last N lines of a log begin, found from its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Record, Stream, parse};

const BLOCK: u64 = 64 << 10;

/// The most that is read back for the first parts of a line, and the longest run of bytes without an end of line.
pub(super) const JOIN_LIMIT: usize = 1 << 20;

/// Where to begin to read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Start {
    /// Index of the file.
    pub file: usize,
    /// Offset in it.
    pub offset: u64,
    /// So many lines end before the first that was asked for.
    pub skip: u64,
}

/// What the walk back knows of one stream before the first line that was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Unknown,
    /// Its last record seen is a part of a line that was asked for.
    Open,
    Done,
}

/// Where the last `lines` lines of `files` (oldest first) begin. A line in parts counts once, by the place of its end;
/// one that has not ended yet counts too.
pub(super) fn find(files: &[File], lines: u64, only: Option<Stream>) -> io::Result<Start> {
    let mut walk = Backward::new(files)?;
    let mut start = walk.position();
    let mut count = 0;
    let mut seen = [false; 2];
    let mut before = [Before::Unknown; 2];
    let mut excluded = 0;
    let mut beyond = 0;
    while let Some((position, line)) = walk.step()? {
        let Some(record) = parse(line).filter(|record| only.is_none_or(|only| only == record.stream)) else {
            continue;
        };
        let length = line.len();
        let Record { stream, partial, .. } = record;
        let of = stream as usize;
        let ends = !partial || !seen[of];
        seen[of] = true;
        if count < lines || (count == lines && !ends && before[of] != Before::Done) {
            count += u64::from(ends);
            before[of] = Before::Open;
            start = Start { skip: excluded, ..position };
            beyond = 0;
            continue;
        }
        // Before the first line asked for: only parts of such lines matter from here on.
        if ends {
            before[of] = Before::Done;
            excluded += 1;
        }
        beyond += length;
        let open = before.contains(&Before::Open);
        if beyond > if open { JOIN_LIMIT } else { BLOCK as usize } || before == [Before::Done; 2] {
            break;
        }
    }
    Ok(start)
}

/// Walks over the lines of several files from the last to the first.
struct Backward<'a> {
    files: &'a [File],
    file: usize,
    /// The offset in the file of the buffer's first byte.
    start: u64,
    buffer: Vec<u8>,
    /// Lines in `buffer[end..]` have been returned.
    end: usize,
}

impl<'a> Backward<'a> {
    fn new(files: &'a [File]) -> io::Result<Self> {
        let mut walk = Backward { files, file: files.len(), start: 0, buffer: Vec::new(), end: 0 };
        walk.previous_file()?;
        Ok(walk)
    }

    /// Where the lines that were not returned yet end.
    fn position(&self) -> Start {
        Start { file: self.file, offset: self.start + self.end as u64, skip: 0 }
    }

    /// The line before, without its end, and where it begins.
    fn step(&mut self) -> io::Result<Option<(Start, &[u8])>> {
        loop {
            // The byte before `end` is the line's own end.
            let searched = &self.buffer[..self.end.saturating_sub(1)];
            match searched.iter().rposition(|byte| *byte == b'\n') {
                Some(at) => {
                    let last = self.end - 1;
                    self.end = at + 1;
                    return Ok(Some((self.position(), &self.buffer[at + 1..last])));
                }
                None if self.start > 0 && self.end > JOIN_LIMIT => self.end = 0,
                None if self.start > 0 => self.load()?,
                None if self.end > 0 => {
                    let last = self.end - 1;
                    self.end = 0;
                    return Ok(Some((self.position(), &self.buffer[..last])));
                }
                None => {
                    if !self.previous_file()? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Puts the block before in front of the buffer.
    fn load(&mut self) -> io::Result<()> {
        let length = BLOCK.min(self.start);
        self.buffer.truncate(self.end);
        let mut block = vec![0; length as usize];
        self.files[self.file].read_exact_at(&mut block, self.start - length)?;
        block.extend_from_slice(&self.buffer);
        self.buffer = block;
        self.start -= length;
        self.end += length as usize;
        Ok(())
    }

    /// Goes to the end of the file before; a last line that has no end is passed over.
    fn previous_file(&mut self) -> io::Result<bool> {
        let Some(file) = self.file.checked_sub(1) else { return Ok(false) };
        self.file = file;
        self.start = self.files[file].metadata()?.len();
        self.buffer.clear();
        self.end = 0;
        while self.start > 0 {
            self.load()?;
            if let Some(at) = self.buffer[..self.end].iter().rposition(|byte| *byte == b'\n') {
                self.end = at + 1;
                break;
            }
            self.end = 0;
        }
        Ok(true)
    }
}
