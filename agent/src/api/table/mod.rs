//! Objects as rows of `meta.k8s.io/v1 Table`, with the columns and words of kubectl.

mod certificate;
mod cluster;
mod duration;
mod pod;
mod policy;
mod service;
mod simple;
mod volume;

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use duration::{age, human};
pub use pod::{PodSummary, summary};
pub use policy::selector;
pub use service::ready_members;
pub use volume::modes;

use crate::store::{Kind, Object};

/// How much of the object goes into each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    Nothing,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

/// Name, type, format and priority of a column; priority 1 is shown with `-o wide` only.
type Column = (&'static str, &'static str, &'static str, i32);

/// A table of these objects. `columns` tells whether it carries the column definitions. Events are put in the order of time.
pub fn render(kind: Kind, objects: &[Arc<Object>], include: Include, columns: bool) -> Value {
    let mut rows: Vec<(String, Value)> = objects.iter().map(|object| row(kind, object, include)).collect();
    if kind == Kind::Event {
        rows.sort_by(|a, b| a.0.cmp(&b.0));
    }
    let rows: Vec<Value> = rows.into_iter().map(|(_, row)| row).collect();
    let definition = |(name, kind, format, priority): &Column| json!({"name": name, "type": kind, "format": format, "description": "", "priority": priority});
    let definitions: Vec<Value> =
        if columns { columns_of(kind).iter().map(definition).collect() } else { Vec::new() };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": definitions, "rows": rows})
}

fn columns_of(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Pod => pod::COLUMNS,
        Kind::Event => simple::EVENT,
        Kind::Node => simple::NODE,
        Kind::ConfigMap => simple::CONFIG_MAP,
        Kind::Secret => simple::SECRET,
        Kind::Namespace => simple::NAMESPACE,
        Kind::PersistentVolume => volume::VOLUME,
        Kind::PersistentVolumeClaim => volume::CLAIM,
        Kind::Service => service::SERVICE,
        Kind::Endpoints => service::ENDPOINTS,
        Kind::EndpointSlice => service::SLICES,
        Kind::CertificateSigningRequest => certificate::COLUMNS,
        Kind::NetworkPolicy => policy::COLUMNS,
        Kind::Lease => cluster::LEASE,
        Kind::ServiceAccount => cluster::ACCOUNT,
        Kind::RuntimeClass => cluster::RUNTIME,
        Kind::PriorityClass => cluster::PRIORITY,
    }
}

/// A row and what it is sorted by.
fn row(kind: Kind, object: &Object, include: Include) -> (String, Value) {
    let (order, cells) = match kind {
        Kind::Pod => (String::new(), parsed(object).map(|o| pod::cells(&o))),
        Kind::Event => match parsed(object) {
            Some(event) => (simple::event_order(&event), Some(simple::event(&event))),
            None => (String::new(), None),
        },
        Kind::Node => (String::new(), parsed(object).map(|o| simple::node(&o))),
        Kind::ConfigMap => (String::new(), parsed(object).map(|o| simple::config_map(&o))),
        Kind::Secret => (String::new(), parsed(object).map(|o| simple::secret(&o))),
        Kind::Namespace => (String::new(), parsed(object).map(|o| simple::namespace(&o))),
        Kind::PersistentVolume => (String::new(), parsed(object).map(|o| volume::volume(&o))),
        Kind::PersistentVolumeClaim => (String::new(), parsed(object).map(|o| volume::claim(&o))),
        Kind::Service => (String::new(), parsed(object).map(|o| service::service(&o))),
        Kind::Endpoints => (String::new(), parsed(object).map(|o| service::endpoints(&o))),
        Kind::EndpointSlice => (String::new(), parsed(object).map(|o| service::slice(&o))),
        Kind::CertificateSigningRequest => (String::new(), parsed(object).map(|o| certificate::cells(&o))),
        Kind::NetworkPolicy => (String::new(), parsed(object).map(|o| policy::cells(&o))),
        Kind::Lease => (String::new(), parsed(object).map(|o| cluster::lease(&o))),
        Kind::ServiceAccount => (String::new(), parsed(object).map(|o| cluster::account(&o))),
        Kind::RuntimeClass => (String::new(), parsed(object).map(|o| cluster::runtime(&o))),
        Kind::PriorityClass => (String::new(), parsed(object).map(|o| cluster::priority(&o))),
    };
    // An object that does not fit its own type, which only a bug could store, still shows its name.
    let cells = cells.unwrap_or_else(|| {
        let unknown = columns_of(kind).iter().skip(1).map(|_| json!("<unknown>"));
        [json!(object.name)].into_iter().chain(unknown).collect()
    });
    let shown = match include {
        Include::Nothing => Value::Null,
        Include::Object => object.value(),
        Include::Metadata => json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object.value()["metadata"].take(),
        }),
    };
    (order, json!({"cells": cells, "object": shown}))
}

fn parsed<T: DeserializeOwned>(object: &Object) -> Option<T> {
    serde_json::from_slice(&object.json).ok()
}

/// An optional text, `<none>` if there is none.
fn or_none(text: Option<&str>) -> Value {
    json!(text.filter(|t| !t.is_empty()).unwrap_or("<none>"))
}
