//! `berth-oci`: the command line of an OCI runtime, for podman, containerd and whoever else calls one.
//!
//! Words and flags are runc's, which are what callers expect. The tour: `args` has the words, `exec` and `update` turn
//! their flags into a process and limits, `show` prints. What is done is in [`berth_runtime::oci`]; what executes a
//! container's program is left to the small program that this one carries, see [`berth_runtime::oci::Request`].

mod args;
mod exec;
mod show;
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
    let log = log(&cli);
    let mut runtime = Runtime::new(&cli.root);
    let result = match request(&mut runtime, &cli) {
        Ok(Some(request)) => hand_on(&request),
        Ok(None) => run(&mut runtime, &cli),
        Err(error) => Err(error),
    };
    runtime.take_warnings().iter().for_each(|warning| log.warning(warning));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log.error(&one_line(error.as_ref()));
            ExitCode::from(failure(&cli.command))
        }
    }
}

fn log(cli: &Cli) -> Log {
    Log::new(cli.log.clone(), cli.log_format.into(), cli.debug)
}

/// The exit code for an error.
fn failure(command: &Command) -> u8 {
    if matches!(command, Command::Exec(_)) { EXEC_FAILED } else { 1 }
}

/// What is asked for, if it is for the small program: whatever makes a process in a container, and what it also does when the
/// words are of the usual kind and do not come here, see [`berth_entry`].
fn request(runtime: &mut Runtime, cli: &Cli) -> Result<Option<Request>> {
    let driver = if cli.systemd_cgroup { Driver::Systemd } else { Driver::Cgroupfs };
    let deed = match &cli.command {
        Command::Create(args) => Deed::Create(create_options(args, driver)?),
        Command::Run(args) => Deed::Run(RunOptions {
            create: create_options(&args.create, driver)?,
            detach: args.detach,
            keep: args.keep,
        }),
        Command::Start { id } => Deed::Start { id: id.clone() },
        Command::State { id } => Deed::State { id: id.clone() },
        Command::Kill { all, id, signal } => Deed::Kill { id: id.clone(), signal: signal.clone(), all: *all },
        Command::Delete { force, id } => Deed::Delete { id: id.clone(), force: *force },
        Command::Exec(args) => exec::deed(runtime, args)?,
        _ => return Ok(None),
    };
    Ok(Some(Request { root: cli.root.clone(), log: log(cli), failure: failure(&cli.command), deed }))
}

/// Leaves it to the small program, which takes the place of this one: nobody can overwrite that (CVE-2019-5736).
fn hand_on(request: &Request) -> Result<u8> {
    let program = Program::kept_in(&request.root, shim_program::BYTES, shim_program::FILE)
        .context("protect the own program from the container")?;
    let (_file, (variable, number)) = request.pack().context("hand on the request")?;
    let words = std::env::args_os();
    Err(program.execute(words, (variable, &number))).context("execute the program that makes containers")
}

fn run(runtime: &mut Runtime, cli: &Cli) -> Result<u8> {
    match &cli.command {
        // Somebody else's work, see `request`.
        Command::Create(_) | Command::Run(_) | Command::Exec(_) => {}
        Command::Start { .. } | Command::State { .. } | Command::Kill { .. } | Command::Delete { .. } => {}
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
    Ok(CreateOptions {
        id: args.id.clone(),
        bundle: args.bundle.clone().unwrap_or_else(|| PathBuf::from(".")),
        pid_file: args.pid_file.clone(),
        console_socket: args.console_socket.clone(),
        pidfd_socket: args.pidfd_socket.clone(),
        preserve_fds: args.preserve_fds,
        cgroup_driver,
        no_pivot: args.no_pivot,
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const GLOBAL: &[&str] = &[
        "--root /r",
        "--root=r/s",
        "--root=a=b",
        "--root",
        "--log l",
        "--log=/l",
        "--log-format json",
        "--log-format=text",
        "--log-format xml",
        "--debug",
        "--debug=1",
        "--systemd-cgroup",
        "--rootless auto",
        "--rootless=true",
        "--rootless maybe",
        "--help",
        "--",
        "-d",
        "--version",
    ];
    const VERBS: &[&str] = &["create", "run", "start", "state", "kill", "delete", "list", "creat", "exec"];
    const LOCAL: &[&str] = &[
        "--bundle b",
        "--bundle=/b",
        "-b b",
        "-bb",
        "-b=b",
        "--console-socket s",
        "--pidfd-socket=p",
        "--pid-file /f",
        "--pid-file=",
        "--no-new-keyring",
        "--preserve-fds 3",
        "--preserve-fds=007",
        "--preserve-fds x",
        "--preserve-fds=-1",
        "--preserve-fds 99999",
        "--preserve-fds 4294967296",
        "--detach",
        "-d",
        "--keep",
        "--no-subreaper",
        "--all",
        "-a",
        "--force",
        "-f",
        "-fa",
        "--no-pivot",
        "--root /x",
        "--forc",
        "--",
        "-",
        "-h",
    ];
    const PLACES: &[&str] = &["c", "c1 KILL", "c 9", "c -9", "c x y", "", "run", "help", "\u{e4}"];

    fn line() -> impl Strategy<Value = Vec<String>> {
        (
            vec(select(GLOBAL), 0..3),
            select(VERBS),
            vec(select(LOCAL), 0..3),
            select(PLACES),
            vec(select(LOCAL), 0..2),
        )
            .prop_map(|(global, verb, before, places, after)| {
                let words = global.iter().chain([&verb]).chain(&before).chain([&places]).chain(&after);
                words.flat_map(|part| part.split(' ')).filter(|w| !w.is_empty()).map(str::to_owned).collect()
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn words_that_are_handed_on_mean_the_same_to_the_command_line(line in line()) {
            let words = || line.iter().map(OsString::from);
            if let Some(handed_on) = Request::read(words()) {
                let cli = Cli::try_parse_from(std::iter::once(OsString::from("berth-oci")).chain(words()));
                let cli = cli.map_err(|e| TestCaseError::fail(format!("{line:?}: {e}")))?;
                let request = request(&mut Runtime::new(&cli.root), &cli).unwrap();
                prop_assert_eq!(format!("{:?}", Some(handed_on)), format!("{request:?}"));
            }
        }
    }

    #[test]
    fn the_folder_of_records_is_the_same_for_all() {
        let cli = Cli::try_parse_from(["berth-oci", "list"]).unwrap();
        let read = Request::read(["start", "c"].map(OsString::from).into_iter()).unwrap();
        assert_eq!(cli.root, read.root);
    }
}
