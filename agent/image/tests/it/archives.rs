//! Import, load and save, also with the tools that others use.

use std::path::Path;
use std::sync::{Arc, Mutex};

use berth_image::{Error, ImportOptions, LoadOptions, Progress, Status};
use serde_json::json;

use crate::support::layout::{Layout, Spec, digest};
use crate::support::tars::{Pack, Tar, gzip, noise, zstd};
use crate::support::{file_in, run, store};

fn two_layers() -> Spec {
    Spec {
        config: json!({
            "Env": ["PATH=/bin", "A=b"], "Cmd": ["-c", "echo"], "Entrypoint": ["/bin/sh"], "User": "1:2",
            "WorkingDir": "/work", "StopSignal": "SIGQUIT", "Labels": {"l": "v"},
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Volumes": {"/data": {}}, "OnBuild": null,
        }),
        ..Spec::of(vec![
            Tar::new().dir("d/").file("d/old", b"old").file("d/both", b"lower").build(),
            Tar::new().file("d/.wh.old", b"").file("d/both", b"upper").build(),
        ])
    }
}

#[test]
fn import_gives_the_image_its_configuration() {
    let store = store();
    let seen: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let sink = Arc::clone(&seen);
    let options = ImportOptions {
        cmd: vec!["-l".into()],
        entrypoint: vec!["/bin/ls".into()],
        env: vec!["A=1".into()],
        user: "7".into(),
        working_dir: "/w".into(),
        stop_signal: "SIGINT".into(),
        exposed_ports: vec!["8080/tcp".into()],
        volumes: vec!["/v".into()],
        labels: [("k".to_owned(), "v".to_owned())].into(),
        progress: Some(Arc::new(move |p| sink.lock().unwrap().push(p))),
    };
    let image = store.import(&Tar::new().file("f", b"x").build()[..], "app", &options).unwrap();
    assert_eq!(image.config.cmd, ["-l"]);
    assert_eq!(image.config.entrypoint, ["/bin/ls"]);
    assert_eq!(image.config.env.len(), 2);
    assert!(image.config.env[0].starts_with("PATH="));
    assert_eq!((image.config.user.as_str(), image.config.working_dir.as_str()), ("7", "/w"));
    assert_eq!(image.config.stop_signal, "SIGINT");
    assert_eq!(image.config.exposed_ports, ["8080/tcp"]);
    assert_eq!(image.config.volumes, ["/v"]);
    assert_eq!(image.config.labels["k"], "v");
    assert_eq!(image.os, "linux");
    assert!(image.created.is_some());
    assert_eq!(store.raw_config("app").unwrap()["config"]["Cmd"], json!(["-l"]));
    let last = seen.lock().unwrap().last().unwrap().clone();
    assert_eq!((last.status, last.current), (Status::PullComplete, last.total));
    assert!(matches!(store.import(&b""[..], "Bad", &options), Err(Error::InvalidName { .. })));
}

#[test]
fn oci_layouts_load_from_folder_and_tar() {
    let layout = Layout::with(&two_layers(), "reg.io/team/app:v1");
    let tar = tempfile::NamedTempFile::new().unwrap();
    let at = layout.path().to_str().unwrap();
    run("tar", &["-C", at, "-czf", tar.path().to_str().unwrap(), "."]);
    for path in [layout.path(), tar.path()] {
        let store = store();
        let images = store.load_path(path, &LoadOptions::default()).unwrap();
        let [image] = &images[..] else { panic!("{images:?}") };
        assert_eq!(image.repo_tags, ["reg.io/team/app:v1"]);
        assert_eq!(image.layers.len(), 2);
        assert_eq!(file_in(image, "d/both").unwrap(), b"upper");
        assert_eq!(image.config.exposed_ports, ["53/udp", "80/tcp"]);
        assert_eq!(image.config.volumes, ["/data"]);
        assert_eq!(image.config.entrypoint, ["/bin/sh"]);
        assert_eq!(image.created.unwrap().to_string(), "2024-01-02T03:04:05Z");
        assert_eq!(store.names("tmp"), Vec::<String>::new());
        // A second time there is nothing to do, and nothing is lost.
        assert_eq!(store.load_path(path, &LoadOptions::default()).unwrap(), images);
    }
}

#[test]
fn every_compression_loads() {
    let packs: [(Pack, &str); 3] = [(gzip, "+gzip"), (zstd, "+zstd"), (<[u8]>::to_vec, "")];
    let mut layers = Vec::new();
    for (pack, suffix) in packs {
        let store = store();
        let layout = Layout::with(&Spec { pack, suffix, ..two_layers() }, "a:b");
        let image = store.load_path(layout.path(), &LoadOptions::default()).unwrap().remove(0);
        layers.push(store.names("layers"));
        assert_eq!(file_in(&image, "d/both").unwrap(), b"upper");
    }
    assert!(layers.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn docker_archives_load() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::with(&two_layers(), "app:v1");
    let from = format!("oci:{}:app:v1", layout.path().display());
    let file = dir.path().join("docker.tar");
    let to = format!("docker-archive:{}:example.com/app:v7", file.display());
    run("skopeo", &["--insecure-policy", "copy", "--quiet", &from, &to]);
    let store = store();
    let images = store.load(std::fs::File::open(&file).unwrap(), &LoadOptions::default()).unwrap();
    assert_eq!(images[0].repo_tags, ["example.com/app:v7"]);
    assert_eq!(file_in(&images[0], "d/both").unwrap(), b"upper");
    // The old way: folders with layer.tar, equal layers as links.
    let layer = Tar::new().file("f", b"1").build();
    let config = json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer), digest(&layer)]}})
    .to_string();
    let manifest = json!([{"Config": "c.json", "RepoTags": ["old:1", "old:2"], "Layers": ["a/layer.tar", "b/layer.tar"]}]);
    let tar = Tar::new()
        .file("c.json", config.as_bytes())
        .dir("a/")
        .file("a/layer.tar", &layer)
        .symlink("b/layer.tar", "../a/layer.tar")
        .file("manifest.json", manifest.to_string().as_bytes())
        .build();
    let images = store.load(&tar[..], &LoadOptions::default()).unwrap();
    assert_eq!(images[0].repo_tags, ["docker.io/library/old:1", "docker.io/library/old:2"]);
    assert_eq!(images[0].layers.len(), 2);
    assert_ne!(images[0].layers[0], images[0].layers[1], "overlayfs refuses a layer twice");
}

#[test]
fn broken_archives_leave_nothing() {
    let missing = Layout::with(&two_layers(), "a:b");
    let layer = crate::support::names_in(&missing.path().join("blobs/sha256"))
        .into_iter()
        .find(|n| {
            std::fs::read(missing.path().join("blobs/sha256").join(n)).unwrap().starts_with(&[0x1f, 0x8b])
        })
        .unwrap();
    let wrong = Layout::with(&two_layers(), "a:b");
    std::fs::write(wrong.path().join("blobs/sha256").join(&layer), gzip(b"something else")).unwrap();
    std::fs::remove_file(missing.path().join("blobs/sha256").join(&layer)).unwrap();
    let mut lying = Layout::new();
    let mut spec = two_layers();
    let image = lying.image(&spec);
    lying.list(image, "a:b");
    spec.layers[0] = Tar::new().file("other", b"").build();
    spec.pack = |_| gzip(&Tar::new().file("no such diff id", b"").build());
    let image = lying.image(&spec);
    lying.list(image, "c:d");
    let empty = Layout::new();
    let nothing = tempfile::tempdir().unwrap();
    for path in [missing.path(), wrong.path(), lying.path(), empty.path(), nothing.path()] {
        let store = store();
        let error = store.load_path(path, &LoadOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        for folder in ["tmp", "layers", "blobs/sha256"] {
            assert_eq!(store.names(folder), Vec::<String>::new(), "{error}");
        }
        assert_eq!(store.list().unwrap(), []);
    }
    let store = store();
    assert!(matches!(store.load(&b"junk"[..], &LoadOptions::default()), Err(Error::Corrupt { .. })));
    let missing = store.load_path(Path::new("/no/such/file"), &LoadOptions::default());
    assert!(matches!(missing, Err(Error::Io { .. })));
}

#[test]
fn archives_for_other_machines_are_named_as_such() {
    let mut layout = Layout::new();
    let image = layout.image(&Spec { architecture: "s390x".into(), ..two_layers() });
    let mut entry = image.clone();
    entry["platform"] = json!({"os": "linux", "architecture": "s390x"});
    layout.list(entry, "a:b");
    let error = store().load_path(layout.path(), &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, Error::NoMatchingPlatform { .. }), "{error}");
    assert!(error.to_string().contains("s390x"));
}

#[test]
fn saved_archives_are_read_by_skopeo_and_by_us() {
    let store = store();
    let big = Tar::new().file("noise", &noise(1, 300_000)).build();
    store.import(&big[..], "reg.io/one:1", &ImportOptions::default()).unwrap();
    let layout = Layout::with(&two_layers(), "two:2");
    store.load_path(layout.path(), &LoadOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("saved.tar");
    store.save(&["reg.io/one:1", "two:2"], std::fs::File::create(&file).unwrap()).unwrap();

    let other = crate::support::store();
    let images = other.load_path(&file, &LoadOptions::default()).unwrap();
    let ids = |images: &[berth_image::Image]| {
        images.iter().map(|i| i.id.clone()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(ids(&images), ids(&store.list().unwrap()));
    assert_eq!(images[0].repo_tags, ["reg.io/one:1"]);
    assert_eq!(images[0].manifest, store.get("reg.io/one:1").unwrap().unwrap().manifest);

    let out = |name: &str| format!("dir:{}", dir.path().join(name).display());
    let docker = format!("docker-archive:{}:docker.io/library/two:2", file.display());
    run("skopeo", &["--insecure-policy", "copy", "--quiet", &docker, &out("a")]);
    let single = dir.path().join("single.tar");
    store.save(&["two:2"], std::fs::File::create(&single).unwrap()).unwrap();
    let oci = format!("oci-archive:{}:2", single.display());
    run("skopeo", &["--insecure-policy", "copy", "--quiet", &oci, &out("b")]);
    assert!(matches!(store.save(&["three"], std::io::sink()), Err(Error::NotFound { .. })));
}

#[test]
fn images_made_by_umoci_load() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let image = format!("{}:base", layout.display());
    let bundle = dir.path().join("bundle");
    run("umoci", &["init", "--layout", layout.to_str().unwrap()]);
    run("umoci", &["new", "--image", &image]);
    run("umoci", &["unpack", "--image", &image, bundle.to_str().unwrap()]);
    let bin = bundle.join("rootfs/bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", bin.join("sh")).unwrap();
    run("umoci", &["repack", "--image", &image, bundle.to_str().unwrap()]);
    run("umoci", &["config", "--image", &image, "--config.cmd", "/bin/sh", "--config.env", "X=y"]);
    let store = store();
    let images = store.load_path(&layout, &LoadOptions::default()).unwrap();
    assert_eq!(images[0].repo_tags, Vec::<String>::new(), "`base` alone is no name");
    assert_eq!(images[0].config.cmd, ["/bin/sh"]);
    let named = store.tag(&images[0].id, "busybox:1").unwrap();
    assert_eq!(file_in(&named, "bin/busybox").unwrap(), std::fs::read("/bin/busybox").unwrap());
}
