//! `berth pause` and `berth resume`.

use std::process::ExitCode;

use clap::Args;
use http::Request;

use super::failure::Usage;
use super::resource::{self, Target};
use crate::store::Kind;

/// Words of `berth pause` and `berth resume`.
#[derive(Args, Debug)]
pub struct PauseArgs {
    /// pod NAME... or pod/NAME...
    #[arg(value_name = "pod NAME...", required = true)]
    what: Vec<String>,
    #[command(flatten)]
    namespace: resource::Namespace,
}

/// Freezes all processes of pods, or lets them go on.
pub async fn run(client: &kube::Client, args: &PauseArgs, pause: bool) -> anyhow::Result<ExitCode> {
    let (verb, done) = if pause { ("pause", "paused") } else { ("resume", "resumed") };
    for target in resource::targets(&args.what)? {
        let Target { kind: Kind::Pod, name: Some(name) } = target else {
            return Err(Usage(format!("only pods can be {done}, by name: berth {verb} pod NAME")).into());
        };
        let path = resource::path(Kind::Pod, Some(args.namespace.name()), Some(&name));
        let request = Request::post(format!("{path}/{verb}")).body(Vec::new())?;
        client.request::<serde_json::Value>(request).await?;
        println!("pod/{name} {done}");
    }
    Ok(ExitCode::SUCCESS)
}
