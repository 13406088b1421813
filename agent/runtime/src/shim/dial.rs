//! Connections to a port on the pod's loopback, for port-forward.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getsockopt, socket, sockopt::SocketError,
};

use super::connection::Asker;

/// A connection in the making.
#[derive(Debug)]
pub(super) struct Dial {
    pub asker: Asker,
    pub socket: OwnedFd,
    port: u16,
    v6: bool,
}

/// How far it got.
#[derive(Debug)]
pub(super) enum Dialed {
    Done(OwnedFd),
    Pending(Dial),
    Failed(io::Error),
}

/// Begins to connect: to 127.0.0.1 first, and to ::1 if nobody listens there.
pub(super) fn begin(asker: Asker, port: u16) -> Dialed {
    dial(asker, port, false)
}

impl Dial {
    /// The socket is writable: it is connected, or has failed.
    pub fn proceed(self) -> Dialed {
        match getsockopt(&self.socket, SocketError) {
            Ok(0) => Dialed::Done(self.socket),
            Ok(error) => refused(self.asker, self.port, self.v6, io::Error::from_raw_os_error(error)),
            Err(error) => Dialed::Failed(error.into()),
        }
    }
}

fn dial(asker: Asker, port: u16, v6: bool) -> Dialed {
    let (family, address) = if v6 {
        (AddressFamily::Inet6, SocketAddr::from((Ipv6Addr::LOCALHOST, port)))
    } else {
        (AddressFamily::Inet, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = match socket(family, SockType::Stream, flags, None) {
        Ok(socket) => socket,
        Err(error) => return Dialed::Failed(error.into()),
    };
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) => Dialed::Done(socket),
        Err(Errno::EINPROGRESS) => Dialed::Pending(Dial { asker, socket, port, v6 }),
        Err(error) => refused(asker, port, v6, error.into()),
    }
}

fn refused(asker: Asker, port: u16, v6: bool, error: io::Error) -> Dialed {
    if v6 {
        return Dialed::Failed(error);
    }
    match dial(asker, port, true) {
        // A pod without IPv6 should hear of IPv4.
        Dialed::Failed(_) => Dialed::Failed(error),
        other => other,
    }
}
