//! JSON Web Tokens (RFC 7519) of service accounts, signed with ES256 (RFC 7518, section 3.4).

use std::path::Path;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SigningKey as _};
use rustls::SignatureScheme;
use rustls::pki_types::SignatureVerificationAlgorithm;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::write;

/// Bytes of each of the two numbers that a signature is.
const NUMBER: usize = 32;

/// Signs tokens and knows its own again. The key lies beside the authority's, as `sa.key`, which is kubeadm's name for it.
pub struct Signer {
    key: KeyPair,
    /// Names the key in a token's head.
    id: String,
    algorithm: &'static dyn SignatureVerificationAlgorithm,
}

impl Signer {
    /// The signer of a folder, whose key is made if there is none.
    ///
    /// # Errors
    /// When the key cannot be read or written, or is of another kind.
    pub fn open(dir: &Path) -> anyhow::Result<Signer> {
        let path = dir.join("sa.key");
        if !path.exists() {
            std::fs::create_dir_all(dir).with_context(|| format!("make the folder {}", dir.display()))?;
            write(&path, &KeyPair::generate().context("make a key")?.serialize_pem(), 0o600)?;
        }
        let pem = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let key = KeyPair::from_pem(&pem).with_context(|| format!("{}: no private key", path.display()))?;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            bail!("{}: the key that signs tokens must be of the curve P-256", path.display());
        }
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(key.subject_public_key_info()));
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        let ours =
            algorithms.mapping.iter().find(|(scheme, _)| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256);
        // Of the algorithms for a scheme, the first is for its own curve.
        let Some(algorithm) = ours.and_then(|(_, all)| all.first()) else {
            bail!("the cryptographic library does not know ECDSA with P-256");
        };
        Ok(Signer { key, id, algorithm: *algorithm })
    }

    /// A token that says this.
    ///
    /// # Errors
    /// What the cryptographic library says.
    pub fn sign(&self, claims: &Value) -> Result<String, String> {
        let head = json!({"alg": "ES256", "kid": self.id});
        let text = format!("{}.{}", encode(head.to_string()), encode(claims.to_string()));
        let der = self.key.sign(text.as_bytes()).map_err(|error| error.to_string())?;
        let plain = from_der(&der).ok_or("the signature has another form than expected")?;
        Ok(format!("{text}.{}", encode(plain)))
    }

    /// What a token says, if it is one that was signed here.
    pub fn verify(&self, token: &str) -> Option<Value> {
        let (text, signature) = token.rsplit_once('.')?;
        let (head, claims) = text.split_once('.')?;
        let head: Value = decode(head)?;
        if head["alg"] != "ES256" || head["kid"] != self.id {
            return None;
        }
        let plain = URL_SAFE_NO_PAD.decode(signature).ok().filter(|plain| plain.len() == 2 * NUMBER)?;
        let verified =
            self.algorithm.verify_signature(self.key.der_bytes(), text.as_bytes(), &to_der(&plain));
        verified.ok()?;
        decode(claims)
    }
}

fn encode(text: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

fn decode(part: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// A sequence of two numbers in DER (X.690) as the plain numbers after each other; none if it is no such sequence.
fn from_der(der: &[u8]) -> Option<Vec<u8>> {
    let [0x30, _, rest @ ..] = der else { return None };
    let (first, rest) = number(rest)?;
    let (second, rest) = number(rest)?;
    rest.is_empty().then(|| [first, second].concat())
}

fn number(der: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let [0x02, length, rest @ ..] = der else { return None };
    let (bytes, rest) = rest.split_at_checked(usize::from(*length))?;
    let significant: Vec<u8> = bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
    let padding = NUMBER.checked_sub(significant.len())?;
    Some(([vec![0; padding], significant].concat(), rest))
}

/// The other way round.
fn to_der(plain: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(2 * NUMBER + 6);
    for number in plain.chunks(NUMBER) {
        let mut bytes: Vec<u8> = number.iter().copied().skip_while(|byte| *byte == 0).collect();
        // A number that begins with a set bit would be negative, and none at all is no number.
        if bytes.first().is_none_or(|first| *first >= 0x80) {
            bytes.insert(0, 0);
        }
        body.extend([0x02, bytes.len() as u8]);
        body.extend(bytes);
    }
    [vec![0x30, body.len() as u8], body].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_again_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let signer = Signer::open(dir.path()).unwrap();
        let claims = json!({"sub": "jane", "n": 7});
        // The numbers of a signature are of different lengths each time.
        for _ in 0..200 {
            let token = signer.sign(&claims).unwrap();
            assert_eq!(signer.verify(&token), Some(claims.clone()), "{token}");
        }
        let token = signer.sign(&claims).unwrap();
        assert_eq!(Signer::open(dir.path()).unwrap().verify(&token), Some(claims));
        let parts: Vec<&str> = token.split('.').collect();
        let other = encode(json!({"sub": "root", "n": 7}).to_string());
        assert_eq!(signer.verify(&format!("{}.{other}.{}", parts[0], parts[2])), None);
        let none = encode(json!({"alg": "none", "kid": signer.id}).to_string());
        for bad in [
            format!("{none}.{}.", parts[1]),
            format!("{}.{}", parts[0], parts[1]),
            "a.b.c".into(),
            String::new(),
        ] {
            assert_eq!(signer.verify(&bad), None, "{bad}");
        }
        let strange = Signer::open(tempfile::tempdir().unwrap().path()).unwrap();
        assert_eq!(strange.verify(&token), None);
    }

    #[test]
    fn numbers_keep_their_value_in_der() {
        for first in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            let plain = [vec![first; NUMBER], [vec![0; 31], vec![first]].concat()].concat();
            assert_eq!(from_der(&to_der(&plain)), Some(plain));
        }
        assert_eq!(from_der(&[0x30, 2, 0x02, 9]), None);
    }
}
