//! SPDY/3.1, the protocol that Kubernetes' streams had before WebSockets, for who still speaks it: `kubectl port-forward`
//! (SPDY inside of a WebSocket), API servers before 1.36 towards nodes, older clients.
//!
//! The tour: [`frame`] is what goes over the wire, [`header`] its compressed header blocks, [`connection`] streams over
//! a connection; [`ports`] and [`command`] are what they are used for, and [`tunnel`] is SPDY inside of a WebSocket. Only the server's side of what such clients do is here: streams that the client opens. As their
//! library (moby/spdystream) does, neither side announces or minds windows; a reader that is slow holds up its connection.
//!
//! Source: SPDY Protocol, draft 3.1 (The Chromium Projects).

pub mod command;
mod connection;
mod frame;
mod header;
pub mod ports;
#[cfg(test)]
mod tests;
pub mod tunnel;

use std::future::Future;

use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header as names};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

pub use connection::{Connection, Incoming, Reader, Writer};

use super::ApiError;

/// The header that names the protocol of the streams.
const PROTOCOL: &str = "x-stream-protocol-version";

/// Whether the request asks to go on in SPDY.
pub fn is_asked_for(headers: &HeaderMap) -> bool {
    let says = |name, word: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(word))
    };
    says(names::CONNECTION, "upgrade") && says(names::UPGRADE, "spdy/3.1")
}

/// Goes on in SPDY with the first of `protocols` that the client speaks too, and hands the connection to `then`.
///
/// # Errors
/// When there is no common protocol (403, as kubelet), or the connection cannot be upgraded.
pub fn upgrade<F, R>(parts: &mut Parts, protocols: &[&'static str], then: F) -> Result<Response, ApiError>
where
    F: FnOnce(Connection) -> R + Send + 'static,
    R: Future<Output = ()> + Send,
{
    let offered: Vec<&str> = parts
        .headers
        .get_all(PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let Some(protocol) = protocols.iter().find(|one| offered.contains(one)) else {
        let why = format!("unable to upgrade: no common protocol, want {}", protocols.join(" or "));
        return Err(ApiError::new(403, "Forbidden", why));
    };
    let Some(upgrade) = parts.extensions.remove::<OnUpgrade>() else {
        return Err(ApiError::bad_request("this connection cannot be upgraded"));
    };
    tokio::spawn(async move {
        match upgrade.await {
            Ok(io) => then(Connection::new(TokioIo::new(io))).await,
            Err(error) => tracing::debug!(%error, "cannot go on in SPDY"),
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(names::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(names::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(PROTOCOL, HeaderValue::from_static(protocol));
    Ok(response)
}
