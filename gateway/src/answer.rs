//! The body of an answer on its way: as it comes, nothing gathered.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::http::StatusCode;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use prometheus::IntCounter;
use tokio::sync::OwnedSemaphorePermit;

use crate::error::ApiError;
use crate::routes::Place;

/// What a replica says, with the places that the request has for as long as it says something.
pub struct Answer {
    /// What came while it was not yet sure that it would.
    pub first: Option<Frame<Bytes>>,
    /// What is to come.
    pub rest: Incoming,
    /// Whether it is a stream of events: then one that is cut off ends with an event that says so.
    pub is_events: bool,
    /// Counts answers that are cut off.
    pub cut: IntCounter,
    /// At the replica.
    pub place: Option<Place>,
    /// At the gateway.
    pub permit: Option<OwnedSemaphorePermit>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if self.place.is_none() {
            return Poll::Ready(None);
        }
        let next = ready!(Pin::new(&mut self.rest).poll_frame(context));
        if !matches!(next, Some(Ok(_))) {
            (self.place, self.permit) = (None, None);
        }
        Poll::Ready(match next {
            Some(Err(error)) => {
                self.cut.inc();
                self.is_events.then(|| Ok(Frame::data(lost()))).or(Some(Err(error)))
            }
            next => next,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && (self.place.is_none() || self.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        let rest = self.rest.size_hint();
        match rest.exact() {
            // Only what has a length ends with it; a stream may get an event more.
            Some(bytes) if !self.is_events => SizeHint::with_exact(first + bytes),
            _ => SizeHint::default(),
        }
    }
}

/// The event that ends a stream whose replica was lost.
fn lost() -> Bytes {
    let error = ApiError {
        code: Some("replica_lost"),
        ..ApiError::new(StatusCode::BAD_GATEWAY, "the replica was lost while it answered")
    };
    format!("data: {}\n\n", error.body()).into()
}
