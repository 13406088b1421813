//! Bad input: named with file, line, field and reason, and nothing else is disturbed.

use std::time::Duration;

use berth_e2e::manifest;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::poll;

#[test]
fn a_file_that_turns_bad_leaves_its_pod_alone_and_the_error_is_seen_everywhere() {
    let node = Node::start().unwrap();
    let good = manifest::pod("a", "exec sleep 1000000");
    node.apply("a.yaml", &good).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let pids = node.pids(pod.uid()).unwrap();

    let bad = good.replace("      image: ", "      imagee: ");
    let line = bad.lines().position(|l| l.contains("imagee")).unwrap() + 1;
    node.apply("a.yaml", &bad).unwrap();
    node.apply("b.yaml", &manifest::pod("b", "exec sleep 1000000")).unwrap();

    let place = format!("a.yaml:{line}");
    let event = node.wait_event("a", &place).unwrap();
    assert!(event.contains("spec.containers[0].imagee"), "{event}");
    poll::until("the log names the place", Duration::from_secs(10), || {
        let log = node.agent_log();
        if log.contains(&place) && log.contains("spec.containers[0].imagee") {
            Ok(Some(()))
        } else {
            Err(log)
        }
    })
    .unwrap();
    let get = node.berth(&["get", "pods"]).unwrap();
    assert!(format!("{}{}", get.stdout, get.stderr).contains(&place), "{get}");
    let describe = node.berth(&["describe", "pod", "a-n1"]).unwrap().ok().unwrap();
    assert!(describe.contains(&place), "{describe}");

    node.wait_running(&["a", "b"]).unwrap();
    let now = node.pod("a").unwrap();
    assert_eq!((now.uid(), node.pids(pod.uid()).unwrap()), (pod.uid(), pids));

    // Mended: the same pod still, and the complaint is gone.
    node.apply("a.yaml", &good).unwrap();
    poll::until("the complaint is gone", Duration::from_secs(10), || {
        let get = node.berth(&["get", "pods"]).map_err(|e| e.to_string())?;
        let all = format!("{}{}", get.stdout, get.stderr);
        if all.contains(&place) { Err(all) } else { Ok(Some(())) }
    })
    .unwrap();
    assert_eq!(node.pod("a").unwrap().uid(), pod.uid());
}

#[test]
fn a_file_that_was_never_good_is_reported_and_the_next_one_runs() {
    let node = Node::start().unwrap();
    node.apply("broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n spec: {}\n").unwrap();
    node.apply("good.yaml", &manifest::pod("good", "exec sleep 1000000")).unwrap();
    node.wait_running(&["good"]).unwrap();
    poll::until("get tells of the broken file", Duration::from_secs(10), || {
        let get = node.berth(&["get", "pods"]).map_err(|e| e.to_string())?;
        let all = format!("{}{}", get.stdout, get.stderr);
        if all.contains("broken.yaml:5") { Ok(Some(())) } else { Err(all) }
    })
    .unwrap();
}

/// Every one of these must be refused by `check` with the place, and none may make the agent stumble.
const BAD: [(&str, &str, &str); 8] = [
    ("no-kind", "apiVersion: v1\nmetadata:\n  name: x\n", "kind"),
    ("wrong-kind", "apiVersion: v1\nkind: Podd\nmetadata:\n  name: x\n", "Podd"),
    ("no-containers", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\nspec: {}\n", "spec.containers"),
    (
        "bad-name",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: Not_A_Name\nspec:\n  containers: [{ name: a, image: b }]\n",
        "metadata.name",
    ),
    (
        "bad-quantity",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\nspec:\n  containers:\n    - name: a\n      image: b\n      resources: { limits: { memory: lots } }\n",
        "spec.containers[0].resources.limits",
    ),
    (
        "wrong-type",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\nspec:\n  containers:\n    - name: a\n      image: b\n      command: sleep\n",
        "spec.containers[0].command",
    ),
    (
        "unknown-field",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\nspec:\n  containers:\n    - name: a\n      image: b\n      comand: [a]\n",
        "spec.containers[0].comand",
    ),
    (
        "same-name-twice",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\nspec:\n  containers:\n    - { name: a, image: b }\n    - { name: a, image: b }\n",
        "spec.containers[1].name",
    ),
];

#[test]
fn check_refuses_bad_manifests_with_file_line_and_field() {
    let node = Node::prepare("", &[]).unwrap();
    for (name, text, field) in BAD {
        let file = node.path(&format!("{name}.yaml"));
        std::fs::write(&file, text).unwrap();
        let ran = node.berth(&["check", &file.to_string_lossy()]).unwrap().code(1).unwrap();
        let all = format!("{}{}", ran.stdout, ran.stderr);
        let line = all
            .lines()
            .find(|l| l.contains(field))
            .unwrap_or_else(|| panic!("{name}: {field} is not named: {all}"));
        let place =
            line.split(&format!("{name}.yaml:")).nth(1).unwrap_or_else(|| panic!("{name}: no place: {line}"));
        assert!(place.starts_with(|c: char| c.is_ascii_digit()), "{name}: no line number: {line}");
    }
}

#[test]
fn check_accepts_every_example_and_the_demo() {
    let node = Node::prepare("", &[]).unwrap();
    for folder in ["manifests/examples", "manifests/demo"] {
        for entry in std::fs::read_dir(berth_e2e::tools::checkout().join(folder)).unwrap() {
            let file = entry.unwrap().path();
            node.berth(&["check", &file.to_string_lossy()]).unwrap().ok().unwrap();
        }
    }
}

#[test]
fn rubbish_in_the_folder_never_disturbs_what_runs() {
    let node = Node::start().unwrap();
    node.apply("good.yaml", &manifest::pod("good", "exec sleep 1000000")).unwrap();
    let pod = node.wait_running(&["good"]).unwrap().remove("good").unwrap();
    let pids = node.pids(pod.uid()).unwrap();
    for (name, text, _) in BAD {
        node.apply(&format!("{name}.yaml"), text).unwrap();
    }
    node.apply("empty.yaml", "").unwrap();
    node.apply("deep.yaml", &"[".repeat(100_000)).unwrap();
    node.apply("bomb.yaml", "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n").unwrap();
    std::fs::write(node.path("manifests/bytes.yaml"), [0xff, 0xfe, 0, 1, 2]).unwrap();
    std::fs::create_dir(node.path("manifests/folder.yaml")).unwrap();
    std::os::unix::fs::symlink("/nowhere", node.path("manifests/dangling.yaml")).unwrap();
    node.apply("last.yaml", &manifest::pod("last", "exec sleep 1000000")).unwrap();
    node.wait_running(&["good", "last"]).unwrap();
    assert_eq!(node.pids(pod.uid()).unwrap(), pids);
    let pods = node.pods().unwrap();
    assert_eq!(pods.keys().filter(|n| pods[*n].is_running()).count(), 2, "{:?}", pods.keys());
    assert!(!node.agent_log().contains("panicked"), "{}", node.agent_log());
}
