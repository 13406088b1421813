//! A reader driven by inotify.

use std::io;
use std::path::Path;

use inotify::{Inotify, WatchMask};
use tokio::io::unix::AsyncFd;

use super::{Query, Reader};
use crate::sys::agent_io;

/// Room for a few events; their content does not matter, only that there were some.
const EVENTS: usize = 1 << 10;

/// Follows a log as it grows, across rotations.
#[derive(Debug)]
pub struct Follow {
    reader: Reader,
    watch: AsyncFd<Inotify>,
}

impl Follow {
    /// Opens the log at `path`, whose folder must exist, and finds where to begin. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When a file of the log cannot be read, or its folder not be watched.
    pub fn open(path: &Path, query: &Query) -> io::Result<Follow> {
        let watch = Inotify::init()?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // The folder holds the files of one container only, so that their changes are what we are told of.
        watch.watches().add(dir, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO)?;
        Ok(Follow { reader: Reader::open(path, query)?, watch: agent_io::watch(watch)? })
    }

    /// The next lines; waits until there are some. `None` when the query's byte limit is reached. Cancel-safe: nothing is
    /// lost when the future is dropped.
    ///
    /// # Errors
    /// When a file of the log cannot be read.
    pub async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let mut out = Vec::new();
            if self.reader.read(&mut out)? {
                return Ok(Some(out));
            }
            if self.reader.exhausted() {
                return Ok(None);
            }
            let mut ready = self.watch.readable_mut().await?;
            // Not being ready after all is said by the outer error, and looked at again.
            if let Ok(events) = ready.try_io(|watch| watch.get_mut().read_events(&mut [0; EVENTS]).map(drop))
            {
                events?;
            }
        }
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
