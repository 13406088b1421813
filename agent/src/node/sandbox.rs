//! A pod's sandbox: run folder, cgroup, volumes, shim and network, made in that order and taken down in reverse.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use berth_netplug::{HostPort, PodNetwork, Protocol, Rate, Wishes};
use berth_reconciler::network::Wishes as Asked;
use berth_reconciler::node::{Failure, Sandbox};
use berth_reconciler::pod::Pod;
use berth_runtime::shim::client::Client;
use berth_runtime::shim::{IdRange, SpawnOptions, spawn};

use super::entry::{Entry, SandboxRecord, write_json};
use super::kubepods::Tree;
use super::networks::{self, Joined};
use super::{AgentNode, shims};
use crate::metrics::Stage;
use crate::{etcfiles, volumes};

/// How long a killed shim may take to be gone.
const KILL_WAIT_SECONDS: i64 = 5;

/// The event that tells of it says what failed; this is why.
fn failed(why: impl std::fmt::Display) -> Failure {
    Failure { reason: "FailedCreatePodSandBox".into(), message: why.to_string() }
}

fn failed_kill(why: impl std::fmt::Display) -> Failure {
    Failure { reason: "FailedKillPod".into(), message: why.to_string() }
}

/// Runs blocking work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Changes a pod's cgroup; on another thread where systemd is asked, which may take its time.
async fn in_tree(
    node: &AgentNode,
    pod: &Arc<Pod>,
    work: impl FnOnce(&Tree, &Pod) -> Result<(), berth_runtime::cgroup::Error> + Send + 'static,
) -> Result<(), berth_runtime::cgroup::Error> {
    if !node.kubepods.has_scopes() {
        return work(&node.kubepods, pod);
    }
    let (tree, pod) = (node.kubepods.clone(), pod.clone());
    blocking(move || work(&tree, &pod)).await
}

/// Makes the sandbox, or does nothing if it runs.
pub(super) async fn create(node: &AgentNode, pod: &Arc<Pod>) -> Result<(), Failure> {
    let entry = node.entry(pod);
    if entry.is_ready() {
        return Ok(());
    }
    clear(node, &entry).await?;
    match set_up(node, pod, &entry).await {
        Ok(()) => Ok(()),
        Err(failure) => {
            node.claims.detach(pod.uid());
            if let Err(undo) = clear(node, &entry).await {
                tracing::warn!(pod = pod.full_name(), error = undo.message, "cannot undo a failed sandbox");
            }
            Err(failure)
        }
    }
}

async fn set_up(node: &AgentNode, pod: &Arc<Pod>, entry: &Arc<Entry>) -> Result<(), Failure> {
    let begun = Instant::now();
    std::fs::create_dir_all(entry.dir.join("containers"))
        .map_err(|e| failed(format!("make {}: {e}", entry.dir.display())))?;
    entry
        .save_pod(None)
        .map_err(|e| failed(format!("write {}: {e}", entry.dir.join("pod.json").display())))?;
    set_up_volumes(node, pod, &[]).await?;
    let spec = pod.spec();
    let host_network = spec.host_network == Some(true);
    let names = etcfiles::names(pod, &node_hostname(), &node.config).map_err(failed)?;
    let users = id_range(node, pod)?;
    // That of a pod with users of its own must be theirs, so there the shim makes it.
    let namespace = match (host_network, users) {
        (false, None) => Some(node.network.namespace().await.map_err(failed)?),
        _ => None,
    };
    let netns = namespace.as_ref().map(path_of);
    let options = SpawnOptions {
        dir: entry.dir.clone(),
        hostname: (!host_network).then(|| names.kernel.clone()),
        domainname: None,
        net_new: !host_network && netns.is_none(),
        net_join: netns.clone(),
        ipc_new: spec.host_ipc != Some(true),
        uts_new: !host_network,
        users,
    };
    let step = node.counters.stage(Stage::Folders, begun);
    // All are tried to their end, so that a failure of one leaves the others in a state that can be undone.
    let (shim, attached, cgroup) = tokio::join!(
        start_shim(node, entry, options, step),
        attach(node, pod, netns.as_deref(), step),
        async {
            let values = super::resize::wanted(entry, pod);
            in_tree(node, pod, move |tree, pod| tree.limit(pod, &values)).await.map_err(failed)
        },
    );
    let shim = shim?;
    cgroup?;
    let mut attachment = attached?;
    drop(namespace);
    if users.is_some() && !host_network {
        let theirs = PathBuf::from(format!("/proc/{shim}/ns/net"));
        attachment = attach(node, pod, Some(&theirs), Instant::now()).await?;
    }
    // No container runs yet that could receive or send anything.
    node.policies.joined(pod).await.map_err(failed)?;
    let first =
        attachment.as_ref().map(|all| all.first().map(|one| one.attachment.ips.clone()).unwrap_or_default());
    let ips = first.unwrap_or_else(|| node.facts.ips.clone());
    let network = attachment.as_ref().and_then(|all| all.first()).map(|one| one.network.as_str());
    let omitted =
        etcfiles::write(&entry.dir.join("etc"), pod, &names, &ips, &node.config, network).map_err(failed)?;
    if let Some(labels) = node.labels(pod).map_err(failed)? {
        let etc = entry.dir.join("etc");
        volumes::relabel(&etc, &labels.etc(spec))
            .map_err(|e| failed(format!("label {}: {e}", etc.display())))?;
    }
    for warning in omitted {
        node.note(pod, true, "DNSConfigForming", warning, None);
    }
    if volumes::follow_objects(pod) && !ips.is_empty() {
        // The downward API knows the pod's address only now.
        set_up_volumes(node, pod, &ips).await?;
    }
    complete(entry, ips, attachment.unwrap_or_default())?;
    node.limited.notify_one();
    node.ahead.prepare_soon();
    node.counters.sandbox_seconds.observe(begun.elapsed().as_secs_f64());
    Ok(())
}

/// Starts the shim and listens to it; gives its pid.
async fn start_shim(
    node: &AgentNode,
    entry: &Arc<Entry>,
    options: SpawnOptions,
    begun: Instant,
) -> Result<i32, Failure> {
    let program = node.ahead.program().map_err(|e| failed(format!("prepare the shim's program: {e}")))?;
    let spare = node.ahead.shim();
    let start = move || spare.map_or_else(|| spawn(&program, &options), |spare| spare.serve(&options));
    let shim = blocking(start).await.map_err(failed)?;
    let (client, events) = Client::connect(&entry.dir.join("shim.sock")).await.map_err(failed)?;
    node.counters.stage(Stage::Shim, begun);
    shims::follow(node, entry, client, events);
    Ok(shim.pid)
}

/// Connects a network namespace, if there is one.
async fn attach(
    node: &AgentNode,
    pod: &Pod,
    netns: Option<&Path>,
    begun: Instant,
) -> Result<Option<Vec<Joined>>, Failure> {
    let Some(netns) = netns else { return Ok(None) };
    let asked = Asked::read(pod.object.metadata.annotations.as_ref()).map_err(failed)?;
    let joined = networks::join(node, &asked, network_of(pod, &asked, netns)).await.map_err(failed)?;
    node.counters.stage(Stage::Network, begun);
    Ok(Some(joined))
}

/// Believes in the sandbox, on disk first.
fn complete(entry: &Entry, ips: Vec<IpAddr>, networks: Vec<Joined>) -> Result<(), Failure> {
    let created_at = entry.sandbox_time();
    let record = SandboxRecord::new(ips.clone(), created_at, networks.clone());
    write_json(&entry.dir.join("sandbox.json"), &record)
        .map_err(|e| failed(format!("write {}: {e}", entry.dir.join("sandbox.json").display())))?;
    let mut state = entry.state();
    if state.shim.is_none() {
        return Err(failed("the pod's shim died while the sandbox was being made"));
    }
    state.networks = networks;
    state.sandbox = Sandbox::Ready { ips, created_at };
    Ok(())
}

/// Where every process of this machine can open a descriptor of this one.
fn path_of(fd: &OwnedFd) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()).into()
}

/// The ids of a pod with a user namespace of its own.
fn id_range(node: &AgentNode, pod: &Pod) -> Result<Option<IdRange>, Failure> {
    if pod.spec().host_users != Some(false) {
        return Ok(None);
    }
    node.id_ranges.acquire(pod.uid()).map(Some).map_err(failed)
}

pub(super) fn node_hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

async fn set_up_volumes(node: &AgentNode, pod: &Arc<Pod>, ips: &[IpAddr]) -> Result<(), Failure> {
    if pod.spec().volumes.iter().flatten().next().is_none() {
        return Ok(());
    }
    let labels = node.labels(pod).map_err(failed)?;
    let (pod, folders) = (pod.clone(), node.folders(pod.uid()));
    let (facts, configs, claims) = (node.facts.for_pod(ips), node.configs.clone(), node.claims.clone());
    let images = node.images.clone();
    // The second time only what depends on the addresses is new.
    let stage = if ips.is_empty() { volumes::Stage::Pod } else { volumes::Stage::Refresh };
    blocking(move || {
        let (facts, lookup, claims, images) = (&facts, &configs, &claims, &images);
        let labels = labels.as_ref();
        let sources =
            volumes::Sources { facts, lookup, claims, images, users: None, container: None, labels };
        volumes::set_up(&pod, &folders, &sources, stage)
    })
    .await
    .map(drop)
}

/// What the pod asks of its first network.
fn network_of(pod: &Pod, asked: &Asked, netns: &Path) -> PodNetwork {
    let rate = |bits: Option<u64>| bits.map(|bits_per_second| Rate { bits_per_second, burst_bytes: None });
    let ports = pod.all_containers().flat_map(|c| c.ports.iter().flatten());
    let host_ports = ports
        .filter_map(|port| {
            Some(HostPort {
                host_ip: port.host_ip.as_ref().and_then(|ip| ip.parse().ok()),
                host_port: u16::try_from(port.host_port?).ok().filter(|p| *p != 0)?,
                container_port: u16::try_from(port.container_port).ok()?,
                protocol: Protocol::of_port(port.protocol.as_deref()),
            })
        })
        .collect();
    PodNetwork {
        id: pod.uid().into(),
        name: pod.name().into(),
        namespace: pod.namespace().into(),
        netns: netns.to_owned(),
        host_ports,
        wishes: Wishes {
            interface: None,
            ips: asked.ips.clone(),
            mac: asked.mac,
            ingress: rate(asked.ingress),
            egress: rate(asked.egress),
            default_routes: None,
        },
    }
}

/// Takes down what is left of an earlier sandbox: its shim and every process. Volumes and records stay.
async fn clear(node: &AgentNode, entry: &Arc<Entry>) -> Result<(), Failure> {
    if !entry.dir.exists() {
        return Ok(());
    }
    // Held only where it is wanted: the kernel takes the pod's link away when nobody holds its namespace any more.
    let held = node.cni.holds(entry.pod().uid());
    let namespace = held.then(|| network_namespace(&entry.dir)).flatten();
    stop_shim(node, entry).await?;
    let pod = entry.pod();
    in_tree(node, &pod, Tree::remove).await.map_err(failed_kill)?;
    let netns = namespace.as_ref().map(path_of);
    node.cni.detach(pod.uid(), netns.as_deref()).await.map_err(failed_kill)?;
    drop(namespace);
    node.network.detach(pod.uid()).await.map_err(failed_kill)?;
    // Nobody has these ids any more, and no file on disk ever had.
    node.id_ranges.release(pod.uid());
    let mut state = entry.state();
    state.sandbox = Sandbox::Absent;
    state.networks.clear();
    Ok(())
}

/// Ends the shim: asks it to, and kills it if it does not answer.
async fn stop_shim(node: &AgentNode, entry: &Arc<Entry>) -> Result<(), Failure> {
    let _ = std::fs::remove_file(entry.dir.join("sandbox.json"));
    let client = {
        let mut state = entry.state();
        state.closing = true;
        state.shim.as_ref().map(|s| s.client.clone())
    };
    if let Some(client) = client
        && let Err(error) = client.shutdown().await
    {
        tracing::warn!(pod = entry.pod().full_name(), %error, "the shim did not shut down by itself");
    }
    kill_remains(node, entry).await;
    shims::bury(entry);
    Ok(())
}

/// Kills the pod's shim, if it is still there, and every process of the pod.
pub(super) async fn kill_remains(node: &AgentNode, entry: &Arc<Entry>) {
    let dir = entry.dir.clone();
    blocking(move || kill_shim(&dir)).await;
    let pod = entry.pod();
    if let Err(error) = node.kubepods.kill(&pod) {
        tracing::warn!(pod = pod.full_name(), %error, "cannot kill what is left of a pod");
    }
}

/// The network namespace that the shim of a run folder keeps, for as long as the descriptor is held: plugins of others undo
/// what they did inside only while it is there.
pub(super) fn network_namespace(dir: &Path) -> Option<OwnedFd> {
    let pid = shim_pid(dir).filter(|pid| is_shim_of(*pid, dir))?;
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).ok()?;
    is_shim_of(pid, dir).then(|| namespace.into())
}

fn shim_pid(dir: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(dir.join("shim.pid")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Whether a process is the shim of this run folder, going by its words.
fn is_shim_of(pid: i32, dir: &Path) -> bool {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let wanted = dir.as_os_str().as_encoded_bytes();
    arguments.split(|b| *b == 0).any(|word| word == wanted)
}

/// Kills the shim of a run folder by its pid file, if that pid is still this shim, and waits until it is gone.
pub(super) fn kill_shim(dir: &Path) {
    let Some(pid) = shim_pid(dir) else { return };
    let ours = || is_shim_of(pid, dir);
    if !ours() {
        return;
    }
    let Some(process) = rustix::process::Pid::from_raw(pid) else { return };
    let Ok(pidfd) = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    // Asked again, now that the descriptor holds on to whoever has this number.
    if !ours() {
        return;
    }
    let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
    // It is gone within microseconds unless it is stuck in the kernel; its children die with it.
    let mut ended = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: KILL_WAIT_SECONDS, tv_nsec: 0 };
    let _ = rustix::event::poll(&mut ended, Some(&limit));
}

/// Ends the sandbox of a pod that has finished; the records and logs of its containers stay. Its volumes go, as with a
/// kubelet, and if it took too much of the disk, its containers' layers too.
pub(super) async fn stop(node: &AgentNode, pod: &Arc<Pod>) -> Result<(), Failure> {
    let entry = node.entry(pod);
    clear(node, &entry).await?;
    let (folders, evicted) = (node.folders(pod.uid()), entry.is_evicted());
    // What ends with the machine goes on with its data once that is up again.
    if entry.ends_with_machine() {
        return Ok(());
    }
    let removed = blocking(move || {
        volumes::tear_down(&folders)?;
        let layers = &folders.rootfs;
        if evicted {
            volumes::remove_tree(layers).map_err(|e| format!("remove {}: {e}", layers.display()))?;
        }
        Ok::<(), String>(())
    })
    .await;
    removed.map_err(failed_kill)?;
    node.claims.detach(pod.uid());
    Ok(())
}

/// Removes everything that the pod has on this machine.
pub(super) async fn remove(node: &AgentNode, pod: &Arc<Pod>) -> Result<(), Failure> {
    let entry = node.entry(pod);
    clear(node, &entry).await?;
    let folders = node.folders(pod.uid());
    let rootfs = node.config.root.join("rootfs").join(pod.uid());
    let (logs, links, dir) = (node.log_dir(pod), node.config.log_links.clone(), entry.dir.clone());
    let prefix = format!("{}_{}_", pod.name(), pod.namespace());
    let removed = blocking(move || {
        volumes::tear_down(&folders)?;
        berth_runtime::tmpfs::unmount(&dir.join("shm"));
        if let Some(links) = links {
            remove_links(&links, &prefix, &logs);
        }
        // The run folder goes last: as long as it is there, the next agent knows of the pod.
        for dir in [&rootfs, &logs, &dir] {
            volumes::remove_tree(dir).map_err(|e| format!("remove {}: {e}", dir.display()))?;
        }
        Ok::<(), String>(())
    })
    .await;
    removed.map_err(failed_kill)?;
    node.claims.detach(pod.uid());
    node.levels.release(pod.uid());
    node.entries().remove(pod.uid());
    Ok(())
}

/// Removes the links to a pod's logs, those of containers that nobody remembers, too: an agent may have been killed
/// between any two steps.
fn remove_links(links: &Path, prefix: &str, logs: &Path) {
    for entry in std::fs::read_dir(links).into_iter().flatten().flatten() {
        let named = entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix));
        if named && std::fs::read_link(entry.path()).is_ok_and(|to| to.starts_with(logs)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The planner begins each such event with what failed.
    #[test]
    fn a_failure_says_why_and_no_more() {
        assert_eq!(failed("no room").message, "no room");
        assert_eq!(failed_kill("no answer").message, "no answer");
    }
}
