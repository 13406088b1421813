//! What the checks say about volumes, claims and PersistentVolumes, rule by rule.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use berth_reconciler::claims::{
    Choice, check_bound, choose, is_made_for, node_affinity_matches, selector_matches, volume_of,
};
use berth_reconciler::manifest::{Context, Object, parse};
use k8s_openapi::api::core::v1;
use serde_json::json;

fn errors(text: &str) -> Vec<String> {
    let context = Context {
        node_name: "node-1".to_owned(),
        node_labels: Some(BTreeMap::from([("kubernetes.io/hostname".to_owned(), "node-1".to_owned())])),
        ..Context::default()
    };
    parse(text, None, &context).errors.iter().map(ToString::to_string).collect()
}

fn volume(lines: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  containers: [{{name: c, image: i}}]\n  volumes:\n  - name: v\n    {lines}\n"
    )
}

fn claim(spec: &str) -> String {
    format!("apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: c}}\nspec: {{{spec}}}\n")
}

fn persistent_volume(spec: &str) -> String {
    format!("apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: v}}\nspec: {{{spec}}}\n")
}

#[test]
fn volumes_that_this_node_does_not_have_are_refused_by_their_field() {
    let cases = [
        ("awsElasticBlockStore", "{volumeID: x}"),
        ("azureDisk", "{diskName: x, diskURI: y}"),
        ("azureFile", "{secretName: x, shareName: y}"),
        ("cephfs", "{monitors: [a]}"),
        ("cinder", "{volumeID: x}"),
        ("csi", "{driver: secrets-store.csi.k8s.io}"),
        ("fc", "{lun: 1}"),
        ("flexVolume", "{driver: x}"),
        ("flocker", "{datasetName: x}"),
        ("gcePersistentDisk", "{pdName: x}"),
        ("gitRepo", "{repository: x}"),
        ("glusterfs", "{endpoints: x, path: y}"),
        ("iscsi", "{targetPortal: x, iqn: y, lun: 0}"),
        ("nfs", "{server: x, path: /y}"),
        ("photonPersistentDisk", "{pdID: x}"),
        ("portworxVolume", "{volumeID: x}"),
        ("quobyte", "{registry: x, volume: y}"),
        ("rbd", "{monitors: [a], image: x}"),
        ("scaleIO", "{gateway: x, system: y, secretRef: {name: z}}"),
        ("storageos", "{volumeName: x}"),
        ("vsphereVolume", "{volumePath: x}"),
    ];
    for (field, value) in cases {
        let errors = errors(&volume(&format!("{field}: {value}")));
        assert_eq!(errors.len(), 1, "{field}: {errors:#?}");
        let wanted = format!("spec.volumes[0].{field}: Forbidden: the volume type is not supported");
        assert!(errors[0].contains(&wanted), "{errors:#?}");
    }
    for source in [
        "serviceAccountToken: {path: t}",
        "clusterTrustBundle: {path: t}",
        "podCertificate: {keyType: ED25519, signerName: a/b}",
    ] {
        let field = source.split(':').next().unwrap();
        let errors = errors(&volume(&format!("projected: {{sources: [{{{source}}}]}}")));
        let wanted = format!("spec.volumes[0].projected.sources[0].{field}: Forbidden:");
        assert!(errors.iter().any(|error| error.contains(&wanted)), "{errors:#?}");
    }
}

#[test]
fn pod_volumes_from_claims_and_images() {
    let template = |spec: &str| format!("ephemeral: {{volumeClaimTemplate: {{{spec}}}}}");
    let good = "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}";
    for text in [
        "persistentVolumeClaim: {claimName: data, readOnly: true}",
        &template(good),
        &template(&format!("metadata: {{labels: {{a: b}}}}, {good}")),
        "image: {reference: docker.io/library/x:1, pullPolicy: Never}",
    ] {
        assert_eq!(errors(&volume(text)), [""; 0], "{text}");
    }
    let cases = [
        ("persistentVolumeClaim: {}", "persistentVolumeClaim.claimName: Required value"),
        ("persistentVolumeClaim: {claimName: A_b}", "persistentVolumeClaim.claimName: Invalid value"),
        ("ephemeral: {}", "ephemeral.volumeClaimTemplate: Required value"),
        (
            &template(&format!("metadata: {{name: x}}, {good}")),
            "volumeClaimTemplate.metadata.name: Forbidden",
        ),
        (
            &template("spec: {accessModes: [ReadWriteOnce]}"),
            "spec.resources.requests[storage]: Required value",
        ),
        ("image: {}", "image.reference: Required value"),
        ("image: {reference: x, pullPolicy: Perhaps}", "image.pullPolicy: Unsupported value"),
        (
            "image: {reference: x}\n    emptyDir: {}",
            "image: Forbidden: may not specify more than 1 volume type",
        ),
    ];
    for (text, wanted) in cases {
        let errors = errors(&volume(text));
        assert!(errors.iter().any(|error| error.contains(wanted)), "{text}: {errors:#?}");
    }
}

#[test]
fn a_sub_path_goes_with_any_runtime() {
    for line in ["hostUsers: false", "runtimeClassName: crun", "runtimeClassName: crun\n  hostUsers: false"] {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  {line}\n  containers:\n  - {{name: c, image: i, volumeMounts: [{{name: v, mountPath: /v, subPath: a}}]}}\n  volumes: [{{name: v, emptyDir: {{}}}}]\n"
        );
        assert_eq!(errors(&pod), [""; 0], "{line}");
    }
}

#[test]
fn claims() {
    let good = "accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}";
    assert_eq!(errors(&claim(good)), [""; 0]);
    // As `kubectl get -o yaml` prints it.
    let printed = claim(good).replace(
        "{name: c}",
        "{name: c, uid: u, finalizers: [kubernetes.io/pvc-protection], resourceVersion: '1'}",
    );
    assert_eq!(errors(&(printed + "status: {phase: Bound}\n")), [""; 0]);
    let cases = [
        ("", "spec.accessModes: Required value"),
        ("accessModes: [ReadWriteOnce]", "spec.resources.requests[storage]: Required value"),
        (
            "accessModes: [Once], resources: {requests: {storage: 1}}",
            "spec.accessModes[0]: Unsupported value",
        ),
        (
            "accessModes: [ReadWriteOncePod, ReadWriteMany], resources: {requests: {storage: 1}}",
            "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
        ),
        (
            "accessModes: [ReadWriteOnce], resources: {requests: {storage: 0}}",
            "spec.resources.requests[storage]: Invalid value: \"0\": must be greater than zero",
        ),
        (
            "accessModes: [ReadWriteOnce], resources: {requests: {storage: 1, cpu: 1}}",
            "spec.resources.requests[cpu]: Unsupported value",
        ),
        (&format!("{good}, volumeMode: Block"), "spec.volumeMode: Forbidden: raw block volumes"),
        (&format!("{good}, dataSource: {{kind: VolumeSnapshot, name: x}}"), "spec.dataSource: Forbidden"),
        (&format!("{good}, volumeAttributesClassName: x"), "spec.volumeAttributesClassName: Forbidden"),
        (&format!("{good}, storageClassName: A_B"), "spec.storageClassName: Invalid value"),
        (
            &format!("{good}, selector: {{matchExpressions: [{{key: a, operator: In}}]}}"),
            "spec.selector.matchExpressions[0].values: Required value",
        ),
    ];
    for (spec, wanted) in cases {
        let errors = errors(&claim(spec));
        assert!(errors.iter().any(|error| error.contains(wanted)), "{spec}: {errors:#?}");
    }
    let annotated =
        claim(good).replace("{name: c}", "{name: c, annotations: {berth.dev/reclaim-policy: Burn}}");
    assert!(errors(&annotated)[0].contains("Unsupported value: \"Burn\""), "{:?}", errors(&annotated));
}

#[test]
fn persistent_volumes() {
    let good = "accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}";
    let affinity = |name: &str| {
        format!(
            "{good}, local: {{path: /x}}, nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{name}]}}]}}]}}}}"
        )
    };
    for spec in [
        &format!("{good}, local: {{path: /x}}"),
        &format!("{good}, hostPath: {{path: /x}}"),
        &affinity("node-1"),
    ] {
        assert_eq!(errors(&persistent_volume(spec)), [""; 0], "{spec}");
    }
    let cases = [
        (good.to_owned(), "spec: Required value: must specify a volume type"),
        (
            format!("{good}, nfs: {{server: x, path: /y}}"),
            "spec.nfs: Forbidden: the volume type is not supported",
        ),
        (
            format!("{good}, csi: {{driver: x, volumeHandle: y}}"),
            "spec.csi: Forbidden: the volume type is not supported",
        ),
        (
            format!("{good}, local: {{path: x}}"),
            "spec.local.path: Invalid value: \"x\": must be an absolute path",
        ),
        (format!("{good}, hostPath: {{path: /a/../b}}"), "spec.hostPath.path: Invalid value"),
        (format!("{good}, hostPath: {{path: /x}}, mountOptions: [hard]"), "spec.mountOptions: Forbidden"),
        (
            format!("{good}, hostPath: {{path: /x}}, persistentVolumeReclaimPolicy: Delete"),
            "spec.persistentVolumeReclaimPolicy: Forbidden: only volumes that Berth has made",
        ),
        (
            format!("{good}, hostPath: {{path: /x}}, persistentVolumeReclaimPolicy: Recycle"),
            "spec.persistentVolumeReclaimPolicy: Forbidden: volumes are not recycled",
        ),
        (affinity("other"), "spec.nodeAffinity.required: Invalid value"),
        (
            format!("{good}, hostPath: {{path: /x}}, claimRef: {{name: a}}"),
            "spec.claimRef.namespace: Required value",
        ),
        (
            "accessModes: [ReadWriteOnce], hostPath: {path: /x}".to_owned(),
            "spec.capacity[storage]: Required value",
        ),
    ];
    for (spec, wanted) in cases {
        let errors = errors(&persistent_volume(&spec));
        assert!(errors.iter().any(|error| error.contains(wanted)), "{spec}: {errors:#?}");
    }
    let named = persistent_volume(&format!("{good}, local: {{path: /x}}"))
        .replace("{name: v}", "{name: v, namespace: default}");
    assert!(errors(&named)[0].contains("metadata.namespace: Forbidden"), "{:?}", errors(&named));
}

fn spec(value: serde_json::Value) -> v1::PersistentVolumeClaimSpec {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    spec.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
    serde_json::from_value(spec).unwrap()
}

fn offer(name: &str, size: &str, value: serde_json::Value) -> v1::PersistentVolume {
    let mut spec =
        json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}, "local": {"path": "/x"}});
    spec.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"name": name}}, "spec": spec}))
        .unwrap()
}

#[test]
fn which_volume_a_claim_gets() {
    let volumes = [
        offer("big", "10Gi", json!({"storageClassName": "x"})),
        offer("fit", "1Gi", json!({"storageClassName": "x"})),
        offer("many", "1Gi", json!({"storageClassName": "x", "accessModes": ["ReadWriteMany"]})),
        offer("kept", "1Gi", json!({"storageClassName": "x", "claimRef": {"namespace": "d", "name": "own"}})),
        offer("plain", "1Gi", json!({})),
    ];
    let all: Vec<&v1::PersistentVolume> = volumes.iter().collect();
    let x = |mut value: serde_json::Value| {
        value["storageClassName"] = json!("x");
        spec(value)
    };
    let cases = [
        ("the smallest that fits", "a", x(json!({})), Choice::Bind(1)),
        ("its access modes", "a", x(json!({"accessModes": ["ReadWriteMany"]})), Choice::Bind(2)),
        ("the one that is kept for it", "own", x(json!({})), Choice::Bind(3)),
        ("not one that is kept for another", "a", x(json!({"volumeName": "kept"})), Choice::Wait),
        ("the one it names", "a", x(json!({"volumeName": "big"})), Choice::Bind(0)),
        ("one that does not exist", "a", x(json!({"volumeName": "none"})), Choice::Wait),
        ("by label", "a", x(json!({"selector": {"matchLabels": {"name": "big"}}})), Choice::Bind(0)),
        ("by label, none", "a", x(json!({"selector": {"matchLabels": {"name": "none"}}})), Choice::Wait),
        ("no class takes one of no class", "a", spec(json!({})), Choice::Bind(4)),
        (
            "no class, too large",
            "a",
            spec(json!({"resources": {"requests": {"storage": "2Gi"}}})),
            Choice::Provision,
        ),
        ("the class of this node", "a", spec(json!({"storageClassName": "local"})), Choice::Provision),
        ("another class", "a", spec(json!({"storageClassName": "y"})), Choice::ProvisionForConsumer),
        (
            "the empty class makes nothing",
            "a",
            spec(json!({"storageClassName": "", "resources": {"requests": {"storage": "2Gi"}}})),
            Choice::Wait,
        ),
    ];
    for (what, name, spec, choice) in cases {
        assert_eq!(choose("d", name, &spec, &all), choice, "{what}");
    }
}

#[test]
fn selectors() {
    let labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("n".to_owned(), "7".to_owned())]);
    let cases = [
        (json!({}), true),
        (json!({"matchLabels": {"a": "1"}}), true),
        (json!({"matchLabels": {"a": "2"}}), false),
        (json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}), true),
        (json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}), false),
        (json!({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}), true),
        (json!({"matchExpressions": [{"key": "b", "operator": "Exists"}]}), false),
        (json!({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}), true),
    ];
    for (selector, wanted) in cases {
        let parsed = serde_json::from_value(selector.clone()).unwrap();
        assert_eq!(selector_matches(&parsed, &labels), wanted, "{selector}");
    }
    let cases = [
        (json!([{"matchExpressions": [{"key": "n", "operator": "Gt", "values": ["6"]}]}]), true),
        (json!([{"matchExpressions": [{"key": "n", "operator": "Lt", "values": ["6"]}]}]), false),
        (json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node"]}]}]), true),
        (json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["other"]}]}]), false),
        (json!([{}]), false),
        (
            json!([{"matchExpressions": [{"key": "z", "operator": "Exists"}]}, {"matchExpressions": [{"key": "a", "operator": "Exists"}]}]),
            true,
        ),
    ];
    for (terms, wanted) in cases {
        let selector = serde_json::from_value(json!({"nodeSelectorTerms": terms.clone()})).unwrap();
        assert_eq!(node_affinity_matches(&selector, &labels, "node"), wanted, "{terms}");
    }
}

#[test]
fn claims_and_volumes_come_with_their_defaults() {
    let text = format!(
        "{}---\n{}",
        claim("accessModes: [ReadWriteOnce], resources: {requests: {storage: 1024Mi}}"),
        persistent_volume("accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, local: {path: /x}")
    );
    let objects = parse(&text, None, &Context::default()).objects;
    let Object::PersistentVolumeClaim(claim) = &objects[0].value else { panic!("{objects:?}") };
    assert_eq!(claim.metadata.namespace.as_deref(), Some("default"));
    let spec = claim.spec.as_ref().unwrap();
    assert_eq!(spec.volume_mode.as_deref(), Some("Filesystem"));
    assert_eq!(spec.resources.as_ref().unwrap().requests.as_ref().unwrap()["storage"].0, "1Gi");
    let Object::PersistentVolume(volume) = &objects[1].value else { panic!("{objects:?}") };
    assert_eq!(volume.metadata.namespace, None);
    assert_eq!(volume.spec.as_ref().unwrap().persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
}

#[test]
fn a_claim_of_an_api_server_has_a_volume_once_it_is_bound() {
    let claim =
        |value: serde_json::Value| serde_json::from_value::<v1::PersistentVolumeClaim>(value).unwrap();
    let meta = json!({"name": "data", "namespace": "default", "uid": "1"});
    let bound = json!({"metadata": meta, "spec": {"volumeName": "disk"}, "status": {"phase": "Bound"}});
    assert_eq!(volume_of(&claim(bound)), Ok("disk"));
    for (spec, status, phase) in [
        (json!({}), json!({"phase": "Pending"}), "Pending"),
        // Chosen, but the volume does not say so yet.
        (json!({"volumeName": "disk"}), json!({"phase": "Pending"}), "Pending"),
        (json!({"volumeName": ""}), json!({}), "Pending"),
        (json!({"volumeName": "disk"}), json!({"phase": "Lost"}), "Lost"),
    ] {
        let why =
            volume_of(&claim(json!({"metadata": meta, "spec": spec, "status": status}))).map(str::to_owned);
        assert_eq!(why, Err(format!("persistentvolumeclaim \"data\" is not bound: its phase is {phase}")));
    }
}

#[test]
fn a_volume_of_an_api_server_is_mounted_only_where_and_as_it_says() {
    let claim: v1::PersistentVolumeClaim =
        serde_json::from_value(json!({"metadata": {"name": "data", "uid": "1"}})).unwrap();
    let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    let check = |change: serde_json::Value| {
        let mut value = json!({
            "metadata": {"name": "disk"},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "volumeMode": "Filesystem",
                "storageClassName": "local", "persistentVolumeReclaimPolicy": "Delete",
                "claimRef": {"namespace": "default", "name": "data", "uid": "1"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]},
                ]}},
                "local": {"path": "/disk"},
            },
        });
        for (field, changed) in change.as_object().unwrap() {
            value["spec"][field] = changed.clone();
        }
        check_bound(&claim, &serde_json::from_value(value).unwrap(), &labels, "n")
    };
    assert_eq!(check(json!({})), Ok(()));
    assert_eq!(check(json!({"local": null, "hostPath": {"path": "/disk"}, "nodeAffinity": null})), Ok(()));
    let other = Err("volume \"disk\" is bound to another claim".to_owned());
    assert_eq!(check(json!({"claimRef": {"uid": "2"}})), other);
    assert_eq!(check(json!({"claimRef": {"uid": null}})), other);
    assert_eq!(check(json!({"claimRef": null})), other);
    let elsewhere = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]}]);
    for (change, why) in [
        (
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": elsewhere}}}),
            "its nodeAffinity does not match this node",
        ),
        (json!({"volumeMode": "Block"}), "volumeMode Block is not supported"),
        (json!({"mountOptions": ["noatime"]}), "mountOptions are not supported by volumes of type local"),
        (
            json!({"local": null, "nfs": {"server": "a", "path": "/"}}),
            "is of type nfs, which this node cannot mount",
        ),
        (
            json!({"local": null, "csi": {"driver": "a", "volumeHandle": "b"}}),
            "is of type csi, which this node",
        ),
    ] {
        let error = check(change.clone()).unwrap_err();
        assert!(error.starts_with("volume \"disk\"") && error.contains(why), "{change}: {error}");
    }
}

#[test]
fn the_claim_of_an_ephemeral_volume_is_its_pods() {
    let made = |owner: serde_json::Value| {
        let claim = json!({"metadata": {"name": "p-v", "ownerReferences": [owner]}});
        is_made_for(&serde_json::from_value(claim).unwrap(), "1")
    };
    let owner = |kind: &str, uid: &str, controller: bool| json!({"apiVersion": "v1", "kind": kind, "name": "p", "uid": uid, "controller": controller});
    assert!(made(owner("Pod", "1", true)));
    assert!(!made(owner("Pod", "2", true)));
    assert!(!made(owner("Pod", "1", false)));
    assert!(!made(owner("StatefulSet", "1", true)));
}
