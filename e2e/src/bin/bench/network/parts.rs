//! What is measured in a network namespace of this process.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use berth_netplug::{Config, HostPort, Network, PodNetwork, Protocol, Wishes};
use futures::future::join_all;
use nix::sched::{CloneFlags, setns, unshare};

use super::{changes, handmade, print};

/// Runs of what takes milliseconds.
const RUNS: usize = 100;
/// Pods at once, and how often.
const CROWD: usize = 100;
const CROWDS: usize = 7;
/// Bytes of a stream in GiB, and streams of each kind.
pub const GIB: u64 = 2;
const STREAMS: usize = 9;

/// A network namespace that lives as long as this.
pub struct Space(File);

impl Space {
    /// A new one.
    pub fn new() -> Result<Self> {
        let make = || -> Result<Self> {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            Ok(Self(File::open("/proc/thread-self/ns/net").context("open a network namespace")?))
        };
        join(thread::spawn(make))
    }

    /// Its file, for this process and others.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Runs something in it.
    fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T>>> {
        let namespace = self.0.try_clone().context("clone a descriptor")?;
        Ok(thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
            work()
        }))
    }
}

fn join<T>(thread: thread::JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

/// A pod of that name, with a port of the host if one is given.
pub fn pod(name: String, space: &Space, host_port: Option<u16>) -> PodNetwork {
    let port = |host_port| HostPort { host_ip: None, host_port, container_port: 80, protocol: Protocol::Tcp };
    PodNetwork {
        id: name.clone(),
        name,
        namespace: "default".into(),
        netns: space.path(),
        host_ports: host_port.map(port).into_iter().collect(),
        wishes: Wishes::default(),
    }
}

/// `bench --network-parts [PLUGINS]`: measures and prints.
pub fn measure(words: &[String]) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("make namespaces")?;
    let dir = tempfile::tempdir().context("make a folder")?;
    let mut config = Config::new(dir.path().join("net"));
    config.quarantine = Duration::ZERO;
    config.service_ipv4 = "10.86.0.0/16".parse().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start tokio")?;
    runtime.block_on(async {
        let network = Network::open(config).await?;
        one_pod(&network).await?;
        if let Some(plugins) = words.first() {
            handmade::plugin(plugins.as_ref(), dir.path(), RUNS)?;
        }
        many_pods(&network).await?;
        changes::host_port(&network).await?;
        changes::service(&network).await?;
        streams(&network).await?;
        network.close_all().await?;
        Ok(())
    })
}

async fn one_pod(network: &Network) -> Result<()> {
    let mut times = Vec::new();
    for round in 0..RUNS {
        let began = Instant::now();
        let space = Space::new()?;
        network.attach(&pod(format!("one-{round}"), &space, None)).await?;
        times.push(began.elapsed());
        drop(space);
        network.gc(&[]).await?;
    }
    print("one", &times);
    Ok(())
}

async fn many_pods(network: &Network) -> Result<()> {
    let mut times = Vec::new();
    for round in 0..CROWDS {
        let began = Instant::now();
        let spaces = (0..CROWD).map(|_| Space::new()).collect::<Result<Vec<_>>>()?;
        let pods: Vec<PodNetwork> = spaces
            .iter()
            .enumerate()
            .map(|(n, space)| pod(format!("many-{round}-{n}"), space, None))
            .collect();
        for attached in join_all(pods.iter().map(|pod| network.attach(pod))).await {
            attached?;
        }
        times.push(began.elapsed());
        drop(spaces);
        network.gc(&[]).await?;
    }
    print("hundred", &times);
    Ok(())
}

/// By turns, for the machine is not equally quiet at all times.
async fn streams(network: &Network) -> Result<()> {
    let ours = [Space::new()?, Space::new()?];
    let mut server = None;
    for (n, space) in ours.iter().enumerate() {
        server = Some(network.attach(&pod(format!("stream-{n}"), space, None)).await?.ips[0]);
    }
    let server = SocketAddr::new(server.context("a pod has no address")?, 5001);
    let hands = [Space::new()?, Space::new()?];
    let other = SocketAddr::new(handmade::connect(&hands)?, 5001);
    let (mut times, mut others) = (Vec::new(), Vec::new());
    // The first ones warm up.
    for round in 0..=STREAMS {
        let (one, two) = (stream(&ours, server)?, stream(&hands, other)?);
        if round > 0 {
            times.push(one);
            others.push(two);
        }
    }
    print("stream", &times);
    print("handmade", &others);
    Ok(())
}

/// How long it takes from the first to the second.
fn stream([from, to]: &[Space; 2], address: SocketAddr) -> Result<Duration> {
    const BYTES: u64 = GIB << 30;
    let listener = join(to.spawn(move || TcpListener::bind(address).context("listen"))?)?;
    let reader = thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept().context("accept")?;
        let (mut room, mut sum) = (vec![0; 1 << 18], 0);
        while sum < BYTES {
            let read = stream.read(&mut room).context("read")?;
            ensure!(read > 0, "the stream ended after {sum} bytes");
            sum += read as u64;
        }
        stream.write_all(b"!").context("answer")
    });
    let time = join(from.spawn(move || {
        let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        let (room, mut left) = (vec![0x5a; 1 << 18], BYTES);
        let began = Instant::now();
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
            stream.write_all(&room[..now]).context("write")?;
            left -= now as u64;
        }
        stream.read_exact(&mut [0]).context("wait for the answer")?;
        Ok(began.elapsed())
    })?)?;
    join(reader)?;
    Ok(time)
}
