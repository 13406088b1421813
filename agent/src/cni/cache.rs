//! What was set up, as libcni keeps it (`cniCacheV1`): with the configuration of that day, DEL undoes what ADD did, though the
//! files have changed since or the agent was killed in between.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::conf::List;

/// A record of one attachment.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    kind: String,
    /// The pod's uid.
    pub container_id: String,
    /// The list of plugins, in base64.
    config: String,
    /// Name of the interface inside.
    pub if_name: String,
    /// Name of the network.
    pub network_name: String,
    /// `CNI_ARGS`, by pairs.
    pub cni_args: Vec<[String; 2]>,
    /// What the plugins were told for their capabilities.
    pub capability_args: Map<String, Value>,
    /// The last plugin's result; none while ADD is under way.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub result: Value,
}

impl Record {
    /// A record of an ADD that begins.
    pub fn new(
        container: &str,
        interface: &str,
        list: &List,
        args: Vec<[String; 2]>,
        capabilities: Map<String, Value>,
    ) -> Self {
        Self {
            kind: "cniCacheV1".into(),
            container_id: container.into(),
            config: STANDARD.encode(list.render().to_string()),
            if_name: interface.into(),
            network_name: list.name.clone(),
            cni_args: args,
            capability_args: capabilities,
            result: Value::Null,
        }
    }

    /// The list of plugins that ADD was made with.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn list(&self) -> Result<List, String> {
        let text = STANDARD.decode(&self.config).map_err(|e| e.to_string())?;
        List::read(serde_json::from_slice(&text).map_err(|e| e.to_string())?)
    }
}

/// The folder of the records.
#[derive(Clone, Debug)]
pub struct Cache(PathBuf);

impl Cache {
    /// That of the agent with this state folder.
    pub fn new(root: &Path) -> Self {
        Self(root.join("cni/results"))
    }

    fn path(&self, record: &Record) -> PathBuf {
        self.0.join(format!("{}-{}-{}", record.network_name, record.container_id, record.if_name))
    }

    /// Writes a record: all of it or nothing.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, record: &Record) -> Result<(), String> {
        let path = self.path(record);
        let draft = self.0.join(format!(".{}.tmp", record.container_id));
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(&self.0)?;
            std::fs::write(&draft, serde_json::to_vec(record)?)?;
            std::fs::rename(&draft, &path)
        };
        write().map_err(|e| format!("write {}: {e}", path.display()))
    }

    /// Removes a record.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget(&self, record: &Record) -> Result<(), String> {
        let path = self.path(record);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(format!("remove {}: {e}", path.display())),
            _ => Ok(()),
        }
    }

    /// All records. One that cannot be read says nothing of what is to be undone; it is reported and left to its owner.
    pub fn all(&self) -> Vec<Record> {
        self.read(|_| true)
    }

    /// Those of one pod.
    pub fn of(&self, container: &str) -> Vec<Record> {
        // The name of a file has it in the middle, between two others that may hold anything.
        let mut found = self.read(|name| name.contains(container));
        found.retain(|record| record.container_id == container);
        found
    }

    fn read(&self, wanted: impl Fn(&str) -> bool) -> Vec<Record> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().filter_map(Result::ok);
        entries
            .filter(|entry| entry.file_name().to_str().is_some_and(|n| !n.starts_with('.') && wanted(n)))
            .filter_map(|entry| {
                let path = entry.path();
                let text = std::fs::read(&path).ok()?;
                serde_json::from_slice(&text)
                    .inspect_err(
                        |error| tracing::warn!(path = %path.display(), %error, "cannot read this record"),
                    )
                    .ok()
            })
            .collect()
    }
}
