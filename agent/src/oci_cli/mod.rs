//! `berth-oci`: the command line of an OCI runtime, for podman, containerd and whoever else calls one.
//!
//! Words and flags are runc's, which are what callers expect. The tour: `args` has the words, `log` tells of errors in the
//! form that callers read, `exec` and `update` turn their flags into a process and limits, `show` prints. What is done
//! is in [`berth_runtime::oci`]. No thread is started: the runtime forks.

mod args;
mod exec;
mod log;
mod show;
mod signal;
mod update;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use berth_runtime::cgroup::Driver;
use berth_runtime::oci::{CreateOptions, RunOptions, Runtime};
use berth_runtime::shim::Program;
use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command, CreateArgs};
use log::Log;

/// What `exec` answers when it failed itself, as runc does: 1 could be the program's.
const EXEC_FAILED: u8 = 255;

/// Does what the words after the program's name say.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let words = std::iter::once(OsString::from("berth-oci")).chain(args);
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that has left does not want the help text any more.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            };
        }
    };
    let log = Log::new(cli.log.clone(), cli.log_format, cli.debug);
    let failure = if matches!(cli.command, Command::Exec(_)) { EXEC_FAILED } else { 1 };
    let mut runtime = Runtime::new(&cli.root);
    let result = protect(&cli.command).and_then(|()| run(&mut runtime, &cli));
    runtime.take_warnings().iter().for_each(|warning| log.warning(warning));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log.error(&text(&error));
            ExitCode::from(failure)
        }
    }
}

/// What executes a container's program itself runs from where that cannot overwrite it (CVE-2019-5736).
fn protect(command: &Command) -> Result<()> {
    match command {
        Command::Create(_) | Command::Run(_) | Command::Exec(_) => {
            Program::protect_own().context("protect the own program from the container")
        }
        _ => Ok(()),
    }
}

/// The error in one line, each cause once: most print their own.
fn text(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in error.chain().map(ToString::to_string) {
        if !parts.last().is_some_and(|last| last.contains(&part)) {
            parts.push(part);
        }
    }
    parts.join(": ")
}

fn run(runtime: &mut Runtime, cli: &Cli) -> Result<u8> {
    let driver = if cli.systemd_cgroup { Driver::Systemd } else { Driver::Cgroupfs };
    match &cli.command {
        Command::Create(args) => runtime.create(&create_options(args, driver)?)?,
        Command::Run(args) => {
            let create = create_options(&args.create, driver)?;
            return Ok(runtime.run(&RunOptions { create, detach: args.detach, keep: args.keep })?);
        }
        Command::Start { id } => runtime.start(id)?,
        Command::State { id } => show::state(&runtime.state(id)?)?,
        Command::Kill { all, id, signal } => runtime.kill(id, signal::number(signal)?, *all)?,
        Command::Delete { force, id } => runtime.delete(id, *force)?,
        Command::Exec(args) => return exec::run(runtime, args),
        Command::Ps { format, id, options } => show::processes(&runtime.processes(id)?, format, options)?,
        Command::Pause { id } => runtime.pause(id)?,
        Command::Resume { id } => runtime.resume(id)?,
        Command::Update(args) => runtime.update(&args.id, &update::resources(args)?)?,
        Command::Events { stats, interval, id } => show::events(runtime, id, *stats, interval)?,
        Command::Features => show::features()?,
        Command::Spec { bundle, rootless } => write_template(bundle.as_deref(), *rootless)?,
        Command::List { format, quiet } => show::list(&runtime.list()?, format, *quiet)?,
        Command::Checkpoint { .. } => bail!("checkpoint: checkpoints are not supported"),
        Command::Restore { .. } => bail!("restore: checkpoints are not supported"),
    }
    Ok(0)
}

fn create_options(args: &CreateArgs, cgroup_driver: Driver) -> Result<CreateOptions> {
    if args.no_pivot {
        bail!("--no-pivot: a root that is not changed by pivot_root can be left; it is not supported");
    }
    let bundle = match &args.bundle {
        Some(path) => std::fs::canonicalize(path).with_context(|| format!("resolve {}", path.display()))?,
        None => std::env::current_dir().context("find the current folder")?,
    };
    // A program of the host that a hook starts finds itself there, as with other runtimes.
    let before = std::env::current_dir();
    std::env::set_current_dir(&bundle).with_context(|| format!("enter {}", bundle.display()))?;
    let absolute = |path: &Option<PathBuf>| {
        path.as_ref().map(|p| before.as_ref().map_or_else(|_| p.clone(), |dir| dir.join(p)))
    };
    Ok(CreateOptions {
        id: args.id.clone(),
        pid_file: absolute(&args.pid_file),
        console_socket: absolute(&args.console_socket),
        preserve_fds: args.preserve_fds,
        cgroup_driver,
        bundle,
    })
}

fn write_template(bundle: Option<&Path>, rootless: bool) -> Result<()> {
    let path = bundle.unwrap_or(Path::new(".")).join("config.json");
    let user = rootless.then(|| (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
    let text = serde_json::to_string_pretty(&berth_runtime::oci::template(user))?;
    let mut file = std::fs::File::create_new(&path).with_context(|| format!("create {}", path.display()))?;
    std::io::Write::write_all(&mut file, format!("{text}\n").as_bytes())
        .with_context(|| format!("write {}", path.display()))
}
