//! Policies against the kernel: who reaches whom, by real traffic.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use berth_netplug::policy::{Block, Guard, Peers, Policies, Ports, Rule};
use berth_netplug::{Config, Network, Protocol, Service, ServicePort};
use common::{Machine, Ns, Pod, addr, assert_clean, attach, eventually, ip, nft, on_a_machine, pod};
use tokio::runtime::Runtime;

fn config(machine: &Machine) -> Config {
    let mut config = machine.config();
    config.ipv6 = Some("fd00:85::/64".parse().unwrap());
    config.service_ipv4 = Some("10.96.0.0/16".parse().unwrap());
    config.policies = true;
    config
}

fn open(machine: &Machine, runtime: &Runtime) -> Network {
    runtime.block_on(Network::open(config(machine))).unwrap()
}

/// Says whether the bridge hands packets to iptables, which br_netfilter does on many machines and here by default.
fn br_netfilter(on: bool) {
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let path = format!("/proc/sys/net/bridge/{name}");
        // Where it is not even loaded, it is off.
        if on || std::path::Path::new(&path).exists() {
            std::fs::write(&path, if on { "1" } else { "0" })
                .expect("this test needs the module br_netfilter");
        }
    }
}

/// The pod's address of the other family: it has the same place in its network.
fn v6(pod: &Pod) -> String {
    format!("fd00:85::{}", pod.ip.rsplit('.').next().unwrap())
}

fn ips(pods: &[&Pod]) -> BTreeSet<IpAddr> {
    pods.iter().flat_map(|pod| [addr(&pod.ip), addr(&v6(pod))]).collect()
}

/// All these pods, of which nothing is forbidden.
fn known(pods: &[&Pod]) -> Policies {
    Policies { pods: ips(pods).into_iter().map(|ip| (ip, Guard::default())).collect(), ..Policies::default() }
}

fn rules(names: &[&str]) -> Option<BTreeSet<String>> {
    Some(names.iter().map(|name| (*name).to_owned()).collect())
}

fn from(pods: &[&Pod]) -> Rule {
    Rule { peers: Some(Peers { pods: Some(ips(pods)), blocks: Vec::new() }), ports: None }
}

fn block(net: &str, except: &[&str]) -> Rule {
    let except = except.iter().map(|net| net.parse().unwrap()).collect();
    let blocks = vec![Block { net: net.parse().unwrap(), except }];
    Rule { peers: Some(Peers { pods: None, blocks }), ports: None }
}

trait Isolate {
    fn ingress(self, pod: &Pod, names: &[&str]) -> Self;
    fn egress(self, pod: &Pod, names: &[&str]) -> Self;
    fn rule(self, name: &str, rule: Rule) -> Self;
}

impl Isolate for Policies {
    fn ingress(mut self, pod: &Pod, names: &[&str]) -> Self {
        for ip in ips(&[pod]) {
            self.pods.get_mut(&ip).unwrap().ingress = rules(names);
        }
        self
    }

    fn egress(mut self, pod: &Pod, names: &[&str]) -> Self {
        for ip in ips(&[pod]) {
            self.pods.get_mut(&ip).unwrap().egress = rules(names);
        }
        self
    }

    fn rule(mut self, name: &str, rule: Rule) -> Self {
        self.rules.insert(name.into(), rule);
        self
    }
}

fn set(runtime: &Runtime, network: &Network, policies: &Policies) {
    runtime.block_on(network.set_policies(policies.clone())).unwrap();
}

/// For what is to arrive: as long as it takes.
const LONG: Duration = Duration::from_secs(20);
/// For what is not to arrive. On a slow machine it might have arrived later, but no good one fails.
const SHORT: Duration = Duration::from_millis(400);

/// What of both families and protocols gets through.
fn arrivals(from: &Ns, to: &Pod, patience: Duration) -> Vec<bool> {
    [format!("{}:80", to.ip), format!("[{}]:80", v6(to))]
        .iter()
        .flat_map(|at| [from.tcp_within(at, patience).is_ok(), from.udp_within(at, patience).is_ok()])
        .collect()
}

fn reaches(from: &Ns, to: &Pod) -> bool {
    arrivals(from, to, LONG).into_iter().all(|one| one)
}

fn is_shut(from: &Ns, to: &Pod) -> bool {
    !arrivals(from, to, SHORT).into_iter().any(|one| one)
}

fn serve(pod: &Pod) -> [common::Server; 2] {
    [pod.ns.serve_tcp("[::]:80"), pod.ns.serve_udp("[::]:80")]
}

fn ingress_is_kept(machine: &Machine, runtime: &Runtime) {
    let network = open(machine, runtime);
    let [a, b, c] = ["a", "b", "c"].map(|id| attach(runtime, &network, id, &[]));
    let _servers = [&a, &b, &c].map(serve);
    let open = known(&[&a, &b, &c]);
    set(runtime, &network, &open);
    assert!(reaches(&b.ns, &a) && reaches(&a.ns, &b), "nothing is forbidden");
    set(runtime, &network, &open.clone().ingress(&a, &[]));
    assert!(is_shut(&b.ns, &a) && is_shut(&c.ns, &a), "nobody is allowed");
    assert!(reaches(&a.ns, &b), "isolation is per direction, and answers pass");
    assert!(reaches(&a.ns, &a), "a pod reaches itself");
    assert!(reaches(&machine.host, &a), "the node reaches its pods");
    set(runtime, &network, &open.clone().ingress(&a, &["in/b"]).rule("in/b", from(&[&b])));
    assert!(reaches(&b.ns, &a) && is_shut(&c.ns, &a), "b is allowed");
    let both =
        open.clone().ingress(&a, &["in/b", "in/c"]).rule("in/b", from(&[&b])).rule("in/c", from(&[&c]));
    set(runtime, &network, &both);
    assert!(reaches(&b.ns, &a) && reaches(&c.ns, &a), "rules add up");
    set(runtime, &network, &open);
    assert!(reaches(&b.ns, &a) && reaches(&c.ns, &a), "nothing is forbidden any more");
}

#[test]
fn ingress_with_br_netfilter() {
    on_a_machine(|machine, runtime| {
        br_netfilter(true);
        ingress_is_kept(machine, runtime);
    });
}

#[test]
fn ingress_without_br_netfilter() {
    on_a_machine(|machine, runtime| {
        br_netfilter(false);
        ingress_is_kept(machine, runtime);
    });
}

#[test]
fn egress_is_kept() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = open(machine, runtime);
        let [a, b] = ["a", "b"].map(|id| attach(runtime, &network, id, &[]));
        let _servers = [&a, &b].map(serve);
        let _outside = outside.serve_tcp("[::]:80");
        let _host = machine.host.serve_tcp("[::]:90");
        let open = known(&[&a, &b]);
        set(runtime, &network, &open.clone().egress(&a, &[]));
        assert!(is_shut(&a.ns, &b), "nothing is allowed");
        assert!(
            a.ns.tcp_within("192.0.2.1:80", SHORT).is_err()
                && a.ns.tcp_within("[2001:db8::1]:80", SHORT).is_err()
        );
        assert!(reaches(&b.ns, &a), "isolation is per direction");
        assert_eq!(a.ns.tcp("10.85.0.1:90").unwrap(), format!("::ffff:{}", a.ip), "pods reach their node");
        let allowed = |rule| open.clone().egress(&a, &["out/x"]).rule("out/x", rule);
        set(runtime, &network, &allowed(block("192.0.2.0/24", &[])));
        assert!(a.ns.tcp("192.0.2.1:80").is_ok() && a.ns.tcp_within("[2001:db8::1]:80", SHORT).is_err());
        assert!(is_shut(&a.ns, &b));
        set(runtime, &network, &allowed(block("192.0.2.0/24", &["192.0.2.0/31"])));
        assert!(a.ns.tcp_within("192.0.2.1:80", SHORT).is_err(), "it is left out");
        set(runtime, &network, &allowed(block("::/0", &["fd00:85::/64"])));
        assert!(a.ns.tcp_within("192.0.2.1:80", SHORT).is_err() && a.ns.tcp("[2001:db8::1]:80").is_ok());
        assert!(a.ns.tcp_within(&format!("[{}]:80", v6(&b)), SHORT).is_err());
        set(runtime, &network, &allowed(block("0.0.0.0/0", &[])));
        assert!(a.ns.tcp("192.0.2.1:80").is_ok() && a.ns.tcp(&format!("{}:80", b.ip)).is_ok());
    });
}

#[test]
fn ports_by_number_range_and_name() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let [a, b, c] = ["a", "b", "c"].map(|id| attach(runtime, &network, id, &[]));
        let _servers = [80, 81, 82, 83, 84].map(|port| {
            let at = format!("[::]:{port}");
            [a.ns.serve_tcp(&at), a.ns.serve_udp(&at), c.ns.serve_tcp(&at), c.ns.serve_udp(&at)]
        });
        let ports = Ports {
            ranges: [(Protocol::Tcp, 80, 80), (Protocol::Udp, 81, 82)].into(),
            named: Some([(addr(&a.ip), Protocol::Tcp, 83), (addr(&v6(&c)), Protocol::Tcp, 84)].into()),
        };
        let rule = Rule { peers: None, ports: Some(ports) };
        let all = known(&[&a, &b, &c]).ingress(&a, &["in/p"]).ingress(&c, &["in/p"]).rule("in/p", rule);
        set(runtime, &network, &all);
        let are_open = |ip: &str, tcp: &[u16], udp: &[u16]| {
            for port in 80..85 {
                let at = format!("{ip}:{port}");
                let patience = |open: &[u16]| if open.contains(&port) { LONG } else { SHORT };
                assert_eq!(b.ns.tcp_within(&at, patience(tcp)).is_ok(), tcp.contains(&port), "tcp {at}");
                assert_eq!(b.ns.udp_within(&at, patience(udp)).is_ok(), udp.contains(&port), "udp {at}");
            }
        };
        are_open(&a.ip, &[80, 83], &[81, 82]);
        are_open(&format!("[{}]", v6(&c)), &[80, 84], &[81, 82]);
    });
}

/// Services and host ports lead to pods; what counts is the pod, and who really asks.
#[test]
fn destinations_are_judged_after_they_were_rewritten() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = open(machine, runtime);
        let a = attach(runtime, &network, "a", &[(None, 8080, 80, Protocol::Tcp)]);
        let [b, c] = ["b", "c"].map(|id| attach(runtime, &network, id, &[]));
        let _servers = serve(&a);
        let web = Service {
            namespace: "default".into(),
            name: "web".into(),
            cluster_ips: vec![addr("10.96.0.10")],
            ports: vec![ServicePort {
                protocol: Protocol::Tcp,
                port: 8000,
                node_port: None,
                endpoints: vec![format!("{}:80", a.ip).parse().unwrap()],
            }],
            affinity: None,
        };
        runtime.block_on(network.set_services(vec![web])).unwrap();
        let open = known(&[&a, &b, &c]);
        set(runtime, &network, &open.clone().ingress(&a, &["in/b"]).rule("in/b", from(&[&b])));
        let service = |pod: &Pod| pod.ns.tcp("10.96.0.10:8000").is_ok();
        let host_port = |pod: &Pod| pod.ns.tcp("10.85.0.1:8080").is_ok();
        assert!(service(&a) && service(&b) && !service(&c));
        assert!(host_port(&a) && host_port(&b) && !host_port(&c));
        assert!(machine.host.tcp("10.96.0.10:8000").is_ok() && machine.host.tcp("127.0.0.1:8080").is_ok());
        assert!(outside.tcp_within("192.0.2.2:8080", SHORT).is_err(), "who is outside was not named");
        set(runtime, &network, &open.clone().ingress(&a, &["in/o"]).rule("in/o", block("192.0.2.1/32", &[])));
        assert_eq!(outside.tcp("192.0.2.2:8080").unwrap(), "::ffff:192.0.2.1");
        // To the Service's own address nothing has to be allowed.
        set(runtime, &network, &open.clone().egress(&b, &["out/a"]).rule("out/a", from(&[&a])));
        assert!(service(&b));
        set(runtime, &network, &open.clone().egress(&b, &["out/c"]).rule("out/c", from(&[&c])));
        assert!(!service(&b));
    });
}

/// A connection, both ends.
fn connection(from: &Ns, to: &Pod) -> (TcpStream, TcpStream) {
    let listener = to.ns.run(|| TcpListener::bind("0.0.0.0:99").unwrap());
    let at: SocketAddr = format!("{}:99", to.ip).parse().unwrap();
    let client = from.run(|| TcpStream::connect_timeout(&at, Duration::from_secs(10)).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    let mut client = client;
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    (client, server)
}

fn is_cut(stream: &mut TcpStream) -> Result<(), String> {
    stream.set_nonblocking(true).unwrap();
    let cut = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::ConnectionAborted];
    let outcome = stream.write(b"y").and_then(|_| stream.read(&mut [0; 8]));
    match outcome {
        Err(e) if cut.contains(&e.kind()) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn what_is_forbidden_now_is_cut() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let [a, b] = ["a", "b"].map(|id| attach(runtime, &network, id, &[]));
        let open = known(&[&a, &b]);
        let allowed = open.clone().ingress(&a, &["in/b"]).rule("in/b", from(&[&b]));
        set(runtime, &network, &allowed);
        let (mut by_host, mut at_host) = connection(&machine.host, &a);
        // (who speaks first after the change, what the change is)
        for (client_first, change) in [
            (true, open.clone().ingress(&a, &[])),
            (false, open.clone().ingress(&a, &[])),
            (false, open.clone().ingress(&a, &["in/b"]).rule("in/b", from(&[]))),
            (true, open.clone().egress(&b, &[])),
            (false, open.clone().egress(&b, &[])),
        ] {
            set(runtime, &network, &allowed);
            let (mut client, mut server) = connection(&b.ns, &a);
            set(runtime, &network, &change);
            let (first, second) =
                if client_first { (&mut client, &mut server) } else { (&mut server, &mut client) };
            eventually("cut at the end that speaks", || is_cut(first));
            eventually("cut at the other end", || is_cut(second));
        }
        by_host.write_all(b"z").unwrap();
        at_host.read_exact(&mut [0]).unwrap();
        assert!(is_cut(&mut by_host).is_err(), "the node's own connections go on");
    });
}

#[test]
fn a_change_that_forbids_nothing_cuts_nothing() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let [a, b, c] = ["a", "b", "c"].map(|id| attach(runtime, &network, id, &[]));
        let open = known(&[&a, &b, &c]);
        set(runtime, &network, &open);
        let (mut client, mut server) = connection(&b.ns, &a);
        let wider = open.clone().ingress(&a, &["in/b"]).rule("in/b", from(&[&b]));
        let others = wider.clone().ingress(&c, &[]).egress(&c, &[]);
        for policies in [&wider, &others, &open] {
            set(runtime, &network, policies);
            client.write_all(b"x").unwrap();
            server.read_exact(&mut [0]).unwrap();
            server.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();
        }
    });
}

/// An answer that goes on although nobody may ask any more.
#[test]
fn udp_that_is_forbidden_now_is_cut() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let [a, b] = ["a", "b"].map(|id| attach(runtime, &network, id, &[]));
        set(runtime, &network, &known(&[&a, &b]));
        let server = a.ns.run(|| UdpSocket::bind("0.0.0.0:99").unwrap());
        let client = b.ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        client.connect(format!("{}:99", a.ip)).unwrap();
        client.send(b"ask").unwrap();
        let (_, asker) = server.recv_from(&mut [0; 8]).unwrap();
        server.send_to(b"answer", asker).unwrap();
        client.recv(&mut [0; 8]).unwrap();
        // b may not be sent anything that it has not asked for, and it may not ask a.
        set(runtime, &network, &known(&[&a, &b]).ingress(&b, &[]).ingress(&a, &[]));
        server.send_to(b"more", asker).unwrap();
        client.set_read_timeout(Some(SHORT)).unwrap();
        let outcome = client.recv(&mut [0; 8]);
        assert!(outcome.is_err(), "{outcome:?}");
    });
}

/// A pod can take no address but its own, in whatever it sends, and gets nothing that is another's.
#[test]
fn pods_cannot_pretend_to_be_others() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let [a, b, evil] = ["a", "b", "evil"].map(|id| attach(runtime, &network, id, &[]));
        let servers = [&a, &b, &evil].map(serve);
        let allowed = known(&[&a, &b, &evil]).ingress(&a, &["in/b"]).rule("in/b", from(&[&b]));
        set(runtime, &network, &allowed);
        assert!(reaches(&b.ns, &a) && is_shut(&evil.ns, &a));
        // With b's addresses: what counts is whether it arrives, for the answer would go to b.
        let ear = a.ns.run(|| UdpSocket::bind("[::]:77").unwrap());
        let arrives = |from: &Ns, source: &str, to: &str, patience| {
            from.run(|| UdpSocket::bind(source).unwrap().send_to(b"x", to)).is_ok_and(|_| {
                ear.set_read_timeout(Some(patience)).unwrap();
                ear.recv(&mut [0; 8]).is_ok()
            })
        };
        let (a4, a6) = (format!("{}:77", a.ip), format!("[{}]:77", v6(&a)));
        let (b4, b6) = (format!("{}:0", b.ip), format!("[{}]:0", v6(&b)));
        assert!(arrives(&b.ns, &b4, &a4, LONG) && arrives(&b.ns, &b6, &a6, LONG));
        evil.ns.run(|| ip(&format!("addr add {}/16 dev eth0", b.ip)));
        evil.ns.run(|| ip(&format!("-6 addr add {}/64 dev eth0 nodad", v6(&b))));
        assert!(!arrives(&evil.ns, &b4, &a4, SHORT) && !arrives(&evil.ns, &b6, &a6, SHORT));
        // It has told everybody that they were its own by now, and nobody has believed it.
        assert!(reaches(&b.ns, &a) && reaches(&machine.host, &b), "b is where it was");
        evil.ns.run(|| ip(&format!("addr del {}/16 dev eth0", b.ip)));
        evil.ns.run(|| ip(&format!("-6 addr del {}/64 dev eth0", v6(&b))));
        // With b's hardware address, and that of nobody.
        let own = evil.ns.run(|| ip("-br link show eth0"));
        let own = own.split_whitespace().nth(2).unwrap().to_owned();
        for hardware in ["0a:58:0a:55:00:03", "02:00:00:00:00:01"] {
            evil.ns.run(|| ip(&format!("link set eth0 address {hardware}")));
            assert!(
                evil.ns.tcp_within("10.85.0.1:80", SHORT).is_err()
                    && evil.ns.tcp_within(&format!("{}:80", b.ip), SHORT).is_err()
            );
            assert!(reaches(&b.ns, &a), "b is where it was");
        }
        evil.ns.run(|| ip(&format!("link set eth0 address {own}")));
        evil.ns.run(|| ip("route replace default via 10.85.0.1"));
        assert!(evil.ns.tcp(&format!("{}:80", b.ip)).is_ok(), "it is itself again");
        // By frames that it addresses to a's hardware itself, with and without br_netfilter.
        for on in [true, false] {
            br_netfilter(on);
            evil.ns.run(|| ip(&format!("neigh replace {} lladdr 0a:58:0a:55:00:02 dev eth0", a.ip)));
            evil.ns.run(|| ip(&format!("neigh replace {} lladdr 0a:58:0a:55:00:02 dev eth0", v6(&a))));
            assert!(is_shut(&evil.ns, &a));
            // By a's link-local address, which no policy names.
            let local = "fe80::858:aff:fe55:2";
            evil.ns.run(|| ip(&format!("neigh replace {local} lladdr 0a:58:0a:55:00:02 dev eth0")));
            let outcome = evil.ns.run(|| {
                let index = std::fs::read_to_string("/sys/class/net/eth0/ifindex").ok();
                let index =
                    index.map_or_else(|| interface_index("eth0"), |text| text.trim().parse().unwrap());
                let to = std::net::SocketAddrV6::new(local.parse().unwrap(), 80, 0, index);
                TcpStream::connect_timeout(&to.into(), SHORT)
            });
            assert!(outcome.is_err(), "{outcome:?}");
        }
        // To all at once.
        let shout = |to: &str| {
            evil.ns.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_broadcast(true).unwrap();
                socket.set_read_timeout(Some(SHORT)).unwrap();
                socket.send_to(b"x", to).unwrap();
                socket.recv_from(&mut [0; 64]).is_ok()
            })
        };
        drop(servers);
        let _a = a.ns.serve_udp("0.0.0.0:80");
        assert!(!shout("10.85.255.255:80") && !shout("255.255.255.255:80"));
    });
}

/// The index of a link of this thread's namespace; /sys shows those of another.
fn interface_index(name: &str) -> u32 {
    ip(&format!("-o link show {name}")).split(':').next().unwrap().parse().unwrap()
}

#[test]
fn who_is_not_known_yet_is_shut_in() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let a = attach(runtime, &network, "a", &[]);
        let _a = serve(&a);
        set(runtime, &network, &known(&[&a]));
        let b = attach(runtime, &network, "b", &[]);
        let _b = serve(&b);
        assert!(is_shut(&b.ns, &a) && is_shut(&a.ns, &b));
        assert!(reaches(&machine.host, &b));
        set(runtime, &network, &known(&[&a, &b]));
        assert!(reaches(&b.ns, &a) && reaches(&a.ns, &b));
        // It goes, and another gets its place.
        runtime.block_on(network.detach("b")).unwrap();
        drop(b);
        set(runtime, &network, &known(&[&a]));
        let c = attach(runtime, &network, "c", &[]);
        let _c = serve(&c);
        set(runtime, &network, &known(&[&a, &c]).ingress(&a, &["in/c"]).rule("in/c", from(&[&c])));
        assert!(reaches(&c.ns, &a));
    });
}

#[test]
fn policies_outlive_who_set_them() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let [a, b, c] = ["a", "b", "c"].map(|id| attach(runtime, &network, id, &[]));
        let _servers = [&a, &b].map(serve);
        let policies = known(&[&a, &b, &c]).ingress(&a, &["in/b"]).rule("in/b", from(&[&b]));
        set(runtime, &network, &policies);
        drop(network);
        assert!(reaches(&b.ns, &a) && is_shut(&c.ns, &a), "the kernel goes on");
        let network = open(machine, runtime);
        assert!(reaches(&b.ns, &a) && is_shut(&c.ns, &a), "nothing has changed");
        // Somebody deletes what we made.
        for table in ["inet berth-policy", "bridge berth-policy"] {
            nft(&format!("delete table {table}"));
            eventually("made anew", || nft("list tables").contains(table).then_some(()).ok_or("not there"));
            assert!(reaches(&b.ns, &a) && is_shut(&c.ns, &a));
        }
        drop(network);
        // Without the setting there is nothing of it.
        let mut off = config(machine);
        off.policies = false;
        let network = runtime.block_on(Network::open(off)).unwrap();
        assert_eq!(nft("list tables").trim(), "table inet berth");
        assert!(reaches(&c.ns, &a));
        set(runtime, &network, &policies);
        assert!(reaches(&c.ns, &a), "they are no matter of this network");
        runtime.block_on(network.close_all()).unwrap();
    });
}

/// `nft` can show what we made, and the network leaves nothing behind.
#[test]
fn tables_can_be_listed_and_go() {
    on_a_machine(|machine, runtime| {
        let network = open(machine, runtime);
        let [a, b] = ["a", "b"].map(|id| attach(runtime, &network, id, &[]));
        let policies = known(&[&a, &b])
            .ingress(&a, &["in/b"])
            .egress(&a, &["out/x"])
            .rule(
                "in/b",
                Rule {
                    ports: Some(Ports {
                        ranges: [(Protocol::Tcp, 80, 80), (Protocol::Sctp, 1, 9)].into(),
                        named: Some([(addr(&a.ip), Protocol::Udp, 53)].into()),
                    }),
                    ..from(&[&b])
                },
            )
            .rule("out/x", block("192.0.2.0/24", &["192.0.2.4/30"]));
        set(runtime, &network, &policies);
        let rules = nft("list table inet berth-policy");
        for text in ["192.0.2.0/30", "192.0.2.8-192.0.2.255", "sctp dport 1-9", "10.85.0.2 : goto ingress-"] {
            assert!(rules.contains(text), "{text}: {rules}");
        }
        let gate = nft("list table bridge berth-policy");
        assert!(gate.contains("ether daddr set 0a:58:0a:55:00:01"), "{gate}");
        let again = pod("a", &a.ns, &[]);
        runtime.block_on(network.attach(&again)).unwrap();
        assert_eq!(nft("list table bridge berth-policy"), gate, "attached twice, known once");
        runtime.block_on(network.detach("a")).unwrap();
        let gate = nft("list table bridge berth-policy");
        assert!(!gate.contains(&a.host_if) && gate.contains(&b.host_if), "{gate}");
        runtime.block_on(network.close_all()).unwrap();
        assert_clean(machine.dir.path());
    });
}

/// A pod on a further network is under the policies there, too, and what the bridge keeps apart stays apart although the host
/// routes.
#[test]
fn further_networks_are_no_way_round() {
    on_a_machine(|machine, runtime| {
        let mut config = config(machine);
        let mut front = config.another("front", "br-front", "10.90.0.0/24".parse().unwrap());
        front.ipv6 = Some("fd00:90::/64".parse().unwrap());
        let mut apart = config.another("apart", "br-apart", "10.91.0.0/24".parse().unwrap());
        apart.port_isolation = true;
        config.beside = vec![front, apart];
        let network = runtime.block_on(Network::open(config)).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|id| attach(runtime, &network, id, &[]));
        let mut all = known(&[&a, &b, &c]);
        let mut join = |pod: &Pod, name: &str, interface: &str| -> String {
            let mut wanted = pod.network.clone();
            wanted.wishes.interface = Some(interface.into());
            wanted.wishes.default_routes = Some(Vec::new());
            let joined = runtime.block_on(network.named(name).unwrap().attach(&wanted)).unwrap();
            all.pods.extend(joined.ips.iter().map(|ip| (*ip, Guard::default())));
            joined.ips[0].to_string()
        };
        let [a_front, b_front, c_front] = [&a, &b, &c].map(|pod| join(pod, "front", "net1"));
        let [a_apart, b_apart] = [&a, &b].map(|pod| join(pod, "apart", "net2"));
        let _servers = [&a, &b].map(serve);
        set(runtime, &network, &all);
        let at = |ip: &str| format!("{ip}:80");
        assert_eq!(b.ns.tcp_within(&at(&a_front), LONG).unwrap(), format!("::ffff:{b_front}"));
        assert!(c.ns.tcp_within(&at(&a_front), LONG).is_ok());
        assert!(
            b.ns.tcp_within(&at(&a_apart), SHORT).is_err() && a.ns.tcp_within(&at(&b_apart), SHORT).is_err()
        );
        assert!(machine.host.tcp_within(&at(&a_apart), LONG).is_ok());
        let peers = Peers { pods: Some([addr(&b_front)].into()), blocks: Vec::new() };
        all.rules.insert("in/b".into(), Rule { peers: Some(peers), ports: None });
        for ip in [&a.ip, &a_front] {
            all.pods.get_mut(&addr(ip)).unwrap().ingress = rules(&["in/b"]);
        }
        set(runtime, &network, &all);
        assert!(b.ns.tcp_within(&at(&a_front), LONG).is_ok());
        assert!(c.ns.tcp_within(&at(&a_front), SHORT).is_err());
        // c takes b's place on that network.
        c.ns.run(|| ip(&format!("addr add {b_front}/24 dev net1")));
        c.ns.run(|| ip(&format!("addr del {c_front}/24 dev net1")));
        assert!(c.ns.tcp_within(&at(&a_front), SHORT).is_err());
        runtime.block_on(network.close_all()).unwrap();
    });
}
