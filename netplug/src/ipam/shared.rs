//! The leases as the threads of one process share them, and where asked for, several processes.

use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};

use super::Ipam;
use super::store::LOCK;
use crate::config::Config;
use crate::error::{Error, Result};

/// Leases behind a lock.
#[derive(Debug)]
pub(crate) struct Shared {
    ipam: Mutex<Ipam>,
    /// Settings to read them by again, where other processes change them.
    others: Option<Config>,
}

impl Shared {
    /// Leases that this process alone changes.
    pub(crate) fn alone(config: &Config) -> Result<Self> {
        Ok(Self { ipam: Mutex::new(Ipam::open(config)?), others: None })
    }

    /// Leases that other processes change, too: they are read anew each time the lock is had.
    pub(crate) fn among_others(config: &Config) -> Result<Self> {
        std::fs::create_dir_all(&config.state_dir)
            .map_err(|e| Error::file("create", &config.state_dir, e))?;
        let first = lock(config)?;
        let ipam = Mutex::new(Ipam::open(config)?);
        drop(first);
        Ok(Self { ipam, others: Some(config.clone()) })
    }

    /// The leases, until the guard is dropped. A panic of another holder cannot leave them half changed: disk comes first,
    /// memory after.
    pub(crate) fn lock(&self) -> Result<Guard<'_>> {
        let mut ipam = self.ipam.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.others.as_ref().map(lock).transpose()?;
        if let Some(config) = &self.others {
            *ipam = Ipam::open(config)?;
        }
        Ok(Guard { ipam, _file: file })
    }
}

fn lock(config: &Config) -> Result<Flock<File>> {
    let path = config.state_dir.join(LOCK);
    let file = File::options().create(true).append(true).open(&path);
    let mut file = file.map_err(|e| Error::file("open", &path, e))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(locked) => return Ok(locked),
            Err((again, nix::errno::Errno::EINTR)) => file = again,
            Err((_, errno)) => return Err(Error::file("lock", &path, errno.into())),
        }
    }
}

/// The leases, which nobody else changes meanwhile.
pub(crate) struct Guard<'a> {
    ipam: MutexGuard<'a, Ipam>,
    _file: Option<Flock<File>>,
}

impl Deref for Guard<'_> {
    type Target = Ipam;
    fn deref(&self) -> &Ipam {
        &self.ipam
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Ipam {
        &mut self.ipam
    }
}
