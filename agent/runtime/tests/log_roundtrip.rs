//! What the log's writer writes, its reader reads.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use berth_runtime::log::{Query, Reader, Stream, Writer, parse, read_to};
use jiff::Timestamp;
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

fn read(path: &Path, query: &Query) -> String {
    let mut out = Vec::new();
    read_to(path, query, &mut out).unwrap();
    String::from_utf8_lossy(&out).into_owned()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// What a reader should show: the lines of both streams in the order of their ends, and at last those that have none.
fn expected(writes: &[(Stream, Vec<u8>)], only: Option<Stream>) -> Vec<Vec<u8>> {
    let mut open = [Vec::new(), Vec::new()];
    let mut lines = Vec::new();
    for (stream, chunk) in writes.iter().filter(|(stream, _)| only.is_none_or(|only| only == *stream)) {
        for byte in chunk {
            open[*stream as usize].push(*byte);
            if *byte == b'\n' {
                lines.push(std::mem::take(&mut open[*stream as usize]));
            }
        }
    }
    lines.extend(open.into_iter().filter(|line| !line.is_empty()));
    lines
}

fn chunk() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::collection::vec(prop_oneof![3 => b'a'..=b'z', 1 => Just(b'\n'), 1 => any::<u8>()], 1..200),
        1 => (1_usize..50_000, any::<bool>()).prop_map(|(length, end)| {
            let mut chunk = vec![b'x'; length];
            if end { chunk.push(b'\n'); }
            chunk
        }),
        1 => Just(b"\n\n".to_vec()),
    ]
}

fn writes() -> impl Strategy<Value = Vec<(Stream, Vec<u8>)>> {
    prop::collection::vec((prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)], chunk()), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost(writes in writes(), max_size in prop_oneof![Just(0_u64), 100_u64..100_000], tail in 0_u64..30) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut writer = Writer::open(&path, max_size, 1000).unwrap();
        // One reader follows while it is written.
        let mut reader = Reader::open(&path, &Query::default()).unwrap();
        let mut followed = Vec::new();
        for (second, (stream, chunk)) in writes.iter().enumerate() {
            writer.write(*stream, chunk, at(second as i64 / 3));
            if second % 4 == 0 {
                while reader.read(&mut followed).unwrap() {}
            }
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            writer.end(stream, at(1000));
        }
        prop_assert!(writer.take_loss().is_none());
        while reader.read(&mut followed).unwrap() {}
        reader.finish(&mut followed);

        let lines = expected(&writes, None);
        prop_assert_eq!(&followed, &lines.concat());
        let mut whole = Vec::new();
        read_to(&path, &Query::default(), &mut whole).unwrap();
        prop_assert_eq!(&whole, &followed);

        let mut last = Vec::new();
        read_to(&path, &Query { tail: Some(tail), ..Query::default() }, &mut last).unwrap();
        let skip = lines.len().saturating_sub(tail as usize);
        prop_assert_eq!(&last, &lines[skip..].concat());

        let stderr = expected(&writes, Some(Stream::Stderr));
        let query = Query { tail: Some(tail), stream: Some(Stream::Stderr), ..Query::default() };
        let mut last = Vec::new();
        read_to(&path, &query, &mut last).unwrap();
        prop_assert_eq!(&last, &stderr[stderr.len().saturating_sub(tail as usize)..].concat());

        // Each file is in the format, and no longer than allowed but for one batch.
        for file in files(dir.path()) {
            let content = std::fs::read(&file).unwrap();
            prop_assert!(max_size == 0 || content.len() as u64 <= max_size + (64 << 10) + (17 << 10));
            for line in content.strip_suffix(b"\n").into_iter().flat_map(|all| all.split(|byte| *byte == b'\n')) {
                let record = parse(line);
                prop_assert!(record.is_some_and(|record| record.text.len() <= 16 << 10 && record.timestamp().is_some()));
            }
        }
    }
}

#[test]
fn the_format_is_containerds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let mut writer = Writer::open(&path, 0, 5).unwrap();
    let now: Timestamp = "2026-01-02T03:04:05.000000789Z".parse().unwrap();
    writer.write(Stream::Stdout, b"hello\nwor", now);
    writer.write(Stream::Stderr, b"\r\n", now);
    writer.write(Stream::Stdout, b"ld\n", now);
    writer.write(Stream::Stdout, &[b'x'; (16 << 10) + 1], now);
    writer.end(Stream::Stdout, now);
    let wanted = format!(
        "2026-01-02T03:04:05.000000789Z stdout F hello\n2026-01-02T03:04:05.000000789Z stderr F \r\n\
         2026-01-02T03:04:05.000000789Z stdout F world\n2026-01-02T03:04:05.000000789Z stdout P {}\n\
         2026-01-02T03:04:05.000000789Z stdout P x\n",
        "x".repeat(16 << 10)
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), wanted);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn only_so_many_files_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(dir.path().join("0.log.bak"), "not ours").unwrap();
    let mut writer = Writer::open(&path, 200, 3).unwrap();
    for line in 0..50 {
        writer.write(Stream::Stdout, format!("line {line:03}\n").as_bytes(), at(0));
    }
    let names: Vec<_> = files(dir.path())
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.contains(&"0.log.bak".to_owned()));
    assert!(names.iter().all(|name| std::fs::metadata(dir.path().join(name)).unwrap().len() <= 200));
    let text = read(&path, &Query::default());
    assert!(text.ends_with("line 048\nline 049\n"));
    assert_eq!(read(&path, &Query { tail: Some(5), ..Query::default() }).lines().count(), 5);
}

#[test]
fn since_limit_and_timestamps() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let mut writer = Writer::open(&path, 0, 5).unwrap();
    for second in 0..5 {
        writer.write(Stream::Stdout, format!("line {second}\n").as_bytes(), at(second));
    }
    let since = Query { since: Some(at(3)), ..Query::default() };
    assert_eq!(read(&path, &since), "line 3\nline 4\n");
    assert_eq!(read(&path, &Query { limit_bytes: Some(9), ..Query::default() }), "line 0\nli");
    let stamped = Query { timestamps: true, tail: Some(1), ..Query::default() };
    assert_eq!(read(&path, &stamped), format!("{:.9} line 4\n", at(4)));
    assert_eq!(read(&path, &Query { tail: Some(0), ..Query::default() }), "");
    assert_eq!(read(&dir.path().join("none.log"), &Query::default()), "");
}

#[test]
fn a_line_in_parts_counts_once_and_keeps_its_first_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let mut writer = Writer::open(&path, 0, 5).unwrap();
    writer.write(Stream::Stdout, b"first\n", at(0));
    writer.write(Stream::Stdout, &[b'x'; 40_000], at(1));
    writer.write(Stream::Stderr, b"between\n", at(2));
    writer.write(Stream::Stdout, b"\n", at(3));
    let long = "x".repeat(40_000);
    let tail = |tail| read(&path, &Query { tail: Some(tail), ..Query::default() });
    assert_eq!(tail(1), format!("{long}\n"));
    assert_eq!(tail(2), format!("between\n{long}\n"));
    assert_eq!(tail(3), format!("first\nbetween\n{long}\n"));
    let stamped = Query { timestamps: true, tail: Some(1), ..Query::default() };
    assert_eq!(read(&path, &stamped), format!("{:.9} {long}\n", at(1)));
}

#[test]
fn lines_without_an_end_count_by_their_last_part() {
    for [first, second] in [[Stream::Stdout, Stream::Stderr], [Stream::Stderr, Stream::Stdout]] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut writer = Writer::open(&path, 0, 5).unwrap();
        // Parts of the second line are before and after the first.
        writer.write(second, &[b'x'; 20_000], at(0));
        writer.write(first, b"first", at(1));
        writer.end(first, at(2));
        writer.end(second, at(3));
        let long = "x".repeat(20_000);
        let tail = |tail| read(&path, &Query { tail: Some(tail), ..Query::default() });
        assert_eq!(tail(1), long);
        assert_eq!(tail(2), format!("first{long}"));
    }
}

#[test]
fn a_full_disk_loses_lines_and_says_so() {
    let mount = TinyDisk::new(64 << 10);
    let path = mount.0.path().join("0.log");
    let mut writer = Writer::open(&path, 0, 5).unwrap();
    let line = format!("{}\n", "y".repeat(99));
    for _ in 0..2000 {
        writer.write(Stream::Stdout, line.as_bytes(), at(0));
    }
    let loss = writer.take_loss().expect("a loss");
    assert_eq!(loss.error.kind(), std::io::ErrorKind::StorageFull);
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(kept.ends_with("y\n"), "the last line is whole");
    assert_eq!(kept.lines().count() as u64 + loss.records, 2000);
    // Room again: it goes on.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    writer.write(Stream::Stdout, b"again\n", at(1));
    assert!(writer.take_loss().is_none());
    assert_eq!(read(&path, &Query::default()), "again\n");
}

/// A file system of a few pages, unmounted at the end.
struct TinyDisk(tempfile::TempDir);

impl TinyDisk {
    fn new(size: usize) -> TinyDisk {
        use nix::mount::{MsFlags, mount};
        // Of this thread only; whatever happens, the mount goes with it.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        TinyDisk(dir)
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn follow_sees_what_comes_across_rotations() {
    use berth_runtime::log::Follow;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let mut follow = Follow::open(&path, &Query::default()).unwrap();
    let write = path.clone();
    let writing = std::thread::spawn(move || {
        let mut writer = Writer::open(&write, 2000, 1000).unwrap();
        for line in 0..2000 {
            writer.write(Stream::Stdout, format!("{line}\n").as_bytes(), Timestamp::now());
        }
    });
    let wanted: String = (0..2000).map(|line| format!("{line}\n")).collect();
    let mut seen = Vec::new();
    while seen.len() < wanted.len() {
        let next = tokio::time::timeout(std::time::Duration::from_secs(20), follow.next()).await;
        seen.extend(next.expect("more lines").unwrap().expect("no limit"));
    }
    writing.join().unwrap();
    assert_eq!(String::from_utf8(seen).unwrap(), wanted);
    assert_eq!(follow.rest().unwrap(), b"");
}
