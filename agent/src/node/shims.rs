//! What shims tell, turned into records.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use berth_reconciler::node::{ContainerState, Exit, Sandbox};
use berth_reconciler::pod::Pod;
use berth_runtime::shim::client::{Client, Event, ExitRecord};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use tokio::sync::mpsc::UnboundedReceiver;

use super::AgentNode;
use super::entry::{Entry, Instance, Shim, read_json, write_json};

/// Longest termination message (kubelet: 4096 bytes).
const MESSAGE_MAX: u64 = 4096;
/// Longest message taken from a log (kubelet: 2048 bytes or 80 lines).
const LOG_MAX: usize = 2048;
const LOG_LINES: usize = 80;

/// Believes in a shim and listens to it until its connection ends.
pub(super) fn follow(
    node: &AgentNode,
    entry: &Arc<Entry>,
    client: Client,
    mut events: UnboundedReceiver<Event>,
) {
    let generation = {
        let mut state = entry.state();
        state.generation += 1;
        state.closing = false;
        state.shim = Some(Shim { client, generation: state.generation });
        state.generation
    };
    let entry = entry.clone();
    let Some(reconciler) = node.reconciler.get().cloned() else { return };
    tokio::spawn(async move {
        let node = reconciler.node();
        while let Some(event) = events.recv().await {
            match event {
                Event::Exited { id, exit } => {
                    exited(&entry, &id, &exit);
                    node.counters.exits.inc();
                    reconciler.wake(entry.pod().uid());
                }
                Event::OomKilled { id, kills } => oom_killed(node, &entry, &id, kills),
            }
        }
        lost(node, &entry, generation).await;
        reconciler.wake(entry.pod().uid());
    });
}

/// Tells people that the kernel has killed in a container, whether that ended it or not.
fn oom_killed(node: &AgentNode, entry: &Entry, id: &str, kills: u64) {
    let Some(instance) = entry.instance(id) else { return };
    let name = &instance.record.name;
    let message = format!(
        "Memory limit of container {name} reached: the kernel has killed {kills} of its processes so far"
    );
    node.note(&entry.pod(), true, "OOMKilling", message, Some(name));
}

/// Records an exit.
pub(super) fn exited(entry: &Entry, id: &str, exit: &ExitRecord) {
    let pod = entry.pod();
    let Some(instance) = entry.instance(id) else { return };
    let container = pod.container(&instance.record.name);
    let exit = describe(exit, container, &entry.bundle(id), &instance.log_path);
    let mut state = entry.state();
    if let Some(instance) = state.instances.iter_mut().find(|i| i.record.id == id)
        && !matches!(instance.record.state, ContainerState::Exited(_))
    {
        instance.record.state = ContainerState::Exited(exit);
    }
}

/// An exit in Kubernetes' words.
pub(super) fn describe(
    exit: &ExitRecord,
    container: Option<&v1::Container>,
    bundle: &Path,
    log: &Path,
) -> Exit {
    let failed_start = exit.message.is_some() && exit.started_at.is_none();
    let reason = if failed_start {
        "StartError"
    } else if exit.oom_killed && exit.code != 0 {
        "OOMKilled"
    } else if exit.code == 0 {
        "Completed"
    } else {
        "Error"
    };
    let message = if failed_start {
        exit.message.clone()
    } else {
        termination_message(container, exit.code, bundle, log).or_else(|| exit.message.clone())
    };
    Exit {
        code: exit.code,
        signal: exit.signal,
        reason: reason.into(),
        message,
        started_at: exit.started_at,
        finished_at: exit.finished_at,
    }
}

fn termination_message(
    container: Option<&v1::Container>,
    code: i32,
    bundle: &Path,
    log: &Path,
) -> Option<String> {
    let text = read_message(&bundle.join("termination-log")).filter(|t| !t.is_empty());
    let fallback =
        container.and_then(|c| c.termination_message_policy.as_deref()) == Some("FallbackToLogsOnError");
    if text.is_some() || code == 0 || !fallback {
        return text;
    }
    let query = berth_runtime::log::Query { tail: Some(LOG_LINES as u64), ..Default::default() };
    let mut out = LastBytes::default();
    berth_runtime::log::read_to(log, &query, &mut out).ok()?;
    Some(String::from_utf8_lossy(out.get()).into_owned()).filter(|t| !t.is_empty())
}

/// Takes in any amount of text and keeps the last [`LOG_MAX`] bytes: lines may be of any length.
#[derive(Default)]
struct LastBytes(Vec<u8>);

impl LastBytes {
    fn get(&self) -> &[u8] {
        &self.0[self.0.len().saturating_sub(LOG_MAX)..]
    }
}

impl Write for LastBytes {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend_from_slice(&bytes[bytes.len().saturating_sub(LOG_MAX)..]);
        if self.0.len() > 4 * LOG_MAX {
            self.0.drain(..self.0.len() - LOG_MAX);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The file was writable from inside the container, so it is opened without following a link or waiting for a pipe.
fn read_message(path: &Path) -> Option<String> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MESSAGE_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The exit of an instance of which nobody can say how it ended, because its shim died. It was killed with the pod.
fn unknown_exit(started_at: Option<Timestamp>) -> ExitRecord {
    ExitRecord {
        code: 137,
        signal: Some(9),
        oom_killed: false,
        started_at,
        finished_at: Timestamp::now(),
        message: Some("the pod's shim died; the container was killed with it".into()),
    }
}

/// Marks everything that ran under a dead shim as ended, durably. What the shim recorded before it died is believed.
pub(super) fn bury(entry: &Entry) {
    let pod = entry.pod();
    let mut state = entry.state();
    state.sandbox = Sandbox::Dead;
    state.shim = None;
    entry.set_paused(false);
    for instance in &mut state.instances {
        let ContainerState::Running { started_at } = instance.record.state else { continue };
        let bundle = entry.bundle(&instance.record.id);
        instance.record.state = ContainerState::Exited(last_words(&pod, instance, &bundle, Some(started_at)));
    }
}

/// How an instance ended whose shim is dead: as its `exit.json` says, or unknown, which is then recorded.
pub(super) fn last_words(
    pod: &Pod,
    instance: &Instance,
    bundle: &Path,
    started_at: Option<Timestamp>,
) -> Exit {
    let path = bundle.join("exit.json");
    if let Some(record) = read_json::<ExitRecord>(&path) {
        return describe(&record, pod.container(&instance.record.name), bundle, &instance.log_path);
    }
    let record = unknown_exit(started_at);
    if let Err(error) = write_json(&path, &record) {
        tracing::warn!(path = %path.display(), %error, "cannot record an exit");
    }
    Exit {
        code: record.code,
        signal: record.signal,
        reason: "ContainerStatusUnknown".into(),
        message: record.message,
        started_at,
        finished_at: record.finished_at,
    }
}

/// The connection of that generation ended. Unless that was expected, the shim is dead and its pod goes with it.
async fn lost(node: &AgentNode, entry: &Arc<Entry>, generation: u64) {
    {
        let state = entry.state();
        let current = state.shim.as_ref().is_some_and(|s| s.generation == generation);
        if !current || state.closing {
            return;
        }
    }
    let pod = entry.pod();
    tracing::warn!(pod = pod.full_name(), uid = pod.uid(), "the pod's shim died");
    node.counters.shims_lost.inc();
    super::sandbox::kill_remains(node, entry).await;
    bury(entry);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_from_a_log_is_its_last_2_kib_whatever_the_lines() {
        let mut last = LastBytes::default();
        for n in 0..100_000_u32 {
            writeln!(last, "line {n}").expect("it takes in everything");
            assert!(last.0.capacity() <= 16 * LOG_MAX);
        }
        assert_eq!(last.get().len(), LOG_MAX);
        assert!(last.get().ends_with(b"line 99998\nline 99999\n"));
        last.write_all(&[b'x'; 10 * LOG_MAX]).expect("it takes in everything");
        assert_eq!(last.get(), [b'x'; LOG_MAX]);
        let mut short = LastBytes::default();
        short.write_all(b"short").expect("it takes in everything");
        assert_eq!(short.get(), b"short");
    }
}
