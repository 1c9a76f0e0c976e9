//! Authorities of a test, and certificates that they sign.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// All authorities have the same name, so that only their keys tell them apart.
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Writes its certificate.
    pub fn write(&self, file: &Path) {
        write(file, &self.pem, 0o644);
    }

    /// Writes `NAME.pem` and `NAME.key` for whoever is at `host`.
    pub fn issue(&self, dir: &Path, name: &str, host: &str) {
        self.issue_until(dir, name, host, 4000);
    }

    /// The same, valid until the beginning of a year.
    pub fn issue_until(&self, dir: &Path, name: &str, host: &str, year: i32) {
        let mut params = CertificateParams::new(vec![host.to_string()]).expect("parameters");
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        write(&dir.join(format!("{name}.key")), &key.serialize_pem(), 0o600);
        write(&dir.join(format!("{name}.pem")), &certificate.pem(), 0o644);
    }
}

/// Puts a file into place at once, as whoever renews certificates should.
fn write(file: &Path, text: &str, mode: u32) {
    let new = file.with_extension("new");
    fs::write(&new, text).expect("a file");
    fs::set_permissions(&new, Permissions::from_mode(mode)).expect("a mode");
    fs::rename(&new, file).expect("a file");
}
