//! `berth apply`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde_json::Value;

use super::failure::{Reported, Usage};
use super::files::{self, Files, Item};
use super::{client, output, resource};

/// Words of `berth apply`.
#[derive(Args, Debug)]
pub struct ApplyArgs {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    namespace: resource::Namespace,
    /// Only say what would be done, after the agent has checked it
    #[arg(long)]
    dry_run: bool,
}

/// Creates or updates every object of the files, or nothing when one of them is wrong.
pub async fn run(client: &kube::Client, args: &ApplyArgs) -> anyhow::Result<ExitCode> {
    if args.files.filename.is_empty() {
        bail!(Usage("say what to apply: -f FILE, -f DIR or -f -".into()));
    }
    let manifests = files::read(&args.files.filename)?;
    if !manifests.errors.is_empty() {
        for error in &manifests.errors {
            eprintln!("{error}");
        }
        bail!(
            "nothing was applied: {} in the manifests",
            super::check::count(manifests.errors.len(), "error")
        );
    }
    if manifests.objects.is_empty() {
        bail!("no objects to apply");
    }
    let namespace = args.namespace.namespace.as_deref();
    let items: Vec<Item> = manifests
        .objects
        .iter()
        .map(|object| Item::new(&object.value, namespace))
        .collect::<Result<_, _>>()?;
    let mut failed = false;
    for item in &items {
        match apply(client, item, args.dry_run).await {
            Ok((title, word)) => {
                let note = if args.dry_run { " (dry run)" } else { "" };
                output::print(&format!("{title} {word}{note}\n"))?;
            }
            Err(error) => {
                failed = true;
                super::failure::report(&error.context(item.title()));
            }
        }
    }
    if failed { Err(Reported.into()) } else { Ok(ExitCode::SUCCESS) }
}

/// Brings one object to the agent; gives its name and what was done.
async fn apply(client: &kube::Client, item: &Item, dry_run: bool) -> anyhow::Result<(String, &'static str)> {
    let query: &[(&str, &str)] = if dry_run { &[("dryRun", "All")] } else { &[] };
    let path = |name| resource::with_query(&resource::path(item.kind, Some(&item.namespace), name), query);
    let current = if item.name.is_empty() {
        None
    } else {
        let plain = resource::path(item.kind, Some(&item.namespace), Some(&item.name));
        client::find::<Value>(client, &plain).await?
    };
    let Some(current) = current else {
        let made = client::send_json(client, "POST", &path(None), "application/json", &item.value).await?;
        let name = made["metadata"]["name"].as_str().unwrap_or(&item.name);
        return Ok((format!("{}/{name}", resource::typed(item.kind)), "created"));
    };
    let mut wanted = item.value.clone();
    // The object keeps its identity; what else the manifest does not name is the agent's to keep.
    for field in ["uid", "creationTimestamp"] {
        wanted["metadata"][field] = current["metadata"][field].clone();
    }
    let updated =
        client::send_json(client, "PUT", &path(Some(&item.name)), "application/json", &wanted).await?;
    let word = if essence(&updated) == essence(&current) { "unchanged" } else { "configured" };
    Ok((item.title(), word))
}

/// An object without what the agent writes into it all the time.
fn essence(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
        metadata.remove("generation");
        metadata.remove("managedFields");
    }
    object
}
