//! Tells when somebody deleted the bridge, a pod's link, or a part of the table, or changed what may drop pods' traffic.

use std::io;

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result};
use crate::nft::encode::{DEL_CHAIN, DEL_ELEMENT, DEL_RULE, DEL_SET, DEL_TABLE, NEW_CHAIN};
use crate::nft::wire::NF_TABLES;
use crate::sys::netlink::{self, Frame, Socket, attribute, text};

/// Bytes of unread notices: a hundred pods that start at once cause some thousand of about a kilobyte.
const ROOM: usize = 4 << 20;
const LINKS: u32 = 1;
const TABLES: u32 = 7;
const DEL_LINK: u16 = 17;
const IFNAME: u16 = 3;

/// What happened since the last look. More than one may be true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// The bridge was deleted.
    pub bridge: bool,
    /// Some link was deleted.
    pub link: bool,
    /// A part of the table was deleted by somebody else.
    pub table: bool,
    /// Somebody made a chain, gave one another policy, or took rules out of one, perhaps ours: a firewall was started anew.
    pub firewall: bool,
    /// Notices were lost, so that everything has to be looked at.
    pub lost: bool,
}

/// Two sockets that hear of changes in the namespace where they were opened.
#[derive(Debug)]
pub(crate) struct Monitor {
    bridge: String,
    tables_of: [String; 2],
    own_port: u32,
    links: AsyncFd<Socket>,
    tables: AsyncFd<Socket>,
}

impl Monitor {
    /// Listens from now on. Changes made through the netfilter socket numbered `own_port` are no news.
    pub(crate) fn open(bridge: &str, table: &str, own_port: u32) -> Result<Self> {
        let listen = |protocol, group| -> io::Result<AsyncFd<Socket>> {
            let socket = Socket::open(protocol)?;
            socket.join(group)?;
            socket.room(ROOM)?;
            socket.into_async()
        };
        let fail = |e| Error::netlink("listen for changes of", bridge, e);
        Ok(Self {
            bridge: bridge.into(),
            tables_of: [table.into(), crate::nft::policy::table_name(table)],
            own_port,
            links: listen(netlink::ROUTE, LINKS).map_err(fail)?,
            tables: listen(netlink::NETFILTER, TABLES).map_err(fail)?,
        })
    }

    /// Waits until something of interest was deleted.
    pub(crate) async fn next(&mut self) -> io::Result<News> {
        loop {
            let mut news = News::default();
            tokio::select! {
                guard = self.links.readable_mut() => {
                    let mut guard = guard?;
                    let bridge = &self.bridge;
                    if read(guard.get_inner_mut(), |frame| link(&mut news, bridge, frame))? {
                        news = News { bridge: true, link: true, lost: true, ..news };
                    }
                    guard.clear_ready();
                }
                guard = self.tables.readable_mut() => {
                    let mut guard = guard?;
                    let (names, own) = (&self.tables_of, self.own_port);
                    if read(guard.get_inner_mut(), |frame| table(&mut news, names, own, frame))? {
                        news = News { table: true, firewall: true, lost: true, ..news };
                    }
                    guard.clear_ready();
                }
            }
            if news != News::default() {
                return Ok(news);
            }
        }
    }
}

/// Reads all there is; says whether messages were lost because too many came.
fn read(socket: &mut Socket, mut visit: impl FnMut(Frame<'_>)) -> io::Result<bool> {
    let mut lost = false;
    loop {
        match socket.queued(&mut visit) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(lost),
            Err(e) if netlink::is(&e, Errno::ENOBUFS) => lost = true,
            Err(e) => return Err(e),
            Ok(()) => {}
        }
    }
}

fn link(news: &mut News, bridge: &str, frame: Frame<'_>) {
    const INFO: usize = 16;
    // A bridge tells of a port that left in a message of the same type; its family is not 0.
    if frame.kind == DEL_LINK && frame.body.first() == Some(&0) && frame.body.len() > INFO {
        news.link = true;
        news.bridge |= attribute(&frame.body[INFO..], IFNAME).map(text) == Some(bridge);
    }
}

fn table(news: &mut News, ours: &[String], own_port: u32, frame: Frame<'_>) {
    let [kind, subsystem] = frame.kind.to_le_bytes();
    if subsystem != NF_TABLES || frame.port == own_port {
        return;
    }
    // The first attribute of all these messages is the table's name.
    let name = || frame.body.get(4..).and_then(|body| attribute(body, 1)).map(text);
    let is_ours = || name().is_some_and(|name| ours.iter().any(|one| one == name));
    let deletion = [DEL_TABLE, DEL_CHAIN, DEL_RULE, DEL_SET, DEL_ELEMENT].contains(&kind);
    news.table |= deletion && is_ours();
    news.firewall |= [NEW_CHAIN, DEL_RULE].contains(&kind) && !is_ours();
}
