//! Archives made to harm.

use std::path::Path;

use berth_image::{Error, ImportOptions};
use tar::EntryType;

use crate::support::tars::{Tar, gzip, zstd};
use crate::support::{TestStore, store};

/// Imports next to a folder that must stay as it is.
fn attack(tar: &[u8]) -> (TestStore, Result<berth_image::Image, Error>) {
    let store = store();
    let victim = store.dir.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("passwd"), "root").unwrap();
    let result = store.import(tar, "evil", &ImportOptions::default());
    assert_eq!(crate::support::names_in(&victim), ["passwd"]);
    assert_eq!(std::fs::read(victim.join("passwd")).unwrap(), b"root");
    assert_eq!(crate::support::names_in(store.dir.path()), ["images", "victim"]);
    assert_eq!(store.names("tmp"), Vec::<String>::new());
    if result.is_err() {
        assert_eq!(store.names("blobs/sha256"), Vec::<String>::new());
        assert_eq!(store.names("layers"), Vec::<String>::new());
    }
    (store, result)
}

fn refused(tar: Vec<u8>) -> String {
    match attack(&tar).1 {
        Err(e @ (Error::Corrupt { .. } | Error::Unsupported { .. })) => e.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn names_that_climb_out_are_refused() {
    for name in ["../victim/passwd", "a/../../victim/passwd", "/../../victim/x", ".."] {
        let reason = refused(Tar::new().file(name, b"owned").build());
        assert!(reason.contains("leads out"), "{reason}");
    }
    refused(Tar::new().hardlink("x", "../../victim/passwd").build());
    refused(Tar::new().file("a/.wh...", b"").build());
    refused(Tar::new().file(".wh.", b"").build());
}

#[test]
fn absolute_names_stay_inside() {
    let (_keep, image) = attack(&Tar::new().file("/etc/shadow-of-test", b"inside").build());
    let layer = &image.unwrap().layers[0];
    assert_eq!(std::fs::read(layer.join("etc/shadow-of-test")).unwrap(), b"inside");
    assert!(!Path::new("/etc/shadow-of-test").exists());
}

#[test]
fn links_out_of_the_layer_lead_back_in() {
    let tar = Tar::new()
        .dir("victim/")
        .dir("a/b/")
        .symlink("a/b/up", "../../../../../../../../victim")
        .file("a/b/up/passwd", b"inside 1")
        .symlink("abs", "/victim")
        .file("abs/second", b"inside 2")
        .symlink("chain", "abs")
        .file("chain/third", b"inside 3")
        .build();
    let (_keep, image) = attack(&tar);
    let layer = &image.unwrap().layers[0];
    for (name, text) in [("passwd", "inside 1"), ("second", "inside 2"), ("third", "inside 3")] {
        assert_eq!(std::fs::read_to_string(layer.join("victim").join(name)).unwrap(), text);
    }
}

#[test]
fn links_that_lead_nowhere_are_refused_as_folders() {
    refused(Tar::new().symlink("link", "/nowhere").file("link/file", b"x").build());
    refused(Tar::new().symlink("loop", "loop").file("loop/file", b"x").build());
    refused(Tar::new().symlink("proc", "/proc/self/root").file("proc/tmp/x", b"x").build());
    refused(Tar::new().file("file", b"").file("file/below", b"x").build());
}

#[test]
fn files_are_never_written_through_links() {
    let tar = Tar::new()
        .file("target", b"kept")
        .symlink("link", "target")
        .file("link", b"own file")
        .symlink("out", "/etc/hostname")
        .file("out", b"own file")
        .build();
    let (_keep, image) = attack(&tar);
    let layer = &image.unwrap().layers[0];
    assert_eq!(std::fs::read(layer.join("target")).unwrap(), b"kept");
    assert_eq!(std::fs::read(layer.join("link")).unwrap(), b"own file");
    assert!(layer.join("out").symlink_metadata().unwrap().is_file());
}

#[test]
fn a_folder_swapped_for_a_link_is_seen() {
    // The folder was the one used last, and then becomes a link to elsewhere.
    let tar = Tar::new()
        .dir("other/")
        .dir("d/")
        .file("d/one", b"1")
        .symlink("d", "other")
        .file("d/two", b"2")
        .build();
    let (_keep, image) = attack(&tar);
    let layer = &image.unwrap().layers[0];
    assert_eq!(crate::support::names_in(&layer.join("other")), ["two"]);
}

#[test]
fn hard_links_reach_only_what_the_layer_has() {
    refused(Tar::new().hardlink("x", "/etc/passwd").build());
    refused(Tar::new().symlink("etc", "/etc").hardlink("x", "etc/passwd").build());
    refused(Tar::new().dir("d/").hardlink("x", "d").build());
    refused(Tar::new().file("x", b"").hardlink("x", "x").build());
    // A link to a symbolic link is a link to that, not to where it leads.
    let (_keep, image) = attack(&Tar::new().symlink("s", "/etc/passwd").hardlink("h", "s").build());
    assert!(image.unwrap().layers[0].join("h").symlink_metadata().unwrap().is_symlink());
}

#[test]
fn odd_members_are_refused() {
    refused(Tar::new().entry(EntryType::new(b'V'), "volume", "", 0, b"").build());
    refused(Tar::new().header(|h| h.set_uid(u64::from(u32::MAX)), "x").build());
    refused(Tar::new().header(|h| h.set_uid(1 << 40), "x").build());
    refused(Tar::new().file("./", b"the root as a file").build());
    refused(
        Tar::new()
            .file(&"n".repeat(99), b"")
            .pax(&[("path", "n".repeat(300).as_bytes())])
            .file("x", b"")
            .build(),
    );
}

#[test]
fn no_archive_at_all_is_refused() {
    refused(b"<html>not found</html>".to_vec());
    refused(vec![7; 4096]);
    refused(gzip(b"text"));
    refused(Vec::new());
    let tar = Tar::new().file("x", &[1; 5000]).build();
    refused(tar[..2000].to_vec());
    let packed = gzip(&tar);
    refused(packed[..packed.len() / 2].to_vec());
    let packed = zstd(&tar);
    refused(packed[..packed.len() / 2].to_vec());
}

#[test]
fn headers_that_claim_gigabytes_are_refused_unread() {
    // A long name of 1 GiB that compresses to little.
    let mut tar = Tar::new().file("x", b"").build();
    tar.truncate(512);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 30);
    header.set_cksum();
    let mut bomb = header.as_bytes().to_vec();
    bomb.resize(64 << 20, b'a');
    let reason = refused(zstd(&bomb));
    assert!(reason.contains("larger than is allowed"), "{reason}");
}

#[test]
fn sparse_maps_are_checked() {
    let sparse = |map: &[u8], size: &[u8], data: &[u8]| {
        let keys: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"hole"),
            ("GNU.sparse.realsize", size),
        ];
        let mut body = map.to_vec();
        body.resize(512, 0);
        body.extend_from_slice(data);
        Tar::new().pax(&keys).file("GNUSparseFile.0/hole", &body).build()
    };
    assert!(attack(&sparse(b"1\n100\n3\n", b"200", b"abc")).1.is_ok());
    refused(sparse(b"1\n100\n3\n", b"50", b"abc"));
    refused(sparse(b"1\n100\n30\n", b"200", b"abc"));
    refused(sparse(b"2\n100\n1\n50\n1\n", b"200", b"ab"));
    refused(sparse(b"99999999999999\n", b"200", b""));
    refused(sparse(b"1\n18446744073709551615\n18446744073709551615\n", b"200", b""));
    refused(sparse(b"abc\n", b"200", b""));
    refused(sparse(b"0\n", b"9223372036854775807", b""));
}
