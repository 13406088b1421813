//! `berth agent`: puts the parts together, runs them, and takes them apart again.

mod desired;
mod kubelet;
mod listeners;
mod quiet;
mod readonly;
mod secure;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use berth_netplug::Network;
use berth_reconciler::manifest;
use berth_reconciler::worker::{Options, Reconciler};
use berth_runtime::cgroup::Cgroups;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::backend::AgentBackend;
use crate::cluster::Cluster;
use crate::cni::Cni;
use crate::config::{AgentArgs, Config};
use crate::configs::Configs;
use crate::dns::{self, server::Sockets};
use crate::events::Recorder;
use crate::facts::NodeFacts;
use crate::hub::Hub;
use crate::metrics::Counters;
use crate::node::{AgentNode, Parts};
use crate::policies::Policies;
use crate::services::{Ranges, Services};
use crate::store::ObjectStore;
use crate::volumes::claims::Claims;
use listeners::Listeners;

/// Longest time that pods get to end when everything is removed on exit.
const CLEANUP_GRACE_SECONDS: u64 = 3;

/// Runs the agent until it is told to end.
///
/// # Errors
/// What keeps it from starting: bad settings, another agent with the same run folder, no root, a port in use.
pub fn run(args: &AgentArgs) -> anyhow::Result<()> {
    berth_runtime::heap::begin_without_caches();
    berth_runtime::heap::keep_small();
    let config = Arc::new(Config::load(args)?);
    log_to_stderr();
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!(
            "berth agent must run as root: it makes namespaces, mounts and network links; try it with sudo"
        );
    }
    crate::selinux::check_setting(config.selinux)?;
    for dir in [&config.root, &config.run, &config.pods_dir(), &config.log_dir] {
        std::fs::create_dir_all(dir).with_context(|| format!("make the folder {}", dir.display()))?;
    }
    for dir in [&config.root, &config.pods_dir()] {
        keep_private(dir).with_context(|| format!("make the folder {} private", dir.display()))?;
    }
    let _lock = lock(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        // What a start needed is gone soon after, and an idle node does nothing at all.
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(agent(config))
}

/// Only root passes: below lie Secrets, and files of images and containers, among them set-user-ID programs, which no
/// other user of the machine shall run (CVE-2021-41091, CVE-2021-41103).
fn keep_private(dir: &std::path::Path) -> std::io::Result<()> {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}

fn log_to_stderr() {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_from_env("BERTH_LOG").unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new(
            "info,netlink_proto=warn,hyper=warn,kube_client=error,kube_runtime=error",
        )
    });
    // A second agent in one process (a test) keeps the first one's log.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}

/// How long a new agent waits for what an earlier one has left of itself.
const LOCK_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

/// One agent per run folder. An agent that was killed while it started a shim leaves the lock to that child until the
/// shim's program runs, a few milliseconds: so it is waited for, and only then another agent is what holds it.
fn lock(config: &Config) -> anyhow::Result<Flock<std::fs::File>> {
    let path = config.run.join("agent.lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let (done, locked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = done.send(Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error));
    });
    match locked.recv_timeout(LOCK_PATIENCE) {
        Ok(outcome) => outcome.with_context(|| format!("lock {}", path.display())),
        Err(_) => anyhow::bail!(
            "another berth agent uses the run folder {}; give this one its own with --run",
            config.run.display()
        ),
    }
}

async fn agent(config: Arc<Config>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut listeners = Listeners::take(&config).await?;
    let (parts, names) = assemble(&config).await?;
    listeners.take_rest(&config).await?;
    let store = parts.store.clone();
    let node = AgentNode::new(parts);
    node.check_oom_setting()?;
    node.prepare_cgroups().context("make the tree of control groups")?;
    let options = Options { max_restart_period: config.max_restart_period, ..Options::default() };
    let reconciler = Arc::new(Reconciler::new(node.clone(), options));
    node.connect(reconciler.clone());
    dns::serve(&node, names);
    let context = context(&node);

    let (ready, readiness) = watch::channel(false);
    if let Some(settings) = config.cluster.clone() {
        node.be_in(Cluster::new(node.clone(), reconciler.clone(), settings, &context, readiness.clone()));
    }
    let desired = desired::Desired::new(node.clone(), reconciler.clone());
    let (stop, stopped) = watch::channel(false);
    let activity = quiet::Activity::default();
    let read_only =
        listeners.read_only.take().map(|at| readonly::serve(at, node.clone(), readiness.clone(), &activity));
    let backend = Arc::new(AgentBackend::new(node.clone(), reconciler.clone(), context.clone()));
    let api = serve_api(&node, listeners, backend, &readiness, &stopped, &activity).await?;
    let ahead = node.ahead.clone();
    tokio::spawn(async move { ahead.prepare().await });
    desired.start().await;
    announce_node(&node);
    let following = tokio::spawn(desired.follow(context, ready));
    if let Some(cluster) = node.cluster().cloned() {
        tokio::spawn(cluster.run());
    }
    notify_systemd(&config, readiness);
    quiet::follow(store, activity);
    tokio::spawn(crate::node::ephemeral::watch(node.clone()));
    tokio::spawn(crate::node::shortage::watch(node.clone()));

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let with_machine = !config.cleanup_on_exit && !config.shutdown.is_empty() && machine_is_stopping().await;
    if with_machine {
        tracing::info!("ending with the machine; all pods end first");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::ExtendTimeoutUsec(node.shutdown_micros())]);
    } else if config.cleanup_on_exit {
        tracing::info!("ending; removing all pods");
    } else {
        tracing::info!("ending; pods go on running");
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    following.abort();
    if with_machine {
        node.shut_down().await;
    } else if config.cleanup_on_exit {
        if let Some(cluster) = node.cluster() {
            cluster.begin_to_leave();
        }
        clean_up(&node, &reconciler).await;
        if let Some(cluster) = node.cluster() {
            cluster.leave().await;
        }
    }
    let _ = stop.send(true);
    if let Some(read_only) = read_only {
        read_only.abort();
    }
    let _ = tokio::time::timeout(Duration::from_secs(2), api).await;
    reconciler.shutdown().await;
    let _ = std::fs::remove_file(&config.socket);
    if config.cleanup_on_exit {
        let _ = std::fs::remove_file(config.run.join("agent.lock"));
        let _ = std::fs::remove_dir(config.pods_dir());
        let _ = std::fs::remove_dir(&config.run);
    }
    Ok(())
}

/// What manifests are checked against on this node.
fn context(node: &AgentNode) -> manifest::Context {
    manifest::Context {
        node_name: node.config.node_name.clone(),
        node_labels: Some(node.facts.labels()),
        runtimes: Some(node.config.runtimes.keys().cloned().collect()),
        overheads: node.config.overheads(),
        networks: Some(node.config.network_names()),
        unsafe_sysctls: node.config.unsafe_sysctls.clone(),
        app_armor: Some(crate::apparmor::enabled()),
        selinux: Some(match (crate::selinux::enabled(), node.config.selinux) {
            (false, _) => manifest::Selinux::Absent,
            (true, false) => manifest::Selinux::Unused,
            (true, true) => manifest::Selinux::Used,
        }),
        running: false,
        elsewhere: false,
        cluster: false,
    }
}

/// Serves the API on its socket, over TLS where that is asked for, and in a cluster what its API server asks of nodes. Ends
/// once it is told to.
async fn serve_api(
    node: &Arc<AgentNode>,
    listeners: Listeners,
    backend: Arc<AgentBackend>,
    readiness: &watch::Receiver<bool>,
    stopped: &watch::Receiver<bool>,
    activity: &quiet::Activity,
) -> anyhow::Result<tokio::task::JoinHandle<std::io::Result<()>>> {
    let tls = match listeners.api {
        Some(listener) => Some(secure::listen(listener, &node.config, &node.facts)?),
        None => None,
    };
    let authority = tls.as_ref().map(|tls| tls.authority.clone());
    let hub = Arc::new(Hub::new(&node.config.root, node.store.clone(), &node.facts.name));
    hub.load(node.facts.node_object(&node.config));
    if let (Some(cluster), Some(listener)) = (node.cluster().cloned(), listeners.kubelet) {
        let pages = readonly::pages(node.clone(), readiness.clone());
        let streams = crate::api::kubelet_router(node.store.clone(), backend.clone(), hub.clone());
        kubelet::listen(listener, cluster, node, activity.of(pages), activity.of(streams)).await?;
    }
    let router = activity.of(crate::api::router(node.store.clone(), backend, hub.clone(), authority));
    let closing = || {
        let mut stopped = stopped.clone();
        async move { drop(stopped.wait_for(|stopped| *stopped).await) }
    };
    let listener = socket(&node.config)?;
    if let Some(tls) = tls {
        tls.announce(&node.configs)?;
        hub.announce(node.configs.clone(), tls.authority.pem());
        tokio::spawn(hub.clone().follow_namespaces());
        tokio::spawn(crate::api::serve_secure(tls.listener, router.clone(), closing()));
    }
    Ok(tokio::spawn(crate::api::serve(listener, router, closing())))
}

/// Whether the agent is told to end because the machine does.
async fn machine_is_stopping() -> bool {
    let asked = tokio::task::spawn_blocking(berth_runtime::cgroup::machine_is_stopping).await;
    match asked {
        Ok(Ok(stopping)) => stopping,
        Ok(Err(error)) => {
            tracing::warn!(%error, "cannot tell whether the machine is about to end; pods go on running");
            false
        }
        Err(_) => false,
    }
}

async fn assemble(config: &Arc<Config>) -> anyhow::Result<(Parts, Vec<Sockets>)> {
    let facts = NodeFacts::gather(config);
    let store = ObjectStore::new();
    let images = {
        let dir = config.root.join("images");
        berth_image::Store::open(&dir).with_context(|| format!("open the image store {}", dir.display()))?
    };
    let cgroups = Cgroups::detect().context("find the control groups of this machine")?;
    let mut network = config.network()?;
    let ranges = Ranges::parse(&config.service_cidr).map_err(|why| anyhow::anyhow!("service CIDR: {why}"))?;
    (network.service_ipv4, network.service_ipv6) = (ranges.v4, ranges.v6);
    let cni = Cni::new(config.cni_conf_dir.clone(), config.cni_bin_dirs.clone(), &config.root);
    let network = match cni.is_on() {
        true => Network::dormant(network).await,
        false => Network::open(network).await,
    }
    .context("set up the pod network")?;
    let (names, config) = listen_for_names(config, &network).await;
    let counters = Arc::new(Counters::new(facts.started_at).context("register metrics")?);
    let events = Arc::new(Recorder::new(store.clone(), &config.node_name));
    let claims = Claims::new(&config.root, &config.node_name, store.clone(), events.clone());
    // Before anybody can ask for them.
    claims.load();
    let services =
        Services::new(&config.root, (!cni.is_on()).then_some(ranges), &config.node_name, store.clone());
    services.load();
    let policies = Policies::new(&config.root, config.network_policy, store.clone());
    policies.load(&events);
    let parts = Parts {
        config: Arc::new(config),
        images,
        network,
        cni,
        cgroups,
        configs: Configs::new(store.clone()),
        claims,
        services,
        policies,
        events,
        counters,
        facts,
        store,
    };
    Ok((parts, names))
}

/// Listens as the pods' name server on each network, and says so in the settings.
async fn listen_for_names(config: &Arc<Config>, network: &Network) -> (Vec<Sockets>, Config) {
    let (mut names, mut settings) = (Vec::new(), (**config).clone());
    for network in network.all().filter(|_| dns::is_wanted(config)) {
        // The gateway of a network without a bridge is somebody else.
        let gateways = if network.config().parent.is_none() { network.gateways() } else { Vec::new() };
        let there = dns::listen(config, &gateways).await;
        let addresses = there.iter().filter_map(|one| one.address().ok()).map(|address| address.ip());
        match network.name() {
            None => settings.cluster_dns.extend(addresses),
            Some(name) => drop(settings.network_dns.insert(name.to_owned(), addresses.collect())),
        }
        names.extend(there);
    }
    (names, settings)
}

/// The API's socket, for its owner only: whoever can open it is root on this machine.
fn socket(config: &Config) -> anyhow::Result<UnixListener> {
    let path = &config.socket;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("make the folder {}", parent.display()))?;
    }
    // Left behind by an agent that was killed; the lock on the run folder says that none runs.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protect {}", path.display()))?;
    Ok(listener)
}

fn announce_node(node: &AgentNode) {
    let name = &node.facts.name;
    let about = node.regarding();
    node.events.record(&about, false, "Starting", "Starting berth.");
    node.events.record(&about, false, "NodeReady", &format!("Node {name} status is now: NodeReady"));
}

/// Tells systemd, and a person at the terminal, once every manifest has been read.
fn notify_systemd(config: &Arc<Config>, mut readiness: watch::Receiver<bool>) {
    let config = config.clone();
    tokio::spawn(async move {
        if readiness.wait_for(|ready| *ready).await.is_ok() {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
            let folders: Vec<String> = config.manifests.iter().map(|d| d.display().to_string()).collect();
            tracing::info!(
                node = config.node_name,
                manifests = folders.join(","),
                socket = %config.socket.display(),
                "ready"
            );
        }
    });
}

/// Removes every pod and what the agent itself has made.
async fn clean_up(node: &Arc<AgentNode>, reconciler: &Arc<Reconciler<AgentNode>>) {
    for view in reconciler.pods() {
        reconciler.delete(view.pod.uid(), Some(CLEANUP_GRACE_SECONDS));
    }
    let limit = Duration::from_secs(CLEANUP_GRACE_SECONDS + 30);
    if tokio::time::timeout(limit, reconciler.drained()).await.is_err() {
        let left: Vec<String> = reconciler.pods().iter().map(|v| v.pod.full_name()).collect();
        tracing::error!(pods = left.join(", "), "could not remove these pods in time");
        return;
    }
    if let Err(error) = node.cni.gc(&[]).await {
        tracing::error!(error, "cannot disconnect all pods");
    }
    if let Err(error) = node.network.close_all().await {
        tracing::error!(%error, "cannot remove the pod network");
    }
    if let Err(error) = node.remove_cgroups() {
        tracing::error!(%error, "cannot remove the control groups");
    }
    tracing::info!("removed all pods, the pod network and the control groups");
}
