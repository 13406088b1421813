//! Bad manifests, shown where people look for pods: an annotation on a pod that goes on running, and a stand-in
//! with the status `InvalidManifest` for one that never ran.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use berth_reconciler::manifest::{Cause, ManifestError};
use berth_reconciler::pod::{Pod, Source};
use berth_reconciler::status::whole_seconds;
use k8s_openapi::api::core::v1;
use serde_json::json;

use super::AgentNode;
use crate::store::Kind;

/// Annotation of a pod whose manifest is bad: file, line, field and reason, one mistake a line.
pub const ERROR_ANNOTATION: &str = "berth.dev/manifest-error";

/// Namespace and name.
type Name = (String, String);

#[derive(Default)]
struct Bad {
    errors: Vec<ManifestError>,
    stand_ins: Vec<Name>,
}

/// The bad manifests by file.
#[derive(Default)]
pub(super) struct Manifests(Mutex<HashMap<PathBuf, Bad>>);

impl AgentNode {
    /// Replaces what is known to be wrong with a manifest file.
    pub fn manifest_errors(&self, file: &Path, errors: &[ManifestError]) {
        let old = {
            let mut all = self.manifests.0.lock().unwrap_or_else(PoisonError::into_inner);
            let old = all.remove(file).unwrap_or_default();
            if !errors.is_empty() {
                all.insert(file.to_owned(), Bad { errors: errors.to_vec(), stand_ins: Vec::new() });
            }
            old
        };
        if old.errors.is_empty() && errors.is_empty() {
            return;
        }
        let views = self.reconciler.get().map(|r| r.pods()).unwrap_or_default();
        for view in views.iter().filter(|v| v.pod.source == Source::File(file.to_owned())) {
            let shown = self.shown_pod(&view.pod, view.deletion.as_ref(), &view.status);
            self.show(&view.pod, shown);
        }
        let runs = |name: &Name| views.iter().any(|v| v.pod.namespace() == name.0 && v.pod.name() == name.1);
        let of_file = views.iter().any(|v| v.pod.source == Source::File(file.to_owned()));
        let mut stand_ins: HashMap<Name, Vec<&ManifestError>> = HashMap::new();
        for error in errors {
            let name = match &error.object {
                Some(o) if o.kind == "Pod" && !o.name.is_empty() => {
                    (o.namespace.clone(), self.on_node(&o.name))
                }
                Some(o) if o.kind != "Pod" && !o.kind.is_empty() => continue,
                _ if of_file => continue,
                _ => ("default".to_owned(), self.on_node(&file_label(file))),
            };
            if !runs(&name) {
                stand_ins.entry(name).or_default().push(error);
            }
        }
        for name in old.stand_ins.iter().filter(|n| !stand_ins.contains_key(*n) && !runs(n)) {
            self.store.delete(Kind::Pod, &name.0, &name.1);
        }
        for (name, errors) in &stand_ins {
            self.store.put(Kind::Pod, &name.0, &name.1, &self.stand_in(name, file, errors));
        }
        let mut all = self.manifests.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bad) = all.get_mut(file) {
            bad.stand_ins = stand_ins.into_keys().collect();
        }
    }

    fn on_node(&self, name: &str) -> String {
        format!("{name}-{}", self.facts.name)
    }

    fn stand_in(&self, name: &Name, file: &Path, errors: &[&ManifestError]) -> serde_json::Value {
        // A good pod for other nodes is refused as a kubelet refuses it.
        let elsewhere = errors.iter().all(|error| error.cause == Cause::NodeAffinity);
        let (phase, reason) =
            if elsewhere { ("Failed", "NodeAffinity") } else { ("Pending", "InvalidManifest") };
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let message = errors.join("\n");
        json!({
            "metadata": {
                "name": name.1, "namespace": name.0, "creationTimestamp": whole_seconds(jiff::Timestamp::now()),
                "annotations": {"kubernetes.io/config.source": "file", ERROR_ANNOTATION: message,
                                "berth.dev/manifest": file},
            },
            "spec": {"nodeName": self.facts.name, "containers": []},
            "status": {"phase": phase, "reason": reason, "message": message},
        })
    }

    /// Puts a pod where the API serves it, with what is wrong with its manifest.
    pub(crate) fn show(&self, pod: &Pod, mut shown: v1::Pod) {
        if let Source::File(file) = &pod.source {
            let all = self.manifests.0.lock().unwrap_or_else(PoisonError::into_inner);
            let bare = pod.name().strip_suffix(&format!("-{}", self.facts.name)).unwrap_or(pod.name());
            let about = |e: &&ManifestError| match &e.object {
                Some(o) if !o.name.is_empty() => {
                    o.kind == "Pod" && o.namespace == pod.namespace() && o.name == bare
                }
                _ => true,
            };
            let errors: Vec<String> = all
                .get(file)
                .map(|bad| bad.errors.iter().filter(about).map(ToString::to_string).collect())
                .unwrap_or_default();
            if !errors.is_empty() {
                let annotations = shown.metadata.annotations.get_or_insert_default();
                annotations.insert(ERROR_ANNOTATION.into(), errors.join("\n"));
            }
        }
        self.store.put(Kind::Pod, pod.namespace(), pod.name(), &shown);
    }
}

/// A name for the pods of a file that cannot be read: the file's, as far as a name may hold it.
fn file_label(file: &Path) -> String {
    let stem = file.file_stem().map(|s| s.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let clean: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect();
    let clean = clean.trim_matches('-');
    if clean.is_empty() { "manifest".into() } else { clean.to_owned() }
}
