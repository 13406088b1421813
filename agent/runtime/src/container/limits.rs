//! Resource limits and the out-of-memory score of a process.

use std::io;
use std::path::Path;

use nix::sys::resource::Resource;
use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process};

use super::{Error, procfs};
use crate::sys::process::prlimit;

/// Sets the rlimits of a process; 0 is the calling one. A limit that may not be raised stays where it is, with a
/// warning.
pub fn set_rlimits(pid: i32, process: &Process, warn: &mut dyn FnMut(String)) -> Result<(), Error> {
    let limits = process.rlimits().as_deref().unwrap_or_default();
    for (at, limit) in limits.iter().enumerate() {
        if limits[..at].iter().any(|l| l.typ() == limit.typ()) {
            return Err(Error::spec(format!("process.rlimits[{}]", limit.typ()), "it is listed twice"));
        }
        set_rlimit(pid, limit, warn)?;
    }
    Ok(())
}

fn set_rlimit(pid: i32, limit: &PosixRlimit, warn: &mut dyn FnMut(String)) -> Result<(), Error> {
    let failed = |e: io::Error| Error::sys("set limit", limit.typ().to_string(), e);
    let resource = resource(limit.typ()) as u32;
    if limit.soft() > limit.hard() {
        return Err(Error::spec(format!("process.rlimits[{}]", limit.typ()), "soft is above hard"));
    }
    match prlimit(pid, resource, Some((limit.soft(), limit.hard()))) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let (_, hard) = prlimit(pid, resource, None).map_err(failed)?;
            let hard = hard.min(limit.hard());
            prlimit(pid, resource, Some((limit.soft().min(hard), hard))).map_err(failed)?;
            warn(format!(
                "{} stays at {hard}: this machine does not let it be raised to {}",
                limit.typ(),
                limit.hard()
            ));
            Ok(())
        }
        Err(e) => Err(failed(e)),
    }
}

fn resource(kind: PosixRlimitType) -> Resource {
    use PosixRlimitType as T;
    match kind {
        T::RlimitCpu => Resource::RLIMIT_CPU,
        T::RlimitFsize => Resource::RLIMIT_FSIZE,
        T::RlimitData => Resource::RLIMIT_DATA,
        T::RlimitStack => Resource::RLIMIT_STACK,
        T::RlimitCore => Resource::RLIMIT_CORE,
        T::RlimitRss => Resource::RLIMIT_RSS,
        T::RlimitNproc => Resource::RLIMIT_NPROC,
        T::RlimitNofile => Resource::RLIMIT_NOFILE,
        T::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        T::RlimitAs => Resource::RLIMIT_AS,
        T::RlimitLocks => Resource::RLIMIT_LOCKS,
        T::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        T::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        T::RlimitNice => Resource::RLIMIT_NICE,
        T::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        T::RlimitRttime => Resource::RLIMIT_RTTIME,
    }
}

/// Sets how much the out-of-memory killer likes a process; 0 is the calling one. `write` writes below the host's `/proc`. It takes
/// `CAP_SYS_RESOURCE` to make it less likely than before; without that it is a warning.
pub fn set_oom_score(
    pid: i32,
    process: &Process,
    write: procfs::Writer<'_>,
    warn: &mut dyn FnMut(String),
) -> Result<(), Error> {
    let Some(score) = process.oom_score_adj() else { return Ok(()) };
    let process = if pid == 0 { "self".to_owned() } else { pid.to_string() };
    match write(&Path::new(&process).join("oom_score_adj"), score.to_string().as_bytes()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            warn(format!("oom_score_adj {score} was not set: this machine does not let it be lowered"));
            Ok(())
        }
        Err(e) => Err(Error::sys("set", format!("oom_score_adj {score}"), e)),
    }
}
