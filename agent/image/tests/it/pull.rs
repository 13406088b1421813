//! Pulling from a real registry.

use std::sync::{Arc, Mutex};

use berth_image::{Credentials, Error, LoadOptions, Progress, PullOptions, Status};
use serde_json::json;

use crate::support::layout::{Layout, Spec};
use crate::support::registry::Registry;
use crate::support::tars::{Tar, noise, zstd};
use crate::support::{file_in, never_in_use, runtime, store};

fn spec() -> Spec {
    let layers = (1..=5).map(|n| {
        Tar::new()
            .dir("d/")
            .file(&format!("d/{n}"), &noise(n, 200_000))
            .file("d/top", n.to_string().as_bytes())
            .build()
    });
    Spec { config: json!({"Cmd": ["/app"]}), ..Spec::of(layers.collect()) }
}

fn options() -> PullOptions {
    PullOptions::default()
}

#[test]
fn oci_and_schema2_images_are_pulled() {
    let registry = Registry::start();
    let layout = Layout::with(&spec(), "x");
    for format in ["oci", "v2s2"] {
        let store = store();
        let name = registry.push(&layout, "x", &format!("team/app:{format}"), &["--format", format]);
        let seen: Arc<Mutex<Vec<Progress>>> = Arc::default();
        let sink = Arc::clone(&seen);
        let options = PullOptions {
            progress: Some(Arc::new(move |p| sink.lock().unwrap().push(p))),
            ..PullOptions::default()
        };
        let image = runtime().block_on(store.pull(&name, &options)).unwrap();
        assert_eq!(image.repo_tags, std::slice::from_ref(&name));
        assert_eq!(image.repo_digests.len(), 1);
        assert_eq!(image.config.cmd, ["/app"]);
        assert_eq!(image.layers.len(), 5);
        assert_eq!(file_in(&image, "d/top").unwrap(), b"5");
        assert_eq!(file_in(&image, "d/1").unwrap(), noise(1, 200_000));
        assert_eq!(store.names("tmp"), Vec::<String>::new());
        let done = |status| seen.lock().unwrap().iter().filter(|p| p.status == status).count();
        assert_eq!((done(Status::PullingFsLayer), done(Status::PullComplete)), (5, 5));
        assert!(seen.lock().unwrap().iter().all(|p| p.layer.len() == 12 && p.current <= p.total));

        // By digest, without the registry, and again with it.
        let by_digest = image.repo_digests[0].clone();
        let same = runtime().block_on(store.pull(&by_digest, &PullOptions::default())).unwrap();
        assert_eq!(same.id, image.id);
        seen.lock().unwrap().clear();
        runtime().block_on(store.pull(&name, &options)).unwrap();
        assert_eq!(done(Status::AlreadyExists), 5);
        // The saved form is one that others read.
        let file = store.dir.path().join("saved.tar");
        store.save(&[&name], std::fs::File::create(&file).unwrap()).unwrap();
        let other = crate::support::store();
        assert_eq!(other.load_path(&file, &LoadOptions::default()).unwrap()[0].id, image.id);
    }
}

#[test]
fn digest_references_are_pulled_and_removed() {
    let registry = Registry::start();
    let layout = Layout::with(&spec(), "x");
    let tagged = registry.push(&layout, "x", "app:v1", &[]);
    let first = store();
    let image = runtime().block_on(first.pull(&tagged, &options())).unwrap();
    let second = store();
    let by_digest = &image.repo_digests[0];
    let pulled = runtime().block_on(second.pull(by_digest, &options())).unwrap();
    assert_eq!((&pulled.id, pulled.repo_tags.len()), (&image.id, 0));
    assert_eq!(second.get(by_digest).unwrap().unwrap().id, image.id);
    second.remove(by_digest, &never_in_use).unwrap();
    assert_eq!(second.list().unwrap(), []);
    let unknown = format!("{}@sha256:{}", tagged.rsplit_once(':').unwrap().0, "0".repeat(64));
    let error = runtime().block_on(second.pull(&unknown, &options())).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[test]
fn an_index_gives_the_image_for_this_machine() {
    let registry = Registry::start();
    let mut layout = Layout::new();
    let here = Spec::of(vec![]).architecture;
    let ours = Spec::of(vec![Tar::new().file("who", b"here").build()]);
    let theirs =
        Spec { architecture: "s390x".into(), ..Spec::of(vec![Tar::new().file("who", b"there").build()]) };
    let (ours, theirs) = (layout.image(&ours), layout.image(&theirs));
    let both = layout.index(&[(theirs.clone(), "s390x"), (ours.clone(), &here)]);
    let foreign = layout.index(&[(theirs.clone(), "s390x")]);
    layout.list(both.clone(), "both");
    layout.list(foreign, "foreign");
    layout.list(theirs, "single");
    let store = store();
    let name = registry.push(&layout, "both", "app:both", &["--all"]);
    let image = runtime().block_on(store.pull(&name, &options())).unwrap();
    assert_eq!(file_in(&image, "who").unwrap(), b"here");
    assert_eq!(image.manifest, ours["digest"].as_str().unwrap());
    assert!(image.repo_digests[0].ends_with(both["digest"].as_str().unwrap()));
    // Both digests mean it: the index's and the manifest's.
    let repository = name.rsplit_once(':').unwrap().0;
    for digest in [&both, &ours] {
        let reference = format!("{repository}@{}", digest["digest"].as_str().unwrap());
        assert_eq!(store.get(&reference).unwrap().unwrap().id, image.id);
    }
    for tag in ["foreign", "single"] {
        let name = registry.push(&layout, tag, &format!("app:{tag}"), &["--all"]);
        let error = runtime().block_on(store.pull(&name, &options())).unwrap_err();
        assert!(matches!(error, Error::NoMatchingPlatform { .. }), "{error}");
        assert!(error.to_string().contains("s390x"), "{error}");
    }
}

#[test]
fn zstd_layers_are_pulled() {
    let registry = Registry::start();
    let layout = Layout::with(&Spec { pack: zstd, suffix: "+zstd", ..spec() }, "x");
    let name = registry.push(&layout, "x", "app:zstd", &[]);
    let store = store();
    let image = runtime().block_on(store.pull(&name, &options())).unwrap();
    assert_eq!(file_in(&image, "d/5").unwrap(), noise(5, 200_000));
}

#[test]
fn passwords_are_asked_for_and_given() {
    let registry = Registry::start_with_password();
    let layout = Layout::with(&spec(), "x");
    let name = registry.push(&layout, "x", "private/app", &[]);
    let store = store();
    let with = |password: &str| PullOptions {
        auth: Some(("user".into(), password.into())),
        ..PullOptions::default()
    };
    for options in [options(), with("wrong")] {
        let error = runtime().block_on(store.pull(&name, &options)).unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
        assert!(!error.to_string().contains("wrong"));
    }
    assert_eq!(runtime().block_on(store.pull(&name, &with("s3cret"))).unwrap().layers.len(), 5);
    assert!(!format!("{:?}", with("s3cret")).contains("s3cret"));
}

#[test]
fn what_is_missing_is_named() {
    let registry = Registry::start();
    let layout = Layout::with(&spec(), "x");
    registry.push(&layout, "x", "app:v1", &[]);
    let store = store();
    for name in ["app:v2", "nothing:v1"] {
        let error =
            runtime().block_on(store.pull(&format!("{}/{name}", registry.address), &options())).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
    let bad = runtime().block_on(store.pull("Not A Name", &options())).unwrap_err();
    assert!(matches!(bad, Error::InvalidName { .. }), "{bad}");
}

#[test]
fn blobs_that_rotted_in_the_registry_are_refused() {
    let registry = Registry::start();
    let layout = Layout::with(&spec(), "x");
    let name = registry.push(&layout, "x", "app:v1", &[]);
    let healthy = store();
    let image = runtime().block_on(healthy.pull(&name, &options())).unwrap();
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(registry.blob(&image.manifest)).unwrap()).unwrap();
    let victim = registry.blob(manifest["layers"][2]["digest"].as_str().unwrap());
    let mut bytes = std::fs::read(&victim).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&victim, &bytes).unwrap();
    let store = store();
    let error = runtime().block_on(store.pull(&name, &options())).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(store.names("tmp"), Vec::<String>::new());
    // Healed, the pull goes on with what it had.
    bytes[middle] ^= 1;
    std::fs::write(&victim, &bytes).unwrap();
    runtime().block_on(store.pull(&name, &options())).unwrap();
}

#[test]
fn concurrent_pulls_and_removals_agree() {
    let registry = Registry::start();
    let layout = Layout::with(&spec(), "x");
    let name = registry.push(&layout, "x", "app:v1", &[]);
    let store = store();
    runtime().block_on(async {
        let pulls = (0..8).map(|n| {
            let (store, name) = (store.store.clone(), name.clone());
            tokio::spawn(async move {
                if n == 3 {
                    let _ = tokio::task::spawn_blocking(move || store.prune(&|_| false)).await.unwrap();
                    return;
                }
                let image = store.pull(&name, &PullOptions::default()).await;
                // Pruned right after the commit, it may be gone already.
                assert!(matches!(&image, Ok(_) | Err(Error::NotFound { .. })), "{image:?}");
            })
        });
        for pull in pulls.collect::<Vec<_>>() {
            pull.await.unwrap();
        }
        let image = store.pull(&name, &PullOptions::default()).await.unwrap();
        assert_eq!(file_in(&image, "d/3").unwrap(), noise(3, 200_000));
    });
    assert_eq!(store.names("tmp"), Vec::<String>::new());
}

#[test]
fn a_registry_with_a_certificate_of_its_own_is_trusted_by_its_folder() {
    let registry = Registry::start_with_tls_and_password();
    let layout = Layout::with(&spec(), "x");
    let name = registry.push(&layout, "x", "team/app:v1", &[]);
    let certs = tempfile::tempdir().unwrap();
    let folder = certs.path().join(&registry.address);
    std::fs::create_dir(&folder).unwrap();
    let credentials = format!(r#"{{"auths": {{"{}": {{"auth": "dXNlcjpzM2NyZXQ="}}}}}}"#, registry.address);
    let credentials = Credentials::from_config_json(credentials.as_bytes()).unwrap();
    let pull = || {
        let options = PullOptions {
            auth: credentials.for_image(&name).into_iter().next(),
            certs_dirs: vec![certs.path().join("none"), certs.path().to_owned()],
            ..PullOptions::default()
        };
        runtime().block_on(store().pull(&name, &options))
    };

    // An empty folder says https, but not whom to trust.
    let error = pull().unwrap_err();
    assert!(matches!(error, Error::RegistryUnavailable { .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");

    // A bundle of two, of which the second is the right one.
    let other = Registry::start_with_tls_and_password();
    std::fs::write(folder.join("ca.crt"), other.authority() + &registry.authority()).unwrap();
    std::fs::write(folder.join("notes.txt"), "no certificate").unwrap();
    assert_eq!(pull().unwrap().config.cmd, ["/app"]);

    std::fs::write(folder.join("empty.crt"), "").unwrap();
    let error = pull().unwrap_err().to_string();
    assert!(error.contains("empty.crt") && error.contains("no certificate"), "{error}");
    std::fs::remove_file(folder.join("empty.crt")).unwrap();
    std::fs::write(folder.join("client.cert"), "").unwrap();
    let error = pull().unwrap_err().to_string();
    assert!(error.contains("client certificate") && error.contains("client.cert"), "{error}");
}
