//! The SELinux labels of pods, where they have any, and the levels behind them: each pod has one of its own.
//!
//! A level is a file `<root>/selinux/<pod uid>`, written before it is used: what a pod keeps on the disk has it and outlives the
//! agent and the machine. One agent at a time has the folder.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use berth_reconciler::pod::Pod;
use berth_reconciler::selinux::{self, CATEGORIES, Contexts, PodLabels};
use serde::{Deserialize, Serialize};

use super::AgentNode;
use super::entry::{read_json, write_json};

/// So often a pair of categories is drawn: with the 110 pods that a node has, the second one is free almost always.
const DRAWS: usize = 10_000;

/// A pod's level on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    level: String,
}

/// Why a pod cannot be labelled.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no SELinux level is left for the pod: all pairs of categories are taken")]
    Exhausted,
    #[error("write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{field}: the SELinux policy of this node does not know the label {label:?}; name what it knows")]
    Unknown { field: String, label: String },
    #[error(
        "the SELinux policy of this node does not know the label {0:?}: install the policy for containers (container-selinux), or \
         name the label in its lxc_contexts"
    )]
    NoPolicy(String),
    #[error("ask the SELinux policy about {label:?}: {source}")]
    Ask { label: String, source: io::Error },
}

/// The levels of all pods.
pub(super) struct Levels {
    dir: PathBuf,
    /// By the pod's uid. Read from disk when it is first asked for.
    held: Mutex<Option<BTreeMap<String, Lease>>>,
}

impl Levels {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, held: Mutex::default() }
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<String, Lease>) -> T) -> T {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        work(held.get_or_insert_with(|| self.read()))
    }

    fn read(&self) -> BTreeMap<String, Lease> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let uid = entry.file_name().to_str()?.to_owned();
                match read_json::<Lease>(&entry.path()).filter(|_| !uid.ends_with(".tmp")) {
                    Some(lease) => Some((uid, lease)),
                    None => {
                        // Half a record: it was not used yet.
                        let _ = std::fs::remove_file(entry.path());
                        None
                    }
                }
            })
            .collect()
    }

    /// The pod's level: the one it has, else one that neither another pod has nor is among `named`. `draw` gives random
    /// numbers.
    pub fn acquire(
        &self,
        uid: &str,
        named: &[String],
        mut draw: impl FnMut() -> (u16, u16),
    ) -> Result<String, Error> {
        self.with(|held| {
            if let Some(lease) = held.get(uid) {
                return Ok(lease.level.clone());
            }
            let free =
                |level: &String| !held.values().any(|other| other.level == *level) && !named.contains(level);
            let drawn = (0..DRAWS).find_map(|_| {
                let (one, other) = draw();
                selinux::level_of(one, other).filter(free)
            });
            let lease = Lease { level: drawn.ok_or(Error::Exhausted)? };
            let path = self.dir.join(uid);
            std::fs::create_dir_all(&self.dir)
                .and_then(|()| write_json(&path, &lease))
                .map_err(|source| Error::Write { path, source })?;
            held.insert(uid.to_owned(), lease.clone());
            Ok(lease.level)
        })
    }

    /// Gives the pod's level back; can be repeated.
    pub fn release(&self, uid: &str) {
        self.with(|held| {
            if held.remove(uid).is_some()
                && let Err(error) = std::fs::remove_file(self.dir.join(uid))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(uid, %error, "cannot remove the record of a pod's SELinux level");
            }
        });
    }

    /// Gives back the levels of pods that nobody knows.
    pub fn collect_garbage(&self, known: &dyn Fn(&str) -> bool) {
        let held: Vec<String> = self.with(|held| held.keys().cloned().collect());
        held.iter().filter(|uid| !known(uid)).for_each(|uid| self.release(uid));
    }
}

/// Two numbers of categories, any of them as likely as the others.
fn random() -> (u16, u16) {
    let bits = uuid::Uuid::new_v4().as_u128();
    // The last bits of both halves are random in version 4 (RFC 9562).
    let number = |bits: u128| u16::try_from(bits % u128::from(CATEGORIES)).unwrap_or_default();
    (number(bits), number(bits >> 32))
}

impl AgentNode {
    /// The pod's labels; none where pods have none (`selinux: false`). A pod that has no level yet gets one.
    ///
    /// # Errors
    /// A label that the policy does not know, with its field.
    pub(super) fn labels(&self, pod: &Pod) -> Result<Option<PodLabels>, Error> {
        let Some(contexts) = &self.selinux else { return Ok(None) };
        let level = match selinux::level_named(pod.spec()) {
            Some(level) => level.to_owned(),
            None => {
                let pods: Vec<_> = self.views().into_iter().map(|view| view.pod).collect();
                let named = pods.iter().flat_map(|pod| selinux::levels_named(pod.spec()));
                self.levels.acquire(pod.uid(), &named.map(str::to_owned).collect::<Vec<_>>(), random)?
            }
        };
        let labels = PodLabels::new(contexts.clone(), level);
        check(pod, contexts, &labels)?;
        Ok(Some(labels))
    }
}

/// Asks the kernel about every label of the pod: it would take an unknown one for a file from whoever may administer it.
fn check(pod: &Pod, contexts: &Contexts, labels: &PodLabels) -> Result<(), Error> {
    let known = |label: &str, error: &dyn Fn() -> Error| match crate::selinux::is_known(label) {
        Ok(true) => Ok(()),
        Ok(false) => Err(error()),
        Err(source) => Err(Error::Ask { label: label.to_owned(), source }),
    };
    for context in [&contexts.process, &contexts.file].map(ToString::to_string) {
        known(&context, &|| Error::NoPolicy(context.clone()))?;
    }
    let spec = pod.spec();
    for container in pod.all_containers() {
        let wanted = labels.container(spec, container);
        for label in [wanted.process, wanted.file] {
            let own = container.security_context.as_ref().is_some_and(|s| s.se_linux_options.is_some());
            let unknown = || match selinux::options(spec, container) {
                None => Error::NoPolicy(label.clone()),
                Some(_) => {
                    let owner =
                        if own { format!("containers{{{}}}.", container.name) } else { String::new() };
                    let field = format!("spec.{owner}securityContext.seLinuxOptions");
                    Error::Unknown { field, label: label.clone() }
                }
            };
            known(&label, &unknown)?;
        }
    }
    // Those of volumes are among these, or follow from the pod's own options.
    let shared = spec.volumes.iter().flatten().map(|volume| labels.volume(spec, &volume.name));
    for label in shared.chain([labels.shared(spec), labels.etc(spec)]) {
        let field = "spec.securityContext.seLinuxOptions".to_owned();
        known(&label, &|| Error::Unknown { field: field.clone(), label: label.clone() })?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_of_one_pod_each_and_outlive_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let levels = Levels::new(dir.path().join("selinux"));
        let mut rows = [(3, 9), (3, 9), (9, 3), (4, 4), (5, 1), (1, 2)].into_iter();
        let mut draw = || rows.next().unwrap();
        assert_eq!(levels.acquire("a", &[], &mut draw).unwrap(), "s0:c3,c9");
        assert_eq!(levels.acquire("a", &[], || unreachable!()).unwrap(), "s0:c3,c9", "the same again");
        let named = ["s0:c1,c5".to_owned()];
        assert_eq!(levels.acquire("b", &named, &mut draw).unwrap(), "s0:c1,c2", "others are taken");
        let next = Levels::new(dir.path().join("selinux"));
        assert_eq!(next.acquire("b", &[], || unreachable!()).unwrap(), "s0:c1,c2");
        next.release("a");
        next.release("a");
        assert_eq!(next.acquire("c", &[], || (3, 9)).unwrap(), "s0:c3,c9", "a freed level is used again");
        next.collect_garbage(&|uid| uid == "c");
        assert_eq!(std::fs::read_dir(dir.path().join("selinux")).unwrap().count(), 1);
        let error = next.acquire("d", &[], || (9, 3)).unwrap_err().to_string();
        assert!(error.contains("all pairs of categories are taken"), "{error}");
    }

    #[test]
    fn half_a_record_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x"), "{\"lev").unwrap();
        std::fs::write(dir.path().join("y.tmp"), "{\"level\":\"s0:c1,c2\"}").unwrap();
        let levels = Levels::new(dir.path().into());
        assert_eq!(levels.acquire("a", &[], || (1, 2)).unwrap(), "s0:c1,c2");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn drawn_categories_use_the_whole_range() {
        let drawn: Vec<u16> = (0..4000).flat_map(|_| <[u16; 2]>::from(random())).collect();
        assert!(drawn.iter().all(|number| *number < CATEGORIES));
        for quarter in 0..4_u16 {
            let count = drawn.iter().filter(|number| **number / 256 == quarter).count();
            assert!((1500..2500).contains(&count), "{count} of 8000 in quarter {quarter}");
        }
    }
}
