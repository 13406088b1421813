//! Keeping the kernel, for a moment, from killing a container as a whole.
//!
//! Containers on cgroup v2 have `memory.oom.group`: for want of memory the kernel kills all of one or nothing of it, and with each process
//! whoever shares its memory. Of a single victim it makes sure that it is not a child whose maker waits for it to execute a program
//! (`in_vfork()` in mm/oom_kill.c); of a group it does not. So while there is such a child in a container, this is not killed as a
//! group. If the kernel has to kill just then, it kills one process, and whoever watches the cgroup kills the rest: see
//! [`Cgroups::oom_group_kills`](super::Cgroups::oom_group_kills).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::path::read_optional;
use super::read::oom_group_kills;

const FILE: &str = "memory.oom.group";

/// What decides whether a cgroup v2 is killed as a whole.
#[derive(Debug)]
pub struct GroupKill {
    /// Its own file; none where there is no memory controller.
    file: Option<File>,
}

impl GroupKill {
    /// Nothing when it cannot be kept from that: when one above it is killed as a whole, or the kernel does not count such kills (before
    /// Linux 5.17).
    pub(super) fn open(root: &Path, relative: &Path) -> Option<GroupKill> {
        for above in relative.ancestors().skip(1) {
            let text = read_optional(&root.join(above).join(FILE)).ok()?;
            if text.is_some_and(|text| text.trim() == "1") {
                return None;
            }
        }
        let own = root.join(relative);
        match OpenOptions::new().read(true).write(true).open(own.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(GroupKill { file: None }),
            Err(_) => None,
            Ok(file) => {
                oom_group_kills(&own).ok()??;
                Some(GroupKill { file: Some(file) })
            }
        }
    }

    /// As long as what this returns lives, the cgroup is not killed as a whole.
    ///
    /// # Errors
    /// What write(2) says: then it may be.
    pub fn hold(&self) -> io::Result<Held<'_>> {
        let Some(file) = self.file.as_ref().filter(|_| self.is_on()) else { return Ok(Held(None)) };
        file.write_at(b"0", 0)?;
        Ok(Held(Some(file)))
    }

    /// Whether it is killed as a whole. Where that cannot be read it is taken for so.
    pub fn is_on(&self) -> bool {
        let mut value = [b'1'];
        self.file.as_ref().is_some_and(|file| file.read_at(&mut value, 0).is_err() || value == *b"1")
    }
}

/// See [`GroupKill::hold`].
#[derive(Debug)]
pub struct Held<'a>(Option<&'a File>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.0 {
            // The cgroup may have gone, and nobody is left in it then.
            let _ = file.write_at(b"1", 0);
        }
    }
}
