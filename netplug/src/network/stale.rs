//! What the settings no longer have: networks that are no more, with bridge, links, leases and rules, and bridges and gateways
//! that a network had before it got others. Each network has a record of those, written before they are made.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Inner;
use crate::config::{Config, beside};
use crate::error::{Error, Result};
use crate::nft::admission;
use crate::nft::table::Table;
use crate::sys::netlink::{self, Socket};
use crate::sys::netns::on_thread;
use crate::{bridge, ipam, record, veth};

/// `network.json`, which every network has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    bridge: String,
    /// Whether the bridge was not there before, so that it is ours to remove.
    made: bool,
    /// The addresses that the bridge was given, with their prefix lengths.
    #[serde(default)]
    gateways: Vec<(IpAddr, u8)>,
}

/// Its name.
const RECORD: &str = "network";

impl Record {
    fn read(folder: &Path) -> Option<Self> {
        record::read(folder, RECORD).ok()??.ok()
    }

    fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).map_err(|e| Error::file("create", folder, e))?;
        record::write(folder, RECORD, self)
    }
}

/// Records bridge and gateways of a network before they are made, and takes off the bridge what it no longer has.
pub(super) async fn note(inner: &Inner) -> Result<()> {
    let (config, folder) = (&inner.config, &inner.config.state_dir);
    if config.parent.is_some() {
        return Record { bridge: String::new(), made: false, gateways: Vec::new() }.write(folder);
    }
    let gateways: Vec<_> = config.gateways().collect();
    let before = Record::read(folder).filter(|record| record.bridge == config.bridge);
    let made = match &before {
        Some(record) => {
            for gateway in record.gateways.iter().filter(|one| !gateways.contains(one)) {
                bridge::take_address(&inner.handle, &config.bridge, *gateway).await?;
            }
            record.made
        }
        None => bridge::get(&inner.handle, &config.bridge).await?.is_none(),
    };
    let now = Record { bridge: config.bridge.clone(), made, gateways };
    if before.as_ref() == Some(&now) { Ok(()) } else { now.write(folder) }
}

/// Whether the bridge of this network is to go with it.
pub(super) fn is_ours(config: &Config) -> bool {
    config.name.is_none() || Record::read(&config.state_dir).is_none_or(|record| record.made)
}

/// Removes what is left of networks that are no more, and the bridges that networks had before they got others.
/// Before the leases are loaded: those that do not fit any more are dropped then, and nobody knows their links.
pub(super) async fn remove(config: &Config) -> Result<()> {
    let config = config.clone();
    on_thread(move |_| {
        remove_one(&config, &config.state_dir)?;
        let parent = config.state_dir.join(beside::FOLDER);
        let folders = match fs::read_dir(&parent) {
            Ok(folders) => folders,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::file("list", parent, e)),
        };
        for folder in folders {
            let folder = folder.map_err(|e| Error::file("list", &parent, e))?.path();
            remove_one(&config, &folder)?;
        }
        Ok(())
    })
    .await
}

/// The thread must be in the host's namespace.
fn remove_one(config: &Config, folder: &Path) -> Result<()> {
    let record = Record::read(folder);
    let bridge_of = |net: &Config| if net.parent.is_some() { String::new() } else { net.bridge.clone() };
    // One that has become of another kind is another network.
    let became_other = |net: &&Config| {
        record.as_ref().is_some_and(|record| record.bridge.is_empty() != net.parent.is_some())
    };
    let still = config.all().find(|net| net.state_dir == folder).filter(|net| !became_other(net));
    if let (Some(net), Some(record)) = (still, &record)
        && bridge_of(net) == record.bridge
    {
        return Ok(());
    }
    let mut links = Vec::new();
    if still.is_none() {
        links = ipam::links(folder)?;
        tracing::info!(network = %folder.display(), pods = links.len(), "removing a network that is no more");
    }
    if let Some(record) = &record {
        let taken = config.all().any(|net| bridge_of(net) == record.bridge);
        if record.made && !taken {
            links.push(record.bridge.clone());
        }
        let beside = (folder != config.state_dir).then_some(record.bridge.as_str());
        admission::dismiss(&mut Table::open(&config.table)?, beside)?;
    }
    if !links.is_empty() {
        let socket = Socket::open(netlink::ROUTE);
        let mut socket =
            socket.map_err(|e| Error::netlink("open a netlink socket for", &config.bridge, e))?;
        veth::delete_all(&mut socket, links.iter().map(String::as_str))?;
    }
    match still {
        // What it has now is noted before it is made.
        Some(_) => forget(folder),
        None => fs::remove_dir_all(folder).map_err(|e| Error::file("remove", folder, e)),
    }
}

/// Removes the record of a network.
pub(super) fn forget(folder: &Path) -> Result<()> {
    record::remove(&record::path(folder, RECORD))
}
