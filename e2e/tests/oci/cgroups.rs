//! Control groups by path: runtime-spec, "Control groups". The limits themselves are the engine's tests.

use std::fs;
use std::path::Path;

use berth_e2e::bundle::{Bundle, Runtime, is_v2};
use berth_e2e::leftovers::remove_cgroups;
use serde_json::json;

use crate::checks::checks;

checks! {
    the_path_is_the_cgroups
    a_relative_path_and_none_give_some_cgroup
    limits_are_set_and_updated
    a_limit_that_cannot_be_set_is_an_error
    figures_are_told
    it_is_paused_and_resumed;
    alone
    a_frozen_cgroup_is_refused
    a_cgroup_in_use_is_refused
}

fn the_path_is_the_cgroups(bundle: &mut Bundle) {
    bundle.shell("sleep 1000").launch().unwrap();
    let all = std::fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid().unwrap())).unwrap();
    assert!(all.contains(bundle.cgroup()), "{all}");
}

fn a_relative_path_and_none_give_some_cgroup(bundle: &mut Bundle) {
    let relative = format!("berth-test-e2e-{}-relative/{}", std::process::id(), bundle.id);
    bundle.config["linux"]["cgroupsPath"] = json!(relative);
    let seen = bundle.shell("cat /proc/self/cgroup").finish().unwrap();
    assert!(seen.contains(&relative), "{seen}");
    bundle.delete().unwrap();
    // Each runtime has its own idea of where that is.
    for top in ["/", "/user.slice/", "/system.slice/"] {
        remove_cgroups(&format!("{top}{}", relative.split_once('/').unwrap().0));
    }
    bundle.config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    bundle.finish().unwrap();
}

fn limits_are_set_and_updated(bundle: &mut Bundle) {
    let resources = bundle.config["linux"]["resources"].as_object_mut().unwrap();
    resources.insert("memory".to_owned(), json!({"limit": 64 << 20, "reservation": 32 << 20}));
    resources.insert("cpu".to_owned(), json!({"quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"}));
    resources.insert("pids".to_owned(), json!({"limit": 100}));
    bundle.shell("sleep 1000").launch().unwrap();
    let seen = |bundle: &Bundle| {
        [
            bundle.cgroup_file("memory", "memory.limit_in_bytes", "memory.max").unwrap(),
            bundle.cgroup_file("pids", "pids.max", "pids.max").unwrap(),
            bundle.cgroup_file("cpu", "cpu.cfs_quota_us", "cpu.max").unwrap(),
        ]
    };
    let quota = |n: u64| if is_v2() { format!("{n} 100000") } else { n.to_string() };
    assert_eq!(seen(bundle), [(64_u64 << 20).to_string(), "100".to_owned(), quota(50_000)]);
    assert_eq!(bundle.cgroup_file("cpuset", "cpuset.cpus", "cpuset.cpus").unwrap(), "0");
    let flags = ["update", "--memory", "134217728", "--pids-limit", "50", "--cpu-quota", "40000", &bundle.id];
    bundle.call(&flags).unwrap().ok().unwrap();
    assert_eq!(seen(bundle), [(128_u64 << 20).to_string(), "50".to_owned(), quota(40_000)]);
    std::fs::write(bundle.path("limits"), r#"{"pids": {"limit": 70}}"#).unwrap();
    bundle.call(&["update", "--resources", "limits", &bundle.id]).unwrap().ok().unwrap();
    assert_eq!(seen(bundle), [(128_u64 << 20).to_string(), "70".to_owned(), quota(40_000)]);
}

fn a_limit_that_cannot_be_set_is_an_error(bundle: &mut Bundle) {
    bundle.config["linux"]["resources"]["hugepageLimits"] = json!([{"pageSize": "3MB", "limit": 4096}]);
    assert!(!bundle.created().unwrap());
    assert!(bundle.state().unwrap().is_none());
}

fn figures_are_told(bundle: &mut Bundle) {
    bundle.shell("sleep 1000").launch().unwrap();
    let line = bundle.call(&["events", "--stats", &bundle.id]).unwrap().ok().unwrap();
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(bundle.id)));
    assert!(event["data"]["pids"]["current"].as_u64().unwrap() >= 1, "{event}");
    assert!(event["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0, "{event}");
}

fn it_is_paused_and_resumed(bundle: &mut Bundle) {
    bundle.shell("sleep 1000").launch().unwrap();
    bundle.call(&["pause", &bundle.id]).unwrap().ok().unwrap();
    assert_eq!(bundle.status().unwrap(), "paused");
    bundle.call(&["resume", &bundle.id]).unwrap().ok().unwrap();
    assert_eq!(bundle.status().unwrap(), "running");
}

/// As with runc: the container would never come to its start in it, and whoever waits for that neither, as with crun.
fn a_frozen_cgroup_is_refused(bundle: &mut Bundle) {
    let below = bundle.cgroup().trim_start_matches('/').to_owned();
    let (folder, file, stop, go_on) = if is_v2() {
        (format!("/sys/fs/cgroup/{below}"), "cgroup.freeze", "1", "0")
    } else {
        (format!("/sys/fs/cgroup/freezer/{below}"), "freezer.state", "FROZEN", "THAWED")
    };
    let switch = Path::new(&folder).join(file);
    fs::create_dir_all(&folder).unwrap();
    fs::write(&switch, stop).unwrap();
    let created = bundle.shell("true").created().unwrap();
    // A container that was made after all is to be removed.
    fs::write(&switch, go_on).unwrap();
    assert!(!created);
    assert!(bundle.state().unwrap().is_none());
}

/// As with runc from 1.2 on: the others in it would be limited and killed together with the container.
fn a_cgroup_in_use_is_refused(bundle: &mut Bundle) {
    bundle.shell("sleep 1000").launch().unwrap();
    let mut second = Bundle::new(&Runtime::berth()).unwrap();
    second.config["linux"]["cgroupsPath"] = json!(bundle.cgroup());
    assert!(!second.shell("true").created().unwrap());
    assert!(second.output().unwrap().contains("cgroup is not empty"), "{}", second.output().unwrap());
    assert!(second.state().unwrap().is_none());
    assert_eq!(bundle.status().unwrap(), "running");
}
