//! From a container of a pod and its image to an OCI runtime specification.
//!
//! The pod's network, IPC and UTS namespaces are those of its shim, so the specification does not name them: a
//! namespace type that is not listed is inherited from the runtime (OCI runtime-spec, config-linux.md).

mod limits;
mod mounts;
mod security;
mod user;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use berth_image::Image;
use berth_reconciler::node::{Failure, LinuxUser};
use berth_reconciler::pod::Pod;
use berth_reconciler::selinux::Labels;
use berth_reconciler::{env, resources};
use berth_runtime::shim::IdRange;
use k8s_openapi::api::core::v1;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::config::{Cfs, Config};

pub use limits::{Swap, huge_page_pools, huge_pages, memory_qos};
pub use mounts::{MountSource, SubPathError};
pub use user::read_in_layers;

/// Everything that the specification of one container follows from.
pub struct Inputs<'a> {
    /// Settings of the agent.
    pub config: &'a Config,
    /// The pod.
    pub pod: &'a Pod,
    /// The container.
    pub container: &'a v1::Container,
    /// Its image.
    pub image: &'a Image,
    /// The variables that the pod gives it.
    pub env: &'a [(String, String)],
    /// The pod's host name.
    pub hostname: &'a str,
    /// Folder with the pod's `hosts`, `hostname` and `resolv.conf`.
    pub etc: &'a Path,
    /// Where each volume lies on the host.
    pub volumes: &'a BTreeMap<String, PathBuf>,
    /// The pod's shared `/dev/shm`, when it has one.
    pub shm: Option<&'a Path>,
    /// The file that becomes `terminationMessagePath`.
    pub termination_log: &'a Path,
    /// The container's cgroup.
    pub cgroup: &'a str,
    /// The node's memory in bytes.
    pub memory_capacity: u64,
    /// What there is of swap to limit; none on cgroup v1 and without swap accounting.
    pub swap: Option<Swap>,
    /// Whether the machine has cgroup v2.
    pub cgroup_v2: bool,
    /// The host's ids of the pod's user namespace, when it has one (`hostUsers: false`).
    pub users: Option<IdRange>,
    /// The container's SELinux labels, where pods have them.
    pub labels: Option<&'a Labels>,
}

/// A specification and what must stay open until the container has been made from it.
pub struct Built {
    /// The specification.
    pub spec: Spec,
    /// Descriptors behind the sources of subPath mounts.
    pub held: Vec<std::os::fd::OwnedFd>,
    /// Who its process is, inside.
    pub user: LinuxUser,
}

pub(crate) fn config_error(message: impl Into<String>) -> Failure {
    Failure { reason: "CreateContainerConfigError".into(), message: message.into() }
}

pub(crate) fn create_error(message: impl Into<String>) -> Failure {
    Failure { reason: "CreateContainerError".into(), message: message.into() }
}

/// Builds the specification.
///
/// # Errors
/// `CreateContainerConfigError` when the pod asks for what its image cannot give (a user that does not exist,
/// `runAsNonRoot` with a root image) or a bad subPath, `CreateContainerError` for a missing command.
pub fn build(inputs: &Inputs<'_>) -> Result<Built, Failure> {
    let args = arguments(inputs)?;
    let user = user::resolve(inputs)?;
    let privileged = security::privileged(inputs.container);
    let (mounts, held) = mounts::mounts(inputs)?;
    let mut linux = json!({
        "cgroupsPath": inputs.cgroup,
        "resources": resources_of(inputs, privileged),
        "namespaces": namespaces(inputs),
        "rootfsPropagation": mounts::rootfs_propagation(inputs.container),
    });
    if let Some(IdRange { first, count }) = inputs.users {
        let map = json!([{ "containerID": 0, "hostID": first, "size": count }]);
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
    }
    let app_armor = security::apply(inputs, privileged, &mut linux)?;
    if let Some(sysctls) = sysctls(inputs.pod) {
        linux["sysctl"] = sysctls;
    }
    let mut process = json!({
        "terminal": inputs.container.tty.unwrap_or(false),
        "user": user::process_user(&user),
        "args": args,
        "env": environment(inputs),
        "cwd": working_dir(inputs),
        "capabilities": security::capabilities(inputs.container, privileged),
        "noNewPrivileges": security::no_new_privileges(inputs.container),
        "oomScoreAdj": resources::oom_score_adj(inputs.pod.spec(), inputs.container, inputs.memory_capacity),
    });
    if let Some(profile) = app_armor {
        process["apparmorProfile"] = json!(profile);
    }
    if let Some(labels) = inputs.labels {
        process["selinuxLabel"] = json!(labels.process);
        linux["mountLabel"] = json!(labels.file);
    }
    let read_only =
        inputs.container.security_context.as_ref().and_then(|s| s.read_only_root_filesystem).unwrap_or(false);
    let document = json!({
        "ociVersion": "1.2.0",
        "process": process,
        "root": { "path": "rootfs", "readonly": read_only },
        "mounts": mounts,
        "linux": linux,
        "annotations": annotations(inputs),
    });
    let spec: Spec = serde_json::from_value(document)
        .map_err(|e| create_error(format!("the OCI specification does not hold together: {e}")))?;
    Ok(Built { spec, held, user })
}

fn annotations(inputs: &Inputs<'_>) -> HashMap<&'static str, String> {
    HashMap::from([
        ("io.kubernetes.pod.name", inputs.pod.name().to_owned()),
        ("io.kubernetes.pod.namespace", inputs.pod.namespace().to_owned()),
        ("io.kubernetes.pod.uid", inputs.pod.uid().to_owned()),
        ("io.kubernetes.container.name", inputs.container.name.clone()),
        ("io.kubernetes.image", inputs.container.image.clone().unwrap_or_default()),
    ])
}

/// command and args over ENTRYPOINT and CMD, as in the Kubernetes documentation on "define a command and arguments".
fn arguments(inputs: &Inputs<'_>) -> Result<Vec<String>, Failure> {
    let container = inputs.container;
    let config = &inputs.image.config;
    let expand = |list: &[String]| list.iter().map(|a| env::expand(a, inputs.env)).collect::<Vec<_>>();
    let command = container.command.as_deref().filter(|c| !c.is_empty());
    let args = container.args.as_deref().filter(|a| !a.is_empty());
    let mut all = match command {
        Some(command) => expand(command),
        None => config.entrypoint.clone(),
    };
    match (command, args) {
        (_, Some(args)) => all.extend(expand(args)),
        (None, None) => all.extend(config.cmd.iter().cloned()),
        (Some(_), None) => {}
    }
    if all.is_empty() {
        return Err(create_error(format!(
            "no command specified: neither spec.containers{{{}}}.command nor the image {} has one",
            container.name,
            container.image.as_deref().unwrap_or_default()
        )));
    }
    Ok(all)
}

fn working_dir(inputs: &Inputs<'_>) -> String {
    let own = inputs.container.working_dir.clone().filter(|w| !w.is_empty());
    let dir = own.unwrap_or_else(|| inputs.image.config.working_dir.clone());
    if dir.is_empty() {
        "/".into()
    } else if dir.starts_with('/') {
        dir
    } else {
        format!("/{dir}")
    }
}

/// The image's variables, then the pod's; a later one of the same name takes the place of an earlier one.
fn environment(inputs: &Inputs<'_>) -> Vec<String> {
    let mut list: Vec<(String, String)> = vec![
        ("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
        ("HOSTNAME".into(), inputs.hostname.to_owned()),
    ];
    if inputs.container.tty == Some(true) {
        list.push(("TERM".into(), "xterm".into()));
    }
    let image = inputs.image.config.env.iter().filter_map(|e| e.split_once('='));
    let given = inputs.env.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    for (name, value) in image.chain(given) {
        match list.iter_mut().find(|(known, _)| known == name) {
            Some((_, slot)) => value.clone_into(slot),
            None => list.push((name.into(), value.into())),
        }
    }
    list.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn namespaces(inputs: &Inputs<'_>) -> Value {
    let mut list = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    if inputs.users.is_some() {
        // The pod's: the shim, which has it, fills in where.
        list.push(json!({"type": "user"}));
    }
    if inputs.pod.spec().host_pid != Some(true) {
        list.push(json!({"type": "pid"}));
    }
    Value::Array(list)
}

fn sysctls(pod: &Pod) -> Option<Value> {
    let list = pod.spec().security_context.as_ref()?.sysctls.as_ref()?;
    Some(list.iter().map(|s| (s.name.clone(), Value::String(s.value.clone()))).collect())
}

fn resources_of(inputs: &Inputs<'_>, privileged: bool) -> Value {
    let values = resources::container_values(inputs.pod.spec(), inputs.container);
    let mut resources = cgroup_resources(&values, inputs.config.cfs);
    let pages = limits::huge_pages(&resources::huge_pages(inputs.pod.spec(), inputs.container));
    if !pages.is_empty() {
        resources["hugepageLimits"] = Value::Array(pages);
    }
    let unified = limits::unified(inputs);
    if !unified.is_empty() {
        resources["unified"] = Value::Object(unified);
    }
    resources["devices"] = security::device_rules(privileged);
    resources
}

/// Processor and memory as OCI resources, under the node's settings of the processor quota.
pub fn cgroup_resources(values: &resources::CpuMem, cfs: Cfs) -> Value {
    let values = values.under(cfs.quota, cfs.period);
    let mut cpu = json!({ "shares": values.shares, "period": values.period });
    // Minus one removes a quota that an earlier update set.
    cpu["quota"] = json!(values.quota.unwrap_or(-1));
    let mut all = json!({ "cpu": cpu });
    if let Some(limit) = values.memory_limit {
        all["memory"] = json!({ "limit": limit });
    }
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Who a container is by a pod's context, its own, and its image.
    fn user(pods: Value, own: Value, image: &str, users: Option<IdRange>) -> Result<LinuxUser, String> {
        let layer = tempfile::tempdir().unwrap();
        std::fs::create_dir(layer.path().join("etc")).unwrap();
        std::fs::write(layer.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/false\n")
            .unwrap();
        std::fs::write(layer.path().join("etc/group"), "web:x:34:\nextra:x:50:web,other\nmore:x:60:other\n")
            .unwrap();
        let container = json!({"name": "x", "image": "i", "securityContext": own});
        let config = json!({"Cmd": ["/c"], "User": image});
        with_pod(json!({"securityContext": pods}), container, config, vec![layer.path().into()], users, |i| {
            user::resolve(i).map_err(|failure| {
                assert_eq!(failure.reason, "CreateContainerConfigError");
                failure.message
            })
        })
    }

    #[test]
    fn users_and_groups_follow_from_contexts_and_image() {
        let cases = [
            (json!({}), json!({}), "", (0, 0, vec![0])),
            (json!({}), json!({}), "web", (33, 34, vec![34, 50])),
            (json!({}), json!({}), "33:60", (33, 60, vec![50, 60])),
            (json!({"runAsUser": 33}), json!({}), "", (33, 34, vec![34, 50])),
            (json!({"runAsUser": 7}), json!({}), "web", (7, 0, vec![0])),
            (json!({"runAsUser": 7, "runAsGroup": 8}), json!({"runAsUser": 33}), "", (33, 8, vec![8, 50])),
            (json!({"runAsGroup": 8}), json!({"runAsGroup": 9}), "web", (33, 9, vec![9, 50])),
            (
                json!({"supplementalGroups": [5, 6], "fsGroup": 4}),
                json!({}),
                "web",
                (33, 34, vec![4, 5, 6, 34, 50]),
            ),
            (
                json!({"supplementalGroups": [5], "supplementalGroupsPolicy": "Strict"}),
                json!({}),
                "web",
                (33, 34, vec![5, 34]),
            ),
            (
                json!({"supplementalGroups": [5], "supplementalGroupsPolicy": "Merge"}),
                json!({}),
                "web",
                (33, 34, vec![5, 34, 50]),
            ),
        ];
        for (pods, own, image, (uid, gid, groups)) in cases {
            let found = user(pods.clone(), own.clone(), image, None);
            assert_eq!(found, Ok(LinuxUser { uid, gid, groups }), "{pods} {own} {image:?}");
        }
    }

    #[test]
    fn run_as_non_root_is_checked_in_kubelets_words() {
        let non_root = json!({"runAsNonRoot": true});
        let about = "(pod: \"p_default(u)\", container: x)";
        for (own, image, said) in [
            (json!({}), "", format!("container has runAsNonRoot and image will run as root {about}")),
            (json!({}), "0", format!("container has runAsNonRoot and image will run as root {about}")),
            (
                json!({}),
                "web",
                format!(
                    "container has runAsNonRoot and image has non-numeric user (web), cannot verify user is non-root {about}"
                ),
            ),
            (json!({"runAsUser": 0}), "33", format!("container's runAsUser breaks non-root policy {about}")),
        ] {
            assert_eq!(user(non_root.clone(), own.clone(), image, None), Err(said), "{own} {image:?}");
        }
        assert_eq!(user(non_root.clone(), json!({}), "33", None).unwrap().uid, 33);
        assert_eq!(user(non_root.clone(), json!({"runAsUser": 7}), "web", None).unwrap().uid, 7);
        assert_eq!(
            user(non_root, json!({"runAsNonRoot": false}), "", None).unwrap().uid,
            0,
            "the container's word wins"
        );
    }

    #[test]
    fn users_outside_of_the_pods_namespace_are_refused() {
        let users = Some(IdRange { first: 1_000_000, count: 65536 });
        let case = |pods: Value| user(pods, json!({}), "", users);
        assert!(case(json!({"runAsUser": 65535})).is_ok());
        for pods in [
            json!({"runAsUser": 65536}),
            json!({"runAsGroup": 70000}),
            json!({"fsGroup": 70000}),
            json!({"supplementalGroups": [70000]}),
        ] {
            assert!(case(pods.clone()).unwrap_err().contains("is not among the 65536 ids"), "{pods}");
        }
    }

    #[test]
    fn the_filter_is_the_containers_the_pods_or_the_nodes() {
        let profile = |kind: &str| json!({"seccompProfile": {"type": kind}});
        for (pods, own, filtered) in [
            (json!({}), json!({}), true),
            (profile("Unconfined"), json!({}), false),
            (profile("Unconfined"), profile("RuntimeDefault"), true),
            (profile("RuntimeDefault"), profile("Unconfined"), false),
            (profile("RuntimeDefault"), json!({"privileged": true}), false),
        ] {
            let container = json!({"name": "x", "image": "i", "securityContext": own});
            let pod = json!({"securityContext": pods});
            let spec =
                with_pod(pod, container, json!({"Cmd": ["/c"]}), vec![], None, |i| build(i).unwrap().spec);
            assert_eq!(spec.linux().as_ref().unwrap().seccomp().is_some(), filtered, "{pods} {own}");
        }
    }

    #[test]
    fn procfs_is_covered_unless_the_pod_wants_it_bare() {
        for (own, covered) in [
            (json!({}), true),
            (json!({"procMount": "Default"}), true),
            (json!({"procMount": "Unmasked"}), false),
            (json!({"privileged": true}), false),
        ] {
            let container = json!({"name": "x", "image": "i", "securityContext": own});
            let spec = with(container, json!({"Cmd": ["/c"]}), |i| build(i).unwrap().spec);
            let linux = spec.linux().as_ref().unwrap();
            let given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
            assert_eq!(
                (given(linux.masked_paths()), given(linux.readonly_paths())),
                (covered, covered),
                "{own}"
            );
        }
    }

    fn with<R>(container: Value, config: Value, check: impl FnOnce(&Inputs<'_>) -> R) -> R {
        with_users(container, config, None, check)
    }

    fn with_users<R>(
        container: Value,
        config: Value,
        users: Option<IdRange>,
        check: impl FnOnce(&Inputs<'_>) -> R,
    ) -> R {
        with_pod(json!({}), container, config, vec![], users, check)
    }

    fn with_pod<R>(
        mut spec: Value,
        container: Value,
        config: Value,
        layers: Vec<PathBuf>,
        users: Option<IdRange>,
        check: impl FnOnce(&Inputs<'_>) -> R,
    ) -> R {
        spec["containers"] = json!([container]);
        let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"}, "spec": spec});
        let pod: v1::Pod = serde_json::from_value(pod).unwrap();
        let pod = Pod::new(pod, berth_reconciler::pod::Source::Api);
        let image = Image {
            id: "sha256:1".into(),
            repo_tags: vec![],
            repo_digests: vec![],
            size: 0,
            created: None,
            added: jiff::Timestamp::UNIX_EPOCH,
            architecture: "amd64".into(),
            os: "linux".into(),
            config: serde_json::from_value(config).unwrap(),
            manifest: String::new(),
            layers,
        };
        let args = crate::config::AgentArgs { node_name: Some("n".into()), ..Default::default() };
        let config = Config::load(&args).unwrap();
        let env = [("A".to_owned(), "1".to_owned())];
        check(&Inputs {
            config: &config,
            pod: &pod,
            container: &pod.spec().containers[0],
            image: &image,
            env: &env,
            hostname: "h",
            etc: Path::new("/etc-of-pod"),
            volumes: &BTreeMap::new(),
            shm: None,
            termination_log: Path::new("/t"),
            cgroup: "/kubepods/podu/c",
            memory_capacity: 1 << 30,
            swap: None,
            cgroup_v2: false,
            users,
            labels: None,
        })
    }

    #[test]
    fn command_replaces_entrypoint_and_cmd() {
        let config = json!({"Entrypoint": ["/e"], "Cmd": ["c"]});
        let case = |container: Value| with(container, config.clone(), |i| arguments(i).unwrap());
        assert_eq!(case(json!({"name": "x"})), ["/e", "c"]);
        assert_eq!(case(json!({"name": "x", "args": ["a"]})), ["/e", "a"]);
        assert_eq!(case(json!({"name": "x", "command": ["/x"]})), ["/x"]);
        assert_eq!(case(json!({"name": "x", "command": ["/x"], "args": ["$(A)"]})), ["/x", "1"]);
    }

    #[test]
    fn a_container_without_any_command_is_refused() {
        let error = with(json!({"name": "x", "image": "i"}), json!({}), |i| arguments(i).unwrap_err());
        assert_eq!(error.reason, "CreateContainerError");
        assert!(error.message.contains("no command specified"));
    }

    #[test]
    fn the_pods_variables_win_over_the_images() {
        let env = with(json!({"name": "x"}), json!({"Env": ["A=0", "PATH=/p", "B=2"]}), environment);
        assert_eq!(env, ["PATH=/p", "HOSTNAME=h", "A=1", "B=2"]);
    }

    #[test]
    fn network_ipc_and_uts_are_inherited_from_the_shim() {
        let config = json!({"Cmd": ["/c"]});
        let spec = with(json!({"name": "x", "image": "i"}), config, |i| build(i).unwrap().spec);
        let document = serde_json::to_value(&spec).unwrap();
        let list = document["linux"]["namespaces"].as_array().unwrap();
        let types: Vec<&str> = list.iter().map(|n| n["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["mount", "cgroup", "pid"]);
    }

    #[test]
    fn a_pod_with_users_of_its_own_has_every_file_mapped() {
        let users = Some(IdRange { first: 1_000_000, count: 65536 });
        let container = json!({"name": "x", "image": "i"});
        let spec = with_users(container, json!({"Cmd": ["/c"]}), users, |i| build(i).unwrap().spec);
        let document = serde_json::to_value(&spec).unwrap();
        let list = document["linux"]["namespaces"].as_array().unwrap();
        assert!(list.contains(&json!({"type": "user"})), "{list:?}");
        let map = json!([{"containerID": 0, "hostID": 1_000_000, "size": 65536}]);
        assert_eq!(document["linux"]["uidMappings"], map);
        assert_eq!(document["linux"]["gidMappings"], map);
        for mount in document["mounts"].as_array().unwrap().iter().filter(|m| m["type"] == "bind") {
            assert!(mount["options"].as_array().unwrap().contains(&json!("idmap")), "{mount}");
        }
    }
}
