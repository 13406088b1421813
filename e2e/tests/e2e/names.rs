//! Names: the agent as the name server of its pods.

use std::time::Duration;

use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::poll;

fn sleeper(name: &str) -> Builder {
    Builder::new(name).shell("exec sleep 1000000")
}

/// What busybox' `nslookup` finds in a pod.
fn lookup(node: &Node, pod: &str, name: &str) -> String {
    node.exec(pod, &["timeout", "20", "nslookup", name]).map_or_else(|e| e.to_string(), |ran| ran.stdout)
}

#[test]
fn pods_find_each_other_by_name_and_others_by_the_hosts_name_server() {
    let node = Node::with("podCIDR: 10.85.0.0/16,fd00:85::/64\nresolvConf: /dev/null\n", &[]).unwrap();
    node.apply("web.yaml", &sleeper("web").yaml()).unwrap();
    node.apply("db.yaml", &sleeper("db").with_pod("hostname: main\n  subdomain: store").yaml()).unwrap();
    let pods = node.wait_running(&["web", "db"]).unwrap();
    let (web, db) = (pods["web"].ip().to_owned(), pods["db"].ip().to_owned());
    let conf = node.exec("web", &["cat", "/etc/resolv.conf"]).unwrap().ok().unwrap();
    assert_eq!(
        conf,
        "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.85.0.1\n\
         nameserver fd00:85::1\noptions ndots:5\n"
    );
    for (name, ip) in [
        ("web.default.svc.cluster.local", &web),
        ("main.store.default.svc.cluster.local", &db),
        ("store.default.svc.cluster.local", &db),
        (&format!("{}.default.pod.cluster.local", web.replace('.', "-")), &web),
    ] {
        // A pod's address is known once its status is.
        poll::until_true(&format!("{name} is {ip}"), Duration::from_secs(30), || {
            lookup(&node, "web", name).contains(ip.as_str())
        })
        .unwrap();
    }
    let reverse = lookup(&node, "web", &db);
    assert!(reverse.contains("main.store.default.svc.cluster.local"), "{reverse}");
    let nobody = lookup(&node, "web", "nobody.default.svc.cluster.local");
    assert!(nobody.contains("NXDOMAIN"), "{nobody}");
    // By the search path, through the C library's resolver.
    let pinged = node.exec("db", &["ping", "-4", "-c1", "-W5", "web"]).unwrap().ok().unwrap();
    assert!(pinged.contains(&web), "{pinged}");

    node.remove("db.yaml").unwrap();
    node.wait_gone("db").unwrap();
    let gone = lookup(&node, "web", "main.store.default.svc.cluster.local");
    assert!(gone.contains("NXDOMAIN"), "{gone}");
}

#[test]
fn services_have_names_and_their_pods_too() {
    let node = Node::start().unwrap();
    let labels = "{ app: db }";
    let pod = sleeper("db").labels(labels).with_pod("hostname: first\n  subdomain: all");
    node.apply("db.yaml", &pod.yaml()).unwrap();
    let service = |name: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\nspec: {{ selector: {labels}, {more} ports: [{{ name: sql, port: 5432 }}] }}\n"
        )
    };
    node.apply("one.yaml", &service("one", "clusterIP: 10.86.7.7,")).unwrap();
    node.apply("all.yaml", &service("all", "clusterIP: None,")).unwrap();
    let ip = node.wait_running(&["db"]).unwrap()["db"].ip().to_owned();
    for (name, ip) in [
        ("one.default.svc.cluster.local", "10.86.7.7"),
        ("all.default.svc.cluster.local", &ip),
        ("first.all.default.svc.cluster.local", &ip),
    ] {
        poll::until_true(&format!("{name} is {ip}"), Duration::from_secs(30), || {
            lookup(&node, "db", name).contains(ip)
        })
        .unwrap();
    }
    let ports =
        node.exec("db", &["nslookup", "-type=srv", "_sql._tcp.one.default.svc.cluster.local"]).unwrap();
    assert!(ports.stdout.contains("5432 one.default.svc.cluster.local"), "{ports}");
    assert!(lookup(&node, "db", "10.86.7.7").contains("one.default.svc.cluster.local"));
}

#[test]
fn pods_have_the_hosts_name_server_when_the_agent_is_none() {
    let resolv = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(resolv.path(), "nameserver 192.0.2.53\n").unwrap();
    let conf = |config: &str| {
        let resolv = resolv.path().display();
        let node = Node::with(&format!("resolvConf: {resolv}\n{config}"), &[]).unwrap();
        node.apply("a.yaml", &sleeper("a").yaml()).unwrap();
        node.wait_running(&["a"]).unwrap();
        let text = node.exec("a", &["cat", "/etc/resolv.conf"]).unwrap().ok().unwrap();
        let listening = node.machine().shell("ss -Hlnu sport = :53").unwrap();
        (text, listening.trim().is_empty())
    };
    assert_eq!(conf("localDNS: false\n"), ("nameserver 192.0.2.53\n".to_owned(), true));
    let (text, silent) = conf("clusterDNS: [192.0.2.10]\n");
    assert!(text.contains("nameserver 192.0.2.10") && silent, "{text}");
}
