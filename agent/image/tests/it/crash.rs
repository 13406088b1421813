//! kill -9 at any instant.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use berth_image::{ImportOptions, LoadOptions, PullOptions, Store};
use serde_json::Value;

use crate::support::http::{Server, repository};
use crate::support::layout::{Layout, Spec, digest};
use crate::support::tars::{Tar, noise};
use crate::support::{names_in, runtime};

const ROOT: &str = "BERTH_TEST_CRASH_ROOT";
const ARCHIVE: &str = "BERTH_TEST_CRASH_ARCHIVE";
const REGISTRY: &str = "BERTH_TEST_CRASH_REGISTRY";

/// Not a test of its own: the process that is killed. Started without its variables, it has nothing to do.
#[test]
fn worker() {
    let (Ok(root), Ok(archive), Ok(registry)) =
        (std::env::var(ROOT), std::env::var(ARCHIVE), std::env::var(REGISTRY))
    else {
        return;
    };
    let runtime = runtime();
    for round in 0_u64.. {
        println!("\nround {round}");
        let store = Store::open(Path::new(&root)).unwrap();
        let tar = Tar::new().dir("d/").file("d/f", &noise(round % 7, 20_000)).build();
        store.import(&tar[..], &format!("imported:{}", round % 3), &ImportOptions::default()).unwrap();
        store.load_path(Path::new(&archive), &LoadOptions::default()).unwrap();
        let name = format!("{registry}/app:v1");
        runtime.block_on(store.pull(&name, &PullOptions::default())).unwrap();
        store.tag(&name, &format!("tagged:{}", round % 2)).unwrap();
        store.prune(&|image| image.repo_tags.len() != 1 && round % 4 != 3).unwrap();
    }
}

/// Everything the index names is there and whole, and nothing else is.
fn check(root: &Path) -> usize {
    let store = Store::open(root).unwrap();
    assert_eq!(names_in(&root.join("tmp")), Vec::<String>::new());
    let images = store.list().unwrap();
    let index: Value = match std::fs::read(root.join("index.json")) {
        Ok(text) => serde_json::from_slice(&text).unwrap(),
        Err(_) => return 0,
    };
    assert_eq!(images.len(), index["images"].as_object().unwrap().len());
    for id in index["names"].as_object().unwrap().values() {
        assert!(index["images"][id.as_str().unwrap()].is_object(), "a name of no image");
    }
    let (mut blobs, mut layers) = (BTreeSet::new(), BTreeSet::new());
    for record in index["images"].as_object().unwrap().values() {
        let strings = |key: &str| -> Vec<String> {
            record[key].as_array().unwrap().iter().map(|v| v.as_str().unwrap()[7..].to_owned()).collect()
        };
        blobs.extend(strings("blobs"));
        layers.extend(strings("layers"));
    }
    assert_eq!(names_in(&root.join("blobs/sha256")), blobs.iter().cloned().collect::<Vec<_>>());
    assert_eq!(names_in(&root.join("layers")), layers.into_iter().collect::<Vec<_>>());
    for hex in &blobs {
        let bytes = std::fs::read(root.join("blobs/sha256").join(hex)).unwrap();
        assert_eq!(digest(&bytes)[7..], **hex);
    }
    for image in &images {
        let top = std::fs::read(image.layers[0].join("d/f")).unwrap();
        assert!((0..10).any(|n| top == noise(n, 20_000)), "a layer is not whole");
        assert_eq!(
            image.layers.len(),
            usize::from(!image.repo_tags.iter().all(|t| t.contains("imported"))) + 1
        );
    }
    images.len()
}

/// Any instant will do; the waits are spread over a round of work.
#[expect(clippy::disallowed_methods, reason = "the time itself is what is tried out")]
fn instants_later(round: u64) {
    std::thread::sleep(Duration::from_millis((round * 37) % 251));
}

#[test]
fn killed_at_any_instant_the_store_is_whole() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    // In memory: waiting for a busy disk, the worker would be killed at nothing but that.
    let home = tempfile::Builder::new().prefix("berth-image-").tempdir_in("/dev/shm").unwrap();
    let root = home.path().join("crashing");
    let layers = |seed| {
        vec![Tar::new().file("base", b"b").build(), Tar::new().file("d/f", &noise(seed, 20_000)).build()]
    };
    let archive = Layout::with(&Spec::of(layers(8)), "loaded:v1");
    let mut remote = Layout::new();
    let manifest = remote.image(&Spec::of(layers(9)));
    remote.list(manifest.clone(), "app:v1");
    let served = repository(remote.path().to_owned(), manifest["digest"].as_str().unwrap().to_owned());
    let server = Server::start(served);
    let mut most = 0;
    for round in 0..24_u64 {
        let mut worker = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::worker", "--nocapture"])
            .env(ROOT, &root)
            .env(ARCHIVE, archive.path())
            .env(REGISTRY, &server.address)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let first = format!("round {}", round % 3);
        let mut lines = BufReader::new(worker.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == first), "the worker ended by itself");
        instants_later(round);
        let ended = worker.try_wait().unwrap();
        worker.kill().unwrap();
        let output = worker.wait_with_output().unwrap();
        assert!(ended.is_none(), "the worker failed: {}", String::from_utf8_lossy(&output.stderr));
        most = most.max(check(&root));
    }
    assert!(most > 0, "the worker never got anything done");
}
