//! Services of both address families, and what the API shows of those behind them.

use std::time::Duration;

use berth_e2e::machine::ADDRESS;
use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::{http, poll, tools};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
const CONFIG: &str = "podCIDR: 10.85.0.0/16,fd00:85::/64\nserviceCIDR: 10.86.0.0/16,fd00:86::/112\n";

fn web() -> Builder {
    let serve = "echo web > /www/index.html; exec httpd -f -p '[::]:8080' -h /www";
    Builder::new("web")
        .labels("{ app: web }")
        .shell(serve)
        .with("ports: [{ name: web, containerPort: 8080 }]")
}

fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n")
}

fn object(node: &Node, path: &str) -> Value {
    http::get(&node.socket(), path).unwrap_or_default()
}

fn slices(node: &Node, service: &str) -> Vec<Value> {
    let query = format!("labelSelector=kubernetes.io%2Fservice-name%3D{service}");
    let list = object(node, &format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?{query}"));
    list["items"].as_array().cloned().unwrap_or_default()
}

/// Waits until a URL is answered, from the host or in the pod.
fn wait_answer(node: &Node, pod: Option<&str>, url: &str) {
    poll::until(&format!("{url} answers {pod:?}"), PATIENCE, || {
        let answer = match pod {
            Some(pod) => {
                node.exec(pod, &["timeout", "5", "wget", "-q", "-O", "-", url]).and_then(tools::Ran::ok)
            }
            None => {
                let mut curl = node.machine().command("curl");
                curl.args(["-sS", "-g", "--fail", "--max-time", "5", url]);
                tools::run(curl).and_then(tools::Ran::ok)
            }
        };
        match answer {
            Ok(text) if text == "web\n" => Ok(Some(())),
            other => Err(format!("{other:?}")),
        }
    })
    .unwrap();
}

fn lookup(node: &Node, name: &str) -> String {
    node.exec("web", &["timeout", "20", "nslookup", name]).map_or_else(|e| e.to_string(), |ran| ran.stdout)
}

#[test]
fn a_service_of_both_families_is_reached_by_both() {
    let node = Node::with(CONFIG, &[]).unwrap();
    let ports = "selector: { app: web }, ports: [{ port: 80, targetPort: web, nodePort: 30080 }]";
    node.apply(
        "both.yaml",
        &service("both", &format!("type: NodePort, ipFamilyPolicy: RequireDualStack, {ports}")),
    )
    .unwrap();
    let plain = ports.replace(", nodePort: 30080", "");
    node.apply(
        "six.yaml",
        &service("six", &format!("ipFamilies: [IPv6], sessionAffinity: ClientIP, {plain}")),
    )
    .unwrap();
    let headless = service("all", &format!("clusterIP: None, ipFamilyPolicy: PreferDualStack, {plain}"));
    node.apply("all.yaml", &headless).unwrap();
    node.apply("web.yaml", &web().yaml()).unwrap();
    let pod = node.wait_running(&["web"]).unwrap().remove("web").unwrap();
    let six = pod.status.as_ref().unwrap().pod_ips.as_ref().unwrap()[1].ip.clone();

    let spec = object(&node, "/api/v1/namespaces/default/services/both")["spec"].take();
    assert_eq!(spec["ipFamilies"], serde_json::json!(["IPv4", "IPv6"]));
    let ips: Vec<&str> = spec["clusterIPs"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(ips[0].starts_with("10.86.") && ips[1].starts_with("fd00:86::"), "{ips:?}");
    let only = object(&node, "/api/v1/namespaces/default/services/six")["spec"]["clusterIP"].take();
    let only = only.as_str().unwrap().to_owned();
    assert!(only.starts_with("fd00:86::"), "{only}");

    for url in [
        format!("http://{}/", ips[0]),
        format!("http://[{}]/", ips[1]),
        format!("http://[{only}]/"),
        format!("http://{ADDRESS}:30080/"),
    ] {
        wait_answer(&node, None, &url);
    }
    wait_answer(&node, Some("web"), &format!("http://[{}]/", ips[1]));
    wait_answer(&node, Some("web"), &format!("http://{}/", ips[0]));

    for (name, found) in [
        ("both.default.svc.cluster.local", ips[1]),
        ("six.default.svc.cluster.local", &only),
        ("all.default.svc.cluster.local", &six),
    ] {
        poll::until_true(&format!("{name} is {found}"), PATIENCE, || lookup(&node, name).contains(found))
            .unwrap();
    }
    assert!(lookup(&node, &only).contains("six.default.svc.cluster.local"), "{}", lookup(&node, &only));

    let mut families: Vec<(String, String)> = slices(&node, "both")
        .iter()
        .map(|slice| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&slice["addressType"]), text(&slice["endpoints"][0]["addresses"][0]))
        })
        .collect();
    families.sort();
    assert_eq!(families, [("IPv4".to_owned(), pod.ip().to_owned()), ("IPv6".to_owned(), six.clone())]);
    let table = node.berth(&["get", "endpointslices"]).unwrap().ok().unwrap();
    assert!(table.contains("ADDRESSTYPE") && table.contains(&six), "{table}");
    let described = node.berth(&["describe", "service", "both"]).unwrap().ok().unwrap();
    // In the order of the slices' names.
    for endpoint in [format!("{}:8080", pod.ip()), format!("[{six}]:8080")] {
        assert!(described.contains(&endpoint), "{described}");
    }
    node.finish().unwrap();
}

#[test]
fn the_last_pod_answers_until_it_is_gone() {
    let node = Node::start().unwrap();
    node.apply(
        "web-service.yaml",
        &service("web", "selector: { app: web }, ports: [{ port: 80, targetPort: 8080 }]"),
    )
    .unwrap();
    let serve = "echo web > /www/index.html; httpd -p '[::]:8080' -h /www; trap exit TERM; while :; do sleep 0.1; done";
    let pod = web()
        .shell(serve)
        .with("lifecycle: { preStop: { exec: { command: [sh, -c, 'until [ -e /www/end ]; do sleep 0.1; done'] } } }")
        .grace(600);
    node.apply("web.yaml", &pod.yaml()).unwrap();
    node.wait_running(&["web"]).unwrap();
    let ip = object(&node, "/api/v1/namespaces/default/services/web")["spec"]["clusterIP"].take();
    let url = format!("http://{}/", ip.as_str().unwrap());
    wait_answer(&node, None, &url);
    node.remove("web.yaml").unwrap();
    poll::until("its slice says that it ends", PATIENCE, || {
        let slices = slices(&node, "web");
        let conditions = slices.first().map(|slice| slice["endpoints"][0]["conditions"].clone());
        match conditions {
            Some(now) if now == serde_json::json!({"ready": false, "serving": true, "terminating": true}) => {
                Ok(Some(()))
            }
            other => Err(format!("{other:?}")),
        }
    })
    .unwrap();
    wait_answer(&node, None, &url);
    let endpoints = object(&node, "/api/v1/namespaces/default/endpoints/web");
    assert!(endpoints["subsets"].is_null(), "{endpoints}");
    node.exec("web", &["touch", "/www/end"]).unwrap().ok().unwrap();
    node.wait_gone("web").unwrap();
    poll::until_true("its slice is empty", PATIENCE, || {
        slices(&node, "web").first().is_some_and(|slice| slice["endpoints"].is_null())
    })
    .unwrap();
    node.finish().unwrap();
}

#[test]
fn a_service_can_be_another_name_or_lead_from_an_address_of_the_machine() {
    let node = Node::with("resolvConf: /dev/null\n", &[]).unwrap();
    node.apply(
        "alias.yaml",
        &service("alias", "type: ExternalName, externalName: web.default.svc.cluster.local"),
    )
    .unwrap();
    let outer = "externalIPs: [198.51.100.7], selector: { app: web }, ports: [{ port: 81, targetPort: web }]";
    node.apply("outer.yaml", &service("outer", outer)).unwrap();
    node.apply("web.yaml", &web().yaml()).unwrap();
    let pod = node.wait_running(&["web"]).unwrap().remove("web").unwrap();
    let name = "alias.default.svc.cluster.local";
    poll::until(&format!("{name} is the pod"), PATIENCE, || {
        let found = lookup(&node, name);
        if found.contains("canonical name = web.default") && found.contains(pod.ip()) {
            Ok(Some(()))
        } else {
            Err(found)
        }
    })
    .unwrap();
    let row = node.berth(&["get", "svc", "alias"]).unwrap().ok().unwrap();
    let cells: Vec<&str> = row.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cells[1..5], ["ExternalName", "<none>", "web.default.svc.cluster.local", "<none>"], "{row}");
    assert!(slices(&node, "alias").is_empty());

    node.machine().shell("ip addr add 198.51.100.7/32 dev lo").unwrap();
    wait_answer(&node, None, "http://198.51.100.7:81/");
    wait_answer(&node, Some("web"), "http://198.51.100.7:81/");
    let mut route = node.machine().outside("ip");
    route.args(["route", "add", "198.51.100.7/32", "via", ADDRESS]);
    tools::run(route).unwrap().ok().unwrap();
    let mut curl = node.machine().outside("curl");
    curl.args(["-sS", "--fail", "--max-time", "5", "http://198.51.100.7:81/"]);
    assert_eq!(tools::run(curl).unwrap().ok().unwrap(), "web\n");
    node.finish().unwrap();
}

#[test]
fn a_service_that_needs_what_the_node_has_not_is_refused() {
    let node = Node::start().unwrap();
    let file = node.path("service.yaml");
    for (spec, expected) in [
        (
            "ipFamilyPolicy: RequireDualStack",
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
        ),
        ("ipFamilies: [IPv6]", "serviceCIDR names no IPv6 range"),
        ("clusterIP: 10.1.1.1", "The range of valid IPs is 10.86.0.0/16"),
    ] {
        std::fs::write(
            &file,
            service("web", &format!("{spec}, selector: {{ a: b }}, ports: [{{ port: 80 }}]")),
        )
        .unwrap();
        let refused = node.berth(&["apply", "-f", file.to_str().unwrap()]).unwrap();
        assert!(refused.code == 1 && refused.stderr.contains(expected), "{spec}: {}", refused.stderr);
    }
    node.finish().unwrap();
}
