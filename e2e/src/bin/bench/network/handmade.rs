//! The same by others: Debian's CNI plugins, and a bridge with veth pairs made with `ip`.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use berth_e2e::tools;
use serde_json::json;

use super::parts::Space;
use super::print;

/// ADD of the plugin `bridge` with `host-local`, without masquerading, for which it would run iptables.
pub fn plugin(plugins: &Path, dir: &Path, runs: usize) -> Result<()> {
    let conf = json!({
        "cniVersion": "1.0.0", "name": "peer", "type": "bridge", "bridge": "peer0", "isGateway": true,
        "ipam": {"type": "host-local", "dataDir": dir.join("host-local"), "ranges": [[{"subnet": "10.99.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}]},
    });
    let conf = conf.to_string();
    let mut times = Vec::new();
    for round in 0..runs {
        let call = |verb: &str, space: &Space| {
            let mut command = Command::new(plugins.join("bridge"));
            command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", format!("peer-{round}"));
            command.env("CNI_NETNS", space.path()).env("CNI_IFNAME", "eth0").env("CNI_PATH", plugins);
            tools::run_with(command, conf.as_bytes())?.ok().with_context(|| format!("{verb} of the plugin"))
        };
        let began = Instant::now();
        let space = Space::new()?;
        call("ADD", &space)?;
        times.push(began.elapsed());
        call("DEL", &space)?;
    }
    print("plugin", &times);
    Ok(())
}

/// Links two namespaces by a bridge with nothing else about it; gives the address of the second.
pub fn connect(spaces: &[Space; 2]) -> Result<IpAddr> {
    let mut line = "ip link add hand0 type bridge && ip link set hand0 up".to_owned();
    for (n, space) in (1..).zip(spaces) {
        let space = space.path().display().to_string();
        let inside = format!("nsenter --net={space} ip");
        line += &format!(
            " && ip link add hand0p{n} type veth peer name eth0 netns {space} && ip link set hand0p{n} master hand0 up \
             && {inside} address add 10.98.0.{n}/24 dev eth0 && {inside} link set eth0 up && {inside} link set lo up"
        );
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]);
    tools::run(shell)?.ok().context("make a bridge by hand")?;
    Ok([10, 98, 0, 2].into())
}
