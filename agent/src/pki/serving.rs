//! The server's side of TLS: its certificate, and whose certificates of clients it believes.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use time::OffsetDateTime;

use super::{Authority, days};

/// How long the server's certificate is good for: as kubeadm's.
const LIFE: Duration = days(365);
/// The part of that after which a connection gets a new one.
const USED_UP: f64 = 0.8;

/// What the server is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Names in DNS.
    pub hosts: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

/// TLS for a server with these names; clients may show a certificate of the authority, or none.
///
/// # Errors
/// When a name cannot be in a certificate.
pub fn server_config(authority: Arc<Authority>, names: Names) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.clone()).context("the certificate authority cannot be used")?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .context("the certificate authority cannot be used")?;
    let current = issue(&authority, &names)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("set up TLS")?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(Renewing { authority, names, current: Mutex::new(current) }));
    // WebSockets and SPDY begin with an upgrade, which HTTP/2 does not have.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// A certificate in use, and when it is time for the next.
#[derive(Clone, Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    renew: OffsetDateTime,
}

fn issue(authority: &Authority, names: &Names) -> anyhow::Result<Current> {
    let key = KeyPair::generate().context("make a key")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "berth");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    for host in &names.hosts {
        let name = Ia5String::try_from(host.clone()).with_context(|| format!("the name {host:?}"))?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params.subject_alt_names.extend(names.addresses.iter().map(|ip| SanType::IpAddress(*ip)));
    authority.validity(&mut params, LIFE);
    let renew = params.not_before + (params.not_after - params.not_before) * USED_UP;
    let certificate = params.signed_by(&key, &authority.issuer).context("make the server's certificate")?;
    let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = rustls::crypto::ring::sign::any_ecdsa_type(&secret).context("use the server's key")?;
    let key = Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signing));
    Ok(Current { key, renew })
}

/// Gives each connection the certificate, and makes a new one when it is time: no timer is needed for that.
#[derive(Debug)]
struct Renewing {
    authority: Arc<Authority>,
    names: Names,
    current: Mutex<Current>,
}

impl ResolvesServerCert for Renewing {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if OffsetDateTime::now_utc() >= current.renew {
            match issue(&self.authority, &self.names) {
                Ok(next) => *current = next,
                Err(error) => tracing::error!("cannot renew the API's certificate: {error:#}"),
            }
        }
        Some(current.key.clone())
    }
}
