//! This server as a client of the nodes' own APIs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::Authority;

/// A certificate is made for each connection.
const LIFE: Duration = Duration::from_secs(3600);

impl Authority {
    /// TLS towards a node, whose certificate must be of this authority; it sees this server as kubeadm has it called.
    ///
    /// # Errors
    /// What the cryptographic library says.
    pub fn client_config(&self) -> anyhow::Result<ClientConfig> {
        let key = KeyPair::generate().context("make a key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver-kubelet-client");
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        self.validity(&mut params, LIFE);
        let certificate = params.signed_by(&key, &self.issuer).context("make a certificate")?;
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).context("the certificate authority cannot be used")?;
        let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("set up TLS")?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.der().clone()], secret)
            .context("use the certificate")
    }
}
