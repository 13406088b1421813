//! Each value: what it changes, and what is refused.

use serde_json::{Value, json};

use super::{installed, installed_each, steps};

/// Values, the object (`Kind/name`) and the place in it that they change, and what is there then.
type Change = (Value, &'static str, String, Value);

const POD: &str = "DaemonSet/berth";

fn spec(path: &str) -> String {
    format!("/spec/template/spec{path}")
}

const IMAGE: &str = "/initContainers/0/image";
const TERM: &str =
    "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0";

fn of_the_pods() -> Vec<Change> {
    let digest = format!("sha256:{}", "a".repeat(64));
    vec![
        (json!({}), POD, spec(IMAGE), json!("localhost/berth:0.1.0")),
        (
            json!({"image": {"repository": "r.example:5000/a/b", "tag": "x"}}),
            POD,
            spec(IMAGE),
            json!("r.example:5000/a/b:x"),
        ),
        (
            json!({"image": {"digest": digest, "tag": "x"}}),
            POD,
            spec(IMAGE),
            json!(format!("localhost/berth@{digest}")),
        ),
        (
            json!({"image": {"pullPolicy": "Always"}}),
            POD,
            spec("/containers/0/imagePullPolicy"),
            json!("Always"),
        ),
        (
            json!({"imagePullSecrets": [{"name": "r"}]}),
            POD,
            spec("/imagePullSecrets"),
            json!([{"name": "r"}]),
        ),
        (json!({"nodeSelector": {"pool": "edge"}}), POD, spec("/nodeSelector/pool"), json!("edge")),
        (
            json!({}),
            POD,
            spec(&format!("{TERM}/matchExpressions/0")),
            json!({"key": "berth.dev/node", "operator": "DoesNotExist"}),
        ),
        (
            json!({"nodeMatchExpressions": [{"key": "gpu", "operator": "In", "values": ["a"]}]}),
            POD,
            spec(&format!("{TERM}/matchExpressions/1/key")),
            json!("gpu"),
        ),
        (
            json!({"tolerations": [{"operator": "Exists"}]}),
            POD,
            spec("/tolerations"),
            json!([{"operator": "Exists"}]),
        ),
        (json!({"priorityClassName": ""}), POD, spec("/priorityClassName"), Value::Null),
        (
            json!({"podAnnotations": {"a": "b"}}),
            POD,
            "/spec/template/metadata/annotations/a".into(),
            json!("b"),
        ),
    ]
}

fn of_the_node() -> Vec<Change> {
    vec![
        (json!({"podLabels": {"a": "b"}}), POD, "/spec/template/metadata/labels/a".into(), json!("b")),
        (
            json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": "20%"}}}),
            POD,
            "/spec/updateStrategy/rollingUpdate/maxUnavailable".into(),
            json!("20%"),
        ),
        (
            json!({"updateStrategy": {"type": "OnDelete"}}),
            POD,
            "/spec/updateStrategy".into(),
            json!({"type": "OnDelete"}),
        ),
        (
            json!({"resources": {"limits": {"memory": "9Mi"}}}),
            POD,
            spec("/initContainers/0/resources/limits/memory"),
            json!("9Mi"),
        ),
        (
            json!({"apiServer": "https://10.0.0.1:6443"}),
            POD,
            spec("/initContainers/0/env/6"),
            json!({"name": "API_SERVER", "value": "https://10.0.0.1:6443"}),
        ),
        (json!({"nodeNamePrefix": "b."}), POD, spec("/initContainers/0/env/4/value"), json!("b.")),
        (json!({"port": 12345}), POD, spec("/containers/0/ports/0/hostPort"), json!(12345)),
        (
            json!({"readOnlyPort": 12346}),
            POD,
            spec("/containers/0/readinessProbe/httpGet/port"),
            json!(12346),
        ),
        (
            json!({"hostPaths": {"bin": "/usr/local/bin"}}),
            POD,
            spec("/volumes/5/hostPath/path"),
            json!("/usr/local/bin"),
        ),
        (
            json!({"bootstrap": {"existingSecret": "mine"}}),
            POD,
            spec("/volumes/2/secret/secretName"),
            json!("mine"),
        ),
        (
            json!({"bootstrap": {"token": "abcdef.0123456789abcdef", "expiration": "2030-01-31T00:00:00Z"}}),
            "Secret/bootstrap-token-abcdef",
            "/data/expiration".into(),
            json!("MjAzMC0wMS0zMVQwMDowMDowMFo="),
        ),
        (
            json!({"nameOverride": "node"}),
            "DaemonSet/berth-node",
            "/spec/selector/matchLabels/app.kubernetes.io~1name".into(),
            json!("node"),
        ),
    ]
}

#[test]
fn each_value_changes_what_it_is_for() {
    let changes = [of_the_pods(), of_the_node()].concat();
    let steps = installed_each(changes.iter().map(|(values, ..)| values));
    for ((values, object, place, expected), step) in changes.into_iter().zip(&steps) {
        let found = step.ok().object(object).pointer(&place).cloned().unwrap_or_default();
        assert_eq!(found, expected, "{values}: {place} of {object}");
    }
}

/// What of the config file each value is.
#[test]
fn values_become_the_config_file() {
    let paths = json!({"hostPaths": {"root": "/srv/r", "run": "/run/r", "logs": "/srv/l"}});
    let config = [
        (json!({}), "cgroupDriver: systemd\ncgroupRoot: /berth.slice\n", "podCIDR"),
        (json!({}), "cniConfDir: /etc/cni/net.d\n", "clusterDNS"),
        (json!({}), "port: 11250\nreadOnlyAddress: 127.0.0.1:11255\n", "clusterDomain"),
        (json!({}), "registerWithTaints:\n- effect: NoSchedule\n  key: berth.dev/node\n", "bridge"),
        (json!({"nodeTaints": []}), "berth.dev/node: \"true\"\n", "registerWithTaints"),
        (
            json!({"nodeLabels": {"berth.dev/node": "no", "a": "b"}}),
            "nodeLabels:\n  a: b\n  berth.dev/node: \"true\"\n",
            "\"no\"",
        ),
        (json!({"cgroupDriver": "cgroupfs"}), "cgroupDriver: cgroupfs\ncgroupRoot: /berth\n", "slice"),
        (
            json!({"network": {"mode": "bridge", "podCIDR": "10.9.0.0/16", "bridge": "b1"}}),
            "bridge: b1\n",
            "cni",
        ),
        (
            json!({"network": {"mode": "bridge", "podCIDR": "10.9.0.0/16,fd09::/64"}}),
            "podCIDR: 10.9.0.0/16,fd09::/64\n",
            "cni",
        ),
        (
            json!({"clusterDNS": ["10.96.0.10", "fd00::a"], "clusterDomain": "lan"}),
            "clusterDNS:\n- 10.96.0.10\n- fd00::a\nclusterDomain: lan\n",
            "?",
        ),
        (json!({"config": {"maxPods": 50}}), "maxPods: 50\n", "?"),
        (json!({}), "authentication:\n  x509:\n    clientCAFile: /etc/berth/client-ca.crt\n", "webhook"),
        (
            json!({"config": {"authentication": {"webhook": {"enabled": false}}}}),
            "authentication:\n  webhook:\n    enabled: false\n  x509:\n    clientCAFile: /etc/berth/client-ca.crt\n",
            "?",
        ),
        (paths.clone(), "podLogsDir: /srv/l/pods\n", "/var/"),
        (paths, "root: /srv/r\nrun: /run/r", "/run/berth"),
    ];
    let steps = installed_each(config.iter().map(|(values, ..)| values));
    for ((values, with, without), step) in config.iter().zip(&steps) {
        let config = step.ok().config();
        assert!(config.contains(*with), "{values}: no {with:?} in\n{config}");
        assert!(!config.contains(*without), "{values}: {without:?} in\n{config}");
    }
}

#[test]
fn secrets_and_bindings_can_be_left_to_others() {
    let step = installed(&json!({"bootstrap": {"existingSecret": "mine"}, "rbac": {"create": false}}));
    assert_eq!(step.ok().names(), ["ConfigMap/berth", "DaemonSet/berth", "ServiceAccount/berth"]);
    assert!(step.notes().contains("rbac.create is off: system:bootstrappers:berth"), "{}", step.notes());
}

#[test]
fn metrics_are_scraped_where_the_cluster_can() {
    let values =
        json!({"serviceMonitor": {"enabled": true, "namespace": "monitoring", "labels": {"release": "p"}}});
    let without = installed(&values);
    assert!(
        without.error().unwrap().contains("this cluster has no ServiceMonitors"),
        "{:?}",
        without.error()
    );
    let with = steps(
        &["monitoring.coreos.com/v1"],
        &json!([["install", values], ["upgrade", {"serviceMonitor": {"enabled": true, "insecureSkipVerify": false}}]]),
    );
    let monitor = with[0].ok().object("ServiceMonitor/berth");
    assert_eq!(monitor["metadata"]["namespace"], "monitoring");
    assert_eq!(monitor["metadata"]["labels"]["release"], "p");
    let selector = &monitor["spec"]["selector"]["matchLabels"];
    let service = with[0].object("Service/berth");
    for (key, value) in selector.as_object().unwrap() {
        assert_eq!(&service["metadata"]["labels"][key], value);
    }
    assert_eq!(
        service["spec"]["selector"],
        with[0].object("DaemonSet/berth")["spec"]["selector"]["matchLabels"]
    );
    assert_eq!(service["spec"]["ports"][0]["targetPort"], 11250);
    let endpoints = monitor["spec"]["endpoints"].as_array().unwrap();
    assert_eq!(
        endpoints.iter().map(|e| e["path"].as_str().unwrap()).collect::<Vec<_>>(),
        ["/metrics", "/metrics/cadvisor", "/metrics/resource"]
    );
    assert_eq!(endpoints[0]["tlsConfig"], json!({"insecureSkipVerify": true}));
    let tls = &with[1].ok().object("ServiceMonitor/berth")["spec"]["endpoints"][0]["tlsConfig"];
    assert_eq!(tls, &json!({"caFile": "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"}));
}

#[test]
fn what_cannot_be_is_refused_with_its_place() {
    let long = "a".repeat(21);
    let refused = [
        (json!({"prot": 1}), "additional properties 'prot' not allowed"),
        (json!({"image": {"name": "x"}}), "at '/image': additional properties 'name' not allowed"),
        (json!({"image": {"repository": "https://r/x"}}), "at '/image/repository'"),
        (json!({"image": {"digest": "sha256:abc"}}), "at '/image/digest'"),
        (json!({"image": {"pullPolicy": "Sometimes"}}), "at '/image/pullPolicy'"),
        (json!({"nodeNamePrefix": ""}), "at '/nodeNamePrefix'"),
        (json!({"nodeNamePrefix": "Berth-"}), "at '/nodeNamePrefix'"),
        (json!({"nodeNamePrefix": long}), "at '/nodeNamePrefix'"),
        (json!({"nodeLabels": {"a b": "c"}}), "invalid propertyName 'a b'"),
        (json!({"nodeLabels": {"a": "-"}}), "at '/nodeLabels/a'"),
        (json!({"nodeTaints": [{"key": "a", "effect": "Never"}]}), "at '/nodeTaints/0/effect'"),
        (json!({"port": 10250}), "at '/port'"),
        (json!({"port": 70000}), "at '/port'"),
        (json!({"port": "11250"}), "at '/port'"),
        (json!({"port": 11255}), "port and readOnlyPort must differ"),
        (json!({"network": {"mode": "host"}}), "at '/network/mode'"),
        (json!({"network": {"podCIDR": "10.0.0.0"}}), "at '/network/podCIDR'"),
        (json!({"network": {"bridge": "cni0"}}), "at '/network/bridge'"),
        (json!({"clusterDNS": ["dns.example"]}), "at '/clusterDNS/0'"),
        (json!({"cgroupDriver": "none"}), "at '/cgroupDriver'"),
        (json!({"config": {"nodeName": "x"}}), "invalid propertyName 'nodeName'"),
        (json!({"config": {"cgroupRoot": "/"}}), "invalid propertyName 'cgroupRoot'"),
        (json!({"hostPaths": {"root": "/var/lib/kubelet"}}), "at '/hostPaths/root'"),
        (json!({"hostPaths": {"logs": "/var/log"}}), "at '/hostPaths/logs'"),
        (json!({"hostPaths": {"run": "/run/containerd"}}), "at '/hostPaths/run'"),
        (json!({"hostPaths": {"bin": "opt"}}), "at '/hostPaths/bin'"),
        (json!({"hostPaths": {"bin": "/opt/../etc"}}), "at '/hostPaths/bin'"),
        (json!({"hostPaths": {"bin": "/opt/a b"}}), "at '/hostPaths/bin'"),
        (json!({"apiServer": "http://a"}), "at '/apiServer'"),
        (json!({"bootstrap": {"token": "abc"}}), "at '/bootstrap/token'"),
        (json!({"bootstrap": {"expiration": "tomorrow"}}), "at '/bootstrap/expiration'"),
        (
            json!({"bootstrap": {"existingSecret": "x", "token": "abcdef.0123456789abcdef"}}),
            "at '/bootstrap/token'",
        ),
        (json!({"tolerations": [{"operator": "Is"}]}), "at '/tolerations/0/operator'"),
        (
            json!({"nodeMatchExpressions": [{"key": "a", "operator": "Has"}]}),
            "at '/nodeMatchExpressions/0/operator'",
        ),
        (json!({"updateStrategy": {"type": "Recreate"}}), "at '/updateStrategy/type'"),
        (json!({"resources": {"limits": {"memory": "much"}}}), "at '/resources/limits/memory'"),
        (json!({"serviceMonitor": {"interval": "often"}}), "at '/serviceMonitor/interval'"),
        (json!({"cleanup": "yes"}), "at '/cleanup'"),
    ];
    let steps = installed_each(refused.iter().map(|(values, _)| values));
    for ((values, place), step) in refused.iter().zip(&steps) {
        let error = step.error().unwrap_or_else(|| panic!("{values} was taken"));
        assert!(error.contains(*place), "{values}: no {place:?} in {error}");
        assert!(step.names().is_empty(), "{values}");
    }
}
