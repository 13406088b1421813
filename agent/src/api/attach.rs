//! `pods/NAME/attach`: a running container's streams over a WebSocket, see [`super::remote`] for the protocol.

use axum::extract::WebSocketUpgrade;
use axum::response::Response;
use futures::StreamExt;

use super::params::Params;
use super::write::Target;
use super::{Api, ApiError, AttachRequest, log, remote};

/// Upgrades the connection and attaches it to the container.
pub fn respond(
    api: &Api,
    target: &Target,
    params: &Params,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let tty = params.flag("tty");
    let request = AttachRequest {
        container: log::container_of(api, target, params)?,
        stdin: params.flag("stdin"),
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr") && !tty,
    };
    if !(request.stdin || request.stdout || request.stderr) {
        return Err(ApiError::bad_request("you must specify at least one of stdin, stdout, stderr"));
    }
    let upgrade = remote::negotiate(upgrade)?;
    let (backend, target) = (api.backend.clone(), target.clone());
    Ok(upgrade.on_upgrade(async move |socket| {
        let (mut sink, stream) = socket.split();
        match backend.attach(&target.namespace, &target.name, request).await {
            Ok(streams) => remote::run(&mut sink, stream, streams).await,
            Err(error) => remote::finish(&mut sink, &error.status()).await,
        }
    }))
}
