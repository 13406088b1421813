//! What the chart does on a machine: install.sh in a folder in place of one, with a systemctl that writes down what it is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use berth_e2e::tools::{self, Ran};
use tempfile::TempDir;

use super::chart;

const SERVICE: &str = "[Service]\nExecStart=/opt/berth/bin/berth agent --config x\n";
const RESOLV: &str =
    "search kube-system.svc.c.example svc.c.example c.example\nnameserver 10.96.0.10\nnameserver fd00::a\n";

/// In place of `nsenter`: programs of the "machine" are run, systemctl is written down.
const ON_HOST: &str = r#"#!/bin/sh
case $1 in
  systemctl) shift; echo "$*" >>"$LOG"; [ "$*" = "restart berth.service" ] && [ -e "$LOG.broken" ] && exit 1; exit 0 ;;
  journalctl) echo "config.yaml: unknown field" ;;
  restorecon) exit 127 ;;
  *) exec "$@" ;;
esac
"#;

struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for folder in ["host/bin", "host/config", "host/units", "files", "token", "work"] {
            fs::create_dir_all(machine.path(folder)).unwrap();
        }
        machine.write("files/berth.service", SERVICE);
        machine.write("files/config.yaml", "port: 11250\n");
        machine.write("token/token-id", "abcdef");
        machine.write("token/token-secret", "0123456789abcdef");
        machine.write("ca.crt", "CERTIFICATE\n");
        machine.write("resolv.conf", RESOLV);
        machine.program("berth", "echo berth 1");
        machine.write("on-host", ON_HOST);
        machine.executable("on-host");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn executable(&self, name: &str) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn program(&self, name: &str, line: &str) {
        self.write(name, &format!("#!/bin/sh\n{line}\n"));
        self.executable(name);
    }

    /// Runs install.sh as the DaemonSet does.
    fn run(&self, verb: &str, more: &[(&str, &str)]) -> Ran {
        let mut command = Command::new(tools::find("busybox").unwrap());
        command.arg("sh").arg(chart().join("files/install.sh")).arg(verb);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        for (name, path) in [
            ("HOST", "host"),
            ("FILES", "files"),
            ("BINARY", "berth"),
            ("TOKEN", "token"),
            ("CA", "ca.crt"),
            ("CLIENT_CA", "client-ca.crt"),
            ("WORK", "work"),
            ("RESOLV", "resolv.conf"),
            ("ON_HOST", "on-host"),
            ("LOG", "systemctl"),
            ("HOST_BIN", "host/bin"),
            ("HOST_CONFIG", "host/config"),
            ("HOST_UNITS", "host/units"),
        ] {
            command.env(name, self.path(path));
        }
        command.env("NODE_NAME_PREFIX", "berth-").env("NODE_NAME", "worker1");
        command.env("KUBERNETES_SERVICE_HOST", "10.96.0.1").env("KUBERNETES_SERVICE_PORT_HTTPS", "443");
        command.envs(more.iter().copied());
        tools::run(command).unwrap()
    }

    #[track_caller]
    fn install(&self) -> String {
        self.run("install", &[]).ok().unwrap()
    }

    /// What systemctl was told since the last time.
    fn told(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("systemctl")).unwrap_or_default();
        let _ = fs::remove_file(self.path("systemctl"));
        text.lines().map(str::to_owned).collect()
    }

    /// Every file on the machine.
    fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        for folder in ["bin", "config", "units", "units/berth.service.d"] {
            for entry in fs::read_dir(self.path("host").join(folder)).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_file() {
                    found.push(format!("{folder}/{}", entry.file_name().to_string_lossy()));
                }
            }
        }
        found.sort();
        found
    }
}

const OURS: [&str; 6] = [
    "bin/berth",
    "config/.chart",
    "config/bootstrap-kubeconfig",
    "config/client-ca.crt",
    "config/config.yaml",
    "units/berth.service",
];
const STARTED: [&str; 3] = ["daemon-reload", "--quiet enable berth.service", "restart berth.service"];

#[test]
fn a_machine_gets_its_files_once() {
    let m = Machine::new();
    let said = m.install();
    assert!(said.contains("berth-worker1 runs what this chart has"), "{said}");
    assert_eq!(m.files(), OURS);
    assert_eq!(m.told(), STARTED);
    assert_eq!(m.read("host/units/berth.service"), SERVICE);
    let mode = |name: &str| fs::metadata(m.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("host/bin/berth"), 0o755);
    assert_eq!(mode("host/config/bootstrap-kubeconfig"), 0o600);

    let said = m.install();
    assert!(said.contains("nothing has changed"), "{said}");
    assert_eq!(m.told(), ["--quiet enable berth.service", "start berth.service"]);
    assert_eq!(m.files(), OURS);
}

#[test]
fn the_config_knows_the_machine_and_its_dns() {
    let m = Machine::new();
    m.install();
    let expected = "port: 11250\nnodeName: berth-worker1\nclusterDNS: [\"10.96.0.10\", \"fd00::a\"]\nclusterDomain: c.example\n";
    assert_eq!(m.read("host/config/config.yaml"), expected);

    // What values say wins.
    m.write("files/config.yaml", "clusterDNS:\n- 10.0.0.1\nclusterDomain: x\n");
    m.install();
    assert_eq!(
        m.read("host/config/config.yaml"),
        "clusterDNS:\n- 10.0.0.1\nclusterDomain: x\nnodeName: berth-worker1\n"
    );

    // A kubelet without cluster DNS gives its pods the machine's resolvers: those are not the cluster's.
    m.write("files/config.yaml", "port: 1\n");
    m.write("resolv.conf", "search lan\nnameserver 192.168.0.1\n");
    m.install();
    assert_eq!(m.read("host/config/config.yaml"), "port: 1\nnodeName: berth-worker1\n");
}

#[test]
fn the_bootstrap_kubeconfig_leads_to_the_cluster() {
    let m = Machine::new();
    m.install();
    let text = m.read("host/config/bootstrap-kubeconfig");
    assert!(text.contains("server: https://10.96.0.1:443\n"), "{text}");
    assert!(text.contains("certificate-authority-data: Q0VSVElGSUNBVEUK\n"), "{text}");
    assert!(text.contains("token: abcdef.0123456789abcdef\n"), "{text}");
    m.run("install", &[("KUBERNETES_SERVICE_HOST", "fd00::1")]).ok().unwrap();
    assert!(m.read("host/config/bootstrap-kubeconfig").contains("server: https://[fd00::1]:443\n"));
    m.run("install", &[("API_SERVER", "https://api.example:6443")]).ok().unwrap();
    assert!(m.read("host/config/bootstrap-kubeconfig").contains("server: https://api.example:6443\n"));

    // Clients of the API server may be signed by another authority than the server is.
    assert_eq!(m.read("host/config/client-ca.crt"), "CERTIFICATE\n");
    m.write("client-ca.crt", "CLIENTS\n");
    m.install();
    assert_eq!(m.read("host/config/client-ca.crt"), "CLIENTS\n");

    fs::remove_file(m.path("token/token-id")).unwrap();
    let refused = m.run("install", &[]).code(1).unwrap();
    assert!(refused.stderr.contains("lacks token-id or token-secret"), "{refused}");
    m.write("token/token-id", "abcdef");
    let refused = m.run("install", &[("KUBERNETES_SERVICE_HOST", "")]).code(1).unwrap();
    assert!(refused.stderr.contains("set apiServer"), "{refused}");
}

#[test]
fn a_change_restarts_the_unit_and_an_interrupted_one_still_does() {
    let m = Machine::new();
    m.install();
    m.told();
    m.program("berth", "echo berth 2");
    let said = m.install();
    assert!(said.contains("wrote") && said.contains("host/bin/berth"), "{said}");
    assert_eq!(m.told(), STARTED);
    assert_eq!(m.run("install", &[]).ok().unwrap().matches("wrote").count(), 0);
    m.told();

    // The unit cannot start with the new config: the installation fails and says why, and is not done the next time either.
    m.write("files/config.yaml", "prot: 1\n");
    m.write("systemctl.broken", "");
    let failed = m.run("install", &[]).code(1).unwrap();
    assert!(failed.stderr.contains("config.yaml: unknown field"), "{failed}");
    assert!(failed.stderr.contains("restart berth.service failed on this machine"), "{failed}");
    m.told();
    m.run("install", &[]).code(1).unwrap();
    assert_eq!(m.told(), STARTED, "nothing was written, but the restart is still due");
    fs::remove_file(m.path("systemctl.broken")).unwrap();
    m.install();
    assert_eq!(m.told(), STARTED);
    m.install();
    assert!(!m.told().iter().any(|t| t.starts_with("restart")));
}

#[test]
fn what_others_have_put_there_is_neither_replaced_nor_removed() {
    let m = Machine::new();
    m.write("host/units/berth.service", "[Service]\nExecStart=/usr/local/bin/berth agent\n");
    let refused = m.run("install", &[]).code(1).unwrap();
    assert!(
        refused.stderr.contains("host/units/berth.service is there, and not from this chart"),
        "{refused}"
    );
    assert!(refused.stderr.contains("hostPaths.units"), "{refused}");
    assert!(m.told().is_empty());
    m.run("cleanup", &[]).ok().unwrap();
    assert!(m.read("host/units/berth.service").contains("/usr/local/bin/berth"));
    assert!(!m.told().iter().any(|t| t.starts_with("stop")), "their unit runs on");

    // The same file is no reason to refuse, but stays theirs.
    let m = Machine::new();
    m.write("host/units/berth.service", SERVICE);
    m.install();
    m.run("cleanup", &[]).ok().unwrap();
    assert_eq!(m.files(), ["units/berth.service"]);
}

#[test]
fn a_program_that_does_not_run_here_does_not_replace_one_that_does() {
    let m = Machine::new();
    m.install();
    m.told();
    let good = m.read("host/bin/berth");
    m.program("berth", "echo 'version GLIBC_2.99 not found' >&2; exit 1");
    let refused = m.run("install", &[]).code(1).unwrap();
    assert!(
        refused.stderr.contains("does not run on this machine: version GLIBC_2.99 not found"),
        "{refused}"
    );
    assert_eq!(m.read("host/bin/berth"), good);
    assert!(m.told().is_empty());
}

#[test]
fn a_name_that_is_too_long_is_refused() {
    let m = Machine::new();
    let refused = m.run("install", &[("NODE_NAME", &"a".repeat(58))]).code(1).unwrap();
    assert!(refused.stderr.contains("longer than 63 characters"), "{refused}");
    assert!(m.files().is_empty());
}

#[test]
fn cleanup_ends_the_pods_and_removes_what_was_put_there() {
    let m = Machine::new();
    m.install();
    m.told();
    // The drop-in is there while the unit is restarted.
    let seen = m.path("seen");
    let probe = ON_HOST.replace(
        "systemctl) shift;",
        &format!(
            "systemctl) shift; cp \"$HOST_UNITS\"/berth.service.d/cleanup.conf {} 2>/dev/null;",
            seen.display()
        ),
    );
    m.write("on-host", &probe);
    m.write("host/config/auth.json", "{}");
    let said = m.run("cleanup", &[]).ok().unwrap();
    assert!(said.contains("ending the node's pods"), "{said}");
    let order = [
        "daemon-reload",
        "restart berth.service",
        "stop berth.service",
        "--quiet disable berth.service",
        "daemon-reload",
    ];
    assert_eq!(m.told(), order);
    assert!(
        m.read("seen")
            .contains("ExecStart=\nExecStart=/opt/berth/bin/berth agent --config x --cleanup-on-exit\n")
    );
    assert_eq!(m.files(), ["config/auth.json"], "what an administrator has put beside it stays");
    assert!(!m.path("host/units/berth.service.d").exists());

    let said = m.run("cleanup", &[]).ok().unwrap();
    assert!(said.contains("nothing of this chart is on this machine"), "{said}");
    assert!(m.told().is_empty());
}

#[test]
fn cleanup_leaves_what_was_changed_by_hand() {
    let m = Machine::new();
    m.install();
    m.write("host/config/config.yaml", "port: 1\n");
    let said = m.run("cleanup", &[]).ok().unwrap();
    assert!(said.contains("host/config/config.yaml was changed by hand and stays"), "{said}");
    assert_eq!(m.files(), ["config/config.yaml"]);
}
