//! The command line as a process of its own, against the API over a scripted backend.
#![allow(clippy::unwrap_used)]

mod api_support;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use api_support::{Server, ago, path_of, pod, running};
use berth::store::Kind;
use serde_json::json;

fn berth(server: &Server, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.arg("--socket").arg(server.socket()).args(words).stdin(Stdio::null());
    command.env_remove("BERTH_SOCKET").env_remove("BERTH_ROOT").env("COLUMNS", "120");
    command
}

fn run(server: &Server, words: &[&str]) -> Output {
    berth(server, words).output().unwrap()
}

/// Exit code, output and errors in one text.
fn show(output: &Output) -> String {
    let mut text = format!("exit {}\n", output.status.code().unwrap());
    for (name, bytes) in [("out", &output.stdout), ("err", &output.stderr)] {
        if !bytes.is_empty() {
            write!(text, "--- {name}\n{}", String::from_utf8_lossy(bytes)).unwrap();
        }
    }
    text
}

fn shown(server: &Server, words: &[&str]) -> String {
    show(&run(server, words))
}

/// A server with pods in several states, events and a node.
fn busy() -> Server {
    let server = Server::start();
    server.put_pod("web", running("web"));
    let mut crashing = running("crash");
    crashing["status"]["containerStatuses"][0]["state"] = json!({"waiting": {"reason": "CrashLoopBackOff",
        "message": "back-off 10s restarting failed container"}});
    crashing["status"]["containerStatuses"][0]["ready"] = json!(false);
    crashing["status"]["containerStatuses"][0]["restartCount"] = json!(3);
    crashing["status"]["containerStatuses"][0]["lastState"] =
        json!({"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": ago(7200)}});
    server.put_pod("crash", crashing);
    let mut done = pod("job");
    done["status"] = json!({"phase": "Succeeded", "containerStatuses": [{"name": "main", "image": "demo:1", "imageID": "",
        "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]});
    server.put_pod("job", done);
    let mut other = running("web");
    other["metadata"]["creationTimestamp"] = json!(ago(3600 * 24 * 9));
    server.store.put(Kind::Pod, "other", "web", &other);
    let event = json!({"involvedObject": {"kind": "Pod", "namespace": "default", "name": "crash", "uid": "uid-of-crash",
            "fieldPath": "spec.containers{main}"}, "reason": "BackOff", "type": "Warning", "count": 5,
        "message": "Back-off restarting failed container", "firstTimestamp": ago(3 * 86400), "lastTimestamp": ago(2 * 86400 + 60),
        "source": {"component": "berth", "host": "node-1"}});
    server.store.put(Kind::Event, "default", "crash.1", &event);
    let node = json!({"metadata": {"creationTimestamp": ago(3 * 86400)}, "status": {
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "berth is ready"}],
        "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "capacity": {"cpu": "2", "pods": "110"},
        "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.12", "machineID": "m", "systemUUID": "s",
            "bootID": "b", "containerRuntimeVersion": "berth://0.1.0", "kubeProxyVersion": "", "operatingSystem": "linux",
            "architecture": "amd64"}}});
    server.store.put(Kind::Node, "", "node-1", &node);
    server
}

#[test]
fn get_prints_tables() {
    let server = busy();
    insta::assert_snapshot!("get_pods", shown(&server, &["get", "pods"]));
    insta::assert_snapshot!("get_wide", shown(&server, &["get", "po", "web", "crash", "-o", "wide"]));
    insta::assert_snapshot!("get_all_namespaces", shown(&server, &["get", "pods", "-A", "--show-labels"]));
    insta::assert_snapshot!("get_kinds", shown(&server, &["get", "pods,nodes,ev,cm"]));
    insta::assert_snapshot!("get_missing", shown(&server, &["get", "pod/nope", "pod/web"]));
    insta::assert_snapshot!("get_none", shown(&server, &["get", "secrets"]));
    insta::assert_snapshot!(
        "get_selected",
        shown(&server, &["get", "pods", "-l", "app in (web,job)", "--no-headers"])
    );
}

#[test]
fn get_prints_objects() {
    let server = busy();
    let yaml = shown(&server, &["get", "pod", "job", "-o", "yaml"]);
    assert!(yaml.contains("\nkind: Pod\n") && yaml.contains("\n  phase: Succeeded\n"), "{yaml}");
    let json = run(&server, &["get", "pods", "-o", "json"]);
    let list: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((list["kind"].as_str(), list["items"].as_array().unwrap().len()), (Some("List"), 3));
    assert_eq!(
        shown(&server, &["get", "pods", "-o", "name"]),
        "exit 0\n--- out\npod/crash\npod/job\npod/web\n"
    );
}

#[test]
fn describe_tells_everything() {
    let server = busy();
    let text = shown(&server, &["describe", "pod", "crash"]);
    let timeless = |line: &str| {
        if line.contains("Finished:") { "      Finished:     TIME".to_owned() } else { line.to_owned() }
    };
    insta::assert_snapshot!("describe_pod", text.lines().map(timeless).collect::<Vec<_>>().join("\n"));
    insta::assert_snapshot!("describe_missing", shown(&server, &["describe", "pod", "nope"]));
    let node = shown(&server, &["describe", "node", "node-1"]);
    assert!(node.contains("Kernel Version:             6.12\n"), "{node}");
    assert!(node.contains("crash") && !node.contains("job"), "{node}");
}

#[test]
fn wrong_words() {
    let server = busy();
    for words in [
        vec!["get"],
        vec!["get", "widgets"],
        vec!["get", "pods", "web", "-A"],
        vec!["frob"],
        vec!["delete", "pod"],
        vec!["apply"],
        vec!["exec", "web"],
        vec!["wait", "pod/web", "--for=never"],
        vec!["get", "pods", "-o", "xml"],
    ] {
        let output = run(&server, &words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", show(&output));
        assert!(!output.stderr.is_empty(), "{words:?}");
    }
    assert_eq!(run(&server, &["--help"]).status.code(), Some(0));
    assert!(shown(&server, &["completions", "bash"]).contains("complete -F"));
}

#[test]
fn no_agent() {
    let server = Server::start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    let output = command.args(["--socket", "/nonexistent/sock", "get", "pods"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    let want = "berth: cannot reach the agent at /nonexistent/sock: No such file or directory; is \"berth agent\" running?";
    assert!(text.starts_with(want) && text.lines().count() == 1, "{text}");
    assert!(shown(&server, &["version"]).contains("Agent: v1.36"));
}

const MANIFEST: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: main\n    image: demo:1\n---\n\
    apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\ndata:\n  a: b\n";

#[test]
fn apply_and_delete() {
    let server = Server::start();
    let file = path_of(server.dir.path(), "web.yaml", MANIFEST);
    let file = file.to_str().unwrap();
    let applied = |words: &[&str]| shown(&server, words);
    assert_eq!(
        applied(&["apply", "-f", file, "--dry-run"]),
        "exit 0\n--- out\npod/web created (dry run)\nconfigmap/settings created (dry run)\n"
    );
    assert_eq!(
        applied(&["apply", "-f", file]),
        "exit 0\n--- out\npod/web created\nconfigmap/settings created\n"
    );
    assert_eq!(
        applied(&["apply", "-f", file]),
        "exit 0\n--- out\npod/web unchanged\nconfigmap/settings unchanged\n"
    );
    let changed = MANIFEST.replace("a: b", "a: c").replace("demo:1", "demo:2");
    let mut command = berth(&server, &["apply", "-f", "-"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(changed.as_bytes()).unwrap();
    assert_eq!(
        show(&child.wait_with_output().unwrap()),
        "exit 0\n--- out\npod/web configured\nconfigmap/settings configured\n"
    );
    let pod = server.store.get(Kind::Pod, "default", "web").unwrap().value();
    assert_eq!(pod["spec"]["containers"][0]["image"], "demo:2");
    assert_eq!(
        applied(&["delete", "-f", file]),
        "exit 0\n--- out\npod \"web\" deleted from default namespace\nconfigmap \"settings\" deleted from default namespace\n"
    );
    assert!(server.store.get(Kind::Pod, "default", "web").is_none());
    assert_eq!(
        applied(&["delete", "pod", "web"]),
        "exit 1\n--- err\nberth: pods \"web\" not found (NotFound)\n"
    );
    assert_eq!(applied(&["delete", "pod", "web", "--ignore-not-found"]), "exit 0\n");
}

#[test]
fn bad_manifests_apply_nothing() {
    let server = Server::start();
    let file = path_of(
        server.dir.path(),
        "bad.yaml",
        &format!("{MANIFEST}---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: x\nspec:\n  containrs: []\n"),
    );
    let file = file.to_str().unwrap();
    for words in [["apply", "-f", file], ["check", file, file]] {
        let output = run(&server, &words);
        let text = show(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("bad.yaml:") && text.contains("containrs"), "{text}");
    }
    assert_eq!(server.store.list(Kind::ConfigMap, None).0.len(), 0);
    let good = path_of(server.dir.path(), "good.yaml", MANIFEST);
    assert_eq!(
        shown(&server, &["check", good.to_str().unwrap()]),
        "exit 0\n--- out\nOK: 1 ConfigMap, 1 Pod in 1 file\n"
    );
    let missing = shown(&server, &["check", "/nonexistent.yaml"]);
    assert_eq!(
        missing,
        "exit 1\n--- err\nberth: cannot read /nonexistent.yaml: No such file or directory (os error 2)\n"
    );
}

#[test]
fn exec_passes_streams_and_codes() {
    let server = busy();
    let mut command = berth(&server, &["exec", "-i", "web", "--", "sh", "-c", "cat; echo err >&2; exit 42"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"input\n").unwrap();
    let text = show(&child.wait_with_output().unwrap());
    assert_eq!(text, "exit 42\n--- out\ninput\n--- err\nerr\ncommand terminated with exit code 42\n");
    let done = shown(&server, &["exec", "job", "--", "true"]);
    assert_eq!(
        done,
        "exit 1\n--- err\nberth: cannot exec into a container in a completed pod; current phase is Succeeded\n"
    );
    let missing = shown(&server, &["exec", "web", "--", "/nonexistent"]);
    assert!(
        missing.starts_with("exit 1\n--- err\nberth: Internal error occurred: exec: \"/nonexistent\""),
        "{missing}"
    );
}

/// More than all buffers on the way hold, in both directions at once.
#[test]
fn exec_passes_much_data() {
    let server = busy();
    let input = "0123456789abcde\n".repeat(1 << 19);
    let mut command = berth(&server, &["exec", "-i", "web", "--", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(sent.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), input.len()));
    assert!(output.stdout == input.as_bytes());
}

#[test]
fn logs_follow_and_end_quietly() {
    let server = busy();
    let line = |n: u32| format!("2026-01-01T00:00:00.00000000{n}Z stdout F line {n}\n");
    path_of(server.dir.path(), "0.log", &(0..3).map(line).collect::<String>());
    assert_eq!(shown(&server, &["logs", "web", "--tail", "2"]), "exit 0\n--- out\nline 1\nline 2\n");
    assert_eq!(
        shown(&server, &["logs", "pod/web", "main", "--tail=1", "--timestamps"]),
        "exit 0\n--- out\n2026-01-01T00:00:00.000000002Z line 2\n"
    );
    let previous = shown(&server, &["logs", "web", "-p"]);
    assert_eq!(
        previous,
        "exit 1\n--- err\nberth: previous terminated container \"main\" not found (BadRequest)\n"
    );
    // A reader that leaves early is no failure.
    let script =
        format!("{} --socket {} logs web | head -1", env!("CARGO_BIN_EXE_berth"), server.socket().display());
    let output = Command::new("bash").args(["-o", "pipefail", "-c", &script]).output().unwrap();
    assert_eq!(show(&output), "exit 0\n--- out\nline 0\n");
}

#[test]
fn wait_sees_changes() {
    let server = busy();
    assert_eq!(
        shown(&server, &["wait", "pod/web", "--for=condition=Ready"]),
        "exit 0\n--- out\npod/web condition met\n"
    );
    let late = shown(&server, &["wait", "pod/job", "--for=condition=Ready", "--timeout=1s"]);
    assert_eq!(late, "exit 1\n--- err\nberth: timed out waiting for the condition on pods/job\n");
    let waiting =
        berth(&server, &["wait", "pod", "web", "--for=delete"]).stdout(Stdio::piped()).spawn().unwrap();
    server.store.delete(Kind::Pod, "default", "web");
    assert_eq!(show(&waiting.wait_with_output().unwrap()), "exit 0\n--- out\npod/web condition met\n");
    let missing = shown(&server, &["wait", "pod/web", "--for=condition=Ready"]);
    assert_eq!(missing, "exit 1\n--- err\nberth: pods \"web\" not found\n");
}

#[test]
fn get_watches() {
    use std::io::{BufRead as _, BufReader};
    let server = busy();
    let mut child =
        berth(&server, &["get", "pods", "web", "-w", "--no-headers"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("web   1/1   Running"));
    let mut changed = running("web");
    changed["status"]["containerStatuses"][0]["ready"] = json!(false);
    server.put_pod("web", changed);
    assert!(lines.next().unwrap().unwrap().starts_with("web   0/1   Running"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn images_are_those_of_the_agent_that_is_named() {
    let server = Server::start();
    let (theirs, other) = (server.dir.path().join("theirs"), server.dir.path().join("other"));
    let (theirs, other) = (theirs.to_str().unwrap(), other.to_str().unwrap());
    let tar = server.dir.path().join("rootfs.tar");
    let made = Command::new("tar").arg("-cf").arg(&tar).args(["-C", "/etc", "hostname"]).status().unwrap();
    assert!(made.success());
    // This one does not say where its images are, and neither does the caller.
    assert!(
        shown(&server, &["image", "list"]).contains("no agent answers at "),
        "{}",
        shown(&server, &["image", "list"])
    );
    let node = json!({"metadata": {"annotations": {"berth.dev/root": theirs}}});
    server.store.put(Kind::Node, "", "node-1", &node);
    let imported = shown(&server, &["image", "import", tar.to_str().unwrap(), "demo:1"]);
    assert!(imported.contains("\nImported docker.io/library/demo:1 ("), "{imported}");
    for words in [&["image", "list"][..], &["image", "--root", theirs, "list"]] {
        let listed = shown(&server, words);
        assert!(listed.contains("docker.io/library/demo   1     "), "{listed}");
    }
    let refused = shown(&server, &["image", "--root", other, "list"]);
    assert!(refused.starts_with("exit 1\n--- err\nberth: the agent at "), "{refused}");
    assert!(refused.contains(&format!("has its images below {theirs}, not below {other}")), "{refused}");
    // An agent that was not named has no say.
    let mut elsewhere = Command::new(env!("CARGO_BIN_EXE_berth"));
    elsewhere.args(["image", "--root", other, "list"]).env_remove("BERTH_SOCKET").env_remove("BERTH_ROOT");
    assert!(elsewhere.status().unwrap().success());
}

#[test]
fn images_without_an_agent() {
    let server = Server::start();
    let root = server.dir.path().join("root");
    let root = root.to_str().unwrap();
    let tar = server.dir.path().join("rootfs.tar");
    let made = Command::new("tar").arg("-cf").arg(&tar).args(["-C", "/etc", "hostname"]).status().unwrap();
    assert!(made.success());
    let tar = tar.to_str().unwrap();
    let image = |words: &[&str]| shown(&server, &[&["image", "--root", root], words].concat());
    let imported = image(&["import", tar, "demo:1", "--cmd", "httpd -f", "-c", "EXPOSE 80"]);
    assert!(imported.contains("\nImported docker.io/library/demo:1 ("), "{imported}");
    let listed = image(&["list"]);
    assert!(listed.contains("docker.io/library/demo   1     "), "{listed}");
    assert!(image(&["inspect", "demo:1"]).contains("\"httpd\""));
    assert_eq!(image(&["tag", "demo:1", "demo:2"]), "exit 0\n");
    let archive = server.dir.path().join("a.tar");
    let archive = archive.to_str().unwrap();
    assert_eq!(image(&["save", "demo:1", "-o", archive]), "exit 0\n");
    assert!(image(&["rm", "demo:1", "demo:2"]).contains("\nDeleted "));
    assert!(image(&["inspect", "demo:1"]).starts_with("exit 1\n--- err\nberth: no image demo:1"));
    assert!(image(&["load", archive]).contains("\nLoaded docker.io/library/demo:1 ("));
    assert!(image(&["prune", "-a"]).contains("\nDeleted "));
}

#[test]
fn what_pods_and_the_machine_use() {
    let server = Server::start();
    server.store.put(Kind::Pod, "default", "web", &running("web"));
    let node = json!({"status": {"allocatable": {"cpu": "4", "memory": "4Gi"}}});
    server.store.put(Kind::Node, "", "node-1", &node);
    let top = |words: &[&str]| shown(&server, &[&["top"], words].concat());
    assert_eq!(
        top(&["pods"]),
        "exit 0\n--- out\nNAME   CPU(cores)   MEMORY(bytes)\nweb    3m           6Mi\n"
    );
    assert_eq!(
        top(&["pod", "pod/web", "--containers", "--no-headers"]),
        "exit 0\n--- out\nweb   main   2m   3Mi\nweb   side   2m   3Mi\n"
    );
    assert_eq!(
        top(&["node"]),
        "exit 0\n--- out\nNAME     CPU(cores)   CPU(%)   MEMORY(bytes)   MEMORY(%)\nnode-1   2000m        50%      1024Mi          25%\n"
    );
    assert!(top(&["pods", "-l", "app=none"]).contains("No resources found in default namespace."));
    assert!(top(&["pods", "-A", "--sort-by", "memory"]).contains("default     web    3m"));
    assert!(top(&["pods", "nobody"]).starts_with("exit 1\n--- err\nberth: pods \"nobody\" not found"));
}

#[test]
fn events_of_one_object() {
    let server = Server::start();
    for (name, kind, of) in [("a", "Normal", "web"), ("b", "Warning", "web"), ("c", "Warning", "db")] {
        let event = json!({"metadata": {"creationTimestamp": ago(10)}, "type": kind, "reason": "Why", "message": name,
            "lastTimestamp": ago(10), "involvedObject": {"kind": "Pod", "name": of, "namespace": "default"}});
        server.store.put(Kind::Event, "default", name, &event);
    }
    let events = |words: &[&str]| shown(&server, &[&["events", "--no-headers"], words].concat());
    assert_eq!(events(&[]).lines().count(), 5);
    let of_one = events(&["--for", "pod/web", "--types", "warning"]);
    assert!(of_one.lines().count() == 3 && of_one.contains("pod/web   b"), "{of_one}");
    assert!(events(&["--for", "web"]).starts_with("exit 2\n"));
}

#[test]
fn the_manual_page() {
    let page = shown(&Server::start(), &["man"]);
    assert!(page.contains(".TH berth 1") && page.contains("port\\-forward"), "{page}");
}
