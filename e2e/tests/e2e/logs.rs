//! Logs: the CRI format on disk, `berth logs` before it.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use berth_e2e::manifest::{self, Builder};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;

#[test]
fn logs_lie_in_the_cri_layout_and_format() {
    let node = Node::start().unwrap();
    let shell = "echo to stdout; echo to stderr >&2; printf 'no newline'; exec sleep 1000000";
    node.apply("a.yaml", &manifest::pod("a", shell)).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&pod, "to stderr").unwrap();
    let file = node.log_dir(&pod).join("main/0.log");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.lines().any(|l| l.contains(" stdout F to stdout")), "{text}");
    assert!(text.lines().any(|l| l.contains(" stderr F to stderr")), "{text}");
    let link = node.path("log/containers").read_dir().unwrap().next().unwrap().unwrap().path();
    let name = link.file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("a-n1_default_main-") && name.ends_with(".log"), "{name}");
    assert_eq!(link.canonicalize().unwrap(), file.canonicalize().unwrap());
}

#[test]
fn logs_can_be_cut_followed_and_read_of_the_previous_instance() {
    let node = Node::start().unwrap();
    node.apply(
        "a.yaml",
        &manifest::pod("a", "for i in 1 2 3 4 5; do echo line $i; done; exec sleep 1000000"),
    )
    .unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&pod, "line 5").unwrap();
    let logs = |words: &[&str]| node.berth(&[&["logs"], words].concat()).unwrap().ok().unwrap();
    assert_eq!(logs(&["a-n1"]), "line 1\nline 2\nline 3\nline 4\nline 5\n");
    assert_eq!(logs(&["--tail", "2", "a-n1"]), "line 4\nline 5\n");
    let stamped = logs(&["--timestamps", "--tail=1", "a-n1"]);
    assert!(stamped.ends_with(" line 5\n") && stamped.contains('T'), "{stamped}");

    node.machine().kill("KILL", &node.pids(pod.uid()).unwrap()).unwrap();
    node.wait("it restarts", Duration::from_secs(20), |pods| {
        pods["a"].restarts() == 1 && pods["a"].is_running()
    })
    .unwrap();
    assert_eq!(logs(&["-p", "a-n1"]).lines().count(), 5);
    let unknown = node.berth(&["logs", "a-n1", "-c", "nobody"]).unwrap().code(1).unwrap();
    assert!(unknown.stderr.contains("nobody"), "{unknown}");
}

#[test]
fn logs_f_shows_lines_as_they_come_and_ends_with_the_container() {
    let node = Node::start().unwrap();
    let shell = "trap 'echo end; exit 0' USR1; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
    node.apply("a.yaml", &Builder::new("a").restart("Never").shell(shell).yaml()).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let mut follow = node.berth_command(&["logs", "-f", "a-n1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    for i in 1..=20 {
        assert_eq!(lines.next().unwrap().unwrap(), i.to_string());
    }
    node.machine().kill("USR1", &node.pids(pod.uid()).unwrap()).unwrap();
    assert_eq!(lines.by_ref().last().unwrap().unwrap(), "end");
    assert!(follow.wait().unwrap().success());
}

#[test]
fn a_flood_of_output_is_rotated_without_losing_a_line() {
    let node = Node::with("containerLogMaxSize: 256Ki\ncontainerLogMaxFiles: 100\n", &[]).unwrap();
    node.apply("a.yaml", &Builder::new("a").restart("Never").shell("seq 1 50000").yaml()).unwrap();
    node.wait("it ends", Duration::from_secs(60), |pods| {
        pods.get("a").is_some_and(|p| p.phase() == "Succeeded")
    })
    .unwrap();
    let all = node.berth(&["logs", "a-n1"]).unwrap().ok().unwrap();
    assert!(all.lines().last() == Some("50000"), "{:?}", all.lines().last());
    let pod = node.pod("a").unwrap();
    let files: Vec<_> =
        node.log_dir(&pod).join("main").read_dir().unwrap().map(|e| e.unwrap().path()).collect();
    assert!(files.len() > 3, "{files:?}");
}
