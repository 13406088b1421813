//! Clients that look on: several at once, slow ones, and ones that never read.

use std::io::Read;
use std::os::fd::OwnedFd;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::harness::{PATIENCE, Pod, until};

/// More than any pipe holds.
const LINES: usize = 200_000;

async fn read_all(fd: Option<OwnedFd>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut pipe = pipe::Receiver::from_owned_fd(fd.expect("a pipe")).unwrap();
    tokio::time::timeout(PATIENCE, pipe.read_to_end(&mut bytes)).await.unwrap().unwrap();
    bytes
}

fn wanted() -> Vec<u8> {
    (1..=LINES).flat_map(|line| format!("{line}\n").into_bytes()).collect()
}

/// A container that writes when it is told to.
async fn waiting(pod: &Pod) -> OwnedFd {
    let mut container = pod.container("one", &format!("read go; seq 1 {LINES}; exit 3"));
    container.request.stdin = true;
    pod.start(&container).await;
    pod.client.attach("one", true, false, false).await.unwrap().stdin.unwrap()
}

#[tokio::test]
async fn several_clients_each_get_everything() {
    let mut pod = Pod::new().await;
    let go = waiting(&pod).await;
    let mut readers = Vec::new();
    for _ in 0..3 {
        let attached = pod.client.attach("one", false, true, false).await.unwrap();
        readers.push(tokio::spawn(
            async move { (read_all(attached.stdout).await, read_all(attached.end).await) },
        ));
    }
    nix::unistd::write(&go, b"go\n").unwrap();
    assert_eq!(pod.exit_of("one").await.code, 3);
    let wanted = wanted();
    for reader in readers {
        let (out, end) = reader.await.unwrap();
        assert_eq!(out.len(), wanted.len());
        assert!(out == wanted);
        assert_eq!(String::from_utf8_lossy(&end), "");
    }
    assert_eq!(pod.log("one").len(), wanted.len());
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_and_told_and_the_container_goes_on() {
    let mut pod = Pod::new().await;
    let go = waiting(&pod).await;
    let stuck = pod.client.attach("one", false, true, false).await.unwrap();
    let good = pod.client.attach("one", false, true, false).await.unwrap();
    let reader = tokio::spawn(read_all(good.stdout));
    nix::unistd::write(&go, b"go\n").unwrap();
    // It ends although the first client never reads a byte, and loses nothing to its log nor to the other client.
    assert_eq!(pod.exit_of("one").await.code, 3);
    let wanted = wanted();
    assert!(reader.await.unwrap() == wanted);
    assert!(pod.log("one").as_bytes() == wanted);
    let beginning = read_all(stuck.stdout).await;
    assert!(beginning.len() >= 4096 && wanted.starts_with(&beginning), "{} bytes", beginning.len());
    let why = String::from_utf8(read_all(stuck.end).await).unwrap();
    assert!(why.contains("too slowly"), "{why:?}");
    assert!(pod.notes().contains("read too slowly"), "{}", pod.notes());
}

#[tokio::test]
async fn a_slow_client_gets_what_was_written_before_the_end() {
    let mut pod = Pod::new().await;
    let go = waiting(&pod).await;
    let slow = pod.client.attach("one", false, true, false).await.unwrap();
    nix::unistd::write(&go, b"go\n").unwrap();
    let reader = tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::from(slow.stdout.unwrap());
        let mut all = Vec::new();
        let mut chunk = [0; 8192];
        loop {
            match file.read(&mut chunk) {
                Ok(0) => return all,
                Ok(count) => all.extend_from_slice(&chunk[..count]),
                // The pipe does not block: a pause makes this a slow reader, too.
                Err(_) => drop(nix::poll::poll(&mut [], 2u8)),
            }
        }
    });
    assert_eq!(pod.exit_of("one").await.code, 3);
    let all = reader.await.unwrap();
    assert_eq!(all.len(), wanted().len());
}

#[tokio::test]
async fn a_client_that_goes_leaves_nothing_behind() {
    let mut pod = Pod::new().await;
    let go = waiting(&pod).await;
    let pipes = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    // By the next answer the shim has closed what it handed over.
    pod.client.list().await.unwrap();
    let before = pipes(pod.shim.pid);
    drop(pod.client.attach("one", false, true, true).await.unwrap());
    let shim = pod.shim.pid;
    until("the shim closes its ends", || pipes(shim) == before).await;
    nix::unistd::write(&go, b"go\n").unwrap();
    assert_eq!(pod.exit_of("one").await.code, 3);
}
