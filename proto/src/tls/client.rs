//! What a client of a scheduler needs: a connection that is made with TLS where the address says so, and words for
//! what kept it from being made.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_rustls::rustls::{CertificateError, Error};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use super::{TlsError, authorities, identity};

/// So long the beginning of TLS may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whom a client trusts, and what it shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// File with the certificates of authorities that are trusted; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// Files with a certificate and its key, to be shown to a scheduler that asks for it.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Why an address cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// It is no such address.
    #[error("{0:?} is no URL of a scheduler: {1}")]
    Url(String, String),
    /// It would be read and changed by anyone on the way, although an authority was named.
    #[error(
        "--tls-ca is given, but {0} sends everything in clear text: write https://, or leave out --tls-ca"
    )]
    Plain(String),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] TlsError),
    /// There is nobody to trust.
    #[error("this machine knows no authorities of its own ({0}): name the pool's with --tls-ca FILE")]
    NoRoots(String),
}

impl ClientTls {
    /// An address with its scheme: what leaves it out means TLS if an authority was named.
    pub fn with_scheme(&self, address: &str) -> String {
        match (address.contains("://"), &self.ca) {
            (true, _) => address.to_string(),
            (false, None) => format!("http://{address}"),
            (false, Some(_)) => format!("https://{address}"),
        }
    }

    /// How to connect to an address; reads the files.
    ///
    /// # Errors
    /// It is no such address, or a file cannot be used.
    pub fn endpoint(&self, url: &str) -> Result<Endpoint, EndpointError> {
        let wrong = |why: String| EndpointError::Url(url.into(), why);
        let endpoint = Endpoint::from_shared(url.to_string()).map_err(|error| wrong(error.to_string()))?;
        match endpoint.uri().scheme_str() {
            Some("http") if self.ca.is_some() && !is_local(url) => Err(EndpointError::Plain(url.into())),
            Some("http") => Ok(endpoint),
            Some("https") => {
                let endpoint = endpoint.tls_config(self.config()?);
                endpoint.map_err(|error| EndpointError::NoRoots(root_of(&error).to_string()))
            }
            _ => Err(wrong("expected http://host:port or https://host:port".into())),
        }
    }

    fn config(&self) -> Result<ClientTlsConfig, TlsError> {
        let mut config = ClientTlsConfig::new().timeout(PATIENCE);
        config = match &self.ca {
            None => config.with_native_roots(),
            Some(file) => config.ca_certificate(Certificate::from_pem(authorities(super::CA, file)?.1)),
        };
        if let Some((certificate, key)) = &self.identity {
            let own = identity(certificate, key)?;
            let own = tonic::transport::Identity::from_pem(own.certificate_pem, own.key_pem);
            config = config.identity(own);
        }
        Ok(config)
    }

    /// If TLS kept a connection from being made or lasting: how, and what to do, in one sentence.
    pub fn explain(&self, url: &str, error: &(dyn StdError + 'static)) -> Option<String> {
        for cause in causes(error) {
            let inside = cause.downcast_ref::<io::Error>();
            let within = inside.and_then(io::Error::get_ref).and_then(|error| error.downcast_ref::<Error>());
            if let Some(error) = within.or(cause.downcast_ref::<Error>()) {
                return Some(self.words(url, error));
            }
            if inside.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
                && cause.to_string().contains("handshake")
            {
                return Some(plain(url));
            }
        }
        // What follows has no type that could be asked, or hides it.
        let said = root_of(error).to_string();
        match said.split_once("received fatal alert: ") {
            Some((_, alert)) => Some(refused(url, alert)),
            None => said.contains("HTTP/2 was not negotiated").then(|| other(url)),
        }
    }

    fn words(&self, url: &str, error: &Error) -> String {
        use CertificateError as Bad;
        match error {
            Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => match &self.ca {
                Some(file) => format!(
                    "the authority in --tls-ca {file:?} has not signed the certificate of {url}: name that of this pool"
                ),
                None => format!(
                    "no authority that this machine knows has signed the certificate of {url}: \
                     name the pool's with --tls-ca FILE"
                ),
            },
            Error::InvalidCertificate(Bad::NotValidForNameContext { expected, presented }) => format!(
                "the certificate of {url} is for {}, not for {}: use that name in --server, or make a certificate with \
                 this one",
                names(presented),
                expected.to_str(),
            ),
            Error::InvalidCertificate(Bad::ExpiredContext { not_after, .. }) => format!(
                "the certificate of {url} ended {} ago: give the scheduler a new one, or set this machine's clock",
                apart(not_after.as_secs()),
            ),
            Error::InvalidCertificate(Bad::NotValidYetContext { not_before, .. }) => format!(
                "the certificate of {url} begins only in {}: set this machine's clock, or the one it was made by",
                apart(not_before.as_secs()),
            ),
            Error::InvalidCertificate(bad) if format!("{bad:?}").contains("CaUsedAsEndEntity") => format!(
                "the certificate of {url} is that of an authority itself: make one of the scheduler's own, without CA:TRUE"
            ),
            Error::InvalidCertificate(bad) => format!("the certificate of {url} cannot be used: {bad}"),
            Error::InvalidMessage(_) => plain(url),
            Error::AlertReceived(alert) => refused(url, &format!("{alert:?}")),
            error => format!("TLS with {url} failed: {error}"),
        }
    }
}

/// Whether an address is of this machine.
pub fn is_local(url: &str) -> bool {
    ["//127.", "//localhost", "//[::1]"].iter().any(|local| url.contains(local))
}

/// Whether to follow one scheduler to another: never from TLS to clear text.
pub fn leads_on(from: &str, to: &str) -> bool {
    to.starts_with("https://") || to.starts_with("http://") && !from.starts_with("https://")
}

fn plain(url: &str) -> String {
    format!("{url} does not speak TLS: give its scheduler --tls-cert and --tls-key, or write http://")
}

/// What the other side did not like. Names of alerts: RFC 8446, 6.
fn refused(url: &str, alert: &str) -> String {
    match alert {
        "NoApplicationProtocol" => other(url),
        "CertificateRequired" => {
            format!(
                "{url} wants a certificate of its clients: name one with --tls-cert, and its key with --tls-key"
            )
        }
        "UnknownCA"
        | "BadCertificate"
        | "DecryptError"
        | "CertificateExpired"
        | "CertificateUnknown"
        | "UnsupportedCertificate" => format!(
            "{url} does not take the certificate in --tls-cert ({alert}): an authority in its --tls-client-ca must have \
             signed it, for clients, and it must not have ended"
        ),
        _ => format!("{url} refused TLS: {alert}"),
    }
}

fn other(url: &str) -> String {
    format!("{url} speaks TLS, but not gRPC: is it the address of --metrics, or of something else?")
}

/// Names of a certificate, without how they are kept: `DnsName("head")`.
fn names(presented: &[String]) -> String {
    let inner = |name: &String| {
        let inner = name.split_once('(').map_or(&name[..], |(_, inner)| inner.trim_end_matches(')'));
        inner.trim_matches('"').to_string()
    };
    match presented {
        [] => "no name at all (it has no subjectAltName)".into(),
        _ => presented.iter().map(inner).collect::<Vec<_>>().join(", "),
    }
}

/// Time between now and a moment.
fn apart(moment_s: u64) -> String {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match now_s.abs_diff(moment_s) {
        seconds @ ..7200 => format!("{} minutes", seconds.div_ceil(60)),
        seconds @ ..172_800 => format!("{} hours", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn root_of<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    causes(error).last().expect("at least the first")
}

/// An error and what caused it, and so on.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source())
}
