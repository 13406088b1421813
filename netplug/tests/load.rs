//! Many connections: all are answered, and spread over the endpoints.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use berth_netplug::Protocol::Tcp;
use berth_netplug::{Network, Service, ServicePort};
use common::{Ns, attach, on_a_machine};

const CONNECTIONS: usize = 10_000;
/// Clients at a time.
const CLIENTS: usize = 8;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Who answered how often. Every connection has to be answered.
fn connect(from: &Ns, to: &str, count: usize) -> BTreeMap<String, usize> {
    let to: SocketAddr = to.parse().unwrap();
    let run = |client| {
        from.run(move || {
            let mut answers: BTreeMap<String, usize> = BTreeMap::new();
            for _ in (client..count).step_by(CLIENTS) {
                let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(30)).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                let mut said = String::new();
                stream.read_to_string(&mut said).unwrap();
                *answers.entry(said).or_default() += 1;
            }
            answers
        })
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(move || run(client))).collect();
        let mut all: BTreeMap<String, usize> = BTreeMap::new();
        for (name, count) in clients.into_iter().flat_map(|client| client.join().unwrap()) {
            *all.entry(name).or_default() += count;
        }
        all
    })
}

#[test]
fn ten_thousand_connections_by_a_service_and_by_host_ports() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let mut config = machine.config();
        config.service_ipv4 = Some("10.86.0.0/16".parse().unwrap());
        let network = runtime.block_on(Network::open(config)).unwrap();
        let pods: Vec<_> = NAMES
            .iter()
            .zip(8080..)
            .map(|(name, port)| attach(runtime, &network, name, &[(None, port, 80, Tcp)]))
            .collect();
        let _servers: Vec<_> = pods
            .iter()
            .zip(NAMES)
            .map(|(pod, name)| pod.ns.serve_tcp_with("0.0.0.0:80", move |_| name.to_owned()))
            .collect();
        let port = ServicePort {
            protocol: Tcp,
            port: 80,
            node_port: Some(30080),
            endpoints: pods.iter().map(|pod| format!("{}:80", pod.ip).parse().unwrap()).collect(),
        };
        let service = |ports| Service {
            namespace: "default".into(),
            name: "web".into(),
            cluster_ips: vec!["10.86.0.9".parse().unwrap()],
            ports,
            affinity: None,
        };
        runtime.block_on(network.set_services(vec![service(vec![port.clone()])])).unwrap();
        let by_service = connect(&machine.host, "10.86.0.9:80", CONNECTIONS);
        assert_eq!(by_service.values().sum::<usize>(), CONNECTIONS);
        let share = CONNECTIONS / NAMES.len();
        for name in NAMES {
            // Chance has a deviation of 43 here; a tenth of the share is six of those.
            let answers = by_service.get(name).copied().unwrap_or_default();
            assert!(answers.abs_diff(share) < share / 10, "{by_service:?}");
        }
        let by_port = connect(&outside, "192.0.2.2:8080", 1_000);
        assert_eq!(by_port, BTreeMap::from([("a".to_owned(), 1_000)]));

        // While connections come, endpoints go and come: none is refused.
        let changes = || {
            for round in 0..200 {
                let mut now = port.clone();
                now.endpoints.truncate(if round % 2 == 0 { 2 } else { 4 });
                runtime.block_on(network.set_services(vec![service(vec![now])])).unwrap();
            }
        };
        std::thread::scope(|scope| {
            let changing = scope.spawn(changes);
            let mut answered = 0;
            while !changing.is_finished() || answered < 1_000 {
                answered += connect(&outside, "192.0.2.2:30080", 100).values().sum::<usize>();
            }
            assert_eq!(answered % 100, 0, "every one was answered");
        });
    });
}
