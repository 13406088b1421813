//! Volumes that another process changes while the runtime mounts in them. Each race is run many times; a container
//! that is refused is as good as one that is right.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::attacker::{Swapper, put};
use crate::harness::Test;
use crate::sandbox::{Sandbox, stop};

pub const TESTS: &[Test] = &[
    ("cve_2021_30465_mounts_stay_inside_while_a_volume_changes", mount_race),
    ("cve_2024_45310_nothing_is_made_outside_while_a_volume_changes", mkdir_race),
    ("cve_2019_16884_proc_is_not_covered_while_a_volume_changes", proc_race),
    ("cve_2025_31133_masks_hold_while_dev_null_changes", mask_race),
    ("a_working_folder_stays_inside_while_a_volume_changes", cwd_race),
    ("copied_up_files_are_not_read_through_links", copy_race),
];

/// Enough for any of the races to be lost many times without its defence.
const ROUNDS: usize = 150;

/// A volume `vol` with a folder `dir`, exchanged all the time for `link`, which leads to a folder of the host.
struct Arena {
    // Ends before the sandbox does: folders that change all the time cannot be removed.
    swapper: Option<Swapper>,
    sandbox: Sandbox,
    outside: PathBuf,
}

impl Arena {
    fn new(script: &str) -> Arena {
        let mut sandbox = Sandbox::script(script);
        let outside = sandbox.host("outside");
        fs::create_dir_all(outside.join("sub")).unwrap();
        put(&outside.join("sub/secret"), "secret");
        put(&outside.join("secret"), "secret");
        fs::create_dir_all(sandbox.host("vol/dir/sub")).unwrap();
        symlink(&outside, sandbox.host("vol/link")).unwrap();
        sandbox.push("/mounts", json!({"destination": "/vol", "source": "vol", "options": ["bind"]}));
        Arena { sandbox, outside, swapper: None }
    }

    fn swap(&mut self) {
        let (one, other) = (self.sandbox.host("vol/dir"), self.sandbox.host("vol/link"));
        self.swapper = Some(Swapper::start(&one, &other));
    }

    /// Creates containers; `check` looks at each that came to be. At least one must.
    fn rounds(&self, mut check: impl FnMut(i32)) {
        let mut created = 0;
        for _ in 0..ROUNDS {
            if let Ok(container) = self.sandbox.create() {
                created += 1;
                check(container.pid);
                stop(&container);
            }
        }
        assert!(created > 0, "the race was never run: {}", self.sandbox.create().unwrap_err());
        let mut names: Vec<_> =
            fs::read_dir(&self.outside).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["secret", "sub"], "something was made outside");
    }
}

fn mounts_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap()
}

/// The place of a mount becomes a link to the host's folder between look and mount: a mount there would be lost to
/// the container, whose root it is outside of. Defence: the place is opened once with RESOLVE_IN_ROOT and mounted by
/// descriptor (`Root`, `attach`).
fn mount_race() {
    let mut arena = Arena::new("true");
    for destination in ["/vol/dir/sub", "/vol/dir"] {
        let mount = json!({"destination": destination, "type": "tmpfs", "source": "marked-by-test"});
        arena.sandbox.push("/mounts", mount);
    }
    arena.swap();
    arena.rounds(|pid| {
        let mounts = mounts_of(pid);
        assert_eq!(mounts.matches(" marked-by-test ").count(), 2, "a mount lies outside: {mounts}");
    });
}

/// Folders of a mount's place are made through a link to the host's folder. Defence: each is made in an open folder,
/// which was reached without a link (`Root::create`).
fn mkdir_race() {
    let mut arena = Arena::new("true");
    for (n, destination) in ["/vol/dir/a/b/c", "/vol/dir/x", "/vol/dir/sub/y/z"].into_iter().enumerate() {
        let mount = json!({"destination": destination, "type": "tmpfs", "source": "t"});
        arena.sandbox.push("/mounts", mount);
        let file = arena.sandbox.host(&format!("file-{n}"));
        put(&file, "");
        let destination = format!("{destination}-file");
        let bind = json!({"destination": destination, "source": file, "options": ["bind"]});
        arena.sandbox.push("/mounts", bind);
    }
    arena.swap();
    let sub = arena.outside.join("sub");
    arena.rounds(|_| {
        for made in ["dir/a", "dir/x", "dir/sub/y", "dir/x-file", "link/a", "link/x", "link/x-file"] {
            let path = arena.sandbox.host("vol").join(made);
            // Made anew each time, or the race is over after the first.
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    });
    assert_eq!(fs::read_dir(sub).unwrap().count(), 1, "something was made outside");
}

/// The place of a volume becomes a link to the container's procfs. Defence: `Mounter::guard_proc` judges the opened
/// place, not its name.
fn proc_race() {
    let mut arena = Arena::new("true");
    fs::remove_file(arena.sandbox.host("vol/link")).unwrap();
    fs::create_dir(arena.sandbox.host("vol/dir/sys")).unwrap();
    symlink("/proc", arena.sandbox.host("vol/link")).unwrap();
    arena
        .sandbox
        .push("/mounts", json!({"destination": "/vol/dir/sys", "type": "tmpfs", "source": "marked"}));
    arena.swap();
    arena.rounds(|pid| {
        let mounts = mounts_of(pid);
        let covered = mounts.lines().any(|l| l.contains(" marked ") && l.contains(" /proc"));
        assert!(!covered, "procfs is covered: {mounts}");
    });
}

/// The container's /dev/null is a device or a link, by turns, while paths are masked. Defence: the mask is the host's
/// device, see `targets::fake_mask`.
fn mask_race() {
    let mut sandbox = Sandbox::new();
    fs::create_dir(sandbox.host("dev")).unwrap();
    put(&sandbox.image("etc/target"), "shown instead");
    let number = nix::sys::stat::makedev(1, 3);
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(&sandbox.host("dev/null"), nix::sys::stat::SFlag::S_IFCHR, mode, number).unwrap();
    symlink("/etc/target", sandbox.host("dev/link")).unwrap();
    let mounts = sandbox.spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    sandbox.push("/mounts", json!({"destination": "/dev", "source": "dev", "options": ["bind"]}));
    let _swapper = Swapper::start(&sandbox.host("dev/null"), &sandbox.host("dev/link"));
    let mut created = 0;
    for _ in 0..ROUNDS {
        let Ok(container) = sandbox.create() else { continue };
        created += 1;
        let masked = fs::metadata(format!("/proc/{}/root/proc/timer_list", container.pid)).unwrap();
        stop(&container);
        assert_eq!(masked.rdev(), number, "it is no null device");
    }
    assert!(created > 0);
}

/// The working folder is a folder or a link to the host's, by turns. Defence: it is entered after the root has been
/// changed, and looked at (`identity::enter`); before that it is made with RESOLVE_IN_ROOT.
fn cwd_race() {
    let mut arena = Arena::new("true");
    arena.sandbox.spec["process"]["cwd"] = json!("/vol/dir/work");
    arena.swap();
    let host = fs::metadata(&arena.outside).unwrap().ino();
    arena.rounds(|pid| {
        let above = fs::metadata(format!("/proc/{pid}/cwd/..")).unwrap().ino();
        assert_ne!(above, host, "it is in the host's folder");
        for made in ["dir/work", "link/work"] {
            let _ = fs::remove_dir(arena.sandbox.host("vol").join(made));
        }
    });
}

/// `tmpcopyup` copies what is in a folder while its files become links to the host's, and folders of files, too.
/// Defence: `copy_up` opens every name without following it, in an open folder.
fn copy_race() {
    let mut arena = Arena::new("true");
    let inner = arena.sandbox.host("vol/data");
    fs::create_dir_all(inner.join("folder")).unwrap();
    put(&inner.join("folder/secret"), "harmless");
    put(&inner.join("file"), "harmless");
    symlink(arena.outside.join("secret"), inner.join("file-link")).unwrap();
    symlink(&arena.outside, inner.join("folder-link")).unwrap();
    let mount = json!({"destination": "/vol/data", "type": "tmpfs", "source": "t", "options": ["tmpcopyup"]});
    arena.sandbox.push("/mounts", mount);
    let _swappers = [
        Swapper::start(&inner.join("file"), &inner.join("file-link")),
        Swapper::start(&inner.join("folder"), &inner.join("folder-link")),
    ];
    arena.rounds(|pid| {
        let copy = PathBuf::from(format!("/proc/{pid}/root/vol/data"));
        for path in ["file", "file-link", "folder/secret", "folder-link/secret"] {
            let path = copy.join(path);
            let folder = path.parent().unwrap();
            let real = |p: &Path| fs::symlink_metadata(p).is_ok_and(|m| !m.is_symlink());
            if real(folder) && real(&path) {
                assert_eq!(fs::read_to_string(&path).unwrap(), "harmless", "{}", path.display());
            }
        }
    });
}
