//! The states of a container and what leads from one to the other: runtime-spec, "Lifecycle" and "Operations".

use std::fs;
use std::path::Path;
use std::time::Duration;

use berth_e2e::bundle::Bundle;
use berth_e2e::poll::until_true;
use serde_json::{Value, json};

use crate::checks::checks;

checks! {
    the_state_has_what_the_specification_wants
    the_program_does_not_run_before_start
    a_later_configuration_has_no_effect
    a_used_id_is_refused
    an_id_and_a_bundle_are_needed
    what_does_not_exist_is_an_error
    only_a_created_container_can_be_started
    signals_arrive
    signal_0_asks_whether_it_runs
    an_unknown_signal_is_refused
    a_created_container_can_be_killed
    a_created_container_ends_by_sigterm
    all_processes_can_be_killed
    a_stopped_container_cannot_be_killed
    a_running_container_cannot_be_deleted
    delete_by_force
    delete_leaves_no_cgroup
    a_stopped_container_has_no_pid;
    alone
    what_it_leaves_behind_can_be_killed
    a_created_container_cannot_be_deleted
    without_a_process_only_the_start_fails
}

const SLEEP: &str = "sleep 1000";

fn fails(bundle: &Bundle, words: &[&str]) -> String {
    let ran = bundle.call(words).unwrap();
    assert_ne!(ran.code, 0, "{ran}");
    ran.stderr
}

fn the_state_has_what_the_specification_wants(bundle: &mut Bundle) {
    bundle.config["annotations"] = json!({"a.b": "c"});
    bundle.shell(SLEEP).create().unwrap();
    let state = bundle.state().unwrap().unwrap();
    assert_eq!((&state["id"], &state["status"]), (&json!(bundle.id), &json!("created")));
    assert_eq!(state["annotations"], json!({"a.b": "c"}));
    assert_eq!(Path::new(state["bundle"].as_str().unwrap()), bundle.path("").components().as_path());
    assert!(state["ociVersion"].as_str().unwrap().starts_with("1."), "{state}");
    assert!(Path::new("/proc").join(state["pid"].to_string()).exists());
    bundle.start().unwrap();
    assert_eq!(bundle.status().unwrap(), "running");
}

fn the_program_does_not_run_before_start(bundle: &mut Bundle) {
    bundle.shell("echo ran >> /out").create().unwrap();
    let file = bundle.path("rootfs/out");
    assert!(!file.exists());
    bundle.start().unwrap();
    bundle.wait("stopped").unwrap();
    fails(bundle, &["start", &bundle.id]);
    assert_eq!(fs::read_to_string(file).unwrap(), "ran\n");
}

fn a_later_configuration_has_no_effect(bundle: &mut Bundle) {
    bundle.shell("echo first").create().unwrap();
    bundle.shell("echo second").save().unwrap();
    bundle.start().unwrap();
    bundle.wait("stopped").unwrap();
    assert_eq!(bundle.output().unwrap(), "first\n");
}

fn a_used_id_is_refused(bundle: &mut Bundle) {
    bundle.shell(SLEEP).create().unwrap();
    assert!(!bundle.created().unwrap());
    assert_eq!(bundle.status().unwrap(), "created");
    bundle.start().unwrap();
}

fn an_id_and_a_bundle_are_needed(bundle: &mut Bundle) {
    bundle.save().unwrap();
    let here = bundle.path("").display().to_string();
    for words in [
        vec!["create", "--bundle", &here],
        vec!["create", "--bundle", &here, ""],
        vec!["create", "--bundle", "/no/such/folder", &bundle.id],
        vec!["start"],
        vec!["state"],
        vec!["kill"],
        vec!["delete"],
    ] {
        assert!(!bundle.call_apart(&words).unwrap(), "{words:?}");
    }
}

fn what_does_not_exist_is_an_error(bundle: &mut Bundle) {
    for words in [vec!["start"], vec!["state"], vec!["delete"], vec!["pause"], vec!["ps"]] {
        fails(bundle, &[&words[..], &[&bundle.id]].concat());
    }
    fails(bundle, &["kill", &bundle.id, "KILL"]);
    fails(bundle, &["exec", &bundle.id, "true"]);
}

fn only_a_created_container_can_be_started(bundle: &mut Bundle) {
    bundle.shell(SLEEP).launch().unwrap();
    fails(bundle, &["start", &bundle.id]);
    assert_eq!(bundle.status().unwrap(), "running");
}

fn signals_arrive(bundle: &mut Bundle) {
    let names = ["HUP", "INT", "USR1", "WINCH", "CONT"];
    let traps: String = names.map(|n| format!("trap 'echo got {n}' {n};")).concat();
    bundle.shell(&format!("{traps} trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done"));
    bundle.launch().unwrap();
    bundle.wait_output("ready").unwrap();
    for name in names {
        bundle.call(&["kill", &bundle.id, name]).unwrap().ok().unwrap();
        bundle.wait_output(&format!("got {name}")).unwrap();
    }
    bundle.call(&["kill", &bundle.id, "15"]).unwrap().ok().unwrap();
    bundle.wait("stopped").unwrap();
}

fn signal_0_asks_whether_it_runs(bundle: &mut Bundle) {
    bundle.shell(SLEEP).launch().unwrap();
    bundle.call(&["kill", &bundle.id, "0"]).unwrap().ok().unwrap();
    bundle.call(&["kill", &bundle.id, "KILL"]).unwrap().ok().unwrap();
    bundle.wait("stopped").unwrap();
    fails(bundle, &["kill", &bundle.id, "0"]);
}

/// As with runc from 1.2 on.
fn what_it_leaves_behind_can_be_killed(bundle: &mut Bundle) {
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "pid");
    bundle.shell("sleep 1000 & echo $!; exit 0").launch().unwrap();
    bundle.wait("stopped").unwrap();
    let left = Path::new("/proc").join(bundle.output().unwrap().trim());
    fails(bundle, &["kill", &bundle.id, "TERM"]);
    bundle.call(&["kill", &bundle.id, "KILL"]).unwrap().ok().unwrap();
    let gone = || fs::read_to_string(left.join("cmdline")).unwrap_or_default().is_empty();
    until_true("what it left is gone", Duration::from_secs(30), gone).unwrap();
}

/// By its default action a process that is the first one of a PID namespace would not.
fn a_created_container_ends_by_sigterm(bundle: &mut Bundle) {
    bundle.shell(SLEEP).create().unwrap();
    bundle.call(&["kill", &bundle.id, "TERM"]).unwrap().ok().unwrap();
    bundle.wait("stopped").unwrap();
}

fn an_unknown_signal_is_refused(bundle: &mut Bundle) {
    bundle.shell(SLEEP).create().unwrap();
    fails(bundle, &["kill", &bundle.id, "NOSUCH"]);
    assert_eq!(bundle.status().unwrap(), "created");
}

fn a_created_container_can_be_killed(bundle: &mut Bundle) {
    bundle.shell(SLEEP).create().unwrap();
    bundle.call(&["kill", &bundle.id, "KILL"]).unwrap().ok().unwrap();
    bundle.wait("stopped").unwrap();
    bundle.delete().unwrap();
}

fn all_processes_can_be_killed(bundle: &mut Bundle) {
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "pid");
    bundle.shell("sleep 1000 & echo $!; echo ready; sleep 1000").launch().unwrap();
    bundle.wait_output("ready").unwrap();
    let output = bundle.output().unwrap();
    let child = Path::new("/proc").join(output.lines().next().unwrap());
    bundle.call(&["kill", "--all", &bundle.id, "KILL"]).unwrap().ok().unwrap();
    bundle.wait("stopped").unwrap();
    let gone = || fs::read_to_string(child.join("cmdline")).unwrap_or_default().is_empty();
    until_true("its child is gone", Duration::from_secs(30), gone).unwrap();
}

fn a_stopped_container_cannot_be_killed(bundle: &mut Bundle) {
    bundle.shell("true").finish().unwrap();
    fails(bundle, &["kill", &bundle.id, "KILL"]);
    assert_eq!(bundle.status().unwrap(), "stopped");
}

fn a_running_container_cannot_be_deleted(bundle: &mut Bundle) {
    bundle.shell(SLEEP).launch().unwrap();
    fails(bundle, &["delete", &bundle.id]);
    assert_eq!(bundle.status().unwrap(), "running");
}

/// "Attempting to delete a container that is not stopped MUST have no effect on the container and MUST generate an error."
fn a_created_container_cannot_be_deleted(bundle: &mut Bundle) {
    bundle.shell(SLEEP).create().unwrap();
    fails(bundle, &["delete", &bundle.id]);
    assert_eq!(bundle.status().unwrap(), "created");
}

fn delete_by_force(bundle: &mut Bundle) {
    bundle.shell(SLEEP).launch().unwrap();
    let root = format!("/proc/{}/root", bundle.pid().unwrap());
    bundle.call(&["delete", "--force", &bundle.id]).unwrap().ok().unwrap();
    assert!(bundle.state().unwrap().is_none());
    until_true("it is gone", Duration::from_secs(30), || fs::read_link(&root).is_err()).unwrap();
    bundle.call(&["delete", "--force", &bundle.id]).unwrap().ok().unwrap();
}

fn delete_leaves_no_cgroup(bundle: &mut Bundle) {
    bundle.shell("true").finish().unwrap();
    assert!(!berth_e2e::leftovers::cgroups(bundle.cgroup()).is_empty());
    bundle.delete().unwrap();
    assert_eq!(berth_e2e::leftovers::cgroups(bundle.cgroup()), [] as [&Path; 0]);
}

fn a_stopped_container_has_no_pid(bundle: &mut Bundle) {
    bundle.shell("true").finish().unwrap();
    let pid = bundle.state().unwrap().unwrap()["pid"].clone();
    assert!(pid == json!(0) || pid == Value::Null, "{pid}");
}

/// "process is REQUIRED when start is called": not before.
fn without_a_process_only_the_start_fails(bundle: &mut Bundle) {
    bundle.config.as_object_mut().unwrap().remove("process");
    bundle.create().unwrap();
    fails(bundle, &["start", &bundle.id]);
    bundle.wait("stopped").unwrap();
    bundle.delete().unwrap();
}
