//! Container statuses.

use std::time::Duration;

use k8s_openapi::api::core::v1;

use super::time;
use crate::node::{ContainerRecord, ContainerState, Exit, LinuxUser};
use crate::planner::{
    Context, Role, allocated, crash_wait, end_of, exit_of, is_running, pod_label, pull_backing_off_from,
    pull_failure,
};

/// The scheme of a container ID.
const ID_SCHEME: &str = "berth://";

/// All container statuses of a pod.
pub(super) struct Statuses {
    pub init: Vec<v1::ContainerStatus>,
    pub main: Vec<v1::ContainerStatus>,
    pub ephemeral: Vec<v1::ContainerStatus>,
    /// Names of those init containers that are sidecars.
    pub sidecars: Vec<String>,
}

impl Statuses {
    pub fn new(ctx: &Context<'_>, previous: Option<&v1::PodStatus>) -> Statuses {
        let mut statuses =
            Statuses { init: Vec::new(), main: Vec::new(), ephemeral: Vec::new(), sidecars: Vec::new() };
        for (container, role) in ctx.containers() {
            let (list, before) = match role {
                Role::Main => (&mut statuses.main, previous.and_then(|p| p.container_statuses.as_ref())),
                Role::Ephemeral => {
                    let before = previous.and_then(|p| p.ephemeral_container_statuses.as_ref());
                    (&mut statuses.ephemeral, before)
                }
                _ => (&mut statuses.init, previous.and_then(|p| p.init_container_statuses.as_ref())),
            };
            if role == Role::Sidecar {
                statuses.sidecars.push(container.name.clone());
            }
            let before = before.and_then(|list| list.iter().find(|s| s.name == container.name));
            list.push(status(ctx, container, role, before));
        }
        statuses
    }
}

fn status(
    ctx: &Context<'_>,
    container: &v1::Container,
    role: Role,
    before: Option<&v1::ContainerStatus>,
) -> v1::ContainerStatus {
    let newest = ctx.newest(&container.name);
    let started = ctx.started(container);
    let (state, last_state) = states(ctx, container, role, newest, before);
    let succeeded = newest.and_then(exit_of).is_some_and(|exit| exit.code == 0);
    let attempt = newest.map_or(0, |record| i32::try_from(record.attempt).unwrap_or(i32::MAX));
    v1::ContainerStatus {
        name: container.name.clone(),
        container_id: newest.map(|record| format!("{ID_SCHEME}{}", record.id)),
        image: newest.map_or_else(|| container.image.clone().unwrap_or_default(), |r| r.image.clone()),
        image_id: newest.map(|record| record.image_id.clone()).unwrap_or_default(),
        ready: match role {
            Role::Init => succeeded,
            Role::Sidecar | Role::Main => started && readiness(ctx, container),
            Role::Ephemeral => false,
        },
        restart_count: attempt.max(before.map_or(0, |status| status.restart_count)),
        // Nobody asks it of an ephemeral container.
        started: (role != Role::Ephemeral).then_some(started),
        state: Some(state),
        last_state: Some(last_state),
        resources: newest.map(|record| actual(ctx, container, record).clone()),
        allocated_resources: newest.and_then(|_| allocated(ctx, container).requests.clone()),
        stop_signal: container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone()),
        volume_mounts: volume_mounts(container),
        user: newest.and_then(|record| record.user.as_ref()).map(user),
        ..v1::ContainerStatus::default()
    }
}

impl Statuses {
    /// The pod has ended or is to be removed, so nothing of it begins anew. A container of which nothing is on record any more
    /// ended as was said before: API servers refuse to be told otherwise.
    pub fn keep_ends(&mut self, previous: Option<&v1::PodStatus>) {
        for (statuses, before) in self.with_before(previous) {
            for status in statuses.iter_mut().filter(|status| status.container_id.is_none()) {
                let before = before.iter().find(|before| before.name == status.name);
                if let Some(before) = before.filter(|before| has_ended(before)) {
                    *status = before.clone();
                }
            }
        }
    }

    /// The pod has ended. If it was `initialised`, a main container that never got to run will not, and is shown as a kubelet
    /// shows it; so is any that has begun. A container whose turn had not come stays as it is.
    pub fn close(&mut self, previous: Option<&v1::PodStatus>, initialised: bool) {
        for (index, (statuses, before)) in self.with_before(previous).into_iter().enumerate() {
            let all = index == 0 && initialised;
            for status in statuses.iter_mut().filter(|status| !has_ended(status)) {
                let begun = || before.iter().any(|before| before.name == status.name && has_begun(before));
                if !all && !begun() {
                    continue;
                }
                let terminated = v1::ContainerStateTerminated {
                    exit_code: 137,
                    reason: Some("ContainerStatusUnknown".to_owned()),
                    message: Some(
                        "The container could not be located when the pod was terminated".to_owned(),
                    ),
                    ..v1::ContainerStateTerminated::default()
                };
                status.state =
                    Some(v1::ContainerState { terminated: Some(terminated), ..Default::default() });
            }
        }
    }

    /// The main containers', init containers' and ephemeral containers' statuses, each with what was said before.
    fn with_before<'a>(
        &'a mut self,
        previous: Option<&'a v1::PodStatus>,
    ) -> [(&'a mut Vec<v1::ContainerStatus>, &'a [v1::ContainerStatus]); 3] {
        let before = |list: fn(&v1::PodStatus) -> &Option<Vec<v1::ContainerStatus>>| {
            previous.and_then(|status| list(status).as_deref()).unwrap_or_default()
        };
        [
            (&mut self.main, before(|status| &status.container_statuses)),
            (&mut self.init, before(|status| &status.init_container_statuses)),
            (&mut self.ephemeral, before(|status| &status.ephemeral_container_statuses)),
        ]
    }
}

fn has_ended(status: &v1::ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.terminated.is_some())
}

/// Whether a container is known to have run.
pub(super) fn has_begun(status: &v1::ContainerStatus) -> bool {
    let shows = |state: &Option<v1::ContainerState>| {
        state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    shows(&status.state) || shows(&status.last_state)
}

fn user(user: &LinuxUser) -> v1::ContainerUser {
    v1::ContainerUser {
        linux: Some(v1::LinuxContainerUser {
            uid: i64::from(user.uid),
            gid: i64::from(user.gid),
            supplemental_groups: Some(user.groups.iter().map(|id| i64::from(*id)).collect()),
        }),
    }
}

/// What the newest instance has: its cgroup's values while it runs, what the next one gets otherwise.
fn actual<'a>(
    ctx: &Context<'a>,
    container: &'a v1::Container,
    record: &'a ContainerRecord,
) -> &'a v1::ResourceRequirements {
    let allocated = allocated(ctx, container);
    record.resources.as_ref().filter(|_| is_running(record)).unwrap_or(allocated)
}

fn readiness(ctx: &Context<'_>, container: &v1::Container) -> bool {
    let passed = || {
        let record = ctx.live(&container.name)?;
        ctx.memory.instance(&container.name, &record.id)?.readiness.result
    };
    container.readiness_probe.is_none() || passed() == Some(true)
}

/// State and last state. A container that could not be started (again) waits; one that will be started at once shows
/// how it ended, as a kubelet shows it.
fn states(
    ctx: &Context<'_>,
    container: &v1::Container,
    role: Role,
    newest: Option<&ContainerRecord>,
    before: Option<&v1::ContainerStatus>,
) -> (v1::ContainerState, v1::ContainerState) {
    let last = last_state(ctx, newest, before);
    match newest.map(|record| (record, &record.state)) {
        Some((_, ContainerState::Running { started_at })) => {
            let running = v1::ContainerStateRunning { started_at: Some(time(*started_at)) };
            (v1::ContainerState { running: Some(running), ..Default::default() }, last)
        }
        Some((record, ContainerState::Exited(exit))) => {
            let ended = terminated(record, exit);
            let again = ctx.deletion.is_none()
                && end_of(ctx).is_none()
                && ctx.restarts(container, role, record, exit);
            match failure(ctx, container, Some(record)).filter(|_| again) {
                Some(waits) => (waits, ended),
                None => (ended, last),
            }
        }
        Some((_, ContainerState::Created)) | None => {
            let waits = failure(ctx, container, None).unwrap_or_else(|| {
                let at_once = role == Role::Ephemeral || ctx.inits().is_empty();
                let starting = if at_once { "ContainerCreating" } else { "PodInitializing" };
                waiting(starting, None)
            });
            (waits, last)
        }
    }
}

/// Why a container that should run does not.
fn failure(
    ctx: &Context<'_>,
    container: &v1::Container,
    ended: Option<&ContainerRecord>,
) -> Option<v1::ContainerState> {
    if let Some((delay, _)) = ended.and_then(|record| crash_wait(ctx, container, record)) {
        let text = format!(
            "back-off {} restarting failed container={} pod={}",
            go_duration(delay),
            container.name,
            pod_label(ctx.pod)
        );
        return Some(waiting("CrashLoopBackOff", Some(text)));
    }
    if let Some(failed) = pull_failure(ctx, container) {
        let failure = &failed.failure;
        return Some(match pull_backing_off_from(failed) {
            Some(from) if from <= ctx.now => {
                let image = container.image.as_deref().unwrap_or_default();
                waiting("ImagePullBackOff", Some(format!("Back-off pulling image \"{image}\": {failure}")))
            }
            _ => waiting(&failure.reason, Some(failure.message.clone())),
        });
    }
    let failed = ctx.memory.container(&container.name)?.create.as_ref()?;
    Some(waiting(&failed.failure.reason, Some(failed.failure.message.clone())))
}

/// How the instance before the newest ended: from its record, else from the status published before.
fn last_state(
    ctx: &Context<'_>,
    newest: Option<&ContainerRecord>,
    before: Option<&v1::ContainerStatus>,
) -> v1::ContainerState {
    let recorded = newest.and_then(|newest| {
        let older = ctx.observed.containers.iter().filter(|r| r.name == newest.name && r.id != newest.id);
        let last = older.max_by_key(|record| record.attempt)?;
        Some(terminated(last, exit_of(last)?))
    });
    recorded.or_else(|| remembered(newest, before?)).unwrap_or_default()
}

fn remembered(newest: Option<&ContainerRecord>, before: &v1::ContainerStatus) -> Option<v1::ContainerState> {
    let same = newest.is_some_and(|record| {
        before.container_id.as_deref().and_then(|id| id.strip_prefix(ID_SCHEME)) == Some(record.id.as_str())
    });
    let ended = before.state.clone().filter(|state| !same && state.terminated.is_some());
    ended.or_else(|| before.last_state.clone())
}

fn terminated(record: &ContainerRecord, exit: &Exit) -> v1::ContainerState {
    let terminated = v1::ContainerStateTerminated {
        container_id: Some(format!("{ID_SCHEME}{}", record.id)),
        exit_code: exit.code,
        signal: exit.signal,
        reason: Some(exit.reason.clone()),
        message: exit.message.clone(),
        started_at: exit.started_at.map(time),
        finished_at: Some(time(exit.finished_at)),
    };
    v1::ContainerState { terminated: Some(terminated), ..Default::default() }
}

fn waiting(reason: &str, message: Option<String>) -> v1::ContainerState {
    let waiting = v1::ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    v1::ContainerState { waiting: Some(waiting), ..Default::default() }
}

fn volume_mounts(container: &v1::Container) -> Option<Vec<v1::VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty())?;
    Some(mounts.iter().map(volume_mount).collect())
}

fn volume_mount(mount: &v1::VolumeMount) -> v1::VolumeMountStatus {
    let read_only = mount.read_only.filter(|read_only| *read_only);
    let recursive = match mount.recursive_read_only.as_deref() {
        Some("Enabled" | "IfPossible") => "Enabled",
        _ => "Disabled",
    };
    v1::VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only,
        recursive_read_only: read_only.map(|_| recursive.to_owned()),
        ..Default::default()
    }
}

/// A duration of whole seconds as Go prints it: `10s`, `2m40s`, `5m0s`.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}
