//! SELinux labels of a pod: which its containers and files get, from what the pod says, the policy's contexts for
//! containers, and the pod's level.
//!
//! The rules are those of the common container engines. Options of a container stand in place of the pod's as a whole, as a
//! kubelet hands them on. What they leave open is the policy's, and the level is the pod's: two categories that no other
//! pod has (multi-category security), so that pods cannot reach each other's files and processes even though their types
//! are the same. A privileged container, and every one of a pod with the host's processes or its IPC, is not to be
//! confined: it is of the type `spc_t` and has no categories.

use std::fmt;

use k8s_openapi::api::core::v1;

/// Numbers of categories are below this in every known policy (libsepol, `mcs_num_cats`).
pub const CATEGORIES: u16 = 1024;

/// The pair that other engines on the machine give the files of containers they do not confine.
const TAKEN: (u16, u16) = (1022, 1023);

/// What a container is that is not confined ("super privileged").
const UNCONFINED: &str = "spc_t";

/// An SELinux context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    user: String,
    role: String,
    kind: String,
    /// Sensitivity and categories; none where the policy has no levels.
    level: Option<String>,
}

impl Context {
    /// Reads `user:role:type` or `user:role:type:level`; a level may have colons of its own.
    pub fn parse(text: &str) -> Option<Context> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let (user, role, kind) = (parts.next()?, parts.next()?, parts.next()?);
        let level = parts.next();
        let whole = [&user, &role, &kind].into_iter().chain(&level).all(|part| !part.is_empty());
        whole.then_some(Context { user, role, kind, level })
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Context { user, role, kind, level } = self;
        write!(f, "{user}:{role}:{kind}")?;
        level.as_ref().map_or(Ok(()), |level| write!(f, ":{level}"))
    }
}

/// What a policy wants containers to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contexts {
    /// Of processes.
    pub process: Context,
    /// Of files that one pod has to itself.
    pub file: Context,
}

impl Default for Contexts {
    /// What the policies of the distributions say.
    fn default() -> Self {
        let context = |role: &str, kind: &str| Context {
            user: "system_u".into(),
            role: role.into(),
            kind: kind.into(),
            level: Some("s0".into()),
        };
        Contexts {
            process: context("system_r", "container_t"),
            file: context("object_r", "container_file_t"),
        }
    }
}

impl Contexts {
    /// Reads a policy's file `lxc_contexts` (selinux_lxc_contexts_path(3)): lines `process = "CONTEXT"` and `file =
    /// "CONTEXT"`, and others that mean nothing here. What it lacks is as in [`Contexts::default`].
    pub fn parse(text: &str) -> Contexts {
        let mut contexts = Contexts::default();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
            let Some((key, value)) = line.split_once('=') else { continue };
            let Some(context) = Context::parse(value.trim().trim_matches('"')) else { continue };
            match key.trim() {
                "process" => contexts.process = context,
                "file" => contexts.file = context,
                _ => {}
            }
        }
        contexts
    }
}

/// A level of two categories, for a pod of its own; none unless the numbers differ and are free for pods.
pub fn level_of(one: u16, other: u16) -> Option<String> {
    let (low, high) = (one.min(other), one.max(other));
    let free = low < high && high < CATEGORIES && (low, high) != TAKEN;
    free.then(|| format!("s0:c{low},c{high}"))
}

/// The level that the pod as a whole names.
pub fn level_named(spec: &v1::PodSpec) -> Option<&str> {
    let options = spec.security_context.as_ref()?.se_linux_options.as_ref()?;
    given(options.level.as_ref())
}

/// All levels that the pod and its containers name.
pub fn levels_named(spec: &v1::PodSpec) -> impl Iterator<Item = &str> {
    let of_containers = confinable(spec).filter_map(|container| {
        container.security_context.as_ref()?.se_linux_options.as_ref()?.level.as_ref()
    });
    level_named(spec).into_iter().chain(of_containers.filter_map(|level| given(Some(level))))
}

/// The labels of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Of its processes (`process.selinuxLabel` of the OCI runtime specification).
    pub process: String,
    /// Of the file systems that are mounted for it alone (`linux.mountLabel`).
    pub file: String,
}

/// The labels of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLabels {
    contexts: Contexts,
    level: String,
}

impl PodLabels {
    /// By the policy's contexts and the pod's level, which is the one that it names, else the one that it was given.
    pub fn new(contexts: Contexts, level: String) -> PodLabels {
        PodLabels { contexts, level }
    }

    /// The labels of a container of the pod.
    pub fn container(&self, spec: &v1::PodSpec, container: &v1::Container) -> Labels {
        let none = v1::SELinuxOptions::default();
        let options = options(spec, container).unwrap_or(&none);
        let Contexts { mut process, mut file } = self.contexts.clone();
        let unconfined = is_unconfined(spec, container);
        if unconfined {
            UNCONFINED.clone_into(&mut process.kind);
        }
        for (field, value) in [
            (&mut process.user, &options.user),
            (&mut process.role, &options.role),
            (&mut process.kind, &options.type_),
            (&mut file.user, &options.user),
        ] {
            if let Some(value) = given(value.as_ref()) {
                value.clone_into(field);
            }
        }
        let named = given(options.level.as_ref());
        process.level = match (named, unconfined) {
            (Some(level), _) => Some(level.to_owned()),
            (None, true) => process.level,
            (None, false) => process.level.map(|_| self.level.clone()),
        };
        file.level = named.map(str::to_owned).or_else(|| file.level.map(|_| self.level.clone()));
        Labels { process: process.to_string(), file: file.to_string() }
    }

    /// The label of a volume: that of the containers which mount it, if they agree, else the pod's. Those that are not
    /// confined reach any.
    pub fn volume(&self, spec: &v1::PodSpec, name: &str) -> String {
        let mounts = |container: &&v1::Container| {
            container.volume_mounts.iter().flatten().any(|mount| mount.name == name)
        };
        self.agreed(spec, confinable(spec).filter(mounts)).unwrap_or_else(|| self.pods(spec))
    }

    /// The label of what all containers of the pod share: `/dev/shm`.
    pub fn shared(&self, spec: &v1::PodSpec) -> String {
        self.agreed(spec, confinable(spec)).unwrap_or_else(|| self.pods(spec))
    }

    /// The label of the pod's `/etc/hosts` and its like, which hold no secrets: where containers have different levels,
    /// one that all of them may read.
    pub fn etc(&self, spec: &v1::PodSpec) -> String {
        self.agreed(spec, confinable(spec)).unwrap_or_else(|| self.contexts.file.to_string())
    }

    /// What the pod's own options say of files.
    fn pods(&self, spec: &v1::PodSpec) -> String {
        let mut file = self.contexts.file.clone();
        let options = spec.security_context.as_ref().and_then(|security| security.se_linux_options.as_ref());
        if let Some(user) = options.and_then(|options| given(options.user.as_ref())) {
            user.clone_into(&mut file.user);
        }
        file.level = level_named(spec).map(str::to_owned).or_else(|| file.level.map(|_| self.level.clone()));
        file.to_string()
    }

    /// The file label of those containers that are confined, if there are any and it is the same for all.
    fn agreed<'a>(
        &self,
        spec: &v1::PodSpec,
        containers: impl Iterator<Item = &'a v1::Container>,
    ) -> Option<String> {
        let mut labels = containers
            .filter(|container| !is_unconfined(spec, container))
            .map(|container| self.container(spec, container).file);
        let first = labels.next()?;
        labels.all(|label| label == first).then_some(first)
    }
}

/// What counts for a container: its own options as a whole, if it has any, else the pod's.
pub fn options<'a>(spec: &'a v1::PodSpec, container: &'a v1::Container) -> Option<&'a v1::SELinuxOptions> {
    let own = container.security_context.as_ref().and_then(|security| security.se_linux_options.as_ref());
    own.or_else(|| spec.security_context.as_ref()?.se_linux_options.as_ref())
}

fn is_unconfined(spec: &v1::PodSpec, container: &v1::Container) -> bool {
    let privileged = container.security_context.as_ref().and_then(|security| security.privileged);
    [privileged, spec.host_pid, spec.host_ipc].contains(&Some(true))
}

/// The containers whose labels those of shared files follow: not those that are put into a running pod, whose files have
/// their labels already.
fn confinable(spec: &v1::PodSpec) -> impl Iterator<Item = &v1::Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

fn given(value: Option<&String>) -> Option<&str> {
    value.map(String::as_str).filter(|value| !value.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const LEVEL: &str = "s0:c7,c11";

    fn spec(pods: Value, containers: Value) -> v1::PodSpec {
        let mut spec = pods;
        spec["containers"] = containers;
        serde_json::from_value(spec).unwrap()
    }

    fn labels() -> PodLabels {
        PodLabels::new(Contexts::default(), LEVEL.into())
    }

    fn container(pods: Value, own: Value) -> (String, String) {
        let spec = spec(pods, json!([{"name": "c", "securityContext": own}]));
        let Labels { process, file } = labels().container(&spec, &spec.containers[0]);
        (process, file)
    }

    #[test]
    fn labels_follow_from_options_contexts_and_the_pods_level() {
        let pods = |options: Value| json!({"securityContext": {"seLinuxOptions": options}});
        let own = |options: Value| json!({"seLinuxOptions": options});
        let process = |label: &str| format!("system_u:system_r:{label}");
        let file = |level: &str| format!("system_u:object_r:container_file_t:{level}");
        let confined = process("container_t:s0:c7,c11");
        for (pods, own, wanted) in [
            (json!({}), json!({}), (confined.clone(), file(LEVEL))),
            (pods(json!({})), own(json!({})), (confined.clone(), file(LEVEL))),
            (
                pods(json!({"level": "s0:c1,c2"})),
                json!({}),
                (process("container_t:s0:c1,c2"), file("s0:c1,c2")),
            ),
            (
                json!({}),
                own(json!({"level": "s0:c1,c2"})),
                (process("container_t:s0:c1,c2"), file("s0:c1,c2")),
            ),
            (pods(json!({"type": "p_t"})), json!({}), (process("p_t:s0:c7,c11"), file(LEVEL))),
            // The container's options take the place of the pod's as a whole, see `PodLabels::new` for the level.
            (
                pods(json!({"type": "p_t"})),
                own(json!({"level": "s0"})),
                (process("container_t:s0"), file("s0")),
            ),
            (pods(json!({"type": "p_t"})), own(json!({})), (confined.clone(), file(LEVEL))),
            (
                pods(json!({"user": "a_u", "role": "a_r", "type": "a_t", "level": "s1"})),
                json!({}),
                ("a_u:a_r:a_t:s1".into(), "a_u:object_r:container_file_t:s1".into()),
            ),
            (
                pods(json!({"type": ""})),
                own(json!({"level": "", "type": "c_t"})),
                (process("c_t:s0:c7,c11"), file(LEVEL)),
            ),
            // Not confined, but what is said still holds.
            (json!({}), json!({"privileged": true}), (process("spc_t:s0"), file(LEVEL))),
            (json!({"hostPID": true}), json!({}), (process("spc_t:s0"), file(LEVEL))),
            (json!({"hostIPC": true}), json!({}), (process("spc_t:s0"), file(LEVEL))),
            (json!({"hostNetwork": true}), json!({"privileged": false}), (confined.clone(), file(LEVEL))),
            (
                pods(json!({"type": "a_t", "level": "s0:c5"})),
                json!({"privileged": true}),
                (process("a_t:s0:c5"), file("s0:c5")),
            ),
        ] {
            assert_eq!(container(pods.clone(), own.clone()), wanted, "{pods} {own}");
        }
    }

    #[test]
    fn a_level_of_the_pod_holds_for_containers_with_other_options() {
        let pods = json!({"securityContext": {"seLinuxOptions": {"level": "s0:c1,c2"}}});
        let spec = spec(pods, json!([{"name": "c", "securityContext": {"seLinuxOptions": {"type": "c_t"}}}]));
        let level = level_named(&spec).unwrap_or(LEVEL).to_owned();
        let labels = PodLabels::new(Contexts::default(), level);
        assert_eq!(labels.container(&spec, &spec.containers[0]).process, "system_u:system_r:c_t:s0:c1,c2");
    }

    #[test]
    fn a_policy_without_levels_gets_none() {
        let contexts = Contexts::parse("process = \"u:r:p_t\"\nfile = \"u:object_r:f_t\"\n");
        let labels = PodLabels::new(contexts, LEVEL.into());
        let spec = spec(json!({}), json!([{"name": "c"}]));
        let found = labels.container(&spec, &spec.containers[0]);
        assert_eq!(found, Labels { process: "u:r:p_t".into(), file: "u:object_r:f_t".into() });
        assert_eq!(labels.volume(&spec, "v"), "u:object_r:f_t");
    }

    #[test]
    fn shared_files_have_the_label_that_their_containers_agree_on() {
        let mounts = json!([{"name": "both", "mountPath": "/b"}]);
        let with = |level: &str, mounts: &Value| json!({"name": "c", "securityContext": {"seLinuxOptions": {"level": level}}, "volumeMounts": mounts});
        let file = |level: &str| format!("system_u:object_r:container_file_t:{level}");
        let alone = json!([{"name": "both", "mountPath": "/b"}, {"name": "one", "mountPath": "/o"}]);
        let privileged = json!({"name": "p", "securityContext": {"privileged": true}, "volumeMounts": alone});

        let same = spec(json!({}), json!([with("s0:c1", &mounts), with("s0:c1", &alone), privileged]));
        assert_eq!(labels().volume(&same, "both"), file("s0:c1"));
        assert_eq!(labels().volume(&same, "none"), file(LEVEL), "nobody mounts it");
        assert_eq!((labels().shared(&same), labels().etc(&same)), (file("s0:c1"), file("s0:c1")));

        let other = spec(json!({}), json!([with("s0:c1", &mounts), with("s0:c2", &alone), privileged]));
        assert_eq!(labels().volume(&other, "both"), file(LEVEL));
        assert_eq!(labels().volume(&other, "one"), file("s0:c2"));
        assert_eq!((labels().shared(&other), labels().etc(&other)), (file(LEVEL), file("s0")));

        let pods = json!({"securityContext": {"seLinuxOptions": {"level": "s0:c3", "user": "a_u"}}});
        let other = spec(pods, json!([with("s0:c1", &mounts), with("s0:c2", &alone)]));
        assert_eq!(labels().volume(&other, "both"), "a_u:object_r:container_file_t:s0:c3");
        let unconfined = spec(json!({"hostPID": true}), json!([{"name": "c", "volumeMounts": mounts}]));
        assert_eq!(labels().volume(&unconfined, "both"), file(LEVEL));
    }

    #[test]
    fn levels_that_pods_name_are_found() {
        let pods = json!({"securityContext": {"seLinuxOptions": {"level": "s0:c3"}},
            "initContainers": [{"name": "i", "securityContext": {"seLinuxOptions": {"level": "s0:c4"}}}]});
        let containers = json!([{"name": "a", "securityContext": {"seLinuxOptions": {"level": ""}}},
            {"name": "b", "securityContext": {"seLinuxOptions": {"level": "s0:c5"}}}]);
        let spec = spec(pods, containers);
        assert_eq!(levels_named(&spec).collect::<Vec<_>>(), ["s0:c3", "s0:c4", "s0:c5"]);
    }

    #[test]
    fn a_level_has_two_categories_in_order_that_nobody_else_takes() {
        for (pair, wanted) in [
            ((3, 9), Some("s0:c3,c9")),
            ((9, 3), Some("s0:c3,c9")),
            ((0, 1023), Some("s0:c0,c1023")),
            ((5, 5), None),
            ((1, 1024), None),
            ((1023, 1022), None),
        ] {
            assert_eq!(level_of(pair.0, pair.1).as_deref(), wanted, "{pair:?}");
        }
    }

    #[test]
    fn contexts_are_read_as_policies_write_them() {
        let text = "# of this policy\nprocess = \"system_u:system_r:svirt_t:s0\"\ncontent = \"x:y:z\"\n\
            file = system_u:object_r:svirt_file_t:s0:c0.c3\n ; file = \"a:b:c\"\nsandbox_kvm_process\n";
        let contexts = Contexts::parse(text);
        assert_eq!(contexts.process.to_string(), "system_u:system_r:svirt_t:s0");
        assert_eq!(contexts.file.to_string(), "system_u:object_r:svirt_file_t:s0:c0.c3");
        assert_eq!(Contexts::parse(""), Contexts::default());
        assert_eq!(Contexts::parse("process = \"half:one\"\nfile = \"a::c:s0\""), Contexts::default());
    }
}
