//! A pod with a user namespace of its own.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use berth_runtime::rootfs::Rootfs;
use berth_runtime::shim::IdRange;
use berth_runtime::shim::proto::ExecRequest;
use serde_json::json;

use crate::harness::{Container, PATIENCE, Pod};

const FIRST: u32 = 300_000;

async fn pod() -> Pod {
    Pod::with(|options| options.users = Some(IdRange { first: FIRST, count: 65536 })).await
}

fn mapped(pod: &Pod, name: &str, script: &str) -> Container {
    let mut container = pod.container(name, script);
    let map = json!([{"containerID": 0, "hostID": FIRST, "size": 65536}]);
    let linux = &mut container.spec["linux"];
    linux["uidMappings"] = map.clone();
    linux["gidMappings"] = map;
    linux["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let mounts = container.spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}));
    mounts.push(json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"}));
    let writable = |part: &str| {
        let dir: PathBuf = pod.dir.join(format!("{name}-{part}"));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    };
    let (upper, work) = (writable("upper"), writable("work"));
    container.request.rootfs = Rootfs::Overlay { lowers: vec![pod.rootfs()], upper, work };
    container
}

#[tokio::test]
async fn containers_share_it_and_it_owns_their_network() {
    let mut pod = pod().await;
    pod.start(&mapped(&pod, "one", "sleep 1000")).await;
    let script =
        "cat /proc/self/uid_map; id -u; hostname; ls -d /sys/class/net/lo; ip link set lo down && echo down
        ls /dev/mqueue; touch /made; readlink /proc/self/ns/user";
    let mut two = mapped(&pod, "two", script);
    let power = json!(["CAP_NET_ADMIN"]);
    two.spec["process"]["capabilities"] = json!({"bounding": power, "effective": power, "permitted": power});
    let (exit, log) = pod.run(&two).await;
    assert_eq!(exit.code, 0, "{log}");
    let words: Vec<&str> = log.split_whitespace().collect();
    assert_eq!(words[..7], ["0", "300000", "65536", "0", "test-pod", "/sys/class/net/lo", "down"], "{log}");
    assert_eq!(std::fs::metadata(pod.dir.join("two-upper/made")).unwrap().uid(), 0);
    let list = pod.client.list().await.unwrap();
    let pid = list.iter().find(|state| state.id == "one").unwrap().pid;
    let link = |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    assert_eq!(link(&pid.to_string(), "user").to_str(), words.last().copied());
    assert_ne!(link(&pid.to_string(), "user"), link("self", "user"));
    // The shim is the host's root in the pod's network.
    let shim = pod.shim.pid.to_string();
    assert_eq!(link(&shim, "user"), link("self", "user"));
    assert_eq!(link(&shim, "net"), link(&pid.to_string(), "net"));
    assert_eq!(std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(), FIRST);
}

#[tokio::test]
async fn exec_and_shared_processes_are_in_it() {
    let pod = pod().await;
    let mut one = mapped(&pod, "one", "sleep 1000");
    one.request.pod_pids = true;
    pod.start(&one).await;
    let script = "grep -q berth-pod /proc/1/comm && test $(id -u) = 0 && grep -q 300000 /proc/self/uid_map && touch /x";
    let process =
        json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "-c", script]});
    let process = serde_json::from_value(process).unwrap();
    let request = ExecRequest { container_id: "one".to_owned(), process, tty: false, stdin: false };
    let exec = pod.client.exec(request).await.unwrap();
    let code = tokio::time::timeout(PATIENCE, pod.client.wait_exec(exec.exec_id)).await.unwrap().unwrap();
    assert_eq!(code, 0);
}

#[tokio::test]
async fn a_container_that_is_not_in_it_is_refused() {
    let pod = pod().await;
    let stranger = pod.container("one", "true");
    let bundle = &stranger.request.bundle;
    std::fs::create_dir_all(bundle).unwrap();
    std::fs::write(bundle.join("config.json"), stranger.spec.to_string()).unwrap();
    let error = pod.client.create(stranger.request.clone()).await.unwrap_err();
    assert!(error.to_string().contains("no user namespace"), "{error}");
}
