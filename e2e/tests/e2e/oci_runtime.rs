//! `berth-oci` as the runtime of podman and of containerd, both from Debian's packages.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_e2e::leftovers::remove_cgroups;
use berth_e2e::machine::Machine;
use berth_e2e::poll::until;
use berth_e2e::tools::{self, Ran};

/// A machine with an engine's folders and the runtime's link on it.
pub(crate) struct Host {
    pub(crate) machine: Machine,
    dir: tempfile::TempDir,
    pub(crate) cgroup: String,
}

impl Host {
    fn new(name: &str) -> Host {
        let dir = tempfile::Builder::new().prefix("berth-e2e-oci-").tempdir_in("/var/tmp").unwrap();
        symlink(tools::berth(), dir.path().join("berth-oci")).unwrap();
        let cgroup = format!("/berth-test-e2e-{}-{name}", std::process::id());
        let machine = Machine::new().unwrap();
        // The engines keep sockets and locks there.
        machine.shell("mount -t tmpfs run /run").unwrap();
        Host { machine, dir, cgroup }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn runtime(&self) -> String {
        self.path("berth-oci").display().to_string()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        remove_cgroups(&self.cgroup);
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

pub(crate) struct Podman(pub(crate) Host);

impl Podman {
    pub(crate) fn new() -> Podman {
        let host = Host::new("podman");
        let dir = host.dir.path().display();
        host.write(
            "containers.conf",
            &format!(
                "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"berth\"\n\
                 tmp_dir = \"{dir}/tmp\"\n[engine.runtimes]\nberth = [\"{dir}/berth-oci\"]\n"
            ),
        );
        host.write(
            "storage.conf",
            &format!(
                "[storage]\ndriver = \"overlay\"\nrunroot = \"{dir}/run\"\ngraphroot = \"{dir}/graph\"\n"
            ),
        );
        Podman(host)
    }

    pub(crate) fn run(&self, line: &[&str]) -> Ran {
        let mut command = self.0.machine.command(tools::find("podman").unwrap());
        command
            .args(line)
            .env("CONTAINERS_CONF", self.0.path("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.0.path("storage.conf"))
            .env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
        tools::run(command).unwrap()
    }

    pub(crate) fn ok(&self, line: &str) -> String {
        self.run(&words(line)).ok().unwrap().trim().to_owned()
    }

    /// `podman run` of a shell script.
    fn shell(&self, flags: &str, script: &str) -> Ran {
        let parent = format!("--cgroup-parent={}", self.0.cgroup);
        let mut line = vec!["run", "--network=none", &parent];
        line.extend(words(flags));
        line.extend(["localhost/demo", "sh", "-c", script]);
        self.run(&line)
    }
}

#[test]
fn podman_runs_containers_with_berth_oci() {
    let podman = Podman::new();
    let tar = tools::demo_rootfs().unwrap();
    podman.run(&["import", "-q", tar.to_str().unwrap(), "localhost/demo"]).ok().unwrap();

    let ran = podman.shell("--rm", "echo out; echo err >&2; exit 5").code(5).unwrap();
    assert_eq!((&*ran.stdout, &*ran.stderr), ("out\n", "err\n"));
    let limited =
        "--rm --memory=64m --cpus=0.5 --pids-limit=20 --read-only --cap-drop=all --user=33:34 -w /tmp";
    let ran = podman.shell(limited, "id -u; id -g; pwd; grep CapEff /proc/self/status; touch /x 2>&1");
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines[..4], ["33", "34", "/tmp", "CapEff:\t0000000000000000"], "{ran}");
    assert!(lines[4].contains("Read-only file system"), "{ran}");
    let tty = podman.shell("--rm -t", "tty").ok().unwrap();
    assert_eq!(tty.trim(), "/dev/pts/0");

    let parent = format!("--cgroup-parent={}", podman.0.cgroup);
    let missing =
        podman.run(&["run", "--rm", "--network=none", &parent, "localhost/demo", "no-such-program"]);
    let missing = missing.code(127).unwrap();
    assert!(missing.stderr.contains("executable file not found in $PATH"), "{missing}");

    podman.shell("-d --name=a", "trap 'exit 3' TERM; while :; do sleep 0.1; done").ok().unwrap();
    assert_eq!(podman.ok("inspect a --format {{.State.Status}}/{{.OCIRuntime}}"), "running/berth");
    let exec = podman.run(&["exec", "a", "sh", "-c", "cat /proc/1/comm; exit 4"]).code(4).unwrap();
    assert_eq!(exec.stdout, "sh\n");
    assert_eq!(podman.ok("exec -t a tty"), "/dev/pts/0");
    podman.ok("pause a");
    assert_eq!(podman.ok("inspect a --format {{.State.Status}}"), "paused");
    podman.ok("unpause a");
    let pids: u64 = podman.ok("stats --no-stream --format {{.PIDS}} a").parse().unwrap();
    assert!(pids >= 1);
    podman.ok("stop -t 10 a");
    assert_eq!(podman.ok("inspect a --format {{.State.ExitCode}}/{{.State.Status}}"), "3/exited");
    podman.ok("start a");
    podman.ok("kill -s KILL a");
    assert_eq!(podman.ok("wait a"), "137");
    podman.ok("rm a");
    assert_eq!(podman.ok("ps -aq"), "");
    assert_eq!(podman.0.machine.processes().unwrap().len(), 0, "something is left running");
}

pub(crate) struct Containerd {
    pub(crate) host: Host,
    daemon: Child,
}

impl Containerd {
    pub(crate) fn new() -> Containerd {
        let host = Host::new("containerd");
        let dir = host.dir.path().display();
        let config = host.write(
            "config.toml",
            &format!(
                "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\n\
                 disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{dir}/c.sock\"\n"
            ),
        );
        let rootfs = host.path("rootfs");
        std::fs::create_dir(&rootfs).unwrap();
        let mut unpack = Command::new("tar");
        unpack.arg("-xf").arg(tools::demo_rootfs().unwrap()).arg("-C").arg(&rootfs);
        tools::run(unpack).unwrap().ok().unwrap();
        // It looks for its shim beside itself.
        let daemon = tools::find("containerd").unwrap();
        let daemon = with_path(host.machine.command(daemon))
            .arg("-c")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let containerd = Containerd { host, daemon };
        let answers = || containerd.run("version").code == 0;
        until("containerd answers", Duration::from_secs(30), || Ok(answers().then_some(()))).unwrap();
        containerd
    }

    fn run(&self, line: &str) -> Ran {
        let mut command = with_path(self.host.machine.command(tools::find("ctr").unwrap()));
        command.arg("-a").arg(self.host.path("c.sock")).args(words(line));
        tools::run(command).unwrap()
    }

    /// `ctr run` with the runtime under test.
    pub(crate) fn start(&self, flags: &str, id: &str, program: &[&str]) -> Ran {
        let mut command = with_path(self.host.machine.command(tools::find("ctr").unwrap()));
        command.arg("-a").arg(self.host.path("c.sock")).arg("run").args(words(flags));
        command.args([
            "--runc-binary",
            &self.host.runtime(),
            "--cgroup",
            &format!("{}/{id}", self.host.cgroup),
        ]);
        command.arg("--rootfs").arg(self.host.path("rootfs")).arg(id).args(program);
        tools::run(command).unwrap()
    }

    fn task(&self, id: &str) -> String {
        let table = self.run("task ls").ok().unwrap();
        let line = table.lines().find(|l| l.starts_with(id)).unwrap_or_default();
        line.split_whitespace().last().unwrap_or_default().to_owned()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Programs that scripts/install unpacks call each other.
fn with_path(mut command: Command) -> Command {
    let tools = tools::target_dir().join("tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all =
        std::iter::once(tools).chain(std::env::split_paths(&path)).chain([Path::new("/usr/sbin").into()]);
    command.env("PATH", std::env::join_paths(all).unwrap());
    command
}

#[test]
fn containerd_runs_containers_with_berth_oci() {
    let containerd = Containerd::new();
    let ran = containerd.start("--rm", "one", &["/bin/sh", "-c", "echo out; exit 5"]).code(5).unwrap();
    assert_eq!(ran.stdout, "out\n");
    let missing = containerd.start("--rm", "none", &["/no/such/program"]);
    assert!(missing.code != 0 && missing.stderr.contains("no such file or directory"), "{missing}");

    containerd.start("-d", "two", &["/bin/sleep", "1000000"]).ok().unwrap();
    assert_eq!(containerd.task("two"), "RUNNING");
    let exec = containerd.run("task exec --exec-id e two /bin/cat /proc/1/comm").ok().unwrap();
    assert_eq!(exec, "sleep\n");
    containerd.run("task pause two").ok().unwrap();
    assert_eq!(containerd.task("two"), "PAUSED");
    containerd.run("task resume two").ok().unwrap();
    assert_eq!(containerd.run("task ps two").ok().unwrap().lines().count(), 2);
    let metrics = containerd.run("task metrics two").ok().unwrap();
    assert!(metrics.contains("memory"), "{metrics}");
    containerd.run("task kill -s KILL two").ok().unwrap();
    let stopped = || Ok((containerd.task("two") == "STOPPED").then_some(()));
    until("the task is stopped", Duration::from_secs(10), stopped).unwrap();
    let removed = containerd.run("task rm two");
    assert!(removed.stderr.contains("137"), "{removed}");
    containerd.run("container rm two").ok().unwrap();
    let left = containerd.host.machine.processes().unwrap();
    assert!(left.iter().all(|p| p.command.contains("containerd")), "{left:?}");
}
