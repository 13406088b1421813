//! What unpacked layers look like.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use berth_image::{Image, ImportOptions, LoadOptions, Store};
use tar::EntryType;

use crate::support::layout::{Layout, Spec};
use crate::support::tars::{Tar, gzip, zstd};
use crate::support::{run, store};

fn unpack(store: &Store, tar: &[u8]) -> (Image, PathBuf) {
    let image = store.import(tar, "x", &ImportOptions::default()).unwrap();
    let layer = image.layers[0].clone();
    (image, layer)
}

fn meta(path: &Path) -> std::fs::Metadata {
    path.symlink_metadata().unwrap()
}

fn is_whiteout(path: &Path) -> bool {
    let meta = meta(path);
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let n = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(n);
    Some(value)
}

#[test]
fn files_keep_everything() {
    let store = store();
    let tar = Tar::new()
        .entry(EntryType::Directory, "./", "", 0o555, b"")
        .entry(EntryType::Directory, "tmp/", "", 0o1777, b"")
        .header(
            |h| {
                h.set_mode(0o4755);
                h.set_uid(12);
                h.set_gid(34);
            },
            "suid",
        )
        .pax(&[("SCHILY.xattr.user.note", b"hello"), ("mtime", b"1600000000.25")])
        .file("noted", b"text")
        .symlink("link", "/etc/passwd")
        .hardlink("same", "noted")
        .header(|h| h.set_entry_type(EntryType::Fifo), "pipe")
        .header(
            |h| {
                h.set_entry_type(EntryType::Char);
                h.set_device_major(1).unwrap();
                h.set_device_minor(3).unwrap();
            },
            "null",
        )
        .build();
    let (_, layer) = unpack(&store, &tar);
    assert_eq!(meta(&layer).mode() & 0o7777, 0o555);
    assert_eq!(
        (meta(&layer.join("tmp")).mode() & 0o7777, meta(&layer.join("tmp")).mtime()),
        (0o1777, 1_700_000_000)
    );
    let suid = meta(&layer.join("suid"));
    assert_eq!((suid.mode() & 0o7777, suid.uid(), suid.gid()), (0o4755, 12, 34));
    let noted = meta(&layer.join("noted"));
    assert_eq!((noted.mtime(), noted.mtime_nsec(), noted.nlink()), (1_600_000_000, 250_000_000, 2));
    assert_eq!(xattr(&layer.join("noted"), "user.note").unwrap(), b"hello");
    assert_eq!(meta(&layer.join("same")).ino(), noted.ino());
    assert_eq!(std::fs::read_link(layer.join("link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(meta(&layer.join("link")).mtime(), 1_700_000_000);
    assert!(meta(&layer.join("pipe")).file_type().is_fifo());
    assert_eq!(meta(&layer.join("null")).rdev(), rustix::fs::makedev(1, 3));
}

#[test]
fn gnu_tar_archives_unpack_the_same_in_every_format() {
    let store = store();
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(140));
    std::fs::create_dir(dir.path().join("d".repeat(120))).unwrap();
    std::fs::write(dir.path().join(&long), "long name").unwrap();
    std::os::unix::fs::symlink("t".repeat(150), dir.path().join("long-link")).unwrap();
    let sparse = std::fs::File::create(dir.path().join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 5 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 9 << 20).unwrap();
    sparse.set_len(12 << 20).unwrap();
    let cap = dir.path().join("ping");
    std::fs::write(&cap, "binary").unwrap();
    run("setcap", &["cap_net_raw+ep", cap.to_str().unwrap()]);
    let capability = xattr(&cap, "security.capability").unwrap();
    let at = dir.path().to_str().unwrap();
    for (format, extra) in [
        ("gnu", &["-S"][..]),
        ("posix", &["-S", "--sparse-version=1.0", "--xattrs", "--xattrs-include=*"][..]),
        ("posix", &["-S", "--sparse-version=0.1"][..]),
        ("posix", &[][..]),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let format_arg = format!("--format={format}");
        let mut args = vec!["-C", at, &format_arg, "-cf", file.path().to_str().unwrap()];
        args.extend(extra);
        args.push(".");
        run("tar", &args);
        let image =
            store.import(std::fs::File::open(file.path()).unwrap(), "x", &ImportOptions::default()).unwrap();
        let layer = &image.layers[0];
        let what = format!("{format} {extra:?}");
        assert_eq!(std::fs::read(layer.join(&long)).unwrap(), b"long name", "{what}");
        assert_eq!(
            std::fs::read_link(layer.join("long-link")).unwrap(),
            Path::new(&"t".repeat(150)),
            "{what}"
        );
        let content = std::fs::read(layer.join("sparse")).unwrap();
        assert!(content == std::fs::read(dir.path().join("sparse")).unwrap(), "{what}");
        if !extra.is_empty() {
            assert!(meta(&layer.join("sparse")).blocks() * 512 < 1 << 20, "{what}: holes are filled");
        }
        if extra.contains(&"--xattrs") {
            assert_eq!(xattr(&layer.join("ping"), "security.capability").unwrap(), capability);
        }
    }
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let store = store();
    let tar = Tar::new()
        .file("a/.wh.gone", b"")
        .dir("b/")
        .file("b/.wh..wh..opq", b"")
        .file("b/new", b"new")
        .file(".wh..wh.plnk", b"")
        // Both hidden and made anew in one layer, in either order.
        .file(".wh.file1", b"")
        .file("file1", b"1")
        .file("file2", b"2")
        .file(".wh.file2", b"")
        .file(".wh.dir1", b"")
        .dir("dir1/")
        .dir("dir2/")
        .file(".wh.dir2", b"")
        .file(".wh.dir3", b"")
        .file("dir3/inside", b"3")
        .build();
    let base =
        Tar::new().file("a/gone", b"").file("b/old", b"").file("file1", b"").file("dir1/x", b"").build();
    let layout = Layout::with(&Spec::of(vec![base, tar]), "x:y");
    let image = store.load_path(layout.path(), &LoadOptions::default()).unwrap().remove(0);
    let layer = image.layers[0].clone();
    let opaque = |name: &str| xattr(&layer.join(name), "trusted.overlay.opaque");
    assert!(is_whiteout(&layer.join("a/gone")));
    assert_eq!((opaque("a"), opaque("b")), (None, Some(b"y".to_vec())));
    assert_eq!(std::fs::read(layer.join("b/new")).unwrap(), b"new");
    assert_eq!(std::fs::read(layer.join("file1")).unwrap(), b"1");
    assert_eq!(std::fs::read(layer.join("file2")).unwrap(), b"2");
    for name in ["dir1", "dir2", "dir3"] {
        assert_eq!(opaque(name), Some(b"y".to_vec()), "{name}");
    }
    assert_eq!(std::fs::read(layer.join("dir3/inside")).unwrap(), b"3");
    assert_eq!(crate::support::names_in(&layer), ["a", "b", "dir1", "dir2", "dir3", "file1", "file2"]);
}

#[test]
fn folders_without_an_entry_look_like_those_below() {
    let store = store();
    let base = Tar::new()
        .entry(EntryType::Directory, "tmp/", "", 0o1777, b"")
        .header(
            |h| {
                h.set_entry_type(EntryType::Directory);
                h.set_mode(0o2750);
                h.set_uid(5);
                h.set_gid(6);
            },
            "srv/",
        )
        .dir("srv/www/")
        .build();
    let middle = Tar::new().dir("other/").file(".wh.gone", b"").build();
    let top = Tar::new().file("tmp/x", b"").file("srv/www/y", b"").file("new/z", b"").build();
    let layout = Layout::with(&Spec::of(vec![base, middle, top.clone()]), "x:y");
    let image = store.load_path(layout.path(), &LoadOptions::default()).unwrap().remove(0);
    let layer = &image.layers[0];
    assert_eq!(meta(&layer.join("tmp")).mode() & 0o7777, 0o1777);
    let srv = meta(&layer.join("srv"));
    assert_eq!((srv.mode() & 0o7777, srv.uid(), srv.gid(), srv.mtime()), (0o2750, 5, 6, 1_700_000_000));
    assert_eq!(meta(&layer.join("new")).mode() & 0o7777, 0o755);
    // A whiteout of nothing would be shown by overlayfs.
    assert_eq!(crate::support::names_in(&image.layers[1]), ["other"]);
    // The same layer on another base is another folder.
    let alone = Layout::with(&Spec::of(vec![top]), "alone:1");
    let alone = store.load_path(alone.path(), &LoadOptions::default()).unwrap().remove(0);
    assert_eq!(meta(&alone.layers[0].join("tmp")).mode() & 0o7777, 0o755);
}

#[test]
fn later_members_replace_earlier_ones() {
    let store = store();
    let tar = Tar::new()
        .file("x", b"first")
        .file("x", b"second")
        .dir("d/")
        .file("d/inside", b"1")
        .file("d", b"now a file")
        .file("f", b"now a folder")
        .dir("f/")
        .file("f/inside", b"2")
        .dir("twice/")
        .file("twice/kept", b"3")
        .entry(EntryType::Directory, "twice/", "", 0o700, b"")
        .build();
    let (_, layer) = unpack(&store, &tar);
    assert_eq!(std::fs::read(layer.join("x")).unwrap(), b"second");
    assert_eq!(std::fs::read(layer.join("d")).unwrap(), b"now a file");
    assert_eq!(std::fs::read(layer.join("f/inside")).unwrap(), b"2");
    assert_eq!(std::fs::read(layer.join("twice/kept")).unwrap(), b"3");
    assert_eq!(meta(&layer.join("twice")).mode() & 0o777, 0o700);
}

#[test]
fn compression_does_not_change_the_layer() {
    let store = store();
    let tar = Tar::new().dir("d/").file("d/f", b"content").build();
    let (_, plain) = unpack(&store, &tar);
    assert_eq!(unpack(&store, &gzip(&tar)).1, plain);
    assert_eq!(unpack(&store, &zstd(&tar)).1, plain);
    assert_eq!(store.names("layers").len(), 1);
}

#[test]
fn attributes_that_steer_overlayfs_are_dropped() {
    let store = store();
    let tar = Tar::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.metacopy", b""),
        ])
        .file("f", b"x")
        .build();
    let (_, layer) = unpack(&store, &tar);
    assert_eq!(xattr(&layer.join("f"), "trusted.overlay.redirect"), None);
    assert_eq!(xattr(&layer.join("f"), "trusted.overlay.metacopy"), None);
}

#[test]
fn the_umask_does_not_matter() {
    let store = store();
    let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let tar = Tar::new().file("implied/f", b"x").entry(EntryType::Regular, "open", "", 0o666, b"").build();
    let (_, layer) = unpack(&store, &tar);
    nix::sys::stat::umask(old);
    assert_eq!(meta(&layer).mode() & 0o777, 0o755);
    assert_eq!(meta(&layer.join("implied")).mode() & 0o777, 0o755);
    assert_eq!(meta(&layer.join("open")).mode() & 0o777, 0o666);
}
