//! Commands that are run to their end in one call, as probes are.

use std::time::Duration;

use berth_runtime::cgroup::Cgroups;
use berth_runtime::shim::proto::{FailureKind, MAX_OUTPUT, Ran, RunRequest};
use serde_json::json;

use crate::harness::{Pod, until};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn request(args: &[&str], timeout: Duration) -> RunRequest {
    RunRequest {
        container_id: "one".to_owned(),
        command: args.iter().map(|arg| (*arg).to_owned()).collect(),
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap(),
        output_max: 1000,
    }
}

fn script(script: &str, timeout: Duration) -> RunRequest {
    request(&["sh", "-c", script], timeout)
}

fn ran(code: i32, output: &str) -> Ran {
    Ran { code: Some(code), output: output.to_owned() }
}

/// A pod whose container has one process.
async fn sleeping() -> Pod {
    let pod = Pod::new().await;
    let mut container = pod.program("one", &["sleep", "1000"]);
    container.spec["process"]["env"] = json!(["PATH=/bin", "COLOUR=blue"]);
    pod.start(&container).await;
    pod
}

/// Waits until only the container's first process is left.
async fn until_alone(pod: &Pod) {
    let (cgroups, cgroup) = (Cgroups::detect().unwrap(), format!("{}/one", pod.cgroup));
    until("the end of what was run", || cgroups.pids(&cgroup).unwrap().len() == 1).await;
}

#[tokio::test]
async fn code_and_output() {
    let pod = sleeping().await;
    let text = "echo out; echo err >&2; echo $COLOUR; hostname; cat; exit 9";
    assert_eq!(
        pod.client.run(script(text, LONG)).await.unwrap(),
        ran(9, "out\nerr\nblue\ntest-pod\n"),
        "in the order of writing, as the container's first process would, without an input"
    );
    assert_eq!(pod.client.run(request(&["true"], LONG)).await.unwrap(), ran(0, ""));
    assert_eq!(pod.client.run(script("kill -9 $$", LONG)).await.unwrap(), ran(137, ""));
}

#[tokio::test]
async fn failures() {
    let pod = sleeping().await;
    let none = pod.client.run(request(&["nonsense"], LONG)).await.unwrap_err();
    assert_eq!(none.kind(), Some(FailureKind::StartFailed), "{none}");
    assert!(none.to_string().contains("nonsense"), "{none}");
    let elsewhere = RunRequest { container_id: "two".to_owned(), ..request(&["true"], LONG) };
    assert_eq!(pod.client.run(elsewhere).await.unwrap_err().kind(), Some(FailureKind::NotFound));
    pod.client.pause().await.unwrap();
    let paused = pod.client.run(request(&["true"], LONG)).await.unwrap_err();
    assert_eq!(paused.kind(), Some(FailureKind::Invalid), "{paused}");
}

#[tokio::test]
async fn output_has_a_limit_and_never_holds_the_command_up() {
    let pod = sleeping().await;
    // Far more than a pipe holds.
    let answer = pod.client.run(script("yes 0123456789 | head -c 3000000; exit 3", LONG)).await.unwrap();
    assert_eq!(answer.code, Some(3));
    assert_eq!(answer.output, "0123456789\n".repeat(100)[..1000]);
    // Nobody can ask for more than the shim is willing to hold.
    let greedy = RunRequest { output_max: usize::MAX, ..script("yes | head -c 3000000", LONG) };
    assert_eq!(pod.client.run(greedy).await.unwrap().output.len(), MAX_OUTPUT);
    let binary = pod.client.run(script(r"printf 'a\377b'", LONG)).await.unwrap();
    assert_eq!(binary, ran(0, "a\u{fffd}b"));
}

#[tokio::test]
async fn who_takes_too_long_is_killed_with_its_children() {
    let pod = sleeping().await;
    let hangs = script("echo begun; sleep 1000 & sleep 1000 | cat; echo never", Duration::from_millis(300));
    let answer = pod.client.run(hangs).await.unwrap();
    assert_eq!(answer, Ran { code: None, output: "begun\n".to_owned() });
    until_alone(&pod).await;
    // The container lives, and the next one has its own time.
    assert_eq!(pod.client.run(request(&["true"], LONG)).await.unwrap(), ran(0, ""));
}

#[tokio::test]
async fn what_a_command_leaves_behind_is_not_waited_for() {
    let pod = sleeping().await;
    let answer = pod.client.run(script("sleep 1000 & echo started", LONG)).await.unwrap();
    assert_eq!(answer, ran(0, "started\n"));
}

#[tokio::test]
async fn its_time_ends_also_when_nobody_waits_any_more() {
    let pod = sleeping().await;
    let (client, events) = pod.connect().await;
    let hanging = script("echo $$ >/tmp/pid; sleep 1000", Duration::from_millis(300));
    let waiting = tokio::spawn(async move { client.run(hanging).await });
    let pid = pod.rootfs().join("tmp/pid");
    until("the command", || pid.exists()).await;
    waiting.abort();
    drop(events);
    until_alone(&pod).await;
}

#[tokio::test]
async fn many_at_once_keep_their_own_times() {
    let pod = sleeping().await;
    let runs = (0..20).map(|n| {
        let client = pod.client.clone();
        tokio::spawn(async move {
            let late = n % 2 == 1;
            let (text, timeout) = if late {
                (format!("echo {n}; sleep 1000"), Duration::from_millis(200))
            } else {
                (format!("echo {n}; sleep 0.4; exit {n}"), LONG)
            };
            let answer = client.run(script(&text, timeout)).await.unwrap();
            assert_eq!(answer, Ran { code: (!late).then_some(n), output: format!("{n}\n") });
        })
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
    until_alone(&pod).await;
}

#[tokio::test]
async fn what_a_machine_refuses_is_noted_once() {
    let pod = Pod::new().await;
    let mut container = pod.program("one", &["sleep", "1000"]);
    container.spec["process"]["oomScoreAdj"] = json!(-999);
    pod.start(&container).await;
    for _ in 0..3 {
        pod.client.run(request(&["true"], LONG)).await.unwrap();
    }
    let notes = pod.notes();
    assert!(notes.matches("one: exec:").count() <= 1, "{notes}");
}

/// What is born in the container can be killed there at any moment, also while it still is a part of the shim.
#[tokio::test]
async fn a_container_that_kills_all_that_is_new_disturbs_nobody_else() {
    let pod = Pod::new().await;
    pod.start(&pod.program("one", &["sh", "-c", "while :; do kill -9 -1; done"])).await;
    pod.start(&pod.program("two", &["sleep", "1000"])).await;
    let (mut killed, mut others) = (0, 0);
    for _ in 0..3000 {
        match pod.client.run(request(&["true"], LONG)).await {
            Ok(ran) if ran.code == Some(137) => killed += 1,
            Ok(_) => others += 1,
            Err(error) => assert_eq!(error.kind(), Some(FailureKind::StartFailed), "{error}"),
        }
    }
    println!("{killed} killed, {others} others");
    assert!(killed > 100, "hardly one was killed: {killed}, {others} lived");
    let calm = RunRequest { container_id: "two".to_owned(), ..script("echo here", LONG) };
    assert_eq!(pod.client.run(calm).await.unwrap(), ran(0, "here\n"));
}
