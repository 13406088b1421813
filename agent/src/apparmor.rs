//! AppArmor: whether the kernel has it, which profiles are loaded, and the default one.
//!
//! Profiles reach the kernel through `apparmor_parser(8)`, which compiles them.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// The name of the profile that containers get unless they say otherwise.
pub const DEFAULT_PROFILE: &str = "berth-default";

const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";

/// Everything but what leads out of a container: mounting, and writing where the kernel can be changed. Without includes,
/// so that it loads on a machine that has no `/etc/apparmor.d`.
const TEXT: &str = "
profile berth-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  unix,
  dbus,
  signal (receive) peer=unconfined,
  signal (send,receive) peer=berth-default,
  ptrace (trace,read,tracedby,readby) peer=berth-default,
  deny mount,
  deny /proc/* w,
  deny /proc/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}/** w,
  deny /proc/sys/[^kn]** w,
  deny /proc/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
";

/// Why a container cannot have its profile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel lacks it.
    #[error("AppArmor is not enabled on the host")]
    Disabled,
    /// Nobody has loaded the profile.
    #[error("apparmor profile not found {0}: load it with apparmor_parser on the host")]
    NotLoaded(String),
    /// The list of profiles cannot be read.
    #[error("read {PROFILES}: {0}")]
    List(std::io::Error),
    /// The default profile cannot be loaded.
    #[error("load the AppArmor profile {DEFAULT_PROFILE}: apparmor_parser: {0}")]
    Load(String),
}

/// Whether the kernel enforces AppArmor profiles.
pub fn enabled() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// Whether a list of profiles, `NAME (MODE)` each line, has this one.
fn lists(text: &str, name: &str) -> bool {
    text.lines().any(|line| line.rsplit_once(" (").map_or(line, |(known, _)| known) == name)
}

/// Fails unless a profile of this name is loaded.
///
/// # Errors
/// Also when the kernel has no AppArmor.
pub fn check_loaded(name: &str) -> Result<(), Error> {
    if !enabled() {
        return Err(Error::Disabled);
    }
    let text = std::fs::read_to_string(Path::new(PROFILES)).map_err(Error::List)?;
    if lists(&text, name) { Ok(()) } else { Err(Error::NotLoaded(name.to_owned())) }
}

/// The name of the default profile, which is loaded now if it was not.
///
/// # Errors
/// When `apparmor_parser` is missing or refuses.
pub fn default_profile() -> Result<String, Error> {
    static LOADING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = LOADING.lock();
    match check_loaded(DEFAULT_PROFILE) {
        Err(Error::NotLoaded(_)) => load(TEXT).map_err(Error::Load)?,
        other => other?,
    }
    Ok(DEFAULT_PROFILE.to_owned())
}

fn load(text: &str) -> Result<(), String> {
    let mut parser = Command::new("apparmor_parser")
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let written = parser.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
    let output = parser.wait_with_output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    written.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_found_by_its_whole_name() {
        let text = "berth-default (enforce)\n/usr/bin/man (complain)\nwith (odd) name (kill)\n";
        assert!(
            lists(text, "berth-default") && lists(text, "/usr/bin/man") && lists(text, "with (odd) name")
        );
        assert!(!lists(text, "berth") && !lists(text, "with") && !lists("", "x"));
    }
}
