//! The scope of a container: where it is, what it is limited to, how it ends.

use std::time::Duration;

use berth_e2e::bundle::{Bundle, Runtime, is_v2};
use berth_e2e::poll::until_true;
use serde_json::json;

use crate::checks;
use crate::unit::{Unit, systemctl};

checks! {
    a_container_is_in_a_delegated_scope: berth crun runc;
    limits_are_properties_and_files: berth runc;
    limits_can_be_changed: berth runc;
    a_reload_of_systemd_changes_nothing: berth runc;
    devices_are_guarded_also_after_a_reload: berth runc;
    an_exec_is_in_the_scope: berth crun runc;
    it_is_paused_and_resumed: berth crun runc;
    it_ends_with_the_container: berth crun runc;
    systemd_may_stop_it: berth crun runc;
    without_a_path_it_is_in_the_system_slice: berth;
    annotations_set_properties: berth crun runc;
    a_failed_unit_of_that_name_is_replaced: berth;
    a_running_unit_of_that_name_is_an_error: berth;
    what_is_no_unit_is_refused: berth;
    a_container_in_a_user_namespace: berth crun runc;
    a_failed_creation_leaves_no_unit: berth;
    its_cgroup_namespace_starts_at_the_scope: berth runc;
    run_deletes_it: berth crun runc;
    a_users_own_manager_makes_it: berth runc;
}

fn a_container_is_in_a_delegated_scope(runtime: &Runtime) {
    let unit = Unit::new(runtime);
    unit.launch();
    let pid = unit.bundle.pid().unwrap();
    let all = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(all.lines().any(|l| l.contains(&unit.path)), "{all}");
    let shown = unit.show(&["ActiveState", "Delegate", "Slice", "ControlGroup", "Transient"]);
    assert_eq!(shown["ActiveState"], "active");
    assert_eq!((&*shown["Delegate"], &*shown["Transient"]), ("yes", "yes"));
    assert_eq!(shown["ControlGroup"], format!("/{}", unit.path));
    let state = unit.bundle.state().unwrap().unwrap();
    assert_eq!(state["status"], "running");
    unit.bundle.call(&["kill", &unit.bundle.id, "KILL"]).unwrap().ok().unwrap();
    unit.bundle.wait("stopped").unwrap();
    unit.bundle.delete().unwrap();
    unit.assert_gone();
}

/// Limits that have a property, with what the property then says, and the file with its content.
fn limited(runtime: &Runtime) -> Unit {
    let mut unit = Unit::new(runtime);
    let mut resources = json!({
        "memory": {"limit": 64 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 512, "quota": 50_000, "period": 200_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 50},
    });
    if !Unit::has("memory") {
        resources.as_object_mut().unwrap().remove("memory");
    }
    if !Unit::has("cpuset") {
        let cpu = resources["cpu"].as_object_mut().unwrap();
        cpu.remove("cpus");
        cpu.remove("mems");
    }
    unit.resources(&resources);
    unit
}

fn assert_memory(unit: &Unit, limit: u64) {
    if !Unit::has("memory") {
        return;
    }
    assert_eq!(unit.property(if is_v2() { "MemoryMax" } else { "MemoryLimit" }), limit.to_string());
    assert_eq!(unit.file("memory", "memory.limit_in_bytes", "memory.max"), limit.to_string());
    let low = unit.file("memory", "memory.soft_limit_in_bytes", "memory.low");
    assert_eq!(low, (32_u64 << 20).to_string());
}

fn assert_limits(unit: &Unit, memory: u64, pids: u64) {
    assert_memory(unit, memory);
    let shown = unit.show(&["TasksMax", "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec"]);
    assert_eq!(shown["TasksMax"], pids.to_string(), "{shown:?}");
    assert_eq!((&*shown["CPUQuotaPerSecUSec"], &*shown["CPUQuotaPeriodUSec"]), ("250ms", "200ms"));
    assert_eq!(unit.file("pids", "pids.max", "pids.max"), pids.to_string());
    if is_v2() {
        assert_eq!(unit.file("", "", "cpu.max"), "50000 200000");
    } else {
        assert_eq!(unit.file("cpu", "cpu.cfs_quota_us", ""), "50000");
        assert_eq!(unit.file("cpu", "cpu.shares", ""), "512");
    }
    if Unit::has("cpuset") {
        assert_eq!(unit.file("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    }
}

fn limits_are_properties_and_files(runtime: &Runtime) {
    let unit = limited(runtime);
    unit.launch();
    assert_limits(&unit, 64 << 20, 50);
    if is_v2() {
        assert_eq!(unit.property("AllowedCPUs"), "0");
        assert_eq!(unit.property("MemoryLow"), (32_u64 << 20).to_string());
        assert_eq!(unit.property("CPUWeight"), unit.file("", "", "cpu.weight"));
    } else {
        assert_eq!(unit.property("CPUShares"), "512");
    }
}

fn limits_can_be_changed(runtime: &Runtime) {
    let unit = limited(runtime);
    unit.launch();
    let id = &unit.bundle.id;
    unit.bundle.call(&["update", "--pids-limit=60", id]).unwrap().ok().unwrap();
    if Unit::has("memory") {
        unit.bundle.call(&["update", "--memory=128m", id]).unwrap().ok().unwrap();
    }
    assert_limits(&unit, 128 << 20, 60);
    unit.bundle.call(&["update", "--cpu-quota=-1", id]).unwrap().ok().unwrap();
    assert_eq!(unit.property("CPUQuotaPerSecUSec"), "infinity");
    let quota = unit.file("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota.starts_with(if is_v2() { "max" } else { "-1" }), "{quota}");
    assert_eq!(unit.bundle.status().unwrap(), "running");
}

fn a_reload_of_systemd_changes_nothing(runtime: &Runtime) {
    let unit = limited(runtime);
    unit.launch();
    systemctl(&["daemon-reload"]).ok().unwrap();
    // Setting something has all of a unit's limits applied anew.
    systemctl(&["set-property", "--runtime", &unit.scope, "IPAccounting=no"]).ok().unwrap();
    assert_limits(&unit, 64 << 20, 50);
    assert_eq!(unit.property("ActiveState"), "active");
}

fn devices_are_guarded_also_after_a_reload(runtime: &Runtime) {
    let mut unit = Unit::new(runtime);
    unit.resources(&json!({"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": -1, "access": "r"},
    ]}));
    unit.launch();
    let can = |script: &str| {
        let ran = unit.bundle.call(&["exec", &unit.bundle.id, "sh", "-c", script]).unwrap();
        ran.code == 0
    };
    let check = |when: &str| {
        assert!(can("head -c 1 /dev/zero >/dev/null"), "{when}");
        // It may be made, as any device, but not opened.
        assert!(can("test -c /mem || mknod /mem c 1 1") && !can("cat </mem"), "{when}");
    };
    check("at first");
    systemctl(&["daemon-reload"]).ok().unwrap();
    systemctl(&["set-property", "--runtime", &unit.scope, "TasksMax=77"]).ok().unwrap();
    check("after a reload");
}

fn an_exec_is_in_the_scope(runtime: &Runtime) {
    let unit = Unit::new(runtime);
    unit.launch();
    let own = unit.bundle.call(&["exec", &unit.bundle.id, "cat", "/proc/self/cgroup"]).unwrap().ok().unwrap();
    assert!(own.lines().any(|l| l.contains(&unit.path)), "{own}");
}

fn it_is_paused_and_resumed(runtime: &Runtime) {
    let unit = Unit::new(runtime);
    unit.launch();
    let call = |word: &str| unit.bundle.call(&[word, &unit.bundle.id]).unwrap().ok().unwrap();
    call("pause");
    assert_eq!(unit.bundle.status().unwrap(), "paused");
    call("resume");
    assert_eq!(unit.bundle.status().unwrap(), "running");
}

fn it_ends_with_the_container(runtime: &Runtime) {
    let unit = Unit::new(runtime);
    unit.launch();
    unit.bundle.call(&["kill", &unit.bundle.id, "TERM"]).unwrap().ok().unwrap();
    unit.bundle.wait("stopped").unwrap();
    unit.bundle.delete().unwrap();
    unit.assert_gone();
    // By that name another one can be made.
    unit.launch();
    unit.bundle.call(&["delete", "--force", &unit.bundle.id]).unwrap().ok().unwrap();
    unit.assert_gone();
}

fn systemd_may_stop_it(runtime: &Runtime) {
    let unit = Unit::new(runtime);
    unit.launch();
    systemctl(&["stop", &unit.scope]).ok().unwrap();
    unit.bundle.wait("stopped").unwrap();
    unit.bundle.delete().unwrap();
    unit.assert_gone();
}

fn without_a_path_it_is_in_the_system_slice(runtime: &Runtime) {
    let mut bundle = Bundle::new(runtime).unwrap();
    bundle.config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    let scope = format!("berth-{}.scope", bundle.id);
    bundle.shell("cat /proc/self/cgroup");
    let seen = bundle.finish().unwrap();
    assert!(seen.contains(&format!("/system.slice/{scope}")), "{seen}");
    bundle.delete().unwrap();
}

fn annotations_set_properties(runtime: &Runtime) {
    let mut unit = Unit::new(runtime);
    unit.bundle.config["annotations"] = json!({
        "org.systemd.property.TimeoutStopUSec": "uint64 7000000",
        "org.systemd.property.KillSignal": "12",
        "org.systemd.property.SendSIGHUP": "true",
        "org.systemd.property.CollectMode": "'inactive'",
    });
    unit.launch();
    assert_eq!(unit.property("TimeoutStopUSec"), "7s");
    assert_eq!(unit.property("KillSignal"), "12");
    assert_eq!(unit.property("SendSIGHUP"), "yes");
    assert_eq!(unit.property("CollectMode"), "inactive");
}

fn a_failed_unit_of_that_name_is_replaced(runtime: &Runtime) {
    let unit = Unit::new(runtime);
    // A scope whose processes did not end in time has failed, and stays.
    let script = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    let mut command = std::process::Command::new("systemd-run");
    let scope = format!("--unit={}", unit.scope);
    let words =
        ["--scope", &scope, "-p", "TimeoutStopSec=1ms", "-p", "CollectMode=inactive", "sh", "-c", script];
    let mut child = command.args(words).spawn().unwrap();
    until_true("it is active", Duration::from_secs(30), || unit.property("ActiveState") == "active").unwrap();
    systemctl(&["stop", &unit.scope]);
    child.wait().unwrap();
    assert_eq!(unit.property("ActiveState"), "failed");
    unit.launch();
    assert_eq!(unit.property("ActiveState"), "active");
}

fn a_running_unit_of_that_name_is_an_error(runtime: &Runtime) {
    let first = Unit::new(runtime);
    first.launch();
    let mut second = Unit::new(runtime);
    second.bundle.config["linux"]["cgroupsPath"] = json!(first.bundle.cgroup());
    assert!(!second.bundle.created().unwrap());
    let said = second.bundle.output().unwrap();
    assert!(said.contains(&first.scope), "{said}");
    // And it is not harmed.
    assert_eq!(first.bundle.status().unwrap(), "running");
    assert_eq!(first.property("ActiveState"), "active");
}

fn what_is_no_unit_is_refused(runtime: &Runtime) {
    for path in ["/a/b", "system.slice:x", "nonsense:e2e:x", "system.slice:e2e:a/b", "../x.slice:e2e:x"] {
        let mut bundle = Bundle::new(runtime).unwrap();
        bundle.config["linux"]["cgroupsPath"] = json!(path);
        assert!(!bundle.created().unwrap(), "{path}");
        let said = bundle.output().unwrap();
        assert!(said.contains(path) && said.contains("slice"), "{said}");
    }
    let mut unit = Unit::new(runtime);
    unit.bundle.config["annotations"] = json!({"org.systemd.property.KillSignal": "'x"});
    assert!(!unit.bundle.created().unwrap());
    let said = unit.bundle.output().unwrap();
    assert!(said.contains("org.systemd.property.KillSignal"), "{said}");
}

fn a_container_in_a_user_namespace(runtime: &Runtime) {
    let mut unit = Unit::new(runtime);
    let linux = &mut unit.bundle.config["linux"];
    linux["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    linux["uidMappings"] = map.clone();
    linux["gidMappings"] = map;
    unit.launch();
    assert_eq!(unit.property("ActiveState"), "active");
    let own = unit.bundle.call(&["exec", &unit.bundle.id, "cat", "/proc/self/cgroup"]).unwrap().ok().unwrap();
    assert!(own.lines().any(|l| l.contains(&unit.path)), "{own}");
}

fn a_failed_creation_leaves_no_unit(runtime: &Runtime) {
    let mut unit = Unit::new(runtime);
    unit.bundle.config["process"]["args"] = json!(["no-such-program"]);
    assert!(!unit.bundle.created().unwrap());
    unit.assert_gone();
    let mut unit = Unit::new(runtime);
    unit.bundle.config["annotations"] = json!({"org.systemd.property.NoSuchThing": "1"});
    assert!(!unit.bundle.created().unwrap());
    let said = unit.bundle.output().unwrap();
    assert!(said.contains("NoSuchThing"), "{said}");
    unit.assert_gone();
}

fn its_cgroup_namespace_starts_at_the_scope(runtime: &Runtime) {
    let mut unit = Unit::new(runtime);
    unit.bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    unit.bundle.shell("cat /proc/self/cgroup; echo up; sleep 1000");
    unit.launch();
    let seen = unit.bundle.output().unwrap();
    assert!(!seen.contains(&unit.scope) && seen.lines().any(|l| l.ends_with(":/")), "{seen}");
}

fn run_deletes_it(runtime: &Runtime) {
    let mut unit = Unit::new(runtime);
    unit.bundle.shell("exit 9").save().unwrap();
    let bundle = unit.bundle.path("").display().to_string();
    let ran = unit.bundle.call(&["run", "--bundle", &bundle, &unit.bundle.id]).unwrap().code(9).unwrap();
    assert_eq!(ran.stdout, "", "{ran}");
    unit.assert_gone();
}

/// A user whose manager has been started, as at a login.
const USER: u32 = 1;

/// The user's manager is asked, which makes scopes with limits on version 2 only.
fn a_users_own_manager_makes_it(runtime: &Runtime) {
    systemctl(&["start", &format!("user@{USER}.service")]).ok().unwrap();
    let mut unit = Unit::new(runtime);
    unit.bundle.give_to(USER, &[]).unwrap();
    unit.bundle.suggested("trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done").unwrap();
    unit.bundle.config["linux"]["cgroupsPath"] = json!(format!("user.slice:e2e:{}", unit.bundle.id));
    unit.bundle.config["linux"]["resources"] = json!({"pids": {"limit": 50}});
    let place = format!("XDG_RUNTIME_DIR=/run/user/{USER}");
    // From within what the manager has: only the system's may move processes of others.
    let service = ["systemd-run", "--user", "--quiet", "--wait", "--pipe", "--collect", "--same-dir", "--"];
    unit.bundle.through(&[&["env", &place][..], &service].concat());
    if !is_v2() {
        // It hands no hierarchy with controllers on.
        assert!(!unit.bundle.created().unwrap());
        assert!(unit.bundle.output().unwrap().contains("cgroup"));
        return;
    }
    unit.launch();
    let pid = unit.bundle.pid().unwrap();
    let all = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let below = format!("/user@{USER}.service/user.slice/{}", unit.scope);
    assert!(all.lines().any(|l| l.contains(&below)), "{all}");
    let show = |property: &str| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid", &USER.to_string(), "--clear-groups", "env", &place, "systemctl", "--user"]);
        command.args(["show", "--value", "-p", property, &unit.scope]);
        berth_e2e::tools::run(command).unwrap().ok().unwrap().trim().to_owned()
    };
    assert_eq!((&*show("ActiveState"), &*show("Transient")), ("active", "yes"));
    assert_eq!(show("TasksMax"), "50");
    unit.bundle.call(&["kill", &unit.bundle.id, "TERM"]).unwrap().ok().unwrap();
    unit.bundle.wait("stopped").unwrap();
    unit.bundle.delete().unwrap();
    let gone = || show("ActiveState") == "inactive";
    until_true("the scope is gone", Duration::from_secs(30), gone).unwrap();
}
