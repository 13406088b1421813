//! Requests for certificates: what a CertificateSigningRequest may ask of the signers `kubernetes.io/kube-apiserver-client`,
//! `kubernetes.io/kube-apiserver-client-kubelet` and `kubernetes.io/kubelet-serving` (Kubernetes documentation, "Certificates
//! and Certificate Signing Requests").

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::{Authority, days};

/// The signer for users of the API.
pub const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// The signer for nodes as users of the API.
pub const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// The signer for the APIs of nodes.
pub const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";
/// The group of nodes, and what their names begin with.
const NODES: &str = "system:nodes";
const NODE: &str = "system:node:";
/// The longest that a certificate is good for, and how long where nothing is asked: as the controller manager's
/// `--cluster-signing-duration`.
const LONGEST: Duration = days(365);
/// The shortest that may be asked.
const SHORTEST: i32 = 600;
/// What a certificate may be used for besides being a client or a server.
const USAGES: [&str; 2] = ["digital signature", "key encipherment"];

/// Why a request is not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Refused {
    /// The field that asks for something else.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

fn refused<T>(field: &'static str, why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { field, why: why.into() })
}

/// A request that was checked.
pub struct Request {
    params: CertificateSigningRequestParams,
    life: Duration,
    usage: ExtendedKeyUsagePurpose,
    name: String,
}

impl Request {
    /// Checks the fields of a CertificateSigningRequest's `spec`: `request` is PEM in base64.
    ///
    /// # Errors
    /// When one of them is not what the signer takes.
    pub fn check(
        signer: &str,
        request: &str,
        usages: &[String],
        expiration_seconds: Option<i32>,
    ) -> Result<Request, Refused> {
        let (word, usage) = match signer {
            SIGNER | NODE_CLIENT => ("client auth", ExtendedKeyUsagePurpose::ClientAuth),
            NODE_SERVING => ("server auth", ExtendedKeyUsagePurpose::ServerAuth),
            _ => {
                let why = format!("no signer {signer:?} here, only {SIGNER}, {NODE_CLIENT}, {NODE_SERVING}");
                return refused("spec.signerName", why);
            }
        };
        if let Some(other) = usages.iter().find(|usage| *usage != word && !USAGES.contains(&usage.as_str())) {
            return refused("spec.usages", format!("{other:?} is not one of {word}, {}", USAGES.join(", ")));
        }
        if !usages.iter().any(|usage| usage == word) {
            return refused("spec.usages", format!("must contain {word:?}"));
        }
        let life = match expiration_seconds {
            None => LONGEST,
            Some(seconds) if seconds < SHORTEST => {
                return refused(
                    "spec.expirationSeconds",
                    format!("may not specify a duration less than {SHORTEST} seconds"),
                );
            }
            Some(seconds) => Duration::from_secs(seconds.unsigned_abs().into()).min(LONGEST),
        };
        let (params, name) = parse(signer, request)?;
        Ok(Request { params, life, usage, name })
    }

    /// The common name that the certificate is for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names and addresses that the certificate is for, as texts.
    pub fn hosts(&self) -> Vec<String> {
        let text = |name: &SanType| match name {
            SanType::DnsName(name) => name.to_string(),
            SanType::IpAddress(address) => address.to_string(),
            other => format!("{other:?}"),
        };
        self.params.params.subject_alt_names.iter().map(text).collect()
    }
}

fn parse(signer: &str, text: &str) -> Result<(CertificateSigningRequestParams, String), Refused> {
    const FIELD: &str = "spec.request";
    let pem = STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let Some(pem) = pem else { return refused(FIELD, "not PEM in base64") };
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(pem.as_bytes()) else {
        return refused(FIELD, "PEM block type must be CERTIFICATE REQUEST");
    };
    if pem.label != "CERTIFICATE REQUEST" {
        return refused(FIELD, "PEM block type must be CERTIFICATE REQUEST");
    }
    let Ok((_, raw)) = X509CertificationRequest::from_der(&pem.contents) else {
        return refused(FIELD, "not a PKCS#10 certificate request");
    };
    let subject = &raw.certification_request_info.subject;
    if subject.iter_common_name().count() != 1 {
        return refused(FIELD, "the subject must have one common name (CN), the user's name");
    }
    if subject.iter_organization().count() > 1 {
        return refused(FIELD, "the subject may have one organization (O), the user's group");
    }
    let text =
        |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
    let name = subject.iter_common_name().next().and_then(text).unwrap_or_default();
    let group = subject.iter_organization().next().and_then(text).unwrap_or_default();
    if signer != SIGNER && (group != NODES || name.len() <= NODE.len() || !name.starts_with(NODE)) {
        return refused(FIELD, format!("the subject must be O={NODES}, CN={NODE}<the node's name>"));
    }
    let params = CertificateSigningRequestParams::from_der(&pem.contents.as_slice().into());
    let params = params.or_else(|error| refused(FIELD, error.to_string()))?;
    let names = &params.params.subject_alt_names;
    if params.params.is_ca != IsCa::NoCa || (signer != NODE_SERVING && !names.is_empty()) {
        return refused(FIELD, "a client's certificate has no other names and signs nothing");
    }
    let host = |name: &SanType| matches!(name, SanType::DnsName(_) | SanType::IpAddress(_));
    if signer == NODE_SERVING && (names.is_empty() || !names.iter().all(host)) {
        return refused(FIELD, "a node's certificate must have names in DNS or addresses, and no others");
    }
    Ok((params, name))
}

impl Authority {
    /// Signs a request; gives PEM.
    ///
    /// # Errors
    /// What the cryptographic library says.
    pub fn sign(&self, request: Request) -> Result<String, String> {
        let Request { mut params, life, usage, .. } = request;
        let subject = &mut params.params;
        subject.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        subject.extended_key_usages = vec![usage];
        subject.is_ca = IsCa::ExplicitNoCa;
        subject.use_authority_key_identifier_extension = true;
        // Nothing of the subject but the name and the group means anything here.
        for other in [
            DnType::CountryName,
            DnType::LocalityName,
            DnType::StateOrProvinceName,
            DnType::OrganizationalUnitName,
        ] {
            subject.distinguished_name.remove(other);
        }
        self.validity(subject, life);
        params.signed_by(&self.issuer).map(|certificate| certificate.pem()).map_err(|e| e.to_string())
    }
}
