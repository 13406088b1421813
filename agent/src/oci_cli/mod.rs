//! `berth-oci`: the command line of an OCI runtime, for podman, containerd and whoever else calls one.
//!
//! Words and flags are runc's, which are what callers expect. The tour: `args` has the words, `exec` and `update` turn
//! their flags into a process and limits, `show` prints. What is done is in [`berth_runtime::oci`]; what executes a
//! container's program is left to the small program that this one carries, see [`berth_runtime::oci::Request`].

mod args;
mod exec;
mod show;
mod signal;
mod update;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use berth_runtime::cgroup::{Cgroups, Driver};
use berth_runtime::oci::{CreateOptions, Deed, Log, Request, RunOptions, Runtime, one_line};
use berth_runtime::shim::Program;
use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command, CreateArgs};

use crate::shim_program;

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
    let log = Log::new(cli.log.clone(), cli.log_format.into(), cli.debug);
    let failure = if matches!(cli.command, Command::Exec(_)) { EXEC_FAILED } else { 1 };
    // Before the folder is changed, which options start from.
    let root = std::path::absolute(&cli.root).unwrap_or_else(|_| cli.root.clone());
    let mut runtime = Runtime::new(&root);
    let result = match deed(&mut runtime, &cli) {
        Ok(Some(deed)) => hand_on(&Request { root, log: log.clone(), failure, deed }),
        Ok(None) => run(&mut runtime, &cli),
        Err(error) => Err(error),
    };
    runtime.take_warnings().iter().for_each(|warning| log.warning(warning));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log.error(&one_line(error.as_ref()));
            ExitCode::from(failure)
        }
    }
}

/// What makes a process in a container, if that is asked for.
fn deed(runtime: &mut Runtime, cli: &Cli) -> Result<Option<Deed>> {
    let driver = if cli.systemd_cgroup { Driver::Systemd } else { Driver::Cgroupfs };
    Ok(Some(match &cli.command {
        Command::Create(args) => Deed::Create(create_options(args, driver)?),
        Command::Run(args) => Deed::Run(RunOptions {
            create: create_options(&args.create, driver)?,
            detach: args.detach,
            keep: args.keep,
        }),
        Command::Exec(args) => exec::deed(runtime, args)?,
        _ => return Ok(None),
    }))
}

/// Leaves it to the small program, which takes the place of this one: nobody can overwrite that (CVE-2019-5736).
fn hand_on(request: &Request) -> Result<u8> {
    let program = Program::kept_in(&request.root, shim_program::BYTES, shim_program::DIGEST)
        .context("protect the own program from the container")?;
    let (_file, (variable, number)) = request.pack().context("hand on the request")?;
    let words = std::env::args_os();
    Err(program.execute(words, (variable, &number))).context("execute the program that makes containers")
}

fn run(runtime: &mut Runtime, cli: &Cli) -> Result<u8> {
    match &cli.command {
        // Somebody else's work, see `deed`.
        Command::Create(_) | Command::Run(_) | Command::Exec(_) => {}
        Command::Start { id } => runtime.start(id)?,
        Command::State { id } => show::state(&runtime.state(id)?)?,
        Command::Kill { all, id, signal } => runtime.kill(id, signal::number(signal)?, *all)?,
        Command::Delete { force, id } => runtime.delete(id, *force)?,
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
        pidfd_socket: absolute(&args.pidfd_socket),
        preserve_fds: args.preserve_fds,
        cgroup_driver,
        no_pivot: args.no_pivot,
        bundle,
    })
}

fn write_template(bundle: Option<&Path>, rootless: bool) -> Result<()> {
    let path = bundle.unwrap_or(Path::new(".")).join("config.json");
    let user = rootless.then(|| (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
    let version = Cgroups::detect().context("look for cgroups")?.version();
    let text = serde_json::to_string_pretty(&berth_runtime::oci::template(user, version))?;
    let mut file = std::fs::File::create_new(&path).with_context(|| format!("create {}", path.display()))?;
    std::io::Write::write_all(&mut file, format!("{text}\n").as_bytes())
        .with_context(|| format!("write {}", path.display()))
}
