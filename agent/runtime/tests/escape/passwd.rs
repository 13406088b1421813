//! The files of users and groups are the container's, and so are the libraries that would read them.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

use crate::attacker::put;
use crate::harness::Test;
use crate::sandbox::{Sandbox, stop};

pub const TESTS: &[Test] = &[
    ("cve_2019_14271_no_library_of_the_container_is_loaded", libraries),
    ("users_are_not_read_from_links_to_the_host", links),
    ("users_are_not_read_from_pipes_devices_and_folders", odd_files),
    ("a_huge_file_of_users_is_not_read_whole", huge),
    ("files_of_users_that_take_most_memory_do_no_harm", crowded),
    ("users_that_name_no_number_are_refused", malformed),
];

fn named(name: &str) -> Value {
    json!({"uid": 0, "gid": 0, "username": name})
}

/// Replaces both files in turn, in the image and in a running container, and looks `name` up by an exec, too. Nobody
/// but those in the usual files may be found.
fn not_found(name: &str, make: &dyn Fn(&Path)) {
    for file in ["etc/passwd", "etc/group"] {
        let mut sandbox = Sandbox::script("sleep 100");
        let (user, found) =
            if file == "etc/group" { (format!("33:{name}"), "group") } else { (name.to_owned(), "user") };
        let container = sandbox.start().unwrap();
        let upper = sandbox.host("upper").join(file);
        fs::create_dir_all(upper.parent().unwrap()).unwrap();
        let inside = Path::new("/proc").join(container.pid.to_string()).join("root").join(file);
        fs::remove_file(&inside).unwrap();
        make(&inside);
        let process = json!({"args": ["id", "-u"], "user": named(&user)});
        let error = sandbox.try_exec(&container, process).unwrap_err().to_string();
        assert!(error.contains(&format!("no {found} ")), "{error}");
        stop(&container);

        fs::remove_file(sandbox.image(file)).unwrap();
        make(&sandbox.image(file));
        sandbox.spec["process"]["user"] = named(&user);
        // The upper layer has what the first part left.
        let _ = fs::remove_dir_all(sandbox.host("upper/etc"));
        let error = sandbox.error();
        assert!(error.contains(&format!("no {found} ")), "{error}");
    }
}

/// A name service library of the image would run with the runtime's rights, in reach of the host. Defence: `users`
/// reads the files itself, after which no file of the container is mapped.
fn libraries() {
    let mut sandbox = Sandbox::script("sleep 100");
    for folder in ["lib", "lib64", "usr/lib", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"] {
        fs::create_dir_all(sandbox.image(folder)).unwrap();
        for name in ["libnss_files.so.2", "libnss_compat.so.2", "libc.so.6"] {
            put(&sandbox.image(folder).join(name), "\x7fELF hostile");
        }
    }
    put(&sandbox.image("etc/ld.so.preload"), "/lib/libc.so.6\n");
    put(&sandbox.image("etc/nsswitch.conf"), "passwd: files compat\ngroup: files compat\n");
    sandbox.spec["process"]["user"] = named("web");
    let container = sandbox.create().unwrap();
    let device = fs::metadata(format!("/proc/{}/root", container.pid)).unwrap().dev();
    let device = format!(" {:02x}:{:02x} ", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let maps = fs::read_to_string(format!("/proc/{}/maps", container.pid)).unwrap();
    stop(&container);
    assert!(maps.lines().count() > 5 && !maps.contains(&device), "{device} in {maps}");
}

/// Defence: the files are opened with RESOLVE_IN_ROOT and without magic links.
fn links() {
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    put(&outside.path().join("file"), "evil:x:4242:4242:evil:/:/bin/sh\n");
    let absolute = outside.path().join("file");
    not_found("evil", &|path| symlink(&absolute, path).unwrap());
    let climbing = Path::new("../../../../../../..").join(absolute.strip_prefix("/").unwrap());
    not_found("evil", &|path| symlink(&climbing, path).unwrap());
    not_found("evil", &|path| symlink(path.file_name().unwrap(), path).unwrap());
    // Read by the runtime, this would be the runtime's own environment, memory or descriptor.
    for magic in ["/proc/self/environ", "/proc/self/fd/3", "/proc/self/fd/0", "/proc/1/root/etc/passwd"] {
        not_found("evil", &|path| symlink(magic, path).unwrap());
    }
}

/// A pipe would block the runtime for ever, /dev/zero fill its memory, and opening some devices does something.
/// Defence: only plain files are opened (`users::read`).
fn odd_files() {
    let mode = Mode::from_bits_truncate(0o666);
    not_found("evil", &|path| nix::unistd::mkfifo(path, mode).unwrap());
    not_found("evil", &|path| fs::create_dir(path).unwrap());
    not_found("evil", &|path| mknod(path, SFlag::S_IFCHR, mode, makedev(1, 5)).unwrap());
    not_found("evil", &|path| mknod(path, SFlag::S_IFSOCK, mode, 0).unwrap());
    not_found("evil", &|_| ());
}

/// Defence: `users::MAX_SIZE`; here the user stands behind it.
fn huge() {
    not_found("evil", &|path| {
        put(path, "\n");
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(1 << 30).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"\nevil:x:4242:4242::/:/bin/sh\n", 1 << 30).unwrap();
    });
}

/// What is read of a file may become many times as much memory, or more than there is for it. Defence: `users::resolve` takes no line
/// apart further than it needs, and the region that such files are read into is larger than what they become.
fn crowded() {
    for piece in ["\n", ":", ":\n", "::::\n", "a:x:1:b\n"] {
        not_found("evil", &|path| put(path, &piece.repeat((5 << 20) / piece.len())));
    }
    not_found("evil", &|path| fs::write(path, vec![0xff; 5 << 20]).unwrap());
}

/// Numbers out of range must not become root's. Defence: they are parsed as what the kernel takes.
fn malformed() {
    for line in [
        "evil:x:4294967296:0::/:",
        "evil:x:-1:-1::/:",
        "evil:x:0x0:0::/:",
        "evil:x::::",
        "evil:x: 0:0::/:",
        "evil",
    ] {
        let mut sandbox = Sandbox::new();
        fs::write(sandbox.image("etc/passwd"), format!("{line}\n")).unwrap();
        sandbox.spec["process"]["user"] = named("evil");
        let error = sandbox.error();
        assert!(error.contains("no user"), "{line}: {error}");
    }
}
