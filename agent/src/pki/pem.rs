//! Certificates and keys that others have made.

use anyhow::{Context as _, bail};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// A certificate with those above it, and its key, from PEM.
///
/// # Errors
/// When one of them is missing, or they do not belong together.
pub fn certified(certificate: &[u8], key: &[u8]) -> anyhow::Result<CertifiedKey> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .context("no certificate in PEM")?;
    if chain.is_empty() {
        bail!("no certificate in PEM");
    }
    let key = PrivateKeyDer::from_pem_slice(key).context("no private key in PEM")?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).context("the private key")?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        // Some keys cannot tell.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
        Err(error) => Err(error).context("the key is not that of the certificate"),
    }
}

/// When a certificate begins and ends to be good, in seconds since 1970.
pub fn validity(certified: &CertifiedKey) -> Option<(i64, i64)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certified.cert.first()?).ok()?;
    Some((parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp()))
}
