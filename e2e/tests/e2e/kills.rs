//! `kill -9` of the agent, of shims and of containers: nothing is lost and nothing is left.

use std::time::Duration;

use berth_e2e::manifest::{self, Builder};
use berth_e2e::node::Node;
use berth_e2e::pods::{PodExt, Pods};
use berth_e2e::poll;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_killed_agent_finds_its_containers_again_with_their_pids_logs_and_counts() {
    let mut node = Node::start().unwrap();
    let counter = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done";
    node.apply("counter.yaml", &manifest::pod("counter", counter)).unwrap();
    node.apply(
        "crashed.yaml",
        &manifest::pod("crashed", "[ -e /w/x ] && exec sleep 1000000; touch /w/x; exit 1")
            .replace("  containers:", "  volumes: [{ name: w, emptyDir: {} }]\n  containers:")
            .replace("      command:", "      volumeMounts: [{ name: w, mountPath: /w }]\n      command:"),
    )
    .unwrap();
    let pods = node
        .wait("both run, one after a crash", SOON, |pods| {
            pods.get("counter").is_some_and(PodExt::is_running)
                && pods.get("crashed").is_some_and(|p| p.is_running() && p.restarts() == 1)
        })
        .unwrap();
    let uids = [pods["counter"].uid().to_owned(), pods["crashed"].uid().to_owned()];
    let pids: Vec<_> = uids.iter().map(|uid| (node.shim(uid).unwrap(), node.pids(uid).unwrap())).collect();

    node.kill9_agent().unwrap();
    let before = node.log(&pods["counter"], "main", 0).unwrap().len();
    poll::until_true("the log grows without an agent", SOON, || {
        node.log(&pods["counter"], "main", 0).unwrap().len() > before + 20
    })
    .unwrap();
    node.start_agent().unwrap();

    let after = node.wait_running(&["counter", "crashed"]).unwrap();
    let now: Vec<_> = uids.iter().map(|uid| (node.shim(uid).unwrap(), node.pids(uid).unwrap())).collect();
    assert_eq!(now, pids, "processes changed");
    assert_eq!((after["counter"].restarts(), after["crashed"].restarts()), (0, 1));
    assert_eq!(after["counter"].ip(), pods["counter"].ip());
    let lines = node.log(&after["counter"], "main", 0).unwrap();
    let expected: Vec<String> = (1..=lines.len()).map(|n| n.to_string()).collect();
    assert_eq!(lines, expected, "the log has a hole");

    // And it can still be spoken to, and its restart counts go on.
    assert_eq!(node.exec("crashed", &["echo", "here"]).unwrap().ok().unwrap(), "here\n");
    node.machine().kill("KILL", &node.pids(&uids[1]).unwrap()).unwrap();
    node.wait("the count goes on", SOON, |pods| {
        pods["crashed"].restarts() == 2 && pods["crashed"].is_running()
    })
    .unwrap();
}

#[test]
fn the_shim_that_waits_for_a_pod_ends_with_the_agent_and_is_not_missed() {
    let mut node = Node::start().unwrap();
    let spare = |node: &Node| {
        poll::until("a shim waits", SOON, || node.spare_shim().map_err(|e| e.to_string())).unwrap()
    };
    // It becomes the pod's, and another one takes its place.
    let first = spare(&node);
    node.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    let pods = node.wait_running(&["a"]).unwrap();
    assert_eq!(node.shim(pods["a"].uid()).unwrap(), first);
    let shown = node.machine().processes().unwrap().into_iter().find(|p| p.pid == first).unwrap().command;
    assert!(shown.starts_with("berth shim --dir ") && shown.contains(pods["a"].uid()), "{shown}");

    let second = spare(&node);
    node.machine().kill("KILL", &[second]).unwrap();
    node.apply("b.yaml", &manifest::pod("b", "exec sleep 1000000")).unwrap();
    node.wait_running(&["a", "b"]).unwrap();

    let third = spare(&node);
    node.kill9_agent().unwrap();
    poll::until_true("it ends with the agent", SOON, || {
        node.machine().processes().unwrap().iter().all(|p| p.pid != third)
    })
    .unwrap();
    node.start_agent().unwrap();
    node.wait_running(&["a", "b"]).unwrap();
}

#[test]
fn an_exit_while_the_agent_is_away_is_reported_with_its_code() {
    let mut node = Node::start().unwrap();
    let waits = |name: &str, code: i32| {
        Builder::new(name)
            .restart("Never")
            .shell(&format!("trap 'exit {code}' USR1; while :; do sleep 0.05; done"))
            .yaml()
    };
    node.apply("ends.yaml", &waits("ends", 17)).unwrap();
    node.apply("dies.yaml", &waits("dies", 0)).unwrap();
    let pods = node.wait_running(&["ends", "dies"]).unwrap();
    let pid = |name: &str| node.pids(pods[name].uid()).unwrap()[0];
    let (ends, dies) = (pid("ends"), pid("dies"));
    node.kill9_agent().unwrap();
    node.machine().kill("USR1", &[ends]).unwrap();
    node.machine().kill("KILL", &[dies]).unwrap();
    poll::until_true("both end", SOON, || !node.machine().alive(ends) && !node.machine().alive(dies))
        .unwrap();
    node.start_agent().unwrap();
    let pods = node
        .wait("both are reported", SOON, |pods| {
            ["ends", "dies"].iter().all(|n| pods.get(*n).is_some_and(|p| p.phase() == "Failed"))
        })
        .unwrap();
    assert_eq!(pods["ends"].ended().unwrap().exit_code, 17);
    assert_eq!(pods["dies"].ended().unwrap().exit_code, 137);
    assert_eq!(pods["ends"].restarts() + pods["dies"].restarts(), 0);
}

#[test]
fn a_killed_shim_takes_its_own_pod_and_no_other_and_the_pod_is_made_anew() {
    let node = Node::start().unwrap();
    node.apply("a.yaml", &manifest::pod("a", "exec sleep 1000000")).unwrap();
    node.apply("b.yaml", &manifest::pod("b", "exec sleep 1000000")).unwrap();
    let pods = node.wait_running(&["a", "b"]).unwrap();
    let (a, b) = (pods["a"].uid().to_owned(), pods["b"].uid().to_owned());
    let (shim, old, other) = (node.shim(&a).unwrap(), node.pids(&a).unwrap(), node.pids(&b).unwrap());

    node.machine().kill("KILL", &[shim]).unwrap();
    poll::until_true("a's container goes with its shim", SOON, || {
        old.iter().all(|p| !node.machine().alive(*p))
    })
    .unwrap();
    poll::until("a has a new shim and container", SOON, || {
        let new = node.shim(&a).map_err(|e| e.to_string())?;
        Ok((new != shim
            && node.machine().alive(new)
            && !node.pids(&a).map_err(|e| e.to_string())?.is_empty())
        .then_some(()))
    })
    .unwrap();
    let pods = node
        .wait("a runs again", SOON, |pods| pods.get("a").is_some_and(|p| p.is_running() && p.restarts() >= 1))
        .unwrap();
    assert_eq!(pods["a"].uid(), a);
    assert_eq!(node.pids(&b).unwrap(), other);
    assert_eq!(pods["b"].restarts(), 0);
    node.machine().shell(&format!("busybox ping -c1 -W5 {}", pods["a"].ip())).unwrap();
}

#[test]
fn an_agent_killed_while_pods_start_and_end_finishes_what_was_half_done() {
    let mut node = Node::start().unwrap();
    let mut dice = Dice::new(0x5eed);
    for round in 0..12 {
        for i in 0..4 {
            let name = format!("p{i}");
            if (round + i) % 3 == 2 {
                let _ = node.remove(&format!("{name}.yaml"));
            } else {
                node.apply(
                    &format!("{name}.yaml"),
                    &manifest::pod(&name, &format!("echo {round}; exec sleep 1000000")),
                )
                .unwrap();
            }
        }
        poll::pause(Duration::from_millis(dice.below(60)));
        node.kill9_agent().unwrap();
        node.start_agent().unwrap();
    }
    let wanted: Vec<String> = std::fs::read_dir(node.path("manifests"))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().trim_end_matches(".yaml").to_owned())
        .collect();
    node.wait("only what the folder says runs", SOON, |pods| {
        pods.len() == wanted.len() && wanted.iter().all(|n| pods.get(n).is_some_and(PodExt::is_running))
    })
    .unwrap();
    settled(&node, wanted.len());
    node.finish().unwrap();
}

#[test]
fn a_hundred_random_kills_leave_the_desired_state_and_nothing_else() {
    let mut node = Node::start().unwrap();
    let names: Vec<String> = (0..6).map(|i| format!("p{i}")).collect();
    for name in &names {
        node.apply(&format!("{name}.yaml"), &manifest::pod(name, "exec sleep 1000000")).unwrap();
    }
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    node.wait_running(&all).unwrap();
    let mut dice = Dice::new(
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64,
    );
    eprintln!("seed {}", dice.0);
    for _ in 0..100 {
        poll::pause(Duration::from_millis(dice.below(80)));
        let agent = node.agent().unwrap();
        let processes = node.machine().processes().unwrap();
        let (shims, others): (Vec<_>, Vec<_>) = processes
            .into_iter()
            .filter(|p| p.pid != agent)
            .partition(|p| p.command.contains(" shim ") || p.command.contains("berth-shim"));
        match dice.below(3) {
            0 => {
                node.kill9_agent().unwrap();
                node.start_agent().unwrap();
            }
            1 if !shims.is_empty() => node.machine().kill("KILL", &[pick(&mut dice, &shims).pid]).unwrap(),
            _ if !others.is_empty() => node.machine().kill("KILL", &[pick(&mut dice, &others).pid]).unwrap(),
            _ => {}
        }
    }
    node.wait("every pod runs again", Duration::from_secs(60), |pods: &Pods| {
        pods.len() == names.len() && names.iter().all(|n| pods[n].is_running())
    })
    .unwrap();
    settled(&node, names.len());
    node.finish().unwrap();
}

/// One shim, one container process, one host link and one cgroup per pod, and nothing besides.
fn settled(node: &Node, pods: usize) {
    poll::until("actual equals desired", SOON, || {
        let text = |e: anyhow::Error| e.to_string();
        let agent = node.agent().map_err(text)?;
        let processes: Vec<_> =
            node.processes().map_err(text)?.into_iter().filter(|p| p.pid != agent).collect();
        let links = node.machine().links().map_err(text)?;
        let folders = std::fs::read_dir(node.path("run/pods")).map_err(|e| e.to_string())?.count();
        let mut cgroups: Vec<String> = berth_e2e::leftovers::cgroups(node.cgroup_parent())
            .iter()
            .filter_map(|p| p.file_name()?.to_str().filter(|n| n.starts_with("pod")).map(str::to_owned))
            .collect();
        cgroups.sort();
        cgroups.dedup();
        let good = processes.len() == 2 * pods
            && links.len() == pods + 3
            && folders == pods
            && cgroups.len() == pods;
        if good {
            Ok(Some(()))
        } else {
            Err(format!("{pods} pods wanted; {processes:#?}\n{links:?}\n{folders} folders\n{cgroups:?}"))
        }
    })
    .unwrap();
}

/// Numbers that look random, from a seed that a failure shows (xorshift).
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

fn pick<'a, T>(dice: &mut Dice, from: &'a [T]) -> &'a T {
    &from[dice.below(from.len() as u64) as usize]
}
