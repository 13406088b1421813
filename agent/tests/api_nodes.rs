//! What other nodes do with this one's API.
#![allow(clippy::unwrap_used)]

mod api_support;

use api_support::{OWN, Server, call, get, names, text};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";

/// What a kubelet does with its Node and its Lease.
#[test]
fn another_node_registers() {
    let server = Server::start();
    let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "other", "labels": {"a": "b"}},
        "status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    server.block_on(async {
        let (code, made) = call(&server, "POST", "/api/v1/nodes", node.clone()).await;
        assert_eq!((code, made["status"]["conditions"][0]["status"].as_str()), (201, Some("False")));
        assert_eq!(call(&server, "POST", "/api/v1/nodes", node).await.0, 409);
        let strategic = [("content-type", "application/strategic-merge-patch+json")];
        let patch = json!({"metadata": {"annotations": {"x": "y"}}, "spec": {"unschedulable": true},
            "status": {"$setElementOrder/conditions": [{"type": "MemoryPressure"}, {"type": "Ready"}],
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "MemoryPressure", "status": "False"}]}});
        let path = "/api/v1/nodes/other/status";
        let (code, text) = text(&server, "PATCH", path, &strategic, patch.to_string()).await;
        let patched: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(code, 200, "{text}");
        let conditions = json!([{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}]);
        assert_eq!(patched["status"]["conditions"], conditions);
        assert_eq!((&patched["metadata"]["annotations"]["x"], patched.get("spec")), (&json!("y"), None));
        let cordon = json!({"spec": {"unschedulable": true}});
        let (_, cordoned) = call(&server, "PATCH", "/api/v1/nodes/other", cordon).await;
        assert_eq!(cordoned["spec"]["taints"][0]["effect"], "NoSchedule");
        let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
        let (_, shown) = self::text(&server, "GET", "/api/v1/nodes/other", &table, String::new()).await;
        assert!(shown.contains("Ready,SchedulingDisabled"), "{shown}");

        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let lease = json!({"metadata": {"name": "other"}, "spec": {"holderIdentity": "other",
            "leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00.000000Z"}});
        assert_eq!(call(&server, "POST", leases, lease).await.0, 201);
        let path = format!("{leases}/other");
        let mut lease = get(&server, &path).await;
        lease["spec"]["renewTime"] = json!("2026-01-01T00:00:10.000000Z");
        let (code, renewed) = call(&server, "PUT", &path, lease.clone()).await;
        assert_eq!((code, &renewed["spec"]["renewTime"]), (200, &json!("2026-01-01T00:00:10.000000Z")));
        assert_eq!(call(&server, "PUT", &path, lease).await.0, 409);

        let strict = json!({"metadata": {"name": "third"}, "spec": {"taint": []}, "x": 1});
        let (code, refused) = call(&server, "POST", "/api/v1/nodes?fieldValidation=Strict", strict).await;
        let message = refused["message"].as_str().unwrap();
        assert!(code == 400 && message.contains("unknown field \"x\""), "{message}");
        assert_eq!(call(&server, "DELETE", "/api/v1/nodes/other", Value::Null).await.0, 200);
        assert_eq!(call(&server, "GET", "/api/v1/nodes/other", Value::Null).await.0, 404);
    });
}

/// Registers a node.
async fn node(server: &Server, name: &str) {
    let (code, made) = call(server, "POST", "/api/v1/nodes", json!({"metadata": {"name": name}})).await;
    assert_eq!(code, 201, "{made}");
}

/// A pod with something in its spec.
fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "main", "image": "demo:1"}]}});
    pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    pod
}

async fn strategic(server: &Server, path: &str, patch: Value) -> (u16, Value) {
    let kind = [("content-type", "application/strategic-merge-patch+json")];
    let (code, body) = text(server, "PATCH", path, &kind, patch.to_string()).await;
    (code.as_u16(), serde_json::from_str(&body).unwrap())
}

#[test]
fn a_pod_of_another_node_is_run_by_that() {
    let server = Server::start();
    server.block_on(async {
        let on_other = pod("web", json!({"nodeName": "other"}));
        let (_, ours) = call(&server, "POST", PODS, pod("mine", json!({"nodeName": OWN}))).await;
        assert_eq!(ours["status"]["phase"], "Running");
        node(&server, "other").await;
        let (code, made) = call(&server, "POST", PODS, on_other).await;
        assert_eq!((code, &made["status"]["phase"]), (201, &json!("Pending")));
        assert_eq!(made["spec"]["restartPolicy"], "Always");
        let list = get(&server, "/api/v1/pods?fieldSelector=spec.nodeName%3Dother").await;
        assert_eq!(names(&list), ["web"]);

        let path = format!("{PODS}/web");
        let uid = made["metadata"]["uid"].clone();
        let status = |uid: &Value, status: Value| json!({"metadata": {"uid": uid}, "status": status});
        let ready = |word: &str| json!({"conditions": [{"type": "Ready", "status": word}]});
        let (code, wrong) = strategic(&server, &format!("{path}/status"), status(&json!("x"), ready("True"))).await;
        assert_eq!((code, wrong["reason"].as_str()), (409, Some("Conflict")));
        let running = json!({"phase": "Running", "podIP": "10.9.0.2", "podIPs": [{"ip": "10.9.0.2"}],
            "$setElementOrder/conditions": [{"type": "Ready"}, {"type": "x/y"}],
            "conditions": [{"type": "Ready", "status": "False"}, {"type": "x/y", "status": "True"}],
            "containerStatuses": [{"name": "main", "image": "demo:1", "imageID": "", "ready": false, "restartCount": 0}]});
        assert_eq!(strategic(&server, &format!("{path}/status"), status(&uid, running)).await.0, 200);
        let (_, now) = strategic(&server, &format!("{path}/status"), status(&uid, ready("True"))).await;
        let words = |pod: &Value| {
            let all = pod["status"]["conditions"].as_array().unwrap().clone();
            all.iter().map(|c| format!("{}={}", c["type"], c["status"]).replace('"', "")).collect::<Vec<_>>()
        };
        assert_eq!(words(&now), ["Ready=True", "x/y=True"]);
        let replaced = json!({"conditions": [{"$patch": "replace"}, {"type": "Ready", "status": "False"}]});
        let (_, now) = strategic(&server, &format!("{path}/status"), status(&uid, replaced)).await;
        assert_eq!((words(&now), &now["status"]["podIP"]), (vec!["Ready=False".to_owned()], &json!("10.9.0.2")));
        let spec = json!({"spec": {"hostNetwork": true}, "status": {"phase": "Failed"}});
        let (_, now) = strategic(&server, &format!("{path}/status"), spec).await;
        assert_eq!((now["spec"].get("hostNetwork"), &now["status"]["phase"]), (None, &json!("Failed")));
        let running = json!({"status": {"phase": "Running"}});
        assert_eq!(strategic(&server, &format!("{path}/status"), running).await.0, 200);

        let image = json!({"spec": {"containers": [{"name": "main", "image": "demo:2"}]}});
        let (_, now) = strategic(&server, &path, image).await;
        assert_eq!((&now["metadata"]["generation"], &now["status"]["phase"]), (&json!(2), &json!("Running")));
        let (code, _) = strategic(&server, &path, json!({"spec": {"hostNetwork": true}})).await;
        assert_eq!(code, 422);
        let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "demo:1"}]}});
        let (code, now) = strategic(&server, &format!("{path}/ephemeralcontainers"), debug).await;
        assert_eq!((code, &now["spec"]["ephemeralContainers"][0]["name"]), (200, &json!("d")));

        let (code, going) = call(&server, "DELETE", &path, json!({"gracePeriodSeconds": 9})).await;
        assert_eq!((code, &going["metadata"]["deletionGracePeriodSeconds"]), (200, &json!(9)));
        let (_, sooner) = call(&server, "DELETE", &path, json!({"gracePeriodSeconds": 4})).await;
        assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 4);
        let (_, later) = call(&server, "DELETE", &path, json!({"gracePeriodSeconds": 60})).await;
        assert_eq!(later["metadata"]["deletionGracePeriodSeconds"], 4);
        let end = |uid: &Value| json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
        assert_eq!(call(&server, "DELETE", &path, end(&json!("x"))).await.0, 409);
        assert_eq!(call(&server, "DELETE", &path, end(&uid)).await.0, 200);
        assert_eq!(call(&server, "GET", &path, Value::Null).await.0, 404);
    });
}

#[test]
fn a_watch_of_a_nodes_pods_sees_them_come_change_and_go() {
    let server = Server::start();
    server.block_on(async {
        node(&server, "other").await;
        let since = get(&server, "/api/v1/pods").await["metadata"]["resourceVersion"].clone();
        let watch = format!(
            "/api/v1/pods?watch=1&allowWatchBookmarks=1&fieldSelector=spec.nodeName%3Dother&resourceVersion={}",
            since.as_str().unwrap()
        );
        let mut events = api_support::open(&server, "GET", &watch, &[], String::new()).await;
        call(&server, "POST", PODS, pod("mine", json!({}))).await;
        call(&server, "POST", PODS, pod("a", json!({"nodeName": "other"}))).await;
        call(&server, "POST", PODS, pod("b", json!({"schedulerName": "x"}))).await;
        let binding = json!({"metadata": {"name": "b"}, "target": {"kind": "Node", "name": "other"}});
        assert_eq!(call(&server, "POST", &format!("{PODS}/b/binding"), binding).await.0, 201);
        call(&server, "DELETE", "/api/v1/nodes/other", Value::Null).await;
        let mut lines = String::new();
        while lines.matches("DELETED").count() < 2 {
            let frame = events.body_mut().frame().await.unwrap().unwrap();
            lines.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
        }
        let seen = |line: &str| {
            let event: Value = serde_json::from_str(line).unwrap();
            format!("{} {}", event["type"], event["object"]["metadata"]["name"]).replace('"', "")
        };
        let seen: Vec<String> = lines.lines().map(seen).collect();
        assert_eq!(seen, ["ADDED a", "ADDED b", "DELETED a", "DELETED b"]);
    });
}

#[test]
fn a_pod_waits_for_whoever_binds_it() {
    let server = Server::start();
    server.block_on(async {
        node(&server, "other").await;
        let gates = json!({"schedulingGates": [{"name": "example.org/wait"}]});
        let (_, gated) = call(&server, "POST", PODS, pod("gated", gates)).await;
        assert_eq!(gated["status"]["conditions"][0]["reason"], "SchedulingGated");
        let bind = async |pod: &str, node: &str| {
            let binding = json!({"target": {"kind": "Node", "name": node}});
            let (code, answer) = call(&server, "POST", &format!("{PODS}/{pod}/binding"), binding).await;
            (code, answer["message"].as_str().unwrap_or_default().to_owned())
        };
        let (code, why) = bind("gated", "other").await;
        assert!(code == 409 && why.contains("schedulingGates"), "{why}");
        let lifted = json!({"spec": {"schedulingGates": []}});
        assert_eq!(call(&server, "PATCH", &format!("{PODS}/gated"), lifted).await.0, 200);
        assert_eq!(bind("gated", "nobody").await.0, 404);
        assert_eq!(bind("gated", "other").await.0, 201);
        let (code, why) = bind("gated", "other").await;
        assert!(code == 409 && why.contains("already assigned to node \"other\""), "{why}");

        let (_, made) = call(&server, "POST", PODS, pod("here", json!({"schedulerName": "x"}))).await;
        assert_eq!((made["spec"].get("nodeName"), &made["status"]["phase"]), (None, &json!("Pending")));
        assert_eq!(bind("here", OWN).await.0, 201);
        let runs = get(&server, &format!("{PODS}/here")).await;
        assert_eq!(
            (&runs["status"]["phase"], &runs["metadata"]["uid"]),
            (&json!("Running"), &made["metadata"]["uid"])
        );
        call(&server, "POST", PODS, pod("never", json!({"schedulerName": "x"}))).await;
        assert_eq!(call(&server, "DELETE", &format!("{PODS}/never"), Value::Null).await.0, 200);
        assert_eq!(call(&server, "GET", &format!("{PODS}/never"), Value::Null).await.0, 404);
        // A node that is not registered is nobody's: this one's check says so.
        let both = json!({"nodeName": "other", "schedulingGates": [{"name": "example.org/wait"}]});
        assert_eq!(call(&server, "POST", PODS, pod("both", both)).await.0, 422);
    });
}
