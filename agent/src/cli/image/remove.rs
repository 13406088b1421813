//! `berth image rm` and `prune`.

use std::collections::HashSet;
use std::path::Path;
use std::process::ExitCode;

use berth_image::{Image, Removed, Store};
use clap::Args;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;

use super::super::failure::{self, Reported};
use super::super::{client, output};
use super::short;

/// Words of `berth image rm`.
#[derive(Args, Debug)]
pub struct RmArgs {
    /// Name, digest or id
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Also images that a pod wants, if no container of it has been made yet
    #[arg(short, long)]
    force: bool,
}

/// Words of `berth image prune`.
#[derive(Args, Debug)]
pub struct PruneArgs {
    /// All images that no pod of the running agent uses, not only those without a name
    #[arg(short, long)]
    all: bool,
}

/// The images that may not go.
struct InUse {
    /// Those that the agent's pods want, by every name they go by.
    wanted: HashSet<String>,
    /// Ids of those that containers were made from; the containers may outlive the agent.
    mounted: HashSet<String>,
}

impl InUse {
    /// Looks into the state folder, and asks the agent if it runs.
    fn ask(root: &Path, socket: &Path) -> anyhow::Result<InUse> {
        Ok(InUse { wanted: Self::wanted(socket)?, mounted: crate::node::images_in_use(root) })
    }

    fn wanted(socket: &Path) -> anyhow::Result<HashSet<String>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let pods = runtime.block_on(async {
            client::get::<List<Pod>>(&client::connect(socket), "/api/v1/pods", "application/json").await
        });
        let pods = match pods {
            Ok(pods) => pods.items,
            Err(error) if failure::is_unreachable(&error) => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut names = HashSet::new();
        for pod in pods {
            let spec = pod.spec.unwrap_or_default();
            let images = spec.containers.into_iter().chain(spec.init_containers.into_iter().flatten());
            let ephemeral = spec.ephemeral_containers.into_iter().flatten().map(|c| c.image);
            names.extend(
                images
                    .map(|c| c.image)
                    .chain(ephemeral)
                    .flatten()
                    .filter_map(|image| berth_image::normalize(&image).ok()),
            );
            let status = pod.status.unwrap_or_default();
            let all = status.container_statuses.into_iter().chain(status.init_container_statuses).flatten();
            names.extend(all.map(|c| c.image_id).filter(|id| !id.is_empty()));
        }
        Ok(names)
    }

    fn has(&self, image: &Image) -> bool {
        let names = image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id]);
        self.mounted.contains(&image.id) || names.into_iter().any(|name| self.wanted.contains(name))
    }
}

/// Removes images; goes on after one that cannot be removed.
pub fn run(store: &Store, args: &RmArgs, root: &Path, socket: &Path) -> anyhow::Result<ExitCode> {
    let mut used = InUse::ask(root, socket)?;
    if args.force {
        used.wanted.clear();
    }
    let mut failed = false;
    for reference in &args.images {
        match store.remove(reference, &|image| used.has(image)) {
            Ok(removed) => print(&removed)?,
            Err(error) => {
                failure::report(&error.into());
                failed = true;
            }
        }
    }
    if failed { Err(Reported.into()) } else { Ok(ExitCode::SUCCESS) }
}

/// Removes what is not wanted any more.
pub fn prune(store: &Store, args: &PruneArgs, root: &Path, socket: &Path) -> anyhow::Result<()> {
    let used = InUse::ask(root, socket)?;
    let removed = store.prune(&|image| used.has(image) || (!args.all && !image.repo_tags.is_empty()))?;
    print(&removed)?;
    output::print(&format!("Freed {}\n", output::bytes(removed.freed)))?;
    Ok(())
}

fn print(removed: &Removed) -> std::io::Result<()> {
    let untagged = removed.untagged.iter().map(|name| format!("Untagged {name}\n"));
    let deleted = removed.deleted.iter().map(|id| format!("Deleted {}\n", short(id)));
    output::print(&untagged.chain(deleted).collect::<String>())
}
