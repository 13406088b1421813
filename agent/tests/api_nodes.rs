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

#[test]
fn the_server_completes_pods_of_others() {
    let server = Server::start();
    server.block_on(async {
        node(&server, "other").await;
        let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
        call(&server, "POST", classes, json!({"metadata": {"name": "high"}, "value": 7, "preemptionPolicy": "Never"})).await;
        let runtimes = "/apis/node.k8s.io/v1/runtimeclasses";
        let runtime = json!({"metadata": {"name": "vm"}, "handler": "vm", "overhead": {"podFixed": {"memory": "64Mi"}},
            "scheduling": {"nodeSelector": {"vm": "yes"}}});
        assert_eq!(call(&server, "POST", runtimes, runtime).await.0, 201);
        let spec = json!({"nodeName": "other", "priorityClassName": "high", "runtimeClassName": "vm"});
        let (code, made) = call(&server, "POST", PODS, pod("a", spec)).await;
        assert_eq!(code, 201, "{made}");
        let spec = &made["spec"];
        assert_eq!((&spec["priority"], &spec["preemptionPolicy"]), (&json!(7), &json!("Never")));
        assert_eq!((&spec["overhead"], &spec["nodeSelector"]), (&json!({"memory": "64Mi"}), &json!({"vm": "yes"})));
        assert_eq!((&spec["serviceAccountName"], &spec["tolerations"][1]["tolerationSeconds"]), (&json!("default"), &json!(300)));
        let mount = &spec["containers"][0]["volumeMounts"][0];
        assert_eq!((&mount["mountPath"], &mount["name"]), (&json!("/var/run/secrets/kubernetes.io/serviceaccount"), &spec["volumes"][0]["name"]));
        let sources = spec["volumes"][0]["projected"]["sources"].as_array().unwrap();
        assert_eq!((sources.len(), &sources[0]["serviceAccountToken"]["expirationSeconds"]), (3, &json!(3607)));

        let without = json!({"nodeName": "other", "automountServiceAccountToken": false});
        let (_, made) = call(&server, "POST", PODS, pod("b", without)).await;
        assert_eq!((made["spec"].get("volumes"), &made["spec"]["priority"]), (None, &json!(0)));
        for (name, bad) in [
            ("c", json!({"nodeName": "other", "priorityClassName": "none"})),
            ("d", json!({"nodeName": "other", "runtimeClassName": "none"})),
            ("e", json!({"nodeName": "other", "serviceAccountName": "none"})),
            ("f", json!({"nodeName": "other", "priority": 9})),
        ] {
            let (code, refused) = call(&server, "POST", PODS, pod(name, bad)).await;
            assert_eq!((code, refused["reason"].as_str()), (403, Some("Forbidden")), "{refused}");
        }
        // This node's own get their priority, and nothing else.
        let (_, own) = call(&server, "POST", PODS, pod("own", json!({"priorityClassName": "high"}))).await;
        assert_eq!((&own["spec"]["priority"], own["spec"].get("volumes")), (&json!(7), None));
    });
}

/// A Node is in no namespace, while the account that the token is of is in one.
#[test]
fn a_token_may_be_bound_to_a_node() {
    let server = Server::start();
    server.block_on(async {
        node(&server, "other").await;
        let accounts = "/api/v1/namespaces/default/serviceaccounts";
        call(&server, "POST", accounts, json!({"metadata": {"name": "robot"}})).await;
        let bound = json!({"kind": "Node", "apiVersion": "v1", "name": "other"});
        let asked = json!({"spec": {"boundObjectRef": bound}});
        let (code, given) = call(&server, "POST", &format!("{accounts}/robot/token"), asked).await;
        assert_eq!(code, 201, "{given}");
        let review = async || {
            let asked = json!({"spec": {"token": given["status"]["token"]}});
            call(&server, "POST", "/apis/authentication.k8s.io/v1/tokenreviews", asked).await.1["status"]
                .clone()
        };
        assert_eq!(review().await["authenticated"], true);
        call(&server, "DELETE", "/api/v1/nodes/other", Value::Null).await;
        assert_ne!(review().await["authenticated"], true);
    });
}

#[test]
fn a_token_is_bound_to_its_pod() {
    let server = Server::start();
    server.block_on(async {
        node(&server, "other").await;
        let accounts = "/api/v1/namespaces/default/serviceaccounts";
        let (_, account) = call(&server, "POST", accounts, json!({"metadata": {"name": "robot"}})).await;
        let spec = json!({"nodeName": "other", "serviceAccountName": "robot"});
        let (_, made) = call(&server, "POST", PODS, pod("web", spec)).await;
        let uid = made["metadata"]["uid"].clone();
        let path = format!("{accounts}/robot/token");
        let ask = |uid: &Value, seconds: i64| {
            json!({"spec": {"audiences": ["vault"], "expirationSeconds": seconds,
                "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": uid}}})
        };
        assert_eq!(call(&server, "POST", &path, ask(&uid, 599)).await.0, 422);
        assert_eq!(call(&server, "POST", &path, ask(&json!("x"), 600)).await.0, 409);
        let other = format!("{accounts}/default/token");
        assert_eq!(call(&server, "POST", &other, ask(&uid, 600)).await.0, 404);
        let (code, given) = call(&server, "POST", &path, ask(&uid, 600)).await;
        assert_eq!(code, 201, "{given}");
        let token = given["status"]["token"].as_str().unwrap();
        let claims: Value = {
            use base64::Engine as _;
            let part = token.split('.').nth(1).unwrap();
            serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap())
                .unwrap()
        };
        assert_eq!(claims["sub"], "system:serviceaccount:default:robot");
        let about = &claims["kubernetes.io"];
        assert_eq!(
            (&about["pod"]["uid"], &about["serviceaccount"]["uid"]),
            (&uid, &account["metadata"]["uid"])
        );
        assert_eq!((&about["node"]["name"], &about["namespace"]), (&json!("other"), &json!("default")));
        let exp = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
        assert_eq!((exp, &claims["aud"]), (600, &json!(["vault"])));

        let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
        let review = async |audience: &str| {
            let asked = json!({"spec": {"token": token, "audiences": [audience]}});
            call(&server, "POST", reviews, asked).await.1["status"].clone()
        };
        let status = review("vault").await;
        assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["vault"])));
        let groups =
            json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]);
        assert_eq!((&status["user"]["username"], &status["user"]["groups"]), (&claims["sub"], &groups));
        assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["web"]));
        assert!(review("other").await["error"].is_string());
        call(&server, "DELETE", &format!("{PODS}/web?gracePeriodSeconds=0"), Value::Null).await;
        let gone = review("vault").await;
        assert!(gone["error"].as_str().unwrap().contains("pod default/web is gone"), "{gone}");

        let access = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let may = async |user: &str, group: &str| {
            let asked = json!({"spec": {"user": user, "groups": [group], "resourceAttributes":
                {"verb": "get", "resource": "nodes", "subresource": "proxy", "name": "other"}}});
            call(&server, "POST", access, asked).await.1["status"]["allowed"].clone()
        };
        assert_eq!(
            (may("jane", "system:masters").await, may("jane", "dev").await),
            (json!(true), json!(false))
        );
    });
}

#[test]
fn evictions_and_events_come_from_others() {
    let server = Server::start();
    server.block_on(async {
        node(&server, "other").await;
        let (_, made) = call(&server, "POST", PODS, pod("web", json!({"nodeName": "other"}))).await;
        let path = format!("{PODS}/web/eviction");
        let evict = |uid: &Value| {
            json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "web"},
            "deleteOptions": {"gracePeriodSeconds": 3, "preconditions": {"uid": uid}}})
        };
        assert_eq!(call(&server, "POST", &path, evict(&json!("x"))).await.0, 409);
        assert_eq!(call(&server, "POST", &path, evict(&made["metadata"]["uid"])).await.0, 201);
        let going = get(&server, &format!("{PODS}/web")).await;
        assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 3);

        let events = "/api/v1/namespaces/default/events";
        let event = |namespace: &str| {
            json!({"metadata": {"name": "web.1"}, "reason": "Pulled", "count": 1,
            "involvedObject": {"kind": "Pod", "namespace": namespace, "name": "web"}})
        };
        assert_eq!(call(&server, "POST", events, event("other")).await.0, 422);
        assert_eq!(call(&server, "POST", events, event("default")).await.0, 201);
        let (code, counted) = strategic(&server, &format!("{events}/web.1"), json!({"count": 2})).await;
        assert_eq!((code, &counted["count"]), (200, &json!(2)));
        let about = get(&server, &format!("{events}?fieldSelector=involvedObject.name%3Dweb")).await;
        assert_eq!(names(&about), ["web.1"]);
    });
}
