//! Being told of the out-of-memory killer.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::hierarchy::Hierarchy;
use super::{Error, path};

/// A descriptor that becomes ready when the out-of-memory killer is at work in a cgroup. To be polled for
/// [`OomWatch::flags`]; [`OomWatch::take_notice`] makes it wait for the next time.
#[derive(Debug)]
pub struct OomWatch(Watch);

#[derive(Debug)]
enum Watch {
    /// An eventfd, told just before a kill (kernel documentation, cgroup-v1/memory.rst, section 10).
    V1(OwnedFd),
    /// `memory.events`, which changes after a kill (cgroup-v2.rst, "memory.events").
    V2(File),
}

impl OomWatch {
    /// What to poll.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Watch::V1(event) => event.as_fd(),
            Watch::V2(file) => file.as_fd(),
        }
    }

    /// What to poll for.
    #[must_use]
    pub fn flags(&self) -> PollFlags {
        match self.0 {
            Watch::V1(_) => PollFlags::POLLIN,
            Watch::V2(_) => PollFlags::POLLPRI,
        }
    }

    /// Reads the notice. True when a kill may not be counted yet, so that the counter should be looked at again soon.
    pub fn take_notice(&mut self) -> bool {
        match &mut self.0 {
            // The descriptor does not block: without a notice there is an error, and nothing to look for.
            Watch::V1(event) => nix::unistd::read(event.as_fd(), &mut [0; 8]).is_ok(),
            Watch::V2(file) => {
                let _ = file.rewind().and_then(|()| file.read(&mut [0; 512]));
                false
            }
        }
    }
}

/// Watches a cgroup; `None` when it has no memory controller.
pub fn watch(hierarchy: &Hierarchy, relative: &Path) -> Result<Option<OomWatch>, Error> {
    let Some(dir) = hierarchy.folder("memory", relative) else { return Ok(None) };
    let open = |file: &str| match File::open(dir.join(file)) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("open", dir.join(file), e)),
    };
    match hierarchy {
        Hierarchy::V2(_) => Ok(open("memory.events")?.map(|file| {
            let mut watch = OomWatch(Watch::V2(file));
            // What was before is no news.
            watch.take_notice();
            watch
        })),
        Hierarchy::V1(_) => {
            let Some(control) = open("memory.oom_control")? else { return Ok(None) };
            let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|e| Error::io("make an eventfd for", dir.clone(), e.into()))?;
            let words = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
            path::write(&dir.join("cgroup.event_control"), &words)?;
            Ok(Some(OomWatch(Watch::V1(event.into()))))
        }
    }
}
