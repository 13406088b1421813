//! NetworkPolicies: who reaches whom, with real traffic.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use berth_e2e::machine::{ADDRESS, OUTSIDE};
use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::{http, poll, tools};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
const ON: &str = "networkPolicy: true\npodCIDR: 10.85.0.0/16,fd00:85::/64\n";

/// A web server that says its name.
fn web(name: &str) -> Builder {
    Builder::new(name)
        .labels(&format!("{{ app: {name} }}"))
        .shell(&format!("echo {name} > /www/index.html; exec httpd -f -p 80 -h /www"))
        .with("ports: [{ name: http, containerPort: 80 }]")
}

fn in_namespace(yaml: &str, namespace: &str) -> String {
    yaml.replacen("metadata:\n", &format!("metadata:\n  namespace: {namespace}\n"), 1)
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: {name} }}\nspec: {spec}\n"
    )
}

/// Asks from a pod; what the server says, or that nobody answers in that many seconds.
fn ask(node: &Node, pod: &str, url: &str, seconds: u32) -> Result<String> {
    node.exec(pod, &["timeout", &seconds.to_string(), "wget", "-q", "-O", "-", url])?.ok()
}

fn opens(node: &Node, pod: &str, url: &str) {
    let what = format!("{pod} reaches {url}");
    poll::until(&what, PATIENCE, || match ask(node, pod, url, 5) {
        Ok(_) => Ok(Some(())),
        Err(error) => Err(error.to_string()),
    })
    .unwrap();
}

/// A change was asked for and is made in a moment; from then on it holds.
fn shuts(node: &Node, pod: &str, url: &str) {
    poll::until_true(&format!("{pod} does not reach {url}"), PATIENCE, || ask(node, pod, url, 1).is_err())
        .unwrap();
    assert!(ask(node, pod, url, 1).is_err(), "{pod} reaches {url} again");
}

fn apply(node: &Node, name: &str, text: &str) -> String {
    let file = node.path(&format!("{name}.yaml"));
    std::fs::write(&file, text).unwrap();
    node.berth(&["apply", "-f", file.to_str().unwrap()]).unwrap().ok().unwrap()
}

fn delete(node: &Node, name: &str) {
    node.berth(&["delete", "netpol", name]).unwrap().ok().unwrap();
}

/// The pod's addresses as parts of URLs, IPv4 first.
fn urls(node: &Node, pod: &str) -> [String; 2] {
    let found = node.pods().unwrap().remove(pod).unwrap();
    let ips: Vec<String> =
        found.status.unwrap().pod_ips.unwrap_or_default().into_iter().map(|one| one.ip).collect();
    [format!("http://{}/", ips[0]), format!("http://[{}]/", ips[1])]
}

#[test]
fn nothing_gets_in_but_what_is_allowed() {
    let node = Node::with(ON, &[]).unwrap();
    for name in ["a", "b", "c"] {
        node.apply(&format!("{name}.yaml"), &web(name).yaml()).unwrap();
    }
    node.wait_running(&["a", "b", "c"]).unwrap();
    let [v4, v6] = urls(&node, "a");
    for url in [&v4, &v6] {
        opens(&node, "b", url);
        opens(&node, "c", url);
    }
    let said = apply(&node, "deny", &policy("deny", "{ podSelector: {} }"));
    assert!(said.contains("networkpolicy.networking.k8s.io/deny created"), "{said}");
    for url in [&v4, &v6] {
        shuts(&node, "b", url);
        // The pod itself and its node are never kept out.
        opens(&node, "a", url);
        tools::run({
            let mut curl = node.machine().command("curl");
            curl.args(["-sSg", "--fail", "--max-time", "5", url]);
            curl
        })
        .unwrap()
        .ok()
        .unwrap();
    }
    let spec = "{ podSelector: { matchLabels: { app: a } }, ingress: [{ from: [{ podSelector: { matchLabels: { app: b } } }] }] }";
    apply(&node, "allow", &policy("allow", spec));
    for url in [&v4, &v6] {
        opens(&node, "b", url);
        shuts(&node, "c", url);
    }
    // What is shown.
    let listed = node.berth(&["get", "netpol"]).unwrap().ok().unwrap();
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "POD-SELECTOR", "AGE"], "{listed}");
    assert_eq!(
        (&rows[1][..2], &rows[2][..2]),
        (&["allow", "app=a"][..], &["deny", "<none>"][..]),
        "{listed}"
    );
    let described = node.berth(&["describe", "networkpolicy", "allow"]).unwrap().ok().unwrap();
    for text in [
        "Allowing ingress traffic",
        "app=b",
        "<any> (traffic allowed to all ports)",
        "Not affecting egress traffic",
    ] {
        assert!(described.contains(text), "{text}: {described}");
    }
    let path = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/allow";
    let object: Value = http::get(&node.socket(), path).unwrap();
    assert_eq!(
        (&object["apiVersion"], &object["spec"]["policyTypes"][0]),
        (&"networking.k8s.io/v1".into(), &"Ingress".into())
    );
    // An edit, and the end.
    apply(&node, "allow", &policy("allow", &spec.replace("app: b", "app: c")));
    shuts(&node, "b", &v4);
    opens(&node, "c", &v4);
    let object: Value = http::get(&node.socket(), path).unwrap();
    assert_eq!(object["metadata"]["generation"], 2);
    delete(&node, "allow");
    shuts(&node, "c", &v4);
    delete(&node, "deny");
    opens(&node, "b", &v4);
    opens(&node, "c", &v6);
    node.finish().unwrap();
}

/// A pod that comes under a policy of the folder is shut in from its start, and labels decide when they change.
#[test]
fn labels_of_pods_and_namespaces_decide() {
    let node = Node::with(ON, &[]).unwrap();
    let rule = "{ podSelector: {}, ingress: [{ from: [{ namespaceSelector: { matchLabels: { team: x } }, podSelector: { matchLabels: { role: client } } }] }] }";
    node.apply("1-policy.yaml", &policy("clients", rule)).unwrap();
    node.apply("2-a.yaml", &web("a").yaml()).unwrap();
    node.wait_running(&["a"]).unwrap();
    let [url, _] = urls(&node, "a");
    let shop = in_namespace(&Builder::new("client").shell("exec sleep 1000000").yaml(), "shop");
    assert!(shop.contains("namespace: shop"), "{shop}");
    apply(&node, "client", &shop);
    let exec = |seconds: &str| {
        let words = ["exec", "-n", "shop", "client", "--", "timeout", seconds, "wget", "-q", "-O", "-", &url];
        node.berth(&words).and_then(|ran| ran.ok())
    };
    poll::until_true("the client runs", PATIENCE, || {
        node.berth(&["exec", "-n", "shop", "client", "--", "true"]).is_ok_and(|ran| ran.code == 0)
    })
    .unwrap();
    let opens = |why: &str| poll::until_true(why, PATIENCE, || exec("5").is_ok()).unwrap();
    let shuts = |why: &str| poll::until_true(why, PATIENCE, || exec("1").is_err()).unwrap();
    assert!(exec("1").is_err(), "neither label is there");
    apply(&node, "ns", "apiVersion: v1\nkind: Namespace\nmetadata: { name: shop, labels: { team: x } }\n");
    assert!(exec("1").is_err(), "the pod's is missing");
    apply(&node, "client", &shop.replace("labels: {}", "labels: { role: client }"));
    opens("both labels are there");
    apply(&node, "client", &shop.replace("labels: {}", "labels: { role: server }"));
    shuts("the pod has another label");
    apply(&node, "client", &shop.replace("labels: {}", "labels: { role: client }"));
    opens("the pod has its label again");
    apply(&node, "ns", "apiVersion: v1\nkind: Namespace\nmetadata: { name: shop, labels: { team: z } }\n");
    shuts("the namespace has another label");
    let ns = node.berth(&["get", "ns", "shop", "-o", "json"]).unwrap().ok().unwrap();
    let ns: Value = serde_json::from_str(&ns).unwrap();
    assert_eq!(ns["metadata"]["labels"]["kubernetes.io/metadata.name"], "shop");
    assert_eq!(ns["status"]["phase"], "Active");
    let refused = node.berth(&["delete", "ns", "shop"]).unwrap();
    assert!(
        refused.code == 1 && refused.stderr.contains("it has pods in it; delete them first"),
        "{refused:?}"
    );
    node.berth(&["delete", "pod", "-n", "shop", "client"]).unwrap().ok().unwrap();
    poll::until_true("the namespace can go", PATIENCE, || {
        node.berth(&["delete", "ns", "shop"]).is_ok_and(|ran| ran.code == 0)
    })
    .unwrap();
    let refused = node.berth(&["delete", "ns", "default"]).unwrap();
    assert!(refused.stderr.contains("may not be deleted"), "{refused:?}");
    node.finish().unwrap();
}

#[test]
fn egress_by_block_port_and_name() {
    let node = Node::with(ON, &[]).unwrap();
    for name in ["a", "b"] {
        node.apply(&format!("{name}.yaml"), &web(name).yaml()).unwrap();
    }
    node.wait_running(&["a", "b"]).unwrap();
    let [v4, v6] = urls(&node, "b");
    opens(&node, "a", &v4);
    opens(&node, "a", &v6);
    let ping = |to: &str| node.exec("a", &["ping", "-c1", "-W1", to]).unwrap().code == 0;
    assert!(ping(OUTSIDE));
    let set = |rule: &str| {
        let spec = format!(
            "{{ podSelector: {{ matchLabels: {{ app: a }} }}, policyTypes: [Egress], egress: [{rule}] }}"
        );
        apply(&node, "egress", &policy("egress", &spec));
    };
    set("");
    shuts(&node, "a", &v4);
    shuts(&node, "a", &v6);
    assert!(!ping(OUTSIDE) && ping(ADDRESS), "the node is always reached");
    node.exec("a", &["nslookup", "kubernetes-is-not-here.default.svc.cluster.local"]).unwrap();
    set("{ to: [{ ipBlock: { cidr: 'fd00::/16' } }] }");
    opens(&node, "a", &v6);
    shuts(&node, "a", &v4);
    set(&format!("{{ to: [{{ ipBlock: {{ cidr: 0.0.0.0/0, except: [{OUTSIDE}/32] }} }}] }}"));
    opens(&node, "a", &v4);
    assert!(!ping(OUTSIDE), "it is left out");
    set("{ ports: [{ port: http }] }");
    opens(&node, "a", &v6);
    assert!(!ping(OUTSIDE), "it has no ports");
    set("{ ports: [{ port: 8000, endPort: 9000 }] }");
    shuts(&node, "a", &v4);
    opens(&node, "b", &v4);
    node.finish().unwrap();
}

/// What counts is the pod that a Service or a host port leads to, and who really asks.
#[test]
fn services_and_host_ports_are_doors_of_pods() {
    let node = Node::with(ON, &[]).unwrap();
    let service = "apiVersion: v1\nkind: Service\nmetadata: { name: svc }\nspec:\n  selector: { app: a }\n  ports: [{ port: 8000, targetPort: http }]\n";
    let a = web("a").yaml().replace("containerPort: 80 }", "containerPort: 80, hostPort: 8080 }");
    node.apply("a.yaml", &format!("{a}---\n{service}")).unwrap();
    for name in ["b", "c"] {
        node.apply(&format!("{name}.yaml"), &web(name).yaml()).unwrap();
    }
    node.wait_running(&["a", "b", "c"]).unwrap();
    let object: Value = http::get(&node.socket(), "/api/v1/namespaces/default/services/svc").unwrap();
    let door = format!("http://{}:8000/", object["spec"]["clusterIP"].as_str().unwrap());
    let outside = || {
        let mut curl = node.machine().outside("curl");
        curl.args(["-sS", "--fail", "--max-time", "1", &format!("http://{ADDRESS}:8080/")]);
        tools::run(curl).and_then(|ran| ran.ok())
    };
    opens(&node, "c", &door);
    poll::until_true("outside gets in", PATIENCE, || outside().is_ok()).unwrap();
    let from = |peer: &str| {
        policy(
            "a",
            &format!("{{ podSelector: {{ matchLabels: {{ app: a }} }}, ingress: [{{ from: [{peer}] }}] }}"),
        )
    };
    apply(&node, "a", &from("{ podSelector: { matchLabels: { app: b } } }"));
    shuts(&node, "c", &door);
    opens(&node, "b", &door);
    opens(&node, "a", &door);
    assert!(outside().is_err());
    apply(&node, "a", &from(&format!("{{ ipBlock: {{ cidr: {OUTSIDE}/32 }} }}")));
    poll::until_true("outside is allowed by its own address", PATIENCE, || outside().is_ok()).unwrap();
    shuts(&node, "b", &door);
    node.finish().unwrap();
}

#[test]
fn what_goes_on_is_cut_when_it_is_forbidden() {
    let node = Node::with(ON, &[]).unwrap();
    let server =
        Builder::new("server").labels("{ app: server }").shell("while :; do nc -l -p 99 -e cat; done");
    node.apply("server.yaml", &server.yaml()).unwrap();
    node.apply("client.yaml", &web("client").yaml()).unwrap();
    let pods = node.wait_running(&["server", "client"]).unwrap();
    let ip = pods["server"].ip().to_owned();
    let connect = || {
        let words = ["exec", "-i", "client-n1", "--", "nc", &ip, "99"];
        let mut command: Command = node.berth_command(&words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        (child, lines)
    };
    let (mut child, mut lines) = poll::until("it is connected", PATIENCE, || {
        let (mut child, mut lines) = connect();
        let mut line = String::new();
        let said =
            child.stdin.as_mut().unwrap().write_all(b"one\n").and_then(|()| lines.read_line(&mut line));
        if said.is_ok() && line == "one\n" {
            return Ok(Some((child, lines)));
        }
        let _ = child.kill();
        child.wait().map_err(|e| e.to_string())?;
        Err::<Option<_>, String>(format!("{said:?} {line:?}"))
    })
    .unwrap();
    // What forbids nothing to it does not disturb it.
    apply(&node, "other", &policy("other", "{ podSelector: { matchLabels: { app: other } } }"));
    let mut line = String::new();
    child.stdin.as_mut().unwrap().write_all(b"two\n").unwrap();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "two\n");
    apply(&node, "deny", &policy("deny", "{ podSelector: { matchLabels: { app: server } } }"));
    poll::until_true("the connection is cut", PATIENCE, || {
        let _ = child.stdin.as_mut().unwrap().write_all(b"three\n");
        child.try_wait().unwrap().is_some()
    })
    .unwrap();
    node.finish().unwrap();
}

#[test]
fn policies_hold_while_no_agent_runs_and_after() {
    let mut node = Node::with(ON, &[]).unwrap();
    for name in ["a", "b", "c"] {
        node.apply(&format!("{name}.yaml"), &web(name).yaml()).unwrap();
    }
    node.wait_running(&["a", "b", "c"]).unwrap();
    let [url, _] = urls(&node, "a");
    opens(&node, "c", &url);
    let spec = "{ podSelector: { matchLabels: { app: a } }, ingress: [{ from: [{ podSelector: { matchLabels: { app: b } } }] }] }";
    apply(&node, "allow", &policy("allow", spec));
    shuts(&node, "c", &url);
    opens(&node, "b", &url);
    // By processes that were there before: nobody can start any while no agent runs.
    let watch = |pod: &str| {
        let shell = format!(
            "while :; do timeout 1 wget -q -O - {url} > /dev/null && echo in || echo out; sleep 0.2; done"
        );
        node.berth_command(&[
            "exec",
            &format!("{pod}-n1"),
            "--",
            "sh",
            "-c",
            &format!("({shell}) > /tmp/seen 2> /dev/null &"),
        ])
        .output()
        .unwrap()
    };
    assert!(watch("b").status.success() && watch("c").status.success());
    node.kill9_agent().unwrap();
    node.start_agent().unwrap();
    poll::until("both have tried", PATIENCE, || {
        let count = |pod: &str| node.exec(pod, &["wc", "-l", "/tmp/seen"]).and_then(|ran| ran.ok());
        let number =
            |text: Result<String>| text.ok().and_then(|t| t.split_whitespace().next()?.parse::<u32>().ok());
        let counts = (number(count("b")), number(count("c")));
        match counts {
            (Some(b), Some(c)) if b > 20 && c > 5 => Ok(Some(())),
            other => Err(format!("{other:?}")),
        }
    })
    .unwrap();
    let seen = |pod: &str| node.exec(pod, &["sort", "-u", "/tmp/seen"]).unwrap().ok().unwrap();
    assert_eq!((seen("b").as_str(), seen("c").as_str()), ("in\n", "out\n"));
    // They are enforced by the new agent as by the old one.
    delete(&node, "allow");
    opens(&node, "c", &url);
    node.finish().unwrap();
}

/// With the capabilities for it, a pod can set up its own side as it likes, and gets nowhere by that.
#[test]
fn a_pod_with_capabilities_cannot_pretend_to_be_another() {
    let node = Node::with(ON, &[]).unwrap();
    for name in ["a", "b"] {
        node.apply(&format!("{name}.yaml"), &web(name).yaml()).unwrap();
    }
    let evil = web("evil").with("securityContext: { capabilities: { add: [NET_ADMIN, NET_RAW] } }");
    node.apply("evil.yaml", &evil.yaml()).unwrap();
    let pods = node.wait_running(&["a", "b", "evil"]).unwrap();
    let [url, _] = urls(&node, "a");
    let spec = "{ podSelector: { matchLabels: { app: a } }, ingress: [{ from: [{ podSelector: { matchLabels: { app: b } } }] }] }";
    apply(&node, "allow", &policy("allow", spec));
    opens(&node, "b", &url);
    shuts(&node, "evil", &url);
    let (a, b, own) = (pods["a"].ip().to_owned(), pods["b"].ip().to_owned(), pods["evil"].ip().to_owned());
    let sh = |line: &str| node.exec("evil", &["sh", "-c", line]).unwrap();
    // b's address in place of its own.
    sh(&format!("ip addr del {own}/16 dev eth0 && ip addr add {b}/16 dev eth0")).ok().unwrap();
    assert!(ask(&node, "evil", &url, 2).is_err());
    sh(&format!("ip addr del {b}/16 dev eth0 && ip addr add {own}/16 dev eth0")).ok().unwrap();
    // b's hardware address, too.
    let hardware = node.exec("b", &["cat", "/sys/class/net/eth0/address"]).unwrap().ok().unwrap();
    let before = node.exec("evil", &["cat", "/sys/class/net/eth0/address"]).unwrap().ok().unwrap();
    sh(&format!(
        "ip link set eth0 down; ip link set eth0 address {}; ip link set eth0 up; ip addr add {b}/16 dev eth0",
        hardware.trim()
    ));
    assert!(ask(&node, "evil", &url, 2).is_err());
    opens(&node, "b", &url);
    sh(&format!(
        "ip addr del {b}/16 dev eth0; ip link set eth0 down; ip link set eth0 address {}; ip link set eth0 up",
        before.trim()
    ));
    // Frames that go to a's hardware address by themselves.
    let of_a = node.exec("a", &["cat", "/sys/class/net/eth0/address"]).unwrap().ok().unwrap();
    sh(&format!("arp -s {a} {} || ip neigh replace {a} lladdr {} dev eth0", of_a.trim(), of_a.trim()));
    assert!(ask(&node, "evil", &url, 2).is_err());
    opens(&node, "b", &url);
    node.finish().unwrap();
}

#[test]
fn where_policies_are_not_enforced_they_are_refused() {
    let node = Node::start().unwrap();
    let file = node.path("deny.yaml");
    std::fs::write(&file, policy("deny", "{ podSelector: {} }")).unwrap();
    let refused = node.berth(&["apply", "-f", file.to_str().unwrap()]).unwrap();
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("does not enforce network policies: set `networkPolicy: true`"),
        "{refused:?}"
    );
    node.apply("deny.yaml", &policy("deny", "{ podSelector: {} }")).unwrap();
    poll::until_true("an event says so", PATIENCE, || {
        node.berth(&["get", "events"]).is_ok_and(|ran| {
            ran.stdout.contains("NetworkPolicy default/deny") && ran.stdout.contains("networkPolicy: true")
        })
    })
    .unwrap();
    let none = node.berth(&["get", "netpol"]).unwrap();
    assert!(none.stdout.is_empty(), "{none:?}");
    node.finish().unwrap();
}
