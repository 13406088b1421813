//! The mount system calls that work on descriptors (Linux 5.2 to 5.12), see fsopen(2), open_tree(2), mount_setattr(2).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use super::{check, cstring};

/// `fsconfig` commands, see linux/mount.h.
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const OPEN_TREE_CLONE: u32 = 1;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const AT_RECURSIVE: u32 = 0x8000;

/// A file system that is being configured.
pub struct FsContext(OwnedFd);

impl FsContext {
    /// Starts a new file system of this type.
    pub fn open(fstype: &str) -> io::Result<FsContext> {
        let name = cstring(fstype)?;
        // SAFETY: the name is a C string, the result is a new descriptor.
        unsafe { own(libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC)) }.map(FsContext)
    }

    /// Sets an option with a value.
    pub fn set(&self, key: &str, value: &CStr) -> io::Result<()> {
        self.config(FSCONFIG_SET_STRING, Some(&cstring(key)?), Some(value))
    }

    /// Sets an option without a value.
    pub fn flag(&self, key: &str) -> io::Result<()> {
        self.config(FSCONFIG_SET_FLAG, Some(&cstring(key)?), None)
    }

    /// Makes the file system and a mount of it with `MOUNT_ATTR_*` attributes that is attached nowhere yet.
    pub fn mount(&self, attributes: u64) -> io::Result<OwnedFd> {
        self.config(FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: no pointers are passed, the result is a new descriptor.
        unsafe {
            own(libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes as u32))
        }
    }

    /// What the kernel has to say about a failure, one line, empty when nothing.
    pub fn complaint(&self) -> String {
        let mut buffer = [0_u8; 512];
        match nix::unistd::read(self.0.as_fd(), &mut buffer) {
            Ok(n) => String::from_utf8_lossy(&buffer[..n]).trim_end().trim_start_matches("e ").to_owned(),
            Err(_) => String::new(),
        }
    }

    fn config(&self, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> io::Result<()> {
        let pointer = |s: Option<&CStr>| s.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: key and value are C strings or null as the command wants.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, pointer(key), pointer(value), 0)
        })?;
        Ok(())
    }
}

/// A copy of the mount at `path`, with everything mounted below it when `recursive`, attached nowhere. An empty path
/// means `dir` itself.
pub fn clone_tree(dir: Option<BorrowedFd<'_>>, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE
        | libc::O_CLOEXEC as u32
        | if recursive { AT_RECURSIVE } else { 0 }
        | if path.as_os_str().is_empty() { libc::AT_EMPTY_PATH as u32 } else { 0 };
    let path = cstring(path.as_os_str())?;
    let dir = dir.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd());
    // SAFETY: the path is a C string, the result is a new descriptor.
    unsafe { own(libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags)) }
}

/// Attaches a detached mount on top of what `target` refers to.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are empty C strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    })?;
    Ok(())
}

/// Attaches a detached mount at `name` in a folder that nobody else can change.
pub fn attach_below(mount: BorrowedFd<'_>, folder: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: both paths are C strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            folder.as_raw_fd(),
            name.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// Changes to make on a mount: `MOUNT_ATTR_*` bits to set and clear, and a propagation (`MS_SHARED` ...), 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear.
    pub clear: u64,
    /// The propagation type to change to.
    pub propagation: u64,
}

impl Attributes {
    /// True when nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        *self == Attributes::default()
    }

    /// Applies the changes to the mount that `fd` is the root of, and to all below it when `recursive`.
    pub fn apply(&self, fd: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
        self.apply_at(fd.as_raw_fd(), c"", recursive)
    }

    /// The same for the mount at a path.
    pub fn apply_to_path(&self, path: &Path, recursive: bool) -> io::Result<()> {
        self.apply_at(libc::AT_FDCWD, &cstring(path.as_os_str())?, recursive)
    }

    fn apply_at(&self, fd: RawFd, path: &CStr, recursive: bool) -> io::Result<()> {
        let attr = libc::mount_attr {
            attr_set: self.set,
            attr_clr: self.clear,
            propagation: self.propagation,
            userns_fd: 0,
        };
        let flags = if recursive { AT_RECURSIVE } else { 0 }
            | if path.is_empty() { libc::AT_EMPTY_PATH as u32 } else { 0 };
        // SAFETY: path is a C string, the structure is live and its size is passed.
        check(unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                fd,
                path.as_ptr(),
                flags,
                &raw const attr,
                size_of::<libc::mount_attr>(),
            )
        })?;
        Ok(())
    }
}

/// Maps the users of a mount that is attached nowhere yet, and of all below it when `recursive`, by a user namespace.
pub fn set_idmap(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd() as u64,
    };
    let flags = libc::AT_EMPTY_PATH as u32 | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, the structure is live and its size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// Gives the file that is open, which may be with `O_PATH`, an SELinux context (xattr(7), security attributes).
pub fn set_label(file: BorrowedFd<'_>, label: &CStr) -> io::Result<()> {
    let path = cstring(format!("/proc/thread-self/fd/{}", file.as_raw_fd()))?;
    let value = label.to_bytes();
    // SAFETY: path and name are C strings, the value is live and its length is passed.
    check(libc::c_long::from(unsafe {
        libc::setxattr(path.as_ptr(), c"security.selinux".as_ptr(), value.as_ptr().cast(), value.len(), 0)
    }))?;
    Ok(())
}

/// True when `path` is where something is mounted.
pub fn is_mount_root(path: &Path) -> io::Result<bool> {
    Ok(look_at(path, 0)?.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0)
}

/// The number of the mount that `path` is in, which no other one has as long as it is there.
pub fn mount_id(path: &Path) -> io::Result<u64> {
    Ok(look_at(path, libc::STATX_MNT_ID)?.stx_mnt_id)
}

fn look_at(path: &Path, what: u32) -> io::Result<libc::statx> {
    let path: CString = cstring(path.as_os_str())?;
    // SAFETY: statx is plain data; the kernel fills it in.
    unsafe {
        let mut stx: libc::statx = std::mem::zeroed();
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        check(libc::c_long::from(libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, what, &raw mut stx)))?;
        Ok(stx)
    }
}

/// Takes ownership of a descriptor returned by a raw system call.
///
/// # Safety
/// `result` must be the result of a system call that returns a new descriptor or -1.
unsafe fn own(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: by contract the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
