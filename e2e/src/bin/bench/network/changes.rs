//! Changes of host ports and of Services.

use std::time::{Duration, Instant};

use anyhow::Result;
use berth_netplug::{Network, Protocol, Service, ServicePort};

use super::parts::{Space, pod};
use super::print;

const RUNS: u16 = 300;
const SERVICES: u8 = 100;

/// A pod's port of the host becomes another one: how much longer that takes than looking at a pod of which nothing changes,
/// by turns. (Ports come and go with pods, so that all a change adds to is a pod's start or end.)
pub async fn host_port(network: &Network) -> Result<()> {
    let space = Space::new()?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..RUNS {
        let wanted = pod("port".into(), &space, Some(8000 + round));
        for times in [&mut with, &mut without] {
            let began = Instant::now();
            network.attach(&wanted).await?;
            times.push(began.elapsed());
        }
    }
    drop(space);
    network.gc(&[]).await?;
    print("hostport", &[median(with).saturating_sub(median(without))]);
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// One of the endpoints of one Service goes, and comes again.
pub async fn service(network: &Network) -> Result<()> {
    let mut times = Vec::new();
    network.set_services(services(10)).await?;
    for round in 0..RUNS {
        let wanted = services(if round % 2 == 0 { 9 } else { 10 });
        let began = Instant::now();
        network.set_services(wanted).await?;
        times.push(began.elapsed());
    }
    network.set_services(Vec::new()).await?;
    print("service", &times);
    Ok(())
}

/// With ten endpoints each, the first one with so many.
fn services(endpoints_of_first: u8) -> Vec<Service> {
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
    (0..SERVICES).map(service).collect()
}
