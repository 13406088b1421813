//! Kernel settings below /proc/sys/net. Which namespace they belong to is decided by the thread that opens the file.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::sys::netns::Traveller;

const ROOT: &str = "/proc/sys/net";

/// Sets one value unless it is set already, so that a read-only /proc/sys with the right values is good enough.
fn set(name: &str, value: &str) -> Result<()> {
    let path = Path::new(ROOT).join(name);
    let fail = |path: PathBuf, source: io::Error| Error::Sysctl { path, value: value.into(), source };
    if read(&path).map_err(|e| fail(path.clone(), e))? == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(|e| fail(path, e))
}

fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map(|text| text.trim_end().to_owned())
}

/// What the host's side needs. The thread must be in the host's namespace and the bridge must exist.
pub(crate) fn host(_here: &Traveller, config: &Config) -> Result<()> {
    let bridge = &config.bridge;
    set("ipv4/ip_forward", "1")?;
    set(&format!("ipv4/conf/{bridge}/forwarding"), "1")?;
    // 127.0.0.1 of the host to a host port leaves by the bridge. The table keeps pods from using it the other way.
    set(&format!("ipv4/conf/{bridge}/route_localnet"), "1")?;
    if config.ipv6.is_some() {
        if config.policies {
            // Pods reach each other through the host, which cannot look for them before it has a link-local address. Nobody
            // else can have that one, and to ask takes two seconds.
            optional(&format!("ipv6/conf/{bridge}/accept_dad"), "0")?;
        }
        forward_ipv6(bridge)?;
    }
    Ok(())
}

/// Forwarding stops a host from heeding router advertisements unless accept_ra is 2, which would cost it its own
/// default route (Documentation/networking/ip-sysctl.rst).
fn forward_ipv6(bridge: &str) -> Result<()> {
    let conf = Path::new(ROOT).join("ipv6/conf");
    if read(&conf.join("all/forwarding")).is_ok_and(|value| value != "1") {
        let links = fs::read_dir(&conf).map_err(|e| Error::file("list", &conf, e))?;
        for link in links.filter_map(io::Result::ok).map(|entry| entry.file_name()) {
            let name = link.to_string_lossy();
            if name != "all"
                && name != bridge
                && read(&conf.join(&link).join("accept_ra")).is_ok_and(|v| v == "1")
            {
                set(&format!("ipv6/conf/{name}/accept_ra"), "2")?;
            }
        }
        set("ipv6/conf/all/forwarding", "1")?;
    }
    set(&format!("ipv6/conf/{bridge}/disable_ipv6"), "0")?;
    set(&format!("ipv6/conf/{bridge}/accept_ra"), "0")?;
    set(&format!("ipv6/conf/{bridge}/forwarding"), "1")
}

/// What a pod needs. The thread must be in the pod's namespace, and `interface` must exist.
///
/// When the interface comes up, the kernel announces its addresses, by ARP and by a neighbour advertisement: whoever
/// remembers another hardware address for one of them learns the new one.
///
/// Without br_netfilter the host tells a pod that reaches a neighbour's host port to go there directly, and the pod
/// would from then on send everything for the host to the neighbour.
pub(crate) fn pod(_here: &Traveller, interface: &str, ipv6: bool) -> Result<()> {
    optional("ipv4/conf/all/accept_redirects", "0")?;
    optional(&format!("ipv4/conf/{interface}/accept_redirects"), "0")?;
    optional(&format!("ipv4/conf/{interface}/arp_notify"), "1")?;
    if ipv6 {
        optional(&format!("ipv6/conf/{interface}/disable_ipv6"), "0")?;
        optional(&format!("ipv6/conf/{interface}/accept_ra"), "0")?;
        optional(&format!("ipv6/conf/{interface}/ndisc_notify"), "1")?;
    }
    Ok(())
}

fn optional(name: &str, value: &str) -> Result<()> {
    match set(name, value) {
        Err(Error::Sysctl { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
