//! The units of systemd.

use berth_e2e::tools;
use serde_json::json;

use super::{installed, read};

fn verify(unit: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("berth.service");
    // systemd wants the program to be there.
    let words = unit.replace("/usr/local/bin/berth ", &format!("{} ", tools::berth().display()));
    let words = words.replace("/opt/berth/bin/berth ", &format!("{} ", tools::berth().display()));
    assert_ne!(words, unit, "it starts berth");
    std::fs::write(&file, words).unwrap();
    let mut command = std::process::Command::new(tools::find("systemd-analyze").unwrap());
    command.args(["verify", "--man=no"]).arg(&file);
    let ran = tools::run(command).unwrap().code(0).unwrap();
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
}

#[test]
fn systemd_takes_the_units() {
    verify(&read("manifests/deploy/berth.service"));
    let step = installed(&json!({}));
    verify(step.ok().object("ConfigMap/berth")["data"]["berth.service"].as_str().unwrap());
}

/// A unit that systemd complains about is one that the test above would find.
#[test]
#[should_panic(expected = "Delegat")]
fn systemd_complains_about_a_wrong_unit() {
    verify(&read("manifests/deploy/berth.service").replace("Delegate=yes", "Delegat=yes"));
}

#[test]
fn a_node_by_itself_and_one_of_a_cluster_differ_in_their_command() {
    let lines = |text: &str| -> Vec<String> {
        let kept = text.lines().filter(|l| !l.starts_with("ExecStart="));
        kept.skip_while(|l| l.starts_with('#')).map(str::to_owned).collect()
    };
    assert_eq!(
        lines(&read("manifests/deploy/berth.service")),
        lines(&read("charts/berth/files/berth.service"))
    );
}
