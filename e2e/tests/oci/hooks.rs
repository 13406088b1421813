//! Hooks: runtime-spec, "POSIX-platform Hooks".

use std::fs;
use std::time::Instant;

use berth_e2e::bundle::Bundle;
use serde_json::{Value, json};

use crate::checks::checks;

checks! {
    they_run_in_namespaces_of_their_kind
    they_have_an_environment_of_their_own
    without_one_they_have_the_runtimes
    that_of_the_start_has_the_programs_unless_it_has_its_own
    that_of_the_creation_begins_in_the_root
    that_of_the_start_may_do_no_more_than_the_program
    one_that_takes_too_long_fails
    a_failure_before_the_container_undoes_it
    a_failure_at_the_start_keeps_the_program_from_running
    a_failure_after_the_start_is_no_error
    a_failure_after_the_end_is_no_error;
    alone
    all_kinds_run_in_order
    they_get_the_state
    a_failure_at_the_start_is_an_error
}

/// All but startContainer, which finds its program in the container.
const ON_THE_HOST: [&str; 5] = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
/// Those of them that come at create.
const AT_CREATE: usize = 3;

fn hook(script: &str) -> Value {
    json!({"path": "/bin/busybox", "args": ["sh", "-c", script]})
}

/// "The hooks MUST be called in the listed order."
fn all_kinds_run_in_order(bundle: &mut Bundle) {
    let file = bundle.path("order").display().to_string();
    let mut hooks = serde_json::Map::new();
    for kind in ON_THE_HOST {
        let both = [1, 2].map(|n| hook(&format!("cat >/dev/null; echo {kind}{n} >> {file}")));
        hooks.insert(kind.to_owned(), json!(both));
    }
    hooks.insert("startContainer".to_owned(), json!([hook("cat >/dev/null; echo startContainer > /scout")]));
    bundle.config["hooks"] = hooks.into();
    let expected = |kinds: usize| {
        let lines = ON_THE_HOST[..kinds].iter().flat_map(|kind| [1, 2].map(|n| format!("{kind}{n}\n")));
        lines.collect::<String>()
    };
    bundle.shell("cat /scout").create().unwrap();
    assert_eq!(bundle.read("order").unwrap(), expected(AT_CREATE));
    bundle.start().unwrap();
    bundle.wait("stopped").unwrap();
    assert_eq!(bundle.output().unwrap(), "startContainer\n");
    bundle.delete().unwrap();
    assert_eq!(bundle.read("order").unwrap(), expected(ON_THE_HOST.len()));
}

/// "The state of the container MUST be passed to hooks over stdin."
fn they_get_the_state(bundle: &mut Bundle) {
    bundle.config["annotations"] = json!({"k": "v"});
    let hooks = ON_THE_HOST.map(|kind| {
        let file = bundle.path(kind).display().to_string();
        (kind.to_owned(), json!([hook(&format!("cat > {file}"))]))
    });
    bundle.config["hooks"] = serde_json::Map::from_iter(hooks).into();
    bundle.shell("sleep 1000").create().unwrap();
    let pid = bundle.pid().unwrap();
    bundle.start().unwrap();
    bundle.call(&["kill", &bundle.id, "KILL"]).unwrap().ok().unwrap();
    bundle.wait("stopped").unwrap();
    bundle.delete().unwrap();
    for (kind, status) in ON_THE_HOST.iter().zip(["creating", "creating", "creating", "running", "stopped"]) {
        let state: Value = serde_json::from_str(&bundle.read(kind).unwrap()).unwrap();
        assert_eq!((&state["id"], &state["annotations"]), (&json!(bundle.id), &json!({"k": "v"})), "{kind}");
        if *kind != "poststop" {
            assert_eq!(state["pid"], json!(pid), "{kind}");
        }
        // What the specification calls creating, callers know as created.
        let seen = state["status"].as_str().unwrap();
        assert!(seen == status || (status == "creating" && seen == "created"), "{kind}: {seen}");
    }
}

fn they_run_in_namespaces_of_their_kind(bundle: &mut Bundle) {
    let net = "readlink /proc/self/ns/net";
    let to = |name: &str| hook(&format!("cat >/dev/null; {net} > {}", bundle.path(name).display()));
    bundle.config["hooks"] = json!({"createRuntime": [to("host")], "createContainer": [to("inside")]});
    let inside = bundle.shell(net).finish().unwrap();
    let own = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert_eq!(bundle.read("host").unwrap().trim(), own);
    assert_eq!(bundle.read("inside").unwrap(), inside);
    assert_ne!(inside.trim(), own);
}

fn they_have_an_environment_of_their_own(bundle: &mut Bundle) {
    let mut one = hook(&format!("cat >/dev/null; echo \"$A-$HOME\" > {}", bundle.path("seen").display()));
    one["env"] = json!(["A=b c"]);
    bundle.config["hooks"] = json!({"poststart": [one]});
    bundle.shell("true").finish().unwrap();
    assert_eq!(bundle.read("seen").unwrap(), "b c-\n");
}

fn without_one_they_have_the_runtimes(bundle: &mut Bundle) {
    let seen = bundle.path("seen").display().to_string();
    let script = format!("cat >/dev/null; env | grep -c BERTH_OCI > {seen}2; echo \"$PATH\" > {seen}");
    bundle.config["hooks"] = json!({"prestart": [hook(&script)]});
    bundle.shell("true").finish().unwrap();
    assert_eq!(bundle.read("seen").unwrap().trim(), std::env::var("PATH").unwrap());
    assert_eq!(bundle.read("seen2").unwrap(), "0\n", "the request is nothing to hooks");
}

fn that_of_the_start_has_the_programs_unless_it_has_its_own(bundle: &mut Bundle) {
    let plain = hook("cat >/dev/null; echo \"$ONE-$HOME\" >> /seen");
    bundle.config["process"]["env"].as_array_mut().unwrap().push(json!("ONE=a"));
    bundle.config["process"]["env"].as_array_mut().unwrap().push(json!("HOME=/h"));
    bundle.config["hooks"] = json!({"startContainer": [plain]});
    assert_eq!(bundle.shell("cat /seen").finish().unwrap(), "a-/h\n");
}

fn that_of_the_creation_begins_in_the_root(bundle: &mut Bundle) {
    bundle.config["hooks"] = json!({"createContainer": [hook("cat >/dev/null; echo made > ./tmp/made")]});
    assert_eq!(bundle.shell("cat /tmp/made").finish().unwrap(), "made\n");
}

fn that_of_the_start_may_do_no_more_than_the_program(bundle: &mut Bundle) {
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
    });
    let script = "cat >/dev/null; mkdir /tmp/made; sed -n '/^Cap[PEB]/p' /proc/self/status > /seen";
    bundle.config["hooks"] = json!({"startContainer": [hook(script)]});
    bundle.shell("ls /tmp; cat /seen; echo; sed -n '/^Cap[PEB]/p' /proc/self/status");
    let output = bundle.finish().unwrap();
    let (hooks, own) = output.split_once("\n\n").unwrap();
    assert_eq!(hooks.trim(), own.trim());
}

fn one_that_takes_too_long_fails(bundle: &mut Bundle) {
    let mut one = hook("sleep 1000");
    one["timeout"] = json!(1);
    bundle.config["hooks"] = json!({"prestart": [one]});
    let begin = Instant::now();
    assert!(!bundle.shell("true").created().unwrap());
    // It would have slept for longer.
    assert!(begin.elapsed().as_secs() < 500);
}

fn failing(bundle: &mut Bundle, kind: &str) {
    let stopped = hook(&format!("cat >/dev/null; echo x > {}", bundle.path("stopped").display()));
    bundle.config["hooks"] = json!({"poststop": [stopped]});
    bundle.config["hooks"][kind] = json!([hook("cat >/dev/null; false")]);
    bundle.shell("echo ran > /ran");
}

fn a_failure_before_the_container_undoes_it(bundle: &mut Bundle) {
    for kind in &ON_THE_HOST[..AT_CREATE] {
        failing(bundle, kind);
        assert!(!bundle.created().unwrap(), "{kind}");
        assert!(bundle.state().unwrap().is_none(), "{kind}");
        assert!(!bundle.path("rootfs/ran").exists(), "{kind}");
    }
}

fn a_failure_at_the_start_keeps_the_program_from_running(bundle: &mut Bundle) {
    failing(bundle, "startContainer");
    bundle.create().unwrap();
    bundle.call(&["start", &bundle.id]).unwrap();
    bundle.wait("stopped").unwrap();
    assert!(!bundle.path("rootfs/ran").exists());
}

/// "If any startContainer hook fails, the runtime MUST generate an error, stop the container, and continue the lifecycle
/// at step 12."
fn a_failure_at_the_start_is_an_error(bundle: &mut Bundle) {
    failing(bundle, "startContainer");
    bundle.create().unwrap();
    let ran = bundle.call(&["start", &bundle.id]).unwrap();
    assert!(ran.code != 0 && ran.stderr.contains("startContainer"), "{ran}");
}

fn a_failure_after_the_start_is_no_error(bundle: &mut Bundle) {
    failing(bundle, "poststart");
    bundle.launch().unwrap();
    bundle.wait("stopped").unwrap();
    assert!(bundle.path("rootfs/ran").exists());
}

fn a_failure_after_the_end_is_no_error(bundle: &mut Bundle) {
    let after = hook(&format!("cat >/dev/null; echo x > {}", bundle.path("after").display()));
    bundle.config["hooks"] = json!({"poststop": [hook("cat >/dev/null; false"), after]});
    bundle.shell("true").finish().unwrap();
    bundle.delete().unwrap();
    assert!(bundle.path("after").exists());
}
