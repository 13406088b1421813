//! One registry, as `oci-client` speaks to it.

use std::sync::OnceLock;
use std::time::Duration;

use oci_client::client::{BlobResponse, Certificate, Client, ClientConfig, ClientProtocol, SizedStream};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, errors::OciDistributionError};

use super::failure::Failure;
use super::insecure::{is_listed, is_loopback};
use super::trust;
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, OCI_INDEX, OCI_MANIFEST};
use crate::{Error, PullOptions, Result};

/// A host that does not answer a SYN in this time is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A transfer that stands still for this long is taken up again.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Tries for a manifest.
const ATTEMPTS: u32 = 3;
const ACCEPT: [&str; 4] = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

pub(super) struct Registry {
    client: Client,
    auth: RegistryAuth,
    name: Reference,
}

/// rustls has one provider per process. Another part of the program may have chosen it already.
fn choose_crypto() {
    static CHOSEN: OnceLock<()> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        // An error says that there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// How long to wait before the next try: 0.5 s, doubling.
pub(super) fn pause(attempt: u32) -> Duration {
    Duration::from_millis(500 << attempt.min(5))
}

fn client(
    registry: &str,
    authorities: Option<Vec<Certificate>>,
    options: &PullOptions,
) -> std::result::Result<Client, OciDistributionError> {
    choose_crypto();
    let loopback = is_loopback(registry);
    let plain = is_listed(registry, &options.insecure_registries) || (loopback && authorities.is_none());
    let authorities = authorities.unwrap_or_default();
    let config = |accept_invalid_certificates| {
        let mut config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("berth/", env!("CARGO_PKG_VERSION")),
            accept_invalid_certificates,
            extra_root_certificates: authorities.clone(),
            ..ClientConfig::default()
        };
        if loopback {
            // A proxy from the environment cannot reach this machine's loopback. Naming one, for no host, turns the
            // environment's off.
            config.http_proxy = Some("http://localhost".to_owned());
            config.https_proxy = config.http_proxy.clone();
            config.no_proxy = Some("*,0.0.0.0/0,::/0".to_owned());
        }
        config
    };
    match Client::try_from(config(false)) {
        // Without any root certificate on the machine the client cannot be built, though plain http needs none.
        Err(_) if plain => Client::try_from(config(true)),
        other => other,
    }
}

impl Registry {
    pub(super) async fn new(name: &Reference, options: &PullOptions) -> Result<Registry> {
        let authorities = trust::authorities(name.registry(), &options.certs_dirs)?;
        let client =
            client(name.resolve_registry(), authorities, options).map_err(|e| Failure::new(name, e).error)?;
        let auth = match &options.auth {
            Some((user, password)) => RegistryAuth::Basic(user.clone(), password.clone()),
            None => RegistryAuth::Anonymous,
        };
        client.store_auth_if_needed(name.resolve_registry(), &auth).await;
        Ok(Registry { client, auth, name: name.clone() })
    }

    pub(super) fn name(&self) -> &Reference {
        &self.name
    }

    /// A manifest or index as it is, and its digest.
    pub(super) async fn manifest(&self, name: &Reference) -> Result<(Vec<u8>, String)> {
        for attempt in 0.. {
            match self.client.pull_manifest_raw(name, &self.auth, &ACCEPT).await {
                Ok((bytes, digest)) => return Ok((bytes.to_vec(), digest)),
                Err(e) => {
                    let failure = Failure::new(name, e);
                    if !failure.transient || failure.unreachable || attempt + 1 >= ATTEMPTS {
                        return Err(failure.error);
                    }
                    tracing::debug!(image = %name, error = %failure.error, "manifest not read, trying again");
                    tokio::time::sleep(pause(attempt)).await;
                }
            }
        }
        // The loop ends by itself after ATTEMPTS rounds.
        Err(Error::RegistryUnavailable {
            registry: name.resolve_registry().to_owned(),
            reason: "too many tries".to_owned(),
        })
    }

    /// A blob's bytes from `offset` on; with `true` if the registry began at the start all the same.
    pub(super) async fn blob(&self, blob: &Descriptor, offset: u64) -> Result<(SizedStream, bool), Failure> {
        let layer = oci_client::client::LayerDescriptor { digest: &blob.digest, urls: &urls(blob) };
        let fail = |e| Failure::new(&self.name, e);
        if offset == 0 {
            return Ok((self.client.pull_blob_stream(&self.name, &layer).await.map_err(fail)?, true));
        }
        match self.client.pull_blob_stream_partial(&self.name, &layer, offset, None).await.map_err(fail)? {
            BlobResponse::Partial(stream) => Ok((stream, false)),
            BlobResponse::Full(stream) => Ok((stream, true)),
        }
    }
}

/// Where else the blob may be had; only foreign layers say.
fn urls(blob: &Descriptor) -> Option<Vec<String>> {
    (!blob.urls.is_empty()).then(|| blob.urls.clone())
}
