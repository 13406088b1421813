//! Pods whose `runtimeClassName` names another OCI runtime.

use std::time::Duration;

use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::tools;

/// A node that knows crun and runc.
fn node() -> Node {
    let path = |name| tools::find(name).unwrap().display().to_string();
    let config = format!(
        "crashLoopBackOff: {{ maxContainerRestartPeriod: 1s }}\nruntimes:\n  crun: {{ path: {} }}\n  runc: {{ path: {} }}\n",
        path("crun"),
        path("runc")
    );
    let mut node = Node::prepare(&config, &[]).unwrap();
    // crun refuses a tree where v2 is mounted beside v1.
    node.machine().shell("umount /sys/fs/cgroup/unified 2>/dev/null || :").unwrap();
    node.start_agent().unwrap();
    node
}

fn a_pod_lives(name: &str) {
    let mut node = node();
    let shell = "echo up; trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done";
    let pod = Builder::new("a")
        .shell(shell)
        .grace(20)
        .with("resources: { limits: { memory: 256Mi, cpu: 500m } }")
        .with_pod(&format!("runtimeClassName: {name}"));
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let found = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&found, "up").unwrap();
    // The runtime has made it: its state is there, and our own engine's mark is not.
    let id = node.on_machine(found.uid()).unwrap()[0].id.clone();
    let state = node.path(&format!("run/pods/{}/containers/{id}/runtime/state/{id}", found.uid()));
    assert!(state.is_dir(), "{} is missing", state.display());
    let ran =
        node.exec("a", &["sh", "-c", "echo out; echo err >&2; hostname; exit 42"]).unwrap().code(42).unwrap();
    assert_eq!(ran.stdout, "out\na-n1\n", "{ran}");
    assert!(ran.stderr.contains("err"), "{ran}");
    let absent = node.exec("a", &["/no/such/program"]).unwrap();
    assert!(absent.code != 0 && absent.stderr.contains("/no/such/program"), "{absent}");
    // Inside the pod's network, and nothing of it in the machine's mounts.
    assert!(node.exec("a", &["ip", "address"]).unwrap().ok().unwrap().contains(found.ip()));
    let mounts = node.machine().shell("cat /proc/mounts").unwrap();
    assert!(!mounts.contains("overlay"), "{mounts}");
    // It outlives the agent, and TERM and its last words are as with our own.
    let pids = node.pids(found.uid()).unwrap();
    node.kill9_agent().unwrap();
    node.start_agent().unwrap();
    node.wait_running(&["a"]).unwrap();
    assert_eq!(node.pids(found.uid()).unwrap(), pids);
    // A crash is seen and the container made anew.
    node.machine().kill("KILL", &pids).unwrap();
    let again = node.wait("it runs again", Duration::from_secs(30), |pods| {
        pods.get("a")
            .is_some_and(|p| p.is_running() && p.container("main").is_some_and(|c| c.restart_count == 1))
    });
    let again = again.unwrap().remove("a").unwrap();
    let ended = again.container("main").unwrap().last_state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, again.uid()), (137, found.uid()));
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
}

fn terminals_and_failures(name: &str) {
    // crun 1.8 gives an exec no size, so that it has one a little after its beginning.
    const SIZED: &str = "until stty size 2>/dev/null | grep -q 77; do :; done; stty size";
    let node = node();
    let class = format!("runtimeClassName: {name}");
    let tty = Builder::new("t").shell("tty; exec sleep 1000000").with("tty: true").with_pod(&class);
    node.apply("t.yaml", &tty.yaml()).unwrap();
    let bad = Builder::new("b").shell("true").with("securityContext: { runAsUser: 0 }").with_pod(&class);
    node.apply("b.yaml", &bad.yaml().replace("\"sh\"", "\"/no/such/program\"")).unwrap();
    let found = node.wait_running(&["t"]).unwrap().remove("t").unwrap();
    node.wait_log(&found, "/dev/").unwrap();
    let mut script = node.machine().command("script");
    let line = format!(
        "stty rows 33 cols 77; {} exec -it t-n1 -- sh -c '{SIZED}; exit 5'",
        tools::berth().display()
    );
    script.args(["-qec", &line, "/dev/null"]).env("BERTH_SOCKET", node.socket());
    let ran = tools::run(script).unwrap().code(5).unwrap();
    assert!(ran.stdout.contains("33 77"), "{ran}");
    // The runtime's own words are the pod's.
    node.wait_event("b", "/no/such/program").unwrap();
}

/// A folder of the host, memory, a file of a ConfigMap and subPaths, for a pod whose users are nobody on the host.
fn with_users(name: &str, host: &std::path::Path) -> String {
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{ name: settings }}
data: {{ key: value }}
---
apiVersion: v1
kind: Pod
metadata: {{ name: u }}
spec:
  hostUsers: false
  runtimeClassName: {name}
  terminationGracePeriodSeconds: 1
  securityContext: {{ fsGroup: 2000, sysctls: [{{ name: net.ipv4.ip_unprivileged_port_start, value: \"7\" }}] }}
  volumes:
    - {{ name: data, emptyDir: {{}} }}
    - {{ name: memory, emptyDir: {{ medium: Memory }} }}
    - {{ name: settings, configMap: {{ name: settings }} }}
    - {{ name: host, hostPath: {{ path: {host}, type: Directory }} }}
  containers:
    - name: main
      image: {image}
      imagePullPolicy: Never
      command: [sh, -c, 'echo started; echo made > /data/one; exec sleep 1000000']
      securityContext: {{ readOnlyRootFilesystem: false }}
      volumeMounts:
        - {{ name: data, mountPath: /data }}
        - {{ name: data, mountPath: /deep, subPath: sub/folder }}
        - {{ name: memory, mountPath: /memory }}
        - {{ name: settings, mountPath: /settings }}
        - {{ name: settings, mountPath: /one-file, subPath: key }}
        - {{ name: host, mountPath: /host, readOnly: true }}
    - name: other
      image: {image}
      imagePullPolicy: Never
      command: [sh, -c, 'exec sleep 1000000']
      securityContext: {{ runAsUser: 1000, runAsGroup: 3000 }}
      volumeMounts: [{{ name: data, mountPath: /data }}]
",
        host = host.display(),
        image = berth_e2e::manifest::IMAGE
    )
}

fn a_pod_has_users_of_its_own(name: &str) {
    let node = node();
    let host = node.path("shared");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "").unwrap();
    std::os::unix::fs::chown(host.join("file"), Some(1234), Some(4321)).unwrap();
    node.apply("u.yaml", &with_users(name, &host)).unwrap();
    let pod = node.wait_running(&["u"]).unwrap().remove("u").unwrap();
    node.wait_log(&pod, "started").unwrap();
    let inside = |container: &str, line: &str| {
        let words = ["exec", "u-n1", "-c", container, "--", "sh", "-c", line];
        node.berth(&words).unwrap().ok().unwrap().trim().to_owned()
    };
    let pids = node.pids(pod.uid()).unwrap();
    let owners: Vec<String> = pids
        .iter()
        .map(|pid| node.machine().shell(&format!("stat -c '%u %g' /proc/{pid}")).unwrap().trim().to_owned())
        .collect();
    let first = 0x7000_0000_u32;
    assert!(owners.contains(&format!("{first} {first}")), "{owners:?}");
    assert!(owners.contains(&format!("{} {}", first + 1000, first + 3000)), "{owners:?}");
    let namespace = "readlink /proc/self/ns/user";
    assert_eq!(inside("main", namespace), inside("other", namespace));
    assert_ne!(inside("main", namespace), node.machine().shell(namespace).unwrap().trim());
    assert_eq!(inside("main", "id -u; stat -c %u:%g / /bin/busybox"), "0\n0:0\n0:0");
    assert_eq!(inside("main", "touch /new; stat -c %u /new /dev/mqueue /dev/shm /etc/hosts"), "0\n0\n0\n0");
    assert_eq!(inside("main", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "7");
    // Files have their owners, inside and on the disk.
    inside("other", "echo x > /data/two");
    assert_eq!(inside("main", "stat -c %u:%g /data/one /data/two /memory"), "0:2000\n1000:2000\n0:2000");
    let data = node.path(&format!("root/volumes/{}/data", pod.uid()));
    let owner =
        |file: &str| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(data.join(file)).unwrap());
    assert_eq!((owner("one"), owner("two")), (0, 1000));
    assert_eq!(inside("main", "stat -c %u:%g /host/file"), "1234:4321");
    assert_eq!(inside("main", "touch /host/new 2>/dev/null || echo refused"), "refused");
    inside("main", "echo deep > /deep/file; echo y > /memory/y");
    assert_eq!(inside("main", "cat /data/sub/folder/file /settings/key; cat /one-file"), "deep\nvaluevalue");
    let mounts = node.machine().shell("cat /proc/mounts").unwrap();
    assert!(!mounts.contains("overlay") && !mounts.contains("runtime/mounts"), "{mounts}");
    node.remove("u.yaml").unwrap();
    node.wait_gone("u").unwrap();
}

/// What a privileged container mounts in a volume is there for others, and for the host.
fn mounts_reach_the_host(name: &str) {
    let node = node();
    let host = node.path("shared");
    node.machine()
        .shell(&format!("mkdir {0} && mount -t tmpfs t {0} && mount --make-shared {0}", host.display()))
        .unwrap();
    let volume = format!("volumes: [{{ name: h, hostPath: {{ path: {} }} }}]", host.display());
    let class = format!("runtimeClassName: {name}");
    let mount =
        |mode: &str| format!("volumeMounts: [{{ name: h, mountPath: /h, mountPropagation: {mode} }}]");
    let giver = Builder::new("giver")
        .shell("mkdir /h/in && mount -t tmpfs t /h/in && touch /h/in/seen && echo up; exec sleep 1000000")
        .with("securityContext: { privileged: true }")
        .with(&mount("Bidirectional"))
        .with_pod(&volume)
        .with_pod(&class);
    let taker = Builder::new("taker").shell("exec sleep 1000000").with(&mount("HostToContainer"));
    let taker = taker.with_pod(&volume).with_pod(&class);
    node.apply("taker.yaml", &taker.yaml()).unwrap();
    node.wait_running(&["taker"]).unwrap();
    node.apply("giver.yaml", &giver.yaml()).unwrap();
    let found = node.wait_running(&["giver"]).unwrap().remove("giver").unwrap();
    node.wait_log(&found, "up").unwrap();
    assert_eq!(node.machine().shell(&format!("ls {}/in", host.display())).unwrap().trim(), "seen");
    assert_eq!(node.exec("taker", &["ls", "/h/in"]).unwrap().ok().unwrap().trim(), "seen");
    for pod in ["giver", "taker"] {
        node.remove(&format!("{pod}.yaml")).unwrap();
    }
    node.wait("they are gone", Duration::from_secs(30), |pods| pods.is_empty()).unwrap();
    node.machine().shell(&format!("umount {0}/in && umount {0}", host.display())).unwrap();
}

#[test]
fn crun_shows_the_host_what_is_mounted_in_a_volume() {
    mounts_reach_the_host("crun");
}

#[test]
fn runc_shows_the_host_what_is_mounted_in_a_volume() {
    mounts_reach_the_host("runc");
}

#[test]
fn crun_joins_a_pods_users() {
    a_pod_has_users_of_its_own("crun");
}

#[test]
fn runc_joins_a_pods_users() {
    a_pod_has_users_of_its_own("runc");
}

#[test]
fn crun_runs_a_pod() {
    a_pod_lives("crun");
}

#[test]
fn runc_runs_a_pod() {
    a_pod_lives("runc");
}

#[test]
fn crun_gives_terminals_and_says_what_failed() {
    terminals_and_failures("crun");
}

#[test]
fn runc_gives_terminals_and_says_what_failed() {
    terminals_and_failures("runc");
}

#[test]
fn an_unknown_runtime_is_refused_on_the_pod() {
    let node = node();
    let pod = Builder::new("a").shell("true").with_pod("runtimeClassName: kata").yaml();
    let ran =
        tools::run_with(node.berth_command(&["apply", "-f", "-"]), pod.as_bytes()).unwrap().code(1).unwrap();
    assert!(ran.stderr.contains("spec.runtimeClassName") && ran.stderr.contains("crun, runc"), "{ran}");
}
