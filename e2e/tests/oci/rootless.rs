//! The runtime of a user who is not root: in a user namespace, without cgroups where none may be made.

use std::fs;

use berth_e2e::bundle::{Bundle, is_v2};
use serde_json::{Value, json};

use crate::checks::checks;

checks! {
    a_user_runs_a_container
    a_container_lives_without_a_cgroup
    several_users_are_mapped_by_newuidmap
    a_cgroup_that_may_not_be_made_is_an_error
    a_cgroup_of_ones_own_is_used;
    alone
    limits_without_a_cgroup_are_warned_of
    what_needs_a_cgroup_says_so
}

/// A user that every Debian has: newuidmap(1) wants a name.
const DAEMON: u32 = 1;

fn a_user_runs_a_container(bundle: &mut Bundle) {
    bundle.give_to(DAEMON, &[]).unwrap();
    bundle.suggested("id -u; cat /proc/self/uid_map; touch /x && stat -c %u /x; exit 7").unwrap();
    bundle.save().unwrap();
    let ran = bundle.call(&["run", &bundle.id]).unwrap().code(7).unwrap();
    let words: Vec<&str> = ran.stdout.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "1", "1", "0"]);
    assert_eq!(ran.stderr, "");
}

fn a_container_lives_without_a_cgroup(bundle: &mut Bundle) {
    bundle.give_to(DAEMON, &[]).unwrap();
    bundle.suggested("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done").unwrap();
    bundle.launch().unwrap();
    bundle.wait_output("up").unwrap();
    assert_eq!(bundle.status().unwrap(), "running");
    let ran = bundle.call(&["exec", &bundle.id, "sh", "-c", "id -u; exit 3"]).unwrap().code(3).unwrap();
    assert_eq!(ran.stdout, "0\n");
    bundle.call(&["kill", &bundle.id, "TERM"]).unwrap().ok().unwrap();
    bundle.wait("stopped").unwrap();
    bundle.delete().unwrap();
    assert!(bundle.state().unwrap().is_none());
}

/// In a mount namespace where that user has further ids.
fn several_users_are_mapped_by_newuidmap(bundle: &mut Bundle) {
    let ids = bundle.path("subordinate").display().to_string();
    fs::write(&ids, "daemon:200000:1000\n").unwrap();
    let script = "mount --bind \"$1\" /etc/subuid && mount --bind \"$1\" /etc/subgid && shift && exec \"$@\"";
    let before = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", &ids];
    bundle.give_to(DAEMON, &before).unwrap();
    bundle.suggested("cat /proc/self/uid_map /proc/self/gid_map; id -u; id -G; stat -c %u:%g /bin").unwrap();
    let map = json!([
        {"containerID": 0, "hostID": DAEMON, "size": 1},
        {"containerID": 1, "hostID": 200_000, "size": 1000},
    ]);
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    bundle.config["process"]["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7]});
    bundle.save().unwrap();
    let ran = bundle.call(&["run", &bundle.id]).unwrap().code(0).unwrap();
    let words: Vec<&str> = ran.stdout.split_whitespace().collect();
    let map = ["0", "1", "1", "1", "200000", "1000"];
    assert_eq!(words, [&map[..], &map, &["5", "6", "7", "0:0"]].concat(), "{ran}");
}

fn a_cgroup_that_may_not_be_made_is_an_error(bundle: &mut Bundle) {
    bundle.give_to(DAEMON, &[]).unwrap();
    bundle.suggested("true").unwrap();
    let path = format!("{}/c", bundle.cgroup_parent());
    bundle.config["linux"]["cgroupsPath"] = json!(path);
    assert!(!bundle.created().unwrap());
    let said = bundle.output().unwrap();
    assert!(said.contains(bundle.cgroup_parent()), "{said}");
}

/// Somebody has given the user a part of the tree, and the runtime is started in it.
fn a_cgroup_of_ones_own_is_used(bundle: &mut Bundle) {
    let parent = bundle.cgroup_parent().trim_start_matches('/').to_owned();
    let enable = "for c in cpu memory pids; do echo +$c; done";
    let v2 = format!(
        "set -e; at=/sys/fs/cgroup/{parent}; mkdir -p $at/own; ({enable}) >$at/cgroup.subtree_control || :
         chown -R daemon:daemon $at; echo $$ >$at/own/cgroup.procs; exec \"$@\""
    );
    let v1 = format!(
        "for h in /sys/fs/cgroup/*/; do [ -e $h/tasks ] || [ -e $h/cgroup.procs ] || continue
           mkdir -p $h/{parent}/own; [ -e $h/cpuset.cpus ] && for f in cpus mems; do
             cat $h/cpuset.$f >$h/{parent}/cpuset.$f; cat $h/cpuset.$f >$h/{parent}/own/cpuset.$f; done
           chown -R daemon:daemon $h/{parent}; echo $$ >$h/{parent}/own/cgroup.procs; done; exec \"$@\""
    );
    bundle.give_to(DAEMON, &["bash", "-c", if is_v2() { &v2 } else { &v1 }, "bash"]).unwrap();
    bundle.suggested("echo up; sleep 1000").unwrap();
    bundle.config["linux"]["cgroupsPath"] = json!(format!("{}/c", bundle.cgroup_parent()));
    bundle.config["linux"]["resources"] =
        json!({"pids": {"limit": 40}, "devices": [{"allow": false, "access": "rwm"}]});
    bundle.launch().unwrap();
    bundle.wait_output("up").unwrap();
    assert_eq!(bundle.cgroup_file("pids", "pids.max", "pids.max").unwrap(), "40");
    bundle.call(&["update", "--pids-limit", "30", &bundle.id]).unwrap().ok().unwrap();
    assert_eq!(bundle.cgroup_file("pids", "pids.max", "pids.max").unwrap(), "30");
    bundle.call(&["pause", &bundle.id]).unwrap().ok().unwrap();
    assert_eq!(bundle.status().unwrap(), "paused");
    bundle.call(&["resume", &bundle.id]).unwrap().ok().unwrap();
    bundle.call(&["delete", "--force", &bundle.id]).unwrap().ok().unwrap();
    assert!(bundle.cgroup_file("pids", "pids.max", "pids.max").is_err());
}

/// crun runs it, too, and says nothing.
fn limits_without_a_cgroup_are_warned_of(bundle: &mut Bundle) {
    bundle.give_to(DAEMON, &[]).unwrap();
    bundle.suggested("echo ran").unwrap();
    bundle.config["linux"]["resources"] = json!({"pids": {"limit": 40}, "memory": {"limit": 1 << 28}});
    bundle.save().unwrap();
    let ran = bundle.call(&["--log", "log", "run", &bundle.id]).unwrap().code(0).unwrap();
    assert_eq!(ran.stdout, "ran\n");
    let log = bundle.read("log").unwrap();
    assert!(log.contains("memory, pids") && log.contains("warning"), "{log}");
}

fn what_needs_a_cgroup_says_so(bundle: &mut Bundle) {
    bundle.give_to(DAEMON, &[]).unwrap();
    bundle.suggested("sleep 1000").unwrap();
    bundle.launch().unwrap();
    for words in [&["pause"][..], &["update", "--pids-limit", "30"], &["events", "--stats"], &["ps"]] {
        let ran = bundle.call(&[words, &[&bundle.id]].concat()).unwrap();
        assert!(ran.code != 0 && ran.stderr.contains("no cgroup of its own"), "{ran}");
    }
    let state: Value = bundle.state().unwrap().unwrap();
    assert_eq!(state["status"], "running");
}
