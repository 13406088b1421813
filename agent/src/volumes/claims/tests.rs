#![allow(clippy::unwrap_used)]
use std::path::Path;
use std::sync::{Arc, Mutex};

use berth_reconciler::manifest::{self, Context};
use berth_reconciler::pod::{Pod, Source};
use k8s_openapi::api::core::v1;

use super::{Attached, Claims, Pods, Refusal};
use crate::events::Recorder;
use crate::store::{Kind, ObjectStore};

#[derive(Default)]
struct Known {
    pods: Mutex<Vec<Arc<Pod>>>,
    woken: Mutex<Vec<String>>,
}

impl Pods for Known {
    fn all(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().unwrap().clone()
    }

    fn wake(&self, uid: &str) {
        self.woken.lock().unwrap().push(uid.to_owned());
    }
}

struct Node {
    dir: tempfile::TempDir,
    store: ObjectStore,
    known: Arc<Known>,
    claims: Claims,
}

impl Node {
    fn new() -> Node {
        let node = Node::on(tempfile::tempdir().unwrap());
        node.claims.synced();
        node
    }

    /// A new agent over what an earlier one left.
    fn on(dir: tempfile::TempDir) -> Node {
        let (store, known) = (ObjectStore::new(), Arc::new(Known::default()));
        let claims = Claims::new(dir.path(), "n", store.clone(), Arc::new(Recorder::new(store.clone(), "n")));
        claims.connect(known.clone());
        claims.load();
        Node { dir, store, known, claims }
    }

    fn file(&self, file: &str, text: &str) -> Vec<String> {
        let parsed = manifest::parse(text, None, &Context::default());
        assert_eq!(parsed.errors, []);
        let (mut volumes, mut claims) = (Vec::new(), Vec::new());
        for object in parsed.objects {
            match object.value {
                manifest::Object::PersistentVolumeClaim(claim) => claims.push(Arc::new(*claim)),
                manifest::Object::PersistentVolume(volume) => volumes.push(Arc::new(*volume)),
                other => panic!("{other:?}"),
            }
        }
        let loaded = self.claims.file_loaded(Path::new(file), volumes, claims, false);
        if loaded.left_out {
            self.claims.ripen();
        }
        loaded.errors
    }

    fn phase(&self, kind: Kind, name: &str) -> Option<String> {
        let namespace = if kind.namespaced() { "default" } else { "" };
        let object = self.store.get(kind, namespace, name)?.value();
        let deleted = !object["metadata"]["deletionTimestamp"].is_null();
        Some(if deleted { "Terminating".into() } else { object["status"]["phase"].as_str()?.into() })
    }

    fn claim(&self, name: &str) -> Option<String> {
        self.phase(Kind::PersistentVolumeClaim, name)
    }

    fn volume(&self, name: &str) -> Option<String> {
        self.phase(Kind::PersistentVolume, name)
    }

    fn add(&self, pod: Pod) -> Arc<Pod> {
        let pod = Arc::new(pod);
        self.known.pods.lock().unwrap().push(pod.clone());
        pod
    }

    fn attach(&self, pod: &Pod) -> Result<Attached, String> {
        self.claims.attach(pod, &pod.spec().volumes.as_ref().unwrap()[0])
    }

    /// As when everything of a pod has been removed.
    fn gone(&self, pod: &Pod) {
        self.claims.detach(pod.uid());
        self.claims.pod_gone(pod);
        self.known.pods.lock().unwrap().retain(|one| one.uid() != pod.uid());
    }
}

fn claim(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}{}}}\nspec:\n  resources: {{requests: {{storage: 1Gi}}}}\n{}",
        more.split_once('|').map_or("", |(meta, _)| meta),
        more.split_once('|').map_or(more, |(_, spec)| spec)
    ) + if more.contains("accessModes") { "" } else { "  accessModes: [ReadWriteOnce]\n" }
}

fn local(name: &str, path: &Path, size: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}, labels: {{disk: {name}}}}}\nspec:\n  accessModes: [ReadWriteOnce, ReadOnlyMany]\n  capacity: {{storage: {size}}}\n  local: {{path: {}}}\n{more}",
        path.display()
    )
}

fn pod(name: &str, volume: &str) -> Pod {
    let value = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}],
                 "volumes": [serde_json::from_str::<serde_json::Value>(volume).unwrap()]},
    });
    manifest::admit(manifest::check_pod(&value, &Context::default()).unwrap(), Source::Api, "n")
}

fn user(name: &str, claim: &str) -> Pod {
    pod(name, &format!(r#"{{"name": "v", "persistentVolumeClaim": {{"claimName": "{claim}"}}}}"#))
}

fn folder(attached: Result<Attached, String>) -> std::path::PathBuf {
    match attached.unwrap() {
        Attached::Folder(path) => path,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_claim_becomes_a_volume_under_the_root_folder_at_once() {
    let node = Node::new();
    assert!(node.file("a.yaml", &claim("data", "")).is_empty());
    assert_eq!(node.claim("data").as_deref(), Some("Bound"));
    assert_eq!(node.volume("default.data").as_deref(), Some("Bound"));
    let path = folder(node.attach(&node.add(user("p", "data"))));
    assert_eq!(path, node.dir.path().join("pv/default/data"));
    let shown = node.store.get(Kind::PersistentVolumeClaim, "default", "data").unwrap().value();
    assert_eq!(shown["status"]["capacity"]["storage"], "1Gi");
    assert_eq!(shown["spec"]["volumeName"], "default.data");
    assert_eq!(shown["spec"]["storageClassName"], "local");
}

#[test]
fn data_outlives_its_claim_and_comes_back_with_it() {
    let node = Node::new();
    node.file("a.yaml", &claim("data", ""));
    let path = folder(node.attach(&node.add(user("p", "data"))));
    std::fs::write(path.join("file"), "kept").unwrap();
    let user = node.known.all()[0].clone();
    node.gone(&user);
    node.file("a.yaml", "");
    assert_eq!(node.claim("data"), None);
    assert_eq!(node.volume("default.data").as_deref(), Some("Released"));
    node.file("a.yaml", &claim("data", ""));
    assert_eq!(node.volume("default.data").as_deref(), Some("Bound"));
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "kept");
}

#[test]
fn data_goes_with_its_claim_only_when_that_is_asked_for() {
    let node = Node::new();
    let asked = ", annotations: {berth.dev/reclaim-policy: Delete}|";
    node.file("a.yaml", &claim("data", asked));
    let path = node.dir.path().join("pv/default/data");
    assert!(path.is_dir());
    node.file("a.yaml", "");
    assert_eq!((node.claim("data"), node.volume("default.data")), (None, None));
    assert!(!path.exists());
    // The annotation may come later, and go again.
    node.file("a.yaml", &claim("late", ""));
    node.file("a.yaml", &claim("late", asked));
    let policy = |node: &Node| {
        let volume = node.store.get(Kind::PersistentVolume, "", "default.late").unwrap().value();
        volume["spec"]["persistentVolumeReclaimPolicy"].as_str().unwrap().to_owned()
    };
    assert_eq!(policy(&node), "Delete");
    node.file("a.yaml", &claim("late", ", annotations: {berth.dev/reclaim-policy: Retain}|"));
    assert_eq!(policy(&node), "Retain");
}

#[test]
fn a_claim_that_moves_to_another_file_keeps_its_data() {
    let node = Node::new();
    let text = claim("data", ", annotations: {berth.dev/reclaim-policy: Delete}|");
    node.file("a.yaml", &text);
    let uid = |node: &Node| {
        let shown = node.store.get(Kind::PersistentVolumeClaim, "default", "data").unwrap().value();
        shown["metadata"]["uid"].as_str().unwrap().to_owned()
    };
    let before = uid(&node);
    node.claims.file_loaded(Path::new("a.yaml"), Vec::new(), Vec::new(), false);
    assert_eq!(node.claim("data").as_deref(), Some("Terminating"));
    node.file("b.yaml", &text);
    assert_eq!((node.claim("data").as_deref(), uid(&node)), (Some("Bound"), before));
    assert!(node.dir.path().join("pv/default/data").is_dir());
    node.file("b.yaml", "");
    assert_eq!(node.claim("data"), None);
}

#[test]
fn a_claim_in_use_is_not_deleted_before_its_last_pod_is_gone() {
    let node = Node::new();
    let parsed = manifest::parse(&claim("data", ""), None, &Context::default());
    let manifest::Object::PersistentVolumeClaim(object) = parsed.objects[0].value.clone() else { panic!() };
    node.claims.put_claim(*object, false).unwrap();
    let (a, b) = (node.add(user("a", "data")), node.add(user("b", "data")));
    node.attach(&a).unwrap();
    node.claims.delete_claim(&("default".into(), "data".into())).unwrap();
    assert_eq!(node.claim("data").as_deref(), Some("Terminating"));
    node.attach(&a).unwrap();
    assert_eq!(node.attach(&b).unwrap_err(), "persistentvolumeclaim \"data\" is being deleted");
    node.gone(&a);
    assert_eq!(node.claim("data").as_deref(), Some("Terminating"));
    node.gone(&b);
    assert_eq!(node.claim("data"), None);
    assert!(matches!(node.claims.delete_claim(&("default".into(), "data".into())), Err(Refusal::NotFound)));
}

#[test]
fn a_volume_with_a_claim_is_not_deleted_before_the_claim() {
    let node = Node::new();
    node.file("a.yaml", &claim("data", ""));
    node.claims.delete_volume("default.data").unwrap();
    assert_eq!(node.volume("default.data").as_deref(), Some("Terminating"));
    node.file("a.yaml", "");
    assert_eq!(node.volume("default.data"), None);
    assert!(node.dir.path().join("pv/default/data").is_dir(), "it is retained");
}

#[test]
fn a_pod_waits_for_its_claim_and_is_woken() {
    let node = Node::new();
    let pod = node.add(user("p", "data"));
    assert_eq!(node.attach(&pod).unwrap_err(), "persistentvolumeclaim \"data\" not found");
    node.file("a.yaml", &claim("data", ""));
    assert_eq!(*node.known.woken.lock().unwrap(), [pod.uid()]);
    node.attach(&pod).unwrap();
}

#[test]
fn read_write_once_pod_is_for_one_pod() {
    let node = Node::new();
    node.file("a.yaml", &claim("data", "  accessModes: [ReadWriteOncePod]\n"));
    let (a, b) = (node.add(user("a", "data")), node.add(user("b", "data")));
    node.attach(&a).unwrap();
    node.attach(&a).unwrap();
    assert_eq!(
        node.attach(&b).unwrap_err(),
        "persistentvolumeclaim \"data\" has access mode ReadWriteOncePod and is in use by pod \"a\""
    );
    node.claims.detach(a.uid());
    assert_eq!(*node.known.woken.lock().unwrap(), [b.uid()]);
    node.attach(&b).unwrap();
}

#[test]
fn a_claim_gets_the_smallest_volume_that_fits() {
    let node = Node::new();
    let disks = node.dir.path().join("disks");
    let mut text = String::new();
    for (name, size) in [("small", "512Mi"), ("large", "10Gi"), ("right", "2Gi")] {
        std::fs::create_dir_all(disks.join(name)).unwrap();
        text += &local(name, &disks.join(name), size, "  storageClassName: disks\n");
    }
    node.file("pv.yaml", &text);
    node.file("a.yaml", &claim("a", "  storageClassName: disks\n"));
    assert_eq!(node.volume("right").as_deref(), Some("Bound"));
    assert_eq!(folder(node.attach(&node.add(user("p", "a")))), disks.join("right"));
    let selector = "  storageClassName: disks\n  selector: {matchLabels: {disk: large}}\n";
    node.file("b.yaml", &claim("b", selector));
    assert_eq!(node.volume("large").as_deref(), Some("Bound"));
    node.file("c.yaml", &claim("c", "  volumeName: small\n"));
    assert_eq!(node.claim("c").as_deref(), Some("Pending"), "it is too small");
    assert_eq!(node.volume("small").as_deref(), Some("Available"));
}

#[test]
fn a_claim_of_another_class_waits_for_its_first_pod() {
    let node = Node::new();
    node.file("a.yaml", &claim("data", "  storageClassName: standard\n"));
    assert_eq!(node.claim("data").as_deref(), Some("Pending"));
    node.attach(&node.add(user("p", "data"))).unwrap();
    assert_eq!(node.claim("data").as_deref(), Some("Bound"));
    // The empty class means: only volumes that somebody has brought.
    node.file("b.yaml", &claim("static", "  storageClassName: \"\"\n"));
    let refused = node.attach(&node.add(user("q", "static"))).unwrap_err();
    assert!(refused.contains("no persistent volumes available for this claim"), "{refused}");
}

#[test]
fn a_volume_of_a_gone_claim_is_nobody_elses() {
    let node = Node::new();
    let disk = node.dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    node.file("pv.yaml", &local("disk", &disk, "2Gi", "  storageClassName: x\n"));
    node.file("a.yaml", &claim("a", "  storageClassName: x\n"));
    node.file("a.yaml", "");
    assert_eq!(node.volume("disk").as_deref(), Some("Released"));
    node.file("b.yaml", &claim("b", "  storageClassName: x\n"));
    assert_eq!(node.claim("b").as_deref(), Some("Pending"));
    node.file("a.yaml", &claim("a", "  storageClassName: x\n"));
    assert_eq!(node.volume("disk").as_deref(), Some("Bound"), "its own claim has come back");
}

#[test]
fn an_ephemeral_volume_belongs_to_its_pod() {
    let node = Node::new();
    let volume = r#"{"name": "v", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}}}"#;
    let first = node.add(pod("p", volume));
    let path = folder(node.attach(&first));
    let shown = node.store.get(Kind::PersistentVolumeClaim, "default", "p-v").unwrap().value();
    assert_eq!(shown["metadata"]["ownerReferences"][0]["uid"], first.uid());
    assert_eq!(shown["metadata"]["labels"]["a"], "b");
    let other = node.add(pod("p", volume));
    assert!(node.attach(&other).unwrap_err().contains("(pod is not owner)"));
    node.gone(&other);
    node.gone(&first);
    assert_eq!((node.claim("p-v"), node.volume("default.p-v")), (None, None));
    assert!(!path.exists(), "the data of an ephemeral volume goes with the pod");
}

#[test]
fn a_new_agent_finds_claims_bound_as_they_were() {
    let node = Node::new();
    let disk = node.dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    node.file("pv.yaml", &local("disk", &disk, "2Gi", "  storageClassName: x\n"));
    node.file("a.yaml", &claim("a", "  storageClassName: x\n"));
    node.file("b.yaml", &claim("b", ", annotations: {berth.dev/reclaim-policy: Delete}|"));
    let before = node.store.get(Kind::PersistentVolumeClaim, "default", "b").unwrap().value();
    let node = Node::on(node.dir);
    // Files may come in any order, and a broken one keeps what it gave.
    node.file("a.yaml", &claim("a", "  storageClassName: x\n"));
    node.claims.file_loaded(Path::new("b.yaml"), Vec::new(), Vec::new(), true);
    assert!(node.dir.path().join("pv/default/b").is_dir());
    node.file("pv.yaml", &local("disk", &disk, "2Gi", "  storageClassName: x\n"));
    node.claims.synced();
    assert_eq!(node.volume("disk").as_deref(), Some("Bound"));
    let after = node.store.get(Kind::PersistentVolumeClaim, "default", "b").unwrap().value();
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert!(node.dir.path().join("pv/default/b").is_dir());
    // What no file wants after all have been read goes.
    let node = Node::on(node.dir);
    assert!(node.dir.path().join("pv/default/b").is_dir());
    node.claims.synced();
    assert_eq!((node.claim("a"), node.claim("b")), (None, None));
    assert!(!node.dir.path().join("pv/default/b").exists());
    assert!(disk.is_dir(), "a folder that somebody brought is never deleted");
}

#[test]
fn what_may_change_of_a_claim() {
    let node = Node::new();
    node.file("a.yaml", &claim("data", ""));
    let errors = node.file("a.yaml", &claim("data", "  accessModes: [ReadWriteMany]\n"));
    assert!(errors[0].contains("spec is immutable after creation"), "{errors:?}");
    assert_eq!(node.claim("data").as_deref(), Some("Bound"), "the old one stays");
    assert!(node.file("a.yaml", &claim("data", "").replace("1Gi", "2Gi")).is_empty());
    let volume = node.store.get(Kind::PersistentVolume, "", "default.data").unwrap().value();
    assert_eq!(volume["spec"]["capacity"]["storage"], "2Gi");
    let errors = node.file("a.yaml", &claim("data", ""));
    assert!(errors[0].contains("can not be less than previous value"), "{errors:?}");
}

#[test]
fn an_object_of_a_file_is_not_the_apis_to_change() {
    let node = Node::new();
    node.file("a.yaml", &claim("data", ""));
    let key = ("default".to_owned(), "data".to_owned());
    assert!(matches!(node.claims.delete_claim(&key), Err(Refusal::Owner(_))));
    let parsed = manifest::parse(&claim("data", ""), None, &Context::default());
    let manifest::Object::PersistentVolumeClaim(object) = parsed.objects[0].value.clone() else { panic!() };
    assert!(matches!(node.claims.put_claim(*object, false), Err(Refusal::Owner(_))));
}

#[test]
fn a_missing_folder_is_not_made_again() {
    let node = Node::new();
    node.file("a.yaml", &claim("data", ""));
    let pod = node.add(user("p", "data"));
    std::fs::remove_dir(folder(node.attach(&pod))).unwrap();
    let refused = node.attach(&pod).unwrap_err();
    assert!(refused.starts_with("the folder of volume \"default.data\" does not exist: "), "{refused}");
}

#[test]
fn a_released_volume_whose_reference_is_taken_out_is_free() {
    let node = Node::new();
    let disk = node.dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let text = local("disk", &disk, "2Gi", "  storageClassName: x\n");
    let parsed = manifest::parse(&text, None, &Context::default());
    let manifest::Object::PersistentVolume(object) = parsed.objects[0].value.clone() else { panic!() };
    let object: v1::PersistentVolume = *object;
    node.claims.put_volume(object.clone(), false).unwrap();
    node.file("a.yaml", &claim("a", "  storageClassName: x\n"));
    node.claims.put_volume(object.clone(), false).unwrap();
    assert_eq!(node.volume("disk").as_deref(), Some("Bound"), "applying it again does not take it away");
    node.file("a.yaml", "");
    assert_eq!(node.volume("disk").as_deref(), Some("Released"));
    node.claims.put_volume(object, false).unwrap();
    assert_eq!(node.volume("disk").as_deref(), Some("Available"));
}
