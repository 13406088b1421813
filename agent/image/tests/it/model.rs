//! Layers as overlayfs shows them, against a model in a map.

use std::collections::BTreeMap;
use std::path::Path;

use berth_image::LoadOptions;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;

use crate::support::layout::{Layout, Spec};
use crate::support::store;
use crate::support::tars::Tar;
use tar::EntryType;

/// One member of a layer.
#[derive(Clone, Debug)]
enum Op {
    File(String, u8),
    Dir(String, u32),
    Whiteout(String),
    Opaque(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    File(Vec<u8>),
    Dir(u32),
}

type Tree = BTreeMap<String, Node>;

fn below<'a>(dir: &'a str) -> impl Fn(&str) -> bool + 'a {
    move |path| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

fn remove(tree: &mut Tree, path: &str) {
    tree.retain(|p, _| p != path && !below(path)(p));
}

/// Parents that no member lists are made, or stay as they are.
fn parents(tree: &mut Tree, path: &str) {
    for (at, _) in path.match_indices('/') {
        let parent = &path[..at];
        if !matches!(tree.get(parent), Some(Node::Dir(_))) {
            tree.insert(parent.to_owned(), Node::Dir(0o755));
        }
    }
}

/// A layer's members may not stand below its own files; the archive would be refused.
fn consistent(ops: &[Op]) -> Vec<Op> {
    let mut kept: Vec<Op> = Vec::new();
    for op in ops {
        let path = match op {
            Op::File(p, _) | Op::Dir(p, _) | Op::Whiteout(p) => p.clone(),
            Op::Opaque(p) => format!("{p}/x"),
        };
        let clash = kept.iter().any(|other| match other {
            Op::File(p, _) => p == &path || below(p)(&path) || below(&path)(p),
            Op::Dir(p, _) => p == &path || (matches!(op, Op::File(..)) && below(&path)(p)),
            Op::Whiteout(p) => p == &path || below(p)(&path) || below(&path)(p),
            Op::Opaque(p) => matches!(op, Op::File(..)) && (p == &path || below(&path)(p)),
        });
        if !clash {
            kept.push(op.clone());
        }
    }
    kept
}

/// Whiteouts speak of the layers below, so they come first.
fn apply(tree: &mut Tree, ops: &[Op]) {
    for op in ops {
        match op {
            Op::Whiteout(path) => remove(tree, path),
            Op::Opaque(dir) => tree.retain(|p, _| !below(dir)(p)),
            _ => {}
        }
    }
    for op in ops {
        match op {
            Op::Whiteout(path) => parents(tree, path),
            Op::Opaque(dir) => parents(tree, &format!("{dir}/x")),
            _ => {}
        }
    }
    for op in ops {
        match op {
            Op::File(path, n) => {
                parents(tree, path);
                remove(tree, path);
                tree.insert(path.clone(), Node::File(vec![*n]));
            }
            Op::Dir(path, mode) => {
                parents(tree, path);
                tree.insert(path.clone(), Node::Dir(*mode));
            }
            _ => {}
        }
    }
}

fn tar_of(ops: &[Op]) -> Vec<u8> {
    let mut tar = Tar::new();
    for op in ops {
        let hidden = |path: &str| match path.rsplit_once('/') {
            Some((dir, name)) => format!("{dir}/.wh.{name}"),
            None => format!(".wh.{path}"),
        };
        tar = match op {
            Op::File(path, n) => tar.file(path, &[*n]),
            Op::Dir(path, mode) => tar.entry(EntryType::Directory, &format!("{path}/"), "", *mode, b""),
            Op::Whiteout(path) => tar.file(&hidden(path), b""),
            Op::Opaque(path) => tar.file(&format!("{path}/.wh..wh..opq"), b""),
        };
    }
    tar.build()
}

fn scan(dir: &Path, prefix: &str, tree: &mut Tree) {
    use std::os::unix::fs::MetadataExt;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            tree.insert(name.clone(), Node::Dir(meta.mode() & 0o7777));
            scan(&entry.path(), &format!("{name}/"), tree);
        } else {
            tree.insert(name, Node::File(std::fs::read(entry.path()).unwrap()));
        }
    }
}

fn merged(layers: &[std::path::PathBuf]) -> Tree {
    let (at, bottom) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut lower: Vec<String> = layers.iter().map(|l| l.display().to_string()).collect();
    // Without an upper folder overlayfs wants two lower ones.
    lower.push(bottom.path().display().to_string());
    let options = format!("lowerdir={}", lower.join(":"));
    mount(Some("overlay"), at.path(), Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let mut tree = Tree::new();
    scan(at.path(), "", &mut tree);
    umount2(at.path(), MntFlags::MNT_DETACH).unwrap();
    tree
}

fn op() -> impl Strategy<Value = Op> {
    let path =
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|p| p.join("/"));
    (path, 0..8_u8, prop::sample::select(vec![0o755, 0o700, 0o1777])).prop_map(
        |(path, kind, mode)| match kind {
            0..=2 => Op::File(path, mode as u8 ^ kind),
            3..=4 => Op::Dir(path, mode),
            5..=6 => Op::Whiteout(path),
            _ => Op::Opaque(path),
        },
    )
}

#[test]
fn overlayfs_shows_what_the_layers_say() {
    let store = store();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let config = ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() };
    let image = prop::collection::vec(prop::collection::vec(op(), 1..7), 1..5);
    proptest!(config, |(layers in image)| {
        let layers: Vec<Vec<Op>> = layers.iter().map(|ops| consistent(ops)).collect();
        let mut expected = Tree::new();
        for ops in &layers {
            apply(&mut expected, ops);
        }
        let layout = Layout::with(&Spec::of(layers.iter().map(|ops| tar_of(ops)).collect()), "x:y");
        let image = store.load_path(layout.path(), &LoadOptions::default()).unwrap().remove(0);
        prop_assert_eq!(merged(&image.layers), expected);
        store.prune(&|_| false).unwrap();
    });
}
