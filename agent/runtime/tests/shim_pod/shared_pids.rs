//! One PID namespace for all containers of a pod.

use berth_runtime::shim::proto::ExecRequest;
use serde_json::json;

use crate::harness::{Container, PATIENCE, Pod, exists, until};

fn shared(pod: &Pod, name: &str, script: &str) -> Container {
    let mut container = pod.container(name, script);
    container.request.pod_pids = true;
    container
}

fn beside(pod: &Pod, name: &str, script: &str, target: &str) -> Container {
    let mut container = pod.container(name, script);
    container.request.pids_of = Some(target.to_owned());
    container
}

/// The process ids below another one.
fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn pod_init(pod: &Pod) -> i32 {
    children(pod.shim.pid).into_iter().find(|pid| comm(*pid) == "berth-pod").expect("the pod's PID 1")
}

#[tokio::test]
async fn containers_see_each_other_and_pid_1_is_neither() {
    let mut pod = Pod::new().await;
    pod.start(&shared(&pod, "one", "sleep 1234")).await;
    let seen = shared(&pod, "two", "ps -o pid,args; echo me $$; kill -0 1; exit 0");
    let (exit, log) = pod.run(&seen).await;
    assert_eq!(exit.code, 0, "{log}");
    assert!(log.contains("sleep 1234"), "{log}");
    assert!(!log.contains("me 1\n"), "{log}");
    // TERM has its default effect on a program that is not PID 1.
    pod.client.kill("one", libc::SIGTERM, false).await.unwrap();
    let exit = pod.exit_of("one").await;
    assert_eq!((exit.code, exit.signal), (143, Some(15)));
    // The end of every container is not the end of the namespace.
    let namespace = |pid| std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    let init = pod_init(&pod);
    let before = namespace(init);
    let third = shared(&pod, "three", "sleep 1000");
    pod.start(&third).await;
    let list = pod.client.list().await.unwrap();
    let pid = list.iter().find(|state| state.id == "three").unwrap().pid;
    assert_eq!(namespace(pid), before);
}

#[tokio::test]
async fn a_container_can_see_the_processes_of_one_other_and_ends_with_it() {
    let mut pod = Pod::new().await;
    pod.start(&pod.container("one", "sleep 1234")).await;
    pod.start(&pod.container("two", "sleep 4321")).await;
    let looker = beside(&pod, "looker", "ps -o args", "one");
    let stayer = beside(&pod, "stayer", "sleep 1000", "one");
    let lost = beside(&pod, "lost", "true", "nobody");
    let (exit, log) = pod.run(&looker).await;
    assert_eq!(exit.code, 0, "{log}");
    assert!(log.contains("sleep 1234") && !log.contains("sleep 4321"), "{log}");
    let error = pod.client.create(lost.request).await.unwrap_err();
    assert!(error.to_string().contains("nobody"), "{error}");
    pod.start(&stayer).await;
    pod.client.kill("one", libc::SIGKILL, false).await.unwrap();
    // Its first process can go only when all others of its namespace have gone (pid_namespaces(7)).
    assert_eq!(pod.exit_of("stayer").await.code, 137);
    assert_eq!(pod.exit_of("one").await.code, 137);
    let late = beside(&pod, "late", "true", "one");
    let error = pod.client.create(late.request).await.unwrap_err();
    assert!(error.to_string().contains("container one is not running"), "{error}");
}

#[tokio::test]
async fn orphans_are_reaped_and_die_with_their_container() {
    let pod = Pod::new().await;
    // The middle shell ends at once: its child is an orphan, which ends and must not stay as a zombie.
    let script = "sh -c 'setsid sleep 0.1 & exit 0'; sh -c 'setsid sleep 5678 & exit 0'; echo up; sleep 1000";
    pod.start(&shared(&pod, "one", script)).await;
    pod.logged("one", "up").await;
    let init = pod_init(&pod);
    until("only the long orphan is left", || children(init).len() == 1).await;
    let orphan = children(init)[0];
    assert_eq!(comm(orphan), "sleep");
    pod.client.delete("one").await.unwrap();
    until("the orphan is gone with its container", || !exists(orphan)).await;
    assert!(exists(init));
}

#[tokio::test]
async fn pid_1_has_nothing_worth_having() {
    let mut pod = Pod::new().await;
    let mut nosy = shared(&pod, "one", "ls -A /proc/1/root; ls /proc/1/fd; cat /proc/1/status; echo done");
    nosy.spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_SYS_PTRACE"], "effective": ["CAP_SYS_PTRACE"], "permitted": ["CAP_SYS_PTRACE"],
    });
    let (exit, log) = pod.run(&nosy).await;
    assert_eq!(exit.code, 0);
    let (listed, rest) = log.split_once("Name:").unwrap();
    // No file of the host, no descriptor.
    assert_eq!(listed.trim(), "");
    let field = |name: &str| {
        let line = rest.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), ["65535"; 4]);
    assert_eq!(field("CapPrm:"), ["0000000000000000"]);
    assert_eq!(field("NoNewPrivs:"), ["1"]);
}

#[tokio::test]
async fn exec_is_in_it_and_it_ends_with_the_shim() {
    let pod = Pod::new().await;
    pod.start(&shared(&pod, "one", "sleep 1000")).await;
    pod.start(&shared(&pod, "two", "sleep 4321")).await;
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
        "args": ["sh", "-c", "ps | grep -q 'sleep 4321'"]});
    let process = serde_json::from_value(process).unwrap();
    let request = ExecRequest { container_id: "one".to_owned(), process, tty: false, stdin: false };
    let exec = pod.client.exec(request).await.unwrap();
    let code = tokio::time::timeout(PATIENCE, pod.client.wait_exec(exec.exec_id)).await.unwrap().unwrap();
    assert_eq!(code, 0);
    let init = pod_init(&pod);
    pod.client.shutdown().await.unwrap();
    until("the pod's PID 1 is gone", || !exists(init)).await;
}
