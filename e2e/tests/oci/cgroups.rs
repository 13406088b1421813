//! Control groups by path: runtime-spec, "Control groups". The limits themselves are the engine's tests.

use berth_e2e::bundle::{Bundle, is_v2};
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
