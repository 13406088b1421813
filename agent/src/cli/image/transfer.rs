//! `berth image pull`, `load` and `save`.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use berth_image::{Credentials, LoadOptions, PullOptions, Store};
use clap::Args;

use super::super::failure::Usage;
use super::super::output;
use super::{progress, short};
use crate::config;

/// Words of `berth image pull`.
#[derive(Args, Debug)]
pub struct PullArgs {
    /// Image, as in nginx:1.27 or registry.example/team/app@sha256:...
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// User name and password for the registry
    #[arg(long, value_name = "USER:PASSWORD", env = "BERTH_REGISTRY_CREDENTIALS", hide_env_values = true)]
    creds: Option<String>,
    /// Credentials as `docker login` and `podman login` write them
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE", conflicts_with = "creds")]
    authfile: Option<PathBuf>,
    /// Folder with a folder HOST[:PORT] per registry that holds its certificate authorities (*.crt); may be given more than once
    #[arg(long, value_name = "DIR", default_values_os_t = config::default_certs_dirs())]
    certs_dir: Vec<PathBuf>,
    /// Registry (host, host:port or CIDR) that is spoken to over plain http; loopback always is
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
    /// Print only the images' ids
    #[arg(short, long)]
    quiet: bool,
}

/// Words of `berth image load`.
#[derive(Args, Debug)]
pub struct LoadArgs {
    /// Archive (tar, also compressed with gzip or zstd), folder with an OCI layout, or - for standard input
    #[arg(value_name = "FILE|DIR|-", default_value = "-")]
    file: PathBuf,
    /// The archive, as docker has it
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    input: Option<PathBuf>,
    /// Print only the images' names
    #[arg(short, long)]
    quiet: bool,
}

/// Words of `berth image save`.
#[derive(Args, Debug)]
pub struct SaveArgs {
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// The archive; standard output if not given
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Pulls images one after another.
pub fn pull(store: &Store, args: &PullArgs) -> anyhow::Result<()> {
    let given = match args.creds.as_deref().map(|creds| creds.split_once(':')) {
        None => None,
        Some(Some((user, password))) => Some((user.to_owned(), password.to_owned())),
        Some(None) => bail!(Usage("--creds wants USER:PASSWORD".into())),
    };
    let known = match &args.authfile {
        Some(file) => Credentials::read(file)?,
        None if given.is_none() => Credentials::read_if_there(Path::new(config::DEFAULT_AUTH_FILE))?,
        None => Credentials::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for reference in &args.images {
        let options = PullOptions {
            auth: None,
            insecure_registries: args.insecure_registry.clone(),
            certs_dirs: args.certs_dir.clone(),
            progress: (!args.quiet).then(progress::reporter),
        };
        let ways = given.iter().cloned().chain(known.for_image(reference)).map(Some);
        let image = runtime.block_on(store.pull_as(reference, ways, &options))?;
        let name = image.repo_tags.first().or(image.repo_digests.first()).unwrap_or(reference);
        let text = if args.quiet {
            format!("{}\n", image.id)
        } else {
            format!("Pulled {name} ({})\n", short(&image.id))
        };
        output::print(&text)?;
    }
    Ok(())
}

/// Loads what an archive holds.
pub fn load(store: &Store, args: &LoadArgs) -> anyhow::Result<()> {
    let file = args.input.as_ref().unwrap_or(&args.file);
    let options = LoadOptions { progress: (!args.quiet).then(progress::reporter) };
    let images = if file.as_os_str() == "-" {
        if io::stdin().is_terminal() {
            bail!(Usage("name the archive, or pipe it in".into()));
        }
        store.load(io::stdin().lock(), &options)?
    } else {
        store.load_path(file, &options)?
    };
    for image in images {
        let names = if image.repo_tags.is_empty() { vec![image.id.clone()] } else { image.repo_tags.clone() };
        for name in names {
            let text = if args.quiet {
                format!("{name}\n")
            } else {
                format!("Loaded {name} ({})\n", short(&image.id))
            };
            output::print(&text)?;
        }
    }
    Ok(())
}

/// Writes an archive; one that could not be finished is not left behind.
pub fn save(store: &Store, args: &SaveArgs) -> anyhow::Result<()> {
    let references: Vec<&str> = args.images.iter().map(String::as_str).collect();
    let Some(path) = &args.output else {
        if io::stdout().is_terminal() {
            bail!(Usage(
                "an archive is not written to a terminal; give -o FILE or redirect the output".into()
            ));
        }
        let mut out = io::BufWriter::new(io::stdout().lock());
        store.save(&references, &mut out)?;
        out.flush()?;
        return Ok(());
    };
    let result = save_to(store, &references, path);
    if result.is_err() && path.is_file() {
        let _ = std::fs::remove_file(path);
    }
    result
}

fn save_to(store: &Store, references: &[&str], path: &Path) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut out = io::BufWriter::new(file);
    store.save(references, &mut out)?;
    out.flush().with_context(|| format!("cannot write {}", path.display()))
}
