//! The agent's end of a log.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::tail::{self, JOIN_LIMIT};
use super::{Record, Stream, parse, rotate};

/// So much is read from a file at a time, in bytes.
const CHUNK: usize = 64 << 10;

/// What part of a log to read, and how to show it.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only the last so many lines.
    pub tail: Option<u64>,
    /// Only lines of this time or later.
    pub since: Option<Timestamp>,
    /// Stop after so many bytes of output, even in the middle of a line.
    pub limit_bytes: Option<u64>,
    /// Begin each line with its time.
    pub timestamps: bool,
    /// Only one of the streams.
    pub stream: Option<Stream>,
}

/// Reads a log, its rotated files included, and goes on where it stopped as the log grows.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    query: Query,
    /// Still to be read after the current file.
    next: VecDeque<File>,
    current: Option<Current>,
    lines: Lines,
}

/// The file being read.
#[derive(Debug)]
struct Current {
    file: File,
    inode: (u64, u64),
    offset: u64,
    /// The beginning of a line whose end is not there yet.
    torn: Vec<u8>,
    /// Another file has taken its name; what is read now is its last.
    replaced: bool,
}

impl Reader {
    /// Opens the log at `path` and finds where to begin. A log that does not exist yet is empty.
    ///
    /// # Errors
    /// When a file of the log cannot be read.
    pub fn open(path: &Path, query: &Query) -> io::Result<Reader> {
        let mut files = open_all(path)?;
        let start = match query.tail {
            Some(lines) => tail::find(&files, lines, query.stream)?,
            None => tail::Start::default(),
        };
        let mut next: VecDeque<File> = files.drain(start.file.min(files.len())..).collect();
        let current = match next.pop_front() {
            Some(file) => Some(Current::new(file, start.offset)?),
            None => None,
        };
        let lines =
            Lines { skip: start.skip, since: query.since, left: query.limit_bytes, ..Lines::default() };
        Ok(Reader { path: path.to_owned(), query: query.clone(), next, current, lines })
    }

    /// Appends the next lines, some 64 KiB of them at most, to `out`. False when there are no more for now, or the byte
    /// limit is reached. Blocks on the disk only.
    ///
    /// # Errors
    /// When a file of the log cannot be read.
    pub fn read(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let before = out.len();
        while !self.exhausted() {
            let ended = match &mut self.current {
                Some(current) => {
                    let lines = &mut self.lines;
                    let query = &self.query;
                    !current.read(|record| lines.take(&record, query, out))?
                }
                None => true,
            };
            if out.len() > before {
                return Ok(true);
            }
            if ended && !self.advance()? {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Appends what is known of lines that have not ended yet; for the end of a read that is not going on.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.lines.finish(&self.query, out);
    }

    /// The byte limit is reached; there will be no more.
    #[must_use]
    pub fn exhausted(&self) -> bool {
        self.lines.left == Some(0)
    }

    /// The current file has been read to its end: looks for more. False when there is none now.
    fn advance(&mut self) -> io::Result<bool> {
        if let Some(file) = self.next.pop_front() {
            self.current = Some(Current::new(file, 0)?);
            return Ok(true);
        }
        let named = match std::fs::metadata(&self.path) {
            Ok(metadata) => (metadata.dev(), metadata.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match &mut self.current {
            Some(current) if current.inode == named => current.rewind_if_truncated(),
            Some(current) if !current.replaced => {
                // What was written between our last read and the rename.
                current.replaced = true;
                Ok(true)
            }
            current => {
                let inode = current.as_ref().map(|current| current.inode);
                let mut files = open_all(&self.path)?;
                if let Some(at) = position(&files, inode)? {
                    files.drain(..=at);
                }
                self.next = files.into();
                *current = self.next.pop_front().map(|file| Current::new(file, 0)).transpose()?;
                Ok(current.is_some())
            }
        }
    }
}

/// Writes the part of the log at `path` that `query` asks for to `out`. Blocks.
///
/// # Errors
/// When a file of the log cannot be read, or `out` not be written.
pub fn read_to(path: &Path, query: &Query, out: &mut dyn Write) -> io::Result<()> {
    let mut reader = Reader::open(path, query)?;
    let mut chunk = Vec::new();
    while reader.read(&mut chunk)? {
        out.write_all(&chunk)?;
        chunk.clear();
    }
    reader.finish(&mut chunk);
    out.write_all(&chunk)
}

/// The files of a log, oldest first. A rotation in between neither hides a file nor shows one twice.
fn open_all(path: &Path) -> io::Result<Vec<File>> {
    let open = |path: &Path| match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    // The current file first: if it is rotated meanwhile it is among the rotated ones too.
    let current = open(path)?;
    let rotated = match rotate::rotated(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let mut files = Vec::new();
    for path in rotated {
        files.extend(open(&path)?);
    }
    if let Some(current) = current {
        let inode = inode(&current)?;
        match position(&files, Some(inode))? {
            Some(at) => files.truncate(at + 1),
            None => files.push(current),
        }
    }
    Ok(files)
}

fn position(files: &[File], wanted: Option<(u64, u64)>) -> io::Result<Option<usize>> {
    for (at, file) in files.iter().enumerate() {
        if Some(inode(file)?) == wanted {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

fn inode(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Current {
    fn new(file: File, offset: u64) -> io::Result<Current> {
        let inode = inode(&file)?;
        Ok(Current { file, inode, offset, torn: Vec::new(), replaced: false })
    }

    /// Reads on and hands each complete line to `take`. False at the end of the file.
    fn read(&mut self, mut take: impl FnMut(Record<'_>)) -> io::Result<bool> {
        let mut buffer = std::mem::take(&mut self.torn);
        let held = buffer.len();
        buffer.resize(held + CHUNK, 0);
        let read = self.file.read_at(&mut buffer[held..], self.offset)?;
        self.offset += read as u64;
        buffer.truncate(held + read);
        let complete = buffer.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in buffer[..complete].split_inclusive(|byte| *byte == b'\n') {
            if let Some(record) = parse(&line[..line.len() - 1]) {
                take(record);
            }
        }
        if buffer.len() - complete <= JOIN_LIMIT {
            self.torn = buffer[complete..].to_vec();
        }
        Ok(read > 0)
    }

    fn rewind_if_truncated(&mut self) -> io::Result<bool> {
        let truncated = self.file.metadata()?.len() < self.offset;
        if truncated {
            self.offset = 0;
            self.torn.clear();
        }
        Ok(truncated)
    }
}

/// Makes lines of records.
#[derive(Debug, Default)]
struct Lines {
    unfinished: [Line; 2],
    /// Which stream the newest part of an unfinished line is of.
    newest: Option<Stream>,
    skip: u64,
    since: Option<Timestamp>,
    left: Option<u64>,
}

/// A line of which only parts are known.
#[derive(Debug, Default)]
struct Line {
    begun: bool,
    /// Its first parts are in the output already, because it is very long.
    shown: bool,
    hidden: bool,
    time: String,
    text: Vec<u8>,
}

impl Lines {
    fn take(&mut self, record: &Record<'_>, query: &Query, out: &mut Vec<u8>) {
        if query.stream.is_some_and(|only| only != record.stream) {
            return;
        }
        let mut line = std::mem::take(&mut self.unfinished[record.stream as usize]);
        if !line.begun {
            line.hidden = self.too_old(record);
            if !record.partial {
                if !self.skipped() && !line.hidden {
                    self.show(query.timestamps.then_some(record.time), &[record.text, b"\n"], out);
                }
                return;
            }
            line.begun = true;
            record.time.clone_into(&mut line.time);
        }
        line.text.extend_from_slice(record.text);
        if record.partial {
            if line.text.len() > JOIN_LIMIT {
                if self.skip == 0 && !line.hidden {
                    self.show((query.timestamps && !line.shown).then_some(&line.time), &[&line.text], out);
                }
                line.shown = true;
                line.text.clear();
            }
            self.unfinished[record.stream as usize] = line;
            self.newest = Some(record.stream);
        } else if !self.skipped() && !line.hidden {
            self.show((query.timestamps && !line.shown).then_some(&line.time), &[&line.text, b"\n"], out);
        }
    }

    fn finish(&mut self, query: &Query, out: &mut Vec<u8>) {
        let [stdout, stderr] = std::mem::take(&mut self.unfinished);
        // In the order in which they were last written to, in which lines before those that were asked for are counted.
        let lines = match self.newest {
            Some(Stream::Stdout) => [stderr, stdout],
            _ => [stdout, stderr],
        };
        for line in lines {
            if line.begun && !self.skipped() && !line.hidden {
                self.show((query.timestamps && !line.shown).then_some(&line.time), &[&line.text], out);
            }
        }
    }

    /// A line has ended: is it one before those that were asked for?
    fn skipped(&mut self) -> bool {
        let skipped = self.skip > 0;
        self.skip -= u64::from(skipped);
        skipped
    }

    fn too_old(&mut self, record: &Record<'_>) -> bool {
        let Some(since) = self.since else { return false };
        let old = record.timestamp().is_some_and(|time| time < since);
        if !old {
            // From here on all are new enough, whatever a clock that was set back says.
            self.since = None;
        }
        old
    }

    fn show(&mut self, time: Option<&str>, parts: &[&[u8]], out: &mut Vec<u8>) {
        let mut put = |bytes: &[u8]| {
            let length = self
                .left
                .map_or(bytes.len(), |left| bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            out.extend_from_slice(&bytes[..length]);
            self.left = self.left.map(|left| left - length as u64);
        };
        if let Some(time) = time {
            put(time.as_bytes());
            put(b" ");
        }
        parts.iter().for_each(|part| put(part));
    }
}
