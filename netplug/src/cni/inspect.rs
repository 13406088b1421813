//! What there is in a container and on the host, for CHECK.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::config::mac_text;
use crate::error::{Error, Result};
use crate::sys::netlink::{self, DUMP, REQUEST, Socket, attribute};
use crate::sys::netns::{self, on_thread};

const GET_LINK: u16 = 18;
const GET_ADDRESS: u16 = 22;
const GET_ROUTE: u16 = 26;

/// A link of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub mac: String,
    pub is_up: bool,
    /// Index of the bridge that it is on, 0 if on none.
    pub bridge: u32,
    /// Its own index.
    pub index: u32,
    /// Addresses with prefix lengths, as `10.9.0.2/24`.
    pub addresses: Vec<String>,
    /// Families (4, 6) that have their default route by it.
    pub default_routes: Vec<u8>,
}

/// Looks for link `name` in the namespace of a file, or in that of this process.
pub(super) async fn find(namespace: Option<&Path>, name: &str) -> Result<Option<Found>> {
    let namespace: Option<OwnedFd> = namespace.map(netns::open).transpose()?;
    let name = name.to_owned();
    on_thread(move |thread| {
        if let Some(namespace) = &namespace {
            thread
                .enter(namespace)
                .map_err(|source| Error::Namespace { path: "of the container".into(), source })?;
        }
        let fail = |e| Error::netlink("look at link", &name, e);
        let mut socket = Socket::open(netlink::ROUTE).map_err(fail)?;
        let Some(mut found) = link(&mut socket, &name).map_err(fail)? else { return Ok(None) };
        found.addresses = addresses(&mut socket, found.index).map_err(fail)?;
        found.default_routes = default_routes(&mut socket, found.index).map_err(fail)?;
        Ok(Some(found))
    })
    .await
}

/// A dump request without filters. `header` is that of the kind of object, all zeros.
fn dump(kind: u16, header: usize) -> Vec<u8> {
    let length = u32::try_from(16 + header).expect("headers are small");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | DUMP).to_ne_bytes());
    bytes.resize(16 + header, 0);
    bytes
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().copied().map(u32::from_ne_bytes)
}

fn link(socket: &mut Socket, name: &str) -> std::io::Result<Option<Found>> {
    const INFO: usize = 16;
    const UP: u32 = 1;
    let mut found = None;
    socket.dump(&dump(GET_LINK, INFO), |frame| {
        let Some((header, body)) = frame.body.split_at_checked(INFO) else { return };
        if attribute(body, 3).map(netlink::text) == Some(name) {
            let mac = attribute(body, 1).unwrap_or_default();
            found = Some(Found {
                mac: mac_text(mac),
                is_up: number(&header[8..]).unwrap_or_default() & UP != 0,
                bridge: attribute(body, 10).and_then(number).unwrap_or_default(),
                index: number(&header[4..]).unwrap_or_default(),
                ..Found::default()
            });
        }
    })?;
    Ok(found)
}

fn addresses(socket: &mut Socket, link: u32) -> std::io::Result<Vec<String>> {
    const INFO: usize = 8;
    let mut found = Vec::new();
    socket.dump(&dump(GET_ADDRESS, INFO), |frame| {
        let Some((header, body)) = frame.body.split_at_checked(INFO) else { return };
        // The local address, where it is told apart from the far end's.
        let ip = attribute(body, 2).or_else(|| attribute(body, 1)).and_then(ip);
        if let Some(ip) = ip.filter(|_| number(&header[4..]) == Some(link)) {
            found.push(format!("{ip}/{}", header[1]));
        }
    })?;
    Ok(found)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        16 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
        _ => None,
    }
}

fn default_routes(socket: &mut Socket, link: u32) -> std::io::Result<Vec<u8>> {
    const INFO: usize = 12;
    const GATEWAY: u16 = 5;
    const MAIN: u8 = 254;
    let mut found = Vec::new();
    socket.dump(&dump(GET_ROUTE, INFO), |frame| {
        let Some((header, body)) = frame.body.split_at_checked(INFO) else { return };
        let by_it = attribute(body, 4).and_then(number) == Some(link) && attribute(body, GATEWAY).is_some();
        if header[1] == 0 && header[4] == MAIN && by_it {
            found.push(if header[0] == 2 { 4 } else { 6 });
        }
    })?;
    Ok(found)
}
