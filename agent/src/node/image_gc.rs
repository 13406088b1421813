//! Images that nobody uses are removed when they fill the disk (kubelet's `pkg/kubelet/images/image_gc_manager.go`). Those that did
//! not come from a registry stay: nobody could get them again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use berth_image::Image;
use berth_reconciler::eviction::{Amount, Signal, Signals};
use berth_reconciler::status::has_ended;
use jiff::Timestamp;

use super::sandbox::blocking;
use super::{AgentNode, images_in_use};
use crate::config::eviction::ImageGc;

/// What is remembered of images from look to look.
#[derive(Default)]
pub(super) struct ImageKeeper {
    /// When each was last seen in use, or first at all.
    used: HashMap<String, Timestamp>,
}

/// How many bytes have to be removed for the disk to be less full than `low`; none if it is not as full as `high`.
fn wanted(disk: Amount, gc: &ImageGc) -> Option<u64> {
    let used = disk.capacity.saturating_sub(disk.available);
    let part = |percent: u8| (u128::from(disk.capacity) * u128::from(percent) / 100) as u64;
    (gc.high < 100 && disk.capacity > 0 && used >= part(gc.high)).then(|| used.saturating_sub(part(gc.low)))
}

/// The images that may go, those first that nobody has used for longest.
fn unused<'a>(
    images: &'a [Image],
    used: &HashMap<String, Timestamp>,
    in_use: &dyn Fn(&Image) -> bool,
    added_before: Timestamp,
) -> Vec<&'a Image> {
    let pulled = |image: &Image| !image.repo_digests.is_empty();
    let may_go = |image: &&Image| pulled(image) && image.added <= added_before && !in_use(image);
    let mut found: Vec<&Image> = images.iter().filter(may_go).collect();
    found.sort_by_key(|image| (used.get(&image.id).copied(), image.added));
    found
}

impl ImageKeeper {
    /// Removes what is too old, and what fills the disk.
    pub async fn look(&mut self, node: &Arc<AgentNode>, gc: &ImageGc, signals: &Signals) {
        let now = Timestamp::now();
        let Some(mut ids) = self.candidates(node, gc, now).await else { return };
        if let Some(age) = gc.maximum_age {
            let old = |id: &mut String| self.used.get(id).is_some_and(|last| *last + age <= now);
            for id in ids.extract_if(.., old).collect::<Vec<_>>() {
                self.remove(node, id).await;
            }
        }
        let disk = signals.get(&Signal::ImageDisk).copied();
        let Some(want) = disk.and_then(|disk| wanted(disk, gc)) else { return };
        let freed = self.remove_some(node, ids, want).await;
        if freed > 0 {
            tracing::info!(freed, want, "removed images because the disk fills up");
        }
        if freed < want {
            tracing::warn!(freed, want, "the disk fills up, and not by images that could be removed");
            let text = format!(
                "Failed to garbage collect required amount of images. Attempted to free {want} bytes, but only found {freed} bytes eligible to free."
            );
            node.events.record(&node.regarding(), true, "FreeDiskSpaceFailed", &text);
        }
    }

    /// Removes all images that may go. Gives how many bytes that has freed.
    pub async fn free(&mut self, node: &Arc<AgentNode>, gc: &ImageGc) -> u64 {
        match self.candidates(node, gc, Timestamp::now()).await {
            Some(ids) => self.remove_some(node, ids, u64::MAX).await,
            None => 0,
        }
    }

    /// Removes images until so many bytes are free again. Gives how many are.
    async fn remove_some(&mut self, node: &Arc<AgentNode>, ids: Vec<String>, want: u64) -> u64 {
        let mut freed = 0;
        for id in ids {
            if freed >= want {
                break;
            }
            freed += self.remove(node, id).await;
        }
        freed
    }

    /// The images that may go, in the order in which they are to; notes which are in use.
    async fn candidates(&mut self, node: &AgentNode, gc: &ImageGc, now: Timestamp) -> Option<Vec<String>> {
        let store = node.images.clone();
        let images = match blocking(move || store.list()).await {
            Ok(images) => images,
            Err(error) => {
                tracing::warn!(%error, "cannot list the images to remove those that nobody uses");
                return None;
            }
        };
        let users = Users::of(node);
        self.used.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in &images {
            let last = self.used.entry(image.id.clone()).or_insert(now);
            if users.have(image) {
                *last = now;
            }
        }
        let before = now.checked_sub(gc.minimum_age).unwrap_or(Timestamp::MIN);
        let found = unused(&images, &self.used, &|image| users.have(image), before);
        Some(found.into_iter().map(|image| image.id.clone()).collect())
    }

    /// Removes an image unless somebody has come to use it. Gives the bytes that this has freed.
    async fn remove(&mut self, node: &Arc<AgentNode>, id: String) -> u64 {
        let (store, users) = (node.images.clone(), node.clone());
        let victim = id.clone();
        let removed =
            blocking(move || store.prune(&|image| image.id != victim || Users::of(&users).have(image)));
        match removed.await {
            Ok(removed) => {
                for name in &removed.untagged {
                    tracing::info!(image = name, "removed an image that nobody uses");
                }
                self.used.remove(&id);
                removed.freed
            }
            Err(error) => {
                tracing::warn!(id, %error, "cannot remove an image");
                0
            }
        }
    }
}

/// Who uses images: containers that were made of them, and pods that want them.
struct Users {
    mounted: HashSet<String>,
    wanted: HashSet<String>,
}

impl Users {
    fn of(node: &AgentNode) -> Self {
        let mut wanted = HashSet::new();
        for view in node.views().into_iter().filter(|view| !has_ended(&view.status)) {
            let volumes =
                view.pod.spec().volumes.iter().flatten().filter_map(|v| v.image.as_ref()?.reference.clone());
            let containers = view.pod.all_containers().filter_map(|container| container.image.clone());
            wanted.extend(containers.chain(volumes).filter_map(|name| berth_image::normalize(&name).ok()));
        }
        Self { mounted: images_in_use(&node.config.root), wanted }
    }

    fn have(&self, image: &Image) -> bool {
        let names = image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id]);
        self.mounted.contains(&image.id) || names.into_iter().any(|name| self.wanted.contains(name))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GC: ImageGc =
        ImageGc { high: 85, low: 80, minimum_age: Duration::from_secs(120), maximum_age: None };

    #[test]
    fn so_much_goes_that_the_disk_is_less_full_than_the_lower_threshold() {
        let full = |used: u64| Amount { available: 1000 - used, capacity: 1000 };
        assert_eq!(wanted(full(849), &GC), None);
        assert_eq!(wanted(full(850), &GC), Some(50));
        assert_eq!(wanted(full(1000), &GC), Some(200));
        assert_eq!(wanted(full(1000), &ImageGc { high: 100, ..GC }), None, "never");
        assert_eq!(wanted(Amount::default(), &GC), None);
    }

    #[test]
    fn those_go_first_that_nobody_has_used_for_longest() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let image = |id: &str, added: i64| Image {
            id: id.to_owned(),
            repo_tags: Vec::new(),
            repo_digests: Vec::from_iter((id != "loaded").then(|| "r@sha256:0".to_owned())),
            size: 1,
            created: None,
            added: at(added),
            architecture: String::new(),
            os: String::new(),
            config: Default::default(),
            manifest: String::new(),
            layers: Vec::new(),
        };
        let names = [("loaded", 1), ("new", 95), ("used", 1), ("late", 2), ("early", 3), ("young", 4)];
        let images = names.map(|(id, added)| image(id, added));
        let used = [("new", 95), ("used", 99), ("late", 50), ("early", 10), ("young", 60)];
        let used = used.map(|(id, last)| (id.to_owned(), at(last))).into();
        let found = unused(&images, &used, &|image| image.id == "used", at(90));
        let ids: Vec<&str> = found.into_iter().map(|image| image.id.as_str()).collect();
        assert_eq!(ids, ["early", "late", "young"]);
    }
}
