//! SELinux: whether the kernel has it on, what its policy wants containers to be, and whether it knows a label.

use std::io::{self, ErrorKind};
use std::path::Path;

use berth_reconciler::selinux::Contexts;

/// There when SELinux is on.
const ENFORCE: &str = "/sys/fs/selinux/enforce";
/// Takes a context and refuses one that the policy does not know (`sel_write_context` in the kernel).
const CHECK: &str = "/sys/fs/selinux/context";
/// What container-selinux brings along; other engines look there first, too.
const OF_CONTAINERS: &str = "usr/share/containers/selinux/contexts";
/// The policy where `/etc/selinux/config` names none (selinux_config(5)).
const DEFAULT_POLICY: &str = "targeted";

/// Whether the kernel has SELinux on, be it enforcing or not.
pub fn enabled() -> bool {
    Path::new(ENFORCE).exists()
}

/// Checks the setting `selinux` against the machine.
///
/// # Errors
/// When labels are wanted and the kernel has none.
pub fn check_setting(wanted: bool) -> anyhow::Result<()> {
    if wanted && !enabled() {
        anyhow::bail!(
            "selinux: true needs a kernel that has SELinux on, and {ENFORCE} is not there: boot with SELinux, or set it to false"
        );
    }
    Ok(())
}

/// What the machine's policy wants containers to be.
pub fn contexts() -> Contexts {
    contexts_below(Path::new("/"))
}

fn contexts_below(root: &Path) -> Contexts {
    let settings = std::fs::read_to_string(root.join("etc/selinux/config")).unwrap_or_default();
    let policy = root.join("etc/selinux").join(policy_of(&settings)).join("contexts/lxc_contexts");
    for path in [root.join(OF_CONTAINERS), policy] {
        match std::fs::read_to_string(&path) {
            Ok(text) => return Contexts::parse(&text),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read the contexts of containers")
            }
        }
    }
    Contexts::default()
}

/// The policy's name in `/etc/selinux/config`.
fn policy_of(settings: &str) -> &str {
    let named = settings.lines().rev().find_map(|line| line.trim().strip_prefix("SELINUXTYPE="));
    named.map(str::trim).filter(|name| !name.is_empty() && !name.contains('/')).unwrap_or(DEFAULT_POLICY)
}

/// Whether the policy knows a label.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn is_known(label: &str) -> io::Result<bool> {
    match std::fs::write(CHECK, label) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_those_of_the_policy_that_is_configured() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let process = || contexts_below(dir.path()).process.to_string();
        assert_eq!(contexts_below(dir.path()), Contexts::default());
        write("etc/selinux/targeted/contexts/lxc_contexts", "process = \"u:r:targeted_t:s0\"");
        assert_eq!(process(), "u:r:targeted_t:s0");
        write("etc/selinux/own/contexts/lxc_contexts", "process = \"u:r:own_t:s0\"");
        write("etc/selinux/config", "# which\nSELINUX=enforcing\nSELINUXTYPE=own \n");
        assert_eq!(process(), "u:r:own_t:s0");
        write(OF_CONTAINERS, "process = \"u:r:containers_t:s0\"");
        assert_eq!(process(), "u:r:containers_t:s0");
    }

    #[test]
    fn a_kernel_without_selinux_cannot_label() {
        check_setting(false).unwrap();
        if !enabled() {
            let said = check_setting(true).unwrap_err().to_string();
            assert!(said.starts_with("selinux: true needs a kernel that has SELinux on"), "{said}");
        }
    }
}
