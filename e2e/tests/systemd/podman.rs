//! podman, which has systemd make the cgroups of its pods and asks the runtime to do so for containers.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use berth_e2e::bundle::is_v2;
use berth_e2e::tools::{self, Ran};

use crate::unit::{Unit, systemctl};

struct Podman(tempfile::TempDir);

impl Podman {
    fn new() -> Podman {
        let dir = tempfile::Builder::new().prefix("berth-e2e-podman-").tempdir_in("/var/tmp").unwrap();
        let at = dir.path().display();
        symlink(tools::berth(), dir.path().join("berth-oci")).unwrap();
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "containers.conf",
            format!(
                "[engine]\ncgroup_manager = \"systemd\"\nevents_logger = \"file\"\nruntime = \"berth\"\n\
                 tmp_dir = \"{at}/tmp\"\n[engine.runtimes]\nberth = [\"{at}/berth-oci\"]\n"
            ),
        );
        write(
            "storage.conf",
            format!("[storage]\ndriver = \"vfs\"\nrunroot = \"{at}/run\"\ngraphroot = \"{at}/graph\"\n"),
        );
        Podman(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, words: &[&str]) -> Ran {
        let mut command = Command::new(tools::find("podman").unwrap());
        command
            .args(words)
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.path("storage.conf"));
        tools::run(command).unwrap()
    }

    fn ok(&self, line: &str) -> String {
        self.run(&line.split_whitespace().collect::<Vec<_>>()).ok().unwrap().trim().to_owned()
    }
}

#[test]
fn podman_runs_containers_in_scopes() {
    let podman = Podman::new();
    let tar = tools::demo_rootfs().unwrap();
    podman.run(&["import", "-q", tar.to_str().unwrap(), "localhost/demo"]).ok().unwrap();
    let script = "trap 'exit 3' TERM; while :; do sleep 0.1; done";
    let limits: &[&str] =
        if Unit::has("memory") { &["--memory=64m", "--pids-limit=30"] } else { &["--pids-limit=30"] };
    let flags = ["run", "-d", "--name=a", "--network=none"];
    let words = [&flags, limits, &["localhost/demo", "sh", "-c", script]].concat();
    let id = podman.run(&words).ok().unwrap().trim().to_owned();
    assert_eq!(podman.ok("inspect a --format {{.State.Status}}/{{.OCIRuntime}}"), "running/berth");
    let scope = format!("libpod-{id}.scope");
    let shown = systemctl(&["show", "-p", "ActiveState,Slice,MemoryMax,TasksMax", &scope]).ok().unwrap();
    for line in ["ActiveState=active", "Slice=machine.slice", "TasksMax=30"] {
        assert!(shown.lines().any(|l| l == line), "{line}: {shown}");
    }
    if is_v2() {
        assert!(shown.contains("MemoryMax=67108864"), "{shown}");
    }
    podman.run(&["exec", "a", "sh", "-c", "exit 4"]).code(4).unwrap();
    let pids: u64 = podman.ok("stats --no-stream --format {{.PIDS}} a").parse().unwrap();
    assert!(pids >= 1);
    podman.ok("pause a");
    podman.ok("unpause a");
    podman.ok("stop -t 20 a");
    assert_eq!(podman.ok("inspect a --format {{.State.ExitCode}}/{{.State.Status}}"), "3/exited");
    podman.ok("start a");
    podman.ok("rm -f -t 0 a");
    assert!(systemctl(&["show", "-p", "LoadState", &scope]).ok().unwrap().contains("not-found"));
}

#[test]
fn podman_runs_pods_in_slices() {
    let podman = Podman::new();
    let tar = tools::demo_rootfs().unwrap();
    podman.run(&["import", "-q", tar.to_str().unwrap(), "localhost/demo"]).ok().unwrap();
    let infra = ["--infra-image=localhost/demo", "--infra-command=sleep 1000000"];
    podman.run(&[&["pod", "create", "--name=p", "--network=none"], &infra[..]].concat()).ok().unwrap();
    let words = ["run", "-d", "--pod=p", "--name=b", "localhost/demo", "sleep", "1000000"];
    let id = podman.run(&words).ok().unwrap().trim().to_owned();
    let shown = systemctl(&["show", "-p", "Slice,ActiveState", &format!("libpod-{id}.scope")]).ok().unwrap();
    assert!(shown.contains("ActiveState=active") && shown.contains("Slice=machine-libpod_pod_"), "{shown}");
    podman.ok("pod rm -f -t 0 p");
}
