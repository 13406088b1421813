//! `berth delete`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::failure::{self, Reported, Usage};
use super::files::{self, Files, Item};
use super::{client, output, resource, wait};
use crate::store::Kind;

/// Words of `berth delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// KIND NAME... or KIND/NAME...
    #[arg(value_name = "KIND NAME...")]
    what: Vec<String>,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    namespace: resource::Namespace,
    /// All objects of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// Only objects with these labels, as in app=web,tier!=db
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Seconds that containers have to end by themselves; the pod's own number if not given
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<u64>,
    /// Let containers end by themselves for one second only
    #[arg(long, conflicts_with_all = ["grace_period", "force"])]
    now: bool,
    /// Kill containers at once
    #[arg(long, conflicts_with = "grace_period")]
    force: bool,
    /// Wait until the objects are gone
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    wait: bool,
    /// Give up waiting after this time, as in 30s or 2m
    #[arg(long, value_name = "DURATION", value_parser = wait::duration)]
    timeout: Option<Duration>,
    /// An object that does not exist is no failure
    #[arg(long)]
    ignore_not_found: bool,
}

/// One object to delete.
struct Doomed {
    kind: Kind,
    namespace: String,
    name: String,
}

/// Deletes objects and waits until they are gone.
pub async fn run(client: &kube::Client, args: &DeleteArgs) -> anyhow::Result<ExitCode> {
    let doomed = doomed(client, args).await?;
    let deadline = args.timeout.map(|timeout| tokio::time::Instant::now() + timeout);
    let (mut failed, mut going) = (false, Vec::new());
    for object in &doomed {
        match delete(client, args, object).await {
            Ok(uid) => {
                let how = if args.force { "force deleted" } else { "deleted" };
                let kind = resource::typed(object.kind);
                let place = if object.kind.namespaced() {
                    format!(" from {} namespace", object.namespace)
                } else {
                    String::new()
                };
                output::print(&format!("{kind} \"{}\" {how}{place}\n", object.name))?;
                going.push((object, uid));
            }
            Err(error) if args.ignore_not_found && client::is_not_found(&error) => {}
            Err(error) => {
                failure::report(&error);
                failed = true;
            }
        }
    }
    if doomed.is_empty() {
        output::print("No resources found\n")?;
    }
    for (object, uid) in going.into_iter().filter(|_| args.wait) {
        let gone = wait::until_gone(client, object.kind, &object.namespace, &object.name, &uid);
        let gone = async { gone.await.map(|()| true) };
        if !wait::before(deadline, gone).await?.unwrap_or(false) {
            bail!("timed out waiting for {}/{} to be gone", resource::typed(object.kind), object.name);
        }
    }
    if failed { Err(Reported.into()) } else { Ok(ExitCode::SUCCESS) }
}

/// What the words mean.
async fn doomed(client: &kube::Client, args: &DeleteArgs) -> anyhow::Result<Vec<Doomed>> {
    let (named, in_files) = (!args.what.is_empty(), !args.files.filename.is_empty());
    if named == in_files {
        bail!(Usage("say what to delete: KIND NAME..., or -f FILE".into()));
    }
    if in_files {
        return from_files(args);
    }
    let namespace = args.namespace.name();
    let mut doomed = Vec::new();
    for target in resource::targets(&args.what)? {
        match target.name {
            Some(name) => {
                if args.all || args.selector.is_some() {
                    bail!(Usage("names cannot be combined with --all or a selector".into()));
                }
                doomed.push(Doomed { kind: target.kind, namespace: namespace.to_owned(), name });
            }
            None if args.all || args.selector.is_some() => {
                let query: Vec<(&str, &str)> =
                    args.selector.iter().map(|s| ("labelSelector", s.as_str())).collect();
                let path = resource::with_query(&resource::path(target.kind, Some(namespace), None), &query);
                let list: Value = client::get(client, &path, "application/json").await?;
                doomed.extend(list["items"].as_array().into_iter().flatten().map(|object| Doomed {
                    kind: target.kind,
                    namespace: namespace.to_owned(),
                    name: object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
                }));
            }
            None => bail!(Usage(format!(
                "name the {} to delete, or give --all or a selector",
                target.kind.plural()
            ))),
        }
    }
    Ok(doomed)
}

fn from_files(args: &DeleteArgs) -> anyhow::Result<Vec<Doomed>> {
    let manifests = files::read(&args.files.filename)?;
    for error in &manifests.errors {
        eprintln!("{error}");
    }
    if !manifests.errors.is_empty() {
        bail!(
            "nothing was deleted: {} in the manifests",
            super::check::count(manifests.errors.len(), "error")
        );
    }
    let namespace = args.namespace.namespace.as_deref();
    manifests
        .objects
        .iter()
        .map(|object| {
            let Item { kind, namespace, name, .. } = Item::new(&object.value, namespace)?;
            Ok(Doomed { kind, namespace, name })
        })
        .collect()
}

/// Asks for the deletion; gives the uid of what is going.
async fn delete(client: &kube::Client, args: &DeleteArgs, object: &Doomed) -> anyhow::Result<String> {
    let path = resource::path(object.kind, Some(&object.namespace), Some(&object.name));
    let grace = match (args.force, args.now) {
        (true, _) => Some(0),
        (_, true) => Some(1),
        _ => args.grace_period,
    };
    let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
    if let Some(seconds) = grace {
        options["gracePeriodSeconds"] = json!(seconds);
    }
    let answer = client::send_json(client, "DELETE", &path, "application/json", &options).await?;
    let uid = answer["metadata"]["uid"].as_str().or(answer["details"]["uid"].as_str());
    Ok(uid.unwrap_or_default().to_owned())
}
