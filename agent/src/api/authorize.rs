//! Whether a caller may do what a request asks for, and who a caller is that shows a token.

use axum::extract::ConnectInfo;
use http::request::Parts;
use http::{Method, header};

use super::caller::Caller;
use super::params::Params;
use super::secure::Peer;
use super::{Api, ApiError};
use crate::hub::Attributes;

/// Who sends a request: whoever the connection belongs to, or who its token names.
///
/// # Errors
/// 401 for a token that is not good.
pub fn identify(api: &Api, parts: &Parts) -> Result<Caller, ApiError> {
    let caller = Caller::of(parts);
    let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header
        .and_then(|value| value.split_once(' '))
        .filter(|(word, _)| word.eq_ignore_ascii_case("bearer"));
    let (Caller::Anonymous, Some((_, token))) = (&caller, token) else { return Ok(caller) };
    match api.hub.user_of(token.trim(), &[]) {
        Ok(user) => {
            // Whoever is known takes none of the strangers' places.
            if let Some(peer) = parts.extensions.get::<ConnectInfo<Peer>>() {
                peer.0.is_known();
            }
            Ok(Caller::User { name: user.name, groups: user.groups })
        }
        Err(error) => {
            tracing::debug!(error, "a client of the API shows a token that is not good");
            Err(unauthorized())
        }
    }
}

fn unauthorized() -> ApiError {
    ApiError::new(401, "Unauthorized", "Unauthorized")
}

/// Lets a caller do something, or says why not.
///
/// # Errors
/// 401 for nobody in particular, 403 for others.
pub fn check(
    api: &Api,
    caller: &Caller,
    method: &Method,
    path: &str,
    params: &Params,
) -> Result<(), ApiError> {
    let harmless = matches!(path, "/healthz" | "/livez" | "/readyz" | "/version");
    if caller.is_admin() || (harmless && method == Method::GET) {
        return Ok(());
    }
    if *caller == Caller::Anonymous {
        return Err(unauthorized());
    }
    let asked = attributes(method, path, params);
    api.hub
        .authorize(caller.name(), &caller.groups(), &asked)
        .map_err(|why| forbidden(caller.name(), &asked, &why))
}

/// 403 as Kubernetes says it.
pub fn forbidden(user: &str, asked: &Attributes, why: &str) -> ApiError {
    let Attributes { verb, group, resource, subresource, namespace, name, .. } = asked;
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    if let Some(path) = &asked.path {
        return ApiError::new(
            403,
            "Forbidden",
            format!("forbidden: User {user:?} cannot {verb} path {path:?}{why}"),
        );
    }
    let sub = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
    let place = match namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let dot = if group.is_empty() { String::new() } else { format!(".{group}") };
    let named = if name.is_empty() { String::new() } else { format!(" {name:?}") };
    let text = format!(
        "{resource}{dot}{named} is forbidden: User {user:?} cannot {verb} resource \"{resource}{sub}\" in API group \
         {group:?} {place}{why}"
    );
    ApiError::new(403, "Forbidden", text)
}

/// What a request asks for, by its method and path (k8s.io/apiserver/pkg/endpoints/request/requestinfo.go).
pub fn attributes(method: &Method, path: &str, params: &Params) -> Attributes {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, rest) = match parts.as_slice() {
        ["api", _, rest @ ..] if !rest.is_empty() => ("", rest),
        ["apis", group, _, rest @ ..] if !rest.is_empty() => (*group, rest),
        _ => {
            let verb = method.as_str().to_lowercase();
            return Attributes { verb, path: Some(path.to_owned()), ..Attributes::default() };
        }
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !matches!(rest, [] | ["status" | "finalize"]) => {
            (*namespace, rest)
        }
        rest => ("", rest),
    };
    let text = |n: usize| rest.get(n).copied().unwrap_or_default().to_owned();
    let selector = |field: &str| {
        let terms = params.get("fieldSelector").unwrap_or_default().split(',');
        let value = terms.filter_map(|term| term.split_once('=')).find(|(path, _)| *path == field);
        value.map(|(_, value)| value.trim_start_matches('=').to_owned()).unwrap_or_default()
    };
    let mut name = text(1);
    let all = name.is_empty();
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if all => "deletecollection",
        Method::DELETE => "delete",
        _ if params.flag("watch") => "watch",
        _ if all => "list",
        _ => "get",
    };
    if all && matches!(verb, "list" | "watch") {
        name = selector("metadata.name");
    }
    Attributes {
        verb: verb.to_owned(),
        path: None,
        group: group.to_owned(),
        resource: text(0),
        subresource: text(2),
        namespace: namespace.to_owned(),
        name,
        on_node: selector("spec.nodeName"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn asked(method: Method, uri: &str) -> Attributes {
        let uri: http::Uri = uri.parse().unwrap();
        attributes(&method, uri.path(), &Params::of(&uri).unwrap())
    }

    #[test]
    fn a_request_says_what_it_wants() {
        let words = |method, uri| {
            let a = asked(method, uri);
            [a.verb, a.group, a.resource, a.subresource, a.namespace, a.name].join(" ")
        };
        assert_eq!(words(Method::GET, "/api/v1/namespaces/a/pods"), "list  pods  a ");
        assert_eq!(words(Method::GET, "/api/v1/namespaces/a/pods?watch=1"), "watch  pods  a ");
        assert_eq!(words(Method::PATCH, "/api/v1/namespaces/a/pods/x/status"), "patch  pods status a x");
        assert_eq!(words(Method::GET, "/api/v1/namespaces/a"), "get  namespaces   a");
        assert_eq!(words(Method::PUT, "/api/v1/namespaces/a/status"), "update  namespaces status  a");
        let leases = "/apis/coordination.k8s.io/v1/namespaces/a/leases/x";
        assert_eq!(words(Method::DELETE, leases), "delete coordination.k8s.io leases  a x");
        let watch = "/api/v1/namespaces/a/secrets?watch=true&fieldSelector=metadata.name%3Ds";
        assert_eq!(words(Method::GET, watch), "watch  secrets  a s");
        assert_eq!(asked(Method::GET, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn").on_node, "n");
        assert_eq!(asked(Method::GET, "/apis/node.k8s.io/v1").path.as_deref(), Some("/apis/node.k8s.io/v1"));
    }

    #[test]
    fn a_refusal_is_worded_as_kubernetes_does() {
        let told = |method, uri| forbidden("bob", &asked(method, uri), "").message;
        assert_eq!(
            told(Method::GET, "/api/v1/namespaces/a/pods/x"),
            r#"pods "x" is forbidden: User "bob" cannot get resource "pods" in API group "" in the namespace "a""#
        );
        assert_eq!(
            told(Method::POST, "/apis/certificates.k8s.io/v1/certificatesigningrequests"),
            r#"certificatesigningrequests.certificates.k8s.io is forbidden: User "bob" cannot create resource "certificatesigningrequests" in API group "certificates.k8s.io" at the cluster scope"#
        );
        assert_eq!(told(Method::GET, "/metrics"), r#"forbidden: User "bob" cannot get path "/metrics""#);
    }
}
