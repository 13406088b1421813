//! Limits on a pod's traffic.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use berth_netplug::{Network, Rate, Wishes};
use common::{Ns, Pod, ip, on_a_machine, pod, run};
use tokio::runtime::Runtime;

/// A megabyte per second, and a bucket of 50 KB.
const RATE: Rate = Rate { bits_per_second: 8_000_000, burst_bytes: Some(50_000) };
const BYTES: usize = 600_000;

fn attach(runtime: &Runtime, network: &Network, id: &str, wishes: Wishes) -> Pod {
    let ns = Ns::new();
    let wanted = berth_netplug::PodNetwork { wishes, ..pod(id, &ns, &[]) };
    let attachment = runtime.block_on(network.attach(&wanted)).unwrap();
    Pod { ns, network: wanted, ip: attachment.ips[0].to_string(), host_if: attachment.host_if }
}

/// Sends `BYTES` from one namespace to another and waits until all have come; how long that took.
fn transfer(from: &Ns, to: &Ns, address: &str) -> Duration {
    let listener = to.run(|| TcpListener::bind("0.0.0.0:90").unwrap());
    let start = Instant::now();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap()
    });
    from.run(|| TcpStream::connect((address, 90)).unwrap().write_all(&vec![0; BYTES]).unwrap());
    assert_eq!(receiver.join().unwrap(), BYTES);
    start.elapsed()
}

/// No load makes traffic faster than its limit, so this holds on any machine: what is beyond the bucket takes its time. A
/// tenth is left for rounding.
fn least() -> Duration {
    Duration::from_secs_f64((BYTES - 50_000) as f64 / 1e6 * 0.9)
}

#[test]
fn each_direction_has_its_own_limit() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let receives = attach(runtime, &network, "in", Wishes { ingress: Some(RATE), ..Wishes::default() });
        let sends = attach(runtime, &network, "out", Wishes { egress: Some(RATE), ..Wishes::default() });
        let free = attach(runtime, &network, "free", Wishes::default());
        let queue = run("tc", &format!("-s qdisc show dev {}", receives.host_if));
        assert!(queue.contains("qdisc tbf") && queue.contains("rate 8Mbit burst 50000b"), "{queue}");
        let queue = sends.ns.run(|| run("tc", "qdisc show dev eth0"));
        assert!(queue.contains("qdisc tbf") && queue.contains("rate 8Mbit burst 50000b"), "{queue}");
        for unlimited in [
            run("tc", &format!("qdisc show dev {}", sends.host_if)),
            receives.ns.run(|| run("tc", "qdisc show dev eth0")),
        ] {
            assert!(!unlimited.contains("tbf"), "{unlimited}");
        }
        assert!(transfer(&free.ns, &receives.ns, &receives.ip) >= least(), "to the pod");
        assert!(transfer(&sends.ns, &free.ns, &free.ip) >= least(), "from the pod");
        assert!(transfer(&machine.host, &receives.ns, &receives.ip) >= least(), "from the host to the pod");
        // The other way is as free as ever: the queue has not seen these bytes.
        transfer(&receives.ns, &free.ns, &free.ip);
        let seen = run("tc", &format!("-s -j qdisc show dev {}", receives.host_if));
        let seen: serde_json::Value = serde_json::from_str(&seen).unwrap();
        let bytes = seen[0]["bytes"].as_u64().unwrap();
        let sent = 2 * BYTES as u64;
        assert!((sent..sent + sent / 2).contains(&bytes), "{seen}");
    });
}

#[test]
fn limits_come_and_go_and_are_put_back() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let both = Wishes { ingress: Some(RATE), egress: Some(RATE), ..Wishes::default() };
        let mut a = attach(runtime, &network, "a", both);
        let outside = |a: &Pod| run("tc", &format!("qdisc show dev {}", a.host_if));
        let inside = |a: &Pod| a.ns.run(|| run("tc", "qdisc show dev eth0"));
        // Somebody takes them away, or the whole link.
        run("tc", &format!("qdisc del dev {} root", a.host_if));
        runtime.block_on(network.attach(&a.network)).unwrap();
        assert!(outside(&a).contains("tbf"), "{}", outside(&a));
        ip(&format!("link del {}", a.host_if));
        runtime.block_on(network.attach(&a.network)).unwrap();
        assert!(outside(&a).contains("tbf") && inside(&a).contains("tbf"));
        let faster = Rate { bits_per_second: 16_000_000, burst_bytes: None };
        a.network.wishes = Wishes { ingress: Some(faster), ..Wishes::default() };
        runtime.block_on(network.attach(&a.network)).unwrap();
        assert!(outside(&a).contains("rate 16Mbit"), "{}", outside(&a));
        assert!(!inside(&a).contains("tbf"), "{}", inside(&a));
        a.network.wishes = Wishes::default();
        runtime.block_on(network.attach(&a.network)).unwrap();
        assert!(!outside(&a).contains("tbf"), "{}", outside(&a));
    });
}

/// The least and the most that Kubernetes allows.
#[test]
fn extreme_rates_are_taken() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        for bits_per_second in [1_000, 1_000_000_000_000_000] {
            let rate = Some(Rate { bits_per_second, burst_bytes: None });
            let wishes = Wishes { ingress: rate, egress: rate, ..Wishes::default() };
            let a = attach(runtime, &network, &format!("p{bits_per_second}"), wishes);
            assert!(run("tc", &format!("qdisc show dev {}", a.host_if)).contains("tbf"));
            // Two frames pass at once at any rate.
            let _server = a.ns.serve_udp("0.0.0.0:80");
            assert!(machine.host.udp(&format!("{}:80", a.ip)).is_ok());
        }
    });
}

/// Neighbours that remember another hardware address for a pod's address learn the new one when its interface comes up.
#[test]
fn addresses_are_announced() {
    on_a_machine(|machine, runtime| {
        let mut config = machine.config();
        config.ipv6 = Some("fd00:85::/64".parse().unwrap());
        let network = runtime.block_on(Network::open(config)).unwrap();
        let a = attach(runtime, &network, "a", Wishes::default());
        let stale = "02:00:00:00:00:99";
        a.ns.run(|| {
            ip(&format!("neigh replace 10.85.0.9 lladdr {stale} dev eth0 nud stale"));
            ip(&format!("neigh replace fd00:85::9 lladdr {stale} dev eth0 nud stale"));
        });
        let wishes = Wishes {
            ips: vec!["10.85.0.9".parse().unwrap()],
            mac: Some([2, 0, 0, 0, 0, 9]),
            ..Wishes::default()
        };
        let b = attach(runtime, &network, "b", wishes);
        assert!(b.ns.run(|| ip("link show eth0")).contains("02:00:00:00:00:09"));
        for (family, address) in [("-4", "10.85.0.9"), ("-6", "fd00:85::9")] {
            common::eventually(&format!("{address} is announced"), || {
                let known = a.ns.run(|| ip(&format!("{family} neigh show {address}")));
                if known.contains("02:00:00:00:00:09") { Ok(()) } else { Err(known) }
            });
        }
    });
}
