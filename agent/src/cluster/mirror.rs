//! Mirror pods: what the cluster sees of the pods of manifest files.

use std::collections::HashMap;
use std::sync::Arc;

use berth_reconciler::manifest::{HASH_ANNOTATION, MIRROR_ANNOTATION as MIRROR, SOURCE_ANNOTATION};
use berth_reconciler::pod::{Pod, Source};
use k8s_openapi::api::core::v1;
use kube::api::PostParams;
use kube::{Api, Client};

use super::pods::Remote;
use super::{Cluster, Pause, code, remove, why};

impl Cluster {
    pub(super) fn mirror_seen(&self, remote: &Remote) {
        self.mirrors.notify_one();
        self.look_at_static(&remote.namespace, &remote.name);
    }

    pub(super) fn mirror_removed(&self) {
        self.mirrors.notify_one();
    }

    /// The status of a pod of a manifest file has to be compared with its mirror's again.
    fn look_at_static(&self, namespace: &str, name: &str) {
        for view in self.reconciler.pods() {
            let pod = &view.pod;
            if matches!(pod.source, Source::File(_)) && pod.namespace() == namespace && pod.name() == name {
                self.statuses.look_at(pod.uid());
            }
        }
    }

    /// Keeps the mirrors equal to the pods of manifest files, for ever.
    pub(super) async fn keep_mirrors(self: Arc<Self>, client: Client) {
        let mut pause = Pause::new();
        loop {
            self.mirrors.notified().await;
            while let Err(error) = self.mirror_all(&client).await {
                tracing::debug!(%error, "cannot show the cluster the pods of manifest files; trying again");
                tokio::time::sleep(pause.take()).await;
            }
            pause.reset();
        }
    }

    async fn mirror_all(&self, client: &Client) -> Result<(), kube::Error> {
        if !self.pods.listed() {
            return Ok(());
        }
        let views = self.reconciler.pods();
        let wanted: HashMap<(String, String), Arc<Pod>> = views
            .into_iter()
            .filter(|view| matches!(view.pod.source, Source::File(_)) && view.deletion.is_none())
            .map(|view| ((view.pod.namespace().to_owned(), view.pod.name().to_owned()), view.pod))
            .collect();
        for (uid, remote) in self.pods.mirrors() {
            let pod = wanted.get(&(remote.namespace.clone(), remote.name.clone()));
            let same = pod.is_some_and(|pod| remote.mirror.as_deref() == Some(hash(pod)));
            // Before all manifests have been read nobody knows which are left over.
            let stray = pod.is_none() && *self.manifests_read.borrow();
            if same && !remote.deleting || pod.is_none() && !stray {
                continue;
            }
            let api: Api<v1::Pod> = Api::namespaced(client.clone(), &remote.namespace);
            remove(&api, &remote.name, uid).await?;
            // The watch says when it is gone; then the next one is made.
        }
        for ((namespace, name), pod) in wanted {
            if self.pods.mirror(&namespace, &name).is_some() {
                continue;
            }
            let api: Api<v1::Pod> = Api::namespaced(client.clone(), &namespace);
            match api.create(&PostParams::default(), &self.mirror_of(&pod)).await {
                Ok(_) => {}
                Err(error) if code(&error) == Some(409) => {
                    tracing::debug!(namespace, name, "the cluster has a pod by the name of a mirror");
                }
                Err(error) if matches!(code(&error), Some(400 | 403 | 404 | 422)) => {
                    tracing::warn!(
                        pod = pod.full_name(),
                        error = why(&error),
                        "the cluster does not take the mirror of a manifest's pod, which runs all the same"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What the cluster is shown of a pod.
    fn mirror_of(&self, pod: &Pod) -> v1::Pod {
        let mut mirror = pod.object.clone();
        let meta = &mut mirror.metadata;
        meta.uid = None;
        meta.creation_timestamp = None;
        meta.resource_version = None;
        meta.generation = None;
        meta.owner_references = self.owner().map(|mut owner| {
            owner.controller = Some(true);
            vec![owner]
        });
        let annotations = meta.annotations.get_or_insert_default();
        annotations.insert(MIRROR.to_owned(), hash(pod).to_owned());
        annotations.insert(SOURCE_ANNOTATION.to_owned(), "file".to_owned());
        if let Some(spec) = &mut mirror.spec {
            without_references(spec);
        }
        mirror
    }
}

fn hash(pod: &Pod) -> &str {
    let annotations = pod.object.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(HASH_ANNOTATION)).map_or(pod.uid(), String::as_str)
}

/// API servers take no mirrors that refer to other objects, which a manifest's pods do here: a node could read every Secret
/// by them. The mirror has an empty folder in place of such a volume, and lacks such variables.
fn without_references(spec: &mut v1::PodSpec) {
    for volume in spec.volumes.iter_mut().flatten() {
        let refers = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.persistent_volume_claim.is_some()
            || volume.ephemeral.is_some();
        if refers {
            *volume = v1::Volume {
                name: std::mem::take(&mut volume.name),
                empty_dir: Some(v1::EmptyDirVolumeSource::default()),
                ..v1::Volume::default()
            };
        }
    }
    let all = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
    for container in all {
        container.env_from = None;
        for variable in container.env.iter_mut().flatten() {
            let refers =
                |from: &v1::EnvVarSource| from.config_map_key_ref.is_some() || from.secret_key_ref.is_some();
            if variable.value_from.as_ref().is_some_and(refers) {
                variable.value_from = None;
            }
        }
    }
    spec.image_pull_secrets = None;
    spec.service_account = None;
    spec.service_account_name = None;
    spec.ephemeral_containers = None;
    spec.resource_claims = None;
    spec.automount_service_account_token = Some(false);
}
