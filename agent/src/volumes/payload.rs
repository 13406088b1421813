//! What the files of a configMap, secret, downwardAPI or projected volume hold.

use std::collections::BTreeMap;

use berth_reconciler::env::{self, Facts, Lookup};
use berth_reconciler::pod::Pod;
use k8s_openapi::api::core::v1;

/// A file of such a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner, if that is not root.
    pub owner: Option<u32>,
}

impl File {
    fn of_root(data: Vec<u8>, mode: i32) -> Self {
        File { data, mode: bits(mode), owner: None }
    }
}

/// Files by their path in the volume.
pub type Payload = BTreeMap<String, File>;

const DEFAULT_MODE: i32 = 0o644;

fn bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o777
}

/// Reads what the volume's sources hold now.
pub fn collect(
    pod: &Pod,
    volume: &v1::Volume,
    facts: &Facts,
    lookup: &dyn Lookup,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let optional = source.optional.unwrap_or(false);
        config_map(pod, &source.name, source.items.as_deref(), optional, mode, lookup, &mut payload)?;
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = source.secret_name.as_deref().unwrap_or_default();
        let optional = source.optional.unwrap_or(false);
        secret(pod, name, source.items.as_deref(), optional, mode, lookup, &mut payload)?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        downward(pod, source.items.as_deref().unwrap_or_default(), mode, facts, &mut payload)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for source in projected.sources.iter().flatten() {
            if let Some(source) = &source.config_map {
                let optional = source.optional.unwrap_or(false);
                config_map(pod, &source.name, source.items.as_deref(), optional, mode, lookup, &mut payload)?;
            } else if let Some(source) = &source.secret {
                let optional = source.optional.unwrap_or(false);
                secret(pod, &source.name, source.items.as_deref(), optional, mode, lookup, &mut payload)?;
            } else if let Some(source) = &source.downward_api {
                downward(pod, source.items.as_deref().unwrap_or_default(), mode, facts, &mut payload)?;
            } else if let Some(source) = &source.service_account_token {
                let data = lookup.token(pod, source)?.into_bytes();
                payload.insert(source.path.clone(), token_file(pod, data, mode));
            }
        }
    } else {
        return Err("this kind of volume is not supported".into());
    }
    Ok(payload)
}

/// A token is for nobody else on the node to read, as a kubelet has it: with an fsGroup that group may, with one user for
/// all containers it is that user's; only where neither is known it has the volume's mode.
fn token_file(pod: &Pod, data: Vec<u8>, mode: i32) -> File {
    let security = pod.spec().security_context.as_ref();
    let of_pod = security.and_then(|s| s.run_as_user);
    let mut users =
        pod.all_containers().map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next().flatten().filter(|first| users.all(|user| user == Some(*first)));
    let owner = first.and_then(|user| u32::try_from(user).ok());
    let private = owner.is_some() || security.is_some_and(|s| s.fs_group.is_some());
    File { data, mode: if private { 0o600 } else { bits(mode) }, owner }
}

/// Puts the chosen keys (all of them when none is chosen) into the payload.
fn select(
    what: &str,
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[v1::KeyToPath]>,
    optional: bool,
    mode: i32,
    payload: &mut Payload,
) -> Result<(), String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        payload.extend(data.iter().map(|(k, v)| (k.clone(), File::of_root(v.clone(), mode))));
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => {
                let file = File::of_root(bytes.clone(), item.mode.unwrap_or(mode));
                payload.insert(item.path.clone(), file);
            }
            None if optional => {}
            None => return Err(format!("{what} references non-existent key: {}", item.key)),
        }
    }
    Ok(())
}

fn config_map(
    pod: &Pod,
    name: &str,
    items: Option<&[v1::KeyToPath]>,
    optional: bool,
    mode: i32,
    lookup: &dyn Lookup,
    payload: &mut Payload,
) -> Result<(), String> {
    let Some(map) = lookup.config_map(pod.namespace(), name) else {
        return if optional { Ok(()) } else { Err(format!("configmap {name:?} not found")) };
    };
    let mut data: BTreeMap<String, Vec<u8>> =
        map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes())).collect();
    data.extend(map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())));
    select("configmap", &data, items, optional, mode, payload)
}

fn secret(
    pod: &Pod,
    name: &str,
    items: Option<&[v1::KeyToPath]>,
    optional: bool,
    mode: i32,
    lookup: &dyn Lookup,
    payload: &mut Payload,
) -> Result<(), String> {
    let Some(secret) = lookup.secret(pod.namespace(), name) else {
        return if optional { Ok(()) } else { Err(format!("secret {name:?} not found")) };
    };
    let data = secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect();
    select("secret", &data, items, optional, mode, payload)
}

fn downward(
    pod: &Pod,
    items: &[v1::DownwardAPIVolumeFile],
    mode: i32,
    facts: &Facts,
    payload: &mut Payload,
) -> Result<(), String> {
    for item in items {
        let text = env::volume_file(pod, facts, item).map_err(|e| e.to_string())?;
        let file = File::of_root(text.into_bytes(), item.mode.unwrap_or(mode));
        payload.insert(item.path.clone(), file);
    }
    Ok(())
}
