//! The services, and the server that carries them.

mod agents;
mod exec;
mod front;
mod logs;
mod past;
mod plain;
mod pool;
mod switch;
mod view;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
#[cfg(feature = "etcd")]
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::Policy;
use aquifer_proto::DESCRIPTORS;
use aquifer_proto::v1::agents_server::AgentsServer;
use aquifer_proto::v1::exec_server::ExecServer;
use aquifer_proto::v1::pool_server::PoolServer;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;
#[cfg(feature = "etcd")]
use tokio::time::timeout;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Status};

use crate::callers::{Caller, Users};
use crate::leader::Source;
use crate::limits::{Clients, Limits, Place};
use crate::metrics::Metrics;
#[cfg(feature = "etcd")]
use crate::runtime::Follower;
use crate::runtime::Runtime;
use crate::store::{Store, StoreError};
use crate::tls::Tls;
use front::Metered;
use plain::Plain;
use switch::Switch;
pub(crate) use view::{STATE_WORDS, state_at};

/// Bytes of a client's message, at most.
const MAX_CLIENT_MESSAGE: usize = 4 << 20;
/// Bytes of an agent's message, at most: a report of 65,535 devices fits.
const MAX_AGENT_MESSAGE: usize = 16 << 20;

/// Bytes of one message for a command, at most: the longest command, or a piece of what it reads.
const MAX_EXEC_MESSAGE: usize = 128 << 10;

/// Connections that may wait to be accepted: after a restart all agents come at once, and what finds no place tries again
/// a second later at the earliest. The kernel may have a lower bound of its own (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

/// Calls of one connection under way, at most; a client that has more to ask waits.
const STREAMS: u32 = 128;
/// Bytes of a call, and of all calls of one connection, that may arrive before somebody takes them.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// Bytes of a call's headers, at most.
const MAX_HEADERS: u32 = 16 << 10;

/// Who is elected within that time needs no copy of the pool to answer from before.
#[cfg(feature = "etcd")]
const AT_ONCE: Duration = Duration::from_secs(1);

/// So long a connection that should speak TLS, and does not, is told so.
const PLAIN_AGE: Duration = Duration::from_secs(10);

/// How to run the scheduler.
pub struct ServerConfig {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Secret that every agent, and every client without a token of its own, must present. Needed to listen beyond loopback.
    pub token: Option<String>,
    /// Who has a token of their own.
    pub users: Option<Arc<Users>>,
    /// TLS of all connections; `None`: everything travels in clear text.
    pub tls: Option<Tls>,
    /// Whether commands may be run beside workers, by whom they are of, and by administrators.
    pub exec: bool,
    /// What clients may take.
    pub limits: Limits,
    /// Rules of the pool.
    pub policy: Policy,
    /// Directory for the checkpoints of jobs that name none, on storage that all nodes see; may be empty.
    pub checkpoint_root: String,
    /// Where it counts.
    pub metrics: Metrics,
}

/// Why the scheduler ended.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Refused: it would have been open to everyone.
    #[error("listening on {0} needs a token: anyone who reaches that address could run programs")]
    Open(SocketAddr),
    /// The address cannot be had.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server failed.
    #[error("server: {0}")]
    Server(#[from] tonic::transport::Error),
    /// The protocol's own description could not be offered.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Runs the scheduler until `shutdown`. Calls `ready` with its address once it listens and, if the store is its own, leads.
///
/// # Errors
/// When it cannot start, its store fails, or another scheduler has taken over: then nothing that was not durable was
/// acknowledged.
pub async fn serve(
    config: ServerConfig,
    source: Source,
    ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    if !config.listen.ip().is_loopback() && config.token.is_none() {
        return Err(ServerError::Open(config.listen));
    }
    if !config.listen.ip().is_loopback() && config.tls.is_none() {
        tracing::warn!(
            "{} is reached without TLS: the token and all else travel in clear text; give --tls-cert and --tls-key",
            config.listen
        );
    }
    let listen_error = |cause| ServerError::Listen { address: config.listen, cause };
    let listener = listen(config.listen).map_err(listen_error)?;
    let address = listener.local_addr().map_err(listen_error)?;

    let door = Door { guard: Guard::new(config.token.as_deref()), users: config.users.clone() };
    let (leader, seen) = watch::channel(String::new());
    let services =
        Services { pool: Switch::new(&seen), exec: Switch::new(&seen), agents: Switch::new(&seen) };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_not_serving::<PoolServer<pool::PoolService>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(15)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .http2_max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(Metered::calls(health_service))
        .add_service(Metered::calls(InterceptedService::new(reflection().build_v1()?, door.clone())))
        .add_service(Metered::calls(InterceptedService::new(reflection().build_v1alpha()?, door.clone())))
        .add_service(Metered::calls(InterceptedService::new(services.pool.clone(), door.clone())))
        .add_service(Metered::streams(InterceptedService::new(services.exec.clone(), door.clone())))
        .add_service(InterceptedService::new(services.agents.clone(), door));
    let lead = async |store: Box<dyn Store>| -> Result<oneshot::Receiver<StoreError>, StoreError> {
        let (metrics, meters) = (config.metrics.clone(), config.metrics.meters());
        let root = config.checkpoint_root.clone();
        let start = move || Runtime::start(config.policy, root, store, meters);
        let (runtime, failure) = spawn_blocking(start).await.expect("the start does not panic")?;
        metrics.lead(runtime.clone());
        services.lead(runtime, metrics, config.exec);
        health.set_serving::<PoolServer<pool::PoolService>>().await;
        Ok(failure)
    };
    let clients = Clients::new(config.limits, config.metrics.meters());
    let serve: Pin<Box<dyn Future<Output = Result<(), tonic::transport::Error>> + Send>> = match config.tls {
        None => Box::pin(server.serve_with_incoming(front::accept(listener, clients, None).1)),
        Some(tls) => {
            let (secret, plain) = front::accept(listener, clients, Some(tls));
            let refuse = Server::builder().max_connection_age(PLAIN_AGE).serve_with_incoming(Plain, plain);
            let serve = server.serve_with_incoming(secret);
            Box::pin(async { tokio::try_join!(serve, refuse).map(|_| ()) })
        }
    };
    match source {
        Source::Owned(store) => {
            drop(leader); // There is no other one.
            let failure = lead(store).await?;
            ready(address);
            tokio::select! {
                served = serve => Ok(served?),
                Ok(failure) = failure => Err(failure.into()),
                () = shutdown => Ok(()),
            }
        }
        #[cfg(feature = "etcd")]
        Source::Contested(candidate) => {
            ready(address);
            let mut resignation = None;
            let led = async {
                let mut campaign = pin!(candidate.campaign(&leader));
                let won = match timeout(AT_ONCE, &mut campaign).await {
                    Ok(won) => won,
                    Err(_) => {
                        let (history, look) = candidate.look();
                        let (root, meters) = (config.checkpoint_root.clone(), config.metrics.meters());
                        let follower = Follower::start(config.policy, root, history, meters, look);
                        services.follow(follower, config.metrics.clone());
                        campaign.await
                    }
                };
                let (store, lost, resigns) = won?.split();
                resignation = Some(resigns);
                let failure = lead(Box::new(store)).await?;
                tokio::select! {
                    Ok(failure) = failure => Err::<(), StoreError>(failure),
                    Ok(lost) = lost => Err(lost),
                    else => Ok(()),
                }
            };
            let ended = tokio::select! {
                served = serve => served.map_err(ServerError::from),
                ended = led => ended.map_err(ServerError::from),
                () = shutdown => Ok(()),
            };
            if let Some(resignation) = resignation {
                resignation.resign().await;
            }
            ended
        }
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What answers once this scheduler leads.
struct Services {
    pool: Switch<PoolServer<pool::PoolService>>,
    exec: Switch<ExecServer<exec::ExecService>>,
    agents: Switch<AgentsServer<agents::AgentsService>>,
}

impl Services {
    /// Answers what a copy of the pool can answer.
    #[cfg(feature = "etcd")]
    fn follow(&self, follower: Follower, metrics: Metrics) {
        let pool = pool_server(follower.runtime.clone(), metrics);
        self.pool.follow(follower, pool);
    }

    fn lead(&self, runtime: Runtime, metrics: Metrics, exec: bool) {
        self.pool.set(pool_server(runtime.clone(), metrics));
        let desk = Arc::new(exec::Desk::default());
        let exec = ExecServer::new(exec::ExecService::new(runtime.clone(), desk.clone(), exec));
        self.exec.set(exec.max_decoding_message_size(MAX_EXEC_MESSAGE));
        let agents = AgentsServer::new(agents::AgentsService::new(runtime, desk));
        self.agents.set(agents.max_decoding_message_size(MAX_AGENT_MESSAGE));
    }
}

fn pool_server(runtime: Runtime, metrics: Metrics) -> PoolServer<pool::PoolService> {
    PoolServer::new(pool::PoolService::new(runtime, metrics)).max_decoding_message_size(MAX_CLIENT_MESSAGE)
}

/// Lets calls pass that present the token.
#[derive(Clone)]
pub struct Guard {
    /// What the header `authorization` must say.
    token: Option<String>,
}

impl Guard {
    /// Without a token, everyone may pass.
    pub fn new(token: Option<&str>) -> Guard {
        Guard { token: token.map(|token| format!("Bearer {token}")) }
    }

    /// Whether a call with this header `authorization` may pass.
    pub fn admits(&self, given: Option<&[u8]>) -> bool {
        let Some(token) = &self.token else { return true };
        given.is_some_and(|given| equal(given, token.as_bytes()))
    }
}

/// Lets calls pass with a token, and says whose it is.
#[derive(Clone)]
struct Door {
    guard: Guard,
    users: Option<Arc<Users>>,
}

impl Door {
    fn caller(&self, given: Option<&[u8]>) -> Option<Caller> {
        if self.guard.admits(given) {
            return Some(Caller::Pool);
        }
        self.users.as_ref()?.find(given?.strip_prefix(b"Bearer ")?).map(Caller::User)
    }
}

impl tonic::service::Interceptor for Door {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let given = request.metadata().get("authorization").map(|value| value.as_bytes());
        let unknown = || Status::unauthenticated("this pool needs a token: authorization: Bearer …");
        let caller = self.caller(given).ok_or_else(unknown)?;
        request.extensions().get::<Arc<Place>>().inspect(|place| place.know());
        request.extensions_mut().insert(caller);
        Ok(request)
    }
}

/// Compares in a time that does not tell how much was right.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
