//! TLS of what a scheduler listens on. Certificates are read again when their files change, so that new ones need no
//! restart; those who speak plain text are handed over as well, to be told.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aquifer_proto::tls::{self, TlsError, Why};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::server::TlsStream;

use crate::stamp::{Stamp, stamp};

/// Option that names the authorities of clients.
pub const CLIENT_CA: &str = "--tls-client-ca";

/// So long a connection may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often files are looked at, while there are connections.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So long, and for so many bytes, a connection that was refused is kept.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 << 10;
/// First byte of a connection that speaks TLS. Source: RFC 8446, 5.1, `ContentType.handshake`.
const HANDSHAKE: u8 = 22;

/// Where certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate that is shown, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities of clients' certificates; `None`: clients need none.
    pub client_ca: Option<PathBuf>,
}

/// What is spoken within TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Http2,
    /// What operators read.
    Http1,
}

/// A connection that began.
#[derive(Debug)]
pub enum Accepted {
    /// As it should be.
    Tls(Box<TlsStream<TcpStream>>),
    /// Whoever it is does not know that this needs TLS. Nothing was read yet.
    Plain(TcpStream),
}

/// Makes connections out of sockets.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    protocol: Protocol,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    stamps: Vec<Stamp>,
    looked: Instant,
}

impl Files {
    fn stamps(&self) -> Vec<Stamp> {
        let all = [&self.certificate, &self.key].into_iter().chain(&self.client_ca);
        all.map(|file| stamp(file)).collect()
    }

    fn load(&self, protocol: Protocol) -> Result<Arc<ServerConfig>, TlsError> {
        let own = tls::identity(&self.certificate, &self.key)?;
        let provider = tls::provider();
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().expect("the provider has both versions");
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let (roots, _) = tls::authorities(CLIENT_CA, file)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| {
                    let why = Why::Invalid(error.to_string());
                    TlsError { option: CLIENT_CA, file: file.clone(), why }
                })?)
            }
        };
        let shown = SingleCertAndKey::from(own.certified);
        let mut config = builder.with_cert_resolver(Arc::new(shown));
        config.alpn_protocols.push(match protocol {
            Protocol::Http2 => b"h2".to_vec(),
            Protocol::Http1 => b"http/1.1".to_vec(),
        });
        Ok(Arc::new(config))
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn open(files: Files, protocol: Protocol) -> Result<Tls, TlsError> {
        let stamps = files.stamps();
        let config = files.load(protocol)?;
        let loaded = Mutex::new(Loaded { config, stamps, looked: Instant::now() });
        Ok(Tls { files, protocol, loaded })
    }

    /// What holds now: the files', if they changed and can be used.
    fn config(&self) -> Arc<ServerConfig> {
        let mut loaded = self.loaded.lock().expect("no holder panics");
        if LOOK_EVERY <= loaded.looked.elapsed() {
            loaded.looked = Instant::now();
            let stamps = self.files.stamps();
            if stamps != loaded.stamps {
                loaded.stamps = stamps;
                match self.files.load(self.protocol) {
                    Ok(config) => {
                        loaded.config = config;
                        tracing::info!(file = ?self.files.certificate, "read the new certificate");
                    }
                    Err(error) => tracing::warn!("{error}; the certificate of before stays in use"),
                }
            }
        }
        loaded.config.clone()
    }

    /// Begins a connection.
    ///
    /// # Errors
    /// The other side does not go on, or does not agree.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Accepted> {
        let begin = async {
            let mut first = [0];
            match stream.peek(&mut first).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ if first[0] != HANDSHAKE => return Ok(Accepted::Plain(stream)),
                _ => (),
            }
            match TlsAcceptor::from(self.config()).accept(stream).into_fallible().await {
                Ok(stream) => Ok(Accepted::Tls(Box::new(stream))),
                Err((error, stream)) => {
                    linger(stream).await;
                    Err(error)
                }
            }
        };
        timeout(PATIENCE, begin).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Lets what was written last, why this is the end, arrive: a socket that is closed while there is something to be read
/// takes it back. A client that shows no certificate has gone on to its first call by then.
async fn linger(mut stream: TcpStream) {
    let drained = async {
        stream.shutdown().await?;
        let mut rest = (&mut stream).take(LINGER_BYTES);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    _ = timeout(LINGER, drained).await; // It was a courtesy.
}
