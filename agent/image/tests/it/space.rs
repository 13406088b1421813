//! Full disks.

use berth_image::{Error, ImportOptions, LoadOptions, PullOptions, Store};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::support::http::{Server, repository};
use crate::support::layout::{Layout, Spec};
use crate::support::names_in;
use crate::support::tars::{Tar, noise};

/// Runs in a thread with a mount namespace of its own, with a store on a file system of 3 MiB.
fn on_small_disk(test: impl FnOnce(&Store, &std::path::Path) + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=3m")).unwrap();
        let root = dir.path().join("images");
        let store = Store::open(&root).unwrap();
        test(&store, &root);
        nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
    thread.join().unwrap();
}

fn assert_empty(store: &Store, root: &std::path::Path) {
    assert_eq!(store.list().unwrap(), []);
    for folder in ["tmp", "layers", "blobs/sha256"] {
        assert_eq!(names_in(&root.join(folder)), Vec::<String>::new(), "{folder}");
    }
}

fn layers() -> Vec<Vec<u8>> {
    (1..=4).map(|n| Tar::new().file(&format!("f{n}"), &noise(n, 500_000)).build()).collect()
}

#[test]
fn import_fails_clean_in_either_half() {
    on_small_disk(|store, root| {
        // Too large for the blob, and large enough for the blob alone.
        for size in [4_000_000, 2_000_000] {
            let tar = Tar::new().file("f", &noise(1, size)).build();
            let error = store.import(&tar[..], "big", &ImportOptions::default()).unwrap_err();
            assert!(matches!(error, Error::NoSpace { .. }), "{error}");
            assert_empty(store, root);
        }
        let tar = Tar::new().file("f", &noise(1, 1_000_000)).build();
        store.import(&tar[..], "small", &ImportOptions::default()).unwrap();
    });
}

#[test]
fn load_fails_clean() {
    let layout = Layout::with(&Spec::of(layers()), "app:v1");
    on_small_disk(move |store, root| {
        let error = store.load_path(layout.path(), &LoadOptions::default()).unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
        assert_empty(store, root);
    });
}

#[test]
fn pull_fails_clean() {
    let mut layout = Layout::new();
    let manifest = layout.image(&Spec::of(layers()));
    layout.list(manifest.clone(), "app:v1");
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    let server = Server::start(repository(layout.path().to_owned(), digest));
    on_small_disk(move |store, root| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let name = format!("{}/app:v1", server.address);
        let error = runtime.block_on(store.pull(&name, &PullOptions::default())).unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
        // Work that was cut short ends with the runtime at the latest.
        drop(runtime);
        assert_eq!(store.prune(&|_| true).unwrap().deleted, Vec::<String>::new());
        assert_eq!(names_in(&root.join("tmp")), Vec::<String>::new());
        assert_eq!(store.list().unwrap(), []);
    });
}
