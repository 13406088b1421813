//! The unit of manifests/deploy: what it promises of restarts, of the agent's death, and of pods.

use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_e2e::manifest;
use berth_e2e::node::Node;
use berth_e2e::poll::until_true;
use berth_e2e::tools;

use crate::node::property;
use crate::unit::systemctl;

const UNIT: &str = "berth-deploy-test.service";
const SOON: Duration = Duration::from_secs(60);

/// The unit under another name. Dropped, it is stopped and forgotten, and the shims that it left are ended.
struct Unit {
    file: PathBuf,
    run: PathBuf,
}

impl Unit {
    /// With the command that starts this node's agent in place of its own.
    fn install(node: &Node) -> Self {
        let agent = node.outer_agent();
        let words = std::iter::once(agent.get_program()).chain(agent.get_args());
        let command: Vec<String> = words.map(|w| format!("\"{}\"", w.to_str().unwrap())).collect();
        let text = std::fs::read_to_string(tools::checkout().join("manifests/deploy/berth.service")).unwrap();
        let own = text.replace("/usr/local/bin/berth agent", &command.join(" "));
        assert_ne!(own, text);
        let program = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|dir| dir.join("nsenter"))
            .find(|path| path.is_file())
            .unwrap();
        // systemd looks for programs in folders of its own.
        let own = own.replace("\"nsenter\"", program.to_str().unwrap());
        let unit = Self { file: Path::new("/run/systemd/system").join(UNIT), run: node.path("run") };
        std::fs::create_dir_all(unit.file.parent().unwrap()).unwrap();
        std::fs::write(&unit.file, own).unwrap();
        systemctl(&["daemon-reload"]).ok().unwrap();
        unit
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        systemctl(&["stop", UNIT]);
        for pod in std::fs::read_dir(self.run.join("pods")).into_iter().flatten().flatten() {
            if let Ok(pid) = std::fs::read_to_string(pod.path().join("shim.pid")) {
                let _ = std::process::Command::new("kill").args(["-KILL", pid.trim()]).status();
            }
        }
        let _ = std::fs::remove_file(&self.file);
        systemctl(&["daemon-reload"]);
    }
}

#[test]
fn pods_outlive_what_happens_to_the_unit() {
    let node = Node::prepare("", &[]).unwrap();
    let unit = Unit::install(&node);
    // Type=notify: it is started when the agent answers.
    systemctl(&["start", UNIT]).ok().unwrap();
    node.pods().unwrap();
    assert_eq!(property(UNIT, "ActiveState"), "active");
    node.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    use berth_e2e::pods::PodExt;
    let shim = node.shim(pod.uid()).unwrap();
    let goes_on = |what: &str| {
        assert!(Path::new(&format!("/proc/{shim}")).exists(), "{what}: the pod's shim has ended");
        assert_eq!(node.shim(pod.uid()).unwrap(), shim, "{what}: there is another shim");
    };
    let main_pid = || property(UNIT, "MainPID");

    let first = main_pid();
    systemctl(&["restart", UNIT]).ok().unwrap();
    assert_ne!(main_pid(), first);
    assert_eq!(node.wait_running(&["a"]).unwrap()["a"].restarts(), 0);
    goes_on("restart");

    let second = main_pid();
    let killed = std::process::Command::new("kill").args(["-KILL", &second]).status().unwrap();
    assert!(killed.success());
    let back = || {
        property(UNIT, "ActiveState") == "active" && !["0", second.as_str()].contains(&main_pid().as_str())
    };
    until_true("systemd starts the agent again", SOON, back).unwrap();
    assert_eq!(node.wait_running(&["a"]).unwrap()["a"].restarts(), 0);
    goes_on("kill -9");

    systemctl(&["stop", UNIT]).ok().unwrap();
    assert_eq!(property(UNIT, "ActiveState"), "inactive");
    goes_on("stop");

    systemctl(&["start", UNIT]).ok().unwrap();
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
    drop(unit);
}
