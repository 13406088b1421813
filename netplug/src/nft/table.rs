//! The table in the kernel.

use std::io;

use nix::errno::Errno;

use super::encode::{self, Change, GET_TABLE};
use super::ruleset::Ruleset;
use super::wire::{INET, NF_TABLES, message};
use crate::error::{Error, Result};
use crate::sys::netlink::{self, ACK, Socket};

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

    /// Takes elements and chains out and puts others in, in one step.
    pub(crate) fn change(&mut self, change: &Change) -> Result<()> {
        if change.is_empty() {
            return Ok(());
        }
        self.execute("change nft table", &encode::change(&self.name, change))
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

    /// Hands every answer to a dump request to `visit`: its family and its attributes.
    pub(super) fn dump(
        &mut self,
        operation: &'static str,
        request: &[u8],
        mut visit: impl FnMut(u8, &[u8]),
    ) -> Result<()> {
        let outcome = self.socket.dump(request, |frame| {
            if let Some((header, body)) = frame.body.split_at_checked(4) {
                visit(header[0], body);
            }
        });
        outcome.map_err(|e| self.error(operation, e))
    }

    /// The table's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn execute(&mut self, operation: &'static str, batch: &[u8]) -> Result<()> {
        self.socket.execute(batch).map_err(|e| self.error(operation, e))
    }

    fn error(&self, operation: &'static str, source: io::Error) -> Error {
        Error::netlink(operation, format!("inet {}", self.name), source)
    }
}
