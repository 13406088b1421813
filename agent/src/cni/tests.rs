//! The order of calls and what each is told, by plugins that write it down.

use std::os::unix::fs::PermissionsExt;

use berth_netplug::{Protocol, Wishes};

use super::*;

/// Two plugins that note each call; the second fails when a file says so.
struct Bench {
    dir: tempfile::TempDir,
    cni: Cni,
}

const SCRIPT: &str = r#"#!/bin/sh
conf=$(cat)
echo "$CNI_COMMAND $NAME $CNI_CONTAINERID ${CNI_NETNS:+netns}" >>DIR/calls
echo "$conf" >>DIR/confs
if [ -e DIR/fail-$NAME-$CNI_COMMAND ]; then echo '{"code": 100, "msg": "told to fail"}'; exit 1; fi
[ "$CNI_COMMAND" = ADD ] || exit 0
echo '{"cniVersion": "1.1.0", "interfaces": [{"name": "br"}, {"name": "vethx"}, {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/n"}],
  "ips": [{"address": "fd00::5/64", "interface": 2}, {"address": "10.9.0.5/24", "gateway": "10.9.0.1", "interface": 2}]}'
"#;

impl Bench {
    fn new(version: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display().to_string();
        for name in ["first", "second"] {
            let file = dir.path().join(name);
            let script = SCRIPT.replace("DIR", &path).replace("$NAME", name);
            std::fs::write(&file, script).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::create_dir(dir.path().join("net.d")).unwrap();
        let cni = Cni::new(Some(dir.path().join("net.d")), vec![dir.path().into()], dir.path());
        let bench = Self { dir, cni };
        bench.configure(version);
        bench
    }

    fn configure(&self, version: &str) {
        let list = json!({"name": "net", "cniVersion": version, "plugins": [
            {"type": "first"}, {"type": "second", "capabilities": {"portMappings": true}}]});
        std::fs::write(self.dir.path().join("net.d/a.conflist"), list.to_string()).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    fn calls(&self) -> Vec<String> {
        let calls = self.read("calls").lines().map(str::to_owned).collect();
        let _ = std::fs::remove_file(self.dir.path().join("calls"));
        calls
    }

    fn fail(&self, what: &str) {
        std::fs::write(self.dir.path().join(format!("fail-{what}")), "").unwrap();
    }

    async fn attach(&self, pod: &PodNetwork) -> Result<Attachment, String> {
        self.cni.attach(pod).await.unwrap()
    }
}

fn pod() -> PodNetwork {
    PodNetwork {
        id: "uid".into(),
        name: "web".into(),
        namespace: "shop".into(),
        netns: "/proc/self/ns/net".into(),
        host_ports: Vec::new(),
        wishes: Wishes::default(),
    }
}

#[tokio::test]
async fn plugins_are_called_in_order_and_undone_in_reverse() {
    let bench = Bench::new("1.0.0");
    let mut pod = pod();
    pod.host_ports =
        vec![HostPort { host_ip: None, host_port: 80, container_port: 8080, protocol: Protocol::Udp }];
    let attachment = bench.attach(&pod).await.unwrap();
    let ips: [IpAddr; 2] = ["10.9.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
    assert_eq!(attachment.ips, ips);
    assert_eq!((attachment.host_if.as_str(), attachment.mac.as_str()), ("vethx", "02:00:00:00:00:01"));
    assert_eq!(bench.calls(), ["ADD first uid netns", "ADD second uid netns"]);
    let told: Vec<Value> =
        bench.read("confs").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(told[0].get("prevResult").is_none() && told[0].get("runtimeConfig").is_none());
    assert_eq!(told[1]["prevResult"]["ips"][0]["address"], "fd00::5/64");
    let mapping = json!([{"hostPort": 80, "containerPort": 8080, "protocol": "udp"}]);
    assert_eq!(told[1]["runtimeConfig"]["portMappings"], mapping);

    // What was configured then is undone, whatever is configured now.
    std::fs::remove_file(bench.dir.path().join("net.d/a.conflist")).unwrap();
    let record: Value = serde_json::from_str(&bench.read("cni/results/net-uid-eth0")).unwrap();
    assert_eq!((&record["kind"], &record["containerId"]), (&json!("cniCacheV1"), &json!("uid")));
    bench.cni.detach("uid", None).await.unwrap();
    assert_eq!(bench.calls(), ["DEL second uid ", "DEL first uid "]);
    bench.cni.detach("uid", None).await.unwrap();
    assert_eq!(bench.calls(), [""; 0]);
}

#[tokio::test]
async fn what_fails_is_taken_back_and_what_cannot_be_is_tried_again() {
    let bench = Bench::new("1.0.0");
    bench.fail("second-ADD");
    let error = bench.attach(&pod()).await.unwrap_err();
    assert_eq!(error, "plugin type=\"second\" name=\"net\" failed (ADD): told to fail");
    let expected =
        ["ADD first uid netns", "ADD second uid netns", "DEL second uid netns", "DEL first uid netns"];
    assert_eq!(bench.calls(), expected);
    assert!(bench.cni.cache.all().is_empty());

    std::fs::remove_file(bench.dir.path().join("fail-second-ADD")).unwrap();
    bench.attach(&pod()).await.unwrap();
    bench.calls();
    bench.fail("first-DEL");
    assert!(bench.cni.detach("uid", None).await.is_err());
    std::fs::remove_file(bench.dir.path().join("fail-first-DEL")).unwrap();
    bench.calls();
    assert_eq!(bench.cni.gc(&["other".into()]).await.unwrap(), ["uid"]);
    assert_eq!(bench.calls(), ["DEL second uid ", "DEL first uid "]);
}

#[tokio::test]
async fn plugins_of_version_1_1_collect_their_own_garbage() {
    let bench = Bench::new("1.1.0");
    bench.attach(&pod()).await.unwrap();
    bench.calls();
    bench.cni.gc(&["uid".into()]).await.unwrap();
    assert_eq!(bench.calls(), ["GC first  ", "GC second  "]);
    let last: Value = serde_json::from_str(bench.read("confs").lines().last().unwrap()).unwrap();
    assert_eq!(last["cni.dev/valid-attachments"], json!([{"containerID": "uid", "ifname": "eth0"}]));
    bench.configure("1.0.0");
    bench.cni.gc(&["uid".into()]).await.unwrap();
    assert_eq!(bench.calls(), [""; 0]);
}

#[tokio::test]
async fn what_no_plugin_takes_is_refused() {
    let bench = Bench::new("1.0.0");
    let mut pod = pod();
    pod.wishes.egress = Some(Rate { bits_per_second: 1_000_000, burst_bytes: None });
    let error = bench.attach(&pod).await.unwrap_err();
    assert_eq!(error, "network net has no plugin with the capability bandwidth, which the pod needs");
    assert_eq!(bench.calls(), [""; 0]);
    std::fs::remove_file(bench.dir.path().join("second")).unwrap();
    pod.wishes.egress = None;
    let error = bench.attach(&pod).await.unwrap_err();
    assert!(
        error.starts_with("plugin type=\"second\" name=\"net\" cannot be called: there is no such program")
    );
    assert_eq!(bench.calls(), [""; 0]);
    assert!(!bench.cni.holds("uid"));
    let off = Cni::new(None, Vec::new(), bench.dir.path());
    assert!(off.attach(&pod).await.is_none() && !off.is_on());
}
