//! Resource limits and the out-of-memory score of a process.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process};

use super::Error;

/// Sets the rlimits. A limit that may not be raised stays where it is, with a warning.
pub fn set_rlimits(process: &Process, warn: &mut dyn FnMut(String)) -> Result<(), Error> {
    process.rlimits().iter().flatten().try_for_each(|limit| set_rlimit(limit, warn))
}

fn set_rlimit(limit: &PosixRlimit, warn: &mut dyn FnMut(String)) -> Result<(), Error> {
    let failed = |e: Errno| Error::sys("set limit", limit.typ().to_string(), e.into());
    let resource = resource(limit.typ());
    if limit.soft() > limit.hard() {
        return Err(Error::spec(format!("process.rlimits[{}]", limit.typ()), "soft is above hard"));
    }
    match setrlimit(resource, limit.soft(), limit.hard()) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => {
            let (_, hard) = getrlimit(resource).map_err(failed)?;
            let hard = hard.min(limit.hard());
            setrlimit(resource, limit.soft().min(hard), hard).map_err(failed)?;
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

/// Sets how much the out-of-memory killer likes this process. Needs the host's `/proc`, and `CAP_SYS_RESOURCE` to
/// make it less likely than before; without that it is a warning.
pub fn set_oom_score(process: &Process, warn: &mut dyn FnMut(String)) -> Result<(), Error> {
    let Some(score) = process.oom_score_adj() else { return Ok(()) };
    match fs::write("/proc/self/oom_score_adj", score.to_string()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            warn(format!("oom_score_adj {score} was not set: this machine does not let it be lowered"));
            Ok(())
        }
        Err(e) => Err(Error::sys("set", format!("oom_score_adj {score}"), e)),
    }
}
