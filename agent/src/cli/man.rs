//! `berth man`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};

use super::{Cli, output};

/// Words of `berth man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// Write a page for each verb into this folder, such as /usr/local/share/man/man1, instead of printing berth(1)
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints or writes manual pages.
pub fn run(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let command = Cli::command();
    match &args.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("make the folder {}", dir.display()))?;
            clap_mangen::generate_to(command, dir)
                .with_context(|| format!("write manual pages into {}", dir.display()))?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page).context("write the manual page")?;
            output::print(&String::from_utf8_lossy(&page))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
