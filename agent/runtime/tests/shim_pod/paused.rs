//! A pod that is frozen and goes on.

use std::time::Duration;

use berth_runtime::shim::proto::{ExecRequest, FailureKind};
use serde_json::json;

use crate::harness::{Pod, until};

fn ticks(pod: &Pod, name: &str) -> usize {
    pod.log(name).lines().count()
}

#[tokio::test]
async fn nothing_runs_while_it_is_paused() {
    let pod = Pod::new().await;
    for name in ["one", "two"] {
        pod.start(&pod.container(name, "while :; do echo tick; sleep 0.01; done")).await;
        pod.logged(name, "tick").await;
    }
    pod.client.pause().await.unwrap();
    // Twice is once.
    pod.client.pause().await.unwrap();
    assert!(pod.client.list().await.unwrap().iter().all(|state| state.paused));
    // What was written before is in the log after one more turn of the shim's loop.
    pod.client.list().await.unwrap();
    let before = (ticks(&pod, "one"), ticks(&pod, "two"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((ticks(&pod, "one"), ticks(&pod, "two")), before);
    // An exec would be frozen before it could say how it went.
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"], "env": ["PATH=/bin"]});
    let process = serde_json::from_value(process).unwrap();
    let request = ExecRequest { container_id: "one".to_owned(), process, tty: false, stdin: false };
    let refused = pod.client.exec(request.clone()).await.unwrap_err();
    assert_eq!((refused.kind(), refused.to_string().contains("paused")), (Some(FailureKind::Invalid), true));
    pod.client.resume().await.unwrap();
    assert!(pod.client.list().await.unwrap().iter().all(|state| !state.paused));
    until("both tick again", || ticks(&pod, "one") > before.0 && ticks(&pod, "two") > before.1).await;
    let exec = pod.client.exec(request).await.unwrap();
    assert_eq!(pod.client.wait_exec(exec.exec_id).await.unwrap(), 0);
}

#[tokio::test]
async fn a_paused_container_can_be_stopped_and_deleted() {
    let mut pod = Pod::new().await;
    pod.start(&pod.container("polite", "trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done")).await;
    pod.start(&pod.container("killed", "echo up; sleep 1000")).await;
    pod.start(&pod.container("deleted", "echo up; sleep 1000")).await;
    for name in ["polite", "killed", "deleted"] {
        pod.logged(name, "up").await;
    }
    pod.client.pause().await.unwrap();
    pod.client.kill("polite", libc::SIGTERM, false).await.unwrap();
    assert_eq!(pod.exit_of("polite").await.code, 5);
    pod.client.kill("killed", libc::SIGKILL, true).await.unwrap();
    assert_eq!(pod.exit_of("killed").await.code, 137);
    pod.client.delete("deleted").await.unwrap();
    // And the whole of it.
    pod.start(&pod.container("last", "sleep 1000")).await;
    pod.client.pause().await.unwrap();
    pod.client.shutdown().await.unwrap();
}
