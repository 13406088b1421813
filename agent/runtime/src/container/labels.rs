//! AppArmor profiles and SELinux labels, where the kernel has them.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use oci_spec::runtime::{Linux, Process};

use super::{Error, procfs};

/// Says `Y` when AppArmor is on.
const APPARMOR: &str = "/sys/module/apparmor/parameters/enabled";
/// There when SELinux is on.
const SELINUX: &str = "/sys/fs/selinux/enforce";
/// Where a security module takes the label of what is executed next, below `/proc`.
const EXEC: &str = "thread-self/attr/exec";
/// A profile of this name means none.
const UNCONFINED: &str = "unconfined";

fn given(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|v| !v.is_empty())
}

fn has_selinux() -> bool {
    Path::new(SELINUX).exists()
}

/// Whether there is an AppArmor that may be off. Looked for once: a child may have the container's `/sys`.
fn knows_apparmor() -> bool {
    static KNOWS: OnceLock<bool> = OnceLock::new();
    *KNOWS.get_or_init(|| Path::new(APPARMOR).exists())
}

/// Refuses what the kernel cannot do: a container must not run with less protection than it was given.
pub fn check(process: &Process) -> Result<(), Error> {
    let refuse = |field: &str, system: &str| Err(Error::spec(field, format!("this kernel has no {system}")));
    let known = knows_apparmor();
    if given(process.apparmor_profile()).is_some_and(|p| p != UNCONFINED)
        && !(known && fs::read_to_string(APPARMOR).is_ok_and(|text| text.starts_with('Y')))
    {
        return refuse("process.apparmorProfile", "AppArmor");
    }
    if given(process.selinux_label()).is_some() && !has_selinux() {
        return refuse("process.selinuxLabel", "SELinux");
    }
    Ok(())
}

/// The SELinux context of what is mounted for a container, if it has one. A kernel without SELinux knows no labels and would refuse the mount, and there is nobody
/// whom one would keep out: there it is left out, as crun does.
pub fn of_mounts(linux: &Linux) -> Option<&str> {
    given(linux.mount_label()).filter(|_| has_selinux())
}

/// Says that a label of mounts is left out.
pub fn warn_of_mounts(linux: &Linux) -> Option<String> {
    let given = given(linux.mount_label()).is_some() && of_mounts(linux).is_none();
    given.then(|| "linux.mountLabel is without effect: this kernel has no SELinux".to_owned())
}

/// Has the next execve change to the process' profile and label. `write` writes below the host's `/proc`: what a container has there
/// cannot be trusted (CVE-2019-16884).
pub fn set_for_exec(process: &Process, write: procfs::Writer<'_>) -> Result<(), Error> {
    if let Some(profile) = given(process.apparmor_profile()).filter(|p| *p != UNCONFINED || knows_apparmor())
    {
        let text = format!("exec {profile}");
        let own = write(Path::new("thread-self/attr/apparmor/exec"), text.as_bytes());
        match own {
            // Before Linux 5.8 there was one file for all modules.
            Err(e) if e.kind() == io::ErrorKind::NotFound => write(Path::new(EXEC), text.as_bytes()),
            other => other,
        }
        .map_err(|e| Error::sys("set", format!("process.apparmorProfile {profile}"), e))?;
    }
    if let Some(label) = given(process.selinux_label()) {
        write(Path::new(EXEC), label.as_bytes())
            .map_err(|e| Error::sys("set", format!("process.selinuxLabel {label}"), e))?;
    }
    Ok(())
}
