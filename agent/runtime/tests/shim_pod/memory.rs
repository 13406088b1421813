//! Kills for want of memory, noticed when they happen.

use berth_runtime::shim::proto::RunRequest;
use serde_json::json;

use crate::harness::{Container, Pod};

fn small(pod: &Pod, script: &str) -> Container {
    let mut container = pod.container("one", script);
    // Swap would let it live longer, where there is any.
    container.spec["linux"]["resources"] = json!({"memory": {"limit": 24 << 20}});
    container
}

/// Fills memory in a child of the shell, which `tail` keeps until the end of a line that never comes. While that one is on its way out
/// the kernel may want another: of those it is not to be the shell.
const EAT: &str = "(echo 1000 >/proc/self/oom_score_adj; yes | tr -d '\\n' | tail -n 1 >/dev/null)";

#[tokio::test]
async fn a_child_that_is_killed_is_told_of_while_init_lives() {
    let mut pod = Pod::new().await;
    if v2() {
        // There a container is killed as a whole: the next test is the one that counts.
        return a_container_that_is_killed_as_a_whole(&mut pod).await;
    }
    pod.start(&small(&pod, &format!("{EAT}; echo survived; read never; sleep 1000"))).await;
    assert!(pod.oom_of("one").await >= 1);
    pod.logged("one", "survived").await;
    let list = pod.client.list().await.unwrap();
    assert_eq!(list[0].status, berth_runtime::shim::proto::Status::Running);
}

async fn a_container_that_is_killed_as_a_whole(pod: &mut Pod) {
    pod.start(&small(pod, &format!("{EAT}; echo survived; sleep 1000"))).await;
    assert!(pod.oom_of("one").await >= 1);
    let exit = pod.exit_of("one").await;
    assert!(exit.oom_killed && exit.signal == Some(9), "{exit:?}");
}

#[tokio::test]
async fn init_that_is_killed_is_told_of_before_its_exit() {
    let mut pod = Pod::new().await;
    let mut container = small(&pod, "");
    container.spec["process"]["args"] =
        json!(["/bin/sh", "-c", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"]);
    pod.start(&container).await;
    assert!(pod.oom_of("one").await >= 1);
    let exit = pod.exit_of("one").await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
}

/// A process that is being made may share the shim's memory, and on v2 the kernel kills a container with all who share that of one of
/// its processes. So it is kept from that meanwhile; what it would have done the shim does.
#[tokio::test]
async fn a_kill_while_a_process_is_made_does_not_take_the_shim_along_nor_leave_a_part() {
    let mut pod = Pod::new().await;
    // Stops whatever comes, and lets it go on when its program runs already: that has another name.
    let script = "while :; do until kill -STOP -1 2>/dev/null; do :; done; \
        for p in /proc/[0-9]*; do read name <$p/comm && [ $p != /proc/1 ] && [ $name != true ] && break 2; done; \
        kill -CONT -1; done; echo stopped $name";
    pod.start(&small(&pod, &format!("{script}; {EAT}; echo survived; sleep 1000")).found_late()).await;
    while !pod.log("one").contains("stopped") {
        let request = RunRequest {
            container_id: "one".to_owned(),
            command: vec!["true".to_owned()],
            timeout_ms: 5000,
            output_max: 100,
        };
        // Stopped before its program ran, killed with the rest, or never noticed.
        let _ = pod.client.run(request).await;
        pod.client.list().await.expect("the shim lives");
    }
    assert!(pod.oom_of("one").await >= 1);
    if v2() {
        let exit = pod.exit_of("one").await;
        assert!(exit.oom_killed && exit.signal == Some(9), "{exit:?}");
    } else {
        pod.logged("one", "survived").await;
    }
    pod.client.delete("one").await.unwrap();
}

fn v2() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}
