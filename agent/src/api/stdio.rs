//! Pipes and terminals of a command, read and written without blocking a thread.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One end of a pipe, or the master of a terminal.
#[derive(Debug)]
pub struct Stdio(AsyncFd<OwnedFd>);

impl Stdio {
    /// Takes a descriptor, which becomes non-blocking. Must be called inside a tokio runtime.
    // The unsafe successor asks for a type whose descriptor stays the same and open, as OwnedFd's does.
    #[expect(deprecated, reason = "sound for OwnedFd, and unsafe code is kept out of this crate")]
    pub fn new(fd: OwnedFd, interest: Interest) -> io::Result<Stdio> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Stdio(AsyncFd::with_interest(fd, interest)?))
    }

    /// Reads some bytes; 0 at the end.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0
            .async_io(Interest::READABLE, |fd| match rustix::io::read(fd, &mut *buffer) {
                // A terminal's master says so once nobody has the other side open.
                Err(Errno::IO) => Ok(0),
                other => other.map_err(io::Error::from),
            })
            .await
    }

    /// Writes all bytes.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self
                .0
                .async_io(Interest::WRITABLE, |fd| rustix::io::write(fd, bytes).map_err(io::Error::from))
                .await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sets the size of a terminal.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.0.get_ref(), size)?)
    }
}
