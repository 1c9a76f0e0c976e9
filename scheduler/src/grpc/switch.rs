//! A service that is there once its scheduler leads; before, it names the one that does, and answers from a copy of the
//! pool who asks for no more.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};

use aquifer_proto::{AGE, LEADER, STALE};
use futures::future::{Either, Ready, ready};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

use crate::limits::CALL;
use crate::runtime::Follower;

/// Calls that a copy of the pool can answer.
const READS: [&str; 9] = [
    "Get",
    "List",
    "Explain",
    "Plan",
    "ListNodes",
    "ListQueues",
    "ListReservations",
    "ListServices",
    "Usage",
];

/// A service, or where to find it.
#[derive(Clone)]
pub struct Switch<S> {
    service: Arc<OnceLock<S>>,
    /// Until then, one that answers from a copy.
    follower: Arc<Mutex<Option<(Follower, S)>>>,
    /// URL of the scheduler that leads; empty: there is none.
    leader: watch::Receiver<String>,
}

impl<S: Clone> Switch<S> {
    /// Nothing is served yet.
    pub fn new(leader: &watch::Receiver<String>) -> Switch<S> {
        Switch { service: Arc::default(), follower: Arc::default(), leader: leader.clone() }
    }

    /// From now on calls that allow it are answered from a copy, by this service of the follower.
    #[cfg(feature = "etcd")]
    pub fn follow(&self, follower: Follower, service: S) {
        *self.follower.lock().expect("no holder panics") = Some((follower, service));
    }

    /// From now on calls are answered, also those of connections that there are.
    pub fn set(&self, service: S) {
        assert!(self.service.set(service).is_ok(), "a scheduler is elected once");
        self.follower.lock().expect("no holder panics").take();
    }

    /// What answers this call from a copy, if it may be and there is one.
    fn follower(&self, request: &http::Request<Body>) -> Option<S> {
        let method = request.uri().path().rsplit('/').next()?;
        if !READS.contains(&method) || !request.headers().contains_key(STALE) {
            return None;
        }
        let follower = self.follower.lock().expect("no holder panics");
        follower.as_ref().filter(|(follower, _)| follower.has_copy()).map(|(_, service)| service.clone())
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
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<S::Future, Either<Dated, Ready<Result<Response, Infallible>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(())) // As are the generated services, always.
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if let Some(service) = self.service.get() {
            return Either::Left(service.clone().call(request));
        }
        Either::Right(match self.follower(&request) {
            Some(mut service) => Either::Left(dated(service.call(request))),
            None => Either::Right(ready(Ok(self.redirect().into_http()))),
        })
    }
}

type Dated = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

/// An answer that says how old it is.
fn dated(answer: impl Future<Output = Result<Response, Infallible>> + Send + 'static) -> Dated {
    Box::pin(async {
        let mut answer = answer.await?;
        if let Some(age) = CALL.try_with(|call| call.age()).ok().flatten() {
            answer.headers_mut().insert(AGE, (age.as_millis() as u64).into());
        }
        Ok(answer)
    })
}
