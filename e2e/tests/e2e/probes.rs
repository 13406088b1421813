//! Probes of every kind against a real pod, and the hooks of its life.

use std::time::Duration;

use berth_e2e::manifest::{self, Builder};
use berth_e2e::node::Node;
use berth_e2e::pods::{PodExt, Pods};
use berth_e2e::poll;
use k8s_openapi::api::core::v1::ContainerStatus;

const SOON: Duration = Duration::from_secs(30);

/// A web server whose page `/ok` is there for as long as the file is.
const SERVER: &str = "echo yes >/www/ok; exec httpd -f -p 8080 -h /www";

fn ready(name: &'static str, want: bool) -> impl FnMut(&Pods) -> bool {
    move |pods| pods.get(name).is_some_and(|pod| pod.is_running() && pod.has("Ready") == want)
}

#[test]
fn readiness_follows_what_each_kind_of_probe_finds() {
    let node = Node::start().unwrap();
    let probes = [
        (
            "http",
            "{ httpGet: { path: /ok, port: web, httpHeaders: [{ name: X, value: z }] }, periodSeconds: 1, failureThreshold: 1 }",
        ),
        ("exec", "{ exec: { command: [test, -e, /www/ok] }, periodSeconds: 1, failureThreshold: 1 }"),
        ("tcp", "{ tcpSocket: { port: 8081 }, periodSeconds: 1, failureThreshold: 1 }"),
    ];
    for (name, probe) in probes {
        // What `tcp` asks is there while the file is.
        let second = "while :; do [ -e /www/ok ] && nc -l -p 8081 -w 1 >/dev/null 2>&1; sleep 0.05; done &";
        let line =
            if name == "tcp" { format!("echo yes >/www/ok; {second} wait") } else { SERVER.to_owned() };
        let pod = Builder::new(name)
            .shell(&line)
            .with("ports: [{ name: web, containerPort: 8080 }]")
            .with(&format!("readinessProbe: {probe}"));
        node.apply(&format!("{name}.yaml"), &pod.yaml()).unwrap();
    }
    for (name, _) in probes {
        node.wait("it is ready", SOON, ready(name, true)).unwrap();
    }
    for name in ["http", "exec"] {
        node.exec(name, &["rm", "/www/ok"]).unwrap().ok().unwrap();
        node.wait("it is not ready", SOON, ready(name, false)).unwrap();
        node.exec(name, &["touch", "/www/ok"]).unwrap().ok().unwrap();
        let pods = node.wait("it is ready again", SOON, ready(name, true)).unwrap();
        assert_eq!(pods[name].restarts(), 0, "{name}");
    }
    // The first probe may have come before the server.
    let event = node.wait_event("http", "statuscode: 404").unwrap();
    assert!(event.contains("Readiness probe failed"), "{event}");
}

#[test]
fn a_failed_liveness_probe_restarts_and_a_startup_probe_holds_it_back() {
    let node = Node::start().unwrap();
    // Liveness fails from the start, but nobody asks before the startup probe has succeeded.
    let line = "i=0; while [ $i -lt 20 ]; do i=$((i+1)); sleep 0.1; done; touch /www/up; exec sleep 1000000";
    let pod = Builder::new("a")
        .shell(line)
        .with("startupProbe: { exec: { command: [test, -e, /www/up] }, periodSeconds: 1, failureThreshold: 100 }")
        .with("livenessProbe: { exec: { command: [test, -e, /www/never] }, periodSeconds: 1, failureThreshold: 2 }");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let pods = node
        .wait("it is restarted", SOON, |pods| pods.get("a").is_some_and(|pod| pod.restarts() >= 1))
        .unwrap();
    let ended = pods["a"].container("main").unwrap().last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(ended.exit_code, 137, "sleep is PID 1 and has no handler: {ended:?}");
    let lived = ended.finished_at.unwrap().0.duration_since(ended.started_at.unwrap().0);
    assert!(lived.as_secs() >= 2, "it was left alone until it was up: {lived:?}");
    node.wait_event("a", "Container main failed liveness probe, will be restarted").unwrap();
}

#[test]
fn a_probe_that_takes_too_long_has_failed() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a").shell("exec sleep 1000000").with(
        "readinessProbe: { exec: { command: [sleep, '1000'] }, timeoutSeconds: 1, periodSeconds: 1, failureThreshold: 1 }",
    );
    node.apply("a.yaml", &pod.yaml()).unwrap();
    node.wait_event("a", "Readiness probe failed: command timed out").unwrap();
    assert!(!node.pod("a").unwrap().has("Ready"));
}

/// A shim repeats a command for an agent, and only for as long as that is there.
#[test]
fn commands_are_probed_as_often_as_before_when_the_agent_was_killed() {
    let mut node = Node::start().unwrap();
    let pod = Builder::new("a").shell("cat /proc/uptime >/www/times; exec sleep 1000000").with(
        "readinessProbe: { exec: { command: [sh, -c, cat /proc/uptime >>/www/times] }, periodSeconds: 1 }",
    );
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let times = |node: &Node| -> Vec<f64> {
        let text = node.exec("a", &["cat", "/www/times"]).unwrap().ok().unwrap();
        text.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
    };
    let probed = |node: &Node, times_more: usize| {
        let before = times(node).len();
        poll::until_true("more probes", SOON, || times(node).len() >= before + times_more).unwrap();
    };
    node.wait("it is ready", SOON, ready("a", true)).unwrap();
    for _ in 0..2 {
        probed(&node, 3);
        node.kill9_agent().unwrap();
        node.start_agent().unwrap();
        let pods = node.wait("it is taken over", SOON, |pods| pods.contains_key("a")).unwrap();
        assert!(pods["a"].has("Ready"), "it was before");
    }
    probed(&node, 6);
    let times = times(&node);
    // A period is shortened by a quarter at most; the first one is made when the container has started.
    let most = (times[times.len() - 1] - times[0]) / 0.75 + 2.0;
    assert!(times.len() as f64 <= most, "{times:?}");
    assert_eq!(node.pod("a").unwrap().restarts(), 0);
}

/// A process is the container's own before it runs its program, and while it is stopped its maker, the shim, can do nothing else.
#[test]
fn a_container_that_stops_every_new_process_does_not_hold_up_the_rest_of_its_pod() {
    const STOPS: &str = "while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] || kill -STOP ${p#/proc/} 2>/dev/null; done; done";
    const TICKS: usize = 60;
    let node = Node::start().unwrap();
    // More than there are CPUs, so that new processes begin late.
    let names = ["a", "b", "c"];
    for name in names {
        let pod = format!(
            "apiVersion: v1
kind: Pod
metadata: {{ name: {name} }}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: hostile
      image: {image}
      imagePullPolicy: Never
      command: [sh, -c, '{STOPS}']
      readinessProbe: {{ exec: {{ command: ['true'] }}, periodSeconds: 1, timeoutSeconds: 1 }}
    - name: ticks
      image: {image}
      imagePullPolicy: Never
      command: [sh, -c, 'while :; do echo tick; sleep 0.1; done']
",
            image = manifest::IMAGE
        );
        node.apply(&format!("{name}.yaml"), &pod).unwrap();
    }
    for name in names {
        let pod = node.wait("it runs", SOON, |pods| pods.contains_key(name)).unwrap()[name].clone();
        let ticks = || node.log(&pod, "ticks", 0).map_or(0, |lines| lines.len());
        poll::until_true("the other container's log", 2 * SOON, || ticks() >= TICKS).unwrap();
    }
    node.finish().unwrap();
}

/// `postStart` runs beside the process and before the container counts as started; `preStop` before the stop signal.
#[test]
fn hooks_of_every_kind_run_when_they_should() {
    let node = Node::start().unwrap();
    let out = node.path("said");
    std::fs::create_dir(&out).unwrap();
    let say = |word: &str| format!("echo {word} >>/out/order");
    let pod = format!(
        "apiVersion: v1
kind: Pod
metadata: {{ name: a }}
spec:
  terminationGracePeriodSeconds: 60
  volumes: [{{ name: out, hostPath: {{ path: {out} }} }}]
  containers:
    - name: first
      image: {image}
      imagePullPolicy: Never
      command: [sh, -c, \"trap '{term}; exit 0' TERM; while :; do sleep 0.1; done\"]
      volumeMounts: [{{ name: out, mountPath: /out }}]
      lifecycle:
        postStart: {{ exec: {{ command: [sh, -c, 'sleep 1; {started}'] }} }}
        preStop: {{ exec: {{ command: [sh, -c, '{stopping}'] }} }}
    - name: second
      image: {image}
      imagePullPolicy: Never
      command: [sh, -c, \"{second}; httpd -p 8080 -h /www; trap 'exit 0' TERM; while :; do sleep 0.1; done\"]
      volumeMounts: [{{ name: out, mountPath: /out }}]
      lifecycle:
        postStart: {{ sleep: {{ seconds: 1 }} }}
        preStop: {{ httpGet: {{ path: /stop, port: 8080 }} }}
",
        out = out.display(),
        image = manifest::IMAGE,
        term = say("term"),
        started = say("started"),
        stopping = say("stopping"),
        second = say("second"),
    );
    node.apply("a.yaml", &pod).unwrap();
    node.wait("both have started", SOON, ready("a", true)).unwrap();
    let order = || std::fs::read_to_string(out.join("order")).unwrap();
    assert_eq!(order(), "started\nsecond\n", "a hook comes before the next container");
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();
    assert_eq!(order(), "started\nsecond\nstopping\nterm\n");
    // httpd answers 404: the hook has failed, which stops nothing.
    node.wait_event("a", "PreStopHook failed").unwrap();
    node.finish().unwrap();
}

#[test]
fn a_container_whose_post_start_hook_fails_is_killed_and_restarted() {
    let node = Node::start().unwrap();
    let pod = Builder::new("a")
        .shell("exec sleep 1000000")
        .with("lifecycle: { postStart: { exec: { command: [sh, -c, 'echo no such luck >&2; exit 3'] } } }");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    node.wait("it is restarted", SOON, |pods| pods.get("a").is_some_and(|pod| pod.restarts() >= 1)).unwrap();
    let event = node.wait_event("a", "PostStartHook failed").unwrap();
    assert!(event.contains("no such luck"), "{event}");
}

/// What a process is: who, where, and what it may do.
const SELF: &str = "exec 2>&1; grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Umask|Sig(Blk|Ign|Cgt))' /proc/self/status; \
    cat /proc/self/oom_score_adj /proc/self/cgroup /proc/self/attr/current; pwd; readlink /proc/self/root; \
    for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done; \
    grep -v 'Max pending' /proc/self/limits; ls /proc/self/fd | wc -l; mkdir /x && rmdir /x; setsid true; echo done";

/// The shim keeps between them what further processes have in common, which these have not.
#[test]
fn further_processes_are_what_the_first_of_their_container_is_whoever_is_asked_first() {
    let node = Node::start().unwrap();
    let profiles = node.path("root/seccomp");
    std::fs::create_dir_all(&profiles).unwrap();
    let but = |names: &str| {
        format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [{{"names": [{names}], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}}]}}"#
        )
    };
    // One that nothing which makes a process minds, and one that would not let it be made.
    std::fs::write(profiles.join("folders.json"), but(r#""mkdir", "mkdirat""#)).unwrap();
    std::fs::write(profiles.join("sessions.json"), but(r#""setsid", "setgroups", "openat2""#)).unwrap();
    let container = |(name, context): (&str, &str)| {
        format!(
            "    - name: {name}
      image: {image}
      imagePullPolicy: Never
      command: [sh, -c, \"{SELF}; while ! test -e /end; do sleep 0.1; done\"]
      readinessProbe: {{ exec: {{ command: ['true'] }}, periodSeconds: 1 }}
      securityContext: {{ {context} }}
",
            image = manifest::IMAGE
        )
    };
    let plain = [
        ("few", "capabilities: { drop: [ALL] }"),
        ("own", "capabilities: { add: [NET_ADMIN] }"),
        ("usual", ""),
        ("runtime", "seccompProfile: { type: RuntimeDefault }"),
        ("none", "seccompProfile: { type: Unconfined }"),
        ("folders", "seccompProfile: { type: Localhost, localhostProfile: folders.json }"),
        ("sessions", "seccompProfile: { type: Localhost, localhostProfile: sessions.json }"),
        ("user", "runAsUser: 1000, runAsGroup: 100, allowPrivilegeEscalation: false"),
        (
            "locked",
            "runAsUser: 7, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: [ALL] }",
        ),
    ];
    // In a pod with one whose processes may trace others all are made in another way.
    let traced = [plain[2], ("most", "capabilities: { add: [ALL] }"), ("privileged", "privileged: true")];
    for (pod, contexts) in [("a", &plain[..]), ("b", &traced[..])] {
        let containers: String = contexts.iter().copied().map(container).collect();
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {pod} }}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n{containers}"
        );
        node.apply(&format!("{pod}.yaml"), &text).unwrap();
    }
    let all = |pods: &Pods, wanted: &dyn Fn(&ContainerStatus) -> bool| {
        let statuses =
            ["a", "b"].map(|pod| Some(pods.get(pod)?.status.as_ref()?.container_statuses.as_ref()));
        let statuses: Vec<_> = statuses.into_iter().flatten().flatten().flatten().collect();
        statuses.len() == plain.len() + traced.len() && statuses.into_iter().all(wanted)
    };
    let pods = node.wait("all are ready", SOON, |pods| all(pods, &|c| c.ready)).unwrap();
    for (pod, contexts) in [("a", &plain[..]), ("b", &traced[..])] {
        for (name, _) in contexts.iter().chain(contexts.iter().rev()) {
            let first = node.log(&pods[pod], name, 0).unwrap().join("\n");
            let words = ["exec", &format!("{pod}-n1"), "-c", name, "--", "sh", "-c", SELF];
            let further = node.berth(&words).unwrap().ok().unwrap();
            assert!(further.contains("done"), "{pod} {name}: {further}");
            assert_eq!(further.trim(), first.trim(), "{pod} {name}");
        }
    }
    // The shim has a thread for each and one besides, also when one was started again.
    let threads = |pod: &str| {
        let shim = node.shim(pods[pod].uid()).unwrap();
        std::fs::read_dir(node.machine().root().join(format!("proc/{shim}/task"))).unwrap().count()
    };
    assert_eq!((threads("a"), threads("b")), (plain.len() + 1, 1));
    node.berth(&["exec", "a-n1", "-c", "usual", "--", "touch", "/end"]).unwrap().ok().unwrap();
    let again = |c: &ContainerStatus| c.name != "usual" || c.ready && c.restart_count == 1;
    node.berth(&["exec", "b-n1", "-c", "usual", "--", "touch", "/end"]).unwrap().ok().unwrap();
    node.wait("both were restarted", SOON, |pods| all(pods, &again)).unwrap();
    assert_eq!((threads("a"), threads("b")), (plain.len() + 1, 1));
    node.finish().unwrap();
}
