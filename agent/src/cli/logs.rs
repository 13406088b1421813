//! `berth logs`.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures::AsyncReadExt as _;
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::resource;
use super::{client, wait};
use crate::store::Kind;

/// Words of `berth logs`.
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// The pod
    pod: String,
    /// The container, as with -c
    #[arg(value_name = "CONTAINER")]
    positional: Option<String>,
    /// The container; the pod's first if not given
    #[arg(short, long, conflicts_with = "positional")]
    container: Option<String>,
    #[command(flatten)]
    namespace: resource::Namespace,
    /// Go on with what is written from now on, until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines; -1 for all
    #[arg(long, value_name = "LINES", default_value_t = -1, allow_negative_numbers = true)]
    tail: i64,
    /// The log of the instance before the present one
    #[arg(short, long)]
    previous: bool,
    /// Only lines newer than this, as in 10s, 5m or 1h30m
    #[arg(long, value_name = "DURATION", value_parser = wait::duration, conflicts_with = "since_time")]
    since: Option<Duration>,
    /// Only lines since this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    since_time: Option<Timestamp>,
    /// Begin each line with its time
    #[arg(long)]
    timestamps: bool,
    /// Stop after so many bytes
    #[arg(long, value_name = "BYTES")]
    limit_bytes: Option<u64>,
}

/// Prints a container's log.
pub async fn run(client: &kube::Client, args: &LogsArgs) -> anyhow::Result<ExitCode> {
    let name = resource::pod_name(&args.pod)?;
    let path = resource::path(Kind::Pod, Some(args.namespace.name()), Some(name));
    let container = match args.container.as_ref().or(args.positional.as_ref()) {
        Some(container) => container.clone(),
        None => default_container(&client::get(client, &path, "application/json").await?),
    };
    let (since, since_time) =
        (args.since.map(|s| s.as_secs().to_string()), args.since_time.map(|t| t.to_string()));
    let (tail, limit) = (args.tail.to_string(), args.limit_bytes.map(|n| n.to_string()));
    let mut query: Vec<(&str, &str)> = vec![("container", &container)];
    let flags = [("follow", args.follow), ("previous", args.previous), ("timestamps", args.timestamps)];
    query.extend(flags.iter().filter(|(_, set)| *set).map(|(name, _)| (*name, "true")));
    query.extend((args.tail >= 0).then_some(("tailLines", tail.as_str())));
    query.extend(since.as_deref().map(|s| ("sinceSeconds", s)));
    query.extend(since_time.as_deref().map(|s| ("sinceTime", s)));
    query.extend(limit.as_deref().map(|s| ("limitBytes", s)));
    let request = Request::get(resource::with_query(&format!("{path}/log"), &query)).body(Vec::new())?;
    let mut body = Box::pin(client.request_stream(request).await?);
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let count = body.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return Ok(ExitCode::SUCCESS);
        };
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()?;
    }
}

/// The container that a person means who names none: the annotated one, else the first. Says which when there are several.
pub fn default_container(pod: &Pod) -> String {
    let empty = Default::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let annotation = "kubectl.kubernetes.io/default-container";
    if let Some(name) = pod.metadata.annotations.as_ref().and_then(|all| all.get(annotation))
        && spec.containers.iter().any(|c| c.name == *name)
    {
        return name.clone();
    }
    let names: Vec<&str> = spec.containers.iter().map(|c| c.name.as_str()).collect();
    let first = names.first().copied().unwrap_or_default();
    if names.len() > 1 {
        eprintln!("Defaulted container \"{first}\" out of: {}", names.join(", "));
    }
    first.to_owned()
}
