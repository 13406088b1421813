//! Serving changes: one JSON document per line, as long as the caller listens.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, stream};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::params::Params;
use super::read::{Format, json_response};
use super::selector::Filter;
use super::{Api, ApiError, table};
use crate::store::{Change, Kind, Object, Watch};

/// How long a watch lasts when the caller does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3600);
/// How often a caller that asked for bookmarks gets one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// One caller's watch.
struct Watcher {
    watch: Watch,
    kind: Kind,
    filter: Filter,
    format: Format,
    pending: VecDeque<Bytes>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    /// The next table must have the column definitions: it is the first one.
    columns: bool,
    done: bool,
}

/// Changes of one kind, as the parameters ask: from a version, or from the present state.
pub fn respond(
    api: &Api,
    kind: Kind,
    namespace: Option<String>,
    params: &Params,
    format: Format,
) -> Result<Response, ApiError> {
    let filter = Filter::of(kind, namespace, params)?;
    let version = params.parse::<u64>("resourceVersion")?.unwrap_or(0);
    let initial = params.flag("sendInitialEvents");
    let timeout = params.parse::<u64>("timeoutSeconds")?.filter(|s| *s > 0).map(Duration::from_secs);
    let (objects, start) = if initial || version == 0 {
        api.store.list(kind, filter.namespace())
    } else {
        (Vec::new(), version)
    };
    let watch = match api.store.watch(kind, start) {
        Ok(watch) => watch,
        // An expired watch is an event of the stream, as clients of the API server expect it.
        Err(gone) => {
            return Ok(json_response(
                StatusCode::OK,
                line("ERROR", &ApiError::from(gone).status().to_string()),
            ));
        }
    };
    let now = Instant::now();
    let mut watcher = Watcher {
        watch,
        kind,
        filter,
        format,
        pending: VecDeque::new(),
        bookmarks: params.flag("allowWatchBookmarks"),
        next_bookmark: now + BOOKMARK_EVERY,
        deadline: now + timeout.unwrap_or(DEFAULT_TIMEOUT),
        columns: true,
        done: false,
    };
    for object in objects.into_iter().filter(|o| watcher.filter.matches(o)).collect::<Vec<_>>() {
        watcher.push("ADDED", &object);
    }
    if initial && watcher.bookmarks {
        watcher.push_bookmark(true);
    }
    Ok(json_response(StatusCode::OK, Body::from_stream(watcher.stream())))
}

/// One line of the stream; `object` is JSON text.
fn line(event: &str, object: &str) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{event}\",\"object\":{object}}}\n"))
}

impl Watcher {
    fn stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> {
        stream::unfold(
            self,
            |mut watcher| async move { watcher.next().await.map(|bytes| (Ok(bytes), watcher)) },
        )
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.pending.pop_front() {
                return Some(bytes);
            }
            if self.done {
                return None;
            }
            let wake = if self.bookmarks { self.next_bookmark.min(self.deadline) } else { self.deadline };
            match tokio::time::timeout_at(wake, self.watch.next()).await {
                Ok(Ok(change)) => self.push_change(&change),
                Ok(Err(gone)) => {
                    self.done = true;
                    return Some(line("ERROR", &ApiError::from(gone).status().to_string()));
                }
                Err(_) => self.push_timer(),
            }
        }
    }

    /// A bookmark is due, or the end, which has one too so that the caller can go on from there.
    fn push_timer(&mut self) {
        self.done = Instant::now() >= self.deadline;
        if self.bookmarks {
            self.push_bookmark(false);
            self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
        }
    }

    /// An object that begins or ceases to match the selectors is added or deleted for this caller.
    fn push_change(&mut self, change: &Change) {
        let matches = |object: &Option<Arc<Object>>| object.as_ref().is_some_and(|o| self.filter.matches(o));
        match (matches(&change.before), matches(&change.after)) {
            (false, true) => self.push("ADDED", &change.last),
            (true, true) => self.push("MODIFIED", &change.last),
            (true, false) => self.push("DELETED", &change.last),
            (false, false) => {}
        }
    }

    fn push(&mut self, event: &str, object: &Arc<Object>) {
        let text = match self.format {
            // The store holds UTF-8, as JSON is.
            Format::Json => String::from_utf8_lossy(&object.json).into_owned(),
            Format::Table(include) => {
                let mut table = table::render(self.kind, std::slice::from_ref(object), include, self.columns);
                table["metadata"] = json!({"resourceVersion": object.version.to_string()});
                self.columns = false;
                table.to_string()
            }
        };
        self.pending.push_back(line(event, &text));
    }

    fn push_bookmark(&mut self, initial_end: bool) {
        let mut metadata =
            json!({"resourceVersion": self.watch.version().to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object: Value = match self.format {
            Format::Json => {
                json!({"kind": self.kind.as_str(), "apiVersion": self.kind.group().to_string(), "metadata": metadata})
            }
            Format::Table(_) => {
                let row = json!({"cells": [], "object":
                    {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}});
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": [],
                    "metadata": {"resourceVersion": self.watch.version().to_string()}, "rows": [row]})
            }
        };
        self.pending.push_back(line("BOOKMARK", &object.to_string()));
    }
}
