//! Requests for certificates: what a CertificateSigningRequest may ask of the signer
//! `kubernetes.io/kube-apiserver-client` (Kubernetes documentation, "Certificates and Certificate Signing Requests").

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::{Authority, days};

/// The signer whose certificates the API believes.
pub const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// The longest that a certificate is good for, and how long where nothing is asked: as the controller manager's
/// `--cluster-signing-duration`.
const LONGEST: Duration = days(365);
/// The shortest that may be asked.
const SHORTEST: i32 = 600;
/// What such a certificate may be used for.
const USAGES: [&str; 3] = ["client auth", "digital signature", "key encipherment"];

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
        if signer != SIGNER {
            return refused("spec.signerName", format!("no signer {signer:?} here, only {SIGNER}"));
        }
        if let Some(other) = usages.iter().find(|usage| !USAGES.contains(&usage.as_str())) {
            return refused("spec.usages", format!("{other:?} is not one of {}", USAGES.join(", ")));
        }
        if !usages.iter().any(|usage| usage == "client auth") {
            return refused("spec.usages", "must contain \"client auth\"");
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
        Ok(Request { params: parse(request)?, life })
    }
}

fn parse(text: &str) -> Result<CertificateSigningRequestParams, Refused> {
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
    let params = CertificateSigningRequestParams::from_der(&pem.contents.as_slice().into());
    let params = params.or_else(|error| refused(FIELD, error.to_string()))?;
    if !params.params.subject_alt_names.is_empty() || params.params.is_ca != IsCa::NoCa {
        return refused(FIELD, "a client's certificate has no other names and signs nothing");
    }
    Ok(params)
}

impl Authority {
    /// Signs a request; gives PEM.
    ///
    /// # Errors
    /// What the cryptographic library says.
    pub fn sign(&self, request: Request) -> Result<String, String> {
        let Request { mut params, life } = request;
        let subject = &mut params.params;
        subject.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        subject.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
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
