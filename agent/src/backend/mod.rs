//! The agent behind its API: what creating, changing and deleting objects does.

pub mod objects;
mod policies;
mod services;
mod storage;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;
use berth_reconciler::manifest::{self, HASH_ANNOTATION, MIRROR_ANNOTATION, ManifestError};
use berth_reconciler::node::Deletion;
use berth_reconciler::pod::{Pod, Source};
use berth_reconciler::resources;
use berth_reconciler::status::{time, whole_seconds};
use berth_reconciler::worker::{PodView, Reconciler};
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;
use tokio::net::unix::pipe::Receiver;

use crate::api::{ApiError, AttachRequest, Backend, Cause, ExecRequest, ExecStreams, LogSource, Part};
use crate::configs::{Object, ObjectKey, Owner};
use crate::hub::ROOT_CA;
use crate::metrics::usage::Usage;
use crate::node::{AgentNode, ExecSpec};
use crate::store::Kind;

/// A pod with its status and deletion, as the API shows it.
pub fn shown_pod(pod: &Pod, deletion: Option<&Deletion>, status: &v1::PodStatus) -> v1::Pod {
    let mut shown = pod.object.clone();
    shown.status = Some(status.clone());
    shown.metadata.generation.get_or_insert(1);
    if matches!(pod.source, Source::File(_)) {
        // What a cluster shows of such a pod is a mirror, by which `kubectl drain` knows to pass it over.
        let annotations = shown.metadata.annotations.get_or_insert_default();
        let hash = annotations.get(HASH_ANNOTATION).cloned().unwrap_or_else(|| pod.uid().to_owned());
        annotations.insert(MIRROR_ANNOTATION.to_owned(), hash);
    }
    if let Some(deletion) = deletion {
        let grace = i64::try_from(deletion.grace_seconds).unwrap_or(i64::MAX);
        let at =
            deletion.requested_at.checked_add(SignedDuration::from_secs(grace)).unwrap_or(Timestamp::MAX);
        shown.metadata.deletion_timestamp = Some(time(at));
        shown.metadata.deletion_grace_period_seconds = Some(grace);
    }
    shown
}

/// Why what the API server of a cluster has sent cannot be changed here.
const OF_CLUSTER: &str = "it comes from the cluster; change or delete it there, by its API server";

/// The agent behind its API.
pub struct AgentBackend {
    node: Arc<AgentNode>,
    reconciler: Arc<Reconciler<AgentNode>>,
    context: manifest::Context,
}

fn refused(kind: Kind, name: &str, errors: Vec<ManifestError>) -> ApiError {
    let causes = errors
        .into_iter()
        .map(|error| {
            let message = match &error.hint {
                Some(hint) => format!("{} ({hint})", error.reason),
                None => error.reason.clone(),
            };
            Cause { reason: error.cause.as_str(), field: error.field.unwrap_or_default(), message }
        })
        .collect();
    ApiError::invalid(kind, name, causes)
}

fn name_of(value: &Value) -> String {
    value["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

impl AgentBackend {
    /// The backend of that node.
    pub fn new(
        node: Arc<AgentNode>,
        reconciler: Arc<Reconciler<AgentNode>>,
        context: manifest::Context,
    ) -> Self {
        Self { node, reconciler, context }
    }

    fn view(&self, namespace: &str, name: &str) -> Option<PodView> {
        let mut views: Vec<PodView> = self
            .reconciler
            .pods()
            .into_iter()
            .filter(|v| v.pod.namespace() == namespace && v.pod.name() == name)
            .collect();
        // Of two, one is being deleted and the other waits for its name.
        views.sort_by_key(|v| v.deletion.is_some());
        views.into_iter().next()
    }

    fn existing(&self, namespace: &str, name: &str) -> Result<PodView, ApiError> {
        self.view(namespace, name).ok_or_else(|| ApiError::not_found(Kind::Pod, name))
    }

    fn of_file(pod: &Pod, name: &str) -> Result<(), ApiError> {
        match &pod.source {
            Source::Api => Ok(()),
            Source::File(path) => {
                let why =
                    format!("it comes from the manifest {}; change or remove that file", path.display());
                Err(ApiError::forbidden(Kind::Pod, name, &why))
            }
            Source::Cluster => Err(ApiError::forbidden(Kind::Pod, name, OF_CLUSTER)),
        }
    }

    /// Resolves once that instance has ended, or its pod is gone.
    fn ended(&self, namespace: &str, pod: &str, uid: String, id: String) -> BoxFuture<'static, ()> {
        let node = self.node.clone();
        let (namespace, pod) = (namespace.to_owned(), pod.to_owned());
        async move {
            // Every end of an instance changes the pod's status, and with it the store.
            loop {
                let watch = node.store.watch(Kind::Pod, node.store.version());
                let alive = node.store.get(Kind::Pod, &namespace, &pod).is_some();
                let Ok(mut watch) = watch else { continue };
                if !alive || node.has_ended(&uid, &id) {
                    break;
                }
                // An error means that changes were missed, which is as good as one.
                let _ = watch.next().await;
            }
        }
        .boxed()
    }

    /// Stores and shows a change of a pod. Its end may come at the same time: what is gone does not come back.
    fn change(&self, pod: &Arc<Pod>, deletion: Option<&Deletion>, shown: &v1::Pod) -> Result<(), ApiError> {
        self.node.objects.save_pod(pod, deletion);
        let replaced = self.replace(pod, shown);
        if replaced.is_err() {
            self.node.objects.remove_pod(pod);
        }
        replaced
    }

    fn replace(&self, pod: &Pod, shown: &v1::Pod) -> Result<(), ApiError> {
        let replaced = self.node.store.replace(Kind::Pod, pod.namespace(), pod.name(), pod.uid(), shown);
        replaced.map(drop).ok_or_else(|| ApiError::not_found(Kind::Pod, pod.name()))
    }

    /// Makes a pod visible and wanted.
    fn accept(&self, pod: Arc<Pod>, deletion: Option<&Deletion>, status: &v1::PodStatus) -> v1::Pod {
        let shown = self.node.shown_pod(&pod, deletion, status);
        self.node.store.put(Kind::Pod, pod.namespace(), pod.name(), &shown);
        self.reconciler.apply(pod);
        shown
    }
}

#[async_trait]
impl Backend for AgentBackend {
    async fn create_pod(&self, pod: Value, dry_run: bool) -> Result<v1::Pod, ApiError> {
        let name = name_of(&pod);
        let checked =
            manifest::check_pod(&pod, &self.context).map_err(|errors| refused(Kind::Pod, &name, errors))?;
        let pod = Arc::new(manifest::admit(checked, Source::Api, &self.node.config.node_name));
        if self.view(pod.namespace(), pod.name()).is_some() {
            return Err(ApiError::already_exists(Kind::Pod, pod.name()));
        }
        if dry_run {
            return Ok(pod.object.clone());
        }
        self.node.objects.create_pod(&pod).map_err(|e| ApiError::internal(format!("store the pod: {e}")))?;
        let qos = resources::qos_class(pod.spec()).as_str();
        let pending = v1::PodStatus {
            phase: Some("Pending".into()),
            qos_class: Some(qos.into()),
            ..Default::default()
        };
        Ok(self.accept(pod, None, &pending))
    }

    async fn take_pod(&self, pod: Value) -> Result<v1::Pod, ApiError> {
        let name = name_of(&pod);
        let checked =
            manifest::check_pod(&pod, &self.context).map_err(|errors| refused(Kind::Pod, &name, errors))?;
        let mut taken = manifest::admit(checked, Source::Api, &self.node.config.node_name);
        let known: v1::Pod = serde_json::from_value(pod).map_err(ApiError::internal)?;
        taken.object.metadata.uid = known.metadata.uid;
        taken.object.metadata.creation_timestamp = known.metadata.creation_timestamp;
        taken.object.metadata.generation = known.metadata.generation;
        let taken = Arc::new(taken);
        self.node
            .objects
            .create_pod(&taken)
            .map_err(|e| ApiError::internal(format!("store the pod: {e}")))?;
        Ok(self.accept(taken, None, &known.status.unwrap_or_default()))
    }

    async fn update_pod(
        &self,
        namespace: &str,
        name: &str,
        part: Part,
        pod: Value,
        dry_run: bool,
    ) -> Result<v1::Pod, ApiError> {
        let view = self.existing(namespace, name)?;
        // Looking into a pod does not change what its file says.
        if part != Part::Ephemeral {
            Self::of_file(&view.pod, name)?;
        }
        let old = &view.pod.object;
        let old_metadata = &old.metadata;
        let asked_uid = pod["metadata"]["uid"].as_str().filter(|u| !u.is_empty()).map(str::to_owned);
        if asked_uid.is_some_and(|uid| uid != view.pod.uid()) {
            return Err(ApiError::conflict(
                Kind::Pod,
                name,
                "the uid in the object is not that of the pod that exists",
            ));
        }
        let context = manifest::Context { running: true, ..self.context.clone() };
        let mut new =
            manifest::check_pod(&pod, &context).map_err(|errors| refused(Kind::Pod, name, errors))?;
        if let Some(new) = new.spec.as_mut() {
            new.node_name.clone_from(&view.pod.spec().node_name);
        }
        let allowed = match part {
            Part::Whole => manifest::pod_update_allowed(old, &new),
            Part::Resize => manifest::pod_resize_allowed(old, &new),
            Part::Ephemeral => manifest::pod_ephemeral_allowed(old, &new),
            // Which comes by `set_conditions`.
            Part::Status => return Err(ApiError::method_not_allowed()),
        };
        allowed.map_err(|errors| refused(Kind::Pod, name, errors))?;
        if part != Part::Whole {
            new.metadata = old.metadata.clone();
        }
        new.metadata.uid.clone_from(&old.metadata.uid);
        new.metadata.creation_timestamp.clone_from(&old.metadata.creation_timestamp);
        if new.spec != old.spec {
            new.metadata.generation = Some(old.metadata.generation.unwrap_or(1) + 1);
        } else {
            new.metadata.generation = old.metadata.generation;
        }
        let pod = Arc::new(Pod::new(new, view.pod.source.clone()));
        if dry_run {
            return Ok(self.node.shown_pod(&pod, view.deletion.as_ref(), &view.status));
        }
        let shown = self.node.shown_pod(&pod, view.deletion.as_ref(), &view.status);
        self.change(&pod, view.deletion.as_ref(), &shown)?;
        self.reconciler.update(pod.clone());
        if pod.object.metadata != *old_metadata {
            // Files of the downward API tell labels and annotations.
            self.node.refresh_volumes(&pod);
        }
        Ok(shown)
    }

    async fn set_conditions(
        &self,
        namespace: &str,
        name: &str,
        mut conditions: Vec<v1::PodCondition>,
        dry_run: bool,
    ) -> Result<v1::Pod, ApiError> {
        let view = self.existing(namespace, name)?;
        let known = view.status.conditions.as_deref().unwrap_or_default();
        for condition in &mut conditions {
            let same = known.iter().find(|k| k.type_ == condition.type_ && k.status == condition.status);
            let since =
                same.and_then(|known| known.last_transition_time.clone()).unwrap_or(time(Timestamp::now()));
            condition.last_transition_time.get_or_insert(since);
        }
        let status = berth_reconciler::status::with_conditions(&view.status, &conditions);
        let shown = self.node.shown_pod(&view.pod, view.deletion.as_ref(), &status);
        if !dry_run {
            self.replace(&view.pod, &shown)?;
            self.reconciler.set_conditions(view.pod.uid(), conditions);
        }
        Ok(shown)
    }

    async fn delete_pod(
        &self,
        namespace: &str,
        name: &str,
        grace: Option<u64>,
        uid: Option<String>,
    ) -> Result<v1::Pod, ApiError> {
        let view = self.existing(namespace, name)?;
        Self::of_file(&view.pod, name)?;
        if uid.is_some_and(|uid| uid != view.pod.uid()) {
            return Err(ApiError::conflict(
                Kind::Pod,
                name,
                "the precondition's uid is not that of the pod that exists",
            ));
        }
        let own = view
            .pod
            .spec()
            .termination_grace_period_seconds
            .and_then(|s| u64::try_from(s).ok())
            .unwrap_or(30);
        let deletion = view.deletion.clone().unwrap_or(Deletion {
            requested_at: whole_seconds(Timestamp::now()),
            grace_seconds: grace.unwrap_or(own),
        });
        let shown = self.node.shown_pod(&view.pod, Some(&deletion), &view.status);
        self.change(&view.pod, Some(&deletion), &shown)?;
        self.reconciler.delete(view.pod.uid(), grace);
        Ok(shown)
    }

    async fn put_config(
        &self,
        kind: Kind,
        object: Value,
        create_only: bool,
        dry_run: bool,
    ) -> Result<Value, ApiError> {
        let name = name_of(&object);
        let checked =
            manifest::check(&object, &self.context).map_err(|errors| refused(kind, &name, errors))?;
        if matches!(kind, Kind::PersistentVolume | Kind::PersistentVolumeClaim) {
            return self.put_storage(kind, checked, dry_run).await;
        }
        let checked = match checked {
            manifest::Object::NetworkPolicy(policy) if kind == Kind::NetworkPolicy => {
                return self.put_policy(*policy, create_only, dry_run).await;
            }
            manifest::Object::Namespace(namespace) if kind == Kind::Namespace => {
                return self.put_namespace(*namespace, create_only, dry_run).await;
            }
            other => other,
        };
        if let manifest::Object::Service(service) = checked {
            return match kind {
                Kind::Service => self.put_service(*service, create_only, dry_run).await,
                _ => Err(ApiError::bad_request(format!("the object is a Service, not a {kind}"))),
            };
        }
        let mut object = match checked {
            manifest::Object::ConfigMap(o) => Object::ConfigMap(Arc::new(*o)),
            manifest::Object::Secret(o) => Object::Secret(Arc::new(*o)),
            _ => return Err(ApiError::bad_request(format!("the object is no {kind}"))),
        };
        let key = object.key();
        if key.0 != kind {
            return Err(ApiError::bad_request(format!("the object is a {}, not a {kind}", key.0)));
        }
        match self.node.configs.owner(&key) {
            Some(_) if create_only => return Err(ApiError::already_exists(kind, &name)),
            Some(Owner::File(path)) => {
                let why =
                    format!("it comes from the manifest {}; change or remove that file", path.display());
                return Err(ApiError::forbidden(kind, &name, &why));
            }
            Some(Owner::Agent) => return Err(ApiError::forbidden(kind, &name, "it is the node's own")),
            Some(Owner::Cluster) => return Err(ApiError::forbidden(kind, &name, OF_CLUSTER)),
            _ => {}
        }
        if let Some(field) = self.node.configs.frozen(&object) {
            let message = "field is immutable when `immutable` is set".to_owned();
            let cause = Cause { reason: "FieldValueForbidden", field: field.into(), message };
            return Err(ApiError::invalid(kind, &name, vec![cause]));
        }
        identify(&mut object, self.node.store.get(kind, &key.1, &key.2).map(|o| o.value()).as_ref());
        if !dry_run {
            self.node
                .objects
                .save_config(&object)
                .map_err(|e| ApiError::internal(format!("store the object: {e}")))?;
            if self.node.configs.put(Owner::Api, object.clone()) {
                self.node.config_changed(&key);
            }
            if let Some(stored) = self.node.store.get(kind, &key.1, &key.2) {
                return Ok(stored.value());
            }
        }
        let value = match &object {
            Object::ConfigMap(o) => serde_json::to_value(o.as_ref()),
            Object::Secret(o) => serde_json::to_value(o.as_ref()),
        };
        value.map_err(ApiError::internal)
    }

    async fn delete_config(&self, kind: Kind, namespace: &str, name: &str) -> Result<(), ApiError> {
        if matches!(kind, Kind::PersistentVolume | Kind::PersistentVolumeClaim) {
            return self.delete_storage(kind, namespace, name).await;
        }
        match kind {
            Kind::Service => return self.delete_service(namespace, name).await,
            Kind::NetworkPolicy | Kind::Namespace => return self.delete_policy(kind, namespace, name).await,
            _ => {}
        }
        let key: ObjectKey = (kind, namespace.to_owned(), name.to_owned());
        match self.node.configs.owner(&key) {
            None => Err(ApiError::not_found(kind, name)),
            Some(Owner::File(path)) => {
                let why =
                    format!("it comes from the manifest {}; change or remove that file", path.display());
                Err(ApiError::forbidden(kind, name, &why))
            }
            // As in a cluster it is made anew, and what deletes all of a namespace gets through.
            Some(Owner::Agent) if key.0 == Kind::ConfigMap && name == ROOT_CA => {
                self.node.configs.remove(&Owner::Agent, &key);
                Ok(())
            }
            Some(Owner::Agent) => Err(ApiError::forbidden(kind, name, "it is the node's own")),
            Some(Owner::Cluster) => Err(ApiError::forbidden(kind, name, OF_CLUSTER)),
            Some(Owner::Api) => {
                self.node.objects.remove_config(&key);
                if self.node.configs.remove(&Owner::Api, &key) {
                    self.node.config_changed(&key);
                }
                Ok(())
            }
        }
    }

    async fn exec(&self, namespace: &str, pod: &str, request: ExecRequest) -> Result<ExecStreams, ApiError> {
        let view = self.existing(namespace, pod)?;
        let spec =
            ExecSpec { command: request.command, tty: request.tty, stdin: request.stdin, size: request.size };
        let (client, session) =
            self.node.exec(view.pod.uid(), &request.container, &spec).await.map_err(|e| {
                ApiError::new(500, "InternalError", format!("error executing command in container: {e}"))
            })?;
        let exec_id = session.exec_id;
        let unwanted = |wanted: bool, fd: Option<OwnedFd>| {
            if wanted {
                return fd;
            }
            // A closed pipe would kill the command with SIGPIPE: what nobody wants is read and dropped.
            if let Some(mut pipe) = fd.and_then(|fd| Receiver::from_owned_fd(fd).ok()) {
                tokio::spawn(async move { tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await });
            }
            None
        };
        let exit: BoxFuture<'static, Result<i32, String>> =
            async move { client.wait_exec(exec_id).await.map_err(|e| e.to_string()) }.boxed();
        Ok(ExecStreams {
            stdin: session.stdin,
            stdout: unwanted(request.stdout, session.stdout),
            stderr: unwanted(request.stderr, session.stderr),
            console: session.console,
            window: None,
            complaint: None,
            exit,
        })
    }

    async fn attach(
        &self,
        namespace: &str,
        pod: &str,
        request: AttachRequest,
    ) -> Result<ExecStreams, ApiError> {
        let view = self.existing(namespace, pod)?;
        let uid = view.pod.uid().to_owned();
        let container = view.pod.container(&request.container);
        let tty = container.is_some_and(|c| c.tty == Some(true));
        // With a terminal its input is also what sets its size.
        let wanted = [request.stdin || tty, request.stdout, request.stderr && !tty];
        let (id, session) =
            self.node.attach(&uid, &request.container, wanted).await.map_err(|e| {
                ApiError::new(500, "InternalError", format!("error attaching to container: {e}"))
            })?;
        let window = match (&session.stdin, session.tty) {
            (Some(stdin), true) => Some(stdin.try_clone().map_err(ApiError::internal)?),
            _ => None,
        };
        let ended = self.ended(namespace, pod, uid, id);
        Ok(ExecStreams {
            stdin: session.stdin.filter(|_| request.stdin),
            stdout: session.stdout,
            stderr: session.stderr,
            console: None,
            window,
            complaint: session.end,
            exit: ended.map(|()| Ok(0)).boxed(),
        })
    }

    async fn dial(&self, namespace: &str, pod: &str, port: u16) -> Result<OwnedFd, String> {
        let view = self.view(namespace, pod).ok_or_else(|| format!("pods {pod:?} not found"))?;
        self.node.dial(view.pod.uid(), port).await
    }

    async fn pause(&self, namespace: &str, pod: &str, paused: bool) -> Result<v1::Pod, ApiError> {
        let view = self.existing(namespace, pod)?;
        if paused && view.deletion.is_some() {
            return Err(ApiError::conflict(Kind::Pod, pod, "it is being deleted"));
        }
        let uid = view.pod.uid();
        self.node.pause(uid, paused).await.map_err(|e| ApiError::conflict(Kind::Pod, pod, &e))?;
        self.reconciler.wake(uid);
        Ok(self.node.shown_pod(&view.pod, view.deletion.as_ref(), &view.status))
    }

    async fn usage(&self) -> Usage {
        self.node.meter.read(&self.node).await.0
    }

    async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
    ) -> Result<LogSource, ApiError> {
        let view = self.existing(namespace, pod)?;
        let uid = view.pod.uid().to_owned();
        let Some((path, id)) = self.node.log_of(&uid, container, previous) else {
            let message = if previous {
                format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")
            } else {
                format!("container \"{container}\" in pod \"{pod}\" is waiting to start: ContainerCreating")
            };
            return Err(ApiError::bad_request(message));
        };
        Ok(LogSource { path, ended: self.ended(namespace, pod, uid, id) })
    }
}

/// Gives a ConfigMap or Secret its uid and creation time, or those of the object it replaces.
fn identify(object: &mut Object, old: Option<&Value>) {
    let fresh = uuid::Uuid::new_v4().to_string();
    let uid = old.and_then(|o| o["metadata"]["uid"].as_str()).map_or(fresh, str::to_owned);
    let created = old
        .and_then(|o| o["metadata"]["creationTimestamp"].as_str())
        .and_then(|t| t.parse::<Timestamp>().ok())
        .unwrap_or_else(|| whole_seconds(Timestamp::now()));
    let set = |meta: &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        meta.uid = Some(uid.clone());
        meta.creation_timestamp = Some(Time(created));
    };
    match object {
        Object::ConfigMap(o) => set(&mut Arc::make_mut(o).metadata),
        Object::Secret(o) => set(&mut Arc::make_mut(o).metadata),
    }
}
