#![allow(clippy::unwrap_used)]

use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::config::{Protocol, Wishes};

const QUARANTINE: Duration = Duration::from_secs(30);

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
}

fn pod(id: &str) -> PodNetwork {
    PodNetwork {
        id: id.into(),
        name: format!("name-{id}"),
        namespace: "default".into(),
        netns: "/nowhere".into(),
        host_ports: Vec::new(),
        wishes: Wishes::default(),
    }
}

fn with_port(id: &str, ip: Option<&str>, port: u16, protocol: Protocol) -> PodNetwork {
    let host_ip = ip.map(|ip| ip.parse().unwrap());
    PodNetwork {
        host_ports: vec![HostPort { host_ip, host_port: port, container_port: 80, protocol }],
        ..pod(id)
    }
}

fn open(dir: &TempDir, cidr: &str) -> Ipam {
    let mut config = Config::new(dir.path().join("net"));
    config.ipv4 = cidr.parse().unwrap();
    config.quarantine = QUARANTINE;
    Ipam::open(&config).unwrap()
}

fn address(ipam: &mut Ipam, id: &str, now: SystemTime) -> u8 {
    ipam.claim(&pod(id), now).unwrap().lease.ipv4.octets()[3]
}

#[test]
fn the_same_pod_keeps_its_address_through_restarts() {
    let dir = TempDir::new().unwrap();
    let mut ipam = open(&dir, "10.0.0.0/24");
    assert_eq!(address(&mut ipam, "a", at(0)), 2);
    assert_eq!(address(&mut ipam, "b", at(0)), 3);
    assert_eq!(address(&mut ipam, "a", at(0)), 2);
    let mut ipam = open(&dir, "10.0.0.0/24");
    assert_eq!(address(&mut ipam, "a", at(1)), 2);
    assert_eq!(address(&mut ipam, "c", at(1)), 4);
}

#[test]
fn the_ring_goes_on_after_a_release_and_a_restart() {
    let dir = TempDir::new().unwrap();
    let mut ipam = open(&dir, "10.0.0.0/24");
    address(&mut ipam, "a", at(0));
    address(&mut ipam, "b", at(0));
    ipam.release("b", at(0)).unwrap();
    let mut ipam = open(&dir, "10.0.0.0/24");
    assert_eq!(address(&mut ipam, "c", at(1000)), 4);
}

#[test]
fn exhaustion_and_quarantine() {
    let dir = TempDir::new().unwrap();
    let mut ipam = open(&dir, "10.0.0.0/29");
    for id in ["a", "b", "c", "d", "e"] {
        address(&mut ipam, id, at(0));
    }
    let error = ipam.claim(&pod("f"), at(0)).unwrap_err();
    assert_eq!(error.to_string(), "no free pod address in 10.0.0.0/29: 5 in use, 0 in quarantine");
    ipam.release("c", at(1)).unwrap();
    let error = ipam.claim(&pod("f"), at(30)).unwrap_err();
    assert_eq!(error.to_string(), "no free pod address in 10.0.0.0/29: 4 in use, 1 in quarantine");
    let mut ipam = open(&dir, "10.0.0.0/29");
    assert!(ipam.claim(&pod("f"), at(30)).is_err(), "quarantine survives a restart");
    assert_eq!(address(&mut ipam, "f", at(31)), 4);
}

#[test]
fn host_ports_conflict_by_port_protocol_and_address() {
    let dir = TempDir::new().unwrap();
    let mut ipam = open(&dir, "10.0.0.0/24");
    ipam.claim(&with_port("a", None, 80, Protocol::Tcp), at(0)).unwrap();
    ipam.claim(&with_port("b", Some("192.0.2.1"), 81, Protocol::Tcp), at(0)).unwrap();
    let mut refused = |pod: PodNetwork| ipam.claim(&pod, at(0)).err().map(|error| error.to_string());
    assert_eq!(
        refused(with_port("c", Some("192.0.2.1"), 80, Protocol::Tcp)).unwrap(),
        "host port 80/tcp at 192.0.2.1 is already used by pod default/name-a"
    );
    assert!(refused(with_port("c", Some("0.0.0.0"), 81, Protocol::Tcp)).is_some());
    assert_eq!(refused(with_port("c", None, 80, Protocol::Udp)), None);
    assert_eq!(refused(with_port("d", Some("192.0.2.2"), 81, Protocol::Tcp)), None);
    let mut twice = with_port("e", None, 90, Protocol::Tcp);
    twice.host_ports.push(twice.host_ports[0].clone());
    assert_eq!(ipam.claim(&twice, at(0)).unwrap().lease.host_ports.len(), 1);
    twice.host_ports[1].container_port = 1;
    let error = ipam.claim(&twice, at(0)).unwrap_err();
    assert_eq!(error.to_string(), "host port 90/tcp is already used by pod default/name-e itself");
}

fn wishing(id: &str, ips: &[&str]) -> PodNetwork {
    let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    PodNetwork { wishes: Wishes { ips, ..Wishes::default() }, ..pod(id) }
}

fn open_with(dir: &TempDir, change: impl FnOnce(&mut Config)) -> Ipam {
    let mut config = Config::new(dir.path().join("net"));
    config.ipv4 = "10.0.0.0/24".parse().unwrap();
    config.quarantine = QUARANTINE;
    change(&mut config);
    Ipam::open(&config).unwrap()
}

#[test]
fn the_ring_stays_in_its_range() {
    let dir = TempDir::new().unwrap();
    let range = |config: &mut Config| {
        config.range = Some(([10, 0, 0, 10].into(), [10, 0, 0, 12].into()));
        config.gateway = Some([10, 0, 0, 11].into());
    };
    let mut ipam = open_with(&dir, range);
    assert_eq!(address(&mut ipam, "a", at(0)), 10);
    assert_eq!(ipam.claim(&wishing("x", &["10.0.0.200"]), at(0)).unwrap().lease.ipv4.octets()[3], 200);
    let mut ipam = open_with(&dir, range);
    assert_eq!(address(&mut ipam, "b", at(0)), 12, "past the gateway");
    let error = ipam.claim(&pod("c"), at(0)).unwrap_err();
    assert_eq!(error.to_string(), "no free pod address in 10.0.0.10 to 10.0.0.12: 2 in use, 0 in quarantine");
    assert!(ipam.has_room(at(0)).is_err());
    ipam.release("a", at(0)).unwrap();
    assert!(ipam.has_room(at(29)).is_err() && ipam.has_room(at(30)).is_ok());
}

#[test]
fn a_pod_gets_the_address_that_it_asks_for() {
    let dir = TempDir::new().unwrap();
    let mut ipam = open_with(&dir, |config| config.ipv6 = Some("fd00::/64".parse().unwrap()));
    let lease = ipam.claim(&wishing("a", &["fd00::9", "10.0.0.9"]), at(0)).unwrap().lease;
    assert_eq!(lease.ipv4.octets()[3], 9);
    assert_eq!(ipam.claim(&wishing("b", &["fd00::a"]), at(0)).unwrap().lease.ipv4.octets()[3], 10);
    for (ips, why) in [
        (&["10.0.0.9"][..], "pod default/name-a has it"),
        (&["10.0.0.1"], "it is none of 10.0.0.0/24 that a pod may have"),
        (&["10.0.0.255"], "it is none of 10.0.0.0/24 that a pod may have"),
        (&["10.0.1.9"], "it is none of 10.0.0.0/24 that a pod may have"),
        (&["fd00::1:0:0:9"], "it is none of fd00::/64 that a pod may have"),
        (&["10.0.0.20", "fd00::9"], "a pod's addresses have the same place in their networks"),
    ] {
        let error = ipam.claim(&wishing("c", ips), at(0)).unwrap_err().to_string();
        assert!(error.ends_with(&format!("cannot be had: {why}")), "{error}");
    }
    let error = ipam.claim(&wishing("a", &["10.0.0.30"]), at(0)).unwrap_err().to_string();
    assert_eq!(error, "address 10.0.0.30 cannot be had: the pod has 10.0.0.9 until it is made anew");
}

/// So a pod that is replaced by one of its name does not wait for the quarantine that keeps others off.
#[test]
fn an_address_in_quarantine_goes_back_only_to_a_pod_of_that_name() {
    let dir = TempDir::new().unwrap();
    let mut ipam = open_with(&dir, |_| {});
    ipam.claim(&wishing("a", &["10.0.0.9"]), at(0)).unwrap();
    ipam.release("a", at(0)).unwrap();
    let mut ipam = open_with(&dir, |_| {});
    let error = ipam.claim(&wishing("b", &["10.0.0.9"]), at(10)).unwrap_err().to_string();
    let why = "it is in quarantine for 20 s after pod default/name-a had it";
    assert_eq!(error, format!("address 10.0.0.9 cannot be had: {why}"));
    let next = PodNetwork { id: "other".into(), ..wishing("a", &["10.0.0.9"]) };
    assert_eq!(ipam.claim(&next, at(10)).unwrap().lease.ipv4.octets()[3], 9);
    ipam.release("other", at(11)).unwrap();
    assert!(ipam.claim(&wishing("b", &["10.0.0.9"]), at(41)).is_ok());
}

#[test]
fn nobody_gets_an_address_early_when_its_record_is_damaged() {
    let dir = TempDir::new().unwrap();
    let mut ipam = open_with(&dir, |_| {});
    ipam.claim(&wishing("a", &["10.0.0.9"]), at(0)).unwrap();
    ipam.release("a", at(0)).unwrap();
    let record = dir.path().join("net/quarantine/10.0.0.9.json");
    assert!(record.exists());
    std::fs::write(&record, "{").unwrap();
    let error = ipam.claim(&wishing("a", &["10.0.0.9"]), at(10)).unwrap_err().to_string();
    let why = "it is in quarantine for 20 s after another pod had it";
    assert_eq!(error, format!("address 10.0.0.9 cannot be had: {why}"));
    assert!(ipam.claim(&wishing("b", &["10.0.0.9"]), at(31)).is_ok());
}

#[test]
fn a_refused_claim_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let mut ipam = open(&dir, "10.0.0.0/24");
    ipam.claim(&with_port("a", None, 80, Protocol::Tcp), at(0)).unwrap();
    ipam.claim(&with_port("b", None, 80, Protocol::Tcp), at(0)).unwrap_err();
    assert!(ipam.get("b").is_none());
    assert_eq!(open(&dir, "10.0.0.0/24").leases().count(), 1);
}

#[test]
fn damaged_files_are_removed_and_drafts_ignored() {
    let dir = TempDir::new().unwrap();
    address(&mut open(&dir, "10.0.0.0/24"), "a", at(0));
    let leases = dir.path().join("net/leases");
    std::fs::write(leases.join("b.json"), "{\"id\":").unwrap();
    std::fs::write(leases.join(".c.tmp"), "half").unwrap();
    std::fs::copy(leases.join("a.json"), leases.join("twin.json")).unwrap();
    let ipam = open(&dir, "10.0.0.0/24");
    assert_eq!(ipam.leases().map(|lease| lease.id.as_str()).collect::<Vec<_>>(), ["a"]);
    assert!(!leases.join("b.json").exists() && !leases.join(".c.tmp").exists());
}

#[test]
fn leases_of_another_network_are_dropped() {
    let dir = TempDir::new().unwrap();
    address(&mut open(&dir, "10.0.0.0/24"), "a", at(0));
    assert_eq!(open(&dir, "10.9.0.0/24").leases().count(), 0);
}

#[test]
fn unusable_ids_are_refused() {
    let dir = TempDir::new().unwrap();
    let mut ipam = open(&dir, "10.0.0.0/24");
    for id in ["", "../x", ".x", "a/b", "a b", &"x".repeat(201)] {
        assert!(matches!(ipam.claim(&pod(id), at(0)), Err(Error::InvalidId(_))), "{id:?}");
    }
}

#[test]
fn link_names_are_readable_short_and_unique() {
    let mut web = pod("6f1c0d2e-0000");
    web.name = "Web-server-1".into();
    let name = lease::link_name("berth0", &web, |_| false);
    assert_eq!(name.len(), 15);
    assert!(name.starts_with("vethwebser"), "{name}");
    assert_eq!(name, lease::link_name("berth0", &web, |_| false));
    assert_ne!(name, lease::link_name("berth0", &web, |taken| taken == name));
    assert_ne!(name, lease::link_name("other0", &web, |_| false));
}

#[derive(Clone, Debug)]
enum Step {
    Claim(u8),
    Release(u8),
    Wait(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..12u8).prop_map(Step::Claim),
        3 => (0..12u8).prop_map(Step::Release),
        2 => (1..20u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: no address twice, none from the margins, none before its quarantine is over, the same pod the
    /// same one, and none refused while one is free.
    #[test]
    fn addresses_are_never_shared(steps in proptest::collection::vec(step(), 1..60)) {
        let dir = TempDir::new().unwrap();
        let mut ipam = open(&dir, "10.0.0.0/28");
        let mut now = 0;
        let mut model: HashMap<String, Ipv4Addr> = HashMap::new();
        let mut released: HashMap<Ipv4Addr, u64> = HashMap::new();
        for step in steps {
            match step {
                Step::Claim(n) => {
                    let id = n.to_string();
                    let quarantined = released.values().filter(|then| *then + 30 > now).count();
                    match ipam.claim(&pod(&id), at(now)) {
                        Ok(claim) => {
                            let ip = claim.lease.ipv4;
                            prop_assert!((2..15).contains(&ip.octets()[3]));
                            match model.get(&id) {
                                Some(old) => prop_assert_eq!(*old, ip),
                                None => {
                                    prop_assert!(!model.values().any(|other| *other == ip));
                                    prop_assert!(released.get(&ip).is_none_or(|then| then + 30 <= now));
                                }
                            }
                            released.remove(&ip);
                            model.insert(id, ip);
                        }
                        Err(Error::AddressesExhausted { .. }) => prop_assert!(model.len() + quarantined >= 13),
                        Err(other) => prop_assert!(false, "{}", other),
                    }
                }
                Step::Release(n) => {
                    let id = n.to_string();
                    ipam.release(&id, at(now)).unwrap();
                    if let Some(ip) = model.remove(&id) {
                        released.insert(ip, now);
                    }
                }
                Step::Wait(seconds) => now += seconds,
                Step::Restart => ipam = open(&dir, "10.0.0.0/28"),
            }
        }
    }
}
