//! Whole manifests in the style of those that people have.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use berth_reconciler::manifest::{Context, Object, Parsed, check_pod, parse};
use k8s_openapi::api::core::v1;

fn good(name: &str) -> Vec<Object> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifest_good").join(name);
    let parsed = parse(&std::fs::read_to_string(path).unwrap(), None, &Context::default());
    assert_eq!(parsed.errors, [], "{name}");
    parsed.objects.into_iter().map(|o| o.value).collect()
}

fn pod(objects: &[Object]) -> &v1::Pod {
    objects.iter().find_map(|o| if let Object::Pod(pod) = o { Some(&**pod) } else { None }).unwrap()
}

fn errors(text: &str) -> Vec<String> {
    let parsed =
        parse(text, Some(Path::new("f.yaml")), &Context { node_name: "n".to_owned(), ..Context::default() });
    parsed.errors.iter().map(|error| error.to_string().replace("f.yaml:", "")).collect()
}

/// Errors of a pod with these spec lines, which start at line 5.
fn spec_errors(lines: &str) -> Vec<String> {
    errors(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n{lines}"))
}

#[test]
fn every_good_manifest_is_taken() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifest_good");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name();
        let objects = good(name.to_str().unwrap());
        assert!(!objects.is_empty(), "{name:?}");
        for object in &objects {
            // What is written out and read again, as the API does, stays the same.
            if let Object::Pod(pod) = object {
                let json = serde_json::to_value(pod).unwrap();
                assert_eq!(check_pod(&json, &Context::default()).unwrap(), **pod, "{name:?}");
            }
        }
        count += 1;
    }
    assert!(count >= 11);
}

#[test]
fn escaped_apostrophes_in_double_quotes_are_read_as_kubernetes_reads_them() {
    let text = r#"{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: a, image: i,
      command: [sh, -c, "echo \"A=\'1\'\" '\\'", "\'"], args: ["\\'", '\', "x"]}]}}"#;
    let parsed = parse(text, None, &Context::default());
    assert_eq!(parsed.errors, []);
    let objects: Vec<Object> = parsed.objects.into_iter().map(|o| o.value).collect();
    let container = &pod(&objects).spec.as_ref().unwrap().containers[0];
    assert_eq!(container.command.as_deref().unwrap()[2..], [r#"echo "A='1'" '\'"#, "'"]);
    assert_eq!(container.args.as_deref().unwrap(), [r"\'", r"\", "x"]);
    let unknown = errors("apiVersion: v1\nkind: \"P\\'\\qod\"\n");
    assert_eq!(unknown.len(), 1, "{unknown:?}");
    assert!(unknown[0].starts_with("2: "), "{unknown:?}");
}

#[test]
fn defaults_are_the_api_servers() {
    let objects = good("nginx.yaml");
    let spec = pod(&objects).spec.as_ref().unwrap();
    assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
    assert_eq!(spec.dns_policy.as_deref(), Some("ClusterFirst"));
    assert_eq!(spec.termination_grace_period_seconds, Some(30));
    assert_eq!(spec.scheduler_name.as_deref(), Some("default-scheduler"));
    assert_eq!(spec.enable_service_links, Some(true));
    let c = &spec.containers[0];
    assert_eq!(c.image_pull_policy.as_deref(), Some("IfNotPresent"));
    assert_eq!(c.ports.as_ref().unwrap()[0].protocol.as_deref(), Some("TCP"));
    let probe = c.liveness_probe.as_ref().unwrap();
    assert_eq!(
        (probe.timeout_seconds, probe.period_seconds, probe.success_threshold, probe.failure_threshold),
        (Some(1), Some(10), Some(1), Some(3))
    );
    assert_eq!(probe.http_get.as_ref().unwrap().scheme.as_deref(), Some("HTTP"));
    assert_eq!(c.volume_mounts.as_ref().unwrap()[0].read_only, Some(true), "yes is true");
    assert_eq!(c.resources.as_ref().unwrap().limits.as_ref().unwrap()["cpu"].0, "500m");
    let objects = good("sidecar.yaml");
    let spec = pod(&objects).spec.as_ref().unwrap();
    assert_eq!(spec.init_containers.as_ref().unwrap()[0].image_pull_policy.as_deref(), Some("Always"));
    assert!(spec.volumes.as_ref().unwrap()[0].empty_dir.is_some());
    let objects = good("kube-apiserver.yaml");
    let port = &pod(&objects).spec.as_ref().unwrap().containers[0].ports.as_ref().unwrap()[0];
    assert_eq!(port.host_port, Some(6443), "host network");
}

#[test]
fn modes_anchors_and_secrets_mean_what_kubernetes_says() {
    let objects = good("redis.yaml");
    let volume =
        pod(&objects).spec.as_ref().unwrap().volumes.as_ref().unwrap()[0].config_map.clone().unwrap();
    assert_eq!(volume.default_mode, Some(0o440));
    assert_eq!(volume.items.unwrap()[0].mode, Some(0o400));
    let objects = good("anchors.yaml");
    let two = &pod(&objects).spec.as_ref().unwrap().containers[1];
    assert_eq!((two.name.as_str(), two.tty, two.stdin), ("two", Some(true), Some(true)));
    assert_eq!(two.env.as_ref().unwrap()[0].value.as_deref(), Some("on"), "quoted");
    assert_eq!(two.args.as_ref().unwrap(), &["folded text", "literal\n"]);
    let objects = good("secret.yaml");
    let Object::Secret(secret) = &objects[0] else { panic!() };
    let data = secret.data.as_ref().unwrap();
    assert_eq!(data["password"].0, b"swordfish", "stringData wins");
    assert_eq!(data["folded"].0, b"hunter");
    assert_eq!(secret.string_data, None);
    let objects = good("reapplied.yaml");
    assert_eq!(pod(&objects).metadata.uid, None);
    assert_eq!(pod(&objects).status, None);
}

#[test]
fn bad_documents_are_named_and_disturb_no_other() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i}]}\n---\nkey: [\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {containers: [{name: c, image: i}]}\n";
    let Parsed { objects, errors } = parse(text, None, &Context::default());
    assert_eq!(objects.len(), 2);
    assert_eq!(objects[1].line, 8);
    assert_eq!(errors.len(), 1);
    assert!((6..=7).contains(&errors[0].line.unwrap()), "{errors:?}");
}

/// Lines of a spec and the errors that they give.
const MISTAKES: &[(&str, &[&str])] = &[
    ("  containers: []\n", &["5: spec.containers: Required value (a pod needs at least one container)"]),
    (
        "  containers:\n  - name: c\n",
        &["6: spec.containers[0].image: Required value (name the image to run)"],
    ),
    (
        "  containers:\n  - {name: c, image: i}\n  - {name: c, image: i}\n",
        &["7: spec.containers[1].name: Duplicate value: \"c\""],
    ),
    (
        "  containers:\n  - name: c\n    image: i\n    livenessprobe: {}\n",
        &["8: spec.containers[0].livenessprobe: unknown field (did you mean \"livenessProbe\"?)"],
    ),
    (
        "  containers:\n  - name: c\n    image: i\n    env:\n    - name: PORT\n      value: 8080\n",
        &["10: spec.containers[0].env[0].value: must be a string, is the number 8080 (put it in quotes)"],
    ),
    (
        "  containers:\n  - name: c\n    image: i\n    resources: {limits: {cpu: 1, memory: 1GB}, requests: {cpu: 2}}\n",
        &[
            "8: spec.containers[0].resources.limits[memory]: Invalid value: \"1GB\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$' (did you mean 1Gi or 1G?)",
            "8: spec.containers[0].resources.requests[cpu]: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ],
    ),
    (
        "  restartPolicy: Sometimes\n  containers: [{name: c, image: i}]\n",
        &[
            "5: spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ],
    ),
    (
        "  nodeName: other\n  containers: [{name: c, image: i}]\n",
        &[
            "5: spec.nodeName: Invalid value: \"other\": this node is \"n\" (remove the field to run the pod here)",
        ],
    ),
    (
        "  hostNetwork: true\n  containers: [{name: c, image: i, ports: [{containerPort: 80, hostPort: 81}]}]\n",
        &[
            "6: spec.containers[0].ports[0].containerPort: Invalid value: 80: must match `hostPort` when `hostNetwork` is true",
        ],
    ),
    (
        "  volumes:\n  - name: v\n    nfs: {server: x, path: /y}\n  containers: [{name: c, image: i}]\n",
        &[
            "7: spec.volumes[0].nfs: Forbidden: the volume type is not supported (mount it on the host and use hostPath)",
        ],
    ),
    (
        "  volumes:\n  - name: v\n    projected: {sources: [{serviceAccountToken: {path: token}}]}\n  containers: [{name: c, image: i}]\n",
        &[
            "7: spec.volumes[0].projected.sources[0].serviceAccountToken: Forbidden: there are no service accounts without a cluster (remove the source; with it also a kube-api-access volume that a cluster has added)",
        ],
    ),
    (
        "  containers:\n  - name: c\n    image: i\n    volumeMounts:\n    - {name: v, mountPath: /a}\n    - {name: v, mountPath: /a, subPath: ../x}\n  volumes: [{name: v}]\n",
        &[
            "10: spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
            "10: spec.containers[0].volumeMounts[1].subPath: Invalid value: \"../x\": must not contain '..'",
        ],
    ),
    (
        "  containers:\n  - name: c\n    image: i\n    readinessProbe: {grpc: {port: 0}}\n",
        &[
            "8: spec.containers[0].readinessProbe.grpc.port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ],
    ),
    (
        "  containers:\n  - name: c\n    image: i\n    livenessProbe: {tcpSocket: {port: 80}, successThreshold: 2, periodSeconds: -1}\n",
        &[
            "8: spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
            "8: spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ],
    ),
    (
        "  securityContext: {sysctls: [{name: kernel.msgmax, value: \"1\"}]}\n  containers: [{name: c, image: i}]\n",
        &[
            "5: spec.securityContext.sysctls[0].name: Forbidden: unsafe sysctl \"kernel.msgmax\" is not allowed (safe: kernel.shm_rmid_forced, net.ipv4.ip_local_port_range, net.ipv4.ip_local_reserved_ports, net.ipv4.ip_unprivileged_port_start, net.ipv4.ping_group_range, net.ipv4.tcp_fin_timeout, net.ipv4.tcp_keepalive_intvl, net.ipv4.tcp_keepalive_probes, net.ipv4.tcp_keepalive_time, net.ipv4.tcp_rmem, net.ipv4.tcp_syncookies, net.ipv4.tcp_wmem; others the node's settings may allow, by allowedUnsafeSysctls)",
        ],
    ),
    (
        "  runtimeClassName: Kata\n  hostUsers: false\n  shareProcessNamespace: true\n  hostPID: true\n  containers: [{name: c, image: i}]\n",
        &[
            "5: spec.runtimeClassName: Invalid value: \"Kata\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            "7: spec.shareProcessNamespace: Invalid value: \"true\": ShareProcessNamespace and HostPID cannot both be enabled",
            "8: spec.hostPID: Forbidden: when `hostUsers` is false",
        ],
    ),
    (
        "  initContainers:\n  - {name: c, image: i, livenessProbe: {tcpSocket: {port: 1}}}\n  containers: [{name: d, image: i}]\n",
        &[
            "6: spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ],
    ),
    (
        "  containers:\n  - name: c\n    image: i\n    env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.foo}}}]\n",
        &[
            "8: spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"spec.foo\": supported values: \"metadata.annotations\", \"metadata.labels\", \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\", \"metadata.labels['KEY']\"",
        ],
    ),
    (
        "  containers:\n  - name: c\n    image: i\n    ports: [{containerPort: 1, hostPort: 5}, {containerPort: 2, hostPort: 5}]\n",
        &["8: spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//5\""],
    ),
    (
        "  readinessGates: [{conditionType: example.org/ready}, {conditionType: a b}]\n  containers: [{name: c, image: i}]\n",
        &[
            "5: spec.readinessGates[1].conditionType: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
        ],
    ),
    (
        "  containers:\n  - name: c\n    image: i\n    image: j\n",
        &["8: spec.containers[0].image: key \"image\" is already set in line 7"],
    ),
];

#[test]
fn every_mistake_has_line_field_and_reason() {
    for (lines, expected) in MISTAKES {
        assert_eq!(spec_errors(lines), *expected, "{lines}");
    }
}

#[test]
fn other_kinds_and_texts_are_refused() {
    let supported = "supported: v1 Pod, ConfigMap, Secret, PersistentVolumeClaim, PersistentVolume, Service, Namespace and networking.k8s.io/v1 NetworkPolicy, and Lists of them";
    assert_eq!(
        errors("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n"),
        [format!("2: kind: apps/v1 Deployment is not supported ({supported})")]
    );
    assert_eq!(errors("apiVersion: v2\nkind: Pod\n").len(), 1);
    assert_eq!(errors("just text\n"), ["1: a Kubernetes object must be a map, is the string \"just text\""]);
    assert_eq!(errors("a:\n\t- b\n"), ["2: a tab in the indentation; YAML takes only spaces there"]);
    assert_eq!(errors("a: \0\n"), ["1: control characters are not allowed (U+0000)"]);
    assert_eq!(errors("{\"a\": 1,\n \"b\" 2}"), ["2: expected ':'"]);
    assert_eq!(errors("# nothing\n---\n---\n"), [""; 0]);
    let windows = "\u{feff}apiVersion: v1\r\nkind: Pod\r\nmetadata:\r\n  name: p\r\nspec:\r\n  containers:\r\n  - name: c\r\n    imag: i\r\n    image: i\r\n";
    assert_eq!(errors(windows), ["8: spec.containers[0].imag: unknown field (did you mean \"image\"?)"]);
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata:\n  a: '***'\n";
    assert_eq!(errors(secret).len(), 1);
    assert!(errors(secret)[0].starts_with("5: data[a]: "), "{:?}", errors(secret));
}
