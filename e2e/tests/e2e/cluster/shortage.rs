//! A node that runs short: which pods go, which stay, and what the cluster sees. Soft thresholds stand for the shortage: all of
//! the machine is never free.

use std::time::Duration;

use berth_e2e::manifest::Builder;
use berth_e2e::poll;
use berth_e2e::registry::Registry;
use serde_json::Value;

use super::{Cluster, NAME, bound};

/// Each pod goes at the next look, ten seconds after the one before.
const LOOKS: Duration = Duration::from_secs(90);

fn condition(cluster: &Cluster, type_: &str) -> Value {
    let node = cluster.get(&["node", NAME]);
    let found =
        node["status"]["conditions"].as_array().unwrap().iter().find(|one| one["type"] == type_).cloned();
    found.unwrap()
}

fn wait_failed(cluster: &Cluster, pod: &str) -> Value {
    let mut last = Value::Null;
    let failed = poll::until_true(&format!("{pod} has failed"), LOOKS, || {
        last = cluster.get(&["pod", pod]);
        last["status"]["phase"] == "Failed"
    });
    failed.unwrap_or_else(|error| panic!("{error}: {last}"));
    last
}

#[test]
fn pods_go_by_what_they_take_of_memory_and_those_of_the_system_stay() {
    let more = "evictionSoft: {memory.available: 100%}\nevictionSoftGracePeriod: {memory.available: 20s}\n\
        evictionMaxPodGracePeriod: 1\n";
    let mut cluster = Cluster::prepare_with("kubeconfig", "--kubeconfig", more);
    cluster.join();
    let asking = |name: &str, shell: &str| {
        Builder::new(name).shell(shell).with("resources: {requests: {memory: 1Mi}}")
    };
    cluster.apply(&bound(&asking("small", "exec sleep 1000")));
    let large = asking("large", "head -c 50000000 /dev/zero >/mem/file; exec sleep 1000")
        .with("volumeMounts: [{name: mem, mountPath: /mem}]")
        .with_pod("volumes: [{name: mem, emptyDir: {medium: Memory}}]");
    cluster.apply(&bound(&large));
    let critical = asking("critical", "exec sleep 1000").with_pod("priorityClassName: system-node-critical");
    cluster.apply(&bound(&critical));
    cluster.node.apply("own.yaml", &Builder::new("own").shell("exec sleep 1000").yaml()).unwrap();

    let first = wait_failed(&cluster, "large");
    assert_eq!(first["status"]["reason"], "Evicted");
    let message = first["status"]["message"].as_str().unwrap();
    for part in [
        "The node was low on resource: memory. Threshold quantity: ",
        "Container main was using ",
        ", request is 1Mi, has larger consumption of memory. ",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let target =
        first["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "DisruptionTarget");
    assert_eq!(target.unwrap()["reason"], "TerminationByKubelet");
    let pressure = condition(&cluster, "MemoryPressure");
    assert_eq!(
        (&pressure["status"], &pressure["reason"]),
        (&"True".into(), &"KubeletHasInsufficientMemory".into())
    );
    // Whoever asks for no memory is not taken now.
    cluster.apply(&bound(&Builder::new("late").shell("exec sleep 1000")));
    let late = wait_failed(&cluster, "late");
    assert_eq!(late["status"]["reason"], "Evicted");
    assert_eq!(late["status"]["message"], "Pod was rejected: The node had condition: [MemoryPressure]. ");

    wait_failed(&cluster, "small");
    let events =
        cluster.kubectl(&["get", "events", "-o", "custom-columns=:.reason,:.involvedObject.name,:.message"]);
    assert!(events.contains("EvictionThresholdMet"), "{events}");
    // The next look finds nobody else.
    let nobody = || cluster.node.agent_log().contains("no pod can be made to go");
    poll::until_true("nobody else can go", LOOKS, nobody).unwrap();
    assert_eq!(cluster.get(&["pod", "critical"])["status"]["phase"], "Running");
    cluster.node.wait_running(&["own", "critical"]).unwrap();
    cluster.kubectl(&["delete", "pod", "large", "small", "late", "critical", "--timeout=60s"]);
}

#[test]
fn images_that_nobody_uses_go_before_pods_when_the_disk_is_short() {
    let more = "evictionSoft: {imagefs.available: 100%}\nevictionSoftGracePeriod: {imagefs.available: 20s}\n\
        imageMinimumGCAge: 0s\nimageGCHighThresholdPercent: 100\n";
    let mut cluster = Cluster::prepare_with("kubeconfig", "--kubeconfig", more);
    let filling = Builder::new("filling")
        .shell("head -c 20000000 /dev/zero >/data/file; exec sleep 1000")
        .with("volumeMounts: [{name: data, mountPath: /data}]")
        .with_pod("volumes: [{name: data, emptyDir: {}}]")
        .with_pod("priorityClassName: system-cluster-critical");
    let images = |cluster: &Cluster| cluster.node.berth(&["image", "ls"]).unwrap().ok().unwrap();
    cluster.join();
    cluster.apply(&bound(&filling));
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/filling"]);
    // One image has a user; of two others one can be pulled again.
    let dir = cluster.node.path("spare");
    std::fs::create_dir(&dir).unwrap();
    let berth = |words: &[&str]| cluster.node.berth(words).unwrap().ok().unwrap();
    for name in ["kept", "spare"] {
        let make = format!("cd {} && echo {name} >file && tar -cf {name}.tar file", dir.display());
        cluster.node.machine().shell(&make).unwrap();
        let tar = dir.join(format!("{name}.tar"));
        berth(&["image", "import", tar.to_str().unwrap(), &format!("localhost/{name}:1")]);
    }
    let archive = dir.join("oci.tar");
    berth(&["image", "save", "-o", archive.to_str().unwrap(), "localhost/spare:1"]);
    berth(&["image", "rm", "localhost/spare:1"]);
    let registry = Registry::start(cluster.node.machine()).unwrap();
    let reference = registry.push(&archive, "team/spare:1.0").unwrap();
    berth(&["image", "pull", &reference]);
    let gone = || !images(&cluster).contains("team/spare");
    poll::until_true("the image that nobody uses goes", LOOKS, gone).unwrap();
    let pressure = condition(&cluster, "DiskPressure");
    assert_eq!(
        (&pressure["status"], &pressure["reason"]),
        (&"True".into(), &"KubeletHasDiskPressure".into())
    );
    assert_eq!(
        cluster.get(&["pod", "filling"])["status"]["phase"],
        "Running",
        "it is critical, and its image is here"
    );
    let left = images(&cluster);
    assert!(left.lines().count() == 3 && left.contains("localhost/kept"), "{left}");
    // No other pod is taken while that lasts.
    let late = Builder::new("late").shell("exec sleep 1000").with("resources: {requests: {memory: 1Mi}}");
    cluster.apply(&bound(&late));
    let late = wait_failed(&cluster, "late");
    assert_eq!(late["status"]["message"], "Pod was rejected: The node had condition: [DiskPressure]. ");
    cluster.kubectl(&["delete", "pod", "filling", "late", "--timeout=60s"]);
}
