//! Objects over a real unix socket: reading, changing, watching.
#![allow(clippy::unwrap_used)]

mod api_support;

use api_support::{Server, ago, call, get, names, open, pod, running, text};
use berth::store::Kind;
use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";

#[test]
fn a_pod_lives_and_dies() {
    let server = Server::start();
    server.block_on(async {
        let (code, made) = call(&server, "POST", PODS, pod("web")).await;
        assert_eq!((code, made["metadata"]["namespace"].as_str()), (201, Some("default")));
        let (code, again) = call(&server, "POST", PODS, pod("web")).await;
        assert_eq!((code, again["reason"].as_str()), (409, Some("AlreadyExists")));
        let path = format!("{PODS}/web");
        assert_eq!(get(&server, &path).await, made);
        assert_eq!(get(&server, &format!("{path}/status")).await, made);

        let (code, patched) =
            call(&server, "PATCH", &path, json!({"metadata": {"labels": {"x": "y"}}})).await;
        assert_eq!(code, 200);
        assert_eq!(patched["metadata"]["labels"], json!({"app": "web", "x": "y"}));
        let (code, stale) = call(&server, "PUT", &path, made.clone()).await;
        assert_eq!((code, stale["reason"].as_str()), (409, Some("Conflict")));
        let (code, _) = call(&server, "PUT", &path, patched.clone()).await;
        assert_eq!(code, 200);
        let other = json!({"metadata": {"name": "other"}, "spec": {}});
        assert_eq!(call(&server, "PUT", &path, other).await.0, 400);

        let wrong = json!({"preconditions": {"uid": "x"}});
        let (code, refused) = call(&server, "DELETE", &path, wrong).await;
        assert_eq!((code, refused["reason"].as_str()), (409, Some("Conflict")));
        let (code, dry) = call(&server, "DELETE", &format!("{path}?dryRun=All"), Value::Null).await;
        assert_eq!((code, &dry["metadata"]["deletionTimestamp"]), (200, &Value::Null));
        let (code, going) =
            call(&server, "DELETE", &format!("{path}?gracePeriodSeconds=5"), Value::Null).await;
        assert_eq!((code, &going["metadata"]["deletionGracePeriodSeconds"]), (200, &json!(5)));
        while server.store.get(Kind::Pod, "default", "web").is_some() {
            tokio::task::yield_now().await;
        }
        let (code, gone) = call(&server, "GET", &path, Value::Null).await;
        assert_eq!((code, gone["message"].as_str()), (404, Some("pods \"web\" not found")));
        assert_eq!(gone["details"], json!({"name": "web", "kind": "pods"}));
    });
}

#[test]
fn parts_of_a_pod_have_paths_of_their_own() {
    let server = Server::start();
    server.put_pod("web", running("web"));
    server.block_on(async {
        let path = format!("{PODS}/web");
        for (sub, part) in [("", "Whole"), ("/resize", "Resize"), ("/ephemeralcontainers", "Ephemeral")] {
            let path = format!("{path}{sub}");
            // The node behind the server marks what came by a part's path.
            let mark = if sub.is_empty() { Value::Null } else { json!(part) };
            assert_eq!(get(&server, &path).await["metadata"]["name"], "web");
            for kind in ["merge-patch", "strategic-merge-patch"] {
                let head = format!("application/{kind}+json");
                let patch = json!({"metadata": {"labels": {"by": format!("{part}{kind}")}}}).to_string();
                let (code, text) = text(&server, "PATCH", &path, &[("content-type", &head)], patch).await;
                let patched: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(code, 200, "{path}: {text}");
                assert_eq!(patched["metadata"]["annotations"]["part"], mark, "{path} {kind}");
            }
            let mut pod = get(&server, &path).await;
            pod["metadata"]["labels"]["by"] = json!(format!("put{part}"));
            let (code, put) = call(&server, "PUT", &path, pod).await;
            assert_eq!((code, &put["metadata"]["annotations"]["part"]), (200, &mark), "{path}");
        }
        for sub in ["resize", "ephemeralcontainers"] {
            let (code, _) = call(&server, "DELETE", &format!("{path}/{sub}"), Value::Null).await;
            assert_eq!(code, 405);
            let (code, absent) = call(&server, "PATCH", &format!("{PODS}/none/{sub}"), json!({})).await;
            assert_eq!((code, absent["reason"].as_str()), (404, Some("NotFound")));
            assert_eq!(call(&server, "GET", &format!("/api/v1/nodes/n/{sub}"), Value::Null).await.0, 404);
        }
        let all = get(&server, "/api/v1").await;
        let known: Vec<_> = all["resources"].as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
        assert!(known.contains(&json!("pods/resize")) && known.contains(&json!("pods/ephemeralcontainers")));
    });
}

#[test]
fn conditions_of_others_are_set_in_the_status() {
    let server = Server::start();
    server.put_pod("web", running("web"));
    server.block_on(async {
        let path = format!("{PODS}/web/status");
        let head = [("content-type", "application/strategic-merge-patch+json")];
        let gate = json!({"type": "example.org/gate", "status": "True"});
        let patch = |status: Value| json!({ "status": status }).to_string();
        let (code, text_) = text(&server, "PATCH", &path, &head, patch(json!({"conditions": [gate]}))).await;
        assert_eq!(code, 200, "{text_}");
        let conditions = get(&server, &path).await["status"]["conditions"].clone();
        let types: Vec<_> = conditions.as_array().unwrap().iter().map(|c| c["type"].clone()).collect();
        assert_eq!(types, ["Ready", "example.org/gate"]);
        let (code, text_) = text(&server, "PATCH", &path, &head, patch(json!({"phase": "Failed"}))).await;
        assert_eq!(code, 422);
        let refused: Value = serde_json::from_str(&text_).unwrap();
        assert_eq!(refused["details"]["causes"][0]["field"], "status.phase");
        // A pod that comes as a whole changes nothing of its status.
        let mut pod = get(&server, &path).await;
        pod["status"]["phase"] = json!("Failed");
        assert_eq!(call(&server, "PUT", &format!("{PODS}/web"), pod).await.0, 200);
        assert_eq!(get(&server, &path).await["status"]["phase"], "Running");
    });
}

#[test]
fn bad_requests_get_a_status() {
    let server = Server::start();
    server.put_pod("web", running("web"));
    server.block_on(async {
        let json = [("content-type", "application/json")];
        for body in [
            "",
            "{",
            "[]",
            "1",
            "null",
            "{\"kind\":\"Secret\"}",
            "{\"metadata\":1}",
            "{\"metadata\":{\"name\":1}}",
            "\"\\ud800\"",
        ] {
            let (status, text) = text(&server, "POST", PODS, &json, body.to_owned()).await;
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!([400, 422].contains(&status.as_u16()), "{body}: {text}");
            assert_eq!(
                (value["kind"].as_str(), value["code"].as_u64()),
                (Some("Status"), Some(u64::from(status.as_u16())))
            );
        }
        let (code, invalid) =
            call(&server, "POST", PODS, json!({"metadata": {"name": "x"}, "spec": {}})).await;
        assert_eq!(
            (code, invalid["message"].as_str()),
            (422, Some("Pod \"x\" is invalid: spec.containers: Required value"))
        );
        assert_eq!(invalid["details"]["causes"][0]["field"], "spec.containers");
        let namespace = json!({"metadata": {"name": "x", "namespace": "other"}});
        assert_eq!(call(&server, "POST", PODS, namespace).await.0, 400);
        let big = format!("{{\"metadata\":{{\"name\":\"{}\"}}}}", "x".repeat(4 << 20));
        assert_eq!(text(&server, "POST", PODS, &json, big).await.0, 413);
        let proto = [("content-type", "application/cbor")];
        assert_eq!(text(&server, "POST", PODS, &proto, "x".into()).await.0, 415);
        for (method, path, code) in [
            ("GET", "/nothing", 404),
            ("GET", "/api/v1/widgets", 404),
            ("DELETE", "/api/v1/pods", 405),
            ("POST", "/api/v1/namespaces/default/endpoints", 405),
            ("GET", "/api/v1/pods?labelSelector=%3D", 400),
            ("GET", "/api/v1/pods?fieldSelector=x%3Dy", 400),
            ("GET", "/api/v1/pods?limit=x", 400),
            ("GET", "/api/v1/pods?continue=x", 400),
            ("GET", "/api/v1/pods?watch=1&resourceVersion=x", 400),
            ("GET", "/api/v1/namespaces/default/pods/web/log?tailLines=x", 400),
            ("GET", "/api/v1/namespaces/default/pods/web/log?container=nope", 400),
            ("GET", "/api/v1/namespaces/default/pods/web/exec?command=ls&stdout=1", 400),
            ("GET", "/api/v1/namespaces/default/pods/web/attach", 400),
            ("GET", "/api/v1/namespaces/default/pods/web/portforward?ports=80", 400),
            ("GET", "/api/v1/namespaces/default/pods/web/pause", 405),
            ("POST", "/api/v1/namespaces/default/pods/nobody/pause", 404),
            ("GET", "/api/v1/namespaces/default/pods/web/bindings", 404),
        ] {
            let (got, value) = call(&server, method, path, Value::Null).await;
            assert_eq!(got, code, "{method} {path}: {value}");
            assert_eq!(value["kind"], "Status");
        }
    });
}

#[test]
fn generated_names_and_dry_runs() {
    let server = Server::start();
    server.block_on(async {
        let generated =
            json!({"metadata": {"generateName": "job-"}, "spec": {"containers": [{"name": "a"}]}});
        let (_, made) = call(&server, "POST", PODS, generated).await;
        let name = made["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("job-") && name.len() == 9, "{name}");
        let (code, dry) = call(&server, "POST", &format!("{PODS}?dryRun=All"), pod("dry")).await;
        assert_eq!((code, dry["metadata"]["name"].as_str()), (201, Some("dry")));
        assert!(server.store.get(Kind::Pod, "default", "dry").is_none());
        assert_eq!(call(&server, "POST", &format!("{PODS}?dryRun=Some"), pod("dry")).await.0, 400);
        let maps = "/api/v1/namespaces/default/configmaps";
        let yaml = "metadata: {name: m}\ndata: {a: b}\n".to_owned();
        let (status, _) = text(&server, "POST", maps, &[("content-type", "application/yaml")], yaml).await;
        assert_eq!(status, 201);
        let (_, deleted) = call(&server, "DELETE", &format!("{maps}/m"), Value::Null).await;
        assert_eq!(
            (deleted["status"].as_str(), deleted["details"]["kind"].as_str()),
            (Some("Success"), Some("configmaps"))
        );
    });
}

#[test]
fn every_kind_of_patch() {
    let server = Server::start();
    server.put_pod("web", running("web"));
    server.block_on(async {
        let path = format!("{PODS}/web");
        let patch = async |kind: &str, body: Value| {
            let (status, text) =
                text(&server, "PATCH", &path, &[("content-type", kind)], body.to_string()).await;
            (status.as_u16(), serde_json::from_str::<Value>(&text).unwrap())
        };
        let strategic = json!({"spec": {"containers": [{"name": "main", "image": "demo:2"}]}});
        let (code, out) = patch("application/strategic-merge-patch+json", strategic).await;
        assert_eq!((code, out["spec"]["containers"].as_array().unwrap().len()), (200, 1));
        assert_eq!(out["spec"]["containers"][0]["image"], "demo:2");
        let operations = json!([{"op": "add", "path": "/metadata/annotations", "value": {"a": "b"}}]);
        assert_eq!(patch("application/json-patch+json", operations).await.0, 200);
        let failing = json!([{"op": "test", "path": "/metadata/name", "value": "x"}]);
        assert_eq!(patch("application/json-patch+json", failing).await.0, 422);
        let version = server.store.version();
        let (code, same) = patch("application/merge-patch+json", json!({})).await;
        assert_eq!((code, server.store.version()), (200, version));
        assert_eq!(same["metadata"]["annotations"], json!({"a": "b"}));
        assert_eq!(patch("text/plain", json!({})).await.0, 415);
        let wanted = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "new"},
            "spec": {"containers": [{"name": "a", "image": "i"}]}});
        let new = format!("{PODS}/new?fieldManager=test");
        let kind = [("content-type", "application/apply-patch+yaml")];
        assert_eq!(text(&server, "PATCH", &new, &kind, wanted.to_string()).await.0, 201);
        assert_eq!(text(&server, "PATCH", &new, &kind, wanted.to_string()).await.0, 200);
    });
}

#[test]
fn concurrent_patches_do_not_undo_each_other() {
    let server = Server::start();
    server.put_pod("web", running("web"));
    server.block_on(async {
        let path = format!("{PODS}/web");
        let patches = (0..20)
            .map(|n| call(&server, "PATCH", &path, json!({"metadata": {"labels": {format!("l{n}"): "x"}}})));
        for (code, _) in futures::future::join_all(patches).await {
            assert_eq!(code, 200);
        }
        let labels = get(&server, &path).await["metadata"]["labels"].as_object().unwrap().len();
        assert_eq!(labels, 21);
    });
}

#[test]
fn lists_select_and_page() {
    let server = Server::start();
    for name in ["a", "b", "c", "d", "e"] {
        server.put_pod(name, running(name));
    }
    server.store.put(Kind::Pod, "other", "z", &pod("z"));
    server.block_on(async {
        let all = get(&server, "/api/v1/pods").await;
        assert_eq!((all["kind"].as_str(), names(&all).len()), (Some("PodList"), 6));
        assert_eq!(all["metadata"]["resourceVersion"], server.store.version().to_string());
        let list = async |query: &str| names(&get(&server, &format!("{PODS}?{query}")).await);
        assert_eq!(list("labelSelector=app%20in%20(a,c)").await, ["a", "c"]);
        assert_eq!(
            list("fieldSelector=metadata.name%21%3Da,status.phase%3DRunning").await,
            ["b", "c", "d", "e"]
        );
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let page = get(&server, &format!("{PODS}?limit=2&continue={token}")).await;
            seen.extend(names(&page));
            match page["metadata"]["continue"].as_str() {
                Some(next) => token = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(seen, ["a", "b", "c", "d", "e"]);
    });
}

/// The lines of a watch.
struct Lines {
    body: Incoming,
    buffer: String,
}

impl Lines {
    async fn open(server: &Server, path: &str, accept: &str) -> Lines {
        let response = open(server, "GET", path, &[("accept", accept)], String::new()).await;
        assert_eq!(response.status(), 200);
        Lines { body: response.into_body(), buffer: String::new() }
    }

    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.buffer.split_once('\n') {
                let value = serde_json::from_str(line).unwrap();
                self.buffer = rest.to_owned();
                return Some(value);
            }
            let data = self.body.frame().await?.unwrap().into_data().unwrap();
            self.buffer.push_str(std::str::from_utf8(&data).unwrap());
        }
    }

    async fn event(&mut self) -> String {
        let event = self.next().await.unwrap();
        format!(
            "{} {}",
            event["type"].as_str().unwrap(),
            event["object"]["metadata"]["name"].as_str().unwrap_or("-")
        )
    }
}

#[test]
fn watches() {
    let server = Server::start();
    server.put_pod("a", running("a"));
    server.block_on(async {
        let version = get(&server, PODS).await["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        let mut from = Lines::open(&server, &format!("{PODS}?watch=1&resourceVersion={version}"), "").await;
        let mut all = Lines::open(&server, "/api/v1/pods?watch=true", "").await;
        let query =
            "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        let mut list = Lines::open(&server, &format!("{PODS}?{query}"), "").await;
        let mut labelled =
            Lines::open(&server, &format!("{PODS}?watch=1&labelSelector=on&resourceVersion={version}"), "")
                .await;
        assert_eq!(all.event().await, "ADDED a");
        assert_eq!(list.event().await, "ADDED a");
        let bookmark = list.next().await.unwrap();
        assert_eq!(bookmark["type"], "BOOKMARK");
        assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
        assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], version);

        call(&server, "POST", PODS, pod("b")).await;
        server.store.put(Kind::Pod, "other", "z", &pod("z"));
        call(&server, "PATCH", &format!("{PODS}/b"), json!({"metadata": {"labels": {"on": "1"}}})).await;
        call(&server, "PATCH", &format!("{PODS}/b"), json!({"metadata": {"labels": {"on": null}}})).await;
        server.store.delete(Kind::Pod, "default", "b");
        for want in ["ADDED b", "MODIFIED b", "MODIFIED b", "DELETED b"] {
            assert_eq!(from.event().await, want);
            assert_eq!(list.event().await, want);
        }
        for want in ["ADDED b", "ADDED z", "MODIFIED b", "MODIFIED b", "DELETED b"] {
            assert_eq!(all.event().await, want);
        }
        // An object that begins and ceases to match is added and deleted for this watcher.
        assert_eq!(labelled.event().await, "ADDED b");
        assert_eq!(labelled.event().await, "DELETED b");
    });
}

#[test]
fn watches_end_and_expire() {
    let server = Server::start();
    server.block_on(async {
        let version = server.store.version();
        let path = format!("{PODS}?watch=1&timeoutSeconds=1&allowWatchBookmarks=1&resourceVersion={version}");
        let mut short = Lines::open(&server, &path, "").await;
        assert_eq!(short.next().await.unwrap()["type"], "BOOKMARK");
        assert_eq!(short.next().await, None);
        let mut old = Lines::open(&server, &format!("{PODS}?watch=1&resourceVersion=1"), "").await;
        let error = old.next().await.unwrap();
        assert_eq!((error["type"].as_str(), error["object"]["code"].as_u64()), (Some("ERROR"), Some(410)));
        assert_eq!(error["object"]["reason"], "Expired");
    });
}

#[test]
fn tables() {
    let server = Server::start();
    server.put_pod("a", running("a"));
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    server.block_on(async {
        let (_, body) = text(&server, "GET", PODS, &[("accept", table)], String::new()).await;
        let list: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (list["kind"].as_str(), list["apiVersion"].as_str()),
            (Some("Table"), Some("meta.k8s.io/v1"))
        );
        let cells = json!(["a", "1/1", "Running", "0", "3d", "10.85.0.2", "node-1", "<none>", "<none>"]);
        assert_eq!(list["rows"][0]["cells"], cells);
        assert_eq!(list["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(list["rows"][0]["object"]["metadata"]["name"], "a");
        let version = list["metadata"]["resourceVersion"].as_str().unwrap();
        let mut watch =
            Lines::open(&server, &format!("{PODS}?watch=1&resourceVersion={version}"), table).await;
        server.put_pod("b", running("b"));
        server.put_pod("c", running("c"));
        let first = watch.next().await.unwrap()["object"].take();
        assert_eq!(
            (first["kind"].as_str(), first["rows"][0]["cells"][0].as_str()),
            (Some("Table"), Some("b"))
        );
        assert_eq!(first["columnDefinitions"].as_array().unwrap().len(), 9);
        let second = watch.next().await.unwrap();
        assert_eq!(second["object"]["columnDefinitions"], json!([]));
    });
}

#[test]
fn discovery() {
    let server = Server::start();
    server.block_on(async {
        assert_eq!(get(&server, "/api").await["versions"], json!(["v1"]));
        let groups = get(&server, "/apis").await;
        assert_eq!(groups["kind"], "APIGroupList");
        let group = groups["groups"].as_array().unwrap().iter().find(|g| g["name"] == "discovery.k8s.io");
        assert_eq!(group.unwrap()["preferredVersion"]["groupVersion"], "discovery.k8s.io/v1");
        assert_eq!(get(&server, "/apis/discovery.k8s.io").await["kind"], "APIGroup");
        let slices = get(&server, "/apis/discovery.k8s.io/v1").await;
        assert_eq!(slices["groupVersion"], "discovery.k8s.io/v1");
        assert_eq!(slices["resources"][0]["verbs"], json!(["get", "list", "watch"]));
        assert_eq!(call(&server, "GET", "/apis/unknown.k8s.io", Value::Null).await.0, 404);
        let resources = get(&server, "/api/v1").await;
        let all = resources["resources"].as_array().unwrap();
        assert!(all.iter().any(|r| r["name"] == "pods/exec"));
        assert!(all.iter().any(|r| r["name"] == "pods" && r["shortNames"] == json!(["po"])));
        let aggregated =
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        let (_, named) = text(&server, "GET", "/apis", &[("accept", aggregated)], String::new()).await;
        let named: Value = serde_json::from_str(&named).unwrap();
        let items = named["items"].as_array().unwrap();
        let group = items.iter().find(|group| group["metadata"]["name"] == "discovery.k8s.io").unwrap();
        let kinds = &group["versions"][0]["resources"];
        let of = json!({"group": "discovery.k8s.io", "version": "v1", "kind": "EndpointSlice"});
        assert!(kinds.as_array().unwrap().iter().any(|kind| kind["responseKind"] == of), "{named}");
        let response = open(&server, "GET", "/api", &[("accept", aggregated)], String::new()).await;
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert_eq!(kind, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
        assert_eq!(get(&server, "/version").await["major"], "1");
        for path in ["/healthz", "/readyz", "/livez"] {
            assert_eq!(
                text(&server, "GET", path, &[], String::new()).await,
                (StatusCode::OK, "ok".to_owned())
            );
        }
        assert_eq!(
            get(&server, "/openapi/v3").await["paths"]["api/v1"]["serverRelativeURL"]
                .as_str()
                .map(|s| &s[..19]),
            Some("/openapi/v3/api/v1?")
        );
    });
}

#[test]
fn events_come_in_the_order_of_time() {
    let server = Server::start();
    for (name, seconds) in [("x", 100), ("y", 300), ("z", 200)] {
        let event = json!({"involvedObject": {"kind": "Pod", "name": "web", "uid": "u"}, "reason": name, "message": "m\n",
            "type": "Normal", "lastTimestamp": ago(seconds), "count": 1});
        server.store.put(Kind::Event, "default", name, &event);
    }
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    server.block_on(async {
        let path = "/api/v1/namespaces/default/events?fieldSelector=involvedObject.uid%3Du";
        let (_, body) = text(&server, "GET", path, &[("accept", table)], String::new()).await;
        let list: Value = serde_json::from_str(&body).unwrap();
        let reasons: Vec<&Value> = list["rows"].as_array().unwrap().iter().map(|r| &r["cells"][2]).collect();
        assert_eq!(reasons, ["y", "z", "x"]);
    });
}
