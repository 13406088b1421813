//! `berth version`.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{client, output};

/// Words of `berth version`.
#[derive(Args, Debug)]
pub struct VersionArgs {
    /// Only this program, without asking the agent
    #[arg(long)]
    client: bool,
    /// Format
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Prints the versions; an agent that does not answer is no failure.
pub async fn run(client: &kube::Client, args: &VersionArgs) -> anyhow::Result<ExitCode> {
    let server: Option<Value> =
        if args.client { None } else { client::get(client, "/version", "application/json").await.ok() };
    let mut value = json!({"clientVersion": {"version": env!("CARGO_PKG_VERSION")}});
    if let Some(server) = &server {
        value["serverVersion"] = server.clone();
    }
    let text = match args.output {
        Some(Format::Json) => format!("{}\n", serde_json::to_string_pretty(&value)?),
        Some(Format::Yaml) => serde_yaml::to_string(&value)?,
        None => {
            let agent = match (&server, args.client) {
                (Some(server), _) => {
                    format!("Agent: {}\n", server["gitVersion"].as_str().unwrap_or("unknown"))
                }
                (None, true) => String::new(),
                (None, false) => "Agent: not running\n".to_owned(),
            };
            format!("Berth: {}\n{agent}", env!("CARGO_PKG_VERSION"))
        }
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
