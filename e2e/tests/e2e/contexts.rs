//! Security contexts, resources, names and variables: what the kernel shows of them.

use berth_e2e::manifest::{self, Builder};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use k8s_openapi::api::core::v1::Pod;

fn inside(node: &Node, pod: &str, line: &str) -> String {
    node.exec(pod, &["sh", "-c", line]).unwrap().ok().unwrap()
}

/// A node with these lines in its settings.
fn node_with(settings: &str) -> Node {
    let mut node = Node::prepare(settings, &[]).unwrap();
    node.start_agent().unwrap();
    node
}

/// A file of a cgroup of the pod, by its names on v1 and v2.
fn cgroup_file(node: &Node, pod: &Pod, tier: &str, below: &str, v1: &str, v2: &str) -> String {
    let path = format!("{}/kubepods{tier}/pod{}{below}", node.cgroup_parent(), pod.uid());
    let read = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{}", file.replace('@', &path)));
    read(v1).or_else(|_| read(v2)).unwrap().trim().to_owned()
}

fn container_folder(pod: &Pod) -> String {
    let id = pod.statuses()[0].container_id.clone().unwrap();
    id.replace("berth://", "/")
}

#[test]
fn a_seccomp_profile_of_the_node_is_applied_and_a_missing_one_named() {
    let node = Node::start().unwrap();
    std::fs::create_dir_all(node.path("root/seccomp/sub")).unwrap();
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    std::fs::write(node.path("root/seccomp/sub/no-folders.json"), profile).unwrap();
    let pod = |name: &str, file: &str| {
        Builder::new(name).shell("exec sleep 1000000").with(&format!(
            "securityContext: {{ seccompProfile: {{ type: Localhost, localhostProfile: {file} }} }}"
        ))
    };
    node.apply("a.yaml", &pod("a", "sub/no-folders.json").yaml()).unwrap();
    node.apply("b.yaml", &pod("b", "none.json").yaml()).unwrap();
    node.wait_running(&["a"]).unwrap();
    assert!(inside(&node, "a", "mkdir /x 2>&1; touch /y && echo made").contains("No space left"), "errno 28");
    assert_eq!(inside(&node, "a", "ls /y").trim(), "/y");
    let event = node.wait_event("b", "cannot load seccomp profile").unwrap();
    assert!(event.contains("root/seccomp/none.json") && event.contains("No such file"), "{event}");
}

#[test]
fn sysctls_are_the_pods_own_and_unsafe_ones_need_the_nodes_word() {
    let node = node_with("allowedUnsafeSysctls: ['kernel.msg*', net.ipv4.tcp_ecn]\n");
    let pod = |name: &str, sysctl: &str, value: u32| {
        Builder::new(name).shell("exec sleep 1000000").with_pod(&format!(
            "securityContext: {{ sysctls: [{{ name: {sysctl}, value: \"{value}\" }}, {{ name: kernel.shm_rmid_forced, value: \"1\" }}] }}"
        ))
    };
    node.apply("a.yaml", &pod("a", "kernel.msgmax", 4321).yaml()).unwrap();
    node.apply("b.yaml", &pod("b", "net/ipv4/tcp_ecn", 1).yaml()).unwrap();
    node.apply("c.yaml", &pod("c", "kernel.sem", 1).yaml()).unwrap();
    node.wait_running(&["a", "b"]).unwrap();
    assert_eq!(
        inside(&node, "a", "cat /proc/sys/kernel/msgmax /proc/sys/kernel/shm_rmid_forced"),
        "4321\n1\n"
    );
    assert_eq!(inside(&node, "b", "cat /proc/sys/net/ipv4/tcp_ecn").trim(), "1");
    assert_ne!(inside(&node, "b", "cat /proc/sys/kernel/msgmax").trim(), "4321");
    node.wait_event("c", "unsafe sysctl \"kernel.sem\" is not allowed").unwrap();
}

#[test]
fn who_a_container_is_shows_in_its_status() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a")
        .shell("exec sleep 1000000")
        .with_pod("securityContext: { runAsUser: 1000, runAsGroup: 3000, supplementalGroups: [4000], fsGroup: 2000, supplementalGroupsPolicy: Strict }");
    let root = Builder::new("b").shell("true").with_pod("securityContext: { runAsNonRoot: true }");
    let zero = Builder::new("c")
        .shell("true")
        .with_pod("securityContext: { runAsNonRoot: true }")
        .with("securityContext: { runAsUser: 0 }");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    node.apply("b.yaml", &root.yaml()).unwrap();
    node.apply("c.yaml", &zero.yaml()).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let linux = pod.statuses()[0].user.clone().unwrap().linux.unwrap();
    assert_eq!((linux.uid, linux.gid), (1000, 3000));
    assert_eq!(linux.supplemental_groups.unwrap(), [2000, 3000, 4000]);
    assert_eq!(
        inside(&node, "a", "grep -E '^(Uid|Gid|Groups):' /proc/1/status | tr -s '\\t ' ' '").trim(),
        "Uid: 1000 1000 1000 1000\nGid: 3000 3000 3000 3000\nGroups: 2000 3000 4000"
    );
    let event = node
        .wait_event("b", "container has runAsNonRoot and image will run as root (pod: \"b-n1_default(")
        .unwrap();
    assert!(event.ends_with("container: main)"), "{event}");
    node.wait_event("c", "container's runAsUser breaks non-root policy").unwrap();
}

#[test]
fn a_pod_is_called_what_its_spec_says() {
    let node = Node::start().unwrap();
    let pod = |name: &str, lines: &[&str]| {
        lines
            .iter()
            .fold(Builder::new(name).shell("exec sleep 1000000"), |pod, line| pod.with_pod(line))
            .yaml()
    };
    let long = "hostname: hostname-of-thirty-and-nine-characters-";
    node.apply("a.yaml", &pod("a", &["hostnameOverride: any.name.example"])).unwrap();
    node.apply("b.yaml", &pod("b", &["hostname: box", "subdomain: sub", "setHostnameAsFQDN: true"])).unwrap();
    node.apply("c.yaml", &pod("c", &[&format!("{long}x"), "subdomain: sub", "setHostnameAsFQDN: true"]))
        .unwrap();
    let pods = node.wait_running(&["a", "b"]).unwrap();
    let names = "hostname; cat /proc/sys/kernel/hostname /etc/hostname; echo $HOSTNAME";
    assert_eq!(inside(&node, "a", names), "any.name.example\n".repeat(4));
    let full = "box.sub.default.svc.cluster.local";
    assert_eq!(inside(&node, "b", names), format!("{full}\n").repeat(4));
    let line = format!("{}\t{full}\tbox", pods["b"].ip());
    assert!(inside(&node, "b", "cat /etc/hosts").lines().any(|l| l == line));
    node.wait_event("c", "is too long (64 characters is the max").unwrap();
}

#[test]
fn resources_of_the_pod_are_in_its_cgroups() {
    let node = node_with("cpuCFSQuotaPeriod: 10ms\n");
    let pod = Builder::new("a").shell("exec sleep 1000000").with_pod(
        "resources: { limits: { cpu: 500m, memory: 64Mi }, requests: { cpu: 250m, memory: 32Mi } }",
    );
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    assert_eq!(pod.status.as_ref().unwrap().qos_class.as_deref(), Some("Burstable"));
    for below in [String::new(), container_folder(&pod)] {
        let file = |v1: &str, v2: &str| cgroup_file(&node, &pod, "/burstable", &below, v1, v2);
        assert_eq!(
            file("memory@/memory.limit_in_bytes", "@/memory.max"),
            (64 << 20).to_string(),
            "{below:?}"
        );
        assert!(["5000", "5000 10000"].contains(&&*file("cpu@/cpu.cfs_quota_us", "@/cpu.max")), "{below:?}");
    }
    assert!(["256", "10"].contains(&&*cgroup_file(
        &node,
        &pod,
        "/burstable",
        "",
        "cpu@/cpu.shares",
        "@/cpu.weight"
    )));
}

#[test]
fn a_file_that_an_init_container_writes_gives_variables() {
    let node = Node::start().unwrap();
    let pod = format!(
        "apiVersion: v1
kind: Pod
metadata: {{ name: a }}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{{ name: shared, emptyDir: {{}} }}]
  initContainers:
    - name: write
      image: {image}
      imagePullPolicy: Never
      command:
        - sh
        - -c
        - |
          echo \"ADDRESS='db.example:1' # made now\" > /d/config.env
      volumeMounts: [{{ name: shared, mountPath: /d }}]
  containers:
    - name: main
      image: {image}
      imagePullPolicy: Never
      command: [sh, -c, 'exec sleep 1000000']
      env:
        - {{ name: DB, valueFrom: {{ fileKeyRef: {{ volumeName: shared, path: config.env, key: ADDRESS }} }} }}
        - {{ name: URL, value: 'db://$(DB)/x' }}
        - {{ name: NONE, valueFrom: {{ fileKeyRef: {{ volumeName: shared, path: config.env, key: NONE, optional: true }} }} }}
",
        image = manifest::IMAGE
    );
    node.apply("a.yaml", &pod).unwrap();
    node.wait_running(&["a"]).unwrap();
    assert_eq!(inside(&node, "a", "echo $URL; env | grep -c ^NONE= || true"), "db://db.example:1/x\n0\n");
}

#[test]
fn smoke_an_agent_that_is_to_label_pods_needs_a_kernel_with_selinux() {
    let mut node = Node::prepare("selinux: true\n", &[]).unwrap();
    let error = node.start_agent().map_err(|error| error.to_string()).err().unwrap_or_default();
    let there = std::path::Path::new("/sys/fs/selinux/enforce").exists();
    assert_eq!(error.contains("selinux: true needs a kernel that has SELinux on"), !there, "{error}");
}

/// On cgroup v1 there is nothing to choose, and whoever wants to choose is told.
#[test]
fn smoke_how_a_container_ends_for_want_of_memory_is_a_setting() {
    if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let mut node = Node::prepare("singleProcessOOMKill: false\n", &[]).unwrap();
        let error = node.start_agent().unwrap_err().to_string();
        assert!(error.contains("singleProcessOOMKill: must not be false on cgroup v1"), "{error}");
        return;
    }
    for (settings, as_a_group) in [("memorySwap: {}\n", "1"), ("singleProcessOOMKill: true\n", "0")] {
        let node = node_with(settings);
        node.apply("a.yaml", &Builder::new("a").shell("exec sleep 1000000").yaml()).unwrap();
        let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
        let below = container_folder(&pod);
        let file = |name: &str| cgroup_file(&node, &pod, "/besteffort", &below, "-", &format!("@/{name}"));
        assert_eq!(file("memory.oom.group"), as_a_group, "{settings}");
        let tier = format!("/sys/fs/cgroup{}/kubepods/memory.swap.max", node.cgroup_parent());
        if std::path::Path::new(&tier).exists() {
            assert_eq!(file("memory.swap.max"), "0", "nobody swaps unless the node says so");
        }
    }
}

/// On cgroup v1 it has no effect, of which the agent warns.
#[test]
fn smoke_memory_is_kept_and_throttled_if_the_node_says_so() {
    const MI: u64 = 1 << 20;
    let settings = "featureGates: { MemoryQoS: true }\nmemoryReservationPolicy: TieredReservation\nmemoryThrottlingFactor: 0.5\n";
    let node = node_with(settings);
    let pod = |name: &str, resources: &str| {
        let yaml =
            Builder::new(name).shell("exec sleep 1000000").with(&format!("resources: {resources}")).yaml();
        node.apply(&format!("{name}.yaml"), &yaml).unwrap();
        node.wait_running(&[name]).unwrap().remove(name).unwrap()
    };
    let burstable = pod("b", "{ requests: { memory: 16Mi }, limits: { memory: 64Mi } }");
    let guaranteed = pod("g", "{ limits: { cpu: 100m, memory: 32Mi } }");
    if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        assert!(node.agent_log().contains("MemoryQoS has no effect"), "{}", node.agent_log());
        return;
    }
    let none = pod("e", "{}");
    let value = |pod: &Pod, tier: &str, below: &str, file: &str| {
        cgroup_file(&node, pod, tier, below, "-", &format!("@/memory.{file}"))
    };
    let all =
        |pod: &Pod, tier: &str, below: &str| ["min", "low", "high"].map(|file| value(pod, tier, below, file));
    let text = |mi: u64| (mi * MI).to_string();
    let (zero, max) = ("0".to_owned(), "max".to_owned());
    let own = container_folder(&burstable);
    assert_eq!(all(&burstable, "/burstable", &own), [zero.clone(), text(16), text(40)]);
    assert_eq!(all(&burstable, "/burstable", ""), [zero.clone(), text(16), max.clone()]);
    let own = container_folder(&guaranteed);
    assert_eq!(all(&guaranteed, "", &own), [text(32), zero.clone(), max.clone()]);
    assert_eq!(all(&guaranteed, "", ""), [text(32), zero.clone(), max.clone()]);
    let own = container_folder(&none);
    let [min, low, high] = all(&none, "/besteffort", &own);
    assert_eq!((min, low), (zero.clone(), zero.clone()));
    let machine = node.machine().shell("grep MemTotal /proc/meminfo").unwrap();
    let half: u64 = machine.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024 / 2;
    assert_eq!(high, (half / 4096 * 4096).to_string());
    // Those above have what those below have, while they have it.
    assert_eq!(all(&burstable, "/burstable", "/.."), [zero.clone(), text(16), max.clone()]);
    assert_eq!(all(&guaranteed, "", "/.."), [text(48), text(16), max.clone()]);
    node.remove("b.yaml").unwrap();
    node.wait_gone("b").unwrap();
    assert_eq!(all(&guaranteed, "", "/.."), [text(32), zero, max]);
}

/// What is kept and from where a container is slowed down goes with its resources, while it runs.
#[test]
fn smoke_a_resize_changes_what_is_kept_and_throttled() {
    const MI: u64 = 1 << 20;
    let settings = "featureGates: { MemoryQoS: true }\nmemoryReservationPolicy: TieredReservation\nmemoryThrottlingFactor: 0.5\n";
    let node = node_with(settings);
    let sized = |request: u64, limit: u64| {
        let resources = format!("{{ requests: {{ memory: {request}Mi }}, limits: {{ memory: {limit}Mi }} }}");
        let pod = Builder::new("b").shell("exec sleep 1000000").with(&format!("resources: {resources}"));
        node.apply("b.yaml", &pod.yaml()).unwrap();
    };
    sized(16, 64);
    let pod = node.wait_running(&["b"]).unwrap().remove("b").unwrap();
    let own = container_folder(&pod);
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let value = |below: &str, file: &str| {
        cgroup_file(
            &node,
            &pod,
            "/burstable",
            below,
            "memory@/memory.limit_in_bytes",
            &format!("@/memory.{file}"),
        )
    };
    let until = |below: &str, file: &str, mi: u64| {
        let what = format!("{file} of b{below} is {mi} Mi");
        let wanted = (mi * MI).to_string();
        let limit = std::time::Duration::from_secs(30);
        berth_e2e::poll::until_true(&what, limit, || value(below, file) == wanted).unwrap();
    };
    for (request, limit) in [(16, 64), (24, 96), (8, 48)] {
        sized(request, limit);
        for below in [own.as_str(), ""] {
            until(below, "max", limit);
            if v2 {
                until(below, "low", request);
            }
        }
        if v2 {
            until(&own, "high", request + (limit - request) / 2);
            // The tier keeps what its only pod requests.
            until("/..", "low", request);
        }
    }
    let after = node.pod("b").unwrap();
    assert_eq!((after.uid(), after.restarts()), (pod.uid(), 0));
    node.finish().unwrap();
}

#[test]
fn processes_of_a_pod_are_counted_and_limited() {
    let node = node_with("podPidsLimit: 20\n");
    let line = "n=0; while [ $n -lt 40 ]; do sleep 1000000 & n=$((n+1)); done; echo all; wait";
    let pod = Builder::new("a").restart("Never").shell(line);
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let pods = node
        .wait("it cannot fork", std::time::Duration::from_secs(30), |pods| {
            pods.get("a").is_some_and(|pod| pod.phase() == "Failed")
        })
        .unwrap();
    let lines = node.log(&pods["a"], "main", 0).unwrap();
    assert!(lines.iter().any(|line| line.contains("can't fork")), "{lines:?}");
    assert!(!lines.iter().any(|line| line == "all"), "{lines:?}");
}

#[test]
fn smoke_what_is_reserved_is_not_for_pods() {
    let mut node =
        node_with("systemReserved: {memory: 1Gi, cpu: 100m}\nkubeReserved: {memory: 1Gi, pid: 1k}\n");
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
    let left = (total.unwrap().parse::<u64>().unwrap() << 10) - (2 << 30);
    let root = format!("{}/kubepods", node.cgroup_parent());
    let limit = |v1: &str, v2: &str| {
        let read = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}"));
        read(&format!("{v1}{root}/{v2}"))
            .or_else(|_| read(&format!("{root}/{v2}")))
            .map(|text| text.trim().to_owned())
    };
    let memory =
        || limit("memory", "memory.limit_in_bytes").or_else(|_| limit("memory", "memory.max")).unwrap();
    assert_eq!(memory(), left.to_string());
    assert_ne!(limit("pids", "pids.max").unwrap(), "max");
    let shown: serde_json::Value = berth_e2e::http::get(&node.socket(), "/api/v1/nodes/n1").unwrap();
    let (capacity, may) = (&shown["status"]["capacity"], &shown["status"]["allocatable"]);
    assert_eq!(may["memory"], format!("{}Ki", left >> 10));
    let cores: u64 = capacity["cpu"].as_str().unwrap().parse().unwrap();
    assert_eq!(may["cpu"], format!("{}m", cores * 1000 - 100));
    // A container without a limit may have what pods may have.
    let pod = Builder::new("a")
        .shell("echo $MOST; exec sleep 1000000")
        .with("env: [{ name: MOST, valueFrom: { resourceFieldRef: { resource: limits.memory } } }]");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&pod, &left.to_string()).unwrap();

    // The next agent has no reservations.
    node.stop_agent().unwrap();
    std::fs::write(node.path("config.yaml"), "").unwrap();
    node.start_agent().unwrap();
    assert_ne!(memory(), left.to_string());
    assert_eq!(limit("pids", "pids.max").unwrap(), "max");
    node.finish().unwrap();
}

#[test]
fn names_and_name_servers_of_the_spec_are_in_the_containers_files() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a")
        .shell("exec sleep 1000000")
        .with_pod("hostAliases: [{ ip: 192.0.2.77, hostnames: [db, db.example] }]")
        .with_pod("dnsPolicy: None")
        .with_pod(
            "dnsConfig: { nameservers: [192.0.2.53], searches: [a.example, b.example], options: [{ name: ndots, value: '3' }, { name: edns0 }] }",
        );
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    assert_eq!(
        inside(&node, "a", "cat /etc/resolv.conf"),
        "search a.example b.example\nnameserver 192.0.2.53\noptions ndots:3 edns0\n"
    );
    let hosts = inside(&node, "a", "cat /etc/hosts");
    assert!(hosts.contains("192.0.2.77\tdb\tdb.example"), "{hosts}");
    assert!(hosts.contains(&format!("{}\ta-n1", pod.ip())), "{hosts}");
}

const PROFILE: &str = "profile berth-test flags=(attach_disconnected,mediate_deleted) { file, capability, network, signal, deny /secret rw, }";

/// Runs on a kernel without AppArmor, too, where the pod must be refused; the VM's kernel has it.
#[test]
fn smoke_app_armor_is_enforced_or_its_absence_is_told() {
    let node = Node::start().unwrap();
    let pod = |name: &str, context: &str| {
        Builder::new(name)
            .shell("echo x > /secret; exec sleep 1000000")
            .with(&format!("securityContext: {context}"))
            .yaml()
    };
    let local =
        |name: &str| format!("{{ appArmorProfile: {{ type: Localhost, localhostProfile: {name} }} }}");
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if !enabled.is_ok_and(|text| text.starts_with('Y')) {
        node.apply("a.yaml", &pod("a", &local("berth-test"))).unwrap();
        node.wait_event("a", "Cannot enforce AppArmor: AppArmor is not enabled on the host").unwrap();
        return;
    }
    let load = format!(
        "mount -t securityfs none /sys/kernel/security; echo '{PROFILE}' | apparmor_parser --replace --skip-cache"
    );
    node.machine().shell(&load).unwrap();
    let current = |name: &str| {
        inside(&node, name, "cat /proc/self/attr/apparmor/current /proc/1/attr/apparmor/current")
    };
    for (name, context, wanted) in [
        ("plain", "{}".to_owned(), "berth-default (enforce)"),
        ("default", "{ appArmorProfile: { type: RuntimeDefault } }".to_owned(), "berth-default (enforce)"),
        ("local", local("berth-test"), "berth-test (enforce)"),
        ("none", "{ appArmorProfile: { type: Unconfined } }".to_owned(), "unconfined"),
        ("mighty", "{ privileged: true }".to_owned(), "unconfined"),
    ] {
        node.apply("a.yaml", &pod(name, &context)).unwrap();
        node.wait_running(&[name]).unwrap();
        assert_eq!(current(name), format!("{wanted}\n{wanted}\n"), "{name}");
        let seen = inside(&node, name, "(echo y > /secret) 2>&1 || true");
        assert_eq!(seen.contains("Permission denied"), name == "local", "{name}: {seen}");
    }
    node.apply("b.yaml", &pod("b", &local("not-there"))).unwrap();
    node.wait_event("b", "apparmor profile not found not-there").unwrap();
    node.machine().shell("umount /sys/kernel/security").unwrap();
}
