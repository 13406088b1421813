//! What `berth` does before its C library has started. Everything here makes system calls by their numbers.
#![allow(unsafe_code)]

use core::mem::MaybeUninit;

use crate::words::{Name, Told, is_runtime, read};

/// Where the records of containers are without `--root`.
const ROOT: &[u8] = b"/run/berth-oci";

/// The longest path of the small program. There are longer ones, for which `berth` starts as usual.
const LONGEST: usize = 512;

/// The small program, as `berth` leaves it below `--root`.
#[derive(Debug)]
pub struct Kept {
    /// Name of its file, which another release of it does not have.
    pub name: &'static str,
    /// Its size in bytes.
    pub size: usize,
}

/// Lets the small program take the place of this one when the words of this process are of those that it understands and it
/// is where it was left. Returns otherwise, with everything as it was.
///
/// # Safety
/// `stack` is what the kernel gave to a new process (System V ABI, "Process Initialization"): the number of words, the
/// words, a null, the variables of the environment, a null.
pub unsafe extern "C" fn hand_on(stack: *const usize, kept: &Kept) {
    // SAFETY: there are so many words, and then the environment.
    let (count, words) = unsafe { (*stack, stack.add(1).cast::<*const u8>()) };
    // SAFETY: the kernel ends each with a 0, and they stay where they are.
    let mut list = (0..count).map(|place| unsafe { bytes(*words.add(place)) });
    if !list.next().is_some_and(is_runtime) {
        return;
    }
    let mut root = ROOT;
    let known = read(list, |told| {
        if let Told::Option(Name::Root, value) = told {
            root = value;
        }
    });
    let mut path = MaybeUninit::uninit();
    if known && write_path(root, kept.name.as_bytes(), &mut path) {
        // SAFETY: a path that ends with a 0 was written there. The environment follows a null after the words.
        unsafe { execute(path.as_ptr().cast(), kept.size, words, words.add(count + 1)) };
    }
}

/// The bytes of a string of C.
///
/// # Safety
/// It ends with a 0 and lives as long as the process.
unsafe fn bytes(string: *const u8) -> &'static [u8] {
    let mut length = 0;
    // SAFETY: the end is not passed.
    unsafe {
        while *string.add(length) != 0 {
            length += 1;
        }
        core::slice::from_raw_parts(string, length)
    }
}

/// Writes `folder/name` and a 0, if there is room.
fn write_path(folder: &[u8], name: &[u8], path: &mut MaybeUninit<[u8; LONGEST]>) -> bool {
    if folder.len() + name.len() + 2 > LONGEST {
        return false;
    }
    let start = path.as_mut_ptr().cast::<u8>();
    let mut place = 0;
    let mut put = |byte: u8| {
        // SAFETY: there is room for as many as the condition above counts.
        unsafe { start.add(place).write(byte) };
        place += 1;
    };
    for byte in folder {
        put(*byte);
    }
    put(b'/');
    for byte in name {
        put(*byte);
    }
    put(0);
    true
}

/// Executes the program at `path` through a read-only mount of it, as `berth_runtime::shim::Program` does, and with the same
/// conditions. Returns when that cannot be.
///
/// # Safety
/// All are as execve(2) wants them.
unsafe fn execute(path: *const u8, size: usize, words: *const *const u8, variables: *const *const u8) {
    const HERE: usize = libc::AT_FDCWD as usize;
    let empty = c"".as_ptr() as usize;
    let flags = libc::OPEN_TREE_CLONE as usize | libc::OPEN_TREE_CLOEXEC as usize;
    // SAFETY: a path that ends.
    let mount = unsafe { call(libc::SYS_open_tree, [HERE, path as usize, flags, 0, 0]) };
    let Ok(mount) = usize::try_from(mount) else { return };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
        attr_clr: libc::MOUNT_ATTR_NOEXEC,
        propagation: 0,
        userns_fd: 0,
    };
    let at_itself = libc::AT_EMPTY_PATH as usize;
    let given = [mount, empty, at_itself, &raw const attributes as usize, size_of_val(&attributes)];
    // SAFETY: attributes of that size.
    let read_only = unsafe { call(libc::SYS_mount_setattr, given) } == 0;
    if read_only && is_own(mount, size) {
        let given = [mount, empty, words as usize, variables as usize, at_itself];
        // SAFETY: both lists end with a null. Returns only when it has failed.
        unsafe { call(libc::SYS_execveat, given) };
    }
    // SAFETY: the descriptor is not used any more.
    unsafe { call(libc::SYS_close, [mount, 0, 0, 0, 0]) };
}

/// Whether an open file is one that only this user could have written, and whole.
fn is_own(file: usize, size: usize) -> bool {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills all that is read below when it returns 0.
    let stat = unsafe {
        if call(libc::SYS_fstat, [file, stat.as_mut_ptr() as usize, 0, 0, 0]) != 0 {
            return false;
        }
        &*stat.as_ptr()
    };
    // SAFETY: without arguments.
    let user = unsafe { call(libc::SYS_geteuid, [0; 5]) };
    stat.st_mode & libc::S_IFMT == libc::S_IFREG
        && stat.st_mode & 0o022 == 0
        && isize::try_from(stat.st_uid) == Ok(user)
        && usize::try_from(stat.st_size) == Ok(size)
}

/// A system call; below 0 is the negated number of an error.
///
/// # Safety
/// As the call says.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: libc::c_long, given: [usize; 5]) -> isize {
    let result: isize;
    // SAFETY: the kernel changes the registers that are named, and what the arguments point to.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") given[0],
            in("rsi") given[1],
            in("rdx") given[2],
            in("r10") given[3],
            in("r8") given[4],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// On other processors `berth` starts as programs do: nothing is found to hand on to.
///
/// # Safety
/// None of it is done.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn call(_number: libc::c_long, _given: [usize; 5]) -> isize {
    -(libc::ENOSYS as isize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_a_folder_a_name_and_an_end() {
        let mut path = MaybeUninit::new([7_u8; LONGEST]);
        assert!(write_path(b"/run/x", b"name", &mut path));
        // SAFETY: it was filled above.
        assert_eq!(unsafe { path.assume_init() }[..12], *b"/run/x/name\0");
        let long = [b'x'; LONGEST - 6];
        assert!(write_path(&long, b"name", &mut path));
        assert!(!write_path(&[b'x'; LONGEST - 5], b"name", &mut path));
    }

    #[test]
    fn only_a_file_of_this_user_that_nobody_else_may_write_to_is_executed() {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("berth-entry-{}", std::process::id()));
        std::fs::write(&path, "four").expect("a file");
        let file = std::fs::File::open(&path).expect("the file");
        let fd = usize::try_from(file.as_raw_fd()).expect("a descriptor");
        let of_mode = |mode| {
            file.set_permissions(std::fs::Permissions::from_mode(mode)).expect("its mode");
            is_own(fd, 4)
        };
        assert!(of_mode(0o500));
        assert!(!of_mode(0o520));
        assert!(!of_mode(0o502));
        assert!(of_mode(0o500) && !is_own(fd, 5));
        std::fs::remove_file(&path).expect("remove it");
        // A folder.
        let folder = std::fs::File::open("/").expect("a folder");
        assert!(!is_own(usize::try_from(folder.as_raw_fd()).expect("a descriptor"), 4));
    }
}
