//! Capability sets of a process.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxCapabilities, Process};

use super::Error;
use crate::sys::credentials::{self, CapSets};

/// The five sets, a bit per capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    bounding: u64,
    ambient: u64,
    sets: CapSets,
}

impl Capabilities {
    /// Takes the sets of a spec, as far as this process can give them. What it cannot give, because it does not have
    /// it or the kernel does not know it, becomes a warning.
    pub fn of_spec(wanted: Option<&LinuxCapabilities>) -> Result<(Capabilities, Option<String>), Error> {
        let Some(wanted) = wanted else { return Ok((Capabilities::default(), None)) };
        let own = credentials::capget().map_err(|e| Error::sys("read", "capabilities", e))?;
        let mut missing = HashSet::new();
        let mut bits = |set: &Option<HashSet<Capability>>| -> u64 {
            set.iter().flatten().fold(0, |bits, capability| {
                let bit = 1 << number(*capability);
                if own.permitted & bit == 0 {
                    missing.insert(*capability);
                }
                bits | bit & own.permitted
            })
        };
        let bounding = bits(wanted.bounding());
        let permitted = bits(wanted.permitted());
        let sets = CapSets {
            effective: bits(wanted.effective()),
            permitted,
            inheritable: bits(wanted.inheritable()),
        };
        let ambient = bits(wanted.ambient());
        let mut warnings = Vec::new();
        if !missing.is_empty() {
            let mut names: Vec<String> = missing.iter().map(|c| format!("CAP_{c}")).collect();
            names.sort_unstable();
            warnings.push(format!("capabilities that this machine does not have: {}", names.join(", ")));
        }
        let lost = ambient & !(sets.permitted & sets.inheritable);
        if lost != 0 {
            let names: Vec<String> =
                ALL.iter().filter(|c| lost & 1 << number(**c) != 0).map(|c| format!("CAP_{c}")).collect();
            let names = names.join(", ");
            warnings
                .push(format!("can't raise ambient capability {names}: not both permitted and inheritable"));
        }
        let warning = (!warnings.is_empty()).then(|| warnings.join("; "));
        // The kernel wants effective within permitted, and ambient within permitted and inheritable.
        let sets = CapSets { effective: sets.effective & sets.permitted, ..sets };
        Ok((Capabilities { bounding, ambient: ambient & sets.permitted & sets.inheritable, sets }, warning))
    }

    /// Takes out of the bounding set, which is within `inherited`, what is not wanted there. Needs `CAP_SETPCAP`, so it comes first.
    pub fn limit_bounding(&self, inherited: u64) -> Result<(), Error> {
        for capability in (0..64).filter(|c| inherited & !self.bounding & 1 << c != 0) {
            match credentials::bounding_drop(capability) {
                Ok(()) => {}
                // The kernel does not know this one, nor any higher one.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
                // What is not there need not be taken out.
                Err(_) if credentials::bounding_has(capability) == Some(false) => {}
                Err(e) => {
                    return Err(Error::sys("drop from bounding set", format!("capability {capability}"), e));
                }
            }
        }
        Ok(())
    }

    /// Sets the other four sets. After this only these capabilities are left.
    pub fn apply(&self) -> Result<(), Error> {
        let failed = |e| Error::sys("set", "capabilities", e);
        credentials::capset(self.sets).map_err(failed)?;
        match credentials::ambient_clear() {
            // The kernel has no ambient set.
            Err(e) if e.raw_os_error() != Some(libc::EINVAL) => return Err(failed(e)),
            _ => {}
        }
        (0..64)
            .filter(|c| self.ambient & 1 << c != 0)
            .try_for_each(credentials::ambient_raise)
            .map_err(|e| Error::sys("raise", "ambient capabilities", e))
    }

    /// Makes all that is permitted effective again, which a change of user has undone.
    pub fn raise_all() -> Result<(), Error> {
        let failed = |e| Error::sys("raise", "capabilities", e);
        let own = credentials::capget().map_err(failed)?;
        credentials::capset(CapSets { effective: own.permitted, ..own }).map_err(failed)
    }
}

/// The bounding set that a process asks for, a bit per capability.
pub fn bounding(process: &Process) -> u64 {
    let set = process.capabilities().as_ref().and_then(|all| all.bounding().as_ref());
    set.into_iter().flatten().fold(0, |bits, capability| bits | 1 << number(*capability))
}

/// All capabilities that have a name, by the kernel's number of them, see linux/capability.h.
const ALL: [Capability; 41] = {
    use Capability as C;
    [
        C::Chown,
        C::DacOverride,
        C::DacReadSearch,
        C::Fowner,
        C::Fsetid,
        C::Kill,
        C::Setgid,
        C::Setuid,
        C::Setpcap,
        C::LinuxImmutable,
        C::NetBindService,
        C::NetBroadcast,
        C::NetAdmin,
        C::NetRaw,
        C::IpcLock,
        C::IpcOwner,
        C::SysModule,
        C::SysRawio,
        C::SysChroot,
        C::SysPtrace,
        C::SysPacct,
        C::SysAdmin,
        C::SysBoot,
        C::SysNice,
        C::SysResource,
        C::SysTime,
        C::SysTtyConfig,
        C::Mknod,
        C::Lease,
        C::AuditWrite,
        C::AuditControl,
        C::Setfcap,
        C::MacOverride,
        C::MacAdmin,
        C::Syslog,
        C::WakeAlarm,
        C::BlockSuspend,
        C::AuditRead,
        C::Perfmon,
        C::Bpf,
        C::CheckpointRestore,
    ]
};

/// Whether a process has a capability in any of its sets: then it, or one that it executes, may have the use of it.
pub fn lists(process: &Process, capability: Capability) -> bool {
    let Some(sets) = process.capabilities() else { return false };
    [sets.bounding(), sets.permitted(), sets.effective(), sets.inheritable(), sets.ambient()]
        .into_iter()
        .flatten()
        .any(|set| set.contains(&capability))
}

/// All capabilities that have a name, by number.
pub fn known_capabilities() -> &'static [Capability] {
    &ALL
}

/// The kernel's number of a capability.
fn number(capability: Capability) -> u32 {
    // Every one is in the list.
    ALL.iter().position(|c| *c == capability).map_or(63, |at| at as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        let known = [
            (Capability::Chown, 0),
            (Capability::SysAdmin, 21),
            (Capability::AuditControl, 30),
            (Capability::CheckpointRestore, 40),
        ];
        known.into_iter().for_each(|(c, n)| assert_eq!(number(c), n));
    }
}
