//! The chart: rendered and installed by the real Helm engine, against a server that checks by Kubernetes' schemas (see `scripts/helm`).

mod api;
mod image;
mod installer;
mod release;
mod unit;
mod values;

use std::path::{Path, PathBuf};
use std::process::Command;

use berth_e2e::tools;
use serde_json::{Value, json};

/// A script of the checkout, which finds Helm where `scripts/install` has put it.
fn script(name: &str) -> Command {
    let mut command = Command::new(tools::checkout().join("scripts").join(name));
    command.env("CARGO_TARGET_DIR", tools::target_dir());
    command
}

fn chart() -> PathBuf {
    tools::checkout().join("charts/berth")
}

fn read(path: &str) -> String {
    let path = tools::checkout().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What one step of a release came to.
struct Step(Value);

impl Step {
    fn error(&self) -> Option<&str> {
        self.0["error"].as_str()
    }

    /// Itself, if Helm and the server had nothing against it.
    #[track_caller]
    fn ok(&self) -> &Self {
        assert_eq!(self.error(), None);
        self
    }

    fn notes(&self) -> &str {
        self.0["notes"].as_str().unwrap_or_default()
    }

    /// What the server has, as `Kind/name`.
    fn names(&self) -> Vec<String> {
        let word = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let objects = self.0["objects"].as_array().into_iter().flatten();
        let mut names: Vec<_> =
            objects.map(|o| format!("{}/{}", word(&o["kind"]), word(&o["metadata"]["name"]))).collect();
        names.sort();
        names
    }

    /// An object by `Kind/name`.
    #[track_caller]
    fn object(&self, name: &str) -> &Value {
        let (kind, name) = name.split_once('/').unwrap();
        let objects = self.0["objects"].as_array().unwrap();
        let found = objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is not among {:?}", self.names()))
    }

    /// The config file without what differs by machine.
    fn config(&self) -> &str {
        self.object("ConfigMap/berth")["data"]["config.yaml"].as_str().unwrap()
    }
}

/// The steps of a release `berth` in kube-system, on a cluster that has these APIs of others.
#[track_caller]
fn steps(apis: &[&str], steps: &Value) -> Vec<Step> {
    life(&json!({"apis": apis, "steps": steps}))
}

#[track_caller]
fn life(plan: &Value) -> Vec<Step> {
    life_of(&chart(), plan)
}

#[track_caller]
fn life_of(chart: &Path, plan: &Value) -> Vec<Step> {
    let mut command = script("helm");
    command.arg("steps").arg(chart);
    let out = tools::run_with(command, plan.to_string().as_bytes()).unwrap().ok().unwrap();
    let results: Vec<Value> = serde_json::from_str(&out).unwrap();
    results.into_iter().map(Step).collect()
}

/// Installed once, with these values.
#[track_caller]
fn installed(values: &Value) -> Step {
    steps(&[], &json!([["install", values]])).remove(0)
}

/// Installed with each of these values, one after the other.
#[track_caller]
fn installed_each<'a>(values: impl IntoIterator<Item = &'a Value>) -> Vec<Step> {
    let plan: Vec<Value> =
        values.into_iter().flat_map(|v| [json!(["install", v]), json!(["uninstall"])]).collect();
    steps(&[], &plan.into()).into_iter().step_by(2).collect()
}
