//! Names, tags, removal.

use berth_image::{Error, ImportOptions, Store, default_pull_policy_is_always, normalize};

use crate::support::tars::Tar;
use crate::support::{TestStore, never_in_use, store};

#[test]
fn references_are_normalised_as_docker_does() {
    let hex = "a".repeat(64);
    let digested = format!("reg.io:5000/a/b@sha256:{hex}");
    let cases = [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.2", "docker.io/library/nginx:1.2"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("127.0.0.1:5000/app:v1", "127.0.0.1:5000/app:v1"),
        ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
        (digested.as_str(), digested.as_str()),
    ];
    for (given, want) in cases {
        assert_eq!(normalize(given).unwrap(), want, "{given}");
    }
    assert_eq!(normalize(&format!("reg.io:5000/a/b:tag@sha256:{hex}")).unwrap(), digested);
}

#[test]
fn bad_references_are_named_as_such() {
    let id = "a".repeat(64);
    for bad in ["", "UPPER/case", "nginx:", "nginx:a b", "a//b", "-x", "nginx@sha256:12", "http://x/y", &id] {
        assert!(matches!(normalize(bad), Err(Error::InvalidName { .. })), "{bad:?}");
    }
    assert!(normalize("MyApp").unwrap_err().to_string().contains("lowercase"));
}

#[test]
fn latest_is_pulled_always() {
    for (reference, always) in [
        ("nginx", true),
        ("nginx:latest", true),
        ("nginx:1", false),
        ("127.0.0.1:5000/x", true),
        (&format!("nginx@sha256:{}", "a".repeat(64)), false),
    ] {
        assert_eq!(default_pull_policy_is_always(reference), always, "{reference}");
    }
}

fn import(store: &Store, name: &str, content: &str) -> berth_image::Image {
    let tar = Tar::new().file("who", content.as_bytes()).build();
    store.import(&tar[..], name, &ImportOptions::default()).unwrap()
}

#[test]
fn images_are_found_by_every_name_they_have() {
    let store = store();
    let image = import(&store, "app:v1", "a");
    let hex = image.id.strip_prefix("sha256:").unwrap();
    let manifest = image.manifest.as_str();
    for name in ["app:v1", "docker.io/library/app:v1", &image.id, hex, &hex[..12], &image.id[..20], manifest]
    {
        assert_eq!(store.get(name).unwrap().as_ref(), Some(&image), "{name}");
    }
    assert_eq!(store.get("app").unwrap(), None);
    assert_eq!(store.get("other:v1").unwrap(), None);
    assert_eq!(store.get(&format!("app@{manifest}")).unwrap(), Some(image.clone()));
    assert_eq!(store.get(&format!("other@{manifest}")).unwrap(), None);
    assert!(matches!(store.get("BAD"), Err(Error::InvalidName { .. })));
    assert!(matches!(store.get(""), Err(Error::InvalidName { .. })));
}

#[test]
fn a_name_moves_and_the_image_stays() {
    let store = store();
    let (old, new) = (import(&store, "app", "old"), import(&store, "app", "new"));
    assert_ne!(old.id, new.id);
    assert_eq!(store.get("app").unwrap().unwrap().id, new.id);
    assert_eq!(store.get(&old.id).unwrap().unwrap().repo_tags, Vec::<String>::new());
    assert_eq!(store.list().unwrap().len(), 2);
    let tagged = store.tag(&old.id, "localhost/kept:1").unwrap();
    assert_eq!(tagged.repo_tags, ["localhost/kept:1"]);
    assert!(matches!(store.tag("nothing", "x"), Err(Error::NotFound { .. })));
    assert!(matches!(store.tag("app", "Bad"), Err(Error::InvalidName { .. })));
}

fn pieces(store: &TestStore) -> usize {
    store.names("blobs/sha256").len() + store.names("layers").len()
}

#[test]
fn the_last_name_takes_the_image_with_it() {
    let store = store();
    let image = import(&store, "app:1", "x");
    store.tag("app:1", "app:2").unwrap();
    let busy = |_: &berth_image::Image| true;
    let first = store.remove("app:1", &busy).unwrap();
    assert_eq!((first.untagged.len(), first.deleted.len(), first.freed), (1, 0, 0));
    assert!(matches!(store.remove("app:2", &busy), Err(Error::InUse { .. })));
    assert!(store.get("app:2").unwrap().is_some());
    let last = store.remove("app:2", &never_in_use).unwrap();
    assert_eq!(last.deleted, std::slice::from_ref(&image.id));
    assert!(last.freed > 0);
    assert_eq!(pieces(&store), 0);
    assert_eq!(store.names("tmp"), Vec::<String>::new());
    assert!(matches!(store.remove("app:2", &never_in_use), Err(Error::NotFound { .. })));
}

#[test]
fn removal_by_id_takes_all_names() {
    let store = store();
    let image = import(&store, "one", "x");
    store.tag("one", "two").unwrap();
    let removed = store.remove(&image.id[7..19], &never_in_use).unwrap();
    assert_eq!(removed.untagged.len(), 2);
    assert_eq!(store.list().unwrap(), []);
}

#[test]
fn shared_layers_stay_until_nobody_needs_them() {
    let store = store();
    let (one, two) = (import(&store, "one", "same"), import(&store, "two", "same"));
    assert_ne!(one.id, two.id);
    assert_eq!(one.layers, two.layers);
    store.remove("one", &never_in_use).unwrap();
    assert_eq!(std::fs::read(two.layers[0].join("who")).unwrap(), b"same");
    store.remove("two", &never_in_use).unwrap();
    assert_eq!(pieces(&store), 0);
}

#[test]
fn prune_keeps_what_it_is_told_to() {
    let store = store();
    for name in ["a", "b", "c"] {
        import(&store, name, name);
    }
    let removed = store.prune(&|image| image.repo_tags == ["docker.io/library/b:latest"]).unwrap();
    assert_eq!(removed.deleted.len(), 2);
    assert_eq!(removed.untagged, ["docker.io/library/a:latest", "docker.io/library/c:latest"]);
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(store.names("layers").len(), 1);
}

#[test]
fn two_stores_on_one_folder_see_each_other() {
    let one = store();
    let two = Store::open(&one.root()).unwrap();
    let image = import(&one, "app", "x");
    assert_eq!(two.get("app").unwrap(), Some(image));
    import(&two, "other", "y");
    one.remove("app", &never_in_use).unwrap();
    assert_eq!(two.get("app").unwrap(), None);
    assert_eq!(one.list().unwrap().len(), 1);
}

#[test]
fn a_damaged_index_is_an_error_and_not_an_empty_store() {
    let store = store();
    import(&store, "app", "x");
    std::fs::write(store.root().join("index.json"), "{").unwrap();
    assert!(matches!(store.list(), Err(Error::Corrupt { .. })));
    assert!(matches!(Store::open(&store.root()), Err(Error::Corrupt { .. })));
    assert_eq!(store.names("layers").len(), 1);
}
