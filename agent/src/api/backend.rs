//! What the API needs of the agent beyond the objects it serves.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use async_trait::async_trait;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1;
use serde_json::Value;

use super::ApiError;
use crate::metrics::usage::Usage;
use crate::store::Kind;

/// How to run a command in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Name of the container; the API has made sure that the pod has it.
    pub container: String,
    /// Program and arguments, at least one.
    pub command: Vec<String>,
    /// The caller sends input.
    pub stdin: bool,
    /// The caller wants standard output.
    pub stdout: bool,
    /// The caller wants standard error; never with a terminal.
    pub stderr: bool,
    /// Run it on a terminal.
    pub tty: bool,
    /// Columns and rows of that terminal, if the caller has said.
    pub size: Option<(u16, u16)>,
}

/// Which part of a pod a change is about; each has a path of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The pod itself.
    Whole,
    /// `resize`: cpu and memory of its containers.
    Resize,
    /// `ephemeralcontainers`.
    Ephemeral,
    /// `status`: the conditions that are not the node's own.
    Status,
}

/// How to attach to a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachRequest {
    /// Name of the container; the API has made sure that the pod has it.
    pub container: String,
    /// The caller sends input.
    pub stdin: bool,
    /// The caller wants what it writes to standard output.
    pub stdout: bool,
    /// The caller wants what it writes to standard error.
    pub stderr: bool,
}

/// A command that runs, or a container that somebody is attached to.
pub struct ExecStreams {
    /// Where its input goes, when asked for and without a terminal.
    pub stdin: Option<OwnedFd>,
    /// Where its output comes from, without a terminal.
    pub stdout: Option<OwnedFd>,
    /// Where its errors come from, without a terminal.
    pub stderr: Option<OwnedFd>,
    /// The terminal's master side, where input goes and output comes from.
    pub console: Option<OwnedFd>,
    /// A terminal's master side whose size is the caller's, and nothing else.
    pub window: Option<OwnedFd>,
    /// A pipe that says, in a line, why the streams ended early, if they did.
    pub complaint: Option<OwnedFd>,
    /// Its exit code (128 + signal for a signalled one), or why that is not known. Dropping it abandons the command.
    pub exit: BoxFuture<'static, Result<i32, String>>,
}

/// Where a container instance's log is.
pub struct LogSource {
    /// The current log file; rotated files lie beside it.
    pub path: PathBuf,
    /// Resolves once the instance has ended and its log is complete; at once for one that does not run.
    pub ended: BoxFuture<'static, ()>,
}

/// The agent's side of the API. Reads are served from the [`ObjectStore`](crate::store::ObjectStore); a backend makes changes and
/// brings their results into the store itself, before it returns.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Whether the node has started up, for `/readyz`; if not, why.
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    /// Checks a pod and begins to run it. `dry_run` only checks. The object has name and namespace.
    async fn create_pod(&self, pod: Value, dry_run: bool) -> Result<v1::Pod, ApiError>;

    /// Begins to run a pod that waited for its node, which is this one; it keeps uid and age.
    async fn take_pod(&self, pod: Value) -> Result<v1::Pod, ApiError>;

    /// Replaces what is wanted of a part of a pod. `pod` is the whole new object, which may differ in that part only.
    async fn update_pod(
        &self,
        namespace: &str,
        name: &str,
        part: Part,
        pod: Value,
        dry_run: bool,
    ) -> Result<v1::Pod, ApiError>;

    /// Replaces the conditions of a pod that are not the node's own.
    async fn set_conditions(
        &self,
        namespace: &str,
        name: &str,
        conditions: Vec<v1::PodCondition>,
        dry_run: bool,
    ) -> Result<v1::Pod, ApiError>;

    /// Begins to delete a pod; `grace` in seconds, none for the pod's own. `uid`, if given, must be the pod's.
    async fn delete_pod(
        &self,
        namespace: &str,
        name: &str,
        grace: Option<u64>,
        uid: Option<String>,
    ) -> Result<v1::Pod, ApiError>;

    /// Creates or replaces a ConfigMap or Secret; with `create_only` it must not exist yet. The object has name and namespace.
    async fn put_config(
        &self,
        kind: Kind,
        object: Value,
        create_only: bool,
        dry_run: bool,
    ) -> Result<Value, ApiError>;

    /// Deletes a ConfigMap or Secret.
    async fn delete_config(&self, kind: Kind, namespace: &str, name: &str) -> Result<(), ApiError>;

    /// Runs a command in a running container.
    async fn exec(&self, namespace: &str, pod: &str, request: ExecRequest) -> Result<ExecStreams, ApiError>;

    /// Attaches to a running container; `exit` resolves to 0 when that ends.
    async fn attach(
        &self,
        namespace: &str,
        pod: &str,
        request: AttachRequest,
    ) -> Result<ExecStreams, ApiError>;

    /// A socket connected to a TCP port on the pod's loopback, or why there is none.
    async fn dial(&self, namespace: &str, pod: &str, port: u16) -> Result<OwnedFd, String>;

    /// Freezes a running pod's processes, or lets them go on. Repeating it is fine.
    async fn pause(&self, namespace: &str, pod: &str, paused: bool) -> Result<v1::Pod, ApiError>;

    /// What pods and the machine use at the moment.
    async fn usage(&self) -> Usage;

    /// Finds a container's log; the one of the instance before the newest with `previous`.
    async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
    ) -> Result<LogSource, ApiError>;
}
