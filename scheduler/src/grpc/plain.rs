//! What answers those who speak plain text to a scheduler that speaks TLS: one sentence, to whatever they call.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::future::{Ready, ready};
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

/// Refuses every call.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Service<http::Request<Body>> for Plain {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        let why = "this scheduler speaks TLS, and was called in clear text: write https:// in --server, and name its \
                   authority with --tls-ca";
        ready(Ok(Status::failed_precondition(why).into_http()))
    }
}
