//! podman with crun from Debian 13, in a root file system of its own.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use berth_e2e::tools;

/// See the module.
pub struct Podman;

impl Podman {
    /// Makes it ready.
    pub fn find() -> Result<Self> {
        let mut setup = Command::new(Self::script());
        setup.arg("setup");
        tools::run(setup)?.ok()?;
        Ok(Self)
    }

    fn script() -> std::path::PathBuf {
        tools::checkout().join("scripts/podman-peer")
    }

    /// Times of `podman kube play` of a one-container pod, image present.
    pub fn starts(&self, runs: usize) -> Result<Vec<Duration>> {
        let mut bench = Command::new(Self::script());
        bench.args(["bench", &runs.to_string()]).arg(tools::demo_rootfs()?);
        let text = tools::run(bench)?.ok()?;
        let times = text
            .lines()
            .map(|l| Ok(Duration::from_micros(l.trim().parse().with_context(|| format!("{l:?}"))?)));
        times.collect()
    }
}
