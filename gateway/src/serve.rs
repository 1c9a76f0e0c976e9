//! Conversations with clients over one connection.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tower_service::Service;

/// So long a connection may be silent, and the head of a request may take.
const SILENCE: Duration = Duration::from_secs(75);
/// Bytes of the head of a request, at most.
const MAX_HEAD: usize = 64 << 10;

/// Answers what comes over a connection, until the other side ends it; once `draining` holds true, until what is under
/// way is answered.
pub async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    mut draining: watch::Receiver<bool>,
) {
    let answer = service_fn(move |request: hyper::Request<_>| router.clone().call(request.map(Body::new)));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(SILENCE).max_buf_size(MAX_HEAD);
    let mut conversation = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), answer));
    tokio::select! {
        // Whoever asked has gone.
        _ = conversation.as_mut() => return,
        _ = draining.wait_for(|draining| *draining) => conversation.as_mut().graceful_shutdown(),
    }
    _ = conversation.await; // The same.
}
