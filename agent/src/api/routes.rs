//! From a path and a method to what answers it.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{Method, StatusCode};

use super::caller::Caller;
use super::params::Params;
use super::{
    Api, ApiError, Part, attach, authorize, certificates, discovery, exec, log, metrics, openapi,
    portforward, proxy, read, review, watch, write,
};
use crate::hub;
use crate::store::{Group, Kind};

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Route {
    /// All objects of a kind, in one namespace or in all.
    Collection { kind: Kind, namespace: Option<String> },
    /// One object, or a part of it that has a path of its own.
    Object { kind: Kind, namespace: String, name: String, sub: Option<String> },
}

/// Answers any request.
pub async fn handle(State(api): State<Api>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    answer(&api, parts, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(api: &Api, parts: Parts, body: axum::body::Body) -> Result<Response, ApiError> {
    let path = parts.uri.path().trim_end_matches('/').to_owned();
    let caller = authorize::identify(api, &parts)?;
    let params = Params::of(&parts.uri)?;
    authorize::check(api, &caller, &parts.method, &path, &params)?;
    match path.as_str() {
        "/healthz" | "/livez" | "/readyz" => return Ok(health(api, &path)),
        "/version" => return Ok(discovery::version()),
        "/api" => return Ok(discovery::api(&parts.headers)),
        "/apis" => return Ok(discovery::apis(&parts.headers)),
        "/api/v1" => return Ok(discovery::resources(Group::CORE)),
        "/openapi/v3" => return Ok(openapi::index()),
        _ => {}
    }
    if let Some(response) = about_group(&path) {
        return Ok(response);
    }
    if let Some(question) = review::asked_at(&path) {
        if parts.method != Method::POST {
            return Err(ApiError::method_not_allowed());
        }
        let asked = write::read_object(&parts.headers, body).await?;
        return review::answer(api, question, &caller, &asked);
    }
    if let Some(answer) = metrics::answer(api, &path, &parts).await {
        return answer;
    }
    let route = Route::parse(&path).ok_or_else(ApiError::no_such_path)?;
    match route {
        Route::Collection { kind, namespace } => match parts.method {
            Method::GET if params.flag("watch") => {
                watch::respond(api, kind, namespace, &params, read::Format::of(&parts.headers, &params))
            }
            Method::GET => {
                read::list(api, kind, namespace, &params, read::Format::of(&parts.headers, &params))
            }
            Method::POST if kind == Kind::CertificateSigningRequest => {
                certificates::create(api, &caller, &params, &parts.headers, body).await
            }
            Method::POST => write::create(api, &caller, kind, namespace, &params, &parts.headers, body).await,
            _ => Err(ApiError::method_not_allowed()),
        },
        Route::Object { kind, namespace, name, sub: None } => {
            let object = write::Target { kind, namespace, name };
            match parts.method {
                Method::GET if params.flag("watch") => Err(ApiError::method_not_allowed()),
                Method::GET => read::get(api, &object, read::Format::of(&parts.headers, &params)),
                Method::PUT => {
                    write::replace(api, &caller, &object, Part::Whole, &params, &parts.headers, body).await
                }
                Method::PATCH => {
                    write::patch(api, &caller, &object, Part::Whole, &params, &parts.headers, body).await
                }
                Method::DELETE => write::delete(api, &caller, &object, &params, &parts.headers, body).await,
                _ => Err(ApiError::method_not_allowed()),
            }
        }
        Route::Object { kind, namespace, name, sub: Some(sub) } => {
            let object = write::Target { kind, namespace, name };
            part(api, &caller, &object, &sub, &params, parts, body).await
        }
    }
}

/// What has a path below an object's.
async fn part(
    api: &Api,
    caller: &Caller,
    object: &write::Target,
    sub: &str,
    params: &Params,
    parts: Parts,
    body: axum::body::Body,
) -> Result<Response, ApiError> {
    if let (Kind::Pod, "binding" | "eviction") | (Kind::ServiceAccount, "token") = (object.kind, sub)
        && parts.method != Method::POST
    {
        return Err(ApiError::method_not_allowed());
    }
    match (object.kind, Part::of(sub)) {
        (Kind::CertificateSigningRequest, _) if sub == "approval" => {
            certificates::approval(api, object, params, &parts, body).await
        }
        (Kind::Pod, Some(part)) | (Kind::Node, Some(part @ Part::Status)) => {
            part_of(api, caller, object, part, params, &parts, body).await
        }
        (Kind::Pod, None) if sub == "binding" => write::bind(api, object, params, &parts.headers, body).await,
        (Kind::Pod, None) if sub == "eviction" => {
            write::evict(api, caller, object, params, &parts.headers, body).await
        }
        (Kind::ServiceAccount, _) if sub == "token" => {
            write::token(api, caller, object, &parts.headers, body).await
        }
        _ => subresource(api, object, sub, params, parts).await,
    }
}

async fn part_of(
    api: &Api,
    caller: &Caller,
    object: &write::Target,
    part: Part,
    params: &Params,
    parts: &Parts,
    body: axum::body::Body,
) -> Result<Response, ApiError> {
    match parts.method {
        Method::GET => read::get(api, object, read::Format::of(&parts.headers, params)),
        Method::PUT => write::replace(api, caller, object, part, params, &parts.headers, body).await,
        Method::PATCH => write::patch(api, caller, object, part, params, &parts.headers, body).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

impl Part {
    /// The part of a pod that a path's last word names.
    fn of(sub: &str) -> Option<Part> {
        match sub {
            "resize" => Some(Part::Resize),
            "ephemeralcontainers" => Some(Part::Ephemeral),
            "status" => Some(Part::Status),
            _ => None,
        }
    }
}

async fn subresource(
    api: &Api,
    object: &write::Target,
    sub: &str,
    params: &Params,
    mut parts: Parts,
) -> Result<Response, ApiError> {
    if object.kind == Kind::Pod
        && let Ok(pod) = object.find(api)
        && api.hub.has(&pod)
    {
        return elsewhere(api, object, &pod.value(), sub, params, parts).await;
    }
    match (object.kind, sub, &parts.method) {
        (Kind::Pod, "log", &Method::GET) => log::respond(api, object, params).await,
        // kubectl and the kube crate open a WebSocket with GET; POST is how SPDY begins.
        (Kind::Pod, "exec", &Method::GET | &Method::POST) => {
            exec::respond(api, object, params, &mut parts).await
        }
        (Kind::Pod, "attach", &Method::GET | &Method::POST) => {
            attach::respond(api, object, params, &mut parts).await
        }
        (Kind::Pod, "portforward", &Method::GET | &Method::POST) => {
            portforward::respond(api, object, params, &mut parts).await
        }
        (Kind::Pod, "pause" | "resume", &Method::POST) => {
            object.find(api)?;
            let pod = api.backend.pause(&object.namespace, &object.name, sub == "pause").await?;
            Ok(axum::Json(pod).into_response())
        }
        (Kind::Pod, "log" | "exec" | "attach" | "portforward" | "pause" | "resume", _) => {
            Err(ApiError::method_not_allowed())
        }
        _ => Err(ApiError::no_such_path()),
    }
}

/// What only the node of a pod can do, and that is another one.
async fn elsewhere(
    api: &Api,
    object: &write::Target,
    pod: &serde_json::Value,
    sub: &str,
    params: &Params,
    mut parts: Parts,
) -> Result<Response, ApiError> {
    match (sub, &parts.method) {
        ("log", &Method::GET) | ("exec" | "attach" | "portforward", &Method::GET | &Method::POST) => {
            proxy::pass_on(api, object, pod, sub, params, &mut parts).await
        }
        ("pause" | "resume", &Method::POST) => {
            let why = format!("it runs on node {:?}, which alone can do that", hub::node_of(pod));
            Err(ApiError::conflict(Kind::Pod, &object.name, &why))
        }
        ("log" | "exec" | "attach" | "portforward" | "pause" | "resume", _) => {
            Err(ApiError::method_not_allowed())
        }
        _ => Err(ApiError::no_such_path()),
    }
}

fn health(api: &Api, path: &str) -> Response {
    match (path, api.backend.ready()) {
        ("/readyz", Err(why)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")).into_response(),
        _ => "ok".into_response(),
    }
}

/// What a path says about a group as a whole: its versions, its resources, its document of OpenAPI.
fn about_group(path: &str) -> Option<Response> {
    if let Some(document) = path.strip_prefix("/openapi/v3") {
        let group = groups().find(|group| group.path() == document)?;
        return Some(openapi::document(group));
    }
    let name = path.strip_prefix("/apis/")?;
    discovery::named().find_map(|group| match name.strip_prefix(group.name)? {
        "" => Some(discovery::group(group)),
        version if version.strip_prefix('/') == Some(group.version) => Some(discovery::resources(group)),
        _ => None,
    })
}

fn groups() -> impl Iterator<Item = Group> {
    std::iter::once(Group::CORE).chain(Group::NAMED)
}

/// The group of a path, and what comes after it.
fn split(path: &str) -> Option<(Group, &str)> {
    if let Some(rest) = path.strip_prefix("/api/v1/") {
        return Some((Group::CORE, rest));
    }
    let (name, rest) = path.strip_prefix("/apis/")?.split_once('/')?;
    let (version, rest) = rest.split_once('/')?;
    let group = Group::NAMED.into_iter().find(|group| group.name == name && group.version == version)?;
    Some((group, rest))
}

impl Route {
    fn parse(path: &str) -> Option<Route> {
        let (group, rest) = split(path)?;
        let parts: Vec<String> = rest.split('/').map(decode).collect::<Option<_>>()?;
        if parts.iter().any(String::is_empty) {
            return None;
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["namespaces", namespace, plural, rest @ ..] => {
                let kind = Kind::from_plural(group, plural).filter(|kind| kind.namespaced())?;
                Route::below(kind, (*namespace).to_owned(), rest)
            }
            [plural] => Some(Route::Collection { kind: Kind::from_plural(group, plural)?, namespace: None }),
            [plural, rest @ ..] => {
                let kind = Kind::from_plural(group, plural).filter(|kind| !kind.namespaced())?;
                Route::below(kind, String::new(), rest)
            }
            [] => None,
        }
    }

    fn below(kind: Kind, namespace: String, rest: &[&str]) -> Option<Route> {
        match rest {
            [] => Some(Route::Collection { kind, namespace: Some(namespace) }),
            [name] => Some(Route::Object { kind, namespace, name: (*name).to_owned(), sub: None }),
            [name, sub] => Some(Route::Object {
                kind,
                namespace,
                name: (*name).to_owned(),
                sub: Some((*sub).to_owned()),
            }),
            _ => None,
        }
    }
}

/// Undoes percent-encoding; `None` if it is malformed.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: Kind, namespace: &str, name: &str, sub: Option<&str>) -> Option<Route> {
        let sub = sub.map(str::to_owned);
        Some(Route::Object { kind, namespace: namespace.into(), name: name.into(), sub })
    }

    #[test]
    fn paths_become_routes() {
        let parse = Route::parse;
        assert_eq!(parse("/api/v1/pods"), Some(Route::Collection { kind: Kind::Pod, namespace: None }));
        assert_eq!(
            parse("/api/v1/namespaces/a/pods"),
            Some(Route::Collection { kind: Kind::Pod, namespace: Some("a".into()) })
        );
        assert_eq!(parse("/api/v1/namespaces/a/pods/x%2Ey/log"), object(Kind::Pod, "a", "x.y", Some("log")));
        assert_eq!(parse("/api/v1/namespaces/a"), object(Kind::Namespace, "", "a", None));
        assert_eq!(parse("/api/v1/nodes/n/status"), object(Kind::Node, "", "n", Some("status")));
        assert_eq!(
            parse("/apis/discovery.k8s.io/v1/namespaces/a/endpointslices/x"),
            object(Kind::EndpointSlice, "a", "x", None)
        );
        for path in [
            "/api/v1/endpointslices",
            "/apis/discovery.k8s.io/v1/pods",
            "/apis/discovery.k8s.io/v1beta1/endpointslices",
            "/apis//v1/pods",
            "/api/v1/pods/x",
            "/api/v1/namespaces/a/nodes",
            "/api/v1/x",
            "/api/v1/namespaces//pods",
            "/api/v1/%zz",
            "/x",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
