//! Which of an index's images runs here.

use crate::manifest::{Descriptor, Platform};

/// This machine in the terms of the OCI image spec, which are Go's.
pub(crate) fn host() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "x86" => ("386", ""),
        "aarch64" => ("arm64", "v8"),
        "arm" => ("arm", "v7"),
        "powerpc64" => ("ppc64le", ""),
        other => (other, ""),
    };
    Platform { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: variant.to_owned() }
}

/// Highest amd64 variant that the CPU has (x86-64 psABI, "micro-architecture levels").
#[cfg(target_arch = "x86_64")]
fn amd64_level() -> u32 {
    use std::is_x86_feature_detected as has;
    let v2 = has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
    let v3 = v2
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("fma")
        && has!("f16c")
        && has!("lzcnt")
        && has!("movbe");
    let v4 =
        v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    1 + u32::from(v2) + u32::from(v3) + u32::from(v4)
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> u32 {
    1
}

/// How well `platform` runs here: None not at all, higher is better.
fn score(platform: &Platform) -> Option<u32> {
    let host = host();
    let os = platform.os.is_empty() || platform.os == host.os;
    if !os || platform.architecture != host.architecture {
        return None;
    }
    let level = platform
        .variant
        .strip_prefix('v')
        .and_then(|v| v.split('.').next())
        .and_then(|v| v.parse::<u32>().ok());
    match (host.architecture.as_str(), level) {
        ("amd64", level) => Some(level.unwrap_or(1)).filter(|level| *level <= amd64_level()),
        ("arm64", level) => Some(level.unwrap_or(8)).filter(|level| *level <= 8),
        ("arm", level) => Some(level.unwrap_or(7)).filter(|level| *level <= 7),
        _ => Some(0),
    }
}

/// Whether an image made for that runs here. What an image does not say is no reason against it.
pub(crate) fn runs_here(platform: &Platform) -> bool {
    platform.architecture.is_empty() || score(platform).is_some()
}

/// The best entry of an index for this machine; the first among equals, as the OCI image spec asks.
pub(crate) fn choose(entries: &[Descriptor]) -> Option<&Descriptor> {
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in entries {
        let score = match &entry.platform {
            Some(platform) => score(platform),
            // One image that says nothing: its configuration will tell.
            None if entries.len() == 1 => Some(0),
            None => None,
        };
        if let Some(score) = score.filter(|score| best.is_none_or(|(b, _)| *score > b)) {
            best = Some((score, entry));
        }
    }
    best.map(|(_, entry)| entry)
}

/// For messages: `linux/arm64/v8`.
pub(crate) fn text(platform: &Platform) -> String {
    let mut text = format!("{}/{}", platform.os, platform.architecture);
    if !platform.variant.is_empty() {
        text.push('/');
        text.push_str(&platform.variant);
    }
    text
}

/// For messages: what an index has.
pub(crate) fn list(entries: &[Descriptor]) -> String {
    let known: Vec<String> =
        entries.iter().filter_map(|e| e.platform.as_ref()).filter(|p| p.os != "unknown").map(text).collect();
    if known.is_empty() { "none for a named platform".to_owned() } else { known.join(", ") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry(digest: &str, os: &str, architecture: &str, variant: &str) -> Descriptor {
        let platform = Platform { os: os.into(), architecture: architecture.into(), variant: variant.into() };
        Descriptor { digest: digest.into(), platform: Some(platform), ..Descriptor::default() }
    }

    #[test]
    fn picks_this_machine() {
        let here = host().architecture;
        let entries = [
            entry("windows", "windows", &here, ""),
            entry("other", "linux", "s390x", ""),
            entry("attestation", "unknown", "unknown", ""),
            entry("first", "linux", &here, ""),
            entry("second", "linux", &here, ""),
            entry("future", "linux", &here, "v99"),
        ];
        assert_eq!(choose(&entries).unwrap().digest, "first");
        assert_eq!(choose(&entries[..3]), None);
        assert_eq!(list(&entries[..3]), format!("windows/{here}, linux/s390x"));
    }

    #[test]
    fn one_entry_without_platform_is_taken() {
        let bare = Descriptor { digest: "bare".into(), ..Descriptor::default() };
        assert_eq!(choose(std::slice::from_ref(&bare)).unwrap().digest, "bare");
        assert_eq!(choose(&[bare.clone(), bare]), None);
    }
}
