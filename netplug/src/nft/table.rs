//! The table in the kernel.

use std::io;

use nix::errno::Errno;

use super::encode::{self, Change, GET_TABLE};
use super::policy::{self, Contents};
use super::ruleset::Ruleset;
use super::wire::{BRIDGE, INET, NF_TABLES, message};
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

    /// Removes the table, and those of policies; done if there is none.
    pub(crate) fn remove(&mut self) -> Result<()> {
        self.remove_policies()?;
        self.execute("remove nft table", &encode::remove(INET, &self.name))
    }

    /// Whether the table is there at all.
    pub(crate) fn exists(&mut self) -> Result<bool> {
        let name = self.name.clone();
        self.has(INET, &name)
    }

    fn has(&mut self, family: u8, name: &str) -> Result<bool> {
        let request = message(NF_TABLES, GET_TABLE, ACK, family, |a| {
            a.text(1, name);
        });
        match self.socket.execute(&request) {
            Ok(()) => Ok(true),
            Err(e) if netlink::is(&e, Errno::ENOENT) => Ok(false),
            // Of this family the kernel has no tables at all.
            Err(e) if netlink::is(&e, Errno::EAFNOSUPPORT) || netlink::is(&e, Errno::EOPNOTSUPP) => Ok(false),
            Err(e) => Err(self.error("look for nft table", e)),
        }
    }

    /// Makes a table of policies anew in one step.
    pub(crate) fn rebuild_policies(&mut self, contents: &Contents) -> Result<()> {
        // All that the messages refer to is made by them, so what is not there is a part of the kernel.
        let lacking = [Errno::ENOENT, Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::EPROTONOSUPPORT];
        match self.execute_on("make nft table", contents, &policy::rebuild(contents)) {
            Err(Error::Netlink { source, .. })
                if contents.bridge && lacking.iter().any(|errno| netlink::is(&source, *errno)) =>
            {
                Err(Error::NoPolicies(source))
            }
            other => other,
        }
    }

    /// Makes of a table of policies another one in one step.
    pub(crate) fn change_policies(&mut self, old: &Contents, new: &Contents) -> Result<()> {
        match policy::change(old, new) {
            Some(batch) => self.execute_on("change nft table", new, &batch),
            None => Ok(()),
        }
    }

    /// Removes the tables of policies; done if there are none.
    pub(crate) fn remove_policies(&mut self) -> Result<()> {
        let name = policy::table_name(&self.name);
        for family in [INET, BRIDGE] {
            if self.has(family, &name)? {
                self.execute("remove nft table of policies beside", &encode::remove(family, &name))?;
            }
        }
        Ok(())
    }

    fn execute_on(&mut self, operation: &'static str, contents: &Contents, batch: &[u8]) -> Result<()> {
        let family = if contents.bridge { "bridge" } else { "inet" };
        let outcome = self.socket.execute(batch);
        outcome.map_err(|e| Error::netlink(operation, format!("{family} {}", contents.name), e))
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
