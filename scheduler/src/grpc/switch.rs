//! A service that is there once its scheduler leads; before, it names the one that does.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use aquifer_proto::LEADER;
use futures::future::{Either, Ready, ready};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

/// A service, or where to find it.
#[derive(Clone)]
pub struct Switch<S> {
    service: Arc<OnceLock<S>>,
    /// URL of the scheduler that leads; empty: there is none.
    leader: watch::Receiver<String>,
}

impl<S> Switch<S> {
    /// Nothing is served yet.
    pub fn new(leader: &watch::Receiver<String>) -> Switch<S> {
        Switch { service: Arc::default(), leader: leader.clone() }
    }

    /// From now on calls are answered, also those of connections that there are.
    pub fn set(&self, service: S) {
        assert!(self.service.set(service).is_ok(), "a scheduler is elected once");
    }

    fn redirect(&self) -> Status {
        let leader = self.leader.borrow();
        let mut status = Status::unavailable(match &leader[..] {
            "" => "this scheduler stands by, and none leads at present".into(),
            leader => format!("this scheduler stands by: the one at {leader} leads"),
        });
        if let (false, Ok(leader)) = (leader.is_empty(), leader.parse()) {
            status.metadata_mut().insert(LEADER, leader);
        }
        status
    }
}

impl<S: NamedService> NamedService for Switch<S> {
    const NAME: &'static str = S::NAME;
}

type Response = http::Response<Body>;

impl<S> Service<http::Request<Body>> for Switch<S>
where
    S: Service<http::Request<Body>, Response = Response, Error = Infallible> + Clone,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response, Infallible>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(())) // As are the generated services, always.
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self.service.get() {
            Some(service) => Either::Left(service.clone().call(request)),
            None => Either::Right(ready(Ok(self.redirect().into_http()))),
        }
    }
}
