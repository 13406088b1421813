//! `berth wait`, and waiting for the other verbs.

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::Value;
use tokio::time::Instant;

use super::client::{self, Events};
use super::failure::{self, Reported, Usage};
use super::{output, resource};
use crate::store::Kind;

/// Words of `berth wait`.
#[derive(Args, Debug)]
pub struct WaitArgs {
    /// KIND NAME... or KIND/NAME...
    #[arg(required = true, value_name = "KIND [NAME...]")]
    what: Vec<String>,
    /// What to wait for: condition=Ready[=False], delete, create, or jsonpath={.status.phase}=Running
    #[arg(long = "for", value_name = "WHAT", value_parser = goal)]
    goal: Goal,
    #[command(flatten)]
    namespace: resource::Namespace,
    /// Give up after this time, as in 30s or 2m
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    timeout: Duration,
    /// All objects of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// Only objects with these labels, as in app=web,tier!=db
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
}

/// A state to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Goal {
    Condition {
        kind: String,
        status: String,
    },
    Delete,
    Create,
    /// A value at a path; any value if none is given.
    Path {
        path: Vec<String>,
        value: Option<String>,
    },
}

fn goal(text: &str) -> Result<Goal, String> {
    match text.split_once('=') {
        None if text == "delete" => Ok(Goal::Delete),
        None if text == "create" => Ok(Goal::Create),
        Some(("condition", rest)) => {
            let (kind, status) = rest.split_once('=').unwrap_or((rest, "true"));
            Ok(Goal::Condition { kind: kind.to_owned(), status: status.to_lowercase() })
        }
        Some(("jsonpath", rest)) => {
            let rest = rest.trim_matches(['\'', '"']);
            let (path, value) = match rest.split_once('}') {
                Some((path, value)) => (path.trim_start_matches('{'), value.strip_prefix('=')),
                None => rest.split_once('=').map_or((rest, None), |(path, value)| (path, Some(value))),
            };
            let words =
                path.split(['.', '[', ']']).filter(|word| !word.is_empty()).map(str::to_owned).collect();
            Ok(Goal::Path { path: words, value: value.map(str::to_owned) })
        }
        _ => Err("want condition=NAME[=VALUE], delete, create or jsonpath={.PATH}=VALUE".to_owned()),
    }
}

/// A duration as in `90s`, `5m` or `1h30m`; a bare number is seconds.
///
/// # Errors
/// When it is none, or negative.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let parsed: jiff::SignedDuration =
        text.parse().map_err(|_| "want a duration such as 30s, 5m or 1h30m".to_owned())?;
    Duration::try_from(parsed).map_err(|_| "a duration cannot be negative".to_owned())
}

/// The result of a future, or none if a deadline passes first.
pub async fn before<T>(
    deadline: Option<Instant>,
    future: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<Option<T>> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, future).await.ok().transpose(),
        None => future.await.map(Some),
    }
}

/// Waits for objects.
pub async fn run(client: &kube::Client, args: &WaitArgs) -> anyhow::Result<ExitCode> {
    let deadline = Instant::now() + args.timeout;
    let mut failed = false;
    for (kind, name) in objects(client, args).await? {
        let title = format!("{}/{name}", resource::typed(kind));
        match before(Some(deadline), reach(client, args, kind, &name)).await {
            Ok(Some(())) => output::print(&format!("{title} condition met\n"))?,
            Ok(None) => {
                eprintln!("berth: timed out waiting for the condition on {}/{name}", kind.plural());
                failed = true;
            }
            Err(error) if error.downcast_ref::<kube::Error>().is_some() => {
                failure::report(&error);
                failed = true;
            }
            Err(error) => return Err(error),
        }
    }
    if failed { Err(Reported.into()) } else { Ok(ExitCode::SUCCESS) }
}

async fn objects(client: &kube::Client, args: &WaitArgs) -> anyhow::Result<Vec<(Kind, String)>> {
    let mut objects = Vec::new();
    for target in resource::targets(&args.what)? {
        match target.name {
            Some(name) => objects.push((target.kind, name)),
            None if args.all || args.selector.is_some() => {
                let query: Vec<(&str, &str)> =
                    args.selector.iter().map(|s| ("labelSelector", s.as_str())).collect();
                let path = resource::path(target.kind, Some(args.namespace.name()), None);
                let list: Value =
                    client::get(client, &resource::with_query(&path, &query), "application/json").await?;
                let names = list["items"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|o| o["metadata"]["name"].as_str());
                objects.extend(names.map(|name| (target.kind, name.to_owned())));
            }
            None => bail!(Usage("name the objects to wait for, or give --all or a selector".into())),
        }
    }
    if objects.is_empty() && args.goal != Goal::Delete {
        bail!("no matching resources found");
    }
    Ok(objects)
}

async fn reach(client: &kube::Client, args: &WaitArgs, kind: Kind, name: &str) -> anyhow::Result<()> {
    let namespace = args.namespace.name();
    match &args.goal {
        Goal::Delete => until_gone(client, kind, namespace, name, "").await,
        goal => {
            let missing_is_an_error = *goal != Goal::Create;
            until(client, kind, namespace, name, |object| match object {
                Some(object) => Ok(met(goal, object)),
                None if missing_is_an_error => {
                    bail!("{} \"{name}\" not found", kind.plural())
                }
                None => Ok(false),
            })
            .await
        }
    }
}

fn met(goal: &Goal, object: &Value) -> bool {
    match goal {
        Goal::Create => true,
        Goal::Delete => false,
        Goal::Condition { kind, status } => {
            let conditions = object["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|c| {
                let text = |field: &str| c[field].as_str().unwrap_or_default().to_lowercase();
                text("type") == kind.to_lowercase() && text("status") == *status
            })
        }
        Goal::Path { path, value } => {
            let found = path.iter().try_fold(object, |at, word| match word.parse::<usize>() {
                Ok(index) if at.is_array() => at.get(index),
                _ => at.get(word),
            });
            match (found, value) {
                (None | Some(Value::Null), _) => false,
                (Some(_), None) => true,
                (Some(Value::String(text)), Some(value)) => text == value,
                (Some(other), Some(value)) => serde_json::from_str::<Value>(value).is_ok_and(|v| v == *other),
            }
        }
    }
}

/// Waits until an object is gone, or has been replaced by another of its name when its uid is known.
pub async fn until_gone(
    client: &kube::Client,
    kind: Kind,
    namespace: &str,
    name: &str,
    uid: &str,
) -> anyhow::Result<()> {
    until(client, kind, namespace, name, |object| {
        Ok(object.is_none_or(|object| !uid.is_empty() && object["metadata"]["uid"].as_str() != Some(uid)))
    })
    .await
}

/// Waits until a test of the object (none while it does not exist) is true.
///
/// # Errors
/// Those of the test, and when the agent does not answer.
pub async fn until(
    client: &kube::Client,
    kind: Kind,
    namespace: &str,
    name: &str,
    test: impl Fn(Option<&Value>) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let collection = resource::path(kind, Some(namespace), None);
    let selector = format!("metadata.name={name}");
    loop {
        let path = resource::with_query(&collection, &[("fieldSelector", &selector)]);
        let list: Value = client::get(client, &path, "application/json").await?;
        if test(list["items"].as_array().and_then(|items| items.first()))? {
            return Ok(());
        }
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let query = [("fieldSelector", selector.as_str()), ("watch", "1"), ("resourceVersion", version)];
        let mut events =
            Events::open(client, &resource::with_query(&collection, &query), "application/json").await?;
        loop {
            match events.next().await {
                Ok(Some((change, object))) => {
                    if test(Some(&object).filter(|_| change != "DELETED"))? {
                        return Ok(());
                    }
                }
                // The watch has ended or fallen behind: look again.
                Ok(None) => break,
                Err(error) if client::is_gone(&error) => break,
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn goals() {
        let pod = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "podIPs": [{"ip": "10.0.0.1"}], "n": 3}});
        for good in [
            "condition=Ready",
            "condition=ready=true",
            "jsonpath={.status.phase}=Running",
            "create",
            "jsonpath={.status.podIPs[0].ip}=10.0.0.1",
            "jsonpath='{.status.n}'=3",
            "jsonpath=.status.phase=Running",
            "jsonpath={.status.phase}",
        ] {
            assert!(met(&goal(good).unwrap(), &pod), "{good}");
        }
        for bad in [
            "condition=Ready=False",
            "condition=Initialized",
            "jsonpath={.status.phase}=Failed",
            "delete",
            "jsonpath={.status.podIPs[1].ip}",
        ] {
            assert!(!met(&goal(bad).unwrap(), &pod), "{bad}");
        }
        assert!(goal("what").is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert!(duration("-5s").is_err());
        assert!(duration("soon").is_err());
    }
}
