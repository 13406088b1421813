//! Which devices a cgroup may use: rule lists on v1, an eBPF program on v2.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::device_program::{self, Kind, Policy};
use super::hierarchy::Hierarchy;
use super::{Error, path};
use crate::sys::bpf;

/// Sets the device rules of a cgroup. Later rules win over earlier ones, as on v1.
pub fn apply(hierarchy: &Hierarchy, dir: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), Error> {
    match hierarchy {
        Hierarchy::V1(_) => apply_v1(dir, rules),
        Hierarchy::V2(_) => apply_v2(dir, rules),
    }
}

fn apply_v1(dir: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), Error> {
    for rule in rules {
        let file = dir.join(if rule.allow() { "devices.allow" } else { "devices.deny" });
        let all = rule.typ().unwrap_or_default() == LinuxDeviceType::A;
        path::write(&file, &if all { "a".to_owned() } else { v1_line(rule) })?;
    }
    Ok(())
}

fn v1_line(rule: &LinuxDeviceCgroup) -> String {
    let number = |n: Option<i64>| n.filter(|n| *n >= 0).map_or_else(|| "*".to_owned(), |n| n.to_string());
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::B => "b",
        _ => "c",
    };
    // The kernel would refuse the whole rule for a letter that it does not know; v2 takes no notice of it, nor does runc.
    let access: String =
        rule.access().iter().flat_map(|a| a.chars()).filter(|c| "rwm".contains(*c)).collect();
    let access = if access.is_empty() { "rwm" } else { &access };
    format!("{kind} {}:{} {access}", number(rule.major()), number(rule.minor()))
}

/// Replaces the program in one step. Where that cannot be done, the new one is attached before old ones are taken off:
/// in between both must agree, so that there is no moment without a guard.
fn apply_v2(dir: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), Error> {
    let policy = policy(rules);
    let failed = |operation| move |e: io::Error| Error::io(operation, dir, e);
    let program = bpf::load_device_program(&device_program::assemble(&policy))
        .map_err(failed("load device rules for"))?;
    let cgroup = File::open(dir).map_err(failed("open cgroup"))?;
    let old = bpf::device_programs(cgroup.as_fd()).map_err(failed("read device rules of"))?;
    if let [only] = &old[..]
        && bpf::replace_device_program(cgroup.as_fd(), only.as_fd(), program.as_fd()).is_ok()
    {
        return Ok(());
    }
    bpf::attach_device_program(cgroup.as_fd(), program.as_fd()).map_err(failed("set device rules of"))?;
    for program in old {
        bpf::detach_device_program(cgroup.as_fd(), program.as_fd())
            .map_err(failed("replace device rules of"))?;
    }
    Ok(())
}

/// What a list of rules comes to.
pub fn policy(rules: &[LinuxDeviceCgroup]) -> Policy {
    let mut policy = Policy::default();
    for rule in rules {
        policy.add(rule.allow(), kind(rule), number(rule.major()), number(rule.minor()), access(rule));
    }
    policy
}

fn kind(rule: &LinuxDeviceCgroup) -> Option<Kind> {
    match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(Kind::Block),
        _ => Some(Kind::Char),
    }
}

fn number(n: Option<i64>) -> Option<u32> {
    n.and_then(|n| u32::try_from(n).ok())
}

fn access(rule: &LinuxDeviceCgroup) -> u32 {
    let text = rule.access().as_deref().filter(|a| !a.is_empty()).unwrap_or("rwm");
    text.chars().fold(0, |bits, c| {
        bits | match c {
            'm' => device_program::MKNOD,
            'r' => device_program::READ,
            'w' => device_program::WRITE,
            _ => 0,
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn letters_that_are_none_are_left_out() {
        let line = |access: &str| {
            let rule =
                serde_json::json!({"allow": false, "type": "c", "major": 1, "minor": 11, "access": access});
            v1_line(&serde_json::from_value(rule).unwrap())
        };
        assert_eq!(line("rwa"), "c 1:11 rw");
        assert_eq!(line("m"), "c 1:11 m");
        assert_eq!(line(""), "c 1:11 rwm");
    }
}
