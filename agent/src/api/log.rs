//! `GET pods/NAME/log`.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use berth_runtime::log::{Follow, Query, Reader};
use bytes::Bytes;
use futures::{Stream, stream};
use http::{HeaderValue, header};
use jiff::Timestamp;
use serde::Deserialize;

use super::params::Params;
use super::write::Target;
use super::{Api, ApiError, LogSource};

/// Answers with the part of a container's log that the parameters ask for.
pub async fn respond(api: &Api, target: &Target, params: &Params) -> Result<Response, ApiError> {
    let query = query(params)?;
    let container = container_of(api, target, params)?;
    let previous = params.flag("previous");
    let source = api.backend.logs(&target.namespace, &target.name, &container, previous).await?;
    let body = if params.flag("follow") {
        let follow = Follow::open(&source.path, &query).map_err(|e| unreadable(&source, &e))?;
        Body::from_stream(following(follow, source))
    } else {
        let path = source.path.clone();
        let reader = tokio::task::spawn_blocking(move || Reader::open(&path, &query))
            .await
            .map_err(ApiError::internal)?
            .map_err(|e| unreadable(&source, &e))?;
        Body::from_stream(reading(reader))
    };
    let mut response = body.into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

fn unreadable(source: &LogSource, error: &std::io::Error) -> ApiError {
    ApiError::internal(format!("read log {}: {error}", source.path.display()))
}

fn query(params: &Params) -> Result<Query, ApiError> {
    let seconds: Option<i64> = params.parse("sinceSeconds")?;
    let time: Option<Timestamp> = params.parse("sinceTime")?;
    let since = match (seconds, time) {
        (Some(_), Some(_)) => {
            return Err(ApiError::bad_request("at most one of sinceTime or sinceSeconds may be specified"));
        }
        (Some(seconds), None) => {
            let ago = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            Some(Timestamp::now().checked_sub(ago).unwrap_or(Timestamp::MIN))
        }
        (None, time) => time,
    };
    // A negative number of lines means all of them, as in kubectl.
    let tail = params.parse::<i64>("tailLines")?.and_then(|lines| u64::try_from(lines).ok());
    Ok(Query {
        tail,
        since,
        limit_bytes: params.parse("limitBytes")?,
        timestamps: params.flag("timestamps"),
        stream: None,
    })
}

/// The container that is meant: the named one, or the only one.
pub fn container_of(api: &Api, target: &Target, params: &Params) -> Result<String, ApiError> {
    let pod = Brief::of(api, target)?;
    let mains: Vec<&str> = pod.spec.containers.iter().map(|c| c.name.as_str()).collect();
    let inits = &pod.spec.init_containers;
    if let Some(name) = params.get("container") {
        let mut ephemeral = pod.spec.ephemeral_containers.iter();
        let known = mains.contains(&name)
            || inits.iter().any(|c| c.name == name)
            || ephemeral.any(|c| c.name == name);
        return known.then(|| name.to_owned()).ok_or_else(|| {
            ApiError::bad_request(format!("container {name} is not valid for pod {}", target.name))
        });
    }
    match mains.as_slice() {
        [one] => Ok((*one).to_owned()),
        many => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            target.name,
            inits.iter().map(|c| c.name.as_str()).chain(many.iter().copied()).collect::<Vec<_>>().join(" ")
        ))),
    }
}

/// As much of a pod as it takes to choose a container: much less to read than all of it.
#[derive(Deserialize)]
pub struct Brief {
    #[serde(default)]
    spec: BriefSpec,
    #[serde(default)]
    status: BriefStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BriefSpec {
    #[serde(default)]
    containers: Vec<Named>,
    #[serde(default)]
    init_containers: Vec<Named>,
    #[serde(default)]
    ephemeral_containers: Vec<Named>,
}

#[derive(Default, Deserialize)]
struct BriefStatus {
    #[serde(default)]
    phase: String,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl Brief {
    /// The pod that a path names.
    pub fn of(api: &Api, target: &Target) -> Result<Brief, ApiError> {
        serde_json::from_slice(&target.find(api)?.json).map_err(ApiError::internal)
    }

    /// Refuses what needs a running container when the pod has ended.
    pub fn refuse_ended(&self, what: &str) -> Result<(), ApiError> {
        match self.status.phase.as_str() {
            phase @ ("Succeeded" | "Failed") => Err(ApiError::bad_request(format!(
                "cannot {what} a container in a completed pod; current phase is {phase}"
            ))),
            _ => Ok(()),
        }
    }
}

/// What there is, piece by piece. An error in the middle ends the text: its head has been sent.
fn reading(reader: Reader) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        let step = tokio::task::spawn_blocking(move || {
            let mut chunk = Vec::new();
            let more = reader.read(&mut chunk)?;
            if !more {
                reader.finish(&mut chunk);
            }
            Ok::<_, std::io::Error>((chunk, more.then_some(reader)))
        });
        match step.await {
            Ok(Ok((chunk, next))) => Some((Ok(Bytes::from(chunk)), next)),
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot read a log");
                None
            }
            Err(_) => None,
        }
    })
}

/// What there is and what comes, until the container has ended.
fn following(follow: Follow, source: LogSource) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(Some((follow, source)), |state| async move {
        let (mut follow, mut source) = state?;
        tokio::select! {
            biased;
            next = follow.next() => match next {
                Ok(Some(chunk)) => Some((Ok(Bytes::from(chunk)), Some((follow, source)))),
                Ok(None) => None,
                Err(error) => {
                    tracing::warn!(%error, "cannot follow a log");
                    None
                }
            },
            () = &mut source.ended => {
                let rest = tokio::task::spawn_blocking(move || follow.rest()).await;
                let rest = rest.ok().and_then(Result::ok).filter(|rest| !rest.is_empty())?;
                Some((Ok(Bytes::from(rest)), None))
            }
        }
    })
}
