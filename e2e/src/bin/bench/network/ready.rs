//! From the answer of a readiness probe to the element of the table: a web server that a pod's probe asks, and a listener
//! for changes of the table, in one process on the node's machine.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_e2e::node::Node;
use berth_e2e::{manifest, tools};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use super::{READY, figures, print};
use crate::IDLE;

const PORT: u16 = 18080;
/// Changes that are waited for: one a second.
const CHANGES: usize = 15;
const PATIENCE: i64 = 30;

/// Starts a node with a pod behind a Service, whose readiness the server decides.
pub fn compare() -> Result<Vec<Duration>> {
    let node = Node::start()?;
    let service = "apiVersion: v1\nkind: Service\nmetadata: { name: probed }\nspec: { selector: { app: probed }, ports: [{ port: 80 }] }\n";
    node.apply("service.yaml", service)?;
    let probe = format!(
        "readinessProbe: {{ httpGet: {{ host: 127.0.0.1, port: {PORT} }}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1 }}"
    );
    let pod = manifest::Builder::new("probed").labels("{ app: probed }").shell(IDLE).with(&probe);
    node.apply("probed.yaml", &pod.yaml())?;
    node.wait_running(&["probed"])?;
    let mut command = node.machine().command(std::env::current_exe().context("this program")?);
    command.arg(READY);
    let found = figures(&tools::run(command)?.ok()?)?;
    node.finish()?;
    found.get("ready").cloned().context("no figures of changes")
}

/// `bench --ready-to-element`: answers the probe with yes and no by turns, and prints how long after each answer the table
/// is changed.
pub fn measure() -> Result<()> {
    // NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h) as a bit.
    const GROUP: u32 = 1 << (7 - 1);
    let changes =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
            .context("open a netfilter socket")?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&changes), &NetlinkAddr::new(0, GROUP))
        .context("listen for changes")?;
    setsockopt(&changes, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0)).context("set a timeout")?;
    let server = TcpListener::bind(("127.0.0.1", PORT)).context("listen for the probe")?;
    let (mut ready, mut times) = (false, Vec::new());
    for _ in 0..=CHANGES {
        ready = !ready;
        let (mut probe, _) = server.accept().context("wait for the probe")?;
        // The whole head, which is one segment.
        ensure!(
            probe.read(&mut [0; 4096]).context("read the probe's request")? > 0,
            "the probe sent nothing"
        );
        let line = if ready { "200 OK" } else { "503 Service Unavailable" };
        let answer = format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let began = Instant::now();
        probe.write_all(answer.as_bytes()).context("answer the probe")?;
        drop(probe);
        wait_for_element(&changes)?;
        times.push(began.elapsed());
    }
    print("ready", &times);
    Ok(())
}

fn wait_for_element(changes: &impl std::os::fd::AsRawFd) -> Result<()> {
    // NFT_MSG_NEWSETELEM and NFT_MSG_DELSETELEM of NFNL_SUBSYS_NFTABLES (linux/netfilter/nf_tables.h).
    const ELEMENTS: [u16; 2] = [10 << 8 | 12, 10 << 8 | 14];
    let mut room = vec![0; 1 << 16];
    let mut found = false;
    // What belongs to the same change has come with it.
    loop {
        let flags = if found { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
        match recv(changes.as_raw_fd(), &mut room, flags) {
            Ok(size) => found |= kinds(&room[..size]).any(|kind| ELEMENTS.contains(&kind)),
            Err(Errno::EAGAIN) if found => return Ok(()),
            Err(error) => return Err(error).context("no change of the table came"),
        }
    }
}

/// The types of the messages of a datagram (netlink(7)).
fn kinds(mut rest: &[u8]) -> impl Iterator<Item = u16> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?);
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let length = usize::try_from(length).ok()?.max(16).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        Some(kind)
    })
}
