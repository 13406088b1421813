//! What the tests share.

pub mod http;
pub mod layout;
pub mod registry;
pub mod tars;

use std::path::{Path, PathBuf};
use std::process::Command;

use berth_image::{Image, Store};
use tempfile::TempDir;

/// A store in a folder of its own.
pub struct TestStore {
    pub store: Store,
    pub dir: TempDir,
}

impl std::ops::Deref for TestStore {
    type Target = Store;
    fn deref(&self) -> &Store {
        &self.store
    }
}

pub fn store() -> TestStore {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let dir = tempfile::Builder::new().prefix("berth-image-").tempdir().unwrap();
    let store = Store::open(&dir.path().join("images")).unwrap();
    TestStore { store, dir }
}

impl TestStore {
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    /// Names of everything in a folder of the store.
    pub fn names(&self, folder: &str) -> Vec<String> {
        names_in(&self.root().join(folder))
    }
}

pub fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Runs a program and shows what it said if it failed.
pub fn run(program: &str, args: &[&str]) -> String {
    let out =
        Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
    text
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The content of a file in the topmost layer that has it.
pub fn file_in(image: &Image, path: &str) -> Option<Vec<u8>> {
    image.layers.iter().find_map(|layer| std::fs::read(layer.join(path)).ok())
}

pub fn never_in_use(_: &Image) -> bool {
    false
}
