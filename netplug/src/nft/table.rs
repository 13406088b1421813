//! The table in the kernel.

use std::io;

use nix::errno::Errno;

use super::encode::{self, GET_CHAIN, GET_TABLE};
use super::ruleset::{Element, Ruleset};
use super::wire::{INET, NF_TABLES, message};
use crate::error::{Error, Result};
use crate::sys::netlink::{self, ACK, DUMP, Socket, attribute, text};

/// The nft table of one network, reached through a socket of the namespace where it was opened.
#[derive(Debug)]
pub(crate) struct Table {
    name: String,
    socket: Socket,
}

impl Table {
    /// Opens a socket for table `name` in the namespace of the calling thread; changes nothing.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let socket = Socket::open(netlink::NETFILTER)
            .and_then(Socket::widen)
            .map_err(|e| Error::netlink("open a netfilter socket for table", name, e))?;
        Ok(Self { name: name.into(), socket })
    }

    /// The socket's number; changes made by it are not news to us.
    pub(crate) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Makes the table anew in one step; packets never meet a half-made one.
    pub(crate) fn rebuild(&mut self, ruleset: &Ruleset) -> Result<()> {
        self.execute("make nft table", &encode::rebuild(ruleset))
    }

    /// Takes elements out and puts others in.
    pub(crate) fn change(&mut self, gone: &[Element], new: &[Element]) -> Result<()> {
        if gone.is_empty() && new.is_empty() {
            return Ok(());
        }
        self.execute("change host ports in nft table", &encode::change(&self.name, gone, new))
    }

    /// Removes the table; done if there is none.
    pub(crate) fn remove(&mut self) -> Result<()> {
        self.execute("remove nft table", &encode::remove(&self.name))
    }

    /// Whether the table is there at all.
    pub(crate) fn exists(&mut self) -> Result<bool> {
        let request = message(NF_TABLES, GET_TABLE, ACK, INET, |a| {
            a.text(1, &self.name);
        });
        match self.socket.execute(&request) {
            Ok(()) => Ok(true),
            Err(e) if netlink::is(&e, Errno::ENOENT) => Ok(false),
            Err(e) => Err(self.error("look for nft table", e)),
        }
    }

    /// Chains of other tables that drop forwarded packets unless told otherwise, as `family table chain`.
    pub(crate) fn dropping_chains(&mut self) -> Result<Vec<String>> {
        const FORWARD: [u8; 4] = [0, 0, 0, 2];
        const DROP: [u8; 4] = [0, 0, 0, 0];
        let request = message(NF_TABLES, GET_CHAIN, DUMP, 0, |_| {});
        let mut found = Vec::new();
        let own = self.name.clone();
        let outcome = self.socket.dump(&request, |frame| {
            let Some((header, body)) = frame.body.split_at_checked(4) else { return };
            let family = match header[0] {
                INET => "inet",
                2 => "ip",
                10 => "ip6",
                _ => return,
            };
            let name = |kind| attribute(body, kind).map(text).unwrap_or_default();
            let forward = attribute(body, 4).and_then(|hook| attribute(hook, 1)) == Some(&FORWARD[..]);
            if forward && attribute(body, 5) == Some(&DROP[..]) && name(1) != own {
                found.push(format!("{family} {} {}", name(1), name(3)));
            }
        });
        outcome.map_err(|e| self.error("list chains beside nft table", e))?;
        Ok(found)
    }

    fn execute(&mut self, operation: &'static str, batch: &[u8]) -> Result<()> {
        self.socket.execute(batch).map_err(|e| self.error(operation, e))
    }

    fn error(&self, operation: &'static str, source: io::Error) -> Error {
        Error::netlink(operation, format!("inet {}", self.name), source)
    }
}
