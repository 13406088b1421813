//! What a configuration may and may not say: runtime-spec, "Configuration" and "Linux Container Configuration".

use std::fs;
use std::process::{Command, Stdio};

use berth_e2e::bundle::Bundle;
use berth_e2e::tools::run;
use serde_json::{Value, json};

use crate::checks::checks;

checks! {
    unknown_properties_are_ignored
    another_version_is_refused
    a_newer_minor_version_is_taken
    environment_folder_and_user
    wrong_limits_are_refused
    a_missing_program_is_named
    a_missing_root_is_refused
    a_relative_working_folder_is_refused
    a_device_may_be_one_of_the_default_ones
    the_master_of_terminals_may_be_listed
    devices_of_all_types
    seccomp_answers_with_the_error_asked_for
    no_descriptor_is_open_but_the_three
    the_last_value_of_a_variable_counts
    a_process_without_a_user_is_roots
    the_hosts_name_is_no_kernel_parameter
    groups_can_be_kept
    a_device_in_a_user_namespace;
    alone
    the_cpus_are_the_cgroups_and_not_the_callers
    relative_paths_are_refused
    a_limit_may_be_listed_once
}

fn refused(bundle: &Bundle, name: &str) -> String {
    assert!(!bundle.created().unwrap(), "{name} was taken");
    assert!(bundle.state().unwrap().is_none(), "{name}");
    bundle.output().unwrap()
}

/// Tries configurations that differ from a good one in one place.
fn each_refused(bundle: &mut Bundle, cases: &[(&str, Value)]) {
    let good = bundle.config.clone();
    for (at, value) in cases {
        *bundle.config.pointer_mut(at).unwrap() = value.clone();
        refused(bundle, at);
        bundle.config = good.clone();
    }
}

fn unknown_properties_are_ignored(bundle: &mut Bundle) {
    bundle.config["unknown"] = json!("value");
    bundle.config["process"]["unknown"] = json!({"y": 1});
    bundle.config["linux"]["unknown"] = json!([1]);
    bundle.shell("echo fine");
    assert_eq!(bundle.finish().unwrap(), "fine\n");
}

fn another_version_is_refused(bundle: &mut Bundle) {
    each_refused(bundle, &[("/ociVersion", json!("invalid")), ("/ociVersion", json!(""))]);
}

fn a_newer_minor_version_is_taken(bundle: &mut Bundle) {
    bundle.config["ociVersion"] = json!("1.2.0");
    bundle.shell("true").finish().unwrap();
}

fn environment_folder_and_user(bundle: &mut Bundle) {
    let process = &mut bundle.config["process"];
    process["cwd"] = json!("/made/for/it");
    process["env"].as_array_mut().unwrap().extend([json!("A=b c"), json!("D=")]);
    process["user"] = json!({"uid": 10, "gid": 11, "additionalGids": [5, 100], "umask": 0o27});
    let output = bundle.shell("pwd; echo \"$A-$D-\"; id -u; id -G; umask; hostname").finish().unwrap();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines, ["/made/for/it", "b c--", "10", "11 5 100", "0027", "c"]);
}

fn wrong_limits_are_refused(bundle: &mut Bundle) {
    bundle.config["process"]["rlimits"] = json!([{"type": "RLIMIT_TEST", "soft": 1, "hard": 1}]);
    refused(bundle, "an unknown limit");
}

/// "If rlimits contains duplicated entries with same type, the runtime MUST generate an error."
fn a_limit_may_be_listed_once(bundle: &mut Bundle) {
    let limit = json!({"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024});
    bundle.config["process"]["rlimits"] = json!([limit, limit]);
    let said = refused(bundle, "a limit listed twice");
    assert!(said.contains("RLIMIT_NOFILE"), "{said}");
}

fn a_missing_program_is_named(bundle: &mut Bundle) {
    bundle.config["process"]["args"] = json!(["no-such-program"]);
    let said = refused(bundle, "a missing program");
    assert!(said.contains("no-such-program") && said.contains("not found"), "{said}");
}

fn a_missing_root_is_refused(bundle: &mut Bundle) {
    each_refused(bundle, &[("/root/path", json!("nowhere"))]);
}

fn a_relative_working_folder_is_refused(bundle: &mut Bundle) {
    each_refused(bundle, &[("/process/cwd", json!("relative"))]);
}

/// "The values MUST be absolute paths in the container namespace."
fn relative_paths_are_refused(bundle: &mut Bundle) {
    for field in ["maskedPaths", "readonlyPaths"] {
        bundle.config["linux"][field] = json!(["relative"]);
        let said = refused(bundle, field);
        assert!(said.contains(field), "{said}");
        bundle.config["linux"].as_object_mut().unwrap().remove(field);
    }
}

fn a_device_may_be_one_of_the_default_ones(bundle: &mut Bundle) {
    bundle.config["linux"]["devices"] =
        json!([{"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666}]);
    assert_eq!(bundle.shell("echo x > /dev/null; stat -c %t:%T /dev/null").finish().unwrap(), "1:3\n");
}

fn the_master_of_terminals_may_be_listed(bundle: &mut Bundle) {
    bundle.config["linux"]["devices"] = json!([{"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2}]);
    assert_eq!(bundle.shell("stat -L -c %t:%T /dev/ptmx").finish().unwrap(), "5:2\n");
}

fn devices_of_all_types(bundle: &mut Bundle) {
    bundle.config["linux"]["devices"] = json!([
        {"path": "/dev/a", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666, "uid": 1, "gid": 2},
        {"path": "/dev/b", "type": "b", "major": 8, "minor": 666, "fileMode": 0o432},
        {"path": "/dev/p", "type": "p", "fileMode": 0o640},
        {"path": "/dev/sub/u", "type": "u", "major": 1, "minor": 3},
    ]);
    let script =
        "stat -c '%F %a %u %g %t %T' /dev/a /dev/b; stat -c '%F %a' /dev/p; stat -c %t:%T /dev/sub/u";
    let expected = "character special file 666 1 2 a e5\nblock special file 432 0 0 8 29a\nfifo 640\n1:3\n";
    assert_eq!(bundle.shell(script).finish().unwrap(), expected);
}

fn seccomp_answers_with_the_error_asked_for(bundle: &mut Bundle) {
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
    });
    let output = bundle.shell("mkdir /x 2>&1; true").finish().unwrap();
    assert!(output.contains("No space"), "{output}");
}

fn no_descriptor_is_open_but_the_three(bundle: &mut Bundle) {
    // The fourth is that of the listing itself.
    assert_eq!(bundle.shell("ls /proc/self/fd").finish().unwrap(), "0\n1\n2\n3\n");
}

/// getenv(3) finds the first.
fn the_last_value_of_a_variable_counts(bundle: &mut Bundle) {
    let env = bundle.config["process"]["env"].as_array_mut().unwrap();
    env.extend([json!("ONE=a"), json!("TWO=b"), json!("ONE=c")]);
    bundle.config["process"]["args"] = json!(["env"]);
    let seen = bundle.finish().unwrap();
    let ones: Vec<&str> = seen.lines().filter(|line| line.starts_with("ONE=")).collect();
    assert_eq!(ones, ["ONE=c"]);
}

fn a_process_without_a_user_is_roots(bundle: &mut Bundle) {
    bundle.config["process"].as_object_mut().unwrap().remove("user");
    assert_eq!(bundle.shell("id -u; id -g").finish().unwrap(), "0\n0\n");
}

/// As with runc from 1.3 on: the kernel keeps to what a process was given by sched_setaffinity(2), whatever its cgroup has.
fn the_cpus_are_the_cgroups_and_not_the_callers(bundle: &mut Bundle) {
    let cpus = "sed -n 's/^Cpus_allowed:\\t//p' /proc/self/status";
    bundle.shell(&format!("{cpus}; sleep 1000")).save().unwrap();
    let all = fs::read_to_string("/proc/self/status").unwrap();
    let all = all.lines().find_map(|line| line.strip_prefix("Cpus_allowed:\t")).unwrap();
    let words = ["run", "--detach", &bundle.id].map(str::to_owned);
    let mut on_one = Command::new("taskset");
    let inner = bundle.command(&words.each_ref().map(String::as_str));
    on_one.args(["--cpu-list", "0"]).arg(inner.get_program()).args(inner.get_args());
    on_one.current_dir(bundle.path("")).stdin(Stdio::null()).stderr(Stdio::null());
    on_one.stdout(fs::File::create(bundle.path("out")).unwrap());
    assert!(on_one.status().unwrap().success());
    bundle.wait_output(all).unwrap();
    let inner = bundle.command(&["exec", &bundle.id, "sh", "-c", cpus]);
    let mut on_one = Command::new("taskset");
    on_one.args(["--cpu-list", "0"]).arg(inner.get_program()).args(inner.get_args());
    assert_eq!(run(on_one).unwrap().ok().unwrap().trim(), all);
}

/// There is a field for it.
fn the_hosts_name_is_no_kernel_parameter(bundle: &mut Bundle) {
    bundle.config["linux"]["sysctl"] = json!({"kernel.hostname": "other"});
    refused(bundle.shell("true"), "kernel.hostname");
}

fn groups_can_be_kept(bundle: &mut Bundle) {
    bundle.shell("id -G").save().unwrap();
    let groups = |bundle: &Bundle| {
        let command = bundle.command(&["run", &bundle.id]);
        let mut with = Command::new("setpriv");
        with.args(["--groups", "5,6", "--"]).arg(command.get_program()).args(command.get_args());
        run({
            with.current_dir(bundle.path(""));
            with
        })
        .unwrap()
        .ok()
        .unwrap()
    };
    assert_eq!(groups(bundle), "0\n");
    bundle.config["annotations"] = json!({"run.oci.keep_original_groups": "1"});
    bundle.save().unwrap();
    assert_eq!(groups(bundle), "0 5 6\n");
}

/// Which has no such file on the host, or one with another owner.
fn a_device_in_a_user_namespace(bundle: &mut Bundle) {
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65_536}]);
    let linux = &mut bundle.config["linux"];
    linux["uidMappings"] = map.clone();
    linux["gidMappings"] = map;
    linux["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let device = json!({"path": "/dev/there", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8});
    linux["devices"] = json!([device]);
    let mut chown = Command::new("chown");
    chown.args(["-hR", "200000:200000"]).arg(bundle.path("rootfs"));
    run(chown).unwrap().ok().unwrap();
    let script = "stat -c '%a %u:%g %t:%T' /dev/there; echo lost > /dev/there && cat /dev/there";
    assert_eq!(bundle.shell(script).finish().unwrap(), "640 7:8 1:3\n");
}
