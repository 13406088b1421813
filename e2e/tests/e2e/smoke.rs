//! One walk through everything, small enough for the slow VM of `make test-v2` too.

use berth_e2e::manifest::Builder;
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;

#[test]
fn smoke_a_pod_runs_with_limits_answers_exec_and_goes() {
    let node = Node::start().unwrap();
    let web = Builder::new("web")
        .shell("echo up; exec sleep 1000000")
        .with("resources: { limits: { cpu: 500m, memory: 32Mi } }")
        .yaml();
    node.apply("web.yaml", &web).unwrap();
    let pod = node.wait_running(&["web"]).unwrap().remove("web").unwrap();
    node.wait_log(&pod, "up").unwrap();

    let pid = node.pids(pod.uid()).unwrap()[0];
    let cgroup = node.machine().shell(&format!("cat /proc/{pid}/cgroup")).unwrap();
    let memory = cgroup.lines().find(|l| l.contains("memory") || l.starts_with("0::/berth")).unwrap();
    let path = memory.rsplit(':').next().unwrap().trim_start_matches('/');
    let limit = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].iter().find_map(|top| {
        let dir = std::path::Path::new(top).join(path);
        ["memory.limit_in_bytes", "memory.max"].iter().find_map(|f| std::fs::read_to_string(dir.join(f)).ok())
    });
    assert_eq!(limit.unwrap().trim(), (32 << 20).to_string(), "{cgroup}");

    assert_eq!(node.exec("web", &["echo", "hello"]).unwrap().ok().unwrap(), "hello\n");
    node.machine().shell(&format!("busybox ping -c1 -W5 {}", pod.ip())).unwrap();
    node.remove("web.yaml").unwrap();
    node.wait_gone("web").unwrap();
    node.finish().unwrap();
}
