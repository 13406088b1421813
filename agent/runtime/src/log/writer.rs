//! The shim's end of a log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{Stream, rotate};

/// The longest text of one record, in bytes; a longer line is split into partial records, as containerd does.
pub const MAX_LINE: usize = 16 << 10;

/// Records are collected up to about so many bytes before they are written.
const BATCH: usize = 64 << 10;

/// Splits a container's output into records and writes them to a file that is rotated by size.
///
/// Nothing here fails towards the container: what cannot be written (a full disk) is dropped and counted, see
/// [`Writer::take_loss`].
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    max_size: u64,
    max_files: usize,
    file: Option<File>,
    size: u64,
    unfinished: [Vec<u8>; 2],
    loss: Option<Loss>,
}

/// What could not be written since it was last asked for.
#[derive(Debug)]
pub struct Loss {
    /// How many records are missing.
    pub records: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Why, for the last of them.
    pub error: io::Error,
}

impl Writer {
    /// Opens, or makes, the log at `path`. It is rotated before it grows beyond `max_size` bytes (0: never), and at most
    /// `max_files` files are kept (two at least), the current one included.
    ///
    /// # Errors
    /// When the file cannot be opened for appending.
    pub fn open(path: &Path, max_size: u64, max_files: u32) -> io::Result<Writer> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        let max_files = usize::try_from(max_files).unwrap_or(usize::MAX).max(2);
        Ok(Writer {
            path: path.to_owned(),
            max_size,
            max_files,
            file: Some(file),
            size,
            unfinished: [Vec::new(), Vec::new()],
            loss: None,
        })
    }

    /// The log's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes what a container wrote; complete lines go to the file at once, all with the time `now`.
    pub fn write(&mut self, stream: Stream, chunk: &[u8], now: Timestamp) {
        let mut batch = Batch::new(stream, now, chunk.len());
        let mut unfinished = std::mem::take(&mut self.unfinished[stream as usize]);
        let limit = if self.max_size == 0 {
            BATCH
        } else {
            BATCH.min(usize::try_from(self.max_size).unwrap_or(BATCH))
        };
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            let (mut text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            while unfinished.len() + text.len() > MAX_LINE {
                let (first, rest) = text.split_at(MAX_LINE - unfinished.len());
                batch.push(b'P', &unfinished, first);
                unfinished.clear();
                text = rest;
            }
            if ends {
                batch.push(b'F', &unfinished, text);
                unfinished.clear();
            } else {
                unfinished.extend_from_slice(text);
            }
            if batch.bytes.len() >= limit {
                self.flush(&mut batch.bytes, now);
            }
        }
        self.flush(&mut batch.bytes, now);
        // An idle container holds no buffer.
        self.unfinished[stream as usize] = if unfinished.is_empty() { Vec::new() } else { unfinished };
    }

    /// The stream has ended: a last line without an end goes to the file, as a part of a line, as containerd has it. Who reads
    /// it gets what was written, without a line break that nobody wrote.
    pub fn end(&mut self, stream: Stream, now: Timestamp) {
        let unfinished = std::mem::take(&mut self.unfinished[stream as usize]);
        if !unfinished.is_empty() {
            let mut batch = Batch::new(stream, now, unfinished.len());
            batch.push(b'P', &unfinished, b"");
            self.flush(&mut batch.bytes, now);
        }
    }

    /// What was lost since the last call.
    pub fn take_loss(&mut self) -> Option<Loss> {
        self.loss.take()
    }

    fn flush(&mut self, batch: &mut Vec<u8>, now: Timestamp) {
        if batch.is_empty() {
            return;
        }
        if let Err((kept, error)) = self.try_flush(batch, now) {
            let lost = &batch[kept..];
            let records = lost.iter().filter(|byte| **byte == b'\n').count() as u64;
            let before = self.loss.take().map_or((0, 0), |loss| (loss.records, loss.bytes));
            self.loss =
                Some(Loss { records: before.0 + records, bytes: before.1 + lost.len() as u64, error });
        }
        batch.clear();
    }

    /// On an error says how much of the batch is in the file.
    fn try_flush(&mut self, batch: &[u8], now: Timestamp) -> Result<(), (usize, io::Error)> {
        if self.max_size > 0 && self.size > 0 && self.size + batch.len() as u64 > self.max_size {
            // A log that cannot be rotated is still written to.
            let _ = self.rotate(now);
        }
        if self.file.is_none() {
            let file = append(&self.path).map_err(|error| (0, error))?;
            self.size = file.metadata().map_err(|error| (0, error))?.len();
            self.file = Some(file);
        }
        let Some(file) = self.file.as_mut() else { return Ok(()) };
        let mut written = 0;
        while written < batch.len() {
            match file.write(&batch[written..]) {
                Ok(0) => return Err((self.cut(batch, written), io::ErrorKind::WriteZero.into())),
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((self.cut(batch, written), error)),
            }
        }
        self.size += written as u64;
        Ok(())
    }

    /// Takes a record that was written in part out of the file again.
    fn cut(&mut self, batch: &[u8], written: usize) -> usize {
        let kept = batch[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if let Some(file) = &self.file
            && let Ok(metadata) = file.metadata()
        {
            let torn = (written - kept) as u64;
            if torn > 0 {
                let _ = file.set_len(metadata.len().saturating_sub(torn));
            }
            self.size = metadata.len().saturating_sub(torn);
        }
        kept
    }

    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        if let Some(file) = &self.file {
            // Somebody may have truncated it.
            self.size = file.metadata()?.len();
            if self.size == 0 {
                return Ok(());
            }
        }
        let mut rotated = rotate::rotated(&self.path)?;
        let name = rotate::next_name(&self.path, &rotated, now);
        match std::fs::rename(&self.path, &name) {
            Ok(()) => rotated.push(name),
            // Renamed before, when the new file could not be made.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let surplus = (rotated.len() + 1).saturating_sub(self.max_files);
        for old in &rotated[..surplus] {
            let _ = std::fs::remove_file(old);
        }
        // If this fails the old file, by its new name, goes on being the current one.
        self.file = Some(append(&self.path)?);
        self.size = 0;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Records of one stream and time, as they go to the file.
struct Batch {
    prefix: String,
    bytes: Vec<u8>,
}

impl Batch {
    fn new(stream: Stream, now: Timestamp, text: usize) -> Batch {
        let prefix = format!("{now:.9} {} ", stream.as_str());
        // Room for a few lines; the vector grows where there are more.
        let bytes = Vec::with_capacity(text.min(BATCH) + 4 * (prefix.len() + 3));
        Batch { prefix, bytes }
    }

    fn push(&mut self, tag: u8, first: &[u8], rest: &[u8]) {
        self.bytes.extend_from_slice(self.prefix.as_bytes());
        self.bytes.extend_from_slice(&[tag, b' ']);
        self.bytes.extend_from_slice(first);
        self.bytes.extend_from_slice(rest);
        self.bytes.push(b'\n');
    }
}
