//! Network configurations of other plugins: which one is used, and what each plugin of it is told.

use std::path::{Path, PathBuf};

use berth_netplug::cni::is_name;
use serde_json::{Map, Value, json};

/// A list of plugins that make one network together.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    /// Name of the network.
    pub name: String,
    /// Version of the specification that it is written in.
    pub version: String,
    /// The plugins, in the order of ADD.
    pub plugins: Vec<Value>,
    /// Whether it asks not to be told of garbage.
    pub disable_gc: bool,
}

/// Versions whose results and verbs are known.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

impl List {
    /// Reads a list, or one plugin as a list of its own.
    ///
    /// # Errors
    /// What is missing.
    pub fn read(value: Value) -> Result<Self, String> {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let (name, version) = (text("name"), text("cniVersion"));
        if !is_name(&name) {
            return Err(format!("name {name:?} is not letters, digits, _ . -"));
        }
        if !VERSIONS.contains(&version.as_str()) {
            return Err(format!("cniVersion {version:?} is not one of {}", VERSIONS.join(", ")));
        }
        let plugins = match &value["plugins"] {
            Value::Array(plugins) => plugins.clone(),
            Value::Null => vec![value.clone()],
            _ => return Err("plugins is not a list".into()),
        };
        if plugins.is_empty() {
            return Err("plugins is empty".into());
        }
        for (n, plugin) in plugins.iter().enumerate() {
            let program = plugin["type"].as_str().unwrap_or_default();
            if program.is_empty() || program.contains('/') {
                return Err(format!("plugins[{n}].type {program:?} is not the name of a program"));
            }
        }
        let disable_gc = value["disableGC"].as_bool().unwrap_or_default();
        Ok(Self { name, version, plugins, disable_gc })
    }

    /// As it is kept for the day of DEL.
    pub fn render(&self) -> Value {
        json!({"cniVersion": self.version, "name": self.name, "plugins": self.plugins})
    }

    /// Whether the version has what came with 0.4.0: DEL is told the result.
    pub fn tells_result(&self) -> bool {
        !self.version.starts_with("0.3.")
    }

    /// Whether the version has GC.
    pub fn has_gc(&self) -> bool {
        self.version == "1.1.0" && !self.disable_gc
    }

    /// Whether some plugin takes this capability.
    pub fn has_capability(&self, name: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin["capabilities"][name] == true)
    }

    /// What one plugin is told: its part, the network's name and version, the capabilities that it takes, and the result
    /// so far.
    pub fn for_plugin(
        &self,
        plugin: &Value,
        capabilities: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Value {
        let mut conf = plugin.clone();
        conf["name"] = self.name.clone().into();
        conf["cniVersion"] = self.version.clone().into();
        let wanted = |name: &String| plugin["capabilities"][name] == true;
        let told: Map<String, Value> = capabilities
            .iter()
            .filter(|(name, _)| wanted(name))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        if !told.is_empty() {
            conf["runtimeConfig"] = told.into();
        }
        if let Some(previous) = previous {
            conf["prevResult"] = previous.clone();
        }
        conf
    }
}

/// The network of a folder: the first file by name that can be read (`.conflist`, `.conf`, `.json`), as containerd and CRI-O
/// choose.
///
/// # Errors
/// There is none; says what is wrong with those that there are.
pub fn choose(dir: &Path) -> Result<List, String> {
    let entries =
        std::fs::read_dir(dir).map_err(|e| format!("look for a network in {}: {e}", dir.display()))?;
    let is_conf = |path: &PathBuf| {
        path.extension().and_then(|e| e.to_str()).is_some_and(|e| ["conflist", "conf", "json"].contains(&e))
    };
    let mut files: Vec<PathBuf> =
        entries.filter_map(Result::ok).map(|entry| entry.path()).filter(is_conf).collect();
    files.sort();
    let mut wrong = Vec::new();
    for file in files {
        let read = std::fs::read(&file).map_err(|e| e.to_string());
        let parsed = read.and_then(|text| serde_json::from_slice(&text).map_err(|e| e.to_string()));
        match parsed.and_then(List::read) {
            Ok(list) => return Ok(list),
            Err(reason) => wrong.push(format!("{}: {reason}", file.display())),
        }
    }
    match wrong.is_empty() {
        true => Err(format!("no network is configured in {}", dir.display())),
        false => Err(format!("no network of {} can be used: {}", dir.display(), wrong.join("; "))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_that_can_be_read_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        assert!(choose(&dir.path().join("none")).unwrap_err().contains("look for a network in"));
        let nothing = choose(dir.path()).unwrap_err();
        assert!(nothing.starts_with("no network is configured in"), "{nothing}");
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put("00-notes.txt", "x");
        put("05-broken.conflist", "{");
        put("06-old.conf", r#"{"name": "old", "cniVersion": "0.2.0", "type": "bridge"}"#);
        let wrong = choose(dir.path()).unwrap_err();
        assert!(
            wrong.contains("05-broken.conflist: EOF") && wrong.contains("cniVersion \"0.2.0\""),
            "{wrong}"
        );
        put(
            "20-b.conflist",
            r#"{"name": "b", "cniVersion": "1.0.0", "plugins": [{"type": "x"}, {"type": "y"}]}"#,
        );
        assert_eq!(choose(dir.path()).unwrap().name, "b");
        put("10-a.conf", r#"{"name": "a", "cniVersion": "0.3.1", "type": "bridge"}"#);
        let one = choose(dir.path()).unwrap();
        assert_eq!((one.name.as_str(), one.plugins.len(), one.tells_result()), ("a", 1, false));
    }

    #[test]
    fn lists_that_cannot_be_are_refused() {
        for (more, words) in [
            (json!({"plugins": []}), "plugins is empty"),
            (json!({"plugins": {}}), "plugins is not a list"),
            (json!({"plugins": [{"type": "../x"}]}), "plugins[0].type \"../x\""),
            (json!({"plugins": [{"type": "x"}], "name": "a/b"}), "name \"a/b\""),
        ] {
            let mut list = json!({"name": "n", "cniVersion": "1.0.0"});
            list.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            assert!(List::read(list).unwrap_err().contains(words));
        }
    }

    #[test]
    fn a_plugin_is_told_what_it_takes() {
        let list = List::read(json!({"name": "n", "cniVersion": "1.0.0", "plugins": [
            {"type": "bridge", "capabilities": {"mac": false}},
            {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}]}))
        .unwrap();
        let capabilities =
            json!({"portMappings": [{"hostPort": 1}], "mac": "x"}).as_object().unwrap().clone();
        let first = list.for_plugin(&list.plugins[0], &capabilities, None);
        assert_eq!(
            first,
            json!({"type": "bridge", "capabilities": {"mac": false}, "name": "n", "cniVersion": "1.0.0"})
        );
        let second = list.for_plugin(&list.plugins[1], &capabilities, Some(&json!({"ips": []})));
        assert_eq!(second["runtimeConfig"], json!({"portMappings": [{"hostPort": 1}]}));
        assert_eq!((&second["prevResult"], &second["snat"]), (&json!({"ips": []}), &json!(true)));
        assert!(list.has_capability("portMappings") && !list.has_capability("mac"));
    }
}
