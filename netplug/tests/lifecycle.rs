//! Restarts, kills, crowds, garbage and the end.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use berth_netplug::Protocol::{Tcp, Udp};
use berth_netplug::{Config, Error, Network, PodNetwork};
use common::{Ns, Pod, assert_clean, attach, eventually, ip, nft, on_a_machine, pod};
use futures::future::join_all;
use tokio::runtime::Runtime;

#[test]
fn a_restart_disturbs_nothing() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = machine.open(runtime);
        let web = attach(runtime, &network, "web", &[(None, 8080, 80, Tcp)]);
        let _server = web.ns.serve_tcp("0.0.0.0:80");
        let table = nft("-n list table inet berth");
        // The kernel tells a carrier late when it is busy; that must not look like a change of ours.
        eventually("the carrier is seen", || {
            let links = ip("-o link");
            if links.contains("NO-CARRIER") { Err(links) } else { Ok(()) }
        });
        let links = ip("-o link");
        drop(network);
        assert!(outside.tcp("192.0.2.2:8080").is_ok(), "works without us");
        let network = machine.open(runtime);
        assert_eq!(nft("-n list table inet berth"), table);
        assert_eq!(ip("-o link"), links);
        assert!(outside.tcp("192.0.2.2:8080").is_ok());
        let again = runtime.block_on(network.attach(&web.network)).unwrap();
        assert_eq!((again.ips[0].to_string(), again.host_if), (web.ip.clone(), web.host_if.clone()));
        assert_eq!(ip("-o link"), links, "the second attach changed nothing");
        runtime.block_on(network.detach("web")).unwrap();
        runtime.block_on(network.detach("web")).unwrap();
        assert!(!ip("-o link").contains(&web.host_if));
        assert_eq!(attach(runtime, &network, "next", &[(None, 8080, 80, Tcp)]).ip, "10.85.0.3");
    });
}

/// Another process with the same uid (the shim died, the pod is made anew): same address, new pair of links.
#[test]
fn the_pod_made_anew_keeps_its_address() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let old = attach(runtime, &network, "web", &[(None, 8080, 80, Tcp)]);
        let new = attach(runtime, &network, "web", &[(None, 8080, 80, Tcp)]);
        assert_eq!((&new.ip, &new.host_if), (&old.ip, &old.host_if));
        assert!(!old.ns.run(|| ip("-o link")).contains("eth0"));
        let _server = new.ns.serve_tcp("0.0.0.0:80");
        assert!(machine.host.tcp("127.0.0.1:8080").is_ok());
    });
}

#[test]
fn every_namespace_is_handed_out_once() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        runtime.block_on(network.prepare_namespace());
        runtime.block_on(network.prepare_namespace());
        let made: Vec<OwnedFd> = (0..3).map(|_| runtime.block_on(network.namespace()).unwrap()).collect();
        let mut seen = vec![std::fs::read_link("/proc/thread-self/ns/net").unwrap()];
        for (number, namespace) in made.iter().enumerate() {
            let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
            let name = std::fs::read_link(&path).unwrap();
            assert!(
                name.to_string_lossy().starts_with("net:[") && !seen.contains(&name),
                "{name:?} {seen:?}"
            );
            seen.push(name);
            let id = format!("made{number}");
            let pod = PodNetwork {
                netns: path.into(),
                id: id.clone(),
                name: id.clone(),
                namespace: "default".into(),
                host_ports: Vec::new(),
                wishes: Default::default(),
            };
            assert_eq!(runtime.block_on(network.attach(&pod)).unwrap().ips.len(), 1);
            runtime.block_on(network.detach(&id)).unwrap();
        }
    });
}

#[test]
fn a_namespace_that_vanished_is_an_error_and_takes_nothing() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let mut gone = pod("gone", &Ns::new(), &[(None, 8080, 80, Tcp)]);
        gone.netns = "/proc/4194999/ns/net".into();
        let error = runtime.block_on(network.attach(&gone)).unwrap_err();
        assert_eq!(error.to_string(), "enter network namespace /proc/4194999/ns/net");
        gone.netns = "/proc/self/maps".into();
        runtime.block_on(network.attach(&gone)).unwrap_err();
        assert_eq!(runtime.block_on(network.gc(&[])).unwrap(), Vec::<String>::new());
        attach(runtime, &network, "web", &[(None, 8080, 80, Tcp)]);
    });
}

/// Closing the namespace removes the links; detach finds nothing to do but waits for no timeout.
#[test]
fn detach_after_the_namespace_has_gone() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let web = attach(runtime, &network, "web", &[(None, 8080, 80, Tcp)]);
        drop(web);
        runtime.block_on(network.detach("web")).unwrap();
        assert!(!ip("-o link").contains("veth"));
        assert!(!nft("list map inet berth hostport4").contains("8080"));
    });
}

#[test]
fn gc_takes_back_what_nobody_lives_in() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let keep = attach(runtime, &network, "keep", &[(None, 8080, 80, Tcp)]);
        let _leak = attach(runtime, &network, "leak", &[(None, 8081, 80, Tcp)]);
        let orphan = attach(runtime, &network, "orphan", &[]);
        ip("link add veth-of-another type veth peer name its-peer");
        ip("link set veth-of-another master berth0");
        // As after a kill in the middle of a detach, with the file gone and the link not.
        drop(network);
        std::fs::remove_file(machine.dir.path().join("net/leases/orphan.json")).unwrap();
        let network = machine.open(runtime);
        assert_eq!(runtime.block_on(network.gc(&["keep".into()])).unwrap(), ["leak"]);
        let links = ip("-o link");
        assert!(links.contains(&keep.host_if) && !links.contains(&orphan.host_if), "{links}");
        assert!(links.contains("veth-of-another"), "a link of somebody else stays: {links}");
        let ports = nft("list map inet berth hostport4");
        assert!(ports.contains("8080") && !ports.contains("8081"), "{ports}");
    });
}

#[test]
fn exhaustion_is_an_error_and_quarantine_ends() {
    on_a_machine(|machine, runtime| {
        let mut config = machine.config();
        config.ipv4 = "10.85.0.0/30".parse().unwrap();
        config.quarantine = Duration::from_millis(300);
        let network = runtime.block_on(Network::open(config)).unwrap();
        let first = attach(runtime, &network, "first", &[]);
        let ns = Ns::new();
        let second = pod("second", &ns, &[]);
        let refused = || runtime.block_on(network.attach(&second)).map_err(|e| e.to_string());
        assert_eq!(refused().unwrap_err(), "no free pod address in 10.85.0.0/30: 1 in use, 0 in quarantine");
        drop(first);
        runtime.block_on(network.detach("first")).unwrap();
        assert_eq!(refused().unwrap_err(), "no free pod address in 10.85.0.0/30: 0 in use, 1 in quarantine");
        eventually("an address", || refused().map(drop));
    });
}

#[test]
fn a_hundred_at_once() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let spaces: Vec<Ns> = (0..100).map(|_| Ns::new()).collect();
        let pods: Vec<PodNetwork> = (0..100)
            .map(|n| pod(&format!("p{n}"), &spaces[n], &[(None, 9000 + n as u16, 80, Tcp)]))
            .collect();
        let start = Instant::now();
        let attached = runtime.block_on(join_all(pods.iter().map(|pod| network.attach(pod))));
        println!("100 pods attached at once in {:?}", start.elapsed());
        let mut ips: Vec<_> = attached.into_iter().map(|attached| attached.unwrap().ips[0]).collect();
        let first = ips[0];
        ips.sort_unstable();
        ips.dedup();
        assert_eq!(ips.len(), 100);
        let _server = spaces[0].serve_tcp("0.0.0.0:80");
        assert!(spaces[99].tcp(&format!("{first}:80")).is_ok());
        assert!(spaces[99].tcp("10.85.0.1:9000").is_ok());
        let start = Instant::now();
        runtime.block_on(network.close_all()).unwrap();
        println!("all removed in {:?}", start.elapsed());
        assert_clean(machine.dir.path());
        assert!(matches!(runtime.block_on(network.attach(&pods[0])), Err(Error::Closed)));
    });
}

/// Two agents with different settings live side by side.
#[test]
fn two_networks_on_one_machine() {
    on_a_machine(|machine, runtime| {
        let first = machine.open(runtime);
        let mut config = machine.config();
        config.bridge = "other0".into();
        config.table = "other".into();
        config.ipv4 = "10.86.0.0/16".parse().unwrap();
        config.state_dir = machine.dir.path().join("other");
        let second = runtime.block_on(Network::open(config)).unwrap();
        let a = attach(runtime, &first, "a", &[]);
        let b = attach(runtime, &second, "a", &[]);
        assert_ne!(a.ip, b.ip);
        runtime.block_on(first.close_all()).unwrap();
        let _server = b.ns.serve_tcp("0.0.0.0:80");
        assert!(machine.host.tcp(&format!("{}:80", b.ip)).is_ok());
        runtime.block_on(second.close_all()).unwrap();
        assert_clean(machine.dir.path());
    });
}

const WORKER_DIR: &str = "NETPLUG_TEST_DIR";
const WORKER_PODS: &str = "NETPLUG_TEST_NAMESPACES";

/// Attaches and detaches for ever, as a child of the test below that kills it; run by itself, for one round.
#[test]
fn worker() {
    let Ok(dir) = std::env::var(WORKER_DIR) else {
        on_a_machine(|machine, runtime| {
            let spaces: Vec<Ns> = (0..3).map(|_| Ns::new()).collect();
            let pods = worker_pods(spaces.iter().map(|ns| ns.path().display().to_string()));
            let network = machine.open(runtime);
            worker_round(runtime, &network, &pods);
        });
        return;
    };
    let pods = worker_pods(std::env::var(WORKER_PODS).unwrap().split(',').map(String::from));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut config = Config::new(dir);
    config.quarantine = Duration::ZERO;
    loop {
        let network = runtime.block_on(Network::open(config.clone())).unwrap();
        worker_round(&runtime, &network, &pods);
    }
}

fn worker_pods(namespaces: impl Iterator<Item = String>) -> Vec<PodNetwork> {
    let pods = namespaces.enumerate().map(|(n, netns)| {
        let mut one = pod(
            &format!("w{n}"),
            &Ns::current(),
            &[(None, 7000 + n as u16, 80, if n == 0 { Udp } else { Tcp })],
        );
        one.netns = netns.into();
        one
    });
    pods.collect()
}

fn worker_round(runtime: &Runtime, network: &Network, pods: &[PodNetwork]) {
    for attached in runtime.block_on(join_all(pods.iter().map(|pod| network.attach(pod)))) {
        attached.unwrap();
    }
    for detached in runtime.block_on(join_all(pods[1..].iter().map(|pod| network.detach(&pod.id)))) {
        detached.unwrap();
    }
}

/// Killed at any moment, the next start finds one consistent state and leaves nothing behind. The sleep is the moment.
#[test]
#[allow(clippy::disallowed_methods)]
fn kill_at_random_moments() {
    on_a_machine(|machine, runtime| {
        let spaces: Vec<Ns> = (0..3).map(|_| Ns::new()).collect();
        let paths: Vec<String> = spaces.iter().map(|ns| ns.path().display().to_string()).collect();
        for round in 0..25u64 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "worker", "--nocapture"])
                .env(WORKER_DIR, machine.dir.path().join("net"))
                .env(WORKER_PODS, paths.join(","))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(round * 37 % 250));
            assert_eq!(child.try_wait().unwrap(), None, "the worker ended by itself");
            child.kill().unwrap();
            child.wait().unwrap();
            recovers(runtime, &machine.open(runtime), &paths, &spaces[1]);
        }
        let network = machine.open(runtime);
        runtime.block_on(network.close_all()).unwrap();
        assert_clean(machine.dir.path());
    });
}

fn recovers(runtime: &Runtime, network: &Network, paths: &[String], space: &Ns) {
    let pods = worker_pods(paths.iter().cloned());
    let attached = runtime.block_on(network.attach(&pods[1])).unwrap();
    let server = space.serve_tcp("0.0.0.0:80");
    let host = Ns::current();
    assert!(host.tcp("127.0.0.1:7001").is_ok() && host.tcp(&format!("{}:80", attached.ips[0])).is_ok());
    drop(server);
    runtime.block_on(network.gc(&["w1".into()])).unwrap();
    let links = ip("-o link");
    assert_eq!(links.matches("veth").count(), 1, "{links}");
    let ports = nft("list map inet berth hostport4");
    assert!(ports.contains("7001") && !ports.contains("7000") && !ports.contains("7002"), "{ports}");
}

#[test]
fn a_link_of_somebody_else_is_left_alone() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let web = attach(runtime, &network, "web", &[]);
        let name = web.host_if.clone();
        ip(&format!("link del {name}"));
        ip(&format!("link add {name} type veth peer name foreign"));
        ip(&format!("link set {name} alias theirs"));
        let error = runtime.block_on(network.attach(&web.network)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("network namespace of the host already has an interface {name}")
        );
        assert!(ip(&format!("link show {name}")).contains("alias theirs"));
    });
}

#[test]
fn attaches_of_one_pod_do_not_mix() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let web: Pod = attach(runtime, &network, "web", &[]);
        let outcomes = runtime.block_on(join_all((0..10).map(|_| network.attach(&web.network))));
        for outcome in outcomes {
            assert_eq!(outcome.unwrap().host_if, web.host_if);
        }
        assert_eq!(ip("-o link").matches("veth").count(), 1);
    });
}
