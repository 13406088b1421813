//! Pods that change while they run: resources, images, ephemeral containers, restarts of all containers.

use std::path::Path;
use std::time::Duration;

use berth_e2e::http;
use berth_e2e::manifest::{Builder, IMAGE};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// The image under a tag that is not pulled when it is there.
const TOOLS: &str = "docker.io/library/tools:1";
const SOON: Duration = Duration::from_secs(30);

fn sized(cpu: &str, memory: &str) -> Builder {
    let amounts = format!("{{ cpu: {cpu}, memory: {memory} }}");
    Builder::new("a")
        .shell("exec sleep 1000000")
        .with(&format!("resources: {{ requests: {amounts}, limits: {amounts} }}"))
}

/// A value of the cgroup of a process, or of the cgroup above it: by controller and file on v1, by file on v2.
fn cgroup_value(node: &Node, pid: i32, up: bool, controller: &str, v1: &str, v2: &str) -> String {
    let all = node.machine().shell(&format!("cat /proc/{pid}/cgroup")).unwrap();
    let on_v1 = all
        .lines()
        .find(|line| line.split(':').nth(1).is_some_and(|c| c.split(',').any(|c| c == controller)));
    let (line, top, file) = match on_v1 {
        Some(line) => (line, Path::new("/sys/fs/cgroup").join(controller), v1),
        None => (all.lines().find(|line| line.starts_with("0::")).unwrap(), "/sys/fs/cgroup".into(), v2),
    };
    let mut dir = top.join(line.rsplit(':').next().unwrap().trim_start_matches('/'));
    if up {
        dir.pop();
    }
    std::fs::read_to_string(dir.join(file)).unwrap().trim().to_owned()
}

fn memory_limit(node: &Node, pid: i32, up: bool) -> String {
    cgroup_value(node, pid, up, "memory", "memory.limit_in_bytes", "memory.max")
}

fn quota(node: &Node, pid: i32, up: bool) -> String {
    let text = cgroup_value(node, pid, up, "cpu", "cpu.cfs_quota_us", "cpu.max");
    text.split(' ').next().unwrap().to_owned()
}

/// Whether the status says that the container has this much.
fn has(pod: &Pod, cpu: &str, memory: &str) -> bool {
    let limits = pod.container("main").and_then(|c| c.resources.as_ref()?.limits.clone()).unwrap_or_default();
    let allocated = pod.container("main").and_then(|c| c.allocated_resources.clone()).unwrap_or_default();
    [("cpu", cpu), ("memory", memory)].iter().all(|(name, value)| {
        [&limits, &allocated].iter().all(|list| list.get(*name).is_some_and(|q| q.0 == *value))
    })
}

#[test]
fn smoke_resize_of_an_edited_file_changes_the_cgroups_of_what_runs() {
    let mut node = Node::start().unwrap();
    node.apply("a.yaml", &sized("200m", "64Mi").yaml()).unwrap();
    let before = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let pids = node.pids(before.uid()).unwrap();
    for (cpu, memory, bytes, micros) in
        [("400m", "128Mi", 128 << 20, 40_000), ("100m", "48Mi", 48 << 20, 10_000)]
    {
        node.apply("a.yaml", &sized(cpu, memory).yaml()).unwrap();
        let pods = node
            .wait("the pod is resized", SOON, |p| p.get("a").is_some_and(|p| has(p, cpu, memory)))
            .unwrap();
        assert_eq!(pods["a"].uid(), before.uid());
        assert_eq!(node.pids(before.uid()).unwrap(), pids, "the process goes on");
        for up in [false, true] {
            assert_eq!(memory_limit(&node, pids[0], up), bytes.to_string(), "pod: {up}");
            assert_eq!(quota(&node, pids[0], up), micros.to_string(), "pod: {up}");
        }
    }
    node.wait_event("a", "ResizeCompleted").unwrap();
    // The next agent knows the pod by its uid, and what it was given.
    node.kill9_agent().unwrap();
    node.start_agent().unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    assert_eq!((pod.uid(), pod.restarts()), (before.uid(), 0));
    assert!(has(&pod, "100m", "48Mi"));
    assert_eq!(node.pids(before.uid()).unwrap(), pids);
    node.finish().unwrap();
}

/// Sends a pod back, changed, through a subresource.
fn put(node: &Node, name: &str, part: &str, change: impl FnOnce(&mut Value)) -> (u16, Value) {
    let path = format!("/api/v1/namespaces/default/pods/{name}");
    let mut pod = http::get(&node.socket(), &path).unwrap();
    change(&mut pod);
    pod["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    http::json(&node.socket(), "PUT", &format!("{path}{part}"), Some(&pod)).unwrap()
}

fn create(node: &Node, manifest: &str) {
    let file = node.path("created.yaml");
    std::fs::write(&file, manifest).unwrap();
    node.berth(&["apply", "-f", file.to_str().unwrap()]).unwrap().ok().unwrap();
}

#[test]
fn resize_subresource_grants_refuses_and_restarts_as_the_policy_says() {
    let node = Node::start().unwrap();
    let policy = "resizePolicy: [{ resourceName: memory, restartPolicy: RestartContainer }]";
    create(&node, &sized("100m", "64Mi").with(policy).yaml());
    let before = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let set = |name: &'static str, value: &'static str| {
        move |pod: &mut Value| {
            for list in ["requests", "limits"] {
                pod["spec"]["containers"][0]["resources"][list][name] = json!(value);
            }
        }
    };
    let (code, refused) = put(&node, "a", "", set("cpu", "200m"));
    assert_eq!(code, 422, "{refused}");
    let (code, refused) = put(&node, "a", "/resize", |pod| {
        pod["spec"]["containers"][0]["resources"]["limits"]["cpu"] = json!("300m");
    });
    assert_eq!(code, 422, "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("QOS"), "{refused}");
    let (code, answer) = put(&node, "a", "/resize", set("cpu", "200m"));
    assert_eq!(code, 200, "{answer}");
    let pods =
        node.wait("cpu is resized", SOON, |p| p.get("a").is_some_and(|p| has(p, "200m", "64Mi"))).unwrap();
    assert_eq!(pods["a"].restarts(), 0);
    let (code, _) = put(&node, "a", "/resize", set("memory", "80Mi"));
    assert_eq!(code, 200);
    let pods = node
        .wait("memory is resized by a restart", SOON, |p| {
            p.get("a").is_some_and(|p| has(p, "200m", "80Mi") && p.restarts() == 1 && p.is_running())
        })
        .unwrap();
    assert_eq!(pods["a"].uid(), before.uid());
    assert_eq!(memory_limit(&node, node.pids(before.uid()).unwrap()[0], false), (80 << 20).to_string());
    let (code, _) = put(&node, "a", "/resize", set("cpu", "5000"));
    assert_eq!(code, 200);
    let pods = node
        .wait("the node says that it is too small", SOON, |p| {
            p.get("a").is_some_and(|p| p.has("PodResizePending"))
        })
        .unwrap();
    let conditions = pods["a"].status.as_ref().unwrap().conditions.as_ref().unwrap();
    let pending = conditions.iter().find(|c| c.type_ == "PodResizePending").unwrap();
    assert_eq!(pending.reason.as_deref(), Some("Infeasible"));
    assert!(has(&pods["a"], "200m", "80Mi"));
    node.finish().unwrap();
}

#[test]
fn resize_below_what_is_in_use_is_not_forced() {
    let node = Node::start().unwrap();
    // tmpfs pages count as the container's and cannot be taken back.
    let hog = "dd if=/dev/zero of=/m/x bs=1M count=40 2>/dev/null; echo full; exec sleep 1000000";
    let pod = |memory: &str| {
        Builder::new("a")
            .shell(hog)
            .with(&format!(
                "resources: {{ requests: {{ memory: {memory} }}, limits: {{ memory: {memory} }} }}"
            ))
            .with("volumeMounts: [{ name: m, mountPath: /m }]")
            .with_pod("volumes: [{ name: m, emptyDir: { medium: Memory, sizeLimit: 50Mi } }]")
            .yaml()
    };
    node.apply("a.yaml", &pod("100Mi")).unwrap();
    let before = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&before, "full").unwrap();
    node.apply("a.yaml", &pod("20Mi")).unwrap();
    let pods = node
        .wait("the resize is stuck", SOON, |p| p.get("a").is_some_and(|p| p.has("PodResizeInProgress")))
        .unwrap();
    node.wait_event("a", "ResizeError").unwrap();
    assert_eq!((pods["a"].uid(), pods["a"].restarts()), (before.uid(), 0));
    let pid = node.pids(before.uid()).unwrap()[0];
    assert_eq!(memory_limit(&node, pid, false), (100 << 20).to_string());
    assert_eq!(node.exec("a", &["rm", "/m/x"]).unwrap().code, 0);
    node.wait("it is made once there is room", Duration::from_secs(60), |p| {
        p.get("a").is_some_and(|p| !p.has("PodResizeInProgress"))
    })
    .unwrap();
    assert_eq!(memory_limit(&node, pid, false), (20 << 20).to_string());
    node.finish().unwrap();
}

#[test]
fn image_of_an_edited_file_restarts_that_container_only() {
    let node = Node::start().unwrap();
    let other = "docker.io/library/other:1";
    node.berth(&["image", "tag", IMAGE, other]).unwrap().ok().unwrap();
    let second = format!(
        "initContainers: [{{ name: side, image: {IMAGE}, imagePullPolicy: Never, restartPolicy: Always, command: [sleep, '1000000'] }}]"
    );
    let pod =
        |image: &str| Builder::new("a").image(image, "Never").shell("exec sleep 1000000").with_pod(&second);
    node.apply("a.yaml", &pod(IMAGE).yaml()).unwrap();
    let before = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.apply("a.yaml", &pod(other).yaml()).unwrap();
    let pods = node
        .wait("the container runs the other image", SOON, |pods| {
            pods.get("a").is_some_and(|p| {
                p.is_running()
                    && p.container("main").is_some_and(|c| c.image == other && c.restart_count == 1)
            })
        })
        .unwrap();
    assert_eq!(pods["a"].uid(), before.uid());
    assert_eq!(pods["a"].container("side"), before.container("side"));
    // What cannot be changed in place makes another pod.
    node.apply("a.yaml", &pod(other).grace(2).yaml()).unwrap();
    node.wait("another pod runs", SOON, |pods| {
        pods.get("a").is_some_and(|p| p.uid() != before.uid() && p.is_running())
    })
    .unwrap();
    node.finish().unwrap();
}

#[test]
fn debug_adds_a_container_that_sees_its_targets_processes() {
    let mut node = Node::start().unwrap();
    node.berth(&["image", "tag", IMAGE, TOOLS]).unwrap().ok().unwrap();
    node.apply("a.yaml", &Builder::new("a").shell("exec sleep 7654321").yaml()).unwrap();
    let before = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let debug = |name: &str, target: &[&str]| {
        let mut words = vec!["debug", "a-n1", "--image", TOOLS, "--container", name];
        words.extend(target);
        words.extend(["--", "sh", "-c", "echo; ps -o args; exec sleep 1000000"]);
        node.berth(&words).unwrap().ok().unwrap();
    };
    debug("apart", &[]);
    debug("beside", &["--target", "main"]);
    let states = |pod: &Pod| -> Vec<bool> {
        let all = pod.status.as_ref().and_then(|s| s.ephemeral_container_statuses.as_ref());
        all.into_iter().flatten().map(|c| c.state.as_ref().is_some_and(|s| s.running.is_some())).collect()
    };
    node.wait("both run", SOON, |p| p.get("a").is_some_and(|p| states(p) == [true, true])).unwrap();
    let said = |container: &str| {
        berth_e2e::poll::until("the list of processes is logged", SOON, || {
            let lines = node.log(&before, container, 0).map_err(|e| e.to_string())?;
            if lines.iter().any(|l| l.contains("ps -o")) {
                Ok(Some(lines))
            } else {
                Err(format!("{lines:?}"))
            }
        })
        .unwrap()
    };
    assert!(said("beside").iter().any(|line| line.contains("sleep 7654321")));
    assert!(!said("apart").iter().any(|line| line.contains("sleep 7654321")));
    let again =
        node.berth(&["debug", "a-n1", "--image", TOOLS, "--container", "apart"]).unwrap().code(1).unwrap();
    assert!(again.stderr.contains("already"), "{again}");
    // It is there for exec and describe, and for the next agent and the file's next reading.
    assert_eq!(node.exec("a", &["true"]).unwrap().code, 0);
    let inside = ["exec", "a-n1", "-c", "beside", "--", "echo", "hello"];
    assert_eq!(node.berth(&inside).unwrap().ok().unwrap(), "hello\n");
    let described = node.berth(&["describe", "pod", "a-n1"]).unwrap().ok().unwrap();
    assert!(described.contains("Ephemeral Containers"), "{described}");
    node.kill9_agent().unwrap();
    node.start_agent().unwrap();
    let pods = node.wait("both still run", SOON, |p| p.get("a").is_some_and(|p| states(p) == [true, true]));
    let pod = pods.unwrap().remove("a").unwrap();
    assert_eq!((pod.uid(), pod.restarts()), (before.uid(), 0));
    node.finish().unwrap();
}

#[test]
fn debug_attaches_to_what_it_has_added() {
    let node = Node::start().unwrap();
    node.berth(&["image", "tag", IMAGE, TOOLS]).unwrap().ok().unwrap();
    node.apply("a.yaml", &Builder::new("a").shell("exec sleep 1000000").yaml()).unwrap();
    node.wait_running(&["a"]).unwrap();
    let command =
        node.berth_command(&["debug", "a-n1", "--image", TOOLS, "-i", "--target", "main", "--", "cat"]);
    let ran = berth_e2e::tools::run_with(command, b"over there\n").unwrap();
    assert_eq!(ran.ok().unwrap(), "over there\n");
    node.finish().unwrap();
}

#[test]
fn an_exit_that_restarts_all_containers_runs_init_containers_again() {
    let node = Node::start().unwrap();
    let yaml = format!(
        "apiVersion: v1
kind: Pod
metadata: {{ name: a }}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{{ name: state, emptyDir: {{}} }}]
  initContainers:
  - {{ name: init, image: '{IMAGE}', imagePullPolicy: Never, command: [sh, -c, 'echo x >>/s/inits'], volumeMounts: [{{ name: state, mountPath: /s }}] }}
  containers:
  - {{ name: other, image: '{IMAGE}', imagePullPolicy: Never, command: [sleep, '1000000'] }}
  - name: main
    image: '{IMAGE}'
    imagePullPolicy: Never
    command: [sh, -c, 'if [ $(wc -l </s/inits) = 1 ]; then exit 42; fi; exec sleep 1000000']
    restartPolicy: Never
    restartPolicyRules: [{{ action: RestartAllContainers, exitCodes: {{ operator: In, values: [42] }} }}]
    volumeMounts: [{{ name: state, mountPath: /s }}]
"
    );
    node.apply("a.yaml", &yaml).unwrap();
    let pods = node
        .wait("all run a second time", SOON, |pods| {
            pods.get("a").is_some_and(|p| {
                p.is_running()
                    && ["init", "other", "main"]
                        .iter()
                        .all(|n| p.container(n).is_some_and(|c| c.restart_count == 1))
            })
        })
        .unwrap();
    assert!(!pods["a"].has("AllContainersRestarting"));
    node.finish().unwrap();
}

#[test]
fn grpc_probe_of_a_server_that_is_none_makes_the_pod_unready() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a")
        .shell("exec sleep 1000000")
        .with("readinessProbe: { grpc: { port: 5000, service: web }, periodSeconds: 1 }");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    node.wait_event("a", "Readiness probe failed: error: failed to connect service").unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    assert!(!pod.has("Ready"));
    node.finish().unwrap();
}

#[test]
fn a_pod_for_other_nodes_is_refused_as_a_kubelet_refuses_it() {
    let node = Node::start().unwrap();
    let terms = "[{ matchExpressions: [{ key: kubernetes.io/os, operator: NotIn, values: [linux] }] }]";
    let affinity = format!(
        "affinity: {{ nodeAffinity: {{ requiredDuringSchedulingIgnoredDuringExecution: {{ nodeSelectorTerms: {terms} }} }} }}"
    );
    let pod = Builder::new("a").shell("exec sleep 1000000").with_pod(&affinity);
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let pods = node
        .wait("it is refused", SOON, |pods| pods.get("a").is_some_and(|p| p.reason() == "NodeAffinity"))
        .unwrap();
    assert_eq!(pods["a"].phase(), "Failed");
    node.apply("a.yaml", &Builder::new("a").shell("exec sleep 1000000").yaml()).unwrap();
    node.wait_running(&["a"]).unwrap();
    node.finish().unwrap();
}

#[test]
fn a_pod_is_ready_once_others_have_opened_its_readiness_gates() {
    const GATE: &str = "example.org/load-balancer";
    let mut node = Node::start().unwrap();
    let pod = Builder::new("a")
        .shell("exec sleep 1000000")
        .with_pod(&format!("readinessGates: [{{ conditionType: {GATE} }}]"));
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let first = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let name = first.metadata.name.clone().unwrap();
    node.wait("its containers are ready", SOON, |p| p.get("a").is_some_and(|p| p.has("ContainersReady")))
        .unwrap();
    assert!(!node.pod("a").unwrap().has("Ready"));
    let shown = node.berth(&["get", "pods", "-o", "wide"]).unwrap().ok().unwrap();
    assert!(shown.contains("0/1"), "{shown}");
    let set = |status: &'static str| {
        move |pod: &mut Value| {
            let conditions = pod["status"]["conditions"].as_array_mut().unwrap();
            conditions.retain(|c| c["type"] != GATE);
            conditions.push(json!({ "type": GATE, "status": status }));
        }
    };
    let (code, answer) = put(&node, &name, "/status", set("True"));
    assert_eq!(code, 200, "{answer}");
    let ready =
        |want: bool| move |p: &berth_e2e::pods::Pods| p.get("a").is_some_and(|p| p.has("Ready") == want);
    node.wait("the pod is ready", SOON, ready(true)).unwrap();
    let (code, refused) = put(&node, &name, "/status", |pod| pod["status"]["phase"] = json!("Failed"));
    assert_eq!((code, &refused["details"]["causes"][0]["field"]), (422, &json!("status.phase")), "{refused}");
    // The next agent knows what was said.
    node.kill9_agent().unwrap();
    node.start_agent().unwrap();
    node.wait("the pod is ready", SOON, ready(true)).unwrap();
    assert!(node.pod("a").unwrap().has(GATE));
    let (code, answer) = put(&node, &name, "/status", set("False"));
    assert_eq!(code, 200, "{answer}");
    node.wait("the pod is not ready", SOON, ready(false)).unwrap();
    node.finish().unwrap();
}
