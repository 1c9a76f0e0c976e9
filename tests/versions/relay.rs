//! A relay between those who speak the protocol, which lets pass only what an earlier version of it has.
//!
//! It stands for an agent or a client of that version beside a scheduler of today, and the other way round: what the earlier version
//! does not know it would not send, and would not read.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use prost::Message as _;
use prost::bytes::{Buf, BufMut, Bytes};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http;
use tonic::server::{NamedService, StreamingService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service;

/// What went through a relay.
#[derive(Default)]
pub struct Seen {
    /// One message of each shape, by its type and the fields that it has.
    pub shapes: BTreeMap<(String, BTreeSet<String>), Vec<u8>>,
    /// Fields that the earlier version does not have.
    pub dropped: u64,
}

/// A relay; it runs for as long as this lives.
pub struct Relay {
    pub url: String,
    pub seen: Arc<Mutex<Seen>>,
    _runtime: tokio::runtime::Runtime,
}

impl Relay {
    /// Begins to listen at a port; what the `version` has goes on to the scheduler at a URL.
    pub fn start(port: u16, scheduler: &str, version: DescriptorPool) -> Relay {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let seen = Arc::new(Mutex::default());
        let channel = runtime
            .block_on(async { Endpoint::from_shared(scheduler.to_string()).expect("a URL").connect_lazy() });
        let passing = Passing { channel, version, seen: seen.clone() };
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let services = Server::builder().add_service(OfPool(passing.clone())).add_service(OfAgents(passing));
        runtime.spawn(async move { services.serve(address).await.expect("it listens") });
        Relay { url: format!("http://{address}"), seen, _runtime: runtime }
    }
}

#[derive(Clone)]
struct Passing {
    channel: Channel,
    version: DescriptorPool,
    seen: Arc<Mutex<Seen>>,
}

/// What is asked by clients.
#[derive(Clone)]
struct OfPool(Passing);
/// What is asked by agents.
#[derive(Clone)]
struct OfAgents(Passing);

impl NamedService for OfPool {
    const NAME: &'static str = "aquifer.v1.Pool";
}
impl NamedService for OfAgents {
    const NAME: &'static str = "aquifer.v1.Agents";
}

type Answering = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

macro_rules! passes {
    ($service:ty) => {
        impl Service<http::Request<Body>> for $service {
            type Response = http::Response<Body>;
            type Error = Infallible;
            type Future = Answering;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<Body>) -> Answering {
                let (passing, path) = (self.0.clone(), request.uri().path().to_string());
                Box::pin(async move {
                    Ok(tonic::server::Grpc::new(Raw).streaming(Call { passing, path }, request).await)
                })
            }
        }
    };
}
passes!(OfPool);
passes!(OfAgents);

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// One call.
struct Call {
    passing: Passing,
    path: String,
}

impl StreamingService<Bytes> for Call {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Messages>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (passing, path) = (self.passing.clone(), self.path.clone());
        Box::pin(async move {
            let (service, method) = path.trim_start_matches('/').split_once('/').expect("a path of gRPC");
            let service = passing.version.get_service_by_name(service).expect("a service");
            let Some(method) = service.methods().find(|it| it.name() == method) else {
                return Err(Status::unimplemented("an earlier version does not have this"));
            };
            let (metadata, _, asked) = request.into_parts();
            let (of_asked, seen) = (method.input(), passing.seen.clone());
            let asked = asked.map_while(move |it| Some(earlier(&it.ok()?, &of_asked, &seen)));
            let mut onward = Request::new(asked);
            *onward.metadata_mut() = metadata;
            let mut client = tonic::client::Grpc::new(passing.channel);
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let answer = client.streaming(onward, path.parse().expect("a path"), Raw).await?;
            let (of_answers, seen) = (method.output(), passing.seen);
            Ok(answer.map(|it| Box::pin(it.map(move |it| Ok(earlier(&it?, &of_answers, &seen)))) as Messages))
        })
    }
}

/// The message as the earlier version would send it.
fn earlier(message: &Bytes, of: &MessageDescriptor, seen: &Mutex<Seen>) -> Bytes {
    let mut message = DynamicMessage::decode(of.clone(), message.clone()).expect("a message of the protocol");
    let dropped = forget(&mut message);
    let bytes = message.encode_to_vec();
    let mut shape = BTreeSet::new();
    shape_of(&message, "", &mut shape);
    let mut seen = seen.lock().expect("no holder panics");
    seen.dropped += dropped;
    seen.shapes.entry((of.full_name().into(), shape)).or_insert_with(|| bytes.clone());
    bytes.into()
}

/// Takes out, everywhere, what the message's type does not have; how much that was.
fn forget(message: &mut DynamicMessage) -> u64 {
    let mut dropped = message.take_unknown_fields().count() as u64;
    for (_, value) in message.fields_mut() {
        match value {
            Value::Message(inner) => dropped += forget(inner),
            Value::List(list) => {
                list.iter_mut().for_each(|it| dropped += it.as_message_mut().map_or(0, forget))
            }
            Value::Map(map) => {
                map.values_mut().for_each(|it| dropped += it.as_message_mut().map_or(0, forget))
            }
            _ => (),
        }
    }
    dropped
}

/// Paths of all fields that are there.
fn shape_of(message: &DynamicMessage, path: &str, shape: &mut BTreeSet<String>) {
    for (field, value) in message.fields() {
        let path = format!("{path}.{}", field.name());
        match value {
            Value::Message(inner) => shape_of(inner, &path, shape),
            Value::List(list) => {
                list.iter().filter_map(Value::as_message).for_each(|it| shape_of(it, &path, shape))
            }
            _ => (),
        }
        shape.insert(path);
    }
}

/// Messages as they are.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
