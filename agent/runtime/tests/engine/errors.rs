//! What goes wrong, and what is left then.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use berth_runtime::cgroup::Cgroups;
use berth_runtime::container::Error;
use berth_runtime::rootfs::Rootfs;
use serde_json::json;

use crate::harness::Test;
use crate::sandbox::Sandbox;

pub const TESTS: &[Test] = &[
    ("programs_that_cannot_be_run", programs),
    ("a_missing_bind_source", bind_source),
    ("an_unknown_file_system_and_an_unknown_option", file_system),
    ("what_is_not_supported_is_named", unsupported),
    ("a_missing_layer", layer),
    ("a_failure_leaves_no_cgroup_and_no_process", leaves_nothing),
];

fn program(name: &str) -> Error {
    let mut sandbox = Sandbox::new();
    sandbox.spec["process"]["args"] = json!([name]);
    fs::write(sandbox.image("etc/plain"), "no program").unwrap();
    fs::write(sandbox.image("bin/script"), "#!/no/such/interpreter\n").unwrap();
    fs::write(sandbox.image("bin/garbage"), "\x7fELF garbage").unwrap();
    for file in ["bin/script", "bin/garbage"] {
        fs::set_permissions(sandbox.image(file), fs::Permissions::from_mode(0o755)).unwrap();
    }
    symlink("/nowhere", sandbox.image("bin/dangling")).unwrap();
    sandbox.start().map(drop).unwrap_err()
}

fn programs() {
    for (name, message, missing) in [
        ("nope", "exec: \"nope\": executable file not found in $PATH", true),
        ("dangling", "exec: \"dangling\": executable file not found in $PATH", true),
        ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory", true),
        ("/etc/plain/x", "exec: \"/etc/plain/x\": stat /etc/plain/x: not a directory", true),
        ("/etc/plain", "exec: \"/etc/plain\": permission denied", false),
        ("/etc", "exec: \"/etc\": is a directory: permission denied", false),
        ("script", "exec /bin/script: no such file or directory", true),
        ("/bin/garbage", "exec /bin/garbage: exec format error", false),
    ] {
        match program(name) {
            Error::Exec { message: found, not_found } => assert_eq!((&*found, not_found), (message, missing)),
            other => panic!("{name}: {other}"),
        }
    }
}

fn bind_source() {
    let mut sandbox = Sandbox::new();
    sandbox.push("/mounts", json!({"destination": "/x", "source": "/no/such/source", "options": ["bind"]}));
    let error = sandbox.error();
    assert!(error.starts_with("bind mount /no/such/source: No such file or directory"), "{error}");
}

fn file_system() {
    let mut sandbox = Sandbox::new();
    sandbox.push("/mounts", json!({"destination": "/x", "type": "nofs", "source": "x"}));
    let error = sandbox.error();
    assert!(error.contains("file system nofs for /x"), "{error}");
    let mut sandbox = Sandbox::new();
    sandbox.push(
        "/mounts",
        json!({"destination": "/x", "type": "tmpfs", "source": "x", "options": ["bogus=1"]}),
    );
    let error = sandbox.error();
    assert!(error.contains("tmpfs") && error.contains("bogus"), "{error}");
}

fn unsupported() {
    let change = |pointer: &str, value| {
        let mut sandbox = Sandbox::new();
        *sandbox.spec.pointer_mut(pointer).unwrap() = value;
        sandbox.error()
    };
    let hooks = json!({"poststop": [{"path": "/bin/true"}]});
    let mut sandbox = Sandbox::new();
    sandbox.spec["hooks"] = hooks;
    assert_eq!(sandbox.error(), "hooks: nobody would run the hooks after the start of this container");
    let error = change("/linux/namespaces", json!([{"type": "mount"}, {"type": "user"}]));
    assert!(error.starts_with("linux.uidMappings"), "{error}");
    let error = change("/linux/namespaces", json!([{"type": "pid"}]));
    assert!(error.contains("mount namespace"), "{error}");
    let error = change("/linux/cgroupsPath", json!("/a/../b"));
    assert!(error.contains("/a/../b"), "{error}");
}

fn layer() {
    let sandbox = Sandbox::new();
    let rootfs = Rootfs::Overlay {
        lowers: vec![sandbox.host("gone"), sandbox.host("lower")],
        upper: sandbox.host("upper"),
        work: sandbox.host("work"),
    };
    let error = sandbox.create_with(&rootfs, Default::default()).unwrap_err().to_string();
    assert!(error.contains("gone") && error.contains("No such file"), "{error}");
}

fn leaves_nothing() {
    let mut sandbox = Sandbox::new();
    sandbox.push("/mounts", json!({"destination": "/x", "source": "/no/such/source", "options": ["bind"]}));
    sandbox.error();
    let (parent, name) = sandbox.cgroup.rsplit_once('/').unwrap();
    assert!(!Cgroups::detect().unwrap().list(parent).contains(&name.to_owned()));
    let children =
        fs::read_to_string(format!("/proc/self/task/{}/children", nix::unistd::gettid())).unwrap_or_default();
    assert_eq!(children, "");
}
