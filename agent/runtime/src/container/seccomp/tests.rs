//! The compiled program against the rules in plain words, and against the kernel's own limits.

#![allow(clippy::unwrap_used)]

use oci_spec::runtime::{
    Arch, Capability, LinuxCapabilities, LinuxSeccompAction as Action, LinuxSeccompArgBuilder,
    LinuxSeccompOperator as Operator,
};
use proptest::prelude::*;

use super::assemble::STORE;
use super::*;

const SHAPES: [Shape; 2] = [Shape::ManyCalls, Shape::FewCalls];

/// Runs a filter as the kernel does.
fn run(program: &[Instruction], arch: u32, number: u32, args: &[u64; 6]) -> u32 {
    judge::run(program, arch, number, Some(args)).unwrap()
}

/// The same question asked of the rules, one after the other.
fn naive(spec: &LinuxSeccomp, table: &syscalls::Table, number: u32, args: &[u64; 6]) -> u32 {
    let default = action("", spec.default_action(), spec.default_errno_ret()).unwrap();
    let mut newest = None;
    for rule in spec.syscalls().iter().flatten() {
        let numbers: Vec<u32> = rule.names().iter().filter_map(|n| table.number(n)).collect();
        newest = newest.max(numbers.iter().max().copied());
    }
    if newest.is_none_or(|n| number > n) {
        let errno = spec.default_action() == Action::ScmpActErrno;
        return if errno { NOT_IMPLEMENTED } else { default };
    }
    for rule in spec.syscalls().iter().flatten() {
        if !rule.names().iter().any(|n| table.number(n) == Some(number)) {
            continue;
        }
        let alternatives = alternatives(rule).unwrap();
        if alternatives.is_empty() || alternatives.iter().any(|all| all.iter().all(|c| c.holds(args))) {
            return action("", rule.action(), rule.errno_ret()).unwrap();
        }
    }
    default
}

fn some_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::ScmpActAllow),
        Just(Action::ScmpActErrno),
        Just(Action::ScmpActKillProcess),
        Just(Action::ScmpActKillThread),
        Just(Action::ScmpActLog),
        Just(Action::ScmpActTrap),
        Just(Action::ScmpActTrace),
    ]
}

/// Values whose halves meet at the borders of comparisons.
fn some_value() -> impl Strategy<Value = u64> {
    let half = prop_oneof![Just(0_u32), Just(1), Just(2), Just(u32::MAX), Just(0x7fff_ffff), any::<u32>()];
    (half.clone(), half).prop_map(|(high, low)| u64::from(high) << 32 | u64::from(low))
}

fn some_operator() -> impl Strategy<Value = Operator> {
    prop_oneof![
        Just(Operator::ScmpCmpNe),
        Just(Operator::ScmpCmpLt),
        Just(Operator::ScmpCmpLe),
        Just(Operator::ScmpCmpEq),
        Just(Operator::ScmpCmpGe),
        Just(Operator::ScmpCmpGt),
        Just(Operator::ScmpCmpMaskedEq),
    ]
}

fn some_rule() -> impl Strategy<Value = LinuxSyscall> {
    let names = [
        "read",
        "write",
        "openat",
        "close",
        "clone",
        "clone3",
        "socket",
        "kill",
        "uname",
        "futex",
        "mseal",
        "ptrace",
        "no_such_call",
        "personality",
        "getpid",
    ];
    let name = prop::sample::select(names.to_vec());
    let arg =
        (0_usize..6, some_value(), some_value(), some_operator()).prop_map(|(index, value, two, op)| {
            LinuxSeccompArgBuilder::default().index(index).value(value).value_two(two).op(op).build().unwrap()
        });
    let args = prop::collection::vec(arg, 0..4);
    (prop::collection::vec(name, 1..5), some_action(), prop::option::of(0_u32..4096), args).prop_map(
        |(names, action, errno, args)| {
            let mut rule = LinuxSyscall::default();
            rule.set_names(names.into_iter().map(str::to_owned).collect()).set_action(action);
            rule.set_errno_ret(errno).set_args((!args.is_empty()).then_some(args));
            rule
        },
    )
}

fn some_profile() -> impl Strategy<Value = LinuxSeccomp> {
    (some_action(), prop::option::of(0_u32..4096), prop::collection::vec(some_rule(), 0..25)).prop_map(
        |(action, errno, rules)| {
            let mut spec = LinuxSeccomp::default();
            spec.set_default_action(action).set_default_errno_ret(errno).set_syscalls(Some(rules));
            spec
        },
    )
}

proptest! {
    #[test]
    fn the_program_does_what_the_rules_say(
        spec in some_profile(),
        calls in prop::collection::vec((prop_oneof![0_u32..480, any::<u32>()], prop::array::uniform6(some_value())), 40),
    ) {
        let mut with_all = spec.clone();
        with_all.set_architectures(Some(syscalls::TABLES.iter().map(|t| t.arch).collect()));
        let filters = SHAPES.map(|shape| {
            (Filter::compile(&spec, shape).unwrap(), Filter::compile(&with_all, shape).unwrap())
        });
        for ((number, args), (native, all)) in calls.iter().flat_map(|call| filters.iter().map(move |f| (call, f))) {
            for (at, table) in syscalls::TABLES.iter().enumerate() {
                // A kind that shares an architecture with another has numbers of its own.
                let number = if table.first > 0 { number | table.first } else { number & 0x3fff_ffff };
                let expected = naive(&spec, table, number, args);
                prop_assert_eq!(run(all.program(), table.audit, number, args), expected);
                let expected = match at {
                    0 => expected,
                    _ if table.audit == syscalls::native().audit => NOT_IMPLEMENTED,
                    _ => libc::SECCOMP_RET_KILL_PROCESS,
                };
                prop_assert_eq!(run(native.program(), table.audit, number, args), expected);
            }
        }
        for (_, all) in &filters {
            prop_assert_eq!(run(all.program(), 0x8000_0008, 1, &[0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
        }
    }
}

fn verdict(profile: &LinuxSeccomp, name: &str, first: u64) -> u32 {
    let filter = Filter::compile(profile, Shape::ManyCalls).unwrap();
    let table = syscalls::native();
    run(filter.program(), table.audit, table.number(name).unwrap(), &[first, 0, 0, 0, 0, 0])
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

#[test]
fn the_default_profile_without_capabilities() {
    let profile = default_profile(&LinuxCapabilities::default());
    for (name, first, expected) in [
        ("read", 0, ALLOW),
        ("ptrace", 0, ALLOW),
        ("mount", 0, EPERM),
        ("unshare", 0, EPERM),
        ("keyctl", 0, EPERM),
        ("bpf", 0, EPERM),
        ("io_uring_setup", 0, EPERM),
        ("clone", libc::CLONE_THREAD as u64, ALLOW),
        ("clone", libc::CLONE_NEWUSER as u64, EPERM),
        ("clone3", 0, NOT_IMPLEMENTED),
        ("socket", 1, ALLOW),
        ("socket", 16, ALLOW),
        ("socket", 38, EPERM),
        ("socket", 40, EPERM),
        ("personality", 0, ALLOW),
        ("personality", 0x0040_0000, EPERM),
        ("chroot", 0, EPERM),
    ] {
        assert_eq!(verdict(&profile, name, first), expected, "{name} {first:#x}");
    }
    let filter = Filter::compile(&profile, Shape::ManyCalls).unwrap();
    // The kernel translates all of it for each process that is started.
    assert!(filter.program().len() < 560, "{} instructions", filter.program().len());
    assert_eq!(run(filter.program(), syscalls::native().audit, 470, &[0; 6]), NOT_IMPLEMENTED);
    let narrow = &syscalls::TABLES[1];
    for (name, expected) in
        [("read", ALLOW), ("futex_time64", ALLOW), ("mount", EPERM), ("clone3", NOT_IMPLEMENTED)]
    {
        assert_eq!(
            run(filter.program(), narrow.audit, narrow.number(name).unwrap(), &[0; 6]),
            expected,
            "{name}"
        );
    }
}

/// Asks about every number, in all tables.
fn assert_every_verdict(profile: &LinuxSeccomp) {
    let mut profile = profile.clone();
    profile.set_architectures(Some(syscalls::TABLES.iter().map(|t| t.arch).collect()));
    for shape in SHAPES {
        let filter = Filter::compile(&profile, shape).unwrap();
        for table in &syscalls::TABLES {
            for number in (table.first..table.first + 1100).chain([table.first + 0x3fff_ffff]) {
                let (args, arch) = ([0; 6], table.arch);
                let expected = naive(&profile, table, number, &args);
                assert_eq!(
                    run(filter.program(), table.audit, number, &args),
                    expected,
                    "{arch} {number} {shape:?}"
                );
            }
        }
    }
}

#[test]
fn verdicts_that_are_shared_and_far_away_are_found() {
    let default = default_profile(&LinuxCapabilities::default());
    assert_every_verdict(&default);
    // Each call has its own verdict, or one that few others have, so that hardly two of them share one and trees are large.
    let names: Vec<String> =
        default.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect();
    for different in [2, 150, 4000] {
        let rules = names.iter().enumerate().map(|(at, name)| {
            let errno = (at as u32 * 7) % different + 1;
            let mut rule = LinuxSyscall::default();
            rule.set_names(vec![name.clone()]).set_action(Action::ScmpActErrno).set_errno_ret(Some(errno));
            rule
        });
        let mut profile = LinuxSeccomp::default();
        profile.set_default_action(Action::ScmpActKill).set_syscalls(Some(rules.collect()));
        assert_every_verdict(&profile);
    }
}

#[test]
fn the_default_profile_opens_with_capabilities() {
    let mut capabilities = LinuxCapabilities::default();
    capabilities.set_bounding(Some([Capability::SysAdmin, Capability::SysChroot].into()));
    let profile = default_profile(&capabilities);
    for name in ["mount", "unshare", "clone3", "chroot"] {
        assert_eq!(verdict(&profile, name, 0), ALLOW, "{name}");
    }
    assert_eq!(verdict(&profile, "clone", libc::CLONE_NEWNS as u64), ALLOW);
    assert_eq!(verdict(&profile, "reboot", 0), EPERM);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let mut notify = LinuxSeccomp::default();
    notify.set_default_action(Action::ScmpActNotify);
    assert!(Filter::compile(&notify, Shape::ManyCalls).is_err(), "all calls would be asked about");
    notify.set_default_action(Action::ScmpActAllow);
    let mut rule = LinuxSyscall::default();
    rule.set_names(vec!["mkdir".to_owned(), "write".to_owned()]).set_action(Action::ScmpActNotify);
    notify.set_syscalls(Some(vec![rule.clone()]));
    assert!(Filter::compile(&notify, Shape::ManyCalls).is_err(), "write is what tells of the listener");
    rule.set_names(vec!["mkdir".to_owned()]);
    notify.set_syscalls(Some(vec![rule]));
    assert!(Filter::compile(&notify, Shape::ManyCalls).unwrap().asks());
    let mut errno = LinuxSeccomp::default();
    errno.set_default_action(Action::ScmpActErrno).set_default_errno_ret(Some(70_000));
    assert!(Filter::compile(&errno, Shape::ManyCalls).is_err());
    let mut listener = LinuxSeccomp::default();
    listener.set_listener_path(Some("/run/listener".into()));
    assert!(Filter::compile(&listener, Shape::ManyCalls).is_ok(), "nobody is notified");
    // Others can never run here.
    let mut mips = LinuxSeccomp::default();
    mips.set_architectures(Some(vec![Arch::ScmpArchMips]));
    assert!(Filter::compile(&mips, Shape::ManyCalls).is_ok());
}

#[test]
fn a_filter_is_the_same_in_another_process() {
    let filter = Filter::compile(&default_profile(&LinuxCapabilities::default()), Shape::ManyCalls).unwrap();
    let bytes = filter.to_bytes();
    let again = Filter::from_bytes(&bytes).unwrap();
    assert_eq!((again.program(), again.flags()), (filter.program(), filter.flags()));
    assert!(
        Filter::from_bytes(&bytes[..bytes.len() - 1]).is_none() && Filter::from_bytes(&bytes[..7]).is_none()
    );
}

#[test]
fn a_process_of_few_calls_has_a_short_filter_that_the_kernel_takes() {
    let mut profile = default_profile(&LinuxCapabilities::default());
    let length = |profile: &LinuxSeccomp, shape| Filter::compile(profile, shape).unwrap().program().len();
    let lengths = SHAPES.map(|shape| length(&profile, shape));
    assert!(lengths[1] * 4 < lengths[0] * 3, "{lengths:?}");
    // Its tables have to be far from what they lead to: everything between 100 and 400 has a verdict of its own.
    let names: Vec<String> =
        profile.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect();
    for many in [10, 16, 17, 60] {
        let mut rules = profile.syscalls().clone().unwrap_or_default();
        let odd = names.iter().step_by(7).take(many).enumerate().map(|(at, name)| {
            let mut rule = LinuxSyscall::default();
            let args = (0..5_u64).map(|by| {
                let arg = LinuxSeccompArgBuilder::default().index(at % 6).value(at as u64 + by * 1000);
                arg.value_two(0_u64).op(Operator::ScmpCmpGt).build().unwrap()
            });
            rule.set_names(vec![name.clone()])
                .set_action(Action::ScmpActErrno)
                .set_errno_ret(Some(at as u32 + 2));
            rule.set_args(Some(args.collect()));
            rule
        });
        rules.splice(0..0, odd.collect::<Vec<_>>());
        let mut odd = profile.clone();
        odd.set_syscalls(Some(rules));
        assert_every_verdict(&odd);
    }
    // The kernel has its own opinion on what a program may do.
    profile.set_default_action(Action::ScmpActAllow);
    for shape in SHAPES {
        let filter = Filter::compile(&profile, shape).unwrap();
        let child = std::thread::spawn(move || {
            crate::sys::credentials::no_new_privileges().unwrap();
            crate::sys::seccomp::install(filter.program(), filter.flags()).map(drop)
        });
        child.join().unwrap().unwrap();
    }
}

#[test]
fn what_differs_in_the_value_only_is_looked_at_once() {
    let profile = default_profile(&LinuxCapabilities::default());
    let lengths = SHAPES.map(|shape| Filter::compile(&profile, shape).unwrap().program().len());
    assert!(lengths[0] < 240 && lengths[1] < 130, "{lengths:?} instructions");
}

#[test]
fn small_values_are_looked_up_in_a_table() {
    use Operator::{ScmpCmpEq as Eq, ScmpCmpGe as Ge, ScmpCmpLe as Le, ScmpCmpLt as Lt};
    let many = (20..40).map(|value| (Eq, value));
    for odd in [
        (Lt, 0),
        (Lt, 64),
        (Lt, 65),
        (Le, 31),
        (Le, 63),
        (Le, 64),
        (Eq, 63),
        (Eq, 64),
        (Eq, 1 << 32),
        (Ge, 50),
    ] {
        for at in [0, 3, 20] {
            let mut conditions: Vec<(Operator, u64)> = many.clone().collect();
            conditions.insert(at, odd);
            let rules = conditions.iter().map(|(op, value)| {
                let arg =
                    LinuxSeccompArgBuilder::default().index(2_usize).value(*value).value_two(0_u64).op(*op);
                let mut rule = LinuxSyscall::default();
                rule.set_names(vec!["ioctl".to_owned()]).set_action(Action::ScmpActAllow);
                rule.set_args(Some(vec![arg.build().unwrap()]));
                rule
            });
            let mut profile = LinuxSeccomp::default();
            profile.set_default_action(Action::ScmpActErrno).set_syscalls(Some(rules.collect()));
            let table = syscalls::native();
            let number = table.number("ioctl").unwrap();
            for shape in SHAPES {
                let filter = Filter::compile(&profile, shape).unwrap();
                let length = filter.program().len();
                assert!(length < 60, "{length} instructions for {odd:?} at {at}");
                for value in (0..70).flat_map(|low| [low, low | 1 << 32, low | 1 << 31]) {
                    let args = [0, 0, value, 0, 0, 0];
                    let expected = naive(&profile, table, number, &args);
                    assert_eq!(
                        run(filter.program(), table.audit, number, &args),
                        expected,
                        "{odd:?} {value:#x}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_architectures_have_in_common_is_there_once() {
    let mut profile = default_profile(&LinuxCapabilities::default());
    let both = Filter::compile(&profile, Shape::ManyCalls).unwrap();
    profile.set_architectures(None);
    let one = Filter::compile(&profile, Shape::ManyCalls).unwrap();
    // Which families a socket may have.
    let asks = |filter: &Filter| filter.program().iter().filter(|i| i.code == STORE).count();
    assert_eq!((asks(&one), asks(&both)), (1, 1));
    assert_every_verdict(&profile);
}
