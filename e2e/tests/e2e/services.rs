//! Services: addresses that lead to the ready pods of the node.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use berth_e2e::machine::{ADDRESS, Machine};
use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::{http, poll, tools};

const PATIENCE: Duration = Duration::from_secs(30);

fn fetch(mut curl: Command, url: &str) -> Result<String> {
    curl.args(["-sS", "--fail", "--max-time", "5", url]);
    tools::run(curl)?.ok()
}

fn from_host(machine: &Machine, url: &str) -> Result<String> {
    fetch(machine.command("curl"), url)
}

/// A web server that says its name, and is ready while the file `/www/ready` is there.
fn web(name: &str) -> String {
    Builder::new(name)
        .labels("{ app: web }")
        .shell(&format!("echo {name} > /www/index.html; touch /www/ready; exec httpd -f -p 8080 -h /www"))
        .with("ports: [{ name: web, containerPort: 8080 }]")
        .with(
            "readinessProbe: { exec: { command: [ls, /www/ready] }, periodSeconds: 1, failureThreshold: 1 }",
        )
        .yaml()
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: { name: web }\nspec:\n  type: NodePort\n  \
                       selector: { app: web }\n  ports: [{ port: 80, targetPort: web, nodePort: 30080 }]\n";

fn object(node: &Node, path: &str) -> serde_json::Value {
    http::get(&node.socket(), &format!("/api/v1/namespaces/default/{path}")).unwrap()
}

fn cluster_ip(node: &Node, name: &str) -> String {
    object(node, &format!("services/{name}"))["spec"]["clusterIP"].as_str().unwrap().to_owned()
}

/// The connection is refused, not left without an answer (which curl would end with 28).
fn assert_refused(node: &Node, url: &str) {
    const COULD_NOT_CONNECT: &str = "ended with 7;";
    let error = from_host(node.machine(), url).unwrap_err().to_string();
    assert!(error.contains(COULD_NOT_CONNECT), "{error}");
}

/// Waits until connections get to exactly these pods.
fn wait_served_by(node: &Node, url: &str, names: &[&str]) {
    let wanted: BTreeSet<String> = names.iter().map(|name| format!("{name}\n")).collect();
    poll::until(&format!("{names:?} answer"), PATIENCE, || {
        // The chance that one of two is never drawn in 30 times is one in 500 million; then it is tried again.
        let answers: Result<BTreeSet<String>, String> =
            (0..30).map(|_| from_host(node.machine(), url).map_err(|e| e.to_string())).collect();
        match answers {
            Ok(answers) if answers == wanted => Ok(Some(())),
            other => Err(format!("{other:?}")),
        }
    })
    .unwrap();
}

#[test]
fn a_service_leads_to_the_pods_that_are_ready() {
    let node = Node::start().unwrap();
    // It may come before its pods, in any order of files.
    node.apply("service.yaml", SERVICE).unwrap();
    node.apply("a.yaml", &web("a")).unwrap();
    node.apply("b.yaml", &web("b")).unwrap();
    let pods = node.wait_running(&["a", "b"]).unwrap();
    let ip = {
        poll::until("the Service has an address", PATIENCE, || {
            let found = http::get(&node.socket(), "/api/v1/namespaces/default/services/web");
            Ok::<_, String>(found.ok().map(drop))
        })
        .unwrap();
        cluster_ip(&node, "web")
    };
    assert!(ip.starts_with("10.86."), "{ip}");
    let url = format!("http://{ip}/");
    wait_served_by(&node, &url, &["a", "b"]);

    // From a pod of its own, from outside by the node's port.
    let inside = node.exec("a", &["timeout", "5", "wget", "-q", "-O", "-", &url]).unwrap().ok().unwrap();
    assert!(["a\n", "b\n"].contains(&inside.as_str()), "{inside}");
    let outside = fetch(node.machine().outside("curl"), &format!("http://{ADDRESS}:30080/")).unwrap();
    assert!(["a\n", "b\n"].contains(&outside.as_str()), "{outside}");

    let listed = node.berth(&["get", "svc"]).unwrap().ok().unwrap();
    let row = listed.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(row[..5], ["web", "NodePort", &ip, "<none>", "80:30080/TCP"], "{listed}");
    let endpoints = node.berth(&["get", "endpoints"]).unwrap().ok().unwrap();
    for name in ["a", "b"] {
        assert!(endpoints.contains(&format!("{}:8080", pods[name].ip())), "{endpoints}");
    }

    let described = node.berth(&["describe", "svc", "web"]).unwrap().ok().unwrap();
    assert!(described.contains("TargetPort") && described.contains("30080/TCP"), "{described}");

    // Not ready, then ready again.
    node.exec("a", &["rm", "/www/ready"]).unwrap().ok().unwrap();
    wait_served_by(&node, &url, &["b"]);
    let shown = object(&node, "endpoints/web");
    assert_eq!(shown["subsets"][0]["notReadyAddresses"][0]["targetRef"]["name"], "a-n1", "{shown}");
    node.exec("a", &["touch", "/www/ready"]).unwrap().ok().unwrap();
    wait_served_by(&node, &url, &["a", "b"]);

    // A pod goes, then the other one; then nobody is there, which is said at once.
    node.remove("b.yaml").unwrap();
    wait_served_by(&node, &url, &["a"]);
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
    assert_refused(&node, &url);
    node.remove("service.yaml").unwrap();
    poll::until_true("the Service is gone", PATIENCE, || {
        node.berth(&["get", "svc", "web"]).is_ok_and(|ran| ran.code == 1)
    })
    .unwrap();
    node.finish().unwrap();
}

#[test]
fn services_of_the_api_keep_their_address_over_a_crash_of_the_agent() {
    let mut node = Node::start().unwrap();
    let file = node.path("service.yaml");
    std::fs::write(&file, SERVICE.replace(", nodePort: 30080", "")).unwrap();
    let apply = |node: &Node| node.berth(&["apply", "-f", file.to_str().unwrap()]).unwrap();
    assert!(apply(&node).ok().unwrap().contains("service/web created"));
    node.apply("a.yaml", &web("a")).unwrap();
    node.wait_running(&["a"]).unwrap();
    let before = object(&node, "services/web");
    let url = format!("http://{}/", cluster_ip(&node, "web"));
    wait_served_by(&node, &url, &["a"]);

    node.kill9_agent().unwrap();
    assert_eq!(from_host(node.machine(), &url).unwrap(), "a\n", "without an agent");
    node.start_agent().unwrap();
    // Never refused while the new agent finds its way.
    for _ in 0..20 {
        assert_eq!(from_host(node.machine(), &url).unwrap(), "a\n");
    }
    let after = object(&node, "services/web");
    assert_eq!(after["spec"], before["spec"]);
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert!(apply(&node).ok().unwrap().contains("service/web"), "again");
    assert_eq!(object(&node, "services/web")["spec"], before["spec"]);

    // What another one has is not to be had, and said by its field.
    let port = before["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
    let thief = SERVICE.replace("name: web", "name: thief").replace("30080", &port.to_string());
    std::fs::write(&file, thief).unwrap();
    let refused = apply(&node);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("spec.ports[0].nodePort"), "{}", refused.stderr);
    assert!(refused.stderr.contains("already allocated"), "{}", refused.stderr);

    node.berth(&["delete", "service", "web"]).unwrap().ok().unwrap();
    assert_refused(&node, &url);
    node.finish().unwrap();
}

#[test]
fn containers_are_told_of_the_services_that_were_there_first() {
    let node = Node::start().unwrap();
    let headless = "---\napiVersion: v1\nkind: Service\nmetadata: { name: names }\nspec: { clusterIP: None, selector: { app: web } }\n";
    let pod = Builder::new("a").labels("{ app: web }").shell("env | sort; echo end; exec sleep 1000000");
    let apart = Builder::new("b").shell("env | sort; echo end; exec sleep 1000000");
    let apart = apart.with_pod("enableServiceLinks: false").yaml();
    let all = format!("{SERVICE}{headless}---\n{}---\n{apart}", pod.yaml());
    node.apply("all.yaml", &all).unwrap();
    let pods = node.wait_running(&["a", "b"]).unwrap();
    let told = node.wait_log(&pods["a"], "end").unwrap();
    let ip = cluster_ip(&node, "web");
    for line in [
        format!("WEB_SERVICE_HOST={ip}"),
        "WEB_SERVICE_PORT=80".to_owned(),
        format!("WEB_PORT=tcp://{ip}:80"),
        format!("WEB_PORT_80_TCP_ADDR={ip}"),
    ] {
        assert!(told.contains(&line), "{line} is missing in {told:?}");
    }
    assert!(!told.iter().any(|line| line.starts_with("NAMES_")), "{told:?}");
    let untold = node.wait_log(&pods["b"], "end").unwrap();
    assert!(!untold.iter().any(|line| line.starts_with("WEB_")), "{untold:?}");

    let listed = node.berth(&["get", "svc", "names"]).unwrap().ok().unwrap();
    assert!(listed.contains("ClusterIP") && listed.contains("None"), "{listed}");
    poll::until_true("the headless Service names its pod", PATIENCE, || {
        let ips = object(&node, "endpoints/names");
        ips["subsets"][0]["addresses"][0]["ip"] == pods["a"].ip()
    })
    .unwrap();
    node.finish().unwrap();
}

#[test]
fn a_service_that_this_node_cannot_serve_is_refused_by_its_field() {
    let node = Node::start().unwrap();
    let file = node.path("service.yaml");
    std::fs::write(&file, SERVICE.replace("type: NodePort", "type: LoadBalancer")).unwrap();
    let refused = node.berth(&["check", file.to_str().unwrap()]).unwrap();
    assert_eq!(refused.code, 1);
    assert!(refused.stdout.contains("spec.type: Unsupported value: \"LoadBalancer\""), "{}", refused.stdout);
    assert!(refused.stdout.contains("use NodePort"), "{}", refused.stdout);
}
