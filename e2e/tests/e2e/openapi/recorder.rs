//! What a node, kubectl and a server say to each other, written down and held against the OpenAPI of Kubernetes
//! (`scripts/openapi`).

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use berth_e2e::machine::{ADDRESS, OUTSIDE};
use berth_e2e::tools;
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::Cluster;

/// Where proxies listen, on the server's machine.
const BEFORE_SERVER: u16 = 7443;
const BEFORE_NODE: u16 = 11250;

/// A proxy before a cluster's server, or before the node's own API.
pub struct Recorder {
    child: Child,
    record: PathBuf,
    port: u16,
}

/// What has been said, and what is wrong with it.
#[derive(Debug, Deserialize)]
pub struct Findings {
    /// How often a client did something, by `client verb path`.
    pub seen: BTreeMap<String, usize>,
    /// How often something was wrong.
    pub complaints: BTreeMap<String, usize>,
}

/// `scripts/openapi` with these words.
fn openapi(mut python: Command) -> Command {
    python.arg(tools::checkout().join("scripts/openapi"));
    python.env("PYTHONDONTWRITEBYTECODE", "1").env("BERTH_TOOLS", tools::target_dir().join("tools"));
    python
}

/// What is to be said of a record; `flags` are the checker's.
pub fn check(record: &Path, flags: &[&str]) -> Findings {
    let mut command = openapi(Command::new("python3"));
    command.arg("check").args(flags).arg(record);
    let text = tools::run(command).unwrap().ok().unwrap();
    serde_json::from_str(&text).unwrap()
}

/// How an object of a definition is judged beside python's jsonschema, see `scripts/openapi/compare.py`.
pub fn compare(definition: &str, object: &Value) -> Value {
    // Where Debian's packages are.
    let mut command = openapi(Command::new("/usr/bin/python3"));
    command.args(["compare", definition]);
    let text = tools::run_with(command, object.to_string().as_bytes()).unwrap().ok().unwrap();
    serde_json::from_str(&text).unwrap()
}

impl Recorder {
    /// Sends whoever uses the cluster's kubeconfig through a proxy.
    pub fn before_server(cluster: &Cluster) -> Self {
        let address = |port: u16| format!("{OUTSIDE}:{port}");
        let recorder = Self::start(cluster, BEFORE_SERVER, &address(6443));
        let kubeconfig = cluster.path("kubeconfig");
        let text = std::fs::read_to_string(&kubeconfig).unwrap();
        let through = text.replace(&address(6443), &address(BEFORE_SERVER));
        assert_ne!(text, through, "the kubeconfig names another address");
        std::fs::write(&kubeconfig, through).unwrap();
        recorder
    }

    /// A proxy by which the node's own API can be asked.
    pub fn before_node(cluster: &Cluster) -> Self {
        Self::start(cluster, BEFORE_NODE, &format!("{ADDRESS}:10250"))
    }

    fn start(cluster: &Cluster, port: u16, server: &str) -> Self {
        let record = cluster.path(&format!("record-{port}"));
        let mut command = openapi(cluster.node.machine().outside("python3"));
        command.args(["record", "--listen", &format!("{OUTSIDE}:{port}"), "--server", server]);
        command.arg("--authority").arg(cluster.path("root/pki/ca.crt"));
        command.arg("--key").arg(cluster.path("root/pki/ca.key")).arg(&record);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "listening\n", "the proxy has ended: {:?}", child.wait());
        Self { child, record, port }
    }

    /// Where to ask it.
    pub fn url(&self) -> String {
        format!("https://{OUTSIDE}:{}", self.port)
    }

    /// What has been said up to now.
    pub fn findings(&self) -> Findings {
        check(&self.record, if self.port == BEFORE_NODE { &["--node"] } else { &[] })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // The proxy itself goes with the machine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A difference to Kubernetes that is meant: a part of the complaint, and why.
pub type Known = (&'static str, &'static str);

impl Findings {
    /// Fails for whatever is wrong and not known, and for what should be known and is not there.
    pub fn assert_good(&self, known: &[Known]) {
        let is_known = |complaint: &str| known.iter().any(|(part, _)| complaint.contains(part));
        let wrong: Vec<String> = self
            .complaints
            .iter()
            .filter(|(complaint, _)| !is_known(complaint))
            .map(|(complaint, count)| format!("{count} x {complaint}"))
            .collect();
        assert!(wrong.is_empty(), "{} complaints:\n{}", wrong.len(), wrong.join("\n"));
        for (part, why) in known {
            let there = self.complaints.keys().any(|complaint| complaint.contains(part));
            assert!(there, "nobody complains of {part:?} any more ({why})");
        }
    }

    /// Fails unless all of these were done.
    pub fn assert_seen(&self, all: &[&str]) {
        let missing: Vec<&&str> = all.iter().filter(|one| !self.seen.contains_key(**one)).collect();
        assert!(missing.is_empty(), "never done: {missing:#?}\ndone: {:#?}", self.seen);
    }
}
