//! The paths by which an API server asks a kubelet for what only the node of a pod can give: logs, commands, streams.
//!
//! They are older than the `pods/NAME/log` of the API: the container is a part of the path, and the streams have other names
//! (`k8s.io/kubelet/pkg/cri/streaming/remotecommand`, `pkg/kubelet/server/server.go`). Behind them is the same code.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{Method, StatusCode};

use super::params::Params;
use super::write::Target;
use super::{Api, ApiError, Backend, attach, exec, log, portforward};
use crate::hub::Hub;
use crate::store::{Kind, ObjectStore};

/// Serves the paths for the pods of `store`; everything else is not found.
pub fn kubelet_router(store: ObjectStore, backend: Arc<dyn Backend>, hub: Arc<Hub>) -> Router {
    let api = Api { store, backend, hub, writes: Arc::default(), authority: None };
    Router::new().fallback(handle).with_state(api)
}

async fn handle(State(api): State<Api>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    // An API server passes on the text of a refusal, so that a `Status` here would be one within another.
    let refuse = |error: ApiError| {
        let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (code, error.message).into_response()
    };
    answer(&api, parts).await.unwrap_or_else(refuse)
}

async fn answer(api: &Api, mut parts: Parts) -> Result<Response, ApiError> {
    let path = parts.uri.path().to_owned();
    let words: Vec<&str> = path.split('/').skip(1).collect();
    let target = |namespace: &str, name: &str| Target {
        kind: Kind::Pod,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let reading = parts.method == Method::GET;
    // A WebSocket begins with GET, SPDY with POST.
    let streaming = reading || parts.method == Method::POST;
    match words[..] {
        ["containerLogs", namespace, pod, container] if reading => {
            let params = Params::of(&parts.uri)?.with(&[], container);
            log::respond(api, &target(namespace, pod), &params).await
        }
        ["exec" | "attach", namespace, pod, container] if streaming => {
            stream(api, words[0], &target(namespace, pod), container, &mut parts).await
        }
        ["exec" | "attach", namespace, pod, uid, container] if streaming => {
            let target = target(namespace, pod);
            is_the_one(api, &target, uid)?;
            stream(api, words[0], &target, container, &mut parts).await
        }
        ["portForward", namespace, pod] if streaming => {
            forward(api, &target(namespace, pod), &mut parts).await
        }
        ["portForward", namespace, pod, uid] if streaming => {
            let target = target(namespace, pod);
            is_the_one(api, &target, uid)?;
            forward(api, &target, &mut parts).await
        }
        ["containerLogs" | "exec" | "attach" | "portForward", ..] if !streaming => {
            Err(ApiError::method_not_allowed())
        }
        _ => Err(ApiError::no_such_path()),
    }
}

/// The streams' names here and in the API.
const NAMES: [(&str, &str); 3] = [("input", "stdin"), ("output", "stdout"), ("error", "stderr")];

async fn stream(
    api: &Api,
    verb: &str,
    target: &Target,
    container: &str,
    parts: &mut Parts,
) -> Result<Response, ApiError> {
    let params = Params::of(&parts.uri)?.with(&NAMES, container);
    match verb {
        "exec" => exec::respond(api, target, &params, parts).await,
        _ => attach::respond(api, target, &params, parts).await,
    }
}

async fn forward(api: &Api, target: &Target, parts: &mut Parts) -> Result<Response, ApiError> {
    let params = Params::of(&parts.uri)?.with(&[("port", "ports")], "");
    portforward::respond(api, target, &params, parts).await
}

/// Refuses a pod of that name that is another by now.
fn is_the_one(api: &Api, target: &Target, uid: &str) -> Result<(), ApiError> {
    let pod = target.find(api)?.value();
    match pod["metadata"]["uid"].as_str() == Some(uid) {
        true => Ok(()),
        false => Err(ApiError::not_found(Kind::Pod, &target.name)),
    }
}
