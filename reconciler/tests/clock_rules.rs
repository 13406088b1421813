//! What holds when the machine's clock is set, one test each.

#![allow(clippy::unwrap_used)]

mod planner_fixture;

use std::time::Duration;

use berth_reconciler::node::{Deletion, Eviction};
use planner_fixture::{Bench, at, one, pod};
use serde_json::json;

const HOUR: i64 = 3600;

/// The clock shows that time now, although none has passed, and the worker looks again.
fn is_set_to(bench: &mut Bench, seconds: i64) {
    bench.time(seconds);
    let (deletion, evicted) = (bench.deletion.clone(), bench.seen.evicted.clone());
    bench.memory.tick(bench.now, bench.steady, deletion.as_ref(), evicted.as_ref());
}

/// So many seconds pass, and the worker looks again.
fn passes(bench: &mut Bench, seconds: i64) {
    bench.steady += Duration::from_secs(seconds.unsigned_abs());
    let shown = bench.now.as_second() - at(0).as_second();
    is_set_to(bench, shown + seconds);
}

#[test]
fn clock_back_ends_a_crash_backoff_instead_of_prolonging_it() {
    let mut bench = Bench::up(one(json!({}), json!({})));
    bench.exited("c", 3, HOUR, HOUR + 1, 1).delay = Some(Duration::from_secs(20));
    assert_eq!(bench.time(HOUR + 2).take(), [""; 0], "40 s are to be waited");
    assert_eq!(bench.time(HOUR - 5).take(), [""; 0], "a few seconds more do no harm");
    assert_eq!(bench.time(5).take(), ["pull c"]);
}

#[test]
fn clock_back_does_not_prolong_the_rest_after_a_failed_step() {
    let mut bench = Bench::new(one(json!({}), json!({})));
    is_set_to(&mut bench, HOUR);
    let actions = bench.step();
    bench.fail(&actions[1], "ErrImagePull", "no such host");
    bench.fail(&actions[0], "FailedCreatePodSandBox", "no address left");
    is_set_to(&mut bench, 0);
    assert_eq!(bench.take(), [""; 0]);
    assert_eq!(bench.wake(), Some(1), "the sandbox has its second, not an hour");
    assert_eq!(bench.time(1).take(), ["sandbox"]);
    assert_eq!(bench.time(10).take(), ["sandbox", "pull c"]);
}

#[test]
fn clock_back_does_not_prolong_a_grace_period() {
    let mut bench = Bench::up(one(json!({}), json!({})));
    bench.running("c", 0, 1);
    bench.deletion = Some(Deletion { requested_at: at(HOUR), grace_seconds: 30 });
    is_set_to(&mut bench, HOUR);
    assert_eq!(bench.take(), ["Stop c-0"]);
    is_set_to(&mut bench, 10);
    assert_eq!(bench.take(), [""; 0]);
    assert_eq!(bench.time(39).take(), [""; 0]);
    assert_eq!(bench.time(40).take(), ["Kill c-0"], "30 s after it was set back");
}

#[test]
fn clock_back_does_not_put_off_probes() {
    let probe = json!({ "exec": {}, "periodSeconds": 10, "initialDelaySeconds": 20 });
    let mut bench = Bench::up(one(json!({ "readinessProbe": probe }), json!({})));
    bench.running("c", 0, HOUR);
    is_set_to(&mut bench, HOUR + 1);
    assert_eq!(bench.take(), [""; 0], "its delay is not over");
    is_set_to(&mut bench, 0);
    assert_eq!(bench.take(), ["Readiness c-0"], "nobody knows how long it has run");
    passes(&mut bench, 9);
    assert_eq!(bench.take(), [""; 0]);
    passes(&mut bench, 1);
    assert_eq!(bench.take(), ["Readiness c-0"]);
    is_set_to(&mut bench, 5);
    assert_eq!(bench.take(), [""; 0]);
    assert_eq!(bench.wake(), Some(15), "its period goes on");
}

#[test]
fn clock_back_does_not_hide_a_restart_of_all() {
    let codes = json!({ "operator": "In", "values": [42] });
    let rules = json!([{ "action": "RestartAllContainers", "exitCodes": codes }]);
    let mut bench = Bench::up(pod(json!({ "containers": [
        { "name": "b", "image": "i" },
        { "name": "c", "image": "i", "restartPolicy": "Never", "restartPolicyRules": rules },
    ] })));
    // Both were started after a restart of all at one hour; then the clock was set back, and `c` asks for another.
    bench.running("b", 1, HOUR + 1).round = Some(at(HOUR));
    bench.exited("c", 1, HOUR + 1, 5, 42).round = Some(at(HOUR));
    assert_eq!(bench.time(5).take(), ["Stop b-1"]);
}

#[test]
fn clock_forward_ends_what_was_waited_for() {
    let mut bench = Bench::up(one(json!({}), json!({})));
    bench.exited("c", 3, 1, 2, 1).delay = Some(Duration::from_secs(20));
    is_set_to(&mut bench, 3);
    assert_eq!(bench.take(), [""; 0]);
    is_set_to(&mut bench, HOUR);
    assert_eq!(bench.take(), ["pull c"]);
}

#[test]
fn clock_forward_does_not_shorten_a_grace_period() {
    let mut bench = Bench::up(one(json!({}), json!({})));
    bench.running("c", 0, 1);
    bench.deletion = Some(Deletion { requested_at: at(10), grace_seconds: 30 });
    is_set_to(&mut bench, 10);
    assert_eq!(bench.take(), ["Stop c-0"]);
    passes(&mut bench, 20);
    is_set_to(&mut bench, HOUR);
    assert_eq!(bench.take(), [""; 0], "ten seconds are left");
    assert_eq!(bench.wake(), Some(HOUR + 10));
    passes(&mut bench, 9);
    assert_eq!(bench.take(), [""; 0]);
    passes(&mut bench, 1);
    assert_eq!(bench.take(), ["Kill c-0"]);
}

#[test]
fn clock_forward_does_not_shorten_the_grace_period_of_a_failed_probe() {
    let probe = json!({ "exec": {}, "failureThreshold": 1, "terminationGracePeriodSeconds": 20 });
    let mut bench = Bench::up(one(json!({ "livenessProbe": probe }), json!({})));
    bench.running("c", 0, 0);
    is_set_to(&mut bench, 1);
    let actions = bench.step();
    bench.probed(&actions[0], false);
    assert_eq!(bench.take(), ["Stop c-0"]);
    is_set_to(&mut bench, HOUR);
    passes(&mut bench, 19);
    assert_eq!(bench.take(), [""; 0]);
    passes(&mut bench, 1);
    assert_eq!(bench.take(), ["Kill c-0"]);
}

#[test]
fn clock_back_does_not_prolong_what_an_evicted_pod_has() {
    let probe = json!({ "exec": {}, "failureThreshold": 1 });
    let mut bench = Bench::up(one(json!({ "livenessProbe": probe }), json!({})));
    bench.running("c", 0, 0);
    is_set_to(&mut bench, HOUR);
    let actions = bench.step();
    bench.probed(&actions[0], false);
    assert_eq!(bench.take(), ["Stop c-0"]);
    passes(&mut bench, 10);
    bench.seen.evicted = Some(Eviction::at_once("too much".into(), bench.now));
    is_set_to(&mut bench, HOUR + 10);
    is_set_to(&mut bench, 0);
    passes(&mut bench, 1);
    assert_eq!(bench.take(), ["Kill c-0"], "a second, not what is left of 30");
}

#[test]
fn clock_forward_does_not_shorten_the_rest_after_a_failed_step() {
    let mut bench = Bench::new(one(json!({}), json!({})));
    is_set_to(&mut bench, 0);
    let actions = bench.step();
    bench.fail(&actions[1], "ErrImagePull", "no such host");
    bench.done(&actions[0]);
    bench.sandbox(0);
    is_set_to(&mut bench, HOUR);
    assert_eq!(bench.take(), [""; 0]);
    passes(&mut bench, 9);
    assert_eq!(bench.take(), [""; 0]);
    passes(&mut bench, 1);
    assert_eq!(bench.take(), ["pull c"]);
}

#[test]
fn clock_that_is_slewed_moves_nothing() {
    let mut bench = Bench::new(one(json!({}), json!({})));
    is_set_to(&mut bench, 0);
    let actions = bench.step();
    bench.fail(&actions[0], "FailedCreatePodSandBox", "no address left");
    let before = bench.plan();
    bench.memory.set_clock(bench.now + jiff::SignedDuration::from_millis(99), bench.steady);
    assert_eq!(bench.plan(), before);
}

#[test]
fn clock_set_before_a_new_agent_comes_does_not_lengthen_a_grace_period() {
    let mut bench = Bench::up(one(json!({}), json!({})));
    bench.running("c", 0, 1);
    bench.deletion = Some(Deletion { requested_at: at(HOUR), grace_seconds: 30 });
    is_set_to(&mut bench, 0);
    assert_eq!(bench.take(), ["Stop c-0"]);
    passes(&mut bench, 30);
    assert_eq!(bench.take(), ["Kill c-0"]);
}
