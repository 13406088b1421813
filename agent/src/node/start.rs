//! Making, signalling and removing container instances.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use berth_image::Image;
use berth_reconciler::env;
use berth_reconciler::node::{ContainerRecord, ContainerState, Failure, StartContainer, StopSignal};
use berth_reconciler::pod::{Pod, Source};
use berth_reconciler::selinux::{Labels, PodLabels};
use berth_runtime::rootfs::Rootfs;
use berth_runtime::shim::client::{Client, CreateRequest, Error, FailureKind, Runtime};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use oci_spec::runtime::LinuxResources;

use super::entry::{Entry, Instance, read_json};
use super::env_files::PodFiles;
use super::kubepods::Hold;
use super::sandbox::blocking;
use super::{AgentNode, shims, signal};
use crate::cluster::OWN_HANDLER;
use crate::metrics::Stage;
use crate::oci::{self, config_error, create_error};
use crate::{etcfiles, volumes};

/// Makes and starts one instance.
pub(super) async fn start(node: &AgentNode, pod: &Arc<Pod>, start: &StartContainer) -> Result<(), Failure> {
    let begun = Instant::now();
    let entry = node.entry(pod);
    let container = pod
        .container(&start.name)
        .ok_or_else(|| create_error(format!("the pod has no container {:?}", start.name)))?;
    let container = &sized(container, start);
    let client = entry.client().ok_or_else(|| create_error("the pod's sandbox is not running"))?;
    let prepared = prepare(node, pod, &entry, container, start).await?;
    let id = prepared.instance.record.id.clone();
    let instance = prepared.instance.clone();
    entry.state().instances.push(instance);
    let step = node.counters.stage(Stage::Bundle, begun);
    let made = launch(node, &client, &prepared, step).await;
    // Sources of subPath mounts are needed until the container exists.
    drop(prepared.held);
    match made {
        Ok((pid, Launched::Running(started_at))) => {
            node.note(pod, false, "Created", format!("Container created: {}", start.name), Some(&start.name));
            settle(&entry, &id, pid, started_at);
            node.note(pod, false, "Started", format!("Container started: {}", start.name), Some(&start.name));
            node.counters.container_seconds.observe(begun.elapsed().as_secs_f64());
        }
        Ok((pid, Launched::Refused(message))) => {
            node.note(pod, false, "Created", format!("Container created: {}", start.name), Some(&start.name));
            refused(&entry, container, &id, pid, &message);
            node.note(pod, true, "Failed", format!("Error: {message}"), Some(&start.name));
        }
        Err(failure) => {
            discard(node, &entry, &id).await;
            return Err(failure);
        }
    }
    super::resize::settle(node, &entry, pod);
    forget_older(node, &entry, &start.name).await;
    Ok(())
}

/// The container with the resources that it is to have, which are not its spec's while a resize is refused.
fn sized<'a>(container: &'a v1::Container, start: &StartContainer) -> Cow<'a, v1::Container> {
    if container.resources.as_ref() == Some(&start.resources) {
        return Cow::Borrowed(container);
    }
    let resources = Some(start.resources.clone());
    Cow::Owned(v1::Container { resources, ..container.clone() })
}

struct Prepared {
    instance: Instance,
    request: CreateRequest,
    /// What `linux.resources` of its spec says.
    limits: LinuxResources,
    held: Vec<OwnedFd>,
}

enum Launched {
    Running(Timestamp),
    Refused(String),
}

async fn launch(
    node: &AgentNode,
    client: &Client,
    prepared: &Prepared,
    begun: Instant,
) -> Result<(i32, Launched), Failure> {
    let id = &prepared.instance.record.id;
    let hold = hold_scope(node, prepared).await?;
    // Between the two, systemd has to be told of the limits.
    let request = CreateRequest { start: hold.is_none(), ..prepared.request.clone() };
    let created = client.create(request).await.map_err(|e| create_error(e.to_string()))?;
    if let Some(hold) = hold {
        hold.release().await;
    }
    if node.kubepods.has_scopes() {
        let (tree, path, limits) =
            (node.kubepods.clone(), prepared.instance.cgroup.clone(), prepared.limits.clone());
        blocking(move || tree.tell(&path, limits)).await.map_err(|e| create_error(e.to_string()))?;
    }
    created.timings.iter().for_each(|timings| node.counters.creation(timings));
    // A shim that was there before this agent may not know how to start at once.
    let started = match created.start {
        Some(start) => {
            node.counters.split_stage(Stage::Create, begun, Stage::Exec, start.took);
            start.result.map_err(Error::Shim)
        }
        None => {
            let step = node.counters.stage(Stage::Create, begun);
            let started = client.start(id).await;
            node.counters.stage(Stage::Exec, step);
            started
        }
    };
    match started {
        Ok(started) => Ok((created.pid, Launched::Running(started.started_at))),
        Err(error) if error.kind() == Some(FailureKind::StartFailed) => {
            Ok((created.pid, Launched::Refused(error.to_string())))
        }
        Err(error) => Err(Failure { reason: "RunContainerError".into(), message: error.to_string() }),
    }
}

/// Where systemd makes the cgroups of containers: has it make this one's. Another runtime asks for its own.
async fn hold_scope(node: &AgentNode, prepared: &Prepared) -> Result<Option<Hold>, Failure> {
    if !node.kubepods.has_scopes() || prepared.request.runtime.is_some() {
        return Ok(None);
    }
    let held = Hold::scope(&prepared.instance.cgroup).await;
    held.map(Some).map_err(|e| create_error(format!("{e:#}")))
}

/// Marks the instance as running, unless its exit was quicker than we are.
fn settle(entry: &Entry, id: &str, pid: i32, started_at: Timestamp) {
    let mut state = entry.state();
    if let Some(instance) = state.instances.iter_mut().find(|i| i.record.id == id) {
        instance.pid = Some(pid);
        if instance.record.state == ContainerState::Created {
            instance.record.state = ContainerState::Running { started_at };
        }
    }
}

/// The program could not be executed: an instance that exited at once. The shim has recorded it.
fn refused(entry: &Entry, container: &v1::Container, id: &str, pid: i32, message: &str) {
    let Some(instance) = entry.instance(id) else { return };
    let bundle = entry.bundle(id);
    let record = read_json(&bundle.join("exit.json")).unwrap_or(berth_runtime::shim::client::ExitRecord {
        code: 128,
        signal: None,
        oom_killed: false,
        started_at: None,
        finished_at: Timestamp::now(),
        message: Some(message.to_owned()),
    });
    let exit = shims::describe(&record, Some(container), &bundle, &instance.log_path);
    let mut state = entry.state();
    if let Some(instance) = state.instances.iter_mut().find(|i| i.record.id == id) {
        instance.pid = Some(pid);
        instance.record.state = ContainerState::Exited(exit);
    }
}

async fn prepare(
    node: &AgentNode,
    pod: &Arc<Pod>,
    entry: &Arc<Entry>,
    container: &v1::Container,
    start: &StartContainer,
) -> Result<Prepared, Failure> {
    let ips = entry.ips();
    let facts = node.facts.for_pod(&ips);
    let lookup = PodFiles {
        configs: &node.configs,
        services: &node.services,
        cluster: &node.cluster_services,
        data: node.folders(pod.uid()).data,
    };
    let env = env::container_env(pod, container, &facts, &lookup).map_err(|e| config_error(e.to_string()))?;
    let reference = container.image.clone().unwrap_or_default();
    let image = super::image::local(node, &reference).await?.ok_or_else(|| {
        create_error(format!("image {reference:?} is no longer in the store; pull or load it again"))
    })?;
    let labels = node.labels(pod).map_err(|e| config_error(e.to_string()))?;
    let volumes = if pod.spec().volumes.iter().flatten().next().is_some() {
        let (pod, folders) = (pod.clone(), node.folders(pod.uid()));
        let (configs, claims, images) = (node.configs.clone(), node.claims.clone(), node.images.clone());
        let (container, labels) = (container.clone(), labels.clone());
        let users = node.id_ranges.of(pod.uid()).filter(|_| pod.spec().host_users == Some(false));
        blocking(move || {
            let (facts, lookup, claims, images) = (&facts, &configs, &claims, &images);
            let (container, labels) = (Some(&container), labels.as_ref());
            let sources = volumes::Sources { facts, lookup, claims, images, users, container, labels };
            volumes::set_up(&pod, &folders, &sources, volumes::Stage::Container)
        })
        .await?
    } else {
        BTreeMap::new()
    };
    let id = new_id();
    let files = Files::make(node, pod, entry, &id, start, &image)?;
    let labels = labels.as_ref();
    let assembled =
        Assembly { node, pod, entry, container, start, image: &image, env: &env, volumes: &volumes, labels }
            .assemble(&id, &files);
    match assembled {
        Ok((instance, limits, held)) => {
            link_log(node, pod, &instance);
            let mut request = request(node, pod, container, image, id, files)?;
            request.pids_of = target(entry, pod, &start.name)?.filter(|_| !request.pod_pids);
            Ok(Prepared { instance, request, limits, held })
        }
        Err(failure) => {
            files.remove();
            Err(failure)
        }
    }
}

fn request(
    node: &AgentNode,
    pod: &Pod,
    container: &v1::Container,
    image: Image,
    id: String,
    files: Files,
) -> Result<CreateRequest, Failure> {
    let spec = pod.spec();
    Ok(CreateRequest {
        id,
        bundle: files.bundle,
        rootfs: Rootfs::Overlay {
            lowers: image.layers.into_iter().chain(node.places.clone()).collect(),
            upper: files.rootfs.join("upper"),
            work: files.rootfs.join("work"),
        },
        log_path: Some(files.log),
        log_max_size: node.config.log_max_size,
        log_max_files: node.config.log_max_files,
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        pids_of: None,
        start: false,
        pod_pids: spec.share_process_namespace == Some(true) && spec.host_pid != Some(true),
        runtime: runtime(node, pod)?,
    })
}

/// The instance whose processes an ephemeral container is to see. With the host's processes it sees all of them anyway.
fn target(entry: &Entry, pod: &Pod, name: &str) -> Result<Option<String>, Failure> {
    let Some(target) = pod.target_of(name).filter(|_| pod.spec().host_pid != Some(true)) else {
        return Ok(None);
    };
    let instance = entry.running(target);
    let instance = instance
        .ok_or_else(|| create_error(format!("the target container {target:?} of {name:?} is not running")))?;
    Ok(Some(instance.record.id))
}

/// The program that runs the pod's containers, if that is not Berth itself. In a cluster a class says which one it means; the
/// name is the program's own otherwise.
fn runtime(node: &AgentNode, pod: &Pod) -> Result<Option<Runtime>, Failure> {
    let name = pod.spec().runtime_class_name.as_deref();
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
    let handler = match pod.source {
        Source::Cluster => node.cluster_classes.handler(name),
        _ => None,
    };
    let name = handler.as_deref().unwrap_or(name);
    if pod.source == Source::Cluster && name == OWN_HANDLER {
        return Ok(None);
    }
    match node.config.runtimes.get(name) {
        Some(runtime) => Ok(Some(Runtime { path: runtime.path.clone(), args: runtime.args.clone() })),
        None => Err(create_error(format!(
            "runtimeClassName: no runtime {name:?} is configured on this node; name it under `runtimes` in the agent's configuration"
        ))),
    }
}

/// What a bundle is made of.
struct Assembly<'a> {
    node: &'a AgentNode,
    pod: &'a Arc<Pod>,
    entry: &'a Arc<Entry>,
    container: &'a v1::Container,
    start: &'a StartContainer,
    image: &'a Image,
    env: &'a [(String, String)],
    volumes: &'a BTreeMap<String, PathBuf>,
    labels: Option<&'a PodLabels>,
}

impl Assembly<'_> {
    /// Writes the bundle's `config.json` and `meta.json`; gives the instance, its limits and what must stay open until it is
    /// made.
    fn assemble(&self, id: &str, files: &Files) -> Result<(Instance, LinuxResources, Vec<OwnedFd>), Failure> {
        let shm = shared_memory(self.pod, self.entry)?;
        let labels = self.labels.map(|labels| labels.container(self.pod.spec(), self.container));
        self.label_files(files, labels.as_ref())?;
        let names = etcfiles::names(self.pod, &super::sandbox::node_hostname(), &self.node.config)
            .map_err(create_error)?;
        let cgroup = self.node.kubepods.container(self.pod, id);
        let built = oci::build(&oci::Inputs {
            config: &self.node.config,
            pod: self.pod,
            container: self.container,
            image: self.image,
            env: self.env,
            hostname: &names.kernel,
            etc: &self.entry.dir.join("etc"),
            volumes: self.volumes,
            shm: shm.as_deref(),
            termination_log: &files.bundle.join("termination-log"),
            cgroup: &cgroup,
            memory_capacity: self.node.facts.memory,
            swap: self.node.kubepods.limits_swap().then(|| self.node.facts.swap()),
            cgroup_v2: self.node.cgroups.version() == berth_runtime::cgroup::Version::V2,
            labels: labels.as_ref(),
            users: self
                .node
                .id_ranges
                .of(self.pod.uid())
                .filter(|_| self.pod.spec().host_users == Some(false)),
        })?;
        let image = self.image;
        let instance = Instance {
            record: ContainerRecord {
                id: id.to_owned(),
                name: self.start.name.clone(),
                attempt: self.start.attempt,
                delay: self.start.delay,
                spec_hash: self.start.spec_hash.clone(),
                image: self.container.image.clone().unwrap_or_default(),
                image_id: image.repo_digests.first().unwrap_or(&image.id).clone(),
                created_at: self.entry.instance_time(self.start.round),
                state: ContainerState::Created,
                post_start_done: false,
                user: Some(built.user),
                resources: Some(self.start.resources.clone()),
                round: self.start.round,
            },
            stop_signal: stop_signal(self.container, image),
            log_path: files.log.clone(),
            cgroup,
            pid: None,
        };
        serde_json::to_vec(&built.spec)
            .map_err(std::io::Error::other)
            .and_then(|text| std::fs::write(files.bundle.join("config.json"), text))
            .and_then(|()| self.entry.save_instance(&instance))
            .map_err(|e| create_error(format!("write {}: {e}", files.bundle.display())))?;
        let limits = built.spec.linux().as_ref().and_then(|linux| linux.resources().clone());
        Ok((instance, limits.unwrap_or_default(), built.held))
    }

    /// Labels what the container has mounted besides its volumes. What it shares with others has its label since the pod was
    /// made, unless pods were not labelled then.
    fn label_files(&self, files: &Files, own: Option<&Labels>) -> Result<(), Failure> {
        let (Some(pods), Some(own), spec) = (self.labels, own, self.pod.spec()) else { return Ok(()) };
        let failed = |path: &Path, e: std::io::Error| create_error(format!("label {}: {e}", path.display()));
        let message = files.bundle.join("termination-log");
        volumes::set_label(&message, &own.file).map_err(|e| failed(&message, e))?;
        for (name, label) in [("etc", pods.etc(spec)), ("shm", pods.shared(spec))] {
            let path = self.entry.dir.join(name);
            if path.exists() {
                volumes::settle_label(&path, &label).map_err(|e| failed(&path, e))?;
            }
        }
        Ok(())
    }
}

/// The folders of one instance.
struct Files {
    bundle: PathBuf,
    rootfs: PathBuf,
    log: PathBuf,
}

impl Files {
    fn make(
        node: &AgentNode,
        pod: &Pod,
        entry: &Entry,
        id: &str,
        start: &StartContainer,
        image: &Image,
    ) -> Result<Self, Failure> {
        let files = Self {
            bundle: entry.bundle(id),
            rootfs: node.config.root.join("rootfs").join(pod.uid()).join(id),
            log: node.log_dir(pod).join(&start.name).join(format!("{}.log", start.attempt)),
        };
        let make = || -> std::io::Result<()> {
            std::fs::create_dir_all(&files.bundle)?;
            let upper = files.rootfs.join("upper");
            std::fs::create_dir_all(&upper)?;
            if let Some(layer) = image.layers.first() {
                // The root folder of an overlay looks like that of its upper layer.
                let meta = std::fs::metadata(layer)?;
                std::os::unix::fs::chown(&upper, Some(meta.uid()), Some(meta.gid()))?;
                std::fs::set_permissions(&upper, meta.permissions())?;
            }
            std::fs::create_dir(files.rootfs.join("work"))?;
            // Whoever removes images can see here which are in use.
            std::fs::write(files.rootfs.join("image"), &image.id)?;
            let log_dir = files.log.parent().expect("the path was joined above");
            std::fs::create_dir_all(log_dir)?;
            let message = files.bundle.join("termination-log");
            std::fs::File::create(&message)?;
            std::fs::set_permissions(&message, std::fs::Permissions::from_mode(0o666))
        };
        make().map_err(|e| {
            files.remove();
            create_error(format!("make the folders of container {:?}: {e}", start.name))
        })?;
        Ok(files)
    }

    fn remove(&self) {
        for dir in [&self.bundle, &self.rootfs] {
            if let Err(error) = volumes::remove_tree(dir) {
                tracing::warn!(dir = %dir.display(), %error, "cannot remove a folder of a container that was not made");
            }
        }
    }
}

/// 64 hexadecimal digits, as every runtime names containers.
fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

/// The containers of a pod share `/dev/shm`. A pod with a single container needs no mount on the host for that.
fn shared_memory(pod: &Pod, entry: &Entry) -> Result<Option<PathBuf>, Failure> {
    if pod.spec().host_ipc == Some(true) {
        return Ok(Some("/dev/shm".into()));
    }
    if pod.all_containers().count() == 1 {
        return Ok(None);
    }
    let dir = entry.dir.join("shm");
    if !dir.exists() {
        std::fs::create_dir(&dir)
            .and_then(|()| berth_runtime::tmpfs::mount(&dir, Some(64 << 20)))
            .map_err(|e| create_error(format!("mount the pod's /dev/shm: {e}")))?;
    }
    Ok(Some(dir))
}

fn stop_signal(container: &v1::Container, image: &Image) -> i32 {
    let own = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    let named = own.or(Some(image.config.stop_signal.as_str()).filter(|s| !s.is_empty()));
    named.and_then(signal::number).unwrap_or(nix::libc::SIGTERM)
}

fn link_log(node: &AgentNode, pod: &Pod, instance: &Instance) {
    let Some(links) = &node.config.log_links else { return };
    let record = &instance.record;
    let name = format!("{}_{}_{}-{}.log", pod.name(), pod.namespace(), record.name, record.id);
    let made = std::fs::create_dir_all(links)
        .and_then(|()| std::os::unix::fs::symlink(&instance.log_path, links.join(name)));
    if let Err(error) = made {
        tracing::warn!(links = %links.display(), %error, "cannot link a log");
    }
}

/// Signals a running instance.
pub(super) async fn stop(
    node: &AgentNode,
    pod: &Arc<Pod>,
    id: &str,
    signal: StopSignal,
) -> Result<(), Failure> {
    let failed = |e: String| Failure { reason: "FailedKillPod".into(), message: e };
    let entry = node.find(pod.uid()).ok_or_else(|| failed("the pod has nothing on this machine".into()))?;
    let (Some(client), Some(instance)) = (entry.client(), entry.instance(id)) else { return Ok(()) };
    // What is to end must be able to.
    entry.resume().await.map_err(failed)?;
    let (number, all) = match signal {
        StopSignal::Stop => (instance.stop_signal, false),
        StopSignal::Kill => (nix::libc::SIGKILL, true),
    };
    client.kill(id, number, all).await.map_err(|e| failed(e.to_string()))
}

/// Removes an instance that never ran.
pub(super) async fn remove(node: &AgentNode, pod: &Arc<Pod>, id: &str) -> Result<(), Failure> {
    let entry = node.entry(pod);
    discard(node, &entry, id).await;
    match entry.instance(id) {
        None => Ok(()),
        Some(_) => {
            Err(Failure { reason: "FailedKillPod".into(), message: format!("cannot remove container {id}") })
        }
    }
}

/// Takes away everything of an instance; it stays known if something of it could not be removed.
async fn discard(node: &AgentNode, entry: &Arc<Entry>, id: &str) {
    if let Some(client) = entry.client()
        && let Err(error) = client.delete(id).await
    {
        tracing::warn!(id, %error, "the shim cannot delete a container");
    }
    let rootfs = node.config.root.join("rootfs").join(entry.pod().uid()).join(id);
    let bundle = entry.bundle(id);
    // The link first: without the bundle, the next agent would not know of it.
    if let (Some(links), Some(instance)) = (&node.config.log_links, entry.instance(id)) {
        unlink_log(links, entry, &instance);
    }
    let removed = blocking(move || {
        let gone = volumes::remove_tree(&rootfs).and_then(|()| volumes::remove_tree(&bundle));
        (gone, bundle)
    })
    .await;
    if let (Err(error), bundle) = removed {
        tracing::warn!(bundle = %bundle.display(), %error, "cannot remove a container's folders");
        return;
    }
    entry.state().instances.retain(|i| i.record.id != id);
}

fn unlink_log(links: &Path, entry: &Entry, instance: &Instance) {
    let pod = entry.pod();
    let name =
        format!("{}_{}_{}-{}.log", pod.name(), pod.namespace(), instance.record.name, instance.record.id);
    let _ = std::fs::remove_file(links.join(name));
}

/// Keeps, of each container, the newest instance and the one before; removes older ones with their logs.
async fn forget_older(node: &AgentNode, entry: &Arc<Entry>, container: &str) {
    let mut attempts: HashMap<String, (u32, PathBuf)> = HashMap::new();
    let newest = {
        let state = entry.state();
        let mut newest = 0;
        for instance in state.instances.iter().filter(|i| i.record.name == container) {
            newest = newest.max(instance.record.attempt);
            if matches!(instance.record.state, ContainerState::Exited(_)) {
                let value = (instance.record.attempt, instance.log_path.clone());
                attempts.insert(instance.record.id.clone(), value);
            }
        }
        newest
    };
    for (id, (attempt, log)) in attempts {
        if attempt + 1 < newest {
            discard(node, entry, &id).await;
            remove_log(&log);
        }
    }
}

/// Removes a log file with what was rotated from it.
fn remove_log(log: &Path) {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else { return };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|n| n == name || n.starts_with(&format!("{name}."))) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
