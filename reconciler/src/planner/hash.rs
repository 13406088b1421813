//! What makes two instances of a container interchangeable.

use std::io;

use k8s_openapi::api::core::v1;

/// Hash of a container's spec without what may change in place: resources, and what the agent and not the process
/// acts on (probes, hooks, pull and restart policy). Two containers with equal hashes need no restart between them.
///
/// FNV-1a over the JSON form: the same in every version of the agent as long as the fields are, and cheap enough to be
/// computed on every look at a pod. Nobody gains by a collision but the author of the pod.
pub fn spec_hash(container: &v1::Container) -> String {
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    let v1::Container {
        name,
        image,
        command,
        args,
        working_dir,
        env,
        env_from,
        ports,
        volume_mounts,
        volume_devices,
        security_context,
        stdin,
        stdin_once,
        tty,
        termination_message_path,
        termination_message_policy,
        resources: _,
        resize_policy: _,
        liveness_probe: _,
        readiness_probe: _,
        startup_probe: _,
        lifecycle: _,
        image_pull_policy: _,
        restart_policy: _,
        restart_policy_rules: _,
    } = container;
    hash.add(&(name, image, command, args, working_dir));
    hash.add(&(env, env_from, ports, volume_mounts, volume_devices));
    hash.add(&(security_context, stdin, stdin_once, tty));
    hash.add(&(termination_message_path, termination_message_policy));
    format!("{:016x}", hash.0)
}

struct Fnv(u64);

impl Fnv {
    fn add(&mut self, value: &impl serde::Serialize) {
        serde_json::to_writer(&mut *self, value)
            .expect("a container is plain data and hashing does not fail");
    }
}

impl io::Write for Fnv {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
