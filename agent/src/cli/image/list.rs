//! `berth image list` and `inspect`.

use anyhow::bail;
use berth_image::{Image, Store};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::super::output::{self, Columns};
use super::short;
use crate::api::table::human;

/// Words of `berth image list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only these images
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Format
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// JSON
    Json,
    /// Names only
    Name,
}

/// Words of `berth image inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Name, digest or id
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// Prints the images, newest first.
pub fn run(store: &Store, args: &ListArgs) -> anyhow::Result<()> {
    let images = if args.images.is_empty() { store.list()? } else { find(store, &args.images)? };
    let text = match args.output {
        _ if args.quiet => images.iter().map(|image| format!("{}\n", short(&image.id))).collect(),
        Some(Format::Json) => {
            let all: Vec<Value> = images.iter().map(facts).collect();
            format!("{}\n", serde_json::to_string_pretty(&all)?)
        }
        Some(Format::Name) => {
            images.iter().flat_map(|i| &i.repo_tags).map(|name| format!("{name}\n")).collect()
        }
        None => table(&images),
    };
    output::print(&text)?;
    Ok(())
}

fn table(images: &[Image]) -> String {
    let heading = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for image in images {
        let created = match image.created {
            Some(time) => format!("{} ago", human(jiff::Timestamp::now().as_second() - time.as_second())),
            None => "<unknown>".to_owned(),
        };
        for (repository, tag) in names(image) {
            rows.push(vec![
                repository,
                tag,
                short(&image.id).to_owned(),
                created.clone(),
                output::bytes(image.size),
            ]);
        }
    }
    Columns::new().format(&rows)
}

/// Repository and tag of each name of an image.
fn names(image: &Image) -> Vec<(String, String)> {
    let none = || "<none>".to_owned();
    if !image.repo_tags.is_empty() {
        let split = |name: &String| match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository.to_owned(), tag.to_owned()),
            _ => (name.clone(), none()),
        };
        return image.repo_tags.iter().map(split).collect();
    }
    let repository = image.repo_digests.first().and_then(|name| name.split_once('@'));
    vec![(repository.map_or_else(none, |(repository, _)| repository.to_owned()), none())]
}

/// Prints everything about some images.
pub fn inspect(store: &Store, args: &InspectArgs) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for image in find(store, &args.images)? {
        let mut value = facts(&image);
        value["document"] = store.raw_config(&image.id)?;
        all.push(value);
    }
    output::print(&format!("{}\n", serde_json::to_string_pretty(&all)?))?;
    Ok(())
}

fn find(store: &Store, references: &[String]) -> anyhow::Result<Vec<Image>> {
    let mut found = Vec::new();
    for reference in references {
        match store.get(reference)? {
            Some(image) => found.push(image),
            None => bail!("no image {reference} in the store (\"berth image list\" shows what there is)"),
        }
    }
    Ok(found)
}

fn facts(image: &Image) -> Value {
    json!({
        "id": image.id, "repoTags": image.repo_tags, "repoDigests": image.repo_digests, "size": image.size,
        "created": image.created, "added": image.added, "os": image.os, "architecture": image.architecture,
        "manifest": image.manifest, "config": image.config, "layers": image.layers,
    })
}
