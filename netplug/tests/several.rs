//! Several networks beside each other, and pods on more than one of them.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::Path;

use berth_netplug::Protocol::Tcp;
use berth_netplug::{Config, Network, PodNetwork, Wishes};
use common::{Machine, Ns, Pod, addr, attach, eventually, ip, nft, on_a_machine, pod};
use tokio::runtime::Runtime;

/// The first network, `front` and `back`, an internal one and one that is open to others.
fn config(machine: &Machine) -> Config {
    let mut config = machine.config();
    config.service_ipv4 = Some("10.86.0.0/16".parse().unwrap());
    let another = |number: u8, name: &str| {
        let net = format!("10.90.{number}.0/24").parse().unwrap();
        let mut net = config.another(name, &format!("br-{name}"), net);
        net.ipv6 = Some(format!("fd00:90:{number}::/64").parse().unwrap());
        net
    };
    let (front, back, mut inside, mut open, mut roomy) = (
        another(1, "front"),
        another(2, "back"),
        another(3, "inside"),
        another(4, "open"),
        another(5, "roomy"),
    );
    inside.internal = true;
    open.isolated = false;
    roomy.isolated = false;
    config.beside = vec![front, back, inside, open, roomy];
    config
}

fn open(machine: &Machine, runtime: &Runtime) -> Network {
    runtime.block_on(Network::open(config(machine))).unwrap()
}

/// A pod on one of the networks beside the first, or on the first.
fn on(runtime: &Runtime, network: &Network, name: &str, id: &str) -> Pod {
    attach(runtime, network.named(name).unwrap_or(network), id, &[])
}

/// Puts a pod on a further network.
fn join(
    runtime: &Runtime,
    network: &Network,
    pod: &Pod,
    name: &str,
    interface: &str,
    default: bool,
) -> Vec<String> {
    let wishes = Wishes {
        interface: Some(interface.into()),
        default_routes: (!default).then(Vec::new),
        ..Wishes::default()
    };
    let wanted = PodNetwork { wishes, host_ports: Vec::new(), ..pod.network.clone() };
    let attachment = runtime.block_on(network.named(name).unwrap().attach(&wanted)).unwrap();
    assert_eq!(attachment.interface, interface);
    attachment.ips.iter().map(ToString::to_string).collect()
}

/// Nobody there answers, and nobody says so: dropped.
fn silent(from: &Ns, to: &str) {
    let error = from.tcp(to).unwrap_err();
    let kind = error.kind();
    assert!(
        matches!(
            kind,
            std::io::ErrorKind::TimedOut
                | std::io::ErrorKind::WouldBlock
                | std::io::ErrorKind::NetworkUnreachable
        ),
        "{to}: {error}"
    );
}

#[test]
fn networks_are_apart_and_a_pod_on_both_reaches_both() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let (front, back) = (on(runtime, &network, "front", "f"), on(runtime, &network, "back", "b"));
        let first = attach(runtime, &network, "d", &[]);
        let _servers =
            [&front, &back, &first].map(|pod| (pod.ns.serve_tcp("0.0.0.0:80"), pod.ns.serve_tcp("[::]:81")));
        for (from, to) in [(&front, &back), (&back, &front), (&front, &first), (&first, &back)] {
            silent(&from.ns, &format!("{}:80", to.ip));
        }
        silent(&front.ns, "[fd00:90:2::2]:81");
        // The host reaches all, and a neighbour its neighbour.
        let neighbour = on(runtime, &network, "front", "g");
        assert_eq!(neighbour.ns.tcp(&format!("{}:80", front.ip)).unwrap(), neighbour.ip);
        assert_eq!(neighbour.ns.tcp("[fd00:90:1::2]:81").unwrap(), "fd00:90:1::3");
        for pod in [&front, &back, &first] {
            machine.host.tcp(&format!("{}:80", pod.ip)).unwrap();
        }

        let both = attach(runtime, &network, "m", &[(None, 8080, 80, Tcp)]);
        let on_front = join(runtime, &network, &both, "front", "net1", false);
        let on_back = join(runtime, &network, &both, "back", "net2", false);
        assert_eq!((on_front[0].as_str(), on_back[1].as_str()), ("10.90.1.4", "fd00:90:2::3"));
        let _server = both.ns.serve_tcp("0.0.0.0:80");
        assert_eq!(both.ns.tcp(&format!("{}:80", front.ip)).unwrap(), on_front[0]);
        assert_eq!(both.ns.tcp("[fd00:90:2::2]:81").unwrap(), on_back[1]);
        assert_eq!(back.ns.tcp(&format!("{}:80", on_back[0])).unwrap(), back.ip);
        assert!(both.ns.run(|| ip("route show default")).contains("via 10.85.0.1 dev eth0"));
        assert_eq!(both.ns.run(|| ip("route show default")).lines().count(), 1);
        // Who is on both forwards nothing: it is no router.
        silent(&front.ns, &format!("{}:80", back.ip));
        // A host port is for everybody, from every network.
        assert!(front.ns.tcp("10.90.1.1:8080").is_ok());
        runtime.block_on(network.close_all()).unwrap();
        let links = ip("-o link");
        assert!(!links.contains("br-") && !links.contains("veth") && !links.contains("berth0"), "{links}");
        assert_eq!(nft("list tables"), "");
        assert!(!machine.dir.path().join("net").exists(), "leases left");
    });
}

#[test]
fn an_internal_network_has_no_way_out_and_none_in() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = open(machine, runtime);
        let _server = outside.serve_tcp("0.0.0.0:80");
        let (inside, front) = (on(runtime, &network, "inside", "i"), on(runtime, &network, "front", "f"));
        // From the other networks there is a way out, by the host's address.
        assert_eq!(front.ns.tcp("192.0.2.1:80").unwrap(), "192.0.2.2");
        assert_eq!(inside.ns.run(|| ip("route show default")), "");
        silent(&inside.ns, "192.0.2.1:80");
        // Not even for one that makes its own route, nor for a machine outside that knows the way.
        inside.ns.run(|| ip("route add default via 10.90.3.1"));
        silent(&inside.ns, "192.0.2.1:80");
        silent(&inside.ns, &format!("{}:80", front.ip));
        outside.run(|| ip("route add 10.90.0.0/16 via 192.0.2.2"));
        let _servers = [&inside, &front].map(|pod| pod.ns.serve_tcp("0.0.0.0:80"));
        silent(&outside, &format!("{}:80", inside.ip));
        assert!(outside.tcp(&format!("{}:80", front.ip)).is_ok());
        // The host and neighbours do reach it.
        assert!(machine.host.tcp(&format!("{}:80", inside.ip)).is_ok());
        let other = on(runtime, &network, "inside", "j");
        assert!(other.ns.tcp(&format!("{}:80", inside.ip)).is_ok());
    });
}

#[test]
fn networks_without_isolation_reach_each_other_and_no_isolated_one() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let pods = ["open", "roomy", "front"].map(|name| on(runtime, &network, name, name));
        let _servers = pods.each_ref().map(|pod| pod.ns.serve_tcp("0.0.0.0:80"));
        let [open, roomy, front] = &pods;
        assert!(open.ns.tcp(&format!("{}:80", roomy.ip)).is_ok());
        assert!(roomy.ns.tcp(&format!("{}:80", open.ip)).is_ok());
        silent(&open.ns, &format!("{}:80", front.ip));
        silent(&front.ns, &format!("{}:80", open.ip));
    });
}

#[test]
fn the_default_route_is_that_of_the_network_chosen() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = open(machine, runtime);
        let _server = outside.serve_tcp("0.0.0.0:80");
        let ns = Ns::new();
        let mut wanted = pod("m", &ns, &[]);
        wanted.wishes.default_routes = Some(Vec::new());
        let ip_of_first = runtime.block_on(network.attach(&wanted)).unwrap().ips[0].to_string();
        let m = Pod { ns, network: wanted, ip: ip_of_first, host_if: String::new() };
        join(runtime, &network, &m, "front", "net1", true);
        assert!(m.ns.run(|| ip("route show default")).contains("via 10.90.1.1 dev net1"));
        assert!(m.ns.run(|| ip("-6 route show default")).contains("via fd00:90:1::1 dev net1"));
        assert_eq!(m.ns.tcp("192.0.2.1:80").unwrap(), "192.0.2.2");
    });
}

#[test]
fn no_two_pods_of_any_network_have_one_host_port() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let first = attach(runtime, &network, "a", &[(None, 8080, 80, Tcp)]);
        let ns = Ns::new();
        let wanted = pod("b", &ns, &[(None, 8080, 80, Tcp)]);
        let front = network.named("front").unwrap();
        let error = runtime.block_on(front.attach(&wanted)).unwrap_err().to_string();
        assert_eq!(error, "host port 8080/tcp is already used by pod default/pod-a");
        runtime.block_on(network.detach(&first.network.id)).unwrap();
        runtime.block_on(front.attach(&wanted)).unwrap();
        let _server = ns.serve_tcp("0.0.0.0:80");
        assert!(machine.host.tcp("127.0.0.1:8080").is_ok());
        assert_eq!(wanted.wishes.ips, Vec::<std::net::IpAddr>::new());
    });
}

#[test]
fn pods_of_a_network_with_port_isolation_reach_only_the_host() {
    on_a_machine(|machine, runtime| {
        let mut config = config(machine);
        config.beside[0].port_isolation = true;
        let network = runtime.block_on(Network::open(config)).unwrap();
        let (a, b) = (on(runtime, &network, "front", "a"), on(runtime, &network, "front", "b"));
        let _server = b.ns.serve_tcp("0.0.0.0:80");
        assert!(a.ns.tcp(&format!("{}:80", b.ip)).is_err());
        assert!(machine.host.tcp(&format!("{}:80", b.ip)).is_ok());
    });
}

#[test]
fn a_pod_that_lies_about_its_hardware_address_is_not_heard() {
    on_a_machine(|machine, runtime| {
        let mut config = config(machine);
        config.beside[0].mac_spoof_check = true;
        let network = runtime.block_on(Network::open(config)).unwrap();
        let (a, b) = (on(runtime, &network, "front", "a"), on(runtime, &network, "front", "b"));
        let free = on(runtime, &network, "back", "c");
        let _servers = [&b, &free].map(|pod| pod.ns.serve_tcp("0.0.0.0:80"));
        let to = format!("{}:80", b.ip);
        assert_eq!(a.ns.tcp(&to).unwrap(), a.ip);
        // Also on a bridge that was made anew.
        ip("link del br-front");
        eventually("traffic", || a.ns.tcp(&to).map(drop));
        let lie = |pod: &Pod, mac: &str| pod.ns.run(|| drop(ip(&format!("link set eth0 address {mac}"))));
        lie(&a, "02:00:00:00:00:66");
        assert!(a.ns.tcp(&to).is_err());
        lie(&a, "0a:58:0a:5a:01:02");
        eventually("the truth", || a.ns.tcp(&to).map(drop));
        // Where nobody asked for it, nobody looks.
        lie(&free, "02:00:00:00:00:66");
        assert!(machine.host.tcp(&format!("{}:80", free.ip)).is_ok());
    });
}

#[test]
fn the_settings_of_a_bridge_follow_the_configuration() {
    on_a_machine(|machine, runtime| {
        let shows = |name: &str, link: &str, words: &str| {
            let shown = ip(&format!("-d link show {link}"));
            assert!(shown.contains(words), "{name}: {words} in {shown}");
        };
        let network = open(machine, runtime);
        let a = on(runtime, &network, "front", "a");
        shows("by default", "br-front", "promiscuity 0");
        shows("by default", &a.host_if, "hairpin on");
        killed(runtime, network);
        let mut changed = config(machine);
        changed.beside[0].promiscuous = true;
        changed.beside[0].hairpin = false;
        changed.beside[0].mtu = Some(1400);
        killed(runtime, runtime.block_on(Network::open(changed)).unwrap());
        shows("changed", "br-front", "promiscuity 1");
        shows("changed", "br-front", "mtu 1400");
        shows("changed", &a.host_if, "hairpin off");
        killed(runtime, open(machine, runtime));
        shows("as before", "br-front", "promiscuity 0");
        shows("as before", &a.host_if, "hairpin on");
    });
}

/// As if the process had been killed: everything of it ends, nothing is taken back.
fn killed(runtime: &Runtime, network: Network) {
    drop(network);
    // The tasks that were told to end do so at the next turn.
    runtime.block_on(tokio::task::yield_now());
}

#[test]
fn all_networks_are_taken_over_by_the_next_agent() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let front = on(runtime, &network, "front", "f");
        let both = attach(runtime, &network, "m", &[]);
        let addresses = join(runtime, &network, &both, "front", "net1", false);
        killed(runtime, network);
        ip("link del br-front");
        nft("delete table inet berth");
        let network = open(machine, runtime);
        let _server = front.ns.serve_tcp("0.0.0.0:80");
        eventually("traffic", || both.ns.tcp(&format!("{}:80", front.ip)).map(drop));
        let known = network.named("front").unwrap().attached("m").unwrap().unwrap();
        assert_eq!(known.ips[0], addr(&addresses[0]));
        // A pod that nobody knows any more leaves all its networks.
        let freed = runtime.block_on(network.gc(&["f".into()])).unwrap();
        assert_eq!(freed, ["m"]);
        assert!(both.ns.run(|| ip("-o link")).lines().count() == 1, "only lo is left");
        assert!(network.named("front").unwrap().attached("m").unwrap().is_none());
    });
}

#[test]
fn bridges_deleted_under_pods_come_back() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let (a, b) = (on(runtime, &network, "front", "a"), on(runtime, &network, "front", "b"));
        let inside = [on(runtime, &network, "inside", "c"), on(runtime, &network, "inside", "d")];
        let _servers = [a.ns.serve_tcp("0.0.0.0:80"), inside[0].ns.serve_tcp("0.0.0.0:80")];
        ip("link del br-front");
        ip("link del br-inside");
        eventually("front", || b.ns.tcp(&format!("{}:80", a.ip)).map(drop));
        eventually("inside", || inside[1].ns.tcp(&format!("{}:80", inside[0].ip)).map(drop));
        let table = nft("list table inet berth");
        nft("flush chain inet berth apart");
        eventually("the rules", || {
            let now = nft("list ruleset");
            if now.contains(table.trim()) { Ok(()) } else { Err(now) }
        });
    });
}

fn folders(dir: &Path) -> Vec<String> {
    let Ok(folders) = std::fs::read_dir(dir.join("net/networks")) else { return Vec::new() };
    let mut names: Vec<String> = folders.map(|one| one.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn networks_that_are_no_more_are_removed() {
    on_a_machine(|machine, runtime| {
        // Made by somebody else, and not to be removed.
        ip("link add br-back type bridge");
        let network = open(machine, runtime);
        let front = on(runtime, &network, "front", "f");
        on(runtime, &network, "back", "b");
        assert_eq!(folders(machine.dir.path()), ["back", "front", "inside", "open", "roomy"]);
        killed(runtime, network);

        let mut fewer = config(machine);
        fewer.beside.retain(|net| net.name.as_deref() == Some("inside"));
        fewer.beside[0].bridge = "br-other".into();
        let network = runtime.block_on(Network::open(fewer)).unwrap();
        let links = ip("-o link");
        assert!(
            !links.contains("br-front") && !links.contains("veth") && !links.contains("br-inside"),
            "{links}"
        );
        assert!(links.contains("br-back") && links.contains("br-other"), "{links}");
        assert_eq!(front.ns.run(|| ip("-o link")).lines().count(), 1, "only lo is left");
        assert_eq!(folders(machine.dir.path()), ["inside"]);
        assert!(!nft("list table inet berth").contains("br-front"));
        assert!(network.named("front").is_none());
    });
}

#[test]
fn what_a_network_had_before_its_settings_changed_goes() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let front = on(runtime, &network, "front", "f");
        ip("addr add 192.0.2.77/32 dev br-front");
        killed(runtime, network);
        let mut changed = config(machine);
        changed.bridge = "berth1".into();
        changed.beside[0].gateway = Some("10.90.1.254".parse().unwrap());
        let network = runtime.block_on(Network::open(changed)).unwrap();
        let addresses = ip("-o addr show dev br-front");
        assert!(!addresses.contains("10.90.1.1/") && !addresses.contains("fd00:90:1::1/"), "{addresses}");
        assert!(
            addresses.contains("10.90.1.254/24") && addresses.contains("fd00:90:1::fe/64"),
            "{addresses}"
        );
        assert!(addresses.contains("192.0.2.77"), "what others put there stays: {addresses}");
        assert!(ip("-o link").contains("berth1") && !ip("-o link").contains("berth0"));
        let _server = front.ns.serve_tcp("0.0.0.0:80");
        assert_eq!(machine.host.tcp(&format!("{}:80", front.ip)).unwrap(), "10.90.1.254");
        drop(network);
    });
}

/// Between any two steps of the removal the next start goes on.
#[test]
fn a_network_half_removed_or_half_made_is_no_obstacle() {
    on_a_machine(|machine, runtime| {
        let networks = machine.dir.path().join("net/networks");
        // No record yet; a record but no bridge; a bridge and no more leases.
        std::fs::create_dir_all(networks.join("early/leases")).unwrap();
        for (name, bridge) in [("noted", "br-noted"), ("made", "br-made")] {
            std::fs::create_dir_all(networks.join(name)).unwrap();
            let record = format!("{{\"bridge\":\"{bridge}\",\"made\":true}}");
            std::fs::write(networks.join(name).join("network.json"), record).unwrap();
        }
        ip("link add br-made type bridge");
        let network = machine.open(runtime);
        assert_eq!(folders(machine.dir.path()), Vec::<String>::new());
        assert!(!ip("-o link").contains("br-made"));
        drop(network);
    });
}

#[test]
fn other_firewalls_let_each_network_pass() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        nft("add table ip filter");
        nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
        let network = open(machine, runtime);
        let _server = outside.serve_tcp("0.0.0.0:80");
        let front = on(runtime, &network, "front", "f");
        assert_eq!(front.ns.tcp("192.0.2.1:80").unwrap(), "192.0.2.2");
        killed(runtime, network);
        // Gone with their network, and the first network's stay.
        let network = runtime.block_on(Network::open(machine.config())).unwrap();
        let rules = nft("list chain ip filter FORWARD");
        assert!(!rules.contains("br-front") && rules.contains("berth0"), "{rules}");
        runtime.block_on(network.close_all()).unwrap();
        assert!(!nft("list chain ip filter FORWARD").contains("berth0"));
    });
}

/// A network of the machine's uplink: addresses from 192.0.2.128 on, the router is 192.0.2.1.
fn on_the_wire(machine: &Machine) -> Config {
    let mut config = machine.config();
    let mut lan = config.another("lan", "unused", "192.0.2.0/24".parse().unwrap());
    lan.ipv6 = Some("2001:db8::/64".parse().unwrap());
    lan.range = Some(([192, 0, 2, 128].into(), [192, 0, 2, 254].into()));
    lan.parent = Some("up0".into());
    config.beside = vec![lan];
    config
}

#[test]
fn a_pod_of_a_macvlan_network_is_on_the_wire_with_its_own_address() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = runtime.block_on(Network::open(on_the_wire(machine))).unwrap();
        let _server = outside.serve_tcp("0.0.0.0:80");
        let lan = on(runtime, &network, "lan", "a");
        assert_eq!((lan.ip.as_str(), lan.host_if.as_str()), ("192.0.2.128", ""));
        assert_eq!(lan.ns.tcp("192.0.2.1:80").unwrap(), "192.0.2.128", "its own address, not the host's");
        let _its = (lan.ns.serve_tcp("0.0.0.0:80"), lan.ns.serve_tcp("[::]:81"));
        assert_eq!(outside.tcp("192.0.2.128:80").unwrap(), "192.0.2.1");
        assert_eq!(outside.tcp("[2001:db8::80]:81").unwrap(), "2001:db8::1");
        assert!(lan.ns.run(|| ip("route show default")).contains("via 192.0.2.1 dev eth0"));
        assert!(lan.ns.run(|| ip("-d link show eth0")).contains("macvlan mode bridge"));
        // Beside the node's own network, and among themselves.
        let both = attach(runtime, &network, "b", &[]);
        assert_eq!(join(runtime, &network, &both, "lan", "net1", false)[0], "192.0.2.129");
        assert_eq!(both.ns.tcp("192.0.2.128:80").unwrap(), "192.0.2.129");
        // Called again it mends what is broken.
        lan.ns.run(|| ip("addr flush dev eth0"));
        let again = runtime.block_on(network.named("lan").unwrap().attach(&lan.network)).unwrap();
        assert_eq!(again.ips[0], addr("192.0.2.128"));
        assert_eq!(lan.ns.tcp("192.0.2.1:80").unwrap(), "192.0.2.128");
        let namespace = std::fs::File::open(lan.ns.path()).unwrap().into();
        let counted = runtime.block_on(network.stats_inside(namespace, "eth0")).unwrap();
        assert!(counted.rx_packets > 0 && counted.tx_bytes > 0, "{counted:?}");
        // Taken over, and nothing about it in the table.
        killed(runtime, network);
        let network = runtime.block_on(Network::open(on_the_wire(machine))).unwrap();
        assert!(network.named("lan").unwrap().attached("a").unwrap().is_some());
        assert!(!nft("list table inet berth").contains("192.0.2.0"));
        assert!(!ip("-o link").contains("unused"));
        runtime.block_on(network.close_all()).unwrap();
        assert!(!machine.dir.path().join("net").exists(), "leases left");
        assert!(ip("-o link").contains("up0"), "the parent stays");
    });
}

#[test]
fn a_parent_that_is_not_there_is_an_error_of_the_pod() {
    on_a_machine(|machine, runtime| {
        let mut config = on_the_wire(machine);
        config.beside[0].parent = Some("nowhere0".into());
        let network = runtime.block_on(Network::open(config)).unwrap();
        let ns = Ns::new();
        let lan = network.named("lan").unwrap();
        let error = runtime.block_on(lan.attach(&pod("a", &ns, &[]))).unwrap_err();
        assert_eq!(error.to_string(), "no link nowhere0");
        assert!(lan.attached("a").unwrap().is_none(), "it took nothing");
    });
}

/// A bridge becomes a parent: what was on the bridge goes with it.
#[test]
fn a_network_that_becomes_of_another_kind_is_another_network() {
    on_a_machine(|machine, runtime| {
        let _outside = machine.outside();
        let mut config = on_the_wire(machine);
        config.beside[0].parent = None;
        config.beside[0].bridge = "br-lan".into();
        config.beside[0].ipv4 = "192.0.3.0/24".parse().unwrap();
        config.beside[0].range = None;
        let network = runtime.block_on(Network::open(config)).unwrap();
        let old = on(runtime, &network, "lan", "a");
        killed(runtime, network);
        let network = runtime.block_on(Network::open(on_the_wire(machine))).unwrap();
        assert!(!ip("-o link").contains("br-lan") && !ip("-o link").contains("veth"));
        assert_eq!(old.ns.run(|| ip("-o link")).lines().count(), 1);
        assert!(network.named("lan").unwrap().attached("a").unwrap().is_none());
        killed(runtime, network);
        let network = open(machine, runtime);
        assert_eq!(folders(machine.dir.path()), ["back", "front", "inside", "open", "roomy"]);
        drop(network);
    });
}
