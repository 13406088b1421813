//! The folder watcher against real folders.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_reconciler::folder::{FolderEvent, Options, watch};
use berth_reconciler::manifest::Context;
use tokio::sync::mpsc::UnboundedReceiver;

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  containers:\n  - name: c\n    image: {image}\n"
    )
}

fn start(dir: &Path) -> UnboundedReceiver<FolderEvent> {
    let context = Context { node_name: "node1".to_owned(), ..Context::default() };
    watch(vec![dir.to_owned()], context, Options { rescan: Duration::from_secs(3600) })
}

async fn next(events: &mut UnboundedReceiver<FolderEvent>) -> FolderEvent {
    tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("no event within 10 s").unwrap()
}

async fn synced(events: &mut UnboundedReceiver<FolderEvent>) -> Vec<FolderEvent> {
    let mut before = Vec::new();
    loop {
        match next(events).await {
            FolderEvent::Synced => return before,
            event => before.push(event),
        }
    }
}

/// File, pod names, number of errors.
fn summary(event: &FolderEvent) -> (PathBuf, Vec<String>, usize) {
    match event {
        FolderEvent::Loaded { file, pods, errors, broken, .. } => {
            assert_eq!(*broken, !errors.is_empty());
            (file.clone(), pods.iter().map(|p| p.name().to_owned()).collect(), errors.len())
        }
        other => panic!("not Loaded: {other:?}"),
    }
}

fn removed(event: &FolderEvent) -> PathBuf {
    match event {
        FolderEvent::Removed { file } => file.clone(),
        other => panic!("not Removed: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn add_change_break_mend_remove() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.yaml");
    fs::write(&file, pod("web", "nginx:1")).unwrap();
    fs::write(dir.path().join(".hidden.yaml"), "garbage: [").unwrap();
    fs::write(dir.path().join("web.yaml~"), "garbage: [").unwrap();
    let mut events = start(dir.path());
    let first = synced(&mut events).await;
    assert_eq!(first.len(), 1);
    assert_eq!(summary(&first[0]), (file.clone(), vec!["web-node1".to_owned()], 0));

    fs::write(&file, pod("web", "nginx:2")).unwrap();
    let changed = next(&mut events).await;
    assert_eq!(summary(&changed).1, ["web-node1"]);
    fs::write(
        &file,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, imag: x}]}\n",
    )
    .unwrap();
    let (_, pods, errors) = summary(&next(&mut events).await);
    assert!(pods.is_empty());
    assert_eq!(errors, 2, "unknown field and missing image");
    fs::write(&file, pod("web", "nginx:2")).unwrap();
    let mended = next(&mut events).await;
    let uid = |event: &FolderEvent| match event {
        FolderEvent::Loaded { pods, .. } => pods[0].uid().to_owned(),
        other => panic!("{other:?}"),
    };
    assert_eq!(uid(&changed), uid(&mended), "the same manifest is the same pod");
    assert_ne!(uid(&first[0]), uid(&mended));
    fs::remove_file(&file).unwrap();
    assert_eq!(removed(&next(&mut events).await), file);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_into_the_folder_arrives_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = start(dir.path());
    synced(&mut events).await;
    for i in 0..20 {
        let temporary = dir.path().join(".new");
        fs::write(&temporary, pod(&format!("web{i}"), "nginx:1")).unwrap();
        fs::rename(&temporary, dir.path().join(format!("web{i}.yaml"))).unwrap();
        // No rescan is due for an hour: only the rename's own event can bring it.
        assert_eq!(summary(&next(&mut events).await).1, [format!("web{i}-node1")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_says_the_same_again_is_no_news() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.yaml");
    fs::write(&file, pod("web", "nginx:1")).unwrap();
    let mut events = start(dir.path());
    synced(&mut events).await;
    fs::write(&file, pod("web", "nginx:1")).unwrap();
    fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .unwrap()
        .set_modified(std::time::SystemTime::now())
        .unwrap();
    fs::write(dir.path().join("db.yaml"), pod("db", "postgres:1")).unwrap();
    assert_eq!(summary(&next(&mut events).await).1, ["db-node1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_file_that_nobody_writes_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = start(&dir.path().join("later"));
    synced(&mut events).await;
    // The file comes with its folder, so that no event tells of its own making.
    fs::create_dir(dir.path().join("early")).unwrap();
    fs::write(dir.path().join("early/web.yaml"), "").unwrap();
    fs::rename(dir.path().join("early"), dir.path().join("later")).unwrap();
    assert_eq!(summary(&next(&mut events).await), (dir.path().join("later/web.yaml"), vec![], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_editor_that_moves_the_old_file_aside_removes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.yaml");
    fs::write(&file, pod("web", "nginx:1")).unwrap();
    let mut events = start(dir.path());
    synced(&mut events).await;
    fs::write(dir.path().join("4913"), "").unwrap();
    fs::remove_file(dir.path().join("4913")).unwrap();
    fs::rename(&file, dir.path().join("web.yaml~")).unwrap();
    fs::write(&file, pod("web", "nginx:2")).unwrap();
    fs::remove_file(dir.path().join("web.yaml~")).unwrap();
    assert_eq!(summary(&next(&mut events).await).1, ["web-node1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_of_two_files_owns_a_pod() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.yaml"), dir.path().join("b.yaml"));
    fs::write(&a, pod("web", "one")).unwrap();
    fs::write(&b, pod("web", "two")).unwrap();
    let mut events = start(dir.path());
    let first = synced(&mut events).await;
    assert_eq!(summary(&first[0]), (a.clone(), vec!["web-node1".to_owned()], 0));
    assert_eq!(summary(&first[1]), (b.clone(), vec![], 1));
    match &first[1] {
        FolderEvent::Loaded { errors, .. } => {
            let expected = format!(
                "{}:1: metadata.name: {} already has a Pod default/web (rename or remove one of them)",
                b.display(),
                a.display()
            );
            assert_eq!(errors[0].to_string(), expected);
        }
        other => panic!("{other:?}"),
    }
    fs::remove_file(&a).unwrap();
    assert_eq!(removed(&next(&mut events).await), a);
    assert_eq!(summary(&next(&mut events).await), (b, vec!["web-node1".to_owned()], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_folder_is_awaited_and_a_replaced_one_followed() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("etc/manifests");
    let mut events = start(&dir);
    assert!(synced(&mut events).await.is_empty());
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("web.yaml"), pod("web", "one")).unwrap();
    assert_eq!(summary(&next(&mut events).await).1, ["web-node1"]);

    let other = root.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("web.yaml"), pod("web", "two")).unwrap();
    fs::write(other.join("db.yaml"), pod("db", "two")).unwrap();
    fs::rename(&dir, root.path().join("old")).unwrap();
    fs::rename(&other, &dir).unwrap();
    let mut names = vec![summary(&next(&mut events).await).1, summary(&next(&mut events).await).1];
    names.sort();
    assert_eq!(names, [["db-node1"], ["web-node1"]]);
    fs::write(dir.join("more.yaml"), pod("more", "x")).unwrap();
    assert_eq!(summary(&next(&mut events).await).1, ["more-node1"]);
    fs::remove_dir_all(&dir).unwrap();
    let mut gone = vec![
        removed(&next(&mut events).await),
        removed(&next(&mut events).await),
        removed(&next(&mut events).await),
    ];
    gone.sort();
    assert_eq!(gone, [dir.join("db.yaml"), dir.join("more.yaml"), dir.join("web.yaml")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_are_swapped_like_a_mounted_config_map() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (version, image) in [("..v1", "one"), ("..v2", "two")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("web.yaml"), pod("web", image)).unwrap();
    }
    std::os::unix::fs::symlink("..v1", at("..data")).unwrap();
    std::os::unix::fs::symlink("..data/web.yaml", at("web.yaml")).unwrap();
    let mut events = start(dir.path());
    assert_eq!(synced(&mut events).await.len(), 1);
    std::os::unix::fs::symlink("..v2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    match next(&mut events).await {
        FolderEvent::Loaded { pods, .. } => {
            assert_eq!(pods[0].spec().containers[0].image.as_deref(), Some("two"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_files_get_errors_and_disturb_nobody() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a-empty.yaml"), "").unwrap();
    fs::write(dir.path().join("b-binary.yaml"), b"apiVersion: v1\n\xff\xfe").unwrap();
    fs::write(dir.path().join("c-huge.yaml"), vec![b'#'; (10 << 20) + 1]).unwrap();
    std::os::unix::fs::symlink("/nowhere", dir.path().join("d-link.yaml")).unwrap();
    fs::create_dir(dir.path().join("e-folder.yaml")).unwrap();
    fs::write(dir.path().join("f.json"), r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"j"},"spec":{"containers":[{"name":"c","image":"i"}]}}"#).unwrap();
    let mut events = start(dir.path());
    let all: Vec<_> = synced(&mut events).await.iter().map(summary).collect();
    let texts: Vec<_> = all
        .iter()
        .map(|(file, pods, errors)| {
            (file.file_name().unwrap().to_str().unwrap().to_owned(), pods.len(), *errors)
        })
        .collect();
    let expected = [
        ("a-empty.yaml", 0, 1),
        ("b-binary.yaml", 0, 1),
        ("c-huge.yaml", 0, 1),
        ("d-link.yaml", 0, 1),
        ("f.json", 1, 0),
    ];
    assert_eq!(texts, expected.map(|(name, pods, errors)| (name.to_owned(), pods, errors)));
}
