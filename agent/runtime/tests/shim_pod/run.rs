//! Commands that are run to their end in one call, as probes are.

use std::time::{Duration, Instant};

use berth_runtime::cgroup::Cgroups;
use berth_runtime::shim::proto::{FailureKind, MAX_OUTPUT, Ran, RepeatRequest, Repeated, RunRequest};
use serde_json::json;

use crate::harness::{Pod, until};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn request(args: &[&str], timeout: Duration) -> RunRequest {
    RunRequest {
        container_id: "one".to_owned(),
        command: args.iter().map(|arg| (*arg).to_owned()).collect(),
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap(),
        output_max: 1000,
    }
}

fn script(script: &str, timeout: Duration) -> RunRequest {
    request(&["sh", "-c", script], timeout)
}

fn ran(code: i32, output: &str) -> Ran {
    Ran { code: Some(code), output: output.to_owned() }
}

/// Every twentieth of a second.
fn repeated(run: RunRequest, times: u32) -> RepeatRequest {
    RepeatRequest { run, wait_us: 70_000, period_ms: 50, times }
}

/// Leaves a line each time.
const LINE: &str = "echo line >>/tmp/lines";

fn lines(pod: &Pod) -> usize {
    std::fs::read_to_string(pod.rootfs().join("tmp/lines")).unwrap_or_default().lines().count()
}

/// Fails if one more is run within several periods.
async fn none_is_run(pod: &Pod) {
    // One that is under way may end; the shim has heard of everything then.
    pod.client.run(request(&["true"], LONG)).await.unwrap();
    until_alone(pod).await;
    let before = lines(pod);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(lines(pod), before);
}

/// A pod whose container has one process.
async fn sleeping() -> Pod {
    let pod = Pod::new().await;
    let mut container = pod.program("one", &["sleep", "1000"]);
    container.spec["process"]["env"] = json!(["PATH=/bin", "COLOUR=blue"]);
    pod.start(&container).await;
    pod
}

/// Waits until only the container's first process is left.
async fn until_alone(pod: &Pod) {
    let (cgroups, cgroup) = (Cgroups::detect().unwrap(), format!("{}/one", pod.cgroup));
    until("the end of what was run", || cgroups.pids(&cgroup).unwrap().len() == 1).await;
}

#[tokio::test]
async fn code_and_output() {
    let pod = sleeping().await;
    let text = "echo out; echo err >&2; echo $COLOUR; hostname; cat; exit 9";
    assert_eq!(
        pod.client.run(script(text, LONG)).await.unwrap(),
        ran(9, "out\nerr\nblue\ntest-pod\n"),
        "in the order of writing, as the container's first process would, without an input"
    );
    assert_eq!(pod.client.run(request(&["true"], LONG)).await.unwrap(), ran(0, ""));
    assert_eq!(pod.client.run(script("kill -9 $$", LONG)).await.unwrap(), ran(137, ""));
}

#[tokio::test]
async fn failures() {
    let pod = sleeping().await;
    let none = pod.client.run(request(&["nonsense"], LONG)).await.unwrap_err();
    assert_eq!(none.kind(), Some(FailureKind::StartFailed), "{none}");
    assert!(none.to_string().contains("nonsense"), "{none}");
    let elsewhere = RunRequest { container_id: "two".to_owned(), ..request(&["true"], LONG) };
    assert_eq!(pod.client.run(elsewhere).await.unwrap_err().kind(), Some(FailureKind::NotFound));
    pod.client.pause().await.unwrap();
    let paused = pod.client.run(request(&["true"], LONG)).await.unwrap_err();
    assert_eq!(paused.kind(), Some(FailureKind::Invalid), "{paused}");
}

#[tokio::test]
async fn output_has_a_limit_and_never_holds_the_command_up() {
    let pod = sleeping().await;
    // Far more than a pipe holds.
    let answer = pod.client.run(script("yes 0123456789 | head -c 3000000; exit 3", LONG)).await.unwrap();
    assert_eq!(answer.code, Some(3));
    assert_eq!(answer.output, "0123456789\n".repeat(100)[..1000]);
    // Nobody can ask for more than the shim is willing to hold.
    let greedy = RunRequest { output_max: usize::MAX, ..script("yes | head -c 3000000", LONG) };
    assert_eq!(pod.client.run(greedy).await.unwrap().output.len(), MAX_OUTPUT);
    let binary = pod.client.run(script(r"printf 'a\377b'", LONG)).await.unwrap();
    assert_eq!(binary, ran(0, "a\u{fffd}b"));
}

#[tokio::test]
async fn who_takes_too_long_is_killed_with_its_children() {
    let pod = sleeping().await;
    let hangs = script("echo begun; sleep 1000 & sleep 1000 | cat; echo never", Duration::from_millis(300));
    let answer = pod.client.run(hangs).await.unwrap();
    assert_eq!(answer, Ran { code: None, output: "begun\n".to_owned() });
    until_alone(&pod).await;
    // The container lives, and the next one has its own time.
    assert_eq!(pod.client.run(request(&["true"], LONG)).await.unwrap(), ran(0, ""));
}

/// A process is the container's own before it has run its program, and who stops it then holds up the shim that makes it.
#[tokio::test]
async fn a_container_that_stops_every_new_process_holds_up_nobody_longer_than_the_time_of_a_command() {
    const STOPS: &str = "while :; do for p in /proc/[0-9]*; do \
        [ $p = /proc/1 ] || kill -STOP ${p#/proc/} 2>/dev/null; done; done";
    let time = Duration::from_millis(300);
    let pod = Pod::new().await;
    pod.start(&pod.container("one", STOPS).found_late()).await;
    let (mut tries, mut held_up, began) = (0, 0, Instant::now());
    while held_up < 10 {
        tries += 1;
        assert!(tries < 1000, "the container came in time {held_up} times only");
        match pod.client.run(request(&["true"], time)).await {
            Err(error) => {
                assert!(error.to_string().contains("timed out"), "{error}");
                held_up += 1;
            }
            // Stopped when its program ran, or too late.
            Ok(answer) => assert!([None, Some(0)].contains(&answer.code), "{answer:?}"),
        }
    }
    assert!(
        began.elapsed() < tries * time * 3,
        "{held_up} of {tries} held up the shim for {:?}",
        began.elapsed()
    );
    // Nothing of them is left.
    until_alone(&pod).await;
}

#[tokio::test]
async fn what_a_command_leaves_behind_is_not_waited_for() {
    let pod = sleeping().await;
    let answer = pod.client.run(script("sleep 1000 & echo started", LONG)).await.unwrap();
    assert_eq!(answer, ran(0, "started\n"));
}

#[tokio::test]
async fn its_time_ends_also_when_nobody_waits_any_more() {
    let pod = sleeping().await;
    let (client, events) = pod.connect().await;
    let hanging = script("echo $$ >/tmp/pid; sleep 1000", Duration::from_millis(300));
    let waiting = tokio::spawn(async move { client.run(hanging).await });
    let pid = pod.rootfs().join("tmp/pid");
    until("the command", || pid.exists()).await;
    waiting.abort();
    drop(events);
    until_alone(&pod).await;
}

#[tokio::test]
async fn many_at_once_keep_their_own_times() {
    let pod = sleeping().await;
    let runs = (0..20).map(|n| {
        let client = pod.client.clone();
        tokio::spawn(async move {
            let late = n % 2 == 1;
            let (text, timeout) = if late {
                (format!("echo {n}; sleep 1000"), Duration::from_millis(200))
            } else {
                (format!("echo {n}; sleep 0.4; exit {n}"), LONG)
            };
            let answer = client.run(script(&text, timeout)).await.unwrap();
            assert_eq!(answer, Ran { code: (!late).then_some(n), output: format!("{n}\n") });
        })
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
    until_alone(&pod).await;
}

#[tokio::test]
async fn what_a_machine_refuses_is_noted_once() {
    let pod = Pod::new().await;
    let mut container = pod.program("one", &["sleep", "1000"]);
    container.spec["process"]["oomScoreAdj"] = json!(-999);
    pod.start(&container).await;
    for _ in 0..3 {
        pod.client.run(request(&["true"], LONG)).await.unwrap();
    }
    let notes = pod.notes();
    assert!(notes.matches("one: exec:").count() <= 1, "{notes}");
}

/// What is born in the container can be killed there at any moment, also while it still is a part of the shim.
#[tokio::test]
async fn a_container_that_kills_all_that_is_new_disturbs_nobody_else() {
    let pod = Pod::new().await;
    pod.start(&pod.program("one", &["sh", "-c", "while :; do kill -9 -1; done"])).await;
    pod.start(&pod.program("two", &["sleep", "1000"])).await;
    let (mut killed, mut others) = (0, 0);
    for _ in 0..3000 {
        match pod.client.run(request(&["true"], LONG)).await {
            Ok(ran) if ran.code == Some(137) => killed += 1,
            Ok(_) => others += 1,
            Err(error) => assert_eq!(error.kind(), Some(FailureKind::StartFailed), "{error}"),
        }
    }
    println!("{killed} killed, {others} others");
    assert!(killed > 100, "hardly one was killed: {killed}, {others} lived");
    let calm = RunRequest { container_id: "two".to_owned(), ..script("echo here", LONG) };
    assert_eq!(pod.client.run(calm).await.unwrap(), ran(0, "here\n"));
}

#[tokio::test]
async fn repeated_until_it_fails_or_often_enough() {
    let pod = sleeping().await;
    let begun = Instant::now();
    let third =
        script(&format!("{LINE}; [ $(wc -l </tmp/lines) -lt 3 ] || {{ echo enough; exit 7; }}"), LONG);
    let Repeated { result, runs, ago_us } = pod.client.repeat(repeated(third, 100)).await.unwrap();
    assert_eq!((result.unwrap(), runs, lines(&pod)), (ran(7, "enough\n"), 3, 3));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(170) && Duration::from_micros(ago_us) < took, "{took:?} {ago_us}");

    let begun = Instant::now();
    let answer = pod.client.repeat(repeated(script(LINE, LONG), 5)).await.unwrap();
    assert_eq!((answer.result.unwrap(), answer.runs, lines(&pod)), (ran(0, ""), 5, 8));
    assert!(begun.elapsed() >= Duration::from_millis(270));

    let hangs = script("sleep 1000", Duration::from_millis(100));
    let answer = pod.client.repeat(repeated(hangs, 5)).await.unwrap();
    assert_eq!((answer.result.unwrap().code, answer.runs), (None, 1));
    none_is_run(&pod).await;
}

#[tokio::test]
async fn repeated_at_the_same_time_as_others() {
    let pod = sleeping().await;
    let each = (0..8_i32).map(|n| {
        let client = pod.client.clone();
        let text = format!("echo {n} >>/tmp/n{n}; [ $(wc -l </tmp/n{n}) -lt 4 ] || exit {}", 10 + n);
        tokio::spawn(async move { client.repeat(repeated(script(&text, LONG), 100)).await })
    });
    for (n, one) in (0..).zip(each.collect::<Vec<_>>()) {
        let answer = one.await.unwrap().unwrap();
        assert_eq!((answer.result.unwrap().code, answer.runs), (Some(10 + n), 4));
    }
}

#[tokio::test]
async fn repeated_in_the_home_of_its_user() {
    let pod = sleeping().await;
    let file = |name: &str| pod.rootfs().join(name);
    let say = "echo $HOME $COLOUR >>/tmp/homes; [ $(wc -l </tmp/homes) -lt 12 ]";
    for (home, times) in [("/first", 3), ("/second", 4)] {
        std::fs::write(file("etc/passwd"), format!("root:x:0:0::{home}:/bin/sh\n")).unwrap();
        let answer = pod.client.repeat(repeated(script(say, LONG), times)).await.unwrap();
        assert_eq!((answer.result.unwrap(), answer.runs), (ran(0, ""), times));
    }
    // Who has no name lives in the root.
    std::fs::remove_file(file("etc/passwd")).unwrap();
    let answer = pod.client.repeat(repeated(script(say, LONG), 100)).await.unwrap();
    assert_eq!((answer.result.unwrap(), answer.runs), (ran(1, ""), 5));
    let each = [("/first", 3), ("/second", 4), ("/", 5)].map(|(home, n)| format!("{home} blue\n").repeat(n));
    assert_eq!(std::fs::read_to_string(file("tmp/homes")).unwrap(), each.concat());
    // One that is no path is as long in each run.
    let home = "/long".repeat(20_000);
    std::fs::write(file("etc/passwd"), format!("root:x:0:0::{home}:/bin/sh\n")).unwrap();
    let answer = pod.client.repeat(repeated(script("echo ${#HOME} >>/tmp/lengths", LONG), 3)).await.unwrap();
    assert_eq!((answer.result.unwrap(), answer.runs), (ran(0, ""), 3));
    assert_eq!(std::fs::read_to_string(file("tmp/lengths")).unwrap(), "100000\n".repeat(3));
}

#[tokio::test]
async fn repeated_no_longer_than_somebody_waits_for_it() {
    let pod = sleeping().await;
    let client = pod.client.clone();
    let dropped = tokio::spawn(async move { client.repeat(repeated(script(LINE, LONG), 1_000_000)).await });
    until("some runs", || lines(&pod) > 2).await;
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    none_is_run(&pod).await;

    let (client, events) = pod.connect().await;
    let before = lines(&pod);
    let lost = tokio::spawn(async move { client.repeat(repeated(script(LINE, LONG), 1_000_000)).await });
    until("some runs", || lines(&pod) > before + 2).await;
    lost.abort();
    drop(events);
    none_is_run(&pod).await;
}

#[tokio::test]
async fn repeated_as_long_as_there_is_a_container_that_runs() {
    let mut pod = sleeping().await;
    let client = pod.client.clone();
    let later = RepeatRequest { wait_us: 500_000, ..repeated(script(LINE, LONG), 1_000_000) };
    let (answer, paused) = tokio::join!(client.repeat(later), pod.client.pause());
    paused.unwrap();
    let answer = answer.unwrap();
    let paused = answer.result.unwrap_err();
    assert_eq!((paused.kind, answer.runs, lines(&pod)), (FailureKind::Invalid, 1, 0), "{paused}");
    let paused = pod.client.repeat(repeated(script(LINE, LONG), 1)).await.unwrap_err();
    assert_eq!(paused.kind(), Some(FailureKind::Invalid), "{paused}");
    pod.client.resume().await.unwrap();

    let client = pod.client.clone();
    let before = lines(&pod);
    let waiting = tokio::spawn(async move { client.repeat(repeated(script(LINE, LONG), 1_000_000)).await });
    until("some runs", || lines(&pod) > before + 2).await;
    pod.client.kill("one", 9, true).await.unwrap();
    let answer = waiting.await.unwrap().unwrap();
    // It is killed along, or finds no container.
    assert!(answer.result.map_or(true, |ran| ran.code == Some(137)), "{}", answer.runs);
    pod.exit_of("one").await;
    let elsewhere = RunRequest { container_id: "two".to_owned(), ..script(LINE, LONG) };
    let none = pod.client.repeat(repeated(elsewhere, 1)).await.unwrap_err();
    assert_eq!(none.kind(), Some(FailureKind::NotFound));
}
