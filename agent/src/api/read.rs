//! Serving objects and lists.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::params::Params;
use super::selector::Filter;
use super::table::{self, Include};
use super::write::Target;
use super::{Api, ApiError};
use crate::store::{Kind, Object};

/// How the caller wants objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As they are.
    Json,
    /// As `meta.k8s.io/v1 Table`, with this much of the object in each row.
    Table(Include),
}

impl Format {
    /// What the Accept header asks for. Everything that is not a table is answered with JSON.
    pub fn of(headers: &HeaderMap, params: &Params) -> Format {
        let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let table = accept
            .split(',')
            .any(|one| one.contains("as=Table") && one.trim().starts_with("application/json"));
        if !table {
            return Format::Json;
        }
        Format::Table(match params.get("includeObject") {
            Some("None") => Include::Nothing,
            Some("Object") => Include::Object,
            _ => Include::Metadata,
        })
    }
}

/// A JSON response.
pub fn json_response(code: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = (code, body.into()).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// One object.
pub fn get(api: &Api, target: &Target, format: Format) -> Result<Response, ApiError> {
    let object = target.find(api)?;
    Ok(match format {
        Format::Json => json_response(StatusCode::OK, object.json.clone()),
        Format::Table(include) => {
            let mut table = table::render(target.kind, std::slice::from_ref(&object), include, true);
            table["metadata"] = json!({"resourceVersion": object.version.to_string()});
            json_response(StatusCode::OK, table.to_string())
        }
    })
}

/// Where the next page of a list begins.
#[derive(Serialize, Deserialize)]
struct Continue {
    #[serde(rename = "rv")]
    version: u64,
    namespace: String,
    name: String,
}

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(json!(self).to_string())
    }

    fn decode(token: &str) -> Result<Continue, ApiError> {
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).ok();
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or_else(|| {
            ApiError::bad_request("continue key is not valid: it was not given out by this server")
        })
    }
}

/// A page of a list.
struct Page {
    objects: Vec<Arc<Object>>,
    version: u64,
    next: Option<Continue>,
    remaining: usize,
}

fn page(api: &Api, kind: Kind, filter: &Filter, params: &Params) -> Result<Page, ApiError> {
    let limit = params.parse::<usize>("limit")?.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let from = params.get("continue").map(Continue::decode).transpose()?;
    let (mut objects, now) = api.store.list(kind, filter.namespace());
    objects.retain(|object| filter.matches(object));
    // Later pages show the present, labelled with the first page's version: a watch from there repeats what changed since.
    let mut version = now;
    if let Some(from) = &from {
        version = from.version.min(now);
        objects.retain(|o| (&o.namespace, &o.name) >= (&from.namespace, &from.name));
    }
    let remaining = objects.len().saturating_sub(limit);
    let next = objects.get(limit).filter(|_| remaining > 0).map(|object| Continue {
        version,
        namespace: object.namespace.clone(),
        name: object.name.clone(),
    });
    objects.truncate(limit);
    Ok(Page { objects, version, next, remaining })
}

/// Objects of one kind.
pub fn list(
    api: &Api,
    kind: Kind,
    namespace: Option<String>,
    params: &Params,
    format: Format,
) -> Result<Response, ApiError> {
    let filter = Filter::of(kind, namespace, params)?;
    let page = page(api, kind, &filter, params)?;
    let mut metadata = json!({"resourceVersion": page.version.to_string()});
    if let Some(next) = &page.next {
        metadata["continue"] = json!(next.encode());
        metadata["remainingItemCount"] = json!(page.remaining);
    }
    Ok(match format {
        Format::Json => json_response(StatusCode::OK, list_body(kind, &metadata, page.objects)),
        Format::Table(include) => {
            let mut table = table::render(kind, &page.objects, include, true);
            table["metadata"] = metadata;
            json_response(StatusCode::OK, table.to_string())
        }
    })
}

/// The list's text, made of the objects' texts without copying them.
fn list_body(kind: Kind, metadata: &Value, objects: Vec<Arc<Object>>) -> Body {
    let version = kind.group();
    let head = format!(r#"{{"kind":"{kind}List","apiVersion":"{version}","metadata":{metadata},"items":["#);
    let items = objects.into_iter().enumerate().flat_map(|(n, object)| {
        let comma = (n > 0).then(|| Bytes::from_static(b","));
        comma.into_iter().chain([object.json.clone()])
    });
    let chunks = [Bytes::from(head)].into_iter().chain(items).chain([Bytes::from_static(b"]}\n")]);
    Body::from_stream(stream::iter(chunks.map(Ok::<_, std::convert::Infallible>)))
}
