//! What is kept for long but hardly ever asked for, in few bytes and one piece: events, and the history of changes.
//!
//! As objects of their own, they lie in small pieces among everything that comes and goes while pods start and end, and none of
//! that memory goes back to the kernel as long as one of them is left in every page: two hundred events held 3 MB.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

use super::{Change, Kind, Object};

/// So many bytes of JSON are worth to be packed.
pub(super) const WORTH: usize = 8 << 10;

const OWN: &str = "what was packed here is whole";

/// Objects, compressed together: those of one kind are much alike.
#[derive(Debug)]
struct Packed {
    deflated: Box<[u8]>,
    /// Bytes that it unfolds to.
    len: usize,
}

impl Packed {
    fn of<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Packed {
        let mut out = DeflateEncoder::new(Vec::new(), Compression::fast());
        for object in objects {
            let kind = Kind::ALL.iter().position(|kind| *kind == object.kind).unwrap_or_default();
            let texts: [&[u8]; 3] = [object.namespace.as_bytes(), object.name.as_bytes(), &object.json];
            let head = [kind as u64, object.version].into_iter().chain(texts.map(|text| text.len() as u64));
            let head: Vec<u8> = head.flat_map(u64::to_le_bytes).collect();
            for part in [head.as_slice()].into_iter().chain(texts) {
                out.write_all(part).expect("a vector takes everything");
            }
        }
        let len = usize::try_from(out.total_in()).expect(OWN);
        Packed { deflated: out.finish().expect("a vector takes everything").into_boxed_slice(), len }
    }

    /// The objects again, in their order. Their texts are parts of one buffer, which is there until the last of them is gone.
    fn objects(&self) -> Vec<Object> {
        let mut text = Vec::with_capacity(self.len);
        DeflateDecoder::new(&*self.deflated).read_to_end(&mut text).expect(OWN);
        let mut rest = Bytes::from(text);
        let mut objects = Vec::new();
        while rest.has_remaining() {
            let [kind, version, namespace, name, json] = [(); 5].map(|()| rest.get_u64_le());
            let mut part = |len: u64| rest.split_to(usize::try_from(len).expect(OWN));
            let [namespace, name, json] = [namespace, name, json].map(&mut part);
            let string = |text: Bytes| String::from_utf8(text.into()).expect(OWN);
            let kind = usize::try_from(kind).ok().and_then(|kind| Kind::ALL.get(kind)).expect(OWN);
            objects.push(Object {
                kind: *kind,
                namespace: string(namespace),
                name: string(name),
                version,
                json,
            });
        }
        objects
    }
}

/// Objects that still exist.
#[derive(Debug)]
pub(super) struct Shelf {
    /// Which they are, sorted.
    keys: Box<[u64]>,
    objects: Packed,
}

fn hash(namespace: &str, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (namespace, name).hash(&mut hasher);
    hasher.finish()
}

impl Shelf {
    /// Puts objects of one kind away; none if they are not [worth](WORTH) it.
    pub(super) fn of(objects: &[Arc<Object>]) -> Option<Shelf> {
        if objects.iter().map(|object| object.json.len()).sum::<usize>() < WORTH {
            return None;
        }
        let mut keys: Vec<u64> = objects.iter().map(|o| hash(&o.namespace, &o.name)).collect();
        keys.sort_unstable();
        Some(Shelf { keys: keys.into(), objects: Packed::of(objects.iter().map(|object| &**object)) })
    }

    /// Whether the object may be among them; if not, it surely is not.
    pub(super) fn may_have(&self, namespace: &str, name: &str) -> bool {
        self.keys.binary_search(&hash(namespace, name)).is_ok()
    }

    /// The objects, for somebody who looks at them: their texts share one buffer.
    pub(super) fn look(&self) -> impl Iterator<Item = Arc<Object>> {
        self.objects.objects().into_iter().map(Arc::new)
    }

    /// The objects, to be kept by themselves.
    pub(super) fn take(&self) -> impl Iterator<Item = Arc<Object>> {
        let own = |object: Object| Object { json: Bytes::copy_from_slice(&object.json), ..object };
        self.objects.objects().into_iter().map(own).map(Arc::new)
    }
}

/// A part of the history.
#[derive(Debug)]
pub(super) struct Chapter {
    /// The version of its last change.
    pub(super) last: u64,
    /// Bytes of JSON in its changes.
    pub(super) bytes: usize,
    changes: Box<[Entry]>,
    objects: Packed,
}

/// A change, by the versions of its objects: no two have the same.
#[derive(Clone, Copy, Debug)]
struct Entry {
    before: Option<u64>,
    last: u64,
    deletion: bool,
}

impl Chapter {
    /// Puts consecutive changes away; none if they are not [worth](WORTH) it.
    pub(super) fn of(changes: &VecDeque<Change>) -> Option<Chapter> {
        let bytes = changes.iter().map(|change| change.last.json.len()).sum();
        if bytes < WORTH {
            return None;
        }
        let entry = |change: &Change| Entry {
            before: change.before.as_ref().map(|object| object.version),
            last: change.last.version,
            deletion: change.after.is_none(),
        };
        let mut known = HashSet::new();
        let objects = changes.iter().flat_map(|change| change.before.iter().chain([&change.last]));
        let objects = objects.filter(|object| known.insert(object.version)).map(|object| &**object);
        Some(Chapter {
            last: changes.back()?.version,
            bytes,
            changes: changes.iter().map(entry).collect(),
            objects: Packed::of(objects),
        })
    }

    /// The changes again, the oldest first.
    pub(super) fn changes(&self) -> impl DoubleEndedIterator<Item = Change> {
        let by_version: HashMap<u64, Arc<Object>> =
            self.objects.objects().into_iter().map(|object| (object.version, Arc::new(object))).collect();
        self.changes.iter().map(move |entry| {
            let last = by_version[&entry.last].clone();
            let before = entry.before.map(|version| by_version[&version].clone());
            Change { version: entry.last, before, after: (!entry.deletion).then(|| last.clone()), last }
        })
    }
}
