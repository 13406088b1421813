//! `berth image`: works on the store's folder itself, so that images can be made ready before the agent runs.

mod import;
mod list;
mod progress;
mod remove;
mod root;
mod transfer;

use std::path::PathBuf;
use std::process::ExitCode;

use berth_image::Store;
use clap::{Args, Subcommand};

/// Words of `berth image`.
#[derive(Args, Debug)]
pub struct ImageArgs {
    /// State folder of the agent [default: that of the agent at --socket, else /var/lib/berth]
    #[arg(long, global = true, value_name = "DIR", env = "BERTH_ROOT")]
    root: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch images from registries
    Pull(transfer::PullArgs),
    /// List the images
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Print all there is to know about images, as JSON
    Inspect(list::InspectArgs),
    /// Give an image a further name
    Tag(TagArgs),
    /// Remove names, and images that have none left
    Rm(remove::RmArgs),
    /// Take images from an archive of `docker save`, `berth image save` or an OCI layout
    Load(transfer::LoadArgs),
    /// Write images to an archive that docker, podman and berth can load
    Save(transfer::SaveArgs),
    /// Make an image of a tar archive of a root file system
    Import(import::ImportArgs),
    /// Remove images that have no name, or with --all those that no pod uses
    Prune(remove::PruneArgs),
}

#[derive(Args, Debug)]
struct TagArgs {
    /// The image: name, digest or id
    source: String,
    /// Its further name
    target: String,
}

/// Does what was asked; `named` says that it was said which agent is meant.
pub fn run(args: ImageArgs, socket: &std::path::Path, named: bool) -> anyhow::Result<ExitCode> {
    let root = root::find(args.root, socket, named)?;
    let store = Store::open(&root.join("images"))?;
    match args.command {
        Command::Pull(args) => transfer::pull(&store, &args)?,
        Command::List(args) => list::run(&store, &args)?,
        Command::Inspect(args) => list::inspect(&store, &args)?,
        Command::Tag(args) => {
            store.tag(&args.source, &args.target)?;
        }
        Command::Rm(args) => return remove::run(&store, &args, &root, socket),
        Command::Load(args) => transfer::load(&store, &args)?,
        Command::Save(args) => transfer::save(&store, &args)?,
        Command::Import(args) => import::run(&store, args)?,
        Command::Prune(args) => remove::prune(&store, &args, &root, socket)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The first 12 digits of an id.
fn short(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..12).unwrap_or(digits)
}
