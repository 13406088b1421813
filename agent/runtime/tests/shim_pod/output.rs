//! Logs of containers that write much.

use berth_runtime::log::{Query, read_to};

use crate::harness::Pod;

#[tokio::test]
async fn ten_megabytes_with_rotation_lose_no_line() {
    let mut pod = Pod::new().await;
    let lines = 1_400_000;
    let mut container = pod.container("one", &format!("seq 1 {lines}"));
    container.request.log_max_size = 4 << 20;
    container.request.log_max_files = 100;
    pod.start(&container).await;
    assert_eq!(pod.exit_of("one").await.code, 0);
    let files: Vec<_> = std::fs::read_dir(&container.request.bundle)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("0.log"))
        .collect();
    assert!(files.len() > 10, "{} files", files.len());
    assert!(files.iter().all(|file| file.metadata().unwrap().len() <= 4 << 20));
    let mut all = Vec::new();
    read_to(container.request.log_path.as_ref().unwrap(), &Query::default(), &mut all).unwrap();
    let mut wanted = String::new();
    for line in 1..=lines {
        wanted.push_str(&line.to_string());
        wanted.push('\n');
    }
    assert_eq!(all.len(), wanted.len());
    assert!(all == wanted.as_bytes());
    let mut last = Vec::new();
    let query = Query { tail: Some(2), ..Query::default() };
    read_to(container.request.log_path.as_ref().unwrap(), &query, &mut last).unwrap();
    assert_eq!(last, b"1399999\n1400000\n");
}

#[tokio::test]
async fn binary_output_and_no_last_end_of_line() {
    let mut pod = Pod::new().await;
    let (exit, _) =
        pod.run(&pod.container("one", "dd if=/dev/zero bs=1000 count=100 2>/dev/null; echo -n end")).await;
    assert_eq!(exit.code, 0);
    let mut all = Vec::new();
    let path = pod.dir.join("containers/one/0.log");
    read_to(&path, &Query::default(), &mut all).unwrap();
    let mut wanted = vec![0; 100_000];
    wanted.extend_from_slice(b"end");
    assert!(all == wanted);
}

#[tokio::test]
async fn a_log_that_cannot_be_written_does_not_stop_the_container() {
    let mut pod = Pod::new().await;
    let mut container = pod.container("one", "seq 1 100000; exit 6");
    // Opened it is, written to never.
    container.request.log_path = Some("/dev/full".into());
    pod.start(&container).await;
    assert_eq!(pod.exit_of("one").await.code, 6);
    let notes = pod.notes();
    // At once, and what else there was at the end.
    assert_eq!(notes.matches("/dev/full: lost").count(), 2, "{notes}");
}

#[tokio::test]
async fn no_log_at_all() {
    let mut pod = Pod::new().await;
    let mut container = pod.container("one", "seq 1 100000; exit 6");
    container.request.log_path = None;
    pod.start(&container).await;
    assert_eq!(pod.exit_of("one").await.code, 6);
}
