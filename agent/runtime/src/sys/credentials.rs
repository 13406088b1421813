//! User, group and capability changes of the calling thread.
//!
//! The raw system calls are used instead of libc's wrappers: those signal every thread that libc believes to exist,
//! and in a clone3 child of a threaded process it believes in threads that were not copied.

use std::io;

use super::check;

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The three capability sets that capset(2) changes, a bit per capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapSets {
    /// What checks are made against.
    pub effective: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What an executed file with matching bits may keep.
    pub inheritable: u64,
}

/// The capability sets of the calling thread.
pub fn capget() -> io::Result<CapSets> {
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 wants a header and two data structures.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(CapSets {
        effective: join(data[0].effective, data[1].effective),
        permitted: join(data[0].permitted, data[1].permitted),
        inheritable: join(data[0].inheritable, data[1].inheritable),
    })
}

/// Sets the capability sets of the calling thread.
pub fn capset(sets: CapSets) -> io::Result<()> {
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let part = |shift: u32| CapData {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [part(0), part(32)];
    // SAFETY: version 3 wants a header and two data structures.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) })?;
    Ok(())
}

/// Whether a capability is in the bounding set; `None` when the kernel does not know it.
pub fn bounding_has(capability: u32) -> Option<bool> {
    prctl(libc::PR_CAPBSET_READ, u64::from(capability), 0).ok().map(|v| v == 1)
}

/// Takes a capability out of the bounding set for good.
pub fn bounding_drop(capability: u32) -> io::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0).map(drop)
}

/// Empties the ambient set.
pub fn ambient_clear() -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0).map(drop)
}

/// Puts a capability into the ambient set.
pub fn ambient_raise(capability: u32) -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, u64::from(capability)).map(drop)
}

/// Keeps the permitted capabilities when the user changes.
pub fn keep_capabilities() -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1, 0).map(drop)
}

/// From here on execve grants no new privileges.
pub fn no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Keeps processes of the same user from looking into this one, or lets them. It counts for the memory, and so for all who
/// share it.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, u64::from(dumpable), 0).map(drop)
}

/// Whether processes of the same user may look into this one.
pub fn is_dumpable() -> io::Result<bool> {
    prctl(libc::PR_GET_DUMPABLE, 0, 0).map(|value| value == 1)
}

/// Has the kernel kill this process when its parent dies. A change of user or group undoes it.
pub fn die_with_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).map(drop)
}

/// Undoes [`die_with_parent`].
pub fn outlive_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, 0, 0).map(drop)
}

/// Sets the supplementary groups.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length describe one slice.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    Ok(())
}

/// Sets real, effective and saved group, then user.
pub fn set_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: only integers are passed.
    unsafe {
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

/// Changes who the calling thread is to file systems only, without losing capabilities.
pub fn act_as(uid: u32, gid: u32) -> io::Result<()> {
    let before = capget()?;
    // SAFETY: only integers are passed. Both return the old id, so that a second call tells whether it worked.
    let now = unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
        (libc::syscall(libc::SYS_setfsuid, u32::MAX), libc::syscall(libc::SYS_setfsgid, u32::MAX))
    };
    capset(before)?;
    if now == (libc::c_long::from(uid), libc::c_long::from(gid)) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

/// Becomes root of the user namespace that the thread is in.
pub fn become_root() -> io::Result<()> {
    set_ids(0, 0)?;
    die_with_parent()
}

fn prctl(option: i32, a: u64, b: u64) -> io::Result<i64> {
    // SAFETY: only options that take integers are passed; unused arguments are zero as the kernel demands.
    check(unsafe { libc::syscall(libc::SYS_prctl, option, a, b, 0_u64, 0_u64) })
}
