//! What operators read of a daemon over HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever starts it.

mod process;

pub use process::resident;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aquifer_scheduler::grpc::Guard;
use aquifer_scheduler::tls::{Accepted, Tls};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Gauge, Opts, Registry, TEXT_FORMAT};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::accept::accept;
use crate::output::Failure;

/// Connections at a time; others wait.
const CONNECTIONS: usize = 64;
/// So long a connection may be silent, and the head of a request may take.
const SILENCE: Duration = Duration::from_secs(60);
/// So long a connection lasts.
const LONGEST: Duration = Duration::from_secs(600);
/// Bytes of the head of a request, at most.
const MAX_HEAD: usize = 16 << 10;

/// A daemon that tells how it is.
pub trait Observed: Send + Sync + 'static {
    /// All numbers, in Prometheus' text format.
    fn text(&self) -> impl Future<Output = Arc<str>> + Send;

    /// Whether it can be used.
    ///
    /// # Errors
    /// One sentence why not.
    fn readiness(&self) -> impl Future<Output = Result<(), String>> + Send;
}

impl Observed for aquifer_scheduler::metrics::Metrics {
    async fn text(&self) -> Arc<str> {
        self.text().await
    }

    async fn readiness(&self) -> Result<(), String> {
        self.readiness().await.map_err(|why| why.to_string())
    }
}

impl Observed for aquifer_agent::metrics::Metrics {
    async fn text(&self) -> Arc<str> {
        self.text().await.into()
    }

    async fn readiness(&self) -> Result<(), String> {
        self.readiness().await
    }
}

/// An address that is listened on.
pub struct Listener {
    socket: TcpListener,
    guard: Guard,
    tls: Option<Arc<Tls>>,
}

/// Enters what is the same of all daemons: the version, and what the process uses.
pub fn enter_process(registry: &Registry) {
    let version = Opts::new("aquifer_build_info", "Version of the program; the number is always 1");
    let version = Gauge::with_opts(version.const_label("version", env!("CARGO_PKG_VERSION")));
    let version = version.expect("a name of the format");
    version.set(1.0);
    let entered = registry.register(Box::new(version));
    entered.and_then(|()| registry.register(Box::new(process::Process::new()))).expect("names are used once");
}

/// Reads an address to listen on.
///
/// # Errors
/// What was expected.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected an address and a port".into())
}

impl Listener {
    /// Takes the address. `tls`: `None` means clear text.
    ///
    /// # Errors
    /// It cannot be had, or would be open to everyone.
    pub async fn bind(
        address: SocketAddr,
        token: Option<&str>,
        tls: Option<Tls>,
    ) -> Result<Listener, Failure> {
        if !address.ip().is_loopback() && token.is_none() {
            return Err(Failure::refused(
                format!("metrics on {address} need a token: anyone who reaches that address could read them"),
                "Name a secret with --token-file, or listen on 127.0.0.1.",
            ));
        }
        if !address.ip().is_loopback() && tls.is_none() {
            tracing::warn!("{address} is reached without TLS: numbers and the token travel in clear text");
        }
        let socket = TcpListener::bind(address).await.map_err(|error| {
            let next = "Choose another address with --metrics.";
            Failure::refused(format!("cannot listen on {address} for metrics: {error}"), next)
        })?;
        Ok(Listener { socket, guard: Guard::new(token), tls: tls.map(Arc::new) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("it listens")
    }

    /// Answers, for ever.
    pub async fn serve(self, observed: impl Observed) {
        let observed = Arc::new(observed);
        accept(self.socket, Arc::new(Semaphore::new(CONNECTIONS)), |stream| {
            let (observed, guard, tls) = (observed.clone(), self.guard.clone(), self.tls.clone());
            async move { _ = timeout(LONGEST, begin(stream, observed, guard, tls)).await }
        })
        .await
    }
}

async fn begin(stream: TcpStream, observed: Arc<impl Observed>, guard: Guard, tls: Option<Arc<Tls>>) {
    let answer = |request| answer(request, &*observed, &guard);
    let Some(tls) = tls else { return converse(stream, answer).await };
    match tls.accept(stream).await {
        Ok(Accepted::Tls(stream)) => converse(stream, answer).await,
        Ok(Accepted::Plain(stream)) => {
            let why = "this speaks TLS: write https://";
            converse(stream, async |_| Ok(said(StatusCode::BAD_REQUEST, why))).await;
        }
        Err(_) => (), // Whoever it was has gone, or does not agree and knows.
    }
}

async fn converse<Answered: Future<Output = Result<Answer, Infallible>>>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl Fn(Request<Incoming>) -> Answered,
) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(SILENCE).max_buf_size(MAX_HEAD);
    _ = builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await; // Whoever asked has gone.
}

type Answer = Response<Full<Bytes>>;

async fn answer<B>(
    request: Request<B>,
    observed: &impl Observed,
    guard: &Guard,
) -> Result<Answer, Infallible> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return Ok(said(StatusCode::METHOD_NOT_ALLOWED, "this can only be read"));
    }
    Ok(match request.uri().path() {
        // Whoever starts daemons has no token; neither answer says anything of the pool.
        "/healthz" => said(StatusCode::OK, "ok"),
        "/readyz" => match observed.readiness().await {
            Ok(()) => said(StatusCode::OK, "ok"),
            Err(why) => said(StatusCode::SERVICE_UNAVAILABLE, &why),
        },
        "/metrics" => {
            match guard.admits(request.headers().get(AUTHORIZATION).map(|value| value.as_bytes())) {
                true => with_type(StatusCode::OK, TEXT_FORMAT, observed.text().await.as_bytes().to_vec()),
                false => {
                    said(StatusCode::UNAUTHORIZED, "this needs the pool's token: authorization: Bearer …")
                }
            }
        }
        _ => said(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz"),
    })
}

fn said(status: StatusCode, sentence: &str) -> Answer {
    with_type(status, "text/plain; charset=utf-8", format!("{sentence}\n").into())
}

fn with_type(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Answer {
    let answer = Response::builder().status(status).header(CONTENT_TYPE, kind);
    answer.body(Full::new(body.into())).expect("a good head")
}
