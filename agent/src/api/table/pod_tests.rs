#![allow(clippy::unwrap_used)]
use super::*;

fn pod(spec: &Value, status: &Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec, "status": status})).unwrap()
}

fn container(name: &str, restarts: i32, ready: bool, state: &Value) -> Value {
    json!({"name": name, "image": "i", "imageID": "", "restartCount": restarts, "ready": ready, "state": state})
}

fn show(pod: &Pod) -> String {
    let s = summary(pod);
    format!("{}/{} {} {}", s.ready, s.total, s.status, s.restarts)
}

fn one(phase: &str, ready: bool, state: &Value) -> String {
    let status = json!({"phase": phase, "containerStatuses": [container("a", 2, ready, state)]});
    show(&pod(&json!({"containers": [{"name": "a"}]}), &status))
}

#[test]
fn one_container() {
    assert_eq!(one("Running", true, &json!({"running": {}})), "1/1 Running 2");
    assert_eq!(one("Running", false, &json!({"running": {}})), "0/1 Running 2");
    assert_eq!(
        one("Running", false, &json!({"waiting": {"reason": "CrashLoopBackOff"}})),
        "0/1 CrashLoopBackOff 2"
    );
    assert_eq!(
        one("Succeeded", false, &json!({"terminated": {"exitCode": 0, "reason": "Completed"}})),
        "0/1 Completed 2"
    );
    assert_eq!(
        one("Failed", false, &json!({"terminated": {"exitCode": 137, "signal": 9}})),
        "0/1 Signal:9 2"
    );
    assert_eq!(one("Failed", false, &json!({"terminated": {"exitCode": 3}})), "0/1 ExitCode:3 2");
    assert_eq!(
        show(&pod(&json!({"containers": [{"name": "a"}]}), &json!({"phase": "Pending"}))),
        "0/1 Pending 0"
    );
    let evicted = json!({"phase": "Failed", "reason": "Evicted"});
    assert_eq!(show(&pod(&json!({"containers": [{"name": "a"}]}), &evicted)), "0/1 Evicted 0");
}

#[test]
fn init_containers_first() {
    let spec = json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
    let status = |i: Value, j: Value| {
        let wait = json!({"waiting": {"reason": "PodInitializing"}});
        json!({"phase": "Pending", "initContainerStatuses": [container("i", 0, false, &i), container("j", 1, false, &j)],
            "containerStatuses": [container("a", 0, false, &wait)]})
    };
    let done = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
    let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
    assert_eq!(
        show(&pod(&spec, &status(json!({"running": {}}), waiting("PodInitializing")))),
        "0/1 Init:0/2 0"
    );
    assert_eq!(show(&pod(&spec, &status(done.clone(), json!({"running": {}})))), "0/1 Init:1/2 1");
    assert_eq!(
        show(&pod(&spec, &status(done.clone(), waiting("CrashLoopBackOff")))),
        "0/1 Init:CrashLoopBackOff 1"
    );
    let failed = json!({"terminated": {"exitCode": 1, "reason": "Error"}});
    assert_eq!(show(&pod(&spec, &status(done.clone(), failed))), "0/1 Init:Error 1");
    assert_eq!(
        show(&pod(&spec, &status(done.clone(), json!({"terminated": {"exitCode": 4}})))),
        "0/1 Init:ExitCode:4 1"
    );
    assert_eq!(show(&pod(&spec, &status(done.clone(), done))), "0/1 PodInitializing 0");
}

#[test]
fn sidecars_count_as_containers() {
    let spec =
        json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]});
    let mut sidecar = container("s", 3, true, &json!({"running": {}}));
    sidecar["started"] = json!(true);
    sidecar["lastState"] = json!({"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:00:00Z"}});
    let status = json!({"phase": "Running", "initContainerStatuses": [sidecar],
        "containerStatuses": [container("a", 1, true, &json!({"running": {}}))]});
    let pod = pod(&spec, &status);
    assert_eq!(show(&pod), "2/2 Running 4");
    assert_eq!(summary(&pod).last_restart, Some("2026-01-01T00:00:00Z".parse().unwrap()));
}

#[test]
fn one_done_one_running() {
    let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let done = container("a", 0, false, &json!({"terminated": {"exitCode": 0, "reason": "Completed"}}));
    let run = container("b", 0, true, &json!({"running": {}}));
    let mut status = json!({"phase": "Running", "containerStatuses": [done, run]});
    assert_eq!(show(&pod(&spec, &status)), "1/2 NotReady 0");
    status["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    assert_eq!(show(&pod(&spec, &status)), "1/2 Running 0");
}

#[test]
fn deletion_wins() {
    let mut going = pod(&json!({"containers": [{"name": "a"}]}), &json!({"phase": "Running"}));
    going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    assert_eq!(summary(&going).status, "Terminating");
    going.status.as_mut().unwrap().phase = Some("Failed".into());
    assert_eq!(summary(&going).status, "Failed");
}

#[test]
fn wide_cells() {
    let status = json!({"phase": "Running", "podIP": "10.85.0.2"});
    let cells = cells(&pod(&json!({"containers": [{"name": "a"}], "nodeName": "n"}), &status));
    let texts: Vec<&str> = cells.iter().map(|c| c.as_str().unwrap()).collect();
    assert_eq!(texts, ["p", "0/1", "Running", "0", "<unknown>", "10.85.0.2", "n", "<none>", "<none>"]);
    assert_eq!(texts.len(), COLUMNS.len());
}
