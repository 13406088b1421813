//! The shim's end of a log.

use std::path::{Path, PathBuf};

/// The longest text of one record, in bytes; a longer line is split into partial records, as containerd does.
pub const MAX_LINE: usize = 16 << 10;

/// Splits a container's output into records and writes them to a file that is rotated by size.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
}

impl Writer {
    /// The log's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
