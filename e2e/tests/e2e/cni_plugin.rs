//! `berth-cni` as the network of podman and of containerd's `ctr`, which call it by their copies of libcni.

use std::os::unix::fs::symlink;

use berth_e2e::tools;
use serde_json::{Value, json};

use crate::oci_runtime::{Containerd, Host, Podman};

/// Writes a network `berthnet` for `host` and the folder with the plugin; gives the folders of both.
fn network(host: &Host) -> (String, String) {
    let (confs, plugins) = (host.path("net.d"), host.path("plugins"));
    for dir in [&confs, &plugins] {
        std::fs::create_dir(dir).unwrap();
    }
    symlink(tools::berth(), plugins.join("berth-cni")).unwrap();
    let conf = json!({"cniVersion": "1.0.0", "name": "berthnet", "plugins": [{
        "type": "berth-cni", "subnets": ["10.99.0.0/24"], "dataDir": host.path("leases"), "quarantineSeconds": 0,
        "capabilities": {"portMappings": true, "bandwidth": true, "ips": true, "mac": true},
    }]});
    std::fs::write(confs.join("10-berthnet.conflist"), conf.to_string()).unwrap();
    // ctr looks there and nowhere else. The machine has mounts of its own, and what is made here goes with them.
    let dir = host.path("").display().to_string();
    for (from, parent, place) in [(&confs, "etc", "cni/net.d"), (&plugins, "opt", "cni/bin")] {
        let from = from.display();
        host.machine
            .shell(&format!(
                "set -e; mkdir {dir}/{parent}-upper {dir}/{parent}-work; mount -t overlay overlay -o \
                 lowerdir=/{parent},upperdir={dir}/{parent}-upper,workdir={dir}/{parent}-work /{parent}; \
                 mkdir -p /{parent}/{place}; mount --bind {from} /{parent}/{place}"
            ))
            .unwrap();
    }
    (confs.display().to_string(), plugins.display().to_string())
}

fn leases(host: &Host) -> usize {
    std::fs::read_dir(host.path("leases/berthnet/leases")).unwrap().count()
}

#[test]
fn podman_gives_containers_a_network_of_berth_cni() {
    let podman = Podman::new();
    let (confs, plugins) = network(&podman.0);
    let text = std::fs::read_to_string(podman.0.path("containers.conf")).unwrap();
    let network = format!(
        "[network]\nnetwork_backend = \"cni\"\nnetwork_config_dir = \"{confs}\"\ncni_plugin_dirs = [\"{plugins}\"]\n"
    );
    std::fs::write(podman.0.path("containers.conf"), text + &network).unwrap();
    let tar = tools::demo_rootfs().unwrap();
    podman.run(&["import", "-q", tar.to_str().unwrap(), "localhost/demo"]).ok().unwrap();

    let parent = format!("--cgroup-parent={}", podman.0.cgroup);
    let run = |flags: &[&str], script: &str| {
        let words = [&["run", "--network=berthnet", &parent], flags, &["localhost/demo", "sh", "-c", script]];
        podman.run(&words.concat())
    };
    let serve = "echo served >index.html; httpd -f -p 80";
    let ip = "--ip=10.99.0.9";
    run(&["-d", "--name=web", "-p", "8088:80", ip, "--mac-address=02:00:00:00:00:09"], serve).ok().unwrap();
    let inspected: Value = serde_json::from_str(&podman.ok("inspect web")).unwrap();
    let shown = &inspected[0]["NetworkSettings"]["Networks"]["berthnet"];
    assert_eq!(
        (&shown["IPAddress"], &shown["MacAddress"]),
        (&json!("10.99.0.9"), &json!("02:00:00:00:00:09"))
    );
    assert_eq!(shown["Gateway"], "10.99.0.1");
    let get = "until wget -q -O - http://10.99.0.9/ 2>/dev/null; do sleep 0.05; done";
    assert_eq!(run(&["--rm"], get).ok().unwrap(), "served\n");
    for address in ["127.0.0.1", berth_e2e::machine::ADDRESS] {
        let fetched = podman.0.machine.shell(&format!("curl -sS http://{address}:8088/"));
        assert_eq!(fetched.unwrap(), "served\n", "{address}");
    }
    assert_eq!(leases(&podman.0), 1);
    podman.ok("rm -f -t 0 web");
    assert_eq!(leases(&podman.0), 0);
    assert!(!podman.0.machine.shell("ip -o link").unwrap().contains("vethweb"));
}

#[test]
fn containerds_ctr_gives_containers_a_network_of_berth_cni() {
    let containerd = Containerd::new();
    network(&containerd.host);
    // The exit code says it: ctr can lose the last lines of a container that ends at once.
    let look = "set -ex; ip -4 -o addr show eth0 | grep -F 'inet 10.99.0.2/24'; \
                ip route | grep -F 'default via 10.99.0.1 dev eth0'; ping -c 1 -W 5 10.99.0.1";
    containerd.start("--rm --cni", "one", &["/bin/sh", "-c", look]).ok().unwrap();
    assert_eq!(leases(&containerd.host), 0);
}
