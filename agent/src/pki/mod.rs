//! The node's certificate authority: who may use its API over TLS, and how clients know it.
//!
//! The authority lies in `<root>/pki` under the names that kubeadm gives it, `ca.crt` and `ca.key`; an owner may put one of
//! their own there. The server's own certificate is made at every start and is never on disk. Clients get theirs by
//! a CertificateSigningRequest. [`Signer`] makes the tokens of service accounts.

mod client;
mod pem;
mod request;
mod serving;
mod token;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;

use crate::durable;

pub use pem::{certified, validity};
pub use request::{NODE_CLIENT, NODE_SERVING, Refused, Request, SIGNER};
pub use serving::{Names, server_config};
pub use token::Signer;

/// How long the authority is good for: as kubeadm's.
const AUTHORITY_LIFE: Duration = days(3650);
/// Certificates are good from a little before they are made on: clocks differ.
const SKEW: Duration = Duration::from_secs(300);

const fn days(count: u64) -> Duration {
    Duration::from_secs(count * 86_400)
}

/// The node's certificate authority.
pub struct Authority {
    pem: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// When it is good no more.
    ends: OffsetDateTime,
}

impl Authority {
    /// The authority of a folder, which is made if there is none.
    ///
    /// # Errors
    /// When its files cannot be read or written, do not belong together, or the certificate is not an authority's.
    pub fn open(dir: &Path, node: &str) -> anyhow::Result<Self> {
        let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        match (certificate.exists(), key.exists()) {
            (true, true) => {}
            // One that was not finished has signed nothing: its certificate is written last.
            (false, _) => make(dir, &certificate, &key, node)?,
            (true, false) => bail!(
                "{} is there, but its key {} is not; restore it, or remove the certificate to have a new authority",
                certificate.display(),
                key.display()
            ),
        }
        Self::load(&certificate, &key)
    }

    fn load(path: &Path, key_path: &Path) -> anyhow::Result<Self> {
        let pem = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .with_context(|| format!("{}: no certificate in PEM", path.display()))?;
        let key =
            std::fs::read_to_string(key_path).with_context(|| format!("read {}", key_path.display()))?;
        let key =
            KeyPair::from_pem(&key).with_context(|| format!("{}: no private key", key_path.display()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .with_context(|| format!("{}: no certificate", path.display()))?;
        if !parsed.is_ca() {
            bail!("{}: not the certificate of an authority (basicConstraints CA is missing)", path.display());
        }
        use rcgen::PublicKeyData as _;
        if parsed.public_key().raw != key.subject_public_key_info() {
            bail!("{} is not the key of {}", key_path.display(), path.display());
        }
        let ends = parsed.validity().not_after.to_datetime();
        if ends <= OffsetDateTime::now_utc() {
            bail!(
                "{} has expired; remove it and its key to have a new authority, and make new kubeconfigs",
                path.display()
            );
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .with_context(|| format!("{}: cannot be used", path.display()))?;
        Ok(Self { pem, certificate, issuer, ends })
    }

    /// The authority's certificate, for clients.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// From a little ago until `life` from now, and never longer than the authority itself.
    fn validity(&self, params: &mut CertificateParams, life: Duration) {
        let now = OffsetDateTime::now_utc();
        params.not_before = now - SKEW;
        params.not_after = (now + life).min(self.ends);
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("ends", &self.ends).finish_non_exhaustive()
    }
}

fn make(dir: &Path, certificate: &Path, key_path: &Path, node: &str) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("make the folder {}", dir.display()))?;
    let key = KeyPair::generate().context("make a key")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // Those of several nodes are told apart by it; a new one of the same node must not look like the old one.
    let made = Timestamp::now().as_second();
    params.distinguished_name.push(DnType::CommonName, format!("berth-ca@{node}:{made}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + AUTHORITY_LIFE;
    let pem = params.self_signed(&key).context("make the certificate authority")?.pem();
    write(key_path, &key.serialize_pem(), 0o600)?;
    write(certificate, &pem, 0o644)
}

fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    durable::write(path, text.as_bytes(), mode).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
