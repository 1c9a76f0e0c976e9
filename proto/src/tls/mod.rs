//! TLS of the wire: certificates and keys out of files, for both sides, and what clients make of them.

mod client;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use client::{ClientTls, EndpointError, is_local, leads_on};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{Error, RootCertStore};

/// Option that names the certificates of whoever is trusted.
pub const CA: &str = "--tls-ca";
/// Option that names the certificate that is shown.
pub const CERTIFICATE: &str = "--tls-cert";
/// Option that names the key of that certificate.
pub const KEY: &str = "--tls-key";

/// Bytes of a file, at most: the bundle of all public authorities has a quarter of it.
const MAX_FILE: u64 = 1 << 20;

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{option} is {file:?}: {why}")]
pub struct TlsError {
    /// Which option names it.
    pub option: &'static str,
    /// Its path.
    pub file: PathBuf,
    /// What is wrong with it.
    pub why: Why,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// It cannot be read.
    #[error("{0}: name a file that this user can read")]
    Unreadable(io::Error),
    /// It is no such file.
    #[error("more than {MAX_FILE} bytes: name a PEM file")]
    TooLarge,
    /// What is there is something else.
    #[error("no certificate is in it: name a PEM file with `-----BEGIN CERTIFICATE-----`")]
    NoCertificate,
    /// What is there is something else.
    #[error("no private key is in it: name a PEM file with `-----BEGIN PRIVATE KEY-----`")]
    NoKey,
    /// It needs a passphrase.
    #[error(
        "its key is encrypted, and nobody is there to type a passphrase: write it without, `openssl pkey -in …`"
    )]
    Encrypted,
    /// Others than its owner can read it.
    #[error("others can read the key (mode {0:03o}): chmod 600 it, or 640 if root owns it")]
    Exposed(u32),
    /// It is the key of another certificate.
    #[error("the key does not fit the certificate in {0:?}: name the one that it was made with")]
    Mismatch(PathBuf),
    /// It has no extensions.
    #[error(
        "it is of version 1 of X.509: sign it with extensions, `openssl x509 -req -copy_extensions copyall …`"
    )]
    OldVersion,
    /// What is there makes no sense.
    #[error("it cannot be used: {0}")]
    Invalid(String),
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Identity {
    /// The certificate and those between it and the authority, in PEM.
    pub certificate_pem: Vec<u8>,
    /// Its key, in PEM.
    pub key_pem: Vec<u8>,
    /// Both.
    pub certified: Arc<CertifiedKey>,
}

/// The algorithms that are used.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Reads a certificate and its key.
///
/// # Errors
/// A file cannot be read, holds no such thing, or one that does not fit; others can read the key.
pub fn identity(certificate: &Path, key: &Path) -> Result<Identity, TlsError> {
    let (certificate_pem, _, _) = read(CERTIFICATE, certificate)?;
    let chain = certificates(CERTIFICATE, certificate, &certificate_pem)?;
    let wrong = |why: Why| TlsError { option: KEY, file: key.into(), why };
    let (key_pem, mode, owner) = read(KEY, key)?;
    // What root owns is handed to daemons through their groups: so do containers and distributions.
    if mode & (if owner == 0 { 0o037 } else { 0o077 }) != 0 {
        return Err(wrong(Why::Exposed(mode)));
    }
    let parsed = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| {
        let is_encrypted = key_pem.windows(9).any(|word| word == b"ENCRYPTED");
        wrong(match error {
            _ if is_encrypted => Why::Encrypted,
            pem::Error::NoItemsFound => Why::NoKey,
            error => Why::Invalid(error.to_string()),
        })
    })?;
    let certified = CertifiedKey::from_der(chain, parsed, &provider()).map_err(|error| match error {
        Error::InconsistentKeys(_) => wrong(Why::Mismatch(certificate.into())),
        Error::InvalidCertificate(why) => {
            let why = match format!("{why:?}") {
                why if why.contains("UnsupportedCertVersion") => Why::OldVersion,
                why => Why::Invalid(why),
            };
            TlsError { option: CERTIFICATE, file: certificate.into(), why }
        }
        error => wrong(Why::Invalid(error.to_string())),
    })?;
    Ok(Identity { certificate_pem, key_pem, certified: Arc::new(certified) })
}

/// Reads the certificates of authorities, and returns them also as the file has them.
///
/// # Errors
/// The file cannot be read, or there is no certificate in it that can be used.
pub fn authorities(option: &'static str, file: &Path) -> Result<(RootCertStore, Vec<u8>), TlsError> {
    let (text, _, _) = read(option, file)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(option, file, &text)? {
        let added = roots.add(certificate);
        added.map_err(|error| TlsError {
            option,
            file: file.into(),
            why: Why::Invalid(error.to_string()),
        })?;
    }
    Ok((roots, text))
}

fn certificates(
    option: &'static str,
    file: &Path,
    text: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |why: Why| TlsError { option, file: file.into(), why };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.map_err(|error| wrong(Why::Invalid(error.to_string())))?;
    if found.is_empty() { Err(wrong(Why::NoCertificate)) } else { Ok(found) }
}

/// Content of a file, who may do what with it, and its owner.
fn read(option: &'static str, path: &Path) -> Result<(Vec<u8>, u32, u32), TlsError> {
    let wrong = |why: Why| TlsError { option, file: path.into(), why };
    let unreadable = |error| wrong(Why::Unreadable(error));
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(unreadable)?;
    if MAX_FILE < text.len() as u64 {
        return Err(wrong(Why::TooLarge));
    }
    Ok((text, metadata.mode() & 0o777, metadata.uid()))
}
