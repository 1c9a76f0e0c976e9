//! The connection to the scheduler: kept up for ever, with pauses that grow and are never in step with those of
//! other agents.

use std::time::Duration;

use aquifer_proto::tls::{self, ClientTls, EndpointError};
use aquifer_proto::v1::agent_message::Message as Up;
use aquifer_proto::v1::agents_client::AgentsClient;
use aquifer_proto::v1::scheduler_message::Message as Down;
use aquifer_proto::{LEADER, v1};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::daemon::AgentError;

/// Messages that may wait to be sent, at most.
const OUTBOX: usize = 256;
/// Bytes of an assignment, at most.
const MAX_MESSAGE: usize = 64 << 20;
/// Answers of schedulers that do not lead that are followed at once, at most.
const REDIRECTIONS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// With several schedulers: one of them takes over within seconds, and workers should not wait for longer.
const LONGEST_PAUSE_OF_SEVERAL: Duration = Duration::from_millis(500);
/// Silence of a connection after which it is asked for a sign of life, and then for which that is waited for.
const SILENCE: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(20)];
/// The same with several schedulers: together well below a node's lease, so that the next one is found before workers
/// end.
const SILENCE_OF_SEVERAL: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(5)];
/// Length of leases before a scheduler has told theirs.
const LEASE: Duration = Duration::from_secs(24);
/// Longest wait for a connection.
const LONGEST_CONNECTING: Duration = Duration::from_secs(5);
/// Shortest: so far away the scheduler may be.
const SHORTEST_CONNECTING: Duration = Duration::from_secs(1);
/// With several schedulers, longest wait for the first word of one of them.
const LONGEST_BEGINNING: Duration = Duration::from_secs(3);

/// What the connection tells the daemon.
pub enum Incoming {
    /// A session began; messages go here.
    Welcome(v1::Welcome, mpsc::Sender<v1::AgentMessage>),
    /// The scheduler said something.
    Message(Down),
    /// It wants a command run beside a worker, and the agent to connect to it for that.
    Exec(Box<v1::ExecOrder>, Side),
    /// The session is over.
    Ended(String),
}

/// How to reach the scheduler.
#[derive(Clone)]
pub struct Link {
    /// URLs of all schedulers; one of them leads.
    pub urls: Vec<String>,
    pub tls: ClientTls,
    pub token: Option<MetadataValue<Ascii>>,
}

/// The scheduler of a session, for another connection to it.
#[derive(Clone)]
pub struct Side {
    link: Link,
    url: String,
}

impl Side {
    /// Connects, and begins to carry a command. The connection is gone with what this returns and with `answers`.
    ///
    /// # Errors
    /// The scheduler does not answer, or nobody waits for it any more.
    pub async fn carry(
        &self,
        answers: mpsc::Receiver<v1::ExecAnswer>,
    ) -> Result<Streaming<v1::ExecInput>, Status> {
        let Side { link, url } = self;
        let mut client = link.connect(url, LONGEST_CONNECTING).await?;
        let inputs = client.exec(link.request(ReceiverStream::new(answers))).await;
        Ok(inputs.map_err(|status| link.explained(url, status))?.into_inner())
    }
}

/// Begins a session with what `hello` holds, again and again, until the daemon is gone.
pub async fn keep_up(link: Link, hello: watch::Receiver<v1::Hello>, daemon: mpsc::Sender<Incoming>) {
    let mut pause = FIRST_PAUSE;
    let mut lease = LEASE;
    let mut next = link.urls[0].clone();
    let mut redirections = 0;
    loop {
        let mut welcomed = false;
        let now = hello.borrow().clone();
        let ended = converse(&link, &next, now, &daemon, &mut lease, &mut welcomed).await;
        let leader = ended.as_ref().err().and_then(|status| link.leader_of(status, &next));
        // One that stands by is no reason to wait. But what it says may be old.
        redirections = if welcomed || leader.is_none() { 0 } else { redirections + 1 };
        if let Some(leader) = leader
            && redirections <= REDIRECTIONS
        {
            next = leader;
            continue;
        }
        // Whoever stands by names the one that was lost, if it still leads.
        let at = link.urls.iter().position(|url| *url == next);
        next = link.urls[at.map_or(0, |at| (at + 1) % link.urls.len())].clone();
        let why = ended.err().map_or("the scheduler closed the session".into(), |status| {
            let source = std::error::Error::source(&status).map(|source| format!(": {source}"));
            format!("{}{}", status.message(), source.unwrap_or_default())
        });
        if daemon.send(Incoming::Ended(why)).await.is_err() {
            return;
        }
        let longest = if link.urls.len() == 1 { LONGEST_PAUSE } else { LONGEST_PAUSE_OF_SEVERAL };
        // Half a heartbeat: with the time for connecting, a link that is back is found within one.
        let longest = longest.min(lease / 12);
        pause = if welcomed { FIRST_PAUSE } else { (pause * 2).min(longest) };
        tokio::time::sleep(jittered(pause)).await;
    }
}

impl Link {
    /// The schedulers of a list with commas.
    ///
    /// # Errors
    /// A URL, a file or the token cannot be used.
    pub fn new(servers: &str, tls: &ClientTls, token: Option<&str>) -> Result<Link, AgentError> {
        let urls = servers.split(',').map(|url| tls.with_scheme(url.trim())).collect();
        let token = token.map(|token| format!("Bearer {token}").parse());
        let token = token.transpose().map_err(|_| AgentError::Token)?;
        let link = Link { urls, tls: tls.clone(), token };
        link.urls.iter().try_for_each(|url| link.endpoint(url).map(drop))?;
        Ok(link)
    }

    /// How to connect to a scheduler. Files are read each time: certificates are renewed while an agent runs.
    ///
    /// # Errors
    /// The URL or a file cannot be used.
    pub fn endpoint(&self, url: &str) -> Result<Endpoint, EndpointError> {
        let [silence, patience] = if 1 < self.urls.len() { SILENCE_OF_SEVERAL } else { SILENCE };
        let endpoint = self.tls.endpoint(url)?;
        Ok(endpoint
            .tcp_nodelay(true)
            .http2_keep_alive_interval(silence)
            .keep_alive_timeout(patience)
            .keep_alive_while_idle(true))
    }

    async fn connect(&self, url: &str, patience: Duration) -> Result<AgentsClient<Channel>, Status> {
        let endpoint = self.endpoint(url).map_err(|error| Status::unavailable(error.to_string()))?;
        let channel = endpoint.connect_timeout(patience).connect().await;
        let channel = channel.map_err(|error| self.explained(url, Status::from_error(error.into())))?;
        Ok(AgentsClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
    }

    /// With the token.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }

    /// The same, or in words if TLS is at fault.
    fn explained(&self, url: &str, status: Status) -> Status {
        self.tls.explain(url, &status).map_or(status, Status::unavailable)
    }

    /// The scheduler that another one names as the one that leads.
    fn leader_of(&self, status: &Status, by: &str) -> Option<String> {
        let leader = status.metadata().get(LEADER)?.to_str().ok()?;
        tls::leads_on(by, leader).then(|| leader.to_string())
    }
}

async fn converse(
    link: &Link,
    url: &str,
    hello: v1::Hello,
    daemon: &mpsc::Sender<Incoming>,
    lease: &mut Duration,
    welcomed: &mut bool,
) -> Result<(), Status> {
    let (outbox, messages) = mpsc::channel(OUTBOX);
    let first = v1::AgentMessage { message: Some(Up::Hello(hello)) };
    outbox.send(first).await.expect("its receiver is here");
    let connecting = (*lease / 12).clamp(SHORTEST_CONNECTING, LONGEST_CONNECTING);
    let beginning = if link.urls.len() == 1 { *lease / 2 } else { LONGEST_BEGINNING };
    let begun = tokio::time::timeout(beginning, begin(link, url, connecting, messages)).await;
    let mut inbox = begun.map_err(|_| Status::unavailable(format!("{url} does not answer")))??;
    loop {
        // Every heartbeat is answered. The kernel would try to get through an old connection ever more seldom.
        let silence = *lease / 2;
        let silent = |_| Status::unavailable(format!("{url} was silent for {} s", silence.as_secs_f32()));
        let message = tokio::time::timeout(silence, inbox.next()).await;
        let Some(message) = message.map_err(silent)? else { return Ok(()) };
        let incoming = match message.map_err(|status| link.explained(url, status))?.message {
            Some(Down::Welcome(welcome)) => {
                *welcomed = true;
                *lease = Duration::from_millis(welcome.lease_ms);
                Incoming::Welcome(welcome, outbox.clone())
            }
            Some(Down::Exec(order)) => {
                Incoming::Exec(order.into(), Side { link: link.clone(), url: url.into() })
            }
            Some(message) => Incoming::Message(message),
            None => continue,
        };
        if daemon.send(incoming).await.is_err() {
            return Ok(());
        }
    }
}

async fn begin(
    link: &Link,
    url: &str,
    connecting: Duration,
    messages: mpsc::Receiver<v1::AgentMessage>,
) -> Result<Streaming<v1::SchedulerMessage>, Status> {
    let mut client = link.connect(url, connecting).await?;
    let session = client.session(link.request(ReceiverStream::new(messages))).await;
    Ok(session.map_err(|status| link.explained(url, status))?.into_inner())
}

/// Between half and all of a pause. The low bits of the clock are as good as chance for keeping agents out of step.
fn jittered(pause: Duration) -> Duration {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    pause / 2 + pause / 2 * (nanos.subsec_nanos() % 1000) / 1000
}
