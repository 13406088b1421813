#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::SanType;
use x509_parser::extensions::ParsedExtension;

use super::*;

fn authority() -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(&dir.path().join("pki"), "n").unwrap();
    (dir, authority)
}

/// A request of a client in base64.
fn request(edit: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "jane");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    edit(&mut params);
    let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    STANDARD.encode(pem)
}

fn check(text: &str, usages: &[&str], seconds: Option<i32>) -> Result<Request, Refused> {
    let usages: Vec<String> = usages.iter().map(|usage| (*usage).to_owned()).collect();
    Request::check(SIGNER, text, &usages, seconds)
}

#[test]
fn an_authority_is_made_once_and_its_key_is_its_owners() {
    let (dir, first) = authority();
    let again = Authority::open(&dir.path().join("pki"), "n").unwrap();
    assert_eq!(first.pem(), again.pem());
    let mode = |name: &str| {
        std::fs::metadata(dir.path().join("pki").join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("ca.key"), mode("ca.crt")), (0o600, 0o644));
}

#[test]
fn one_that_was_not_finished_is_made_anew() {
    let (dir, first) = authority();
    std::fs::remove_file(dir.path().join("pki/ca.crt")).unwrap();
    std::fs::write(dir.path().join("pki/ca.tmp"), "half").unwrap();
    let again = Authority::open(&dir.path().join("pki"), "n").unwrap();
    assert_ne!(first.pem(), again.pem());
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    let (dir, _) = authority();
    let (other, _) = authority();
    let (key, at) = (other.path().join("pki/ca.key"), dir.path().join("pki"));
    std::fs::copy(key, at.join("ca.key")).unwrap();
    let error = Authority::open(&at, "n").unwrap_err().to_string();
    assert!(error.ends_with("ca.crt") && error.contains("is not the key of"), "{error}");
    std::fs::remove_file(at.join("ca.key")).unwrap();
    let error = Authority::open(&at, "n").unwrap_err().to_string();
    assert!(error.contains("but its key"), "{error}");
    std::fs::write(at.join("ca.key"), "x").unwrap();
    let error = Authority::open(&at, "n").unwrap_err().to_string();
    assert!(error.contains("no private key"), "{error}");
}

#[test]
fn what_is_signed_is_for_that_client_alone() {
    let (_dir, authority) = authority();
    let asked = request(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
    let pem = authority.sign(check(&asked, &["client auth"], Some(3600)).unwrap()).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    assert_eq!(certificate.subject().to_string(), "CN=jane, O=system:masters");
    assert!(!certificate.is_ca());
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    assert!(!certificate.key_usage().unwrap().unwrap().value.key_cert_sign());
    let validity = certificate.validity();
    let life = validity.not_after.timestamp() - validity.not_before.timestamp();
    assert_eq!(life, 3600 + 300);
}

#[test]
fn what_is_not_a_clients_is_refused() {
    let refused =
        |text: &str, usages: &[&str], seconds| check(text, usages, seconds).err().unwrap().to_string();
    let good = request(|_| ());
    check(&good, &["client auth", "digital signature", "key encipherment"], None).unwrap();
    assert!(
        refused(&good, &["server auth", "client auth"], None).starts_with("spec.usages: \"server auth\"")
    );
    assert!(refused(&good, &[], None).contains("must contain \"client auth\""));
    assert!(refused(&good, &["client auth"], Some(599)).starts_with("spec.expirationSeconds"));
    assert!(refused("!", &["client auth"], None).contains("base64"));
    assert!(refused(&STANDARD.encode("hello"), &["client auth"], None).contains("CERTIFICATE REQUEST"));
    let nobody = request(|params| params.distinguished_name = DistinguishedName::new());
    assert!(refused(&nobody, &["client auth"], None).contains("common name"));
    let named = request(|params| params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())]);
    assert!(refused(&named, &["client auth"], None).contains("no other names"));
    let signer = request(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert!(refused(&signer, &["client auth"], None).contains("signs nothing"));
    let mut broken = STANDARD.decode(&good).unwrap();
    let middle = broken.len() / 2;
    broken[middle] = if broken[middle] == b'A' { b'B' } else { b'A' };
    assert!(check(&STANDARD.encode(broken), &["client auth"], None).is_err(), "its signature is wrong");
    let other = Request::check("kubernetes.io/legacy-unknown", &good, &["client auth".to_owned()], None);
    assert!(other.err().unwrap().to_string().starts_with("spec.signerName"));
}

#[test]
fn the_servers_certificate_has_its_names() {
    let (_dir, authority) = authority();
    let names = Names { hosts: vec!["localhost".into()], addresses: vec![[127, 0, 0, 1].into()] };
    let authority = std::sync::Arc::new(authority);
    let config = server_config(authority.clone(), names).unwrap();
    assert_eq!(config.alpn_protocols, [b"http/1.1"]);
    let error = server_config(authority.clone(), Names { hosts: vec!["bücher".into()], addresses: vec![] });
    assert!(format!("{:#}", error.unwrap_err()).contains("bücher"));
    let (_, parsed) = x509_parser::parse_x509_certificate(&authority.certificate).unwrap();
    let constraint = parsed.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::BasicConstraints(constraint) => Some(constraint.clone()),
        _ => None,
    });
    assert_eq!(constraint.unwrap().path_len_constraint, Some(0));
}

#[test]
fn nodes_get_certificates_for_both_sides() {
    let (_dir, authority) = authority();
    let node = |name: &'static str, hosts: bool| {
        request(move |params| {
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
            if hosts {
                let name = SanType::DnsName("b".to_owned().try_into().unwrap());
                params.subject_alt_names = vec![name, SanType::IpAddress([10, 0, 0, 2].into())];
            }
        })
    };
    let check = |signer: &str, text: &str, usage: &str| {
        Request::check(signer, text, &[usage.to_owned(), "digital signature".to_owned()], None)
    };
    let client = check(NODE_CLIENT, &node("system:node:b", false), "client auth").unwrap();
    assert_eq!((client.name(), client.hosts()), ("system:node:b", vec![]));
    let serving = check(NODE_SERVING, &node("system:node:b", true), "server auth").unwrap();
    assert_eq!(serving.hosts(), ["b", "10.0.0.2"]);
    let pem = authority.sign(serving).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 2);
    let refused = |signer: &str, text: String, usage: &str| check(signer, &text, usage).err().unwrap().field;
    assert_eq!(refused(NODE_CLIENT, request(|_| ()), "client auth"), "spec.request");
    assert_eq!(refused(NODE_CLIENT, node("system:node:", false), "client auth"), "spec.request");
    assert_eq!(refused(NODE_CLIENT, node("system:node:b", true), "client auth"), "spec.request");
    assert_eq!(refused(NODE_SERVING, node("system:node:b", false), "server auth"), "spec.request");
    assert_eq!(refused(NODE_SERVING, node("system:node:b", true), "client auth"), "spec.usages");
}
