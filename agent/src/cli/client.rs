//! The way to the agent: the kube client over a unix socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tower::BoxError;

use super::failure::Unreachable;

/// Connects to the agent; nothing is sent before the first request.
pub fn connect(socket: &Path) -> kube::Client {
    let socket: Arc<Path> = Arc::from(socket);
    kube::Client::new(tower::service_fn(move |request| send(socket.clone(), request)), "default")
}

/// One request on a connection of its own: on a unix socket that costs less than keeping a pool.
fn send(
    socket: Arc<Path>,
    mut request: Request<Body>,
) -> BoxFuture<'static, Result<Response<Incoming>, BoxError>> {
    Box::pin(async move {
        let unreachable =
            |reason: String| Unreachable { path: PathBuf::from(&*socket).into_boxed_path(), reason };
        let stream = UnixStream::connect(&*socket).await.map_err(|e| unreachable(describe(&e)))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("berth"));
        let response =
            sender.send_request(request).await.map_err(|e| unreachable(format!("no answer: {e}")))?;
        Ok(response)
    })
}

/// The system's words without Rust's "(os error 2)".
fn describe(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// GETs JSON from a path, optionally as a table.
///
/// # Errors
/// When the agent does not answer, refuses, or answers something else.
pub async fn get<T: DeserializeOwned>(client: &kube::Client, path: &str, accept: &str) -> anyhow::Result<T> {
    let request = Request::get(path).header(header::ACCEPT, accept).body(Vec::new())?;
    Ok(client.request(request).await?)
}

/// Sends a body of JSON by any method.
///
/// # Errors
/// When the agent does not answer, refuses, or answers something else.
pub async fn send_json(
    client: &kube::Client,
    method: &str,
    path: &str,
    content_type: &str,
    body: &Value,
) -> anyhow::Result<Value> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, content_type)
        .body(serde_json::to_vec(body)?)?;
    Ok(client.request(request).await?)
}

/// GETs JSON from a path; `None` if there is nothing.
///
/// # Errors
/// When the agent does not answer, refuses, or answers something else.
pub async fn find<T: DeserializeOwned>(client: &kube::Client, path: &str) -> anyhow::Result<Option<T>> {
    match get(client, path, "application/json").await {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the agent said that the object does not exist.
pub fn is_not_found(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 404)
}

/// Whether the agent said that a watch must begin anew.
pub fn is_gone(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 410)
}

/// The changes of a watch, one by one.
pub struct Events {
    lines: futures::io::Lines<std::pin::Pin<Box<dyn futures::AsyncBufRead + Send>>>,
}

impl Events {
    /// Opens a watch; `path` has its parameters already.
    ///
    /// # Errors
    /// When the agent does not answer or refuses.
    pub async fn open(client: &kube::Client, path: &str, accept: &str) -> anyhow::Result<Events> {
        let request = Request::get(path).header(header::ACCEPT, accept).body(Vec::new())?;
        let body: std::pin::Pin<Box<dyn futures::AsyncBufRead + Send>> =
            Box::pin(client.request_stream(request).await?);
        Ok(Events { lines: futures::AsyncBufReadExt::lines(body) })
    }

    /// Type and object of the next change; none when the agent has ended the watch.
    ///
    /// # Errors
    /// When the connection breaks, or the agent reports an error, such as 410 when the watch must begin anew.
    pub async fn next(&mut self) -> anyhow::Result<Option<(String, Value)>> {
        let Some(line) = futures::StreamExt::next(&mut self.lines).await else { return Ok(None) };
        let mut event: Value = serde_json::from_str(&line?)?;
        let object = event["object"].take();
        let kind = event["type"].as_str().unwrap_or_default();
        if kind == "ERROR" {
            let status: kube::core::Status = serde_json::from_value(object)?;
            return Err(kube::Error::Api(status.boxed()).into());
        }
        Ok(Some((kind.to_owned(), object)))
    }
}
