//! Probes and lifecycle hooks.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_reconciler::node::{Failure, Hook, ProbeOutcome, Probed, Probing};
use berth_reconciler::planner::probe_period;
use berth_reconciler::pod::Pod;
use berth_runtime::shim::client::{Feature, Ran, RepeatRequest, Repeated, RunRequest};
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::unix::pipe::Receiver;

use super::entry::{Entry, Instance};
use super::{AgentNode, ExecSpec, exec, grpc, http_probe as http};

/// Most of an answer that is read (kubelet: 10 KiB).
pub(super) const BODY_MAX: usize = 10 << 10;

/// Runs one probe. While the pod is paused it waits, and a probe that a pause came into is made again: nothing that is
/// frozen can answer.
pub(super) async fn probe(node: &AgentNode, pod: &Arc<Pod>, id: &str, probe: &v1::Probe) -> ProbeOutcome {
    loop {
        let entry = node.find(pod.uid()).filter(|entry| entry.has_instance(id));
        let Some(entry) = entry else { return once(node, pod, id, probe).await };
        let mut pauses = entry.pauses();
        // It cannot fail: the entry holds the sender.
        let _ = pauses.wait_for(|paused| !paused).await;
        let outcome = once(node, pod, id, probe).await;
        if !pauses.has_changed().unwrap_or(false) {
            return outcome;
        }
    }
}

/// So long a shim makes a probe by itself before it is asked anew.
const A_WHILE: Duration = Duration::from_secs(10);

/// Has the shim run a probe's command again and again, where it can: the agent need not be there each time.
pub(super) fn again(
    node: Arc<AgentNode>,
    pod: &Arc<Pod>,
    id: &str,
    probe: &v1::Probe,
    wait: Duration,
) -> Option<Probing> {
    let command = probe.exec.as_ref()?.command.as_deref().unwrap_or_default();
    let (entry, instance) = target(&node, pod, id)?;
    let client = entry.client().filter(|client| client.welcome().has(Feature::Repeat))?;
    let period = probe_period(probe);
    let times = u32::try_from(A_WHILE.as_millis() / period.as_millis()).unwrap_or(1).max(1);
    let timeout = seconds(probe.timeout_seconds.unwrap_or(1));
    let request = RepeatRequest {
        run: run_request(&instance, command, timeout),
        wait_us: u64::try_from(wait.as_micros()).unwrap_or(u64::MAX),
        period_ms: u64::try_from(period.as_millis()).unwrap_or(u64::MAX),
        times,
    };
    let (pod, id, probe, command) = (pod.clone(), id.to_owned(), probe.clone(), command.to_vec());
    Some(Box::pin(async move {
        let pauses = entry.pauses();
        let counting = node.counters.count_probes(wait, period, times);
        let answer = client.repeat(request).await;
        // As in a single one: nothing that is frozen can answer.
        if pauses.has_changed().unwrap_or(false) || entry.is_paused() {
            drop(counting);
            let begun = Instant::now();
            let outcome = self::probe(&node, &pod, &id, &probe).await;
            return Probed { outcome, ago: begun.elapsed() };
        }
        match answer {
            Ok(Repeated { result, runs, ago_us }) => {
                counting.end(runs);
                let result = result.map_err(|failure| failure.to_string());
                let result = result.and_then(|ran| in_time(ran, &command, timeout)).and_then(success);
                Probed { outcome: outcome_of(result), ago: Duration::from_micros(ago_us) }
            }
            Err(error) => Probed { outcome: ProbeOutcome::Failure(error.to_string()), ago: Duration::ZERO },
        }
    }))
}

async fn once(node: &AgentNode, pod: &Arc<Pod>, id: &str, probe: &v1::Probe) -> ProbeOutcome {
    node.counters.probes.inc();
    let Some((entry, instance)) = target(node, pod, id) else {
        return ProbeOutcome::Failure("container is not running".into());
    };
    let timeout = seconds(probe.timeout_seconds.unwrap_or(1));
    let result = if let Some(action) = &probe.exec {
        exec_probe(&entry, &instance, action.command.as_deref().unwrap_or_default(), timeout).await
    } else if let Some(action) = &probe.http_get {
        match http(&entry, pod, &instance, action, timeout).await {
            Ok(http::Found::Redirected(text)) => return ProbeOutcome::Warning(text),
            other => other.map(drop),
        }
    } else if let Some(action) = &probe.tcp_socket {
        tcp(&entry, pod, &instance, action, timeout).await
    } else if let Some(action) = &probe.grpc {
        grpc_probe(&entry, action, timeout).await
    } else {
        Err("the probe has no handler".into())
    };
    outcome_of(result)
}

fn outcome_of(result: Result<(), String>) -> ProbeOutcome {
    match result {
        Ok(()) => ProbeOutcome::Success,
        Err(text) => ProbeOutcome::Failure(text),
    }
}

fn seconds(n: i32) -> Duration {
    Duration::from_secs(u64::try_from(n).unwrap_or(1).max(1))
}

fn target(node: &AgentNode, pod: &Pod, id: &str) -> Option<(Arc<Entry>, Instance)> {
    let entry = node.find(pod.uid())?;
    let instance = entry.instance(id)?;
    Some((entry, instance))
}

async fn exec_probe(
    entry: &Entry,
    instance: &Instance,
    command: &[String],
    timeout: Duration,
) -> Result<(), String> {
    success(run_command(entry, instance, command, timeout).await?)
}

/// A command that fails says why.
fn success((code, output): (i32, String)) -> Result<(), String> {
    if code == 0 { Ok(()) } else { Err(output) }
}

/// Runs a command to its end and gives its exit code and the beginning of its output.
async fn run_command(
    entry: &Entry,
    instance: &Instance,
    command: &[String],
    timeout: Duration,
) -> Result<(i32, String), String> {
    let client = entry.client().ok_or("the pod is not running")?;
    if !client.welcome().has(Feature::Run) {
        return run_in_steps(entry, instance, command, timeout).await;
    }
    let ran = client.run(run_request(instance, command, timeout)).await.map_err(|e| e.to_string())?;
    in_time(ran, command, timeout)
}

fn run_request(instance: &Instance, command: &[String], timeout: Duration) -> RunRequest {
    RunRequest {
        container_id: instance.record.id.clone(),
        command: command.to_vec(),
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        output_max: BODY_MAX,
    }
}

fn in_time(ran: Ran, command: &[String], timeout: Duration) -> Result<(i32, String), String> {
    ran.code.map(|code| (code, ran.output)).ok_or_else(|| timed_out(command, timeout))
}

fn timed_out(command: &[String], timeout: Duration) -> String {
    format!("command timed out: \"{}\" timed out after {}s", command.join(" "), timeout.as_secs())
}

/// The same with a shim of an earlier release, which lives on when the agent is replaced.
async fn run_in_steps(
    entry: &Entry,
    instance: &Instance,
    command: &[String],
    timeout: Duration,
) -> Result<(i32, String), String> {
    let spec = ExecSpec { command: command.to_vec(), tty: false, stdin: false, size: None };
    let (client, session) = exec::run(entry, instance, &spec).await?;
    let outputs = [session.stdout, session.stderr];
    let reading = tokio::spawn(read_outputs(outputs));
    let exec_id = session.exec_id;
    match tokio::time::timeout(timeout, client.wait_exec(exec_id)).await {
        Ok(Ok(code)) => {
            // A child of the command may hold the pipe for ever.
            let text = tokio::time::timeout(Duration::from_millis(100), reading).await;
            Ok((code, text.ok().and_then(Result::ok).unwrap_or_default()))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => {
            let _ = client.kill_exec(exec_id, nix::libc::SIGKILL).await;
            let _ = client.wait_exec(exec_id).await;
            Err(timed_out(command, timeout))
        }
    }
}

/// Reads the beginning of each pipe and drops the rest, so that the command never waits for a reader.
async fn read_outputs(outputs: [Option<OwnedFd>; 2]) -> String {
    let read = |fd: Option<OwnedFd>| async move {
        let mut text = Vec::new();
        if let Some(fd) = fd
            && let Ok(pipe) = Receiver::from_owned_fd(fd)
        {
            let mut beginning = pipe.take(BODY_MAX as u64);
            let _ = beginning.read_to_end(&mut text).await;
            let _ = tokio::io::copy(&mut beginning.into_inner(), &mut tokio::io::sink()).await;
        }
        text
    };
    let [first, second] = outputs;
    let (mut text, more) = tokio::join!(read(first), read(second));
    text.extend(more);
    String::from_utf8_lossy(&text).into_owned()
}

/// A port by number, or by the name of one of the container's ports.
fn port_number(pod: &Pod, container: &str, port: &IntOrString) -> Result<u16, String> {
    let bad = || "the port is not between 1 and 65535".to_owned();
    match port {
        IntOrString::Int(n) => u16::try_from(*n).ok().filter(|p| *p > 0).ok_or_else(bad),
        IntOrString::String(name) => {
            if let Ok(n) = name.parse::<u16>() {
                return Ok(n);
            }
            let ports = pod.container(container).into_iter().flat_map(|c| c.ports.iter().flatten());
            ports
                .filter(|p| p.name.as_deref() == Some(name))
                .find_map(|p| u16::try_from(p.container_port).ok())
                .ok_or_else(|| format!("container {container} has no port named {name:?}"))
        }
    }
}

pub(super) async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let result = match host.parse::<IpAddr>() {
        Ok(ip) => TcpStream::connect(SocketAddr::new(ip, port)).await,
        Err(_) => TcpStream::connect((host, port)).await,
    };
    result.map_err(|e| format!("dial tcp {host}:{port}: {e}"))
}

fn host_of(entry: &Entry, named: Option<&String>) -> Result<String, String> {
    match named.filter(|h| !h.is_empty()) {
        Some(host) => Ok(host.clone()),
        None => entry.ips().first().map(ToString::to_string).ok_or_else(|| "the pod has no address".into()),
    }
}

async fn grpc_probe(entry: &Entry, action: &v1::GRPCAction, timeout: Duration) -> Result<(), String> {
    let host = host_of(entry, None)?;
    let port = u16::try_from(action.port).map_err(|_| "the port is not between 1 and 65535")?;
    let shown = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let service = action.service.as_deref().unwrap_or_default();
    grpc::check(connect(&host, port), &shown, service, timeout).await
}

async fn tcp(
    entry: &Entry,
    pod: &Pod,
    instance: &Instance,
    action: &v1::TCPSocketAction,
    timeout: Duration,
) -> Result<(), String> {
    let host = host_of(entry, action.host.as_ref())?;
    let port = port_number(pod, &instance.record.name, &action.port)?;
    match tokio::time::timeout(timeout, connect(&host, port)).await {
        Ok(result) => result.map(drop),
        Err(_) => Err(format!("dial tcp {host}:{port}: i/o timeout")),
    }
}

async fn http(
    entry: &Entry,
    pod: &Pod,
    instance: &Instance,
    action: &v1::HTTPGetAction,
    timeout: Duration,
) -> Result<http::Found, String> {
    let host = host_of(entry, action.host.as_ref())?;
    let port = port_number(pod, &instance.record.name, &action.port)?;
    http::get(&host, port, action, timeout).await
}

/// Runs a hook to its end.
pub(super) async fn run_hook(
    node: &AgentNode,
    pod: &Arc<Pod>,
    id: &str,
    hook: Hook,
    handler: &v1::LifecycleHandler,
) -> Result<(), Failure> {
    let name = if hook == Hook::PostStart { "PostStartHook" } else { "PreStopHook" };
    let failed = |message: String| Failure { reason: format!("Failed{name}"), message };
    let Some((entry, instance)) = target(node, pod, id) else {
        return Err(failed("the container is not running".into()));
    };
    if hook == Hook::PreStop {
        // What is to end must be able to.
        entry.resume().await.map_err(&failed)?;
    }
    // The worker bounds a preStop hook by the grace period; this only ends what nobody waits for any more.
    let limit = Duration::from_secs(
        u64::try_from(pod.spec().termination_grace_period_seconds.unwrap_or(30)).unwrap_or(30),
    );
    let limit =
        if hook == Hook::PostStart { Duration::from_secs(3600) } else { limit.max(Duration::from_secs(1)) };
    let result = if let Some(action) = &handler.exec {
        let command = action.command.as_deref().unwrap_or_default();
        match run_command(&entry, &instance, command, limit).await {
            Ok((0, _)) => Ok(()),
            Ok((code, output)) => Err(format!(
                "Exec lifecycle hook ({command:?}) failed - exited with {code}: {}",
                output.trim_end()
            )),
            Err(error) => Err(error),
        }
    } else if let Some(action) = &handler.http_get {
        http(&entry, pod, &instance, action, limit).await.map(drop)
    } else if let Some(action) = &handler.tcp_socket {
        tcp(&entry, pod, &instance, action, limit).await
    } else if let Some(action) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
        Ok(())
    } else {
        Ok(())
    };
    result.map_err(failed)?;
    if hook == Hook::PostStart {
        record_post_start(&entry, id).map_err(|e| failed(format!("record the hook: {e}")))?;
    }
    Ok(())
}

fn record_post_start(entry: &Entry, id: &str) -> std::io::Result<()> {
    let Some(mut instance) = entry.instance(id) else { return Ok(()) };
    instance.record.post_start_done = true;
    entry.save_instance(&instance)?;
    if let Some(known) = entry.state().instances.iter_mut().find(|i| i.record.id == id) {
        known.record.post_start_done = true;
    }
    Ok(())
}
