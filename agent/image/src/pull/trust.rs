//! Certificates that a registry needs beside the system's, where podman and docker keep them: a folder per registry, named
//! `host` or `host:port`, with a `*.crt` file for each certificate authority (containers-certs.d(5)).

use std::path::{Path, PathBuf};

use oci_client::client::{Certificate, CertificateEncoding};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::{Error, Result};

/// The registry's own certificate authorities; nothing if no folder is named after it.
///
/// # Errors
/// A file that cannot be read or holds no certificate; a client certificate, which is not supported.
pub(super) fn authorities(registry: &str, folders: &[PathBuf]) -> Result<Option<Vec<Certificate>>> {
    // A name is what stands before the first slash of a reference, so it cannot lead elsewhere but by these.
    if registry.is_empty() || registry == "." || registry == ".." {
        return Ok(None);
    }
    let mut found = None;
    for folder in folders {
        let folder = folder.join(registry);
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
            {
                continue;
            }
            Err(e) => return Err(Error::io("read", &folder, e)),
        };
        let mut files = Vec::new();
        for entry in entries {
            files.push(entry.map_err(|e| Error::io("read", &folder, e))?.path());
        }
        files.sort();
        let list: &mut Vec<Certificate> = found.get_or_insert_default();
        for file in files {
            match file.extension().and_then(|e| e.to_str()) {
                Some("crt") => list.extend(read(&file)?),
                Some("cert" | "key") => {
                    return Err(Error::unsupported(
                        format!("client certificate {}", file.display()),
                        "a registry that wants one cannot be used; remove the file if it does not",
                    ));
                }
                _ => {}
            }
        }
    }
    Ok(found)
}

/// The certificates of a PEM file.
fn read(file: &Path) -> Result<Vec<Certificate>> {
    let bytes = std::fs::read(file).map_err(|e| Error::io("read", file, e))?;
    let certificates = CertificateDer::pem_slice_iter(&bytes)
        .map(|certificate| {
            certificate.map(|der| Certificate { encoding: CertificateEncoding::Der, data: der.to_vec() })
        })
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|e| Error::corrupt(file.display().to_string(), e))?;
    if certificates.is_empty() {
        return Err(Error::corrupt(file.display().to_string(), "it holds no certificate in PEM form"));
    }
    Ok(certificates)
}
