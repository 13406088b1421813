//! Containers from their creation to their deletion.

use berth_runtime::cgroup::Cgroups;
use berth_runtime::shim::client::Client;
use berth_runtime::shim::proto::{FailureKind, StateRecord, Status};
use serde_json::json;

use crate::harness::{Pod, exists, until};

#[tokio::test]
async fn runs_and_records() {
    let mut pod = Pod::new().await;
    let container = pod.container("one", "echo out; echo err >&2; hostname; exit 7");
    pod.create(&container).await;
    assert_eq!(pod.status("one").await, Status::Created);
    let started = pod.client.start("one").await.unwrap();
    let exit = pod.exit_of("one").await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, None, false));
    assert_eq!(exit.started_at, Some(started.started_at));
    assert!(exit.finished_at >= started.started_at);
    // What is told is on disk, and the log is complete.
    assert_eq!(pod.exit_json("one"), exit);
    let mut lines: Vec<String> = pod.log("one").lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["err", "out", "test-pod"]);
    let list = pod.client.list().await.unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].exit.as_ref(), Some(&exit));
    assert_eq!(list[0].status, Status::Stopped);
    let state = std::fs::read(container.request.bundle.join("state.json")).unwrap();
    let state: StateRecord = serde_json::from_slice(&state).unwrap();
    assert_eq!((state.pid, state.status), (list[0].pid, Status::Stopped));
    assert!(state.pid_start_time > 0);
    pod.client.delete("one").await.unwrap();
    assert!(pod.client.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn signals() {
    let mut pod = Pod::new().await;
    let polite = pod.container("polite", "trap 'exit 42' TERM; echo ready; while :; do sleep 0.05; done");
    pod.start(&polite).await;
    pod.logged("polite", "ready").await;
    pod.client.kill("polite", libc::SIGTERM, false).await.unwrap();
    assert_eq!(pod.exit_of("polite").await.code, 42);

    let stubborn = pod.container("stubborn", "trap '' TERM; echo ready; while :; do sleep 1; done");
    pod.start(&stubborn).await;
    pod.logged("stubborn", "ready").await;
    pod.client.kill("stubborn", libc::SIGTERM, true).await.unwrap();
    pod.client.kill("stubborn", libc::SIGKILL, false).await.unwrap();
    let exit = pod.exit_of("stubborn").await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));

    // Of one that has exited, and of one that never was.
    pod.client.kill("stubborn", libc::SIGTERM, false).await.unwrap();
    let unknown = pod.client.kill("nobody", libc::SIGTERM, false).await.unwrap_err();
    assert_eq!(unknown.kind(), Some(FailureKind::NotFound));
    let nonsense = pod.client.kill("stubborn", 99, false).await.unwrap_err();
    assert_eq!(nonsense.kind(), Some(FailureKind::Invalid));
}

#[tokio::test]
async fn a_program_starts_with_clean_signals_and_files() {
    let mut pod = Pod::new().await;
    let script = "grep -E 'Sig(Ign|Blk)' /proc/self/status; ls /proc/self/fd; readlink /proc/self/fd/0";
    let (exit, log) = pod.run(&pod.container("one", script)).await;
    assert_eq!(exit.code, 0, "{log}");
    let masks: Vec<&str> = log.lines().filter(|line| line.starts_with("Sig")).collect();
    assert_eq!(masks, ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"]);
    // 3 is the folder that ls reads.
    let fds: Vec<&str> = log.lines().filter(|line| line.parse::<u32>().is_ok()).collect();
    assert_eq!(fds, ["0", "1", "2", "3"]);
    assert!(log.ends_with("/null\n"), "{log}");
}

#[tokio::test]
async fn out_of_memory() {
    let mut pod = Pod::new().await;
    let mut container = pod.container("hungry", "exec tail /dev/zero");
    container.spec["linux"]["resources"] = json!({"memory": {"limit": 16 << 20}});
    let (exit, log) = pod.run(&container).await;
    assert_eq!((exit.code, exit.oom_killed), (137, true), "{log}");
    let (exit, _) = pod.run(&pod.container("modest", "exit 3")).await;
    assert_eq!((exit.code, exit.oom_killed), (3, false));
}

#[tokio::test]
async fn a_program_that_cannot_be_executed() {
    let mut pod = Pod::new().await;
    let container = pod.program("none", &["/no/such/program"]);
    pod.create(&container).await;
    let error = pod.client.start("none").await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::StartFailed), "{error}");
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    let exit = pod.exit_of("none").await;
    assert_eq!(exit.code, 128);
    assert_eq!(exit.message.as_deref(), Some(error.to_string().as_str()));
    assert_eq!(pod.exit_json("none"), exit);
    // Once: its process is reaped without another record.
    pod.client.delete("none").await.unwrap();
    assert!(pod.events.try_recv().is_err());
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let pod = Pod::new().await;
    let container = pod.container("one", "sleep 100");
    let missing = pod.client.create(container.request.clone()).await.unwrap_err();
    assert!(missing.to_string().contains("config.json"), "{missing}");
    pod.start(&container).await;
    let twice = pod.client.create(container.request.clone()).await.unwrap_err();
    assert_eq!(twice.kind(), Some(FailureKind::Exists));
    let again = pod.client.start("one").await.unwrap_err();
    assert_eq!(again.kind(), Some(FailureKind::Invalid));
    let mut tty = pod.container("two", "true");
    tty.request.tty = true;
    std::fs::create_dir_all(&tty.request.bundle).unwrap();
    std::fs::write(tty.request.bundle.join("config.json"), tty.spec.to_string()).unwrap();
    let mismatch = pod.client.create(tty.request.clone()).await.unwrap_err();
    assert_eq!(mismatch.kind(), Some(FailureKind::Invalid));
    assert_eq!(pod.client.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn delete_takes_everything_and_may_be_repeated() {
    let pod = Pod::new().await;
    pod.start(&pod.container("one", "sleep 1000 & sleep 1000")).await;
    let cgroups = Cgroups::detect().unwrap();
    let cgroup = format!("{}/one", pod.cgroup);
    let pids = cgroups.pids(&cgroup).unwrap();
    assert!(!pids.is_empty());
    pod.client.delete("one").await.unwrap();
    assert!(pids.iter().all(|pid| !exists(*pid)));
    assert!(cgroups.list(&pod.cgroup).is_empty());
    pod.client.delete("one").await.unwrap();
    // One that was made but never started.
    pod.create(&pod.container("two", "true")).await;
    pod.client.delete("two").await.unwrap();
    assert!(pod.client.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn twenty_at_once() {
    let mut pod = Pod::new().await;
    let containers: Vec<_> =
        (0..20).map(|n| pod.container(&format!("c{n}"), &format!("echo I am {n}; exit {n}"))).collect();
    for container in &containers {
        pod.create(container).await;
    }
    let starts = containers.iter().map(|container| {
        let client = pod.client.clone();
        let id = container.id.clone();
        tokio::spawn(async move { client.start(&id).await.unwrap() })
    });
    for start in starts.collect::<Vec<_>>() {
        start.await.unwrap();
    }
    let mut exits = std::collections::BTreeMap::new();
    while exits.len() < 20 {
        let event = tokio::time::timeout(crate::harness::PATIENCE, pod.events.recv()).await.unwrap().unwrap();
        let berth_runtime::shim::proto::Event::Exited { id, exit } = event else { continue };
        assert!(exits.insert(id, exit.code).is_none());
    }
    for n in 0..20 {
        assert_eq!(exits[&format!("c{n}")], n);
        assert_eq!(pod.log(&format!("c{n}")), format!("I am {n}\n"));
    }
}

#[tokio::test]
async fn exits_without_a_client_are_not_lost() {
    let mut pod = Pod::new().await;
    pod.start(&pod.container("one", "sleep 0.2; echo late; exit 3")).await;
    pod.start(&pod.container("two", "echo still here; sleep 1000")).await;
    let before = pod.client.list().await.unwrap();
    // As when the agent is killed: its connection just ends.
    drop((pod.client, pod.events));
    until("exit.json", || pod.dir.join("containers/one/exit.json").exists()).await;
    (pod.client, pod.events) = Client::connect(&pod.dir.join("shim.sock")).await.unwrap();
    let after = pod.client.list().await.unwrap();
    assert_eq!(after[0].exit.as_ref().unwrap().code, 3);
    assert_eq!(after[1], before[1]);
    assert_eq!(pod.log("one"), "late\n");
}

#[tokio::test]
async fn what_outlives_init_is_killed_and_reaped() {
    let mut pod = Pod::new().await;
    // In the host's PID namespace the kernel does not clean up.
    let mut container = pod.container("one", "setsid sleep 1000 & setsid sleep 1000 & echo started; exit 0");
    container.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "cgroup"}]);
    let (exit, log) = pod.run(&container).await;
    assert_eq!((exit.code, log.as_str()), (0, "started\n"));
    let children = format!("/proc/{0}/task/{0}/children", pod.shim.pid);
    until("no children", || std::fs::read_to_string(&children).unwrap().is_empty()).await;
    assert!(Cgroups::detect().unwrap().pids(&format!("{}/one", pod.cgroup)).unwrap().is_empty());
}

#[tokio::test]
async fn somebody_who_holds_the_pipe_does_not_hold_the_exit() {
    let mut pod = Pod::new().await;
    let container = pod.container("one", "echo mine; sleep 1000");
    pod.start(&container).await;
    pod.logged("one", "mine").await;
    let pid = pod.client.list().await.unwrap()[0].pid;
    let held = std::fs::File::options().write(true).open(format!("/proc/{pid}/fd/1")).unwrap();
    pod.client.kill("one", libc::SIGKILL, false).await.unwrap();
    assert_eq!(pod.exit_of("one").await.code, 137);
    // It is still read from until the container is deleted.
    std::io::Write::write_all(&mut &held, b"not mine, no end").unwrap();
    pod.client.delete("one").await.unwrap();
    assert_eq!(pod.log("one"), "mine\nnot mine, no end");
}
