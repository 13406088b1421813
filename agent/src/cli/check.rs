//! `berth check`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use berth_reconciler::manifest::{ManifestError, Object};
use clap::Args;

use super::failure::Reported;
use super::{files, output};

/// Words of `berth check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Manifest file, folder of manifests, or - for standard input
    #[arg(required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
}

/// Checks manifests and tells everything that is wrong with them.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let manifests = files::read(&args.files)?;
    if !manifests.errors.is_empty() {
        for error in &manifests.errors {
            output::print(&describe(error))?;
        }
        eprintln!("{} in {}", count(manifests.errors.len(), "error"), count(manifests.files, "file"));
        return Err(Reported.into());
    }
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for object in &manifests.objects {
        let kind = match &object.value {
            Object::Pod(_) => "Pod",
            Object::ConfigMap(_) => "ConfigMap",
            Object::Secret(_) => "Secret",
            Object::PersistentVolumeClaim(_) => "PersistentVolumeClaim",
            Object::PersistentVolume(_) => "PersistentVolume",
            Object::Service(_) => "Service",
            Object::Namespace(_) => "Namespace",
            Object::NetworkPolicy(_) => "NetworkPolicy",
        };
        *kinds.entry(kind).or_default() += 1;
    }
    let found: Vec<String> = kinds.iter().map(|(kind, n)| count(*n, kind)).collect();
    let found = if found.is_empty() { "no objects".to_owned() } else { found.join(", ") };
    output::print(&format!("OK: {found} in {}\n", count(manifests.files, "file")))?;
    Ok(ExitCode::SUCCESS)
}

/// `file:line:column: field: reason`, and what to do about it on a line of its own.
fn describe(error: &ManifestError) -> String {
    let place = [
        error.file.as_ref().map(|file| file.display().to_string()),
        error.line.map(|line| line.to_string()),
        error.column.filter(|_| error.line.is_some()).map(|column| column.to_string()),
    ];
    let place: Vec<String> = place.into_iter().flatten().collect();
    let field = error.field.as_ref().filter(|f| !f.is_empty()).map(|f| format!("{f}: ")).unwrap_or_default();
    let mut text = format!("{}: {field}{}\n", place.join(":"), error.reason);
    if let Some(hint) = &error.hint {
        text.push_str(&format!("    hint: {hint}\n"));
    }
    text
}

/// `1 error`, `2 errors`, `2 policies`.
pub fn count(n: usize, noun: &str) -> String {
    match noun.strip_suffix('y') {
        _ if n == 1 => format!("1 {noun}"),
        Some(most) => format!("{n} {most}ies"),
        None => format!("{n} {noun}s"),
    }
}
