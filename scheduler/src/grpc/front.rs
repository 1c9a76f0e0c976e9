//! The front of the server: connections and calls pass here, each within the limits of its client.

use std::convert::Infallible;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::server::Connected;
use tower_service::Service;
use tracing::Instrument;

use crate::SPANS;
use crate::limits::{CALL, Call, Clients, Place, Reached};
use crate::tls::{Accepted, Tls};

/// So long a connection may stay without a call that comes with the token.
const UNKNOWN_FOR: Duration = Duration::from_secs(30);
/// So long a request may take to arrive.
const ARRIVES_IN: Duration = Duration::from_secs(30);
/// So long the answer to a call that is refused is held back, so that asking at once again costs little.
const HELD_BACK: Duration = Duration::from_millis(250);
/// Bytes of an answer that are handed over at a time; the rest is taken when the client has room for it.
const PIECE: usize = 64 << 10;
/// How often it is told that connections are refused.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// When to try again, in milliseconds.
/// Source: gRPC proposal A6, "gRPC Retry Design", pushback.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Connections of one kind.
pub type Incoming<S> = ReceiverStream<io::Result<Connection<S>>>;

/// All connections to a socket that find a place: those with TLS, and those without, for as long as both are taken.
pub fn accept(
    listener: TcpListener,
    clients: Arc<Clients>,
    tls: Option<Tls>,
) -> (Incoming<TlsStream<TcpStream>>, Incoming<TcpStream>) {
    let (secret, secret_taken) = mpsc::channel(64);
    let (plain, plain_taken) = mpsc::channel(64);
    let (tls, told) = (tls.map(Arc::new), Arc::new(Told::default()));
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = plain.closed() => return,
            };
            let Ok((stream, from)) = accepted else {
                sleep(Duration::from_millis(100)).await; // Files may be short.
                continue;
            };
            let place = match clients.connect(from.ip()) {
                Ok(place) => Arc::new(place),
                Err(reached) => {
                    told.tell(from, &reached);
                    continue;
                }
            };
            _ = stream.set_nodelay(true);
            let Some(tls) = tls.clone() else {
                _ = plain.send(Ok(Connection::new(stream, place))).await; // A server that is gone takes none.
                continue;
            };
            let (secret, plain, told) = (secret.clone(), plain.clone(), told.clone());
            tokio::spawn(async move {
                let _turn = place.begin().await;
                match tls.accept(stream).await {
                    Ok(Accepted::Tls(stream)) => _ = secret.send(Ok(Connection::new(*stream, place))).await,
                    Ok(Accepted::Plain(stream)) => {
                        told.tell(from, &"it speaks plain text");
                        _ = plain.send(Ok(Connection::new(stream, place))).await;
                    }
                    Err(error) => told.tell(from, &error),
                }
            });
        }
    });
    (ReceiverStream::new(secret_taken), ReceiverStream::new(plain_taken))
}

/// When it was last told that a connection was refused.
#[derive(Default)]
struct Told(Mutex<Option<Instant>>);

impl Told {
    /// Tells why a connection was refused; seldom, as anyone can bring that about.
    fn tell(&self, from: SocketAddr, why: &dyn Display) {
        let mut told = self.0.lock().expect("no holder panics");
        if told.is_none_or(|told| TELL_EVERY <= told.elapsed()) {
            *told = Some(Instant::now());
            tracing::info!("refused a connection from {from}: {why}");
        }
    }
}

/// A connection that has a place.
pub struct Connection<S> {
    stream: S,
    place: Arc<Place>,
    unknown_for: Option<Pin<Box<Sleep>>>,
}

impl<S> Connection<S> {
    /// Takes a connection in.
    pub fn new(stream: S, place: Arc<Place>) -> Connection<S> {
        Connection { stream, place, unknown_for: Some(Box::pin(sleep(UNKNOWN_FOR))) }
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Arc<Place>;

    fn connect_info(&self) -> Arc<Place> {
        self.place.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.place.is_known() {
            self.unknown_for = None;
        }
        if self.unknown_for.as_mut().is_some_and(|timer| timer.as_mut().poll(context).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A service whose calls count against the limits of who makes them.
#[derive(Clone)]
pub struct Metered<S> {
    service: S,
    /// Requests end when their calls do.
    streams: bool,
}

impl<S> Metered<S> {
    /// One whose requests are to arrive soon.
    pub fn calls(service: S) -> Metered<S> {
        Metered { service, streams: false }
    }

    /// One whose requests go on for as long as their calls. Of those nothing is kept but what its stream's window and one message
    /// hold.
    pub fn streams(service: S) -> Metered<S> {
        Metered { service, streams: true }
    }
}

impl<S: NamedService> NamedService for Metered<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = http::Response<Body>;

impl<S, B> Service<http::Request<Body>> for Metered<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let place = request.extensions().get::<Arc<Place>>().expect("connections have places").clone();
        let (mut service, streams) = (self.service.clone(), self.streams);
        let path = request.uri().path();
        let span = tracing::info_span!(target: SPANS, "rpc", otel.name = path, otel.kind = "server", client = %place.client());
        let answered = async move {
            let (call, wait) = match place.call() {
                Ok((call, wait)) => (Arc::new(call), wait),
                Err(reached) => {
                    drop(request);
                    sleep(HELD_BACK).await;
                    return Ok(refusal(&reached).into_http());
                }
            };
            if !wait.is_zero() {
                sleep(wait).await;
            }
            let request = request.map(|body| match streams {
                true => body,
                false => Body::new(Arriving { body, call: call.clone(), timer: None }),
            });
            let answer = CALL.scope(call.clone(), async {
                poll_fn(|context| service.poll_ready(context)).await?;
                service.call(request).await
            });
            Ok(answer.await?.map(|body| Body::new(Leaving { body, rest: Bytes::new(), _call: call })))
        };
        Box::pin(answered.instrument(span))
    }
}

/// What is answered to who has reached a limit.
fn refusal(reached: &Reached) -> Status {
    let ms = reached.again().as_millis().max(1);
    let mut status = Status::resource_exhausted(format!("{reached}; try again in {ms} ms"));
    status.metadata_mut().insert(PUSHBACK, ms.to_string().parse().expect("digits"));
    status
}

/// The body of a request, whose bytes count until all have arrived.
struct Arriving {
    body: Body,
    call: Arc<Call>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let more = frame.data_ref().map_or(0, Bytes::len);
                Poll::Ready(Some(match self.call.hold(more) {
                    Ok(()) => Ok(frame),
                    Err(reached) => Err(refusal(&reached)),
                }))
            }
            Poll::Ready(end) => Poll::Ready(end),
            Poll::Pending => {
                let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(ARRIVES_IN)));
                ready!(timer.as_mut().poll(context));
                let seconds = ARRIVES_IN.as_secs();
                let late = format!("the request did not arrive within {seconds} s");
                Poll::Ready(Some(Err(Status::deadline_exceeded(late))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.call.release();
    }
}

/// The body of an answer. The call is under way until the client has taken all of it.
struct Leaving<B> {
    body: B,
    rest: Bytes,
    _call: Arc<Call>,
}

impl<B> HttpBody for Leaving<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}
