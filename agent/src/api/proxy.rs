//! Logs and streams of pods that other nodes run: the request goes on to the node's own API, and its answer back.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use http::{Request, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::params::Params;
use super::write::Target;
use super::{Api, ApiError, log};
use crate::hub::node_of;
use crate::store::Kind;

/// How long a node may take to answer the call.
const PATIENCE: Duration = Duration::from_secs(10);
/// The port of a kubelet that does not name it.
const PORT: u64 = 10250;
/// The names of streams in the API and at a node (`pkg/registry/core/pod/strategy.go`, `streamParams`).
const STREAMS: [(&str, &str); 3] = [("stdin", "input"), ("stdout", "output"), ("stderr", "error")];

/// Has the node of a pod answer.
///
/// # Errors
/// 400 when it has no node yet, 502 and 503 when that cannot be reached.
pub async fn pass_on(
    api: &Api,
    target: &Target,
    pod: &Value,
    sub: &str,
    params: &Params,
    parts: &mut Parts,
) -> Result<Response, ApiError> {
    let node = node_of(pod);
    if node.is_empty() {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", target.name)));
    }
    let path = path(api, target, sub, params)?;
    let (address, port) = endpoint(api, node)?;
    let failed = |why: String| {
        ApiError::new(502, "BadGateway", format!("cannot ask node {node:?} at {address} port {port}: {why}"))
    };
    let stream = tokio::time::timeout(PATIENCE, connect(api, address, port)).await;
    let stream = stream.map_err(|_| failed("it does not answer".into()))?.map_err(failed)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(e.to_string()))?;
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::builder().method(parts.method.clone()).uri(path);
    for (name, value) in &parts.headers {
        // Who calls here is nobody there.
        if ![header::HOST, header::AUTHORIZATION, header::COOKIE].contains(name) {
            request = request.header(name, value);
        }
    }
    let request = request.header(header::HOST, format!("{node}:{port}")).body(Body::empty());
    let request = request.map_err(ApiError::internal)?;
    let mut answer = sender.send_request(request).await.map_err(|e| failed(e.to_string()))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(caller) = parts.extensions.remove::<OnUpgrade>()
    {
        let there = hyper::upgrade::on(&mut answer);
        tokio::spawn(join(caller, there));
    }
    Ok(answer.map(Body::new))
}

/// Carries bytes both ways until one side ends.
async fn join(caller: OnUpgrade, node: OnUpgrade) {
    let (Ok(caller), Ok(node)) = tokio::join!(caller, node) else { return };
    // Whoever goes first, the other is told by the end of the stream.
    let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(caller), &mut TokioIo::new(node)).await;
}

/// Where the node's own API is.
fn endpoint(api: &Api, name: &str) -> Result<(IpAddr, u16), ApiError> {
    let unavailable = |why: &str| ApiError::new(503, "ServiceUnavailable", format!("node {name:?} {why}"));
    let node = api.store.get(Kind::Node, "", name).ok_or_else(|| unavailable("is not registered"))?.value();
    let addresses = node["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let internal = addresses.iter().filter(|address| address["type"] == "InternalIP");
    let address = internal.filter_map(|address| address["address"].as_str()?.parse().ok()).next();
    let address = address.ok_or_else(|| unavailable("has no InternalIP among its addresses"))?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap_or(PORT);
    Ok((address, u16::try_from(port).map_err(|_| unavailable("names no port of its own API"))?))
}

async fn connect(api: &Api, address: IpAddr, port: u16) -> Result<TlsStream<TcpStream>, String> {
    let Some(authority) = &api.authority else { return Err("this API is not served over TLS".to_owned()) };
    let config = authority.client_config().map_err(|error| format!("{error:#}"))?;
    let stream = TcpStream::connect((address, port)).await.map_err(|error| error.to_string())?;
    let _ = stream.set_nodelay(true);
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(ServerName::IpAddress(address.into()), stream).await.map_err(|error| {
        format!(
            "{error}; its certificate must be of this server's authority and for that address: on a Berth or a kubelet set \
             `serverTLSBootstrap: true`"
        )
    })
}

/// The path at the node.
fn path(api: &Api, target: &Target, sub: &str, params: &Params) -> Result<String, ApiError> {
    let Target { namespace, name, .. } = target;
    let mut query = Query::default();
    let base = match sub {
        "portforward" => {
            params.all("ports").for_each(|port| query.push("port", port));
            format!("/portForward/{namespace}/{name}")
        }
        "log" => {
            for name in
                ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes"]
            {
                params.all(name).for_each(|value| query.push(name, value));
            }
            format!("/containerLogs/{namespace}/{name}/{}", log::container_of(api, target, params)?)
        }
        verb => {
            for (from, to) in STREAMS {
                if params.flag(from) {
                    query.push(to, "1");
                }
            }
            if params.flag("tty") {
                query.push("tty", "1");
            }
            params.all("command").for_each(|word| query.push("command", word));
            format!("/{verb}/{namespace}/{name}/{}", log::container_of(api, target, params)?)
        }
    };
    Ok(query.after(&base))
}

/// A query that is being written.
#[derive(Default)]
struct Query(String);

impl Query {
    fn push(&mut self, name: &str, value: &str) {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                self.0.push(char::from(byte));
            } else {
                self.0.push_str(&format!("%{byte:02X}"));
            }
        }
    }

    fn after(self, base: &str) -> String {
        format!("{base}{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_command_survive_the_query() {
        let mut query = Query::default();
        query.push("command", "sh");
        query.push("command", "echo a&b=ü +");
        assert_eq!(query.after("/x"), "/x?command=sh&command=echo%20a%26b%3D%C3%BC%20%2B");
    }
}
