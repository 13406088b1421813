//! `berth attach`, `port-forward` and `cp`, by our own command line.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use berth_e2e::machine::Machine;
use berth_e2e::manifest::{self, Builder};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::{poll, tools};

/// A `berth port-forward` and the local port that it listens on, on the node's machine.
struct Forward {
    machine: Arc<Machine>,
    child: Child,
    port: u16,
}

impl Forward {
    fn start(node: &Node, words: &[&str]) -> Forward {
        let mut command = node.berth_command(&["port-forward"]);
        let mut child = command.args(words).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        // "Forwarding from 127.0.0.1:40001 -> 8080"
        let port = line.split([':', ' ']).filter_map(|word| word.parse().ok()).next().unwrap();
        Forward { machine: node.machine().clone(), child, port }
    }

    /// Sends bytes through it, closes that direction, and reads to the end.
    fn ask(&self, node: &Node, bytes: &[u8]) -> String {
        let mut nc = node.machine().command("busybox");
        nc.args(["nc", "127.0.0.1", &self.port.to_string()]);
        tools::run_with(nc, bytes).unwrap().ok().unwrap()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // The child is what entered the machine; the program is below it.
        let ours = |words: &str| words.contains(" port-forward ");
        let pids = self.machine.processes().unwrap().into_iter().filter(|p| ours(&p.command)).map(|p| p.pid);
        let _ = self.machine.kill("TERM", &pids.collect::<Vec<_>>());
        let _ = self.child.wait();
    }
}

#[test]
fn attach_shows_output_from_now_on_and_passes_input() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a").shell("echo before; read line; echo got $line; echo err >&2; exit 3");
    node.apply("a.yaml", &pod.with("stdin: true").with("stdinOnce: true").restart("Never").yaml()).unwrap();
    let found = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&found, "before").unwrap();
    let ran = tools::run_with(node.berth_command(&["attach", "-i", "a-n1"]), b"hello\n").unwrap();
    // It ends with the container, whatever code that has, as kubectl's does.
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "got hello\n"), "{ran}");
    assert!(ran.stderr.contains("err"), "{ran}");
    let mut log = node.log(&found, "main", 0).unwrap();
    // Two pipes: between them no order is kept.
    log[1..].sort();
    assert_eq!(log, ["before", "err", "got hello"]);
    let over = node.berth(&["attach", "a-n1"]).unwrap().code(1).unwrap();
    assert!(over.stderr.contains("completed pod"), "{over}");
}

#[test]
fn attach_without_stdin_in_the_pod_says_so() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    node.wait_running(&["a"]).unwrap();
    let ran = node.berth(&["attach", "-i", "a-n1"]).unwrap().code(1).unwrap();
    assert!(ran.stderr.contains("stdin: true"), "{ran}");
}

#[test]
fn attach_to_a_terminal_has_the_callers_size_and_keys() {
    let node = Node::start().unwrap();
    let shell = "trap 'stty size' WINCH; while :; do read -t 1 line && echo \"got $line\"; done";
    let pod = Builder::new("a").shell(shell).with("stdin: true").with("tty: true");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let found = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let mut script = node.machine().command("script");
    let line = format!("stty rows 33 cols 77; {} attach -it a-n1", tools::berth().display());
    script.args(["-qec", &line, "/dev/null"]).env("BERTH_SOCKET", node.socket());
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    node.wait_log(&found, "33 77").unwrap();
    child.stdin.as_mut().unwrap().write_all(b"typed\r").unwrap();
    node.wait_log(&found, "got typed").unwrap();
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
    // The end of the container is the end of the attach.
    let mut shown = String::new();
    child.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    child.wait().unwrap();
    assert!(shown.contains("got typed"), "{shown:?}");
}

#[test]
fn several_may_attach_and_one_that_never_reads_stops_nothing() {
    let node = Node::start().unwrap();
    let shell =
        "read go; i=0; while [ $i -lt 400000 ]; do i=$((i+1)); echo line $i; done; echo over; read never";
    let pod = Builder::new("a").shell(shell).with("stdin: true");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let found = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    // Its output goes into a pipe that nobody reads.
    let mut stuck = node.berth_command(&["attach", "a-n1"]);
    let mut stuck = stuck.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut good = node.berth_command(&["attach", "-i", "a-n1"]);
    let mut good = good.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(good.stdout.take().unwrap()).lines();
    // Both are attached once a line typed by one of them has an effect; the first was first.
    poll::until("both clients are attached", Duration::from_secs(20), || {
        let shim = node.shim(found.uid()).map_err(|e| e.to_string())?;
        let root = node.machine().root();
        let fds = std::fs::read_dir(root.join(format!("proc/{shim}/fd"))).map_err(|e| e.to_string())?;
        let pipes = fds.flatten().filter(|fd| {
            std::fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("pipe:"))
        });
        // stdin, stdout and stderr of the container; two outputs and their ends for each client.
        let count = pipes.count();
        if count >= 3 + 2 * 4 { Ok(Some(())) } else { Err(format!("{count} pipes")) }
    })
    .unwrap();
    good.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let mut count = 0;
    for line in lines.by_ref() {
        let line = line.unwrap();
        if line == "over" {
            break;
        }
        count += 1;
        assert_eq!(line, format!("line {count}"));
    }
    assert_eq!(count, 400_000);
    node.wait_log(&found, "over").unwrap();
    let _ = stuck.kill();
    let _ = stuck.wait();
    let _ = good.kill();
    let _ = good.wait();
}

#[test]
fn port_forward_reaches_what_listens_on_the_pods_loopback() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a")
        .shell("echo here >/www/index.html; httpd -p 127.0.0.1:8081 -h /www; exec nc -ll -p 8080 -e cat")
        .with("ports: [{ name: echo, containerPort: 8080 }]");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    node.wait_running(&["a"]).unwrap();
    let forward = Forward::start(&node, &["a-n1", ":echo"]);
    let answer =
        poll::until("the pod listens", Duration::from_secs(20), || match forward.ask(&node, b"hello\n") {
            text if text.is_empty() => Err("nothing came back".to_owned()),
            text => Ok(Some(text)),
        });
    assert_eq!(answer.unwrap(), "hello\n");
    // Much data, and a client that closes its direction first.
    let big = "0123456789abcdef".repeat(64 << 10);
    let back = poll::until("the pod listens again", Duration::from_secs(20), || {
        match forward.ask(&node, big.as_bytes()) {
            text if text.is_empty() => Err("nothing came back".to_owned()),
            text => Ok(Some(text)),
        }
    });
    let back = back.unwrap();
    assert_eq!(back.len(), big.len());
    assert!(back == big);
    drop(forward);
    // Not even the pod's own address leads there.
    let web = Forward::start(&node, &["a-n1", ":8081"]);
    let page = web.ask(&node, b"GET / HTTP/1.0\r\n\r\n");
    assert!(page.ends_with("here\n"), "{page:?}");
    drop(web);
    let bad = node.berth(&["port-forward", "a-n1", "80:nonsense"]).unwrap().code(2).unwrap();
    assert!(bad.stderr.contains("nonsense"), "{bad}");
}

#[test]
fn cp_moves_files_and_folders_both_ways() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    node.wait_running(&["a"]).unwrap();
    let here = node.path("here");
    std::fs::create_dir_all(here.join("sub")).unwrap();
    std::fs::write(here.join("one"), "1\n").unwrap();
    let big: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(here.join("sub/big"), &big).unwrap();
    let cp = |from: &str, to: &str| node.berth(&["cp", from, to]).unwrap();
    let local = |name: &str| node.path(name).to_string_lossy().into_owned();
    cp(&local("here/one"), "a-n1:/tmp/uno").ok().unwrap();
    assert_eq!(node.exec("a", &["cat", "/tmp/uno"]).unwrap().ok().unwrap(), "1\n");
    // Into a folder that is there, by its own name.
    cp(&local("here"), "default/a-n1:/tmp").ok().unwrap();
    assert_eq!(node.exec("a", &["cat", "/tmp/here/one"]).unwrap().ok().unwrap(), "1\n");
    cp("a-n1:/tmp/here", &local("back")).ok().unwrap();
    assert!(std::fs::read(node.path("back/sub/big")).unwrap() == big);
    cp("a-n1:/tmp/uno", &local("back")).ok().unwrap();
    assert_eq!(std::fs::read_to_string(node.path("back/uno")).unwrap(), "1\n");
    let absent = cp("a-n1:/no/such", &local("x")).code(1).unwrap();
    assert!(absent.stderr.contains("no/such"), "{absent}");
    let absent = cp(&local("nothing"), "a-n1:/tmp").code(1).unwrap();
    assert!(absent.stderr.contains("nothing"), "{absent}");
    cp("x", "y").code(2).unwrap();
}
