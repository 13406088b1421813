//! `berth events`.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::failure::Usage;
use super::get::{self, GetArgs};
use super::output::Format;
use super::resource;

/// Words of `berth events`.
#[derive(Args, Debug)]
pub struct EventsArgs {
    #[command(flatten)]
    namespace: resource::Namespace,
    /// Events of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only events of this object, as in pod/web
    #[arg(long = "for", value_name = "KIND/NAME")]
    object: Option<String>,
    /// Only events of this type
    #[arg(long = "types", value_name = "TYPE", ignore_case = true)]
    kind: Option<Kind>,
    /// Format
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    /// Print the events, then every one that happens
    #[arg(short, long)]
    watch: bool,
    /// Print no heading
    #[arg(long)]
    no_headers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Things go as they should
    #[value(name = "Normal")]
    Normal,
    /// They do not
    #[value(name = "Warning")]
    Warning,
}

/// Prints what happened, the newest last.
pub async fn run(client: &kube::Client, args: &EventsArgs) -> anyhow::Result<ExitCode> {
    let mut fields = Vec::new();
    if let Some(word) = &args.object {
        let wrong = || Usage(format!("--for: {word:?} is not of the form KIND/NAME, such as pod/web"));
        let (kind, name) = word.split_once('/').filter(|(_, name)| !name.is_empty()).ok_or_else(wrong)?;
        fields.push(format!("involvedObject.kind={}", resource::kind(kind)?.as_str()));
        fields.push(format!("involvedObject.name={name}"));
    }
    fields.extend(args.kind.map(|kind| format!("type={kind:?}")));
    let get = GetArgs {
        what: vec!["events".to_owned()],
        namespace: args.namespace.clone(),
        all_namespaces: args.all_namespaces,
        field_selector: (!fields.is_empty()).then(|| fields.join(",")),
        output: args.output,
        watch: args.watch,
        no_headers: args.no_headers,
        ..GetArgs::default()
    };
    get::run(client, &get).await
}
