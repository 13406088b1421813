//! Attacks from inside of a container that need the whole binary. Those on the engine alone are in
//! `agent/runtime/tests/escape`.

use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use berth_e2e::leftovers::remove_cgroups;
use berth_e2e::machine::Machine;
use berth_e2e::manifest::{self, Builder};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::poll::until_true;
use berth_e2e::tools;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a process that runs another program than busybox, keeps that program open, ends the process, and writes.
const OVERWRITE: &str = r#"echo ready
while :; do
    for p in /proc/[0-9]*; do
        case "$(readlink $p/exe 2>/dev/null)" in
        */busybox | "") continue ;;
        esac
        (: < $p/exe) 2>/dev/null || continue
        exec 7< $p/exe
        echo "held $(readlink $p/exe)"
        until [ -e $p/root/blocked ]; do :; done
        kill -9 ${p#/proc/}
        while [ "$(readlink $p/exe 2>/dev/null)" ]; do :; done
        echo owned > /proc/self/fd/7 && echo written
        echo finished
        exec sleep 1000
    done
done
"#;

/// What runs the runtime's own program inside of the container, and does not end: it reads a pipe.
const VEHICLE: [&str; 4] = ["--env", "BERTH_OCI_REQUEST=0", "c", "/proc/self/exe"];

/// A bundle in which that can be done, and a copy of the program to lose.
fn bundle(dir: &Path, cgroup: &str) {
    for folder in ["rootfs/bin", "rootfs/proc"] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
    }
    std::fs::copy("/bin/busybox", dir.join("rootfs/bin/busybox")).unwrap();
    for applet in ["sh", "readlink", "kill", "sleep"] {
        symlink("busybox", dir.join("rootfs/bin").join(applet)).unwrap();
    }
    std::fs::write(dir.join("rootfs/attack"), OVERWRITE).unwrap();
    std::fs::write(dir.join("rootfs/blocked"), "").unwrap();
    let mounts = [json!({"destination": "/proc", "type": "proc", "source": "proc"})];
    let capabilities = ["CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SYS_ADMIN"];
    let config = json!({
        "ociVersion": "1.2.0", "root": {"path": "rootfs"}, "mounts": mounts,
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "/attack"],
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}},
        "linux": {"cgroupsPath": cgroup, "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}]},
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(tools::berth(), dir.join("berth-oci")).unwrap();
}

/// CVE-2019-5736: the container's program is /proc/self/exe, which is the runtime's while that executes it, and whoever
/// keeps it open can write to it when nobody runs it any more. Defence: `Program::kept_in`; what the container gets hold
/// of is not the program that is installed, and lies on a read-only mount, or is sealed.
#[test]
fn cve_2019_5736_the_runtime_is_not_overwritten_by_a_container_that_it_enters() {
    let dir = tempfile::Builder::new().prefix("berth-e2e-escape-").tempdir_in("/var/tmp").unwrap();
    let cgroup = format!("/berth-test-e2e-{}-5736", std::process::id());
    bundle(dir.path(), &cgroup);
    let program = dir.path().join("berth-oci");
    let before = std::fs::read(&program).unwrap();
    let machine = Machine::new().unwrap();
    let runtime = |words: &[&str]| -> Command {
        let mut command = machine.command(&program);
        command.arg("--root").arg(dir.path().join("state")).args(words).current_dir(dir.path());
        command.stdin(Stdio::null());
        command
    };
    let output = dir.path().join("output");
    let bundle = dir.path().display().to_string();
    let mut create = runtime(&["create", "--bundle", &bundle, "c"]);
    create.stdout(std::fs::File::create(&output).unwrap()).stderr(Stdio::inherit());
    assert!(create.status().unwrap().success());
    tools::run(runtime(&["start", "c"])).unwrap().ok().unwrap();
    let said = || std::fs::read_to_string(&output).unwrap();
    until_true("the attacker", PATIENCE, || said().contains("ready")).unwrap();
    let kept = kept(&dir.path().join("state"));
    let held = std::fs::read(&kept).unwrap();
    let mut visit = runtime(&["exec"]);
    visit.args(VEHICLE).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut visit = visit.spawn().unwrap();
    let finished = until_true("the attack", PATIENCE, || said().contains("finished"));
    let _ = visit.kill();
    let _ = visit.wait();
    let deleted = tools::run(runtime(&["delete", "--force", "c"])).unwrap().ok();
    remove_cgroups(&cgroup);
    finished.unwrap();
    deleted.unwrap();
    assert!(said().contains("held ") && !said().contains("written"), "{}", said());
    assert!(std::fs::read(&program).unwrap() == before, "the program was overwritten");
    assert!(std::fs::read(&kept).unwrap() == held, "the program that makes containers was overwritten");
}

/// The one program that the runtime keeps beside the records of its containers.
fn kept(state: &Path) -> std::path::PathBuf {
    let entries = std::fs::read_dir(state).unwrap().map(|e| e.unwrap());
    let mut kept = entries.filter(|e| e.file_name().to_string_lossy().starts_with("program~"));
    let found = kept.next().unwrap().path();
    assert!(kept.next().is_none());
    found
}

/// CVE-2020-15257: a container in the host's network namespace reaches every abstract socket. Defence: all sockets
/// have paths that only root may connect to.
#[test]
fn cve_2020_15257_no_abstract_sockets_and_none_that_others_reach() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a").shell("exec sleep 1000000").with_pod("hostNetwork: true");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let mut paths = Vec::new();
    for pid in [node.agent().unwrap(), node.shim(pod.uid()).unwrap()] {
        let table = node.machine().shell(&format!("cat /proc/{pid}/net/unix; ls -l /proc/{pid}/fd")).unwrap();
        let held = |inode: &str| table.contains(&format!("socket:[{inode}]"));
        for line in table.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let [_, _, _, _, _, _, inode, path] = fields[..]
                && held(inode)
            {
                assert!(path.starts_with('/'), "an abstract socket: {line}");
                paths.push(path.to_owned());
            }
        }
    }
    paths.sort();
    paths.dedup();
    assert!(paths.len() >= 2, "the sockets of agent and shim: {paths:?}");
    for path in paths {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o077, 0, "{path}");
    }
}

/// CVE-2017-1002102: a container that may write to a volume which the agent keeps up to date puts a link in the place
/// of what the agent removes. Defence: it may not write there.
#[test]
fn cve_2017_1002102_copies_of_objects_cannot_be_changed_by_containers() {
    let node = Node::start().unwrap();
    let objects = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\ndata:\n  a: b\n";
    let pod = Builder::new("a")
        .shell("exec sleep 1000000")
        .with("volumeMounts: [{ name: conf, mountPath: /conf }]")
        .with_pod("volumes: [{ name: conf, configMap: { name: settings } }]");
    node.apply("objects.yaml", objects).unwrap();
    node.apply("a.yaml", &pod.yaml()).unwrap();
    node.wait_running(&["a"]).unwrap();
    let attack = "rm /conf/..data; ln -s /etc /conf/..data; touch /conf/x; echo y > /conf/a; chmod 777 /conf; cat /conf/a; echo; ls /conf";
    let ran = node.exec("a", &["sh", "-c", attack]).unwrap();
    assert_eq!(ran.stdout.split_whitespace().collect::<Vec<_>>(), ["b", "a"], "{ran}");
    assert_eq!(ran.stderr.matches("Read-only").count(), 5, "{ran}");
}

/// CVE-2021-41091, CVE-2021-41103: other users of the machine run set-user-ID programs of containers. Defence: they
/// cannot pass through the folders above.
#[test]
fn cve_2021_41091_other_users_do_not_reach_files_of_containers() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    node.wait_running(&["a"]).unwrap();
    for folder in ["root", "run/pods"] {
        let mode = std::fs::metadata(node.path(folder)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{folder} has mode {mode:o}");
    }
}

/// The termination message is the container's, and so is its file, which it can fill and try to replace. Defence: the
/// file is a mount, is read to a limit and without following links, and what is shown has no control characters.
#[test]
fn a_termination_message_neither_floods_the_agent_nor_controls_the_terminal() {
    let node = Node::start().unwrap();
    let attack = "printf '\\033[2J\\033]0;owned\\007\\302\\233evil' > /dev/termination-log; \
        rm /dev/termination-log; ln -s /etc/shadow /dev/termination-log; mkfifo /dev/termination-log; \
        head -c 100000000 /dev/zero >> /dev/termination-log; exit 1";
    let pod = Builder::new("a").restart("Never").shell(attack);
    node.apply("a.yaml", &pod.yaml()).unwrap();
    node.wait("the end of a", PATIENCE, |pods| {
        pods.get("a").and_then(|p| p.status.as_ref()?.phase.clone()).as_deref() == Some("Failed")
    })
    .unwrap();
    let describe = node.berth(&["describe", "pod", "a-n1"]).unwrap().ok().unwrap();
    assert!(describe.contains("^[[2J^[]0;owned^G\\u{9b}evil"), "{describe}");
    assert!(!describe.contains(|c: char| c.is_control() && c != '\n'), "{describe:?}");
    let object = node.berth(&["get", "pod", "a-n1", "-o", "json"]).unwrap().ok().unwrap();
    let object: serde_json::Value = serde_json::from_str(&object).unwrap();
    let message = object.pointer("/status/containerStatuses/0/state/terminated/message").unwrap();
    assert!(message.as_str().unwrap().len() <= 4096 + 16);
}
