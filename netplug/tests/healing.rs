//! What somebody deletes comes back.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use berth_netplug::Protocol::Tcp;
use common::{attach, eventually, ip, nft, on_a_machine};

#[test]
fn the_bridge_comes_back_with_every_pod() {
    on_a_machine(|machine, runtime| {
        let outside = machine.outside();
        let network = machine.open(runtime);
        let a = attach(runtime, &network, "a", &[(None, 8080, 80, Tcp)]);
        let b = attach(runtime, &network, "b", &[]);
        let _server = a.ns.serve_tcp("0.0.0.0:80");
        ip("link del berth0");
        eventually("traffic after the bridge was deleted", || b.ns.tcp(&format!("{}:80", a.ip)).map(drop));
        eventually("host port", || outside.tcp("192.0.2.2:8080").map(drop));
        assert!(machine.host.tcp("127.0.0.1:8080").is_ok());
        assert!(ip(&format!("-d link show {}", a.host_if)).contains("hairpin on"));
    });
}

#[test]
fn the_bridge_deleted_while_pods_come() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        for n in 0..20 {
            if n % 2 == 0 {
                ip("link del berth0");
            }
            let pod = attach(runtime, &network, &format!("p{n}"), &[]);
            let _server = pod.ns.serve_tcp("0.0.0.0:80");
            let to = format!("{}:80", pod.ip);
            eventually("traffic to a new pod", || machine.host.tcp(&to).map(drop));
        }
    });
}

#[test]
fn the_table_comes_back() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let a = attach(runtime, &network, "a", &[(None, 8080, 80, Tcp)]);
        let _server = a.ns.serve_tcp("0.0.0.0:80");
        let table = nft("-n list table inet berth");
        let damages = [
            "delete table inet berth",
            "flush ruleset",
            "flush chain inet berth postrouting",
            "flush map inet berth hostport4",
            "flush table inet berth",
        ];
        for damage in damages {
            nft(damage);
            eventually(damage, || {
                let now = run_quietly();
                if now == table { Ok(()) } else { Err(now) }
            });
            assert!(machine.host.tcp("127.0.0.1:8080").is_ok(), "{damage}");
        }
    });
}

fn run_quietly() -> String {
    let output =
        std::process::Command::new("nft").args(["-n", "list", "table", "inet", "berth"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Attach and gc look for themselves, whatever the monitor missed.
#[test]
fn attach_and_gc_heal_at_once() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let a = attach(runtime, &network, "a", &[(None, 8080, 80, Tcp)]);
        let _server = a.ns.serve_tcp("0.0.0.0:80");
        nft("delete table inet berth");
        attach(runtime, &network, "b", &[(None, 8081, 80, Tcp)]);
        assert!(machine.host.tcp("127.0.0.1:8080").is_ok());
        ip("link del berth0");
        nft("delete table inet berth");
        runtime.block_on(network.gc(&["a".into(), "b".into()])).unwrap();
        assert!(machine.host.tcp("127.0.0.1:8080").is_ok());
    });
}

#[test]
fn attach_again_mends_a_pod() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let a = attach(runtime, &network, "a", &[]);
        let _server = a.ns.serve_tcp("0.0.0.0:80");
        let to = format!("{}:80", a.ip);
        let link = a.host_if.clone();
        let damages: [(&str, &dyn Fn()); 5] = [
            ("host link deleted", &|| drop(ip(&format!("link del {link}")))),
            ("off the bridge", &|| drop(ip(&format!("link set {link} nomaster")))),
            ("host link down", &|| drop(ip(&format!("link set {link} down")))),
            ("address deleted", &|| drop(a.ns.run(|| ip("addr flush dev eth0")))),
            ("pod link down", &|| drop(a.ns.run(|| ip("link set eth0 down")))),
        ];
        for (what, damage) in damages {
            assert!(machine.host.tcp(&to).is_ok(), "before {what}");
            damage();
            runtime.block_on(network.attach(&a.network)).unwrap();
            assert!(machine.host.tcp(&to).is_ok(), "{what}");
            assert!(a.ns.run(|| ip("route show default")).contains("10.85.0.1"), "{what}");
        }
    });
}

/// Nothing of ours reports an own change as damage.
#[test]
fn our_own_changes_are_no_news() {
    on_a_machine(|machine, runtime| {
        let network = machine.open(runtime);
        let _a = attach(runtime, &network, "a", &[(None, 8080, 80, Tcp)]);
        let handle =
            |listing: &str| listing.lines().find(|line| line.contains("table inet berth")).map(String::from);
        let before = handle(&nft("-a list table inet berth"));
        runtime.block_on(network.detach("a")).unwrap();
        let _b = attach(runtime, &network, "b", &[(None, 8080, 80, Tcp)]);
        assert_eq!(handle(&nft("-a list table inet berth")), before, "the table was not made anew");
    });
}
