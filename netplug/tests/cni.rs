//! The CNI plugin, called as a runtime calls it.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Machine, Ns, ip, nft, on_a_machine, run};
use serde_json::{Value, json};

/// A runtime with one network configuration.
struct Cni {
    conf: Value,
}

#[derive(Debug)]
struct Said {
    ok: bool,
    text: String,
}

impl Said {
    #[track_caller]
    fn json(&self) -> Value {
        assert!(self.ok, "{}", self.text);
        serde_json::from_str(&self.text).unwrap()
    }

    #[track_caller]
    fn done(&self) {
        assert!(self.ok && self.text.is_empty(), "{}", self.text);
    }

    #[track_caller]
    fn code(&self, code: u32, words: &str) {
        assert!(!self.ok, "{}", self.text);
        let said: Value = serde_json::from_str(&self.text).unwrap();
        assert_eq!(said["code"], code, "{said}");
        let text =
            format!("{}: {}", said["msg"].as_str().unwrap(), said["details"].as_str().unwrap_or_default());
        assert!(text.contains(words), "{said}");
    }
}

impl Cni {
    fn new(machine: &Machine, more: &Value) -> Self {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "dbnet", "type": "berth-cni", "bridge": "cni0",
            "subnets": ["10.1.0.0/16"], "dns": {"nameservers": ["10.1.0.1"]}, "quarantineSeconds": 0,
            "dataDir": machine.dir.path().join("cni"),
            "capabilities": {"portMappings": true, "bandwidth": true, "ips": true, "mac": true},
        });
        for (key, value) in more.as_object().unwrap() {
            conf[key] = value.clone();
        }
        Self { conf }
    }

    fn call(&self, command: &str, environment: &[(&str, &str)], more: &Value) -> Said {
        let mut conf = self.conf.clone();
        for (key, value) in more.as_object().unwrap() {
            conf[key] = value.clone();
        }
        invoke(Path::new(env!("CARGO_BIN_EXE_berth-cni")), command, environment, &conf)
    }

    fn on(&self, command: &str, container: &str, ns: &Ns, more: &Value) -> Said {
        let path = ns.path().display().to_string();
        let environment = [("CNI_CONTAINERID", container), ("CNI_NETNS", &path), ("CNI_IFNAME", "eth0")];
        self.call(command, &environment, more)
    }

    #[track_caller]
    fn add(&self, container: &str, ns: &Ns, more: &Value) -> Value {
        self.on("ADD", container, ns, more).json()
    }

    fn del(&self, container: &str, ns: &Ns) {
        self.on("DEL", container, ns, &json!({})).done();
    }
}

fn invoke(plugin: &Path, command: &str, environment: &[(&str, &str)], conf: &Value) -> Said {
    let mut child = Command::new(plugin)
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_PATH", "/usr/lib/cni")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Said { ok: output.status.success(), text: String::from_utf8(output.stdout).unwrap() }
}

fn address(result: &Value) -> String {
    result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
}

/// The life of the specification's example ("dbnet"), with plugins of Debian's package after ours in the chain.
#[test]
fn the_specifications_example_as_a_chain() {
    on_a_machine(|machine, _| {
        let outside = machine.outside();
        let cni = Cni::new(machine, &json!({"cniVersion": "1.0.0"}));
        let ns = Ns::new();
        let ports = json!({"runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}});
        let result = cni.add("db", &ns, &ports);
        assert_eq!(result["cniVersion"], "1.0.0");
        assert_eq!(result["ips"], json!([{"address": "10.1.0.2/16", "gateway": "10.1.0.1", "interface": 2}]));
        assert_eq!(result["dns"], json!({"nameservers": ["10.1.0.1"]}));

        // `tuning` reads our result and passes it on.
        let path = ns.path().display().to_string();
        let environment = [("CNI_CONTAINERID", "db"), ("CNI_NETNS", path.as_str()), ("CNI_IFNAME", "eth0")];
        let tuning = json!({"cniVersion": "1.0.0", "name": "dbnet", "type": "tuning", "prevResult": result,
            "sysctl": {"net.core.somaxconn": "500"}});
        let tuned = invoke(Path::new("/usr/lib/cni/tuning"), "ADD", &environment, &tuning).json();
        assert_eq!(tuned["ips"], result["ips"]);

        let _server = ns.serve_tcp("0.0.0.0:80");
        assert_eq!(machine.host.tcp("10.1.0.2:80").unwrap(), "10.1.0.1");
        assert!(machine.host.tcp("127.0.0.1:8080").is_ok());
        assert!(outside.tcp("192.0.2.2:8080").is_ok());
        let with_result = json!({"prevResult": tuned});
        cni.on("CHECK", "db", &ns, &with_result).done();
        cni.on("DEL", "db", &ns, &with_result).done();
        assert!(!ns.run(|| ip("-o link")).contains("eth0"));
        assert!(!nft("list map inet cni-dbnet hostport4").contains("8080"));
        cni.on("DEL", "db", &ns, &with_result).done();
    });
}

/// What Debian's `bridge` plugin makes of the same addresses, ours makes, too: the test itself is tested.
#[test]
fn a_container_sees_what_the_bridge_plugin_gives_it() {
    on_a_machine(|machine, _| {
        let (ours, theirs) = (Ns::new(), Ns::new());
        Cni::new(machine, &json!({})).add("a", &ours, &json!({}));
        let path = theirs.path().display().to_string();
        let environment = [("CNI_CONTAINERID", "a"), ("CNI_NETNS", path.as_str()), ("CNI_IFNAME", "eth0")];
        let conf = json!({"cniVersion": "1.0.0", "name": "x", "type": "bridge", "bridge": "cni1",
            "isDefaultGateway": true, "ipMasq": false, "hairpinMode": true, "ipam": {
                "type": "host-local", "subnet": "10.1.0.0/16", "dataDir": machine.dir.path().join("theirs")}});
        invoke(Path::new("/usr/lib/cni/bridge"), "ADD", &environment, &conf).json();
        let facts = |ns: &Ns| {
            ns.run(|| {
                let shown: Value = serde_json::from_str(&ip("-j addr show eth0")).unwrap();
                let of =
                    |info: &Value| format!("{}/{} {}", info["local"], info["prefixlen"], info["broadcast"]);
                let v4 =
                    shown[0]["addr_info"].as_array().unwrap().iter().find(|info| info["family"] == "inet");
                let route: Value = serde_json::from_str(&ip("-j route show default")).unwrap();
                (
                    of(v4.unwrap()),
                    shown[0]["operstate"].clone(),
                    shown[0]["mtu"].clone(),
                    route[0]["gateway"].clone(),
                )
            })
        };
        assert_eq!(facts(&ours), facts(&theirs));
    });
}

#[test]
fn every_version_is_answered_in_its_own_form() {
    on_a_machine(|machine, _| {
        for (n, version) in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"].into_iter().enumerate() {
            let cni =
                Cni::new(machine, &json!({"cniVersion": version, "subnets": ["10.1.0.0/16", "fd01::/64"]}));
            let (id, ns) = (format!("c{n}"), Ns::new());
            let result = cni.add(&id, &ns, &json!({}));
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["ips"][1]["address"], format!("fd01::{}/64", n + 2));
            assert_eq!(result["ips"][0].get("version").is_some(), version.starts_with('0'), "{result}");
            assert_eq!(result["interfaces"][2].get("mtu").is_some(), version == "1.1.0", "{result}");
            if version != "0.3.1" {
                cni.on("CHECK", &id, &ns, &json!({"prevResult": result})).done();
            }
            cni.del(&id, &ns);
        }
        let said = Cni::new(machine, &json!({})).call("VERSION", &[], &json!({})).json();
        assert_eq!(said["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    });
}

#[test]
fn containers_are_added_side_by_side_and_reach_each_other() {
    on_a_machine(|machine, _| {
        let cni = Cni::new(machine, &json!({}));
        let spaces: Vec<Ns> = (0..12).map(|_| Ns::new()).collect();
        let host = &machine.host;
        let mut addresses: Vec<String> = std::thread::scope(|scope| {
            let adds: Vec<_> = spaces
                .iter()
                .enumerate()
                .map(|(n, ns)| {
                    let cni = &cni;
                    scope.spawn(move || {
                        let port = json!({"runtimeConfig": {"portMappings": [
                            {"hostPort": 9000 + n, "containerPort": 80, "protocol": "tcp"}]}});
                        host.run(|| address(&cni.add(&format!("c{n}"), ns, &port)))
                    })
                })
                .collect();
            adds.into_iter().map(|add| add.join().unwrap()).collect()
        });
        let servers: Vec<_> = spaces.iter().map(|ns| ns.serve_tcp("0.0.0.0:80")).collect();
        for (n, to) in addresses.iter().enumerate() {
            assert!(spaces[(n + 1) % 12].tcp(&format!("{to}:80")).is_ok(), "{to}");
            assert!(host.tcp(&format!("127.0.0.1:{}", 9000 + n)).is_ok(), "host port of {to}");
        }
        drop(servers);
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 12);
        std::thread::scope(|scope| {
            for (n, ns) in spaces.iter().enumerate() {
                let cni = &cni;
                scope.spawn(move || host.run(|| cni.del(&format!("c{n}"), ns)));
            }
        });
        assert!(!ip("-o link").contains("veth"));
        assert_eq!(std::fs::read_dir(machine.dir.path().join("cni/dbnet/leases")).unwrap().count(), 0);
    });
}

#[test]
fn capabilities_address_hardware_address_and_bandwidth() {
    on_a_machine(|machine, _| {
        let cni = Cni::new(machine, &json!({"rangeStart": "10.1.1.0", "rangeEnd": "10.1.1.9"}));
        let (first, second, third) = (Ns::new(), Ns::new(), Ns::new());
        let wishes = json!({"runtimeConfig": {
            "ips": ["10.1.0.77/16"], "mac": "02:00:00:00:00:77",
            "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 16_000_000, "egressBurst": 0},
        }});
        let result = cni.add("a", &first, &wishes);
        assert_eq!(address(&result), "10.1.0.77");
        assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:77");
        assert!(first.run(|| ip("link show eth0")).contains("02:00:00:00:00:77"));
        let host_if = result["interfaces"][1]["name"].as_str().unwrap();
        let queue = run("tc", &format!("qdisc show dev {host_if}"));
        assert!(queue.contains("tbf") && queue.contains("rate 8Mbit"), "{queue}");
        let queue = first.run(|| run("tc", "qdisc show dev eth0"));
        assert!(queue.contains("tbf") && queue.contains("rate 16Mbit"), "{queue}");
        cni.on("CHECK", "a", &first, &json!({"prevResult": result})).done();

        cni.on("ADD", "b", &second, &wishes).code(103, "10.1.0.77 cannot be had: pod dbnet/a has it");
        let asked = json!({"args": {"cni": {"ips": ["10.1.0.78"]}}});
        assert_eq!(address(&cni.add("b", &second, &asked)), "10.1.0.78");
        assert_eq!(address(&cni.add("c", &third, &json!({}))), "10.1.1.0");
        let path = third.path().display().to_string();
        let environment = [
            ("CNI_CONTAINERID", "c"),
            ("CNI_NETNS", path.as_str()),
            ("CNI_IFNAME", "net1"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;IP=10.1.0.99"),
        ];
        let again = cni.call("ADD", &environment, &json!({"isDefaultGateway": false})).json();
        assert_eq!((address(&again).as_str(), &again["routes"]), ("10.1.0.99", &json!([])));
        assert!(
            ip(&format!("link show {}", again["interfaces"][1]["name"].as_str().unwrap()))
                .contains("alias shop/web")
        );
        assert_eq!(third.run(|| ip("route show default")).lines().count(), 1);
    });
}

#[test]
fn errors_have_codes() {
    on_a_machine(|machine, _| {
        let cni = Cni::new(machine, &json!({"subnets": ["10.1.0.0/30"]}));
        let (a, b) = (Ns::new(), Ns::new());
        let port = json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}]}});
        let result = cni.add("a", &a, &port);
        cni.on("ADD", "a", &a, &port).code(104, "already has an interface eth0");
        cni.on("ADD", "b", &b, &json!({})).code(101, "no free pod address in 10.1.0.0/30: 1 in use");
        cni.on("ADD", "b", &b, &port).code(102, "host port 80/tcp is already used by pod dbnet/a");
        assert!(!b.run(|| ip("-o link")).contains("eth0"));
        cni.on("ADD", "b", &machine.host, &json!({})).code(8, "is the host's own");
        let gone = [("CNI_CONTAINERID", "b"), ("CNI_NETNS", "/run/netns/nothing"), ("CNI_IFNAME", "eth0")];
        cni.call("ADD", &gone, &json!({})).code(3, "has no network namespace");
        cni.call("DEL", &gone, &json!({})).done();
        cni.call("DEL", &[gone[0], gone[2]], &json!({})).done();

        let told = json!({"prevResult": result});
        cni.on("CHECK", "a", &a, &json!({})).code(7, "needs prevResult");
        cni.on("CHECK", "b", &b, &told).code(105, "has no lease");
        a.run(|| ip("route del default"));
        cni.on("CHECK", "a", &a, &told).code(105, "no default route");
        a.run(|| ip("addr flush dev eth0"));
        cni.on("CHECK", "a", &a, &told).code(105, "does not have the address 10.1.0.2/30");
        ip("link del cni0");
        cni.call("STATUS", &[], &json!({})).code(51, "bridge cni0 is not there");
    });
}

#[test]
fn the_garbage_of_containers_that_nobody_knows_is_collected() {
    on_a_machine(|machine, _| {
        let cni = Cni::new(machine, &json!({"subnets": ["10.1.0.0/29"]}));
        let spaces: Vec<Ns> = (0..5).map(|_| Ns::new()).collect();
        cni.call("STATUS", &[], &json!({})).done();
        for (n, ns) in spaces.iter().enumerate() {
            cni.add(&format!("c{n}"), ns, &json!({}));
        }
        cni.call("STATUS", &[], &json!({})).code(50, "no free pod address");
        cni.call("GC", &[], &json!({})).code(7, "needs cni.dev/valid-attachments");
        let valid = json!({"cni.dev/valid-attachments": [
            {"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "net7"}]});
        cni.call("GC", &[], &valid).done();
        assert_eq!(ip("-o link").matches("veth").count(), 1);
        let server = spaces[1].serve_tcp("0.0.0.0:80");
        assert!(machine.host.tcp("10.1.0.3:80").is_ok());
        drop(server);
        cni.call("STATUS", &[], &json!({})).done();
    });
}

/// Somebody may have deleted everything between two calls.
#[test]
fn bridge_and_table_are_made_anew_for_the_next_container() {
    on_a_machine(|machine, _| {
        let cni = Cni::new(machine, &json!({}));
        let (a, b) = (Ns::new(), Ns::new());
        let port = json!({"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}});
        cni.add("a", &a, &port);
        ip("link del cni0");
        nft("flush ruleset");
        cni.add("b", &b, &json!({}));
        let _server = a.serve_tcp("0.0.0.0:80");
        assert!(b.tcp("10.1.0.2:80").is_ok());
        assert!(machine.host.tcp("127.0.0.1:8080").is_ok());
    });
}
