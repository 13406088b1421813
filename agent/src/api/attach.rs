//! `pods/NAME/attach`: a running container's streams over a WebSocket or SPDY, see [`super::remote`] for the protocol.

use axum::response::Response;
use http::request::Parts;

use super::params::Params;
use super::remote::Wanted;
use super::write::Target;
use super::{Api, ApiError, AttachRequest, log, remote};

/// Upgrades the connection and attaches it to the container.
pub async fn respond(
    api: &Api,
    target: &Target,
    params: &Params,
    parts: &mut Parts,
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
    let (backend, target) = (api.backend.clone(), target.clone());
    let wanted = Wanted { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty };
    remote::upgrade(parts, "attach", wanted, async move |mut sink, stream| {
        match backend.attach(&target.namespace, &target.name, request).await {
            Ok(streams) => remote::run(&mut sink, stream, streams).await,
            Err(error) => remote::finish(&mut sink, &error.status()).await,
        }
    })
    .await
}
