//! Measures attach, and changes of host ports and Services in a throwaway network namespace and prints medians. Needs root.
//!
//! `cargo run --release -p berth-netplug --example attach`

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_netplug::{Config, HostPort, Network, PodNetwork, Protocol, Service, ServicePort, Wishes};
use futures::future::join_all;
use nix::sched::{CloneFlags, unshare};

const CROWD: usize = 100;

/// A new network namespace.
fn namespace() -> OwnedFd {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap().into()
    };
    std::thread::spawn(make).join().unwrap()
}

fn pod(id: String, netns: &OwnedFd, host_port: Option<u16>) -> PodNetwork {
    let host_ports = host_port.map(|host_port| HostPort {
        host_ip: None,
        host_port,
        container_port: 80,
        protocol: Protocol::Tcp,
    });
    PodNetwork {
        name: id.clone(),
        id,
        namespace: "default".into(),
        netns: format!("/proc/self/fd/{}", netns.as_raw_fd()).into(),
        host_ports: host_ports.into_iter().collect(),
        wishes: Wishes::default(),
    }
}

/// Services with ten endpoints each, the first one with so many.
fn services(count: u8, endpoints_of_first: u8) -> Vec<Service> {
    let service = |n: u8| Service {
        namespace: "default".into(),
        name: format!("s{n}"),
        cluster_ips: vec![[10, 86, 0, n + 1].into()],
        ports: vec![ServicePort {
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(30_000 + u16::from(n)),
            endpoints: (0..if n == 0 { endpoints_of_first } else { 10 })
                .map(|endpoint| ([10, 85, n, endpoint + 2], 80).into())
                .collect(),
        }],
        affinity: None,
    };
    (0..count).map(service).collect()
}

/// An endpoint comes and goes: only its own elements are touched.
async fn measure_services(network: &Network, count: u8) {
    let mut times = Vec::new();
    network.set_services(services(count, 10)).await.unwrap();
    for round in 0..500 {
        let wanted = services(count, if round % 2 == 0 { 9 } else { 10 });
        let start = Instant::now();
        network.set_services(wanted).await.unwrap();
        times.push(start.elapsed());
    }
    report(&format!("change of one of {count} Services"), times);
    network.set_services(Vec::new()).await.unwrap();
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    println!("{what:<40} median {:>9.3?}  worst {:>9.3?}", times[times.len() / 2], times[times.len() - 1]);
}

async fn measure(network: &Network) {
    let (mut with_port, mut without, mut change, mut crowd, mut teardown) =
        (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..50 {
        let netns = namespace();
        let start = Instant::now();
        network.attach(&pod(format!("one-{round}"), &netns, None)).await.unwrap();
        without.push(start.elapsed());
        let start = Instant::now();
        network.attach(&pod(format!("one-{round}"), &netns, Some(8080))).await.unwrap();
        change.push(start.elapsed());
        let another = namespace();
        let start = Instant::now();
        network.attach(&pod(format!("two-{round}"), &another, Some(8081))).await.unwrap();
        with_port.push(start.elapsed());
        drop((netns, another));
        network.gc(&[]).await.unwrap();
    }
    for round in 0..5 {
        let spaces: Vec<OwnedFd> = (0..CROWD).map(|_| namespace()).collect();
        let pods: Vec<PodNetwork> =
            spaces.iter().enumerate().map(|(n, netns)| pod(format!("c-{round}-{n}"), netns, None)).collect();
        let start = Instant::now();
        for attached in join_all(pods.iter().map(|pod| network.attach(pod))).await {
            attached.unwrap();
        }
        crowd.push(start.elapsed());
        drop(spaces);
        let start = Instant::now();
        network.gc(&[]).await.unwrap();
        teardown.push(start.elapsed());
    }
    report("attach of one pod", without);
    report("attach of one pod with a host port", with_port);
    report("attach again with a new host port", change);
    report(&format!("attach of {CROWD} pods at once"), crowd);
    report(&format!("detach of {CROWD} pods at once"), teardown);
}

fn main() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let dir = tempfile::TempDir::new().unwrap();
    let mut config = Config::new(dir.path().join("net"));
    config.quarantine = Duration::ZERO;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let network = Network::open(config).await.unwrap();
        measure_services(&network, 1).await;
        measure_services(&network, 100).await;
        measure(&network).await;
        network.close_all().await.unwrap();
    });
}
