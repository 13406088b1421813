//! Mounts that depend on how the host's are: runtime-spec, "Mounts" and "Rootfs Mount Propagation".

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use berth_e2e::bundle::Bundle;
use berth_e2e::tools::run;
use serde_json::json;

use crate::checks::checks;

checks! {
    a_missing_source_and_an_unknown_file_system_are_refused
    a_relative_source_starts_at_the_bundle
    a_bind_mount_takes_no_notice_of_what_a_file_system_would
    a_label_means_nothing_where_no_kernel_knows_it
    the_cgroup_mount_shows_the_own_cgroup
    a_destination_may_be_as_the_host_sees_it;
    alone
    a_tmpfs_has_the_mode_of_what_it_covers
    the_hosts_mounts_stay_whatever_the_propagation_is
}

fn a_missing_source_and_an_unknown_file_system_are_refused(bundle: &mut Bundle) {
    let good = bundle.config.clone();
    for mount in [
        json!({"destination": "/m", "type": "bind", "source": "/no/such", "options": ["bind"]}),
        json!({"destination": "/m", "type": "nosuchfs", "source": "x"}),
    ] {
        bundle.config["mounts"].as_array_mut().unwrap().push(mount);
        assert!(!bundle.created().unwrap());
        bundle.config = good.clone();
    }
}

fn a_relative_source_starts_at_the_bundle(bundle: &mut Bundle) {
    fs::create_dir(bundle.path("source")).unwrap();
    fs::write(bundle.path("source/file"), "here\n").unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/m", "type": "bind", "source": "source", "options": ["bind", "ro"]}));
    assert_eq!(bundle.shell("cat /m/file").finish().unwrap(), "here\n");
}

fn a_bind_mount_takes_no_notice_of_what_a_file_system_would(bundle: &mut Bundle) {
    fs::create_dir(bundle.path("source")).unwrap();
    fs::write(bundle.path("source/file"), "here\n").unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    let options = json!(["bind", "nosuid", "mode=755", "size=1k"]);
    mounts.push(json!({"destination": "/m", "type": "bind", "source": "source", "options": options}));
    assert_eq!(bundle.shell("cat /m/file").finish().unwrap(), "here\n");
}

fn a_destination_may_be_as_the_host_sees_it(bundle: &mut Bundle) {
    fs::create_dir(bundle.path("source")).unwrap();
    fs::write(bundle.path("source/file"), "here\n").unwrap();
    let place = fs::canonicalize(bundle.path("rootfs")).unwrap().join("m");
    // Older ones do not make it.
    fs::create_dir(&place).unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": place, "type": "bind", "source": "source", "options": ["bind"]}));
    assert_eq!(bundle.shell("cat /m/file").finish().unwrap(), "here\n");
}

/// As with runc from 1.3 on; older ones differ in what they make of a place that is not there.
fn a_tmpfs_has_the_mode_of_what_it_covers(bundle: &mut Bundle) {
    let covered = bundle.path("rootfs/covered");
    fs::create_dir(&covered).unwrap();
    fs::set_permissions(&covered, PermissionsExt::from_mode(0o710)).unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    let tmpfs = |place: &str, options| json!({"destination": place, "type": "tmpfs", "source": "t", "options": options});
    mounts.push(tmpfs("/covered", json!(["nodev"])));
    mounts.push(tmpfs("/tmp", json!(["mode=1500"])));
    mounts.push(tmpfs("/new/one", json!(["nodev"])));
    let modes = bundle.shell("stat -c %a /covered /tmp /new/one").finish().unwrap();
    assert_eq!(modes, "710\n1500\n1777\n");
}

fn a_label_means_nothing_where_no_kernel_knows_it(bundle: &mut Bundle) {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return;
    }
    bundle.config["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0:c1,c2");
    assert_eq!(bundle.shell("echo ran").finish().unwrap(), "ran\n");
}

fn the_cgroup_mount_shows_the_own_cgroup(bundle: &mut Bundle) {
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    let options = json!(["nosuid", "noexec", "nodev", "relatime", "ro"]);
    mounts.push(
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}),
    );
    bundle.config["linux"]["resources"]["pids"] = json!({"limit": 123});
    let output = bundle.shell("cd /sys/fs/cgroup; cat pids.max pids/pids.max 2>/dev/null").finish().unwrap();
    assert_eq!(output, "123\n");
}

/// On a host as systemd makes it: everything is shared, and the bundle lies on a file system of its own.
fn the_hosts_mounts_stay_whatever_the_propagation_is(bundle: &mut Bundle) {
    bundle.shell("sed -n '/ - /{s/.* \\/ \\/ [^ ]* *//p;q}' /proc/self/mountinfo; true");
    let script = "set -e
        mount --make-rshared /
        mount --bind \"$1\" \"$1\"; mkdir -p \"$1/tree\"; mount -t tmpfs a \"$1/tree\"
        mkdir \"$1/tree/in\"; mount -t tmpfs b \"$1/tree/in\"; cd \"$1\"
        cut -d' ' -f1-6 /proc/self/mountinfo >before
        shift; \"$@\"
        cut -d' ' -f1-6 /proc/self/mountinfo >after; cmp before after";
    for wanted in ["", "private", "slave", "shared", "unbindable", "rprivate", "rslave"] {
        if wanted.is_empty() {
            bundle.config["linux"].as_object_mut().unwrap().remove("rootfsPropagation");
        } else {
            bundle.config["linux"]["rootfsPropagation"] = json!(wanted);
        }
        bundle.save().unwrap();
        let inner = bundle.command(&["run", &bundle.id]);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "bash", "-c", script, "bash"]);
        command.arg(bundle.path("")).arg(inner.get_program()).args(inner.get_args());
        let ran = run(command).unwrap();
        assert_eq!(ran.code, 0, "{wanted}: {ran}");
    }
}
