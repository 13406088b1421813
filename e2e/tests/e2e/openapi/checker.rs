//! Tests of the checker: what it must let pass, and what it must complain of.

use serde_json::{Value, json};

use super::recorder::{Findings, check, compare};

/// An exchange as the proxy writes it down: what was asked, and the answer's code and text.
struct Said {
    method: &'static str,
    target: String,
    asked: Vec<(&'static str, &'static str)>,
    body: String,
    code: u16,
    answer: String,
}

impl Said {
    fn new(method: &'static str, target: &str, code: u16, answer: impl ToString) -> Self {
        let asked = vec![("User-Agent", "berth/1"), ("Accept", "application/json")];
        let answer = answer.to_string();
        Self { method, target: target.to_owned(), asked, body: String::new(), code, answer }
    }

    fn body(mut self, media: &'static str, body: impl ToString) -> Self {
        self.asked.push(("Content-Type", media));
        self.body = body.to_string();
        self
    }

    fn coded(mut self, code: u16) -> Self {
        self.code = code;
        self
    }

    fn lines(&self, id: usize) -> String {
        let asked =
            json!({"method": self.method, "target": self.target, "headers": self.asked, "body": self.body});
        let answer = json!({"status": self.code, "headers": [["Content-Type", "application/json"]]});
        [("request", asked), ("answer", answer), ("data", json!(self.answer)), ("end", json!(true))]
            .map(|(what, value)| format!("{}\n", json!({"id": id, what: value})))
            .concat()
    }
}

fn findings(all: &[Said], flags: &[&str]) -> Findings {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text: String = all.iter().enumerate().map(|(id, said)| said.lines(id)).collect();
    std::fs::write(file.path(), text).unwrap();
    check(file.path(), flags)
}

const PODS: &str = "/api/v1/namespaces/a/pods";
const POD: &str = "/api/v1/namespaces/a/pods/x";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// A pod as a server gives it out.
fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "x", "namespace": "a", "uid": "7b0d8b58-4a9e-4f0e-9a0b-2f6d3f6f2f10", "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1},
        "spec": {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "securityContext": {},
            "terminationGracePeriodSeconds": 30, "enableServiceLinks": true,
            "containers": [{"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File"}]},
        "status": {"phase": "Pending", "qosClass": "BestEffort"},
    })
}

/// The same with one value elsewhere; null takes it away.
fn pod_with(pointer: &str, value: Value) -> Value {
    let mut pod = pod();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = pod.pointer_mut(parent).unwrap();
    match value {
        Value::Null => drop(parent.as_object_mut().unwrap().remove(field)),
        value => parent[field] = value,
    }
    pod
}

fn status(code: u16, reason: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": "no", "reason": reason, "code": code})
}

fn event(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn bookmark(annotations: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"resourceVersion": "9", "annotations": annotations}})
}

const STREAM: &str =
    "?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";

#[test]
fn what_kubernetes_says_passes() {
    let list = json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "8"}, "items": [pod()]});
    let end = bookmark(json!({"k8s.io/initial-events-end": "true"}));
    let stream = [
        event("ADDED", &pod()),
        event("BOOKMARK", &end),
        event("MODIFIED", &pod_with("/metadata/resourceVersion", json!("12"))),
    ];
    let patch = json!({"status": {"$setElementOrder/conditions": [{"type": "Ready"}], "conditions": [{"type": "Ready", "status": "True"}]},
        "metadata": {"$deleteFromPrimitiveList/finalizers": ["f"], "annotations": {"gone": null}}});
    let operations = json!([{"op": "add", "path": "/metadata/labels/a", "value": "b"}, {"op": "remove", "path": "/spec/x"}]);
    let new = json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let all = [
        Said::new("GET", POD, 200, pod()),
        Said::new("GET", &format!("{PODS}?limit=5&labelSelector=a%3Db"), 200, list),
        Said::new("GET", &format!("{PODS}{STREAM}"), 200, stream.concat()),
        Said::new("POST", PODS, 201, pod()).body("application/json", new),
        Said::new("PATCH", &format!("{POD}/status"), 200, pod()).body(STRATEGIC, patch),
        Said::new("PATCH", POD, 200, pod()).body("application/json-patch+json", operations),
        Said::new("DELETE", POD, 200, pod()).body("application/json", json!({"gracePeriodSeconds": 0})),
        Said::new("GET", POD, 404, status(404, "NotFound")),
    ];
    let findings = findings(&all, &[]);
    findings.assert_good(&[]);
    findings.assert_seen(&["berth watch /api/v1/namespaces/{namespace}/pods"]);
}

/// Each of these is complained of.
fn assert_complaints(flags: &[&str], cases: &[(Said, &str)]) {
    for (said, complaint) in cases {
        let found = findings(std::slice::from_ref(said), flags).complaints;
        assert!(found.keys().any(|one| one.contains(complaint)), "no {complaint:?} among {found:#?}");
    }
}

/// A POST of a pod.
fn sent(body: Value) -> Said {
    Said::new("POST", PODS, 201, pod()).body("application/json", body)
}

fn container(fields: Value) -> Value {
    json!({"spec": {"containers": [fields]}})
}

fn patched(media: &'static str, body: Value) -> Said {
    Said::new("PATCH", POD, 200, pod()).body(media, body)
}

/// A GET of the pod with one value elsewhere.
fn got(pointer: &str, value: Value) -> Said {
    Said::new("GET", POD, 200, pod_with(pointer, value))
}

fn watched(text: String) -> Said {
    Said::new("GET", &format!("{PODS}{STREAM}"), 200, text)
}

/// The checker is checked itself: by an implementation of JSON Schema that others have written.
#[test]
fn what_jsonschema_finds_the_checker_finds() {
    let judged = compare("io.k8s.api.core.v1.Pod", &pod());
    assert_eq!(judged["passed"], json!([]));
    let count = |field: &str| judged[field].as_u64().unwrap();
    assert!(count("wrong") > 50 && count("tried") > count("wrong"), "{judged}");
}

#[test]
fn paths_methods_parameters_and_types_are_checked() {
    assert_complaints(
        &[],
        &[
            (Said::new("GET", "/api/v1/namespaces/a/pod/x", 200, pod()), "Kubernetes has no such path"),
            (Said::new("POST", POD, 200, pod()), "Kubernetes has no such method there"),
            (
                Said::new("GET", &format!("{POD}?watching=1"), 200, pod()),
                "request: unknown parameter watching=1",
            ),
            (
                Said::new("GET", &format!("{PODS}?limit=many"), 404, status(404, "NotFound")),
                "parameter limit=many: no number",
            ),
            (
                Said::new("DELETE", &format!("{POD}?dryRun=yes"), 200, pod()),
                "parameter dryRun=yes: none of ['All']",
            ),
            (
                Said::new(
                    "GET",
                    &format!("{PODS}?fieldSelector=spec.color%3Dred"),
                    404,
                    status(404, "NotFound"),
                ),
                "no selector for the field spec.color of pods",
            ),
            (
                Said::new("GET", &format!("{PODS}?watch=1&sendInitialEvents=true"), 200, ""),
                "sendInitialEvents without resourceVersionMatch=NotOlderThan",
            ),
            (patched("application/json", json!({})), "application/json is no patch"),
            (
                Said::new("POST", PODS, 201, pod()).body("text/html", "<p>"),
                "request: a body of the type 'text/html'",
            ),
        ],
    );
}

#[test]
fn bodies_are_checked() {
    let lease = json!({"spec": {"renewTime": "2026-01-01T00:00:00Z"}});
    assert_complaints(
        &[],
        &[
            (
                sent(json!({"spec": {"containers": [{"name": "c"}], "nodename": "n"}})),
                "request: spec.nodename: unknown field",
            ),
            (sent(json!({"spec": {}})), "request: spec.containers: missing"),
            (sent(container(json!({"name": 3}))), "request: spec.containers[0].name: 3 is no string"),
            (
                sent(container(json!({"name": "c", "resources": {"limits": {"cpu": "1 core"}}}))),
                "spec.containers[0].resources.limits['cpu']: '1 core' is no Quantity",
            ),
            (
                sent(container(json!({"name": "c", "ports": [{"containerPort": 4_294_967_296_u64}]}))),
                "containerPort: 4294967296 is no int32",
            ),
            (
                sent(json!({"metadata": {"resourceVersion": "7"}, "spec": {"containers": []}})),
                "metadata.resourceVersion: set on an object to be created",
            ),
            (
                sent(json!({"kind": "Node", "apiVersion": "v1", "spec": {"containers": []}})),
                "request: kind: 'Node' is none of ['Pod']",
            ),
            (
                Said::new(
                    "PUT",
                    "/apis/coordination.k8s.io/v1/namespaces/a/leases/x",
                    409,
                    status(409, "Conflict"),
                )
                .body("application/json", lease.clone()),
                "metadata.resourceVersion: must be specified for an update of a Lease",
            ),
            (
                Said::new(
                    "PUT",
                    "/apis/coordination.k8s.io/v1/namespaces/a/leases/x",
                    409,
                    status(409, "Conflict"),
                )
                .body("application/json", lease),
                "spec.renewTime: '2026-01-01T00:00:00Z' is no MicroTime",
            ),
        ],
    );
}

#[test]
fn patches_are_checked() {
    assert_complaints(
        &[],
        &[
            (patched(MERGE, json!({"spec": {"nodename": "n"}})), "request: spec.nodename: unknown field"),
            (patched(MERGE, json!({"$patch": "replace"})), "request: $patch: unknown field"),
            (
                patched(MERGE, json!({"spec": {"containers": [{"image": "i"}]}})),
                "request: spec.containers[0].name: missing",
            ),
            (
                patched(STRATEGIC, json!({"spec": {"containers": [{"image": "i"}]}})),
                "spec.containers[0]: without name, by which it is merged",
            ),
            (
                patched(STRATEGIC, json!({"spec": {"$setElementOrder/colors": []}})),
                "spec.$setElementOrder/colors: no directive for a list that is merged",
            ),
            (
                patched("application/json-patch+json", json!([{"op": "add", "path": "/a"}])),
                "[0]: add has the fields ['op', 'path']",
            ),
            (patched("application/apply-patch+yaml", json!({})), "server-side apply without fieldManager"),
        ],
    );
}

#[test]
fn answers_are_checked() {
    assert_complaints(
        &[],
        &[
            (Said::new("GET", POD, 202, pod()), "answer: the code 202"),
            (sent(json!({"spec": {"containers": []}})).coded(200), "answer: the code 200"),
            (got("/kind", json!("Node")), "answer: : is Node of 'v1', not Pod"),
            (got("/metadata/uid", Value::Null), "answer: metadata.uid: missing"),
            (
                got("/metadata/creationTimestamp", json!("today")),
                "metadata.creationTimestamp: 'today' is no Time",
            ),
            (got("/metadata/name", json!("y")), "metadata.name: 'y' is not the path's"),
            (got("/status/phases", json!("Running")), "answer: status.phases: unknown field"),
            (got("/spec/schedulerName", Value::Null), "spec.schedulerName: missing, which servers fill in"),
            (
                got("/status/podIPs", json!([{"ip": "1.1.1.1"}, {"ip": "1.1.1.1"}])),
                "status.podIPs: more than one item",
            ),
            (
                Said::new(
                    "GET",
                    PODS,
                    200,
                    json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": []}),
                ),
                "answer: metadata.resourceVersion: missing",
            ),
            (
                Said::new(
                    "DELETE",
                    POD,
                    200,
                    json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}),
                ),
                "a Status, not the Pod that was deleted",
            ),
            (
                Said::new("GET", POD, 404, status(403, "Forbidden")),
                "code: 403 in the body, 404 in the answer",
            ),
            (Said::new("GET", POD, 409, status(409, "Because")), "reason: 'Because' does not go with 409"),
            (Said::new("GET", POD, 404, "not found"), "answer: no JSON"),
        ],
    );
}

#[test]
fn watches_are_checked() {
    let end = event("BOOKMARK", &bookmark(json!({"k8s.io/initial-events-end": "true"})));
    assert_complaints(
        &[],
        &[
            (watched(event("CHANGED", &pod()) + &end), "event 0 CHANGED : no event"),
            (
                watched(event("ADDED", &json!({"apiVersion": "v1", "kind": "Node"})) + &end),
                "is Node of 'v1', not Pod",
            ),
            (
                watched(event("ADDED", &pod_with("/spec/color", json!("red"))) + &end),
                "event 0 ADDED .spec.color: unknown field",
            ),
            (watched(event("ADDED", &pod())), "no bookmark tells of the end of the initial events"),
            (watched(end.clone() + &event("MODIFIED", &pod())), "version 7 after 9"),
            (
                watched(end.clone() + &event("ERROR", &status(410, "Invalid"))),
                "reason: 'Invalid' does not go with 410",
            ),
            (watched(end + "{\"type\": \"ADD"), "the watch ends within a line"),
        ],
    );
}

#[test]
fn discovery_is_checked() {
    assert_complaints(
        &[],
        &[(
            Said::new(
                "GET",
                "/api/v1",
                200,
                json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [{"name": "pods/pause",
            "singularName": "", "namespaced": true, "kind": "Pod", "verbs": ["create"]}]}),
            ),
            "discovery offers create of pods/pause",
        )],
    );
}

#[test]
fn a_nodes_own_api_is_checked() {
    let time = "2026-01-01T00:00:00Z";
    let summary = |cpu: Value| json!({"node": {"nodeName": "n", "startTime": time, "cpu": cpu}, "pods": []});
    let list = |pod| json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": [pod]});
    let good = [
        Said::new("GET", "/pods", 200, list(pod_with("/metadata/resourceVersion", Value::Null))),
        Said::new("GET", "/stats/summary", 200, summary(json!({"time": time, "usageNanoCores": 1}))),
    ];
    findings(&good, &["--node"]).assert_good(&[]);
    let cases = [
        (Said::new("GET", "/pod", 404, ""), "Kubernetes has no such path"),
        (
            Said::new("GET", "/pods", 200, list(pod_with("/spec/color", json!("red")))),
            "items[0].spec.color: unknown field",
        ),
        (
            Said::new("GET", "/stats/summary", 200, summary(json!({"time": time, "cores": 1}))),
            "node.cpu.cores: unknown field",
        ),
        (
            Said::new("GET", "/stats/summary", 200, summary(json!({"usageNanoCores": 1}))),
            "node.cpu.time: missing",
        ),
        (
            Said::new("GET", "/stats/summary", 200, summary(json!({"time": time, "usageNanoCores": -1}))),
            "-1 is no uint64",
        ),
    ];
    assert_complaints(&["--node"], &cases);
}
