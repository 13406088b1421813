//! `berth exec`.

use berth_e2e::manifest;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::tools;

fn node_with_pod() -> Node {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    node.wait_running(&["a"]).unwrap();
    node
}

#[test]
fn exec_gives_output_errors_and_the_exit_code() {
    let node = node_with_pod();
    let ran = node.exec("a", &["sh", "-c", "echo out; echo err >&2; exit 42"]).unwrap().code(42).unwrap();
    assert_eq!((ran.stdout.as_str(), ran.stderr.contains("err")), ("out\n", true), "{ran}");
    node.exec("a", &["true"]).unwrap().code(0).unwrap();
    let absent = node.exec("a", &["/no/such/program"]).unwrap();
    assert!(absent.code != 0 && absent.stderr.contains("/no/such/program"), "{absent}");
    let nobody = node.berth(&["exec", "nobody", "--", "true"]).unwrap().code(1).unwrap();
    assert!(nobody.stderr.contains("nobody"), "{nobody}");
}

#[test]
fn exec_passes_stdin_to_its_end_and_large_output_whole() {
    let node = node_with_pod();
    let input: Vec<u8> = (0..1_000_000u32).flat_map(|n| [b'a' + (n % 26) as u8]).collect();
    let ran = tools::run_with(node.berth_command(&["exec", "-i", "a-n1", "--", "cat"]), &input).unwrap();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stdout.len(), input.len());
    assert!(ran.stdout.as_bytes() == input, "the bytes came back changed");
}

#[test]
fn exec_without_i_does_not_read_stdin() {
    let node = node_with_pod();
    let ran = tools::run_with(node.berth_command(&["exec", "a-n1", "--", "cat"]), b"not for you").unwrap();
    assert_eq!(ran.ok().unwrap(), "");
}

#[test]
fn exec_it_gives_a_terminal_of_the_callers_size() {
    let node = node_with_pod();
    let mut script = node.machine().command("script");
    // The size is there when the program starts.
    let inside = "stty size; tty; exit 5";
    let line =
        format!("stty rows 33 cols 77; {} exec -it a-n1 -- sh -c '{inside}'", tools::berth().display());
    script.args(["-qec", &line, "/dev/null"]).env("BERTH_SOCKET", node.socket());
    let ran = tools::run(script).unwrap().code(5).unwrap();
    assert!(ran.stdout.contains("/dev/pts/"), "{ran}");
    assert!(ran.stdout.contains("33 77"), "{ran}");
}

#[test]
fn exec_runs_inside_every_namespace_and_cgroup_of_its_container() {
    let node = node_with_pod();
    let pid = node.pids(node.pod("a").unwrap().uid()).unwrap()[0];
    let outside = node
        .machine()
        .shell(&format!("cd /proc/{pid}/ns; for n in mnt pid net ipc uts cgroup; do readlink $n; done"))
        .unwrap();
    let inside = node
        .exec(
            "a",
            &["sh", "-c", "cd /proc/self/ns; for n in mnt pid net ipc uts cgroup; do readlink $n; done"],
        )
        .unwrap();
    assert_eq!(inside.ok().unwrap(), outside);
    assert_eq!(
        node.exec("a", &["cat", "/proc/self/cgroup"]).unwrap().ok().unwrap(),
        node.exec("a", &["cat", "/proc/1/cgroup"]).unwrap().ok().unwrap()
    );
}
