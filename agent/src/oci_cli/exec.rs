//! `exec`: flags or a file to a process.

use std::collections::HashSet;
use std::fs;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use berth_runtime::container::{SubCgroup, parse_process};
use berth_runtime::oci::{Deed, ExecOptions, Runtime};
use oci_spec::runtime::{Capability, LinuxCapabilities, Process, Spec};

use super::args::ExecArgs;

/// The process that the flags describe, and how it is started.
pub fn deed(runtime: &mut Runtime, args: &ExecArgs) -> Result<Deed> {
    let (process, warning) = match &args.process {
        Some(path) => {
            let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
            (parse_process(&bytes).with_context(|| path.display().to_string())?, None)
        }
        None => of_flags(args, &runtime.config(&args.id)?)?,
    };
    runtime.warn(warning);
    let process = Box::new(with_terminal(process, args));
    let options = ExecOptions {
        detach: args.detach,
        pid_file: args.pid_file.clone(),
        console_socket: args.console_socket.clone(),
        pidfd_socket: args.pidfd_socket.clone(),
        preserve_fds: args.preserve_fds,
        ignore_paused: args.ignore_paused,
        sub_cgroups: sub_cgroups(&args.cgroup)?,
    };
    Ok(Deed::Exec { id: args.id.clone(), process, options })
}

/// `--tty` adds to what a file says.
fn with_terminal(mut process: Process, args: &ExecArgs) -> Process {
    if args.tty {
        process.set_terminal(Some(true));
    }
    process
}

/// The container's own process, changed by the flags, and what could not be done.
fn of_flags(args: &ExecArgs, spec: &Spec) -> Result<(Process, Option<String>)> {
    if args.command.is_empty() {
        bail!("exec: there is neither a command nor --process");
    }
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(args.command.clone())).set_terminal(Some(args.tty)).set_console_size(None);
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(wrong) = args.env.iter().find(|e| !e.contains('=')) {
        bail!("--env: {wrong:?} has no =");
    }
    process.set_env(Some(process.env().iter().flatten().chain(&args.env).cloned().collect()));
    if let Some(user) = &args.user {
        let (uid, gid) = user.split_once(':').map_or((user.as_str(), None), |(u, g)| (u, Some(g)));
        let number =
            |text: &str| text.parse::<u32>().with_context(|| format!("--user: {user:?} is not UID[:GID]"));
        let mut ids = process.user().clone();
        ids.set_uid(number(uid)?).set_username(None);
        if let Some(gid) = gid {
            ids.set_gid(number(gid)?);
        }
        process.set_user(ids);
    }
    if !args.additional_gids.is_empty() {
        let mut user = process.user().clone();
        let gids = user.additional_gids().iter().flatten().chain(&args.additional_gids).copied().collect();
        user.set_additional_gids(Some(gids));
        process.set_user(user);
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if args.apparmor.is_some() {
        process.set_apparmor_profile(args.apparmor.clone());
    }
    if args.process_label.is_some() {
        process.set_selinux_label(args.process_label.clone());
    }
    let warning = add_capabilities(&mut process, &args.cap);
    Ok((process, warning))
}

/// `CAP_KILL` as the specification writes it, or `KILL` as `oci-spec` does, in any case.
fn capability(name: &str) -> Option<Capability> {
    let upper = name.to_ascii_uppercase();
    Capability::from_str(upper.strip_prefix("CAP_").unwrap_or(&upper)).ok()
}

/// Adds to the bounding, effective and permitted sets, as runc does, and to the ambient one if the container has inheritable ones:
/// without those there can be none. What nobody knows is left out, as in a `config.json`; a warning is returned then.
fn add_capabilities(process: &mut Process, names: &[String]) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let (known, unknown): (Vec<_>, Vec<_>) = names.iter().partition(|name| capability(name).is_some());
    let more: HashSet<Capability> = known.into_iter().filter_map(|name| capability(name)).collect();
    let mut sets: LinuxCapabilities = process.capabilities().clone().unwrap_or_default();
    let add = |set: &Option<HashSet<Capability>>| Some(set.iter().flatten().chain(&more).copied().collect());
    let (bounding, effective, permitted) =
        (add(sets.bounding()), add(sets.effective()), add(sets.permitted()));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    if sets.inheritable().as_ref().is_some_and(|set| !set.is_empty()) {
        let ambient = add(sets.ambient());
        sets.set_ambient(ambient);
    }
    process.set_capabilities(Some(sets));
    let list = || unknown.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    (!unknown.is_empty()).then(|| format!("--cap: unknown capabilities are left out: {}", list()))
}

/// Paths below the container's cgroup: one for all controllers, or `controller,controller:path` for each.
fn sub_cgroups(args: &[String]) -> Result<Vec<SubCgroup>> {
    args.iter()
        .map(|arg| {
            let (controllers, path) = match arg.split_once(':') {
                Some((list, path)) => (list.split(',').map(str::to_owned).collect(), path),
                None if args.len() > 1 => bail!("--cgroup: {arg:?} names no controller"),
                None => (Vec::new(), arg.as_str()),
            };
            if path.split('/').any(|part| part == "..") {
                bail!("--cgroup: {path} is not a sub cgroup path");
            }
            Ok(SubCgroup { controllers, path: path.trim_matches('/').to_owned() })
        })
        .collect()
}
