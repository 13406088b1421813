//! The API server over a scripted backend that runs commands on this machine and keeps pods in the store only.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth::api::{self, ApiError, AttachRequest, Backend, Cause, ExecRequest, ExecStreams, LogSource, Part};
use berth::hub::Hub;
use berth::metrics::usage::{ContainerUsage, PodUsage, Usage};
use berth::store::{Kind, ObjectStore};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

/// Makes pods run at once, and takes them away at once when they are deleted.
pub struct Fake {
    pub store: ObjectStore,
    pub logs: PathBuf,
    /// False once the containers have ended.
    pub running: watch::Sender<bool>,
}

impl Fake {
    fn save(&self, pod: &Value) -> v1::Pod {
        let text = |field: &str| pod["metadata"][field].as_str().unwrap().to_owned();
        self.store.put(Kind::Pod, &text("namespace"), &text("name"), pod);
        serde_json::from_value(pod.clone()).unwrap()
    }

    fn checked(&self, pod: &Value) -> Result<(), ApiError> {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        if pod["spec"]["containers"].as_array().is_none_or(Vec::is_empty) {
            let cause = Cause {
                reason: "FieldValueRequired",
                field: "spec.containers".into(),
                message: "Required value".into(),
            };
            return Err(ApiError::invalid(Kind::Pod, name, vec![cause]));
        }
        Ok(())
    }
}

/// The name of the node that serves.
pub const OWN: &str = "node-1";

pub fn ago(seconds: i64) -> String {
    Timestamp::from_second(Timestamp::now().as_second() - seconds).unwrap().to_string()
}

/// A status in which every container runs.
pub fn running_status(pod: &Value) -> Value {
    let containers = pod["spec"]["containers"].as_array().unwrap();
    let states: Vec<Value> = containers
        .iter()
        .map(|c| {
            json!({"name": c["name"], "image": c["image"], "imageID": "sha256:1", "ready": true, "restartCount": 0,
                "started": true, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}})
        })
        .collect();
    json!({"phase": "Running", "podIP": "10.85.0.2", "podIPs": [{"ip": "10.85.0.2"}], "hostIP": "192.0.2.1",
        "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": states, "qosClass": "BestEffort"})
}

#[async_trait]
impl Backend for Fake {
    async fn create_pod(&self, mut pod: Value, dry_run: bool) -> Result<v1::Pod, ApiError> {
        self.checked(&pod)?;
        pod["metadata"]["uid"] = json!(uuid::Uuid::new_v4().to_string());
        pod["metadata"]["creationTimestamp"] = json!(ago(0));
        if dry_run {
            return Ok(serde_json::from_value(pod).unwrap());
        }
        pod["status"] = running_status(&pod);
        Ok(self.save(&pod))
    }

    async fn take_pod(&self, mut pod: Value) -> Result<v1::Pod, ApiError> {
        self.checked(&pod)?;
        pod["status"] = running_status(&pod);
        Ok(self.save(&pod))
    }

    async fn update_pod(
        &self,
        ns: &str,
        name: &str,
        part: Part,
        mut pod: Value,
        dry_run: bool,
    ) -> Result<v1::Pod, ApiError> {
        self.checked(&pod)?;
        if part != Part::Whole {
            pod["metadata"]["annotations"]["part"] = json!(format!("{part:?}"));
        }
        let old = self.store.get(Kind::Pod, ns, name).unwrap().value();
        if old["metadata"]["annotations"]["kubernetes.io/config.source"] == "file" {
            return Err(ApiError::forbidden(
                Kind::Pod,
                name,
                "it comes from a manifest file; change the file",
            ));
        }
        pod["status"] = old["status"].clone();
        if dry_run { Ok(serde_json::from_value(pod).unwrap()) } else { Ok(self.save(&pod)) }
    }

    async fn set_conditions(
        &self,
        ns: &str,
        name: &str,
        conditions: Vec<v1::PodCondition>,
        dry_run: bool,
    ) -> Result<v1::Pod, ApiError> {
        let mut pod = self.store.get(Kind::Pod, ns, name).unwrap().value();
        let given = conditions.into_iter().map(|condition| json!(condition));
        pod["status"]["conditions"].as_array_mut().unwrap().extend(given);
        if dry_run { Ok(serde_json::from_value(pod).unwrap()) } else { Ok(self.save(&pod)) }
    }

    async fn delete_pod(
        &self,
        ns: &str,
        name: &str,
        grace: Option<u64>,
        _: Option<String>,
    ) -> Result<v1::Pod, ApiError> {
        let mut pod = self.store.get(Kind::Pod, ns, name).unwrap().value();
        pod["metadata"]["deletionTimestamp"] = json!(ago(0));
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace.unwrap_or(30));
        let pod = self.save(&pod);
        let (store, ns, name) = (self.store.clone(), ns.to_owned(), name.to_owned());
        tokio::spawn(async move { store.delete(Kind::Pod, &ns, &name) });
        Ok(pod)
    }

    async fn put_config(
        &self,
        kind: Kind,
        mut object: Value,
        _: bool,
        dry_run: bool,
    ) -> Result<Value, ApiError> {
        let text = |field: &str| object["metadata"][field].as_str().unwrap().to_owned();
        let (ns, name) = (text("namespace"), text("name"));
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(uuid::Uuid::new_v4().to_string());
            object["metadata"]["creationTimestamp"] = json!(ago(0));
        }
        if !dry_run {
            self.store.put(kind, &ns, &name, &object);
        }
        Ok(object)
    }

    async fn delete_config(&self, kind: Kind, ns: &str, name: &str) -> Result<(), ApiError> {
        self.store.delete(kind, ns, name);
        Ok(())
    }

    async fn exec(&self, _: &str, _: &str, request: ExecRequest) -> Result<ExecStreams, ApiError> {
        let mut command = Command::new(&request.command[0]);
        command.args(&request.command[1..]);
        let mut console = None;
        if request.tty {
            let (ws_col, ws_row) = request.size.unwrap_or_default();
            let size = nix::pty::Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
            let pty = nix::pty::openpty(Some(&size), None).unwrap();
            let slave = || Stdio::from(pty.slave.try_clone().unwrap());
            command.stdin(slave()).stdout(slave()).stderr(slave());
            console = Some(pty.master);
        } else {
            let pipe = |wanted| if wanted { Stdio::piped() } else { Stdio::null() };
            command.stdin(pipe(request.stdin)).stdout(pipe(request.stdout)).stderr(pipe(request.stderr));
        }
        let spawned = command.spawn();
        // It holds the terminal's other side.
        drop(command);
        let mut child =
            spawned.map_err(|e| ApiError::internal(format!("exec: {:?}: {e}", request.command[0])))?;
        Ok(ExecStreams {
            stdin: child.stdin.take().map(OwnedFd::from),
            stdout: child.stdout.take().map(OwnedFd::from),
            stderr: child.stderr.take().map(OwnedFd::from),
            console,
            window: None,
            complaint: None,
            exit: Box::pin(async move {
                let status = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
                status.code().ok_or_else(|| "killed".to_owned())
            }),
        })
    }

    /// The container is a `cat`, which says first what its terminal would be asked.
    async fn attach(&self, ns: &str, pod: &str, request: AttachRequest) -> Result<ExecStreams, ApiError> {
        let command = ["sh", "-c", "echo attached; exec cat"].map(str::to_owned).to_vec();
        let AttachRequest { container, stdin, stdout, stderr } = request;
        self.exec(ns, pod, ExecRequest { container, command, stdin, stdout, stderr, ..Default::default() })
            .await
    }

    async fn dial(&self, _: &str, _: &str, port: u16) -> Result<OwnedFd, String> {
        let socket = std::net::TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
        Ok(socket.into())
    }

    async fn pause(&self, ns: &str, name: &str, paused: bool) -> Result<v1::Pod, ApiError> {
        let mut pod = self.store.get(Kind::Pod, ns, name).unwrap().value();
        let status = if paused { "True" } else { "False" };
        pod["status"]["conditions"] = json!([{"type": "berth.dev/Paused", "status": status}]);
        Ok(self.save(&pod))
    }

    async fn usage(&self) -> Usage {
        let container = ContainerUsage { name: "main".into(), nanocores: 1_500_000, memory: 3 << 20 };
        let (objects, _) = self.store.list(Kind::Pod, None);
        let pods = objects.iter().map(|pod| PodUsage {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            containers: vec![container.clone(), ContainerUsage { name: "side".into(), ..container.clone() }],
        });
        Usage {
            at: Timestamp::UNIX_EPOCH,
            window: Duration::from_secs(1),
            pods: pods.collect(),
            nanocores: 2_000_000_000,
            machine: 0,
            memory: 1 << 30,
            swap: 0,
        }
    }

    async fn logs(&self, _: &str, _: &str, container: &str, previous: bool) -> Result<LogSource, ApiError> {
        if previous {
            return Err(ApiError::bad_request(format!(
                "previous terminated container {container:?} not found"
            )));
        }
        let mut running = self.running.subscribe();
        Ok(LogSource {
            path: self.logs.join("0.log"),
            ended: Box::pin(async move {
                let _ = running.wait_for(|running| !running).await;
            }),
        })
    }
}

/// A server on a unix socket of its own.
pub struct Server {
    pub store: ObjectStore,
    pub fake: Arc<Fake>,
    pub hub: Arc<Hub>,
    pub dir: TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Server {
    pub fn start() -> Server {
        let dir = TempDir::new().unwrap();
        let store = ObjectStore::starting_at(1000, 1 << 20);
        let fake = Arc::new(Fake {
            store: store.clone(),
            logs: dir.path().to_owned(),
            running: watch::channel(true).0,
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let hub = Arc::new(Hub::new(dir.path(), store.clone(), OWN));
        let router = api::router(store.clone(), fake.clone(), hub.clone(), None);
        let _guard = runtime.enter();
        let listener = tokio::net::UnixListener::bind(dir.path().join("s")).unwrap();
        runtime.spawn(api::serve(listener, router, std::future::pending()));
        drop(_guard);
        Server { store, fake, hub, dir, runtime }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// The same objects over TCP on loopback.
    pub fn tcp(&self) -> std::net::SocketAddr {
        let router = api::router(self.store.clone(), self.fake.clone(), self.hub.clone(), None);
        let listener = self.runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        self.runtime.spawn(api::serve(listener, router, std::future::pending()));
        address
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time") })
    }

    pub fn put_pod(&self, name: &str, mut pod: Value) {
        pod["metadata"]["uid"] = json!(format!("uid-of-{name}"));
        pod["metadata"]["creationTimestamp"] = json!(ago(3 * 86400));
        self.store.put(Kind::Pod, "default", name, &pod);
    }
}

/// A pod as a client would send it.
pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "demo:1"}]}})
}

/// A pod that runs.
pub fn running(name: &str) -> Value {
    let mut pod = pod(name);
    pod["status"] = running_status(&pod);
    pod
}

pub fn path_of(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// One request; gives the response with its body still to come.
pub async fn open(
    server: &Server,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: String,
) -> http::Response<Incoming> {
    let stream = tokio::net::UnixStream::connect(server.socket()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap()
}

pub async fn text(
    server: &Server,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: String,
) -> (StatusCode, String) {
    let response = open(server, method, path, headers, body).await;
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

pub async fn call(server: &Server, method: &str, path: &str, body: Value) -> (u16, Value) {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (status, text) = text(server, method, path, &[("content-type", kind)], body).await;
    (status.as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

pub async fn get(server: &Server, path: &str) -> Value {
    let (code, value) = call(server, "GET", path, Value::Null).await;
    assert_eq!(code, 200, "{path}: {value}");
    value
}

pub fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}
