//! A packet capture: every IP packet that passes any link of a namespace (packet(7)).
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};

use super::Ns;

/// What the kernel has seen since this was made.
pub struct Capture(OwnedFd);

/// What the head of a packet says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// Of the whole packet, in bytes.
    pub size: usize,
}

impl Capture {
    pub fn start(ns: &Ns) -> Self {
        let open = || {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll).unwrap()
        };
        let socket = ns.run(open);
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).unwrap();
        Self(socket)
    }

    /// The IP packets that have not been looked at.
    pub fn packets(&self) -> Vec<Packet> {
        let (mut all, mut room) = (Vec::new(), vec![0; 1 << 17]);
        loop {
            match recv(self.0.as_raw_fd(), &mut room, MsgFlags::empty()) {
                Ok(size) => all.extend(read(&room[..size])),
                Err(Errno::EAGAIN) => return all,
                Err(error) => panic!("read packets: {error}"),
            }
        }
    }
}

fn read(bytes: &[u8]) -> Option<Packet> {
    let ip = |from: usize, length: usize| -> Option<IpAddr> {
        let part = bytes.get(from..from + length)?;
        Some(match length {
            4 => <[u8; 4]>::try_from(part).ok()?.into(),
            _ => <[u8; 16]>::try_from(part).ok()?.into(),
        })
    };
    let size = bytes.len();
    match bytes.first()? >> 4 {
        4 => Some(Packet { source: ip(12, 4)?, destination: ip(16, 4)?, protocol: *bytes.get(9)?, size }),
        6 => Some(Packet { source: ip(8, 16)?, destination: ip(24, 16)?, protocol: *bytes.get(6)?, size }),
        _ => None,
    }
}
