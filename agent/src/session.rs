//! The connection to the scheduler: kept up for ever, with pauses that grow and are never in step with those of
//! other agents.

use std::time::Duration;

use aquifer_proto::v1;
use aquifer_proto::v1::agent_message::Message as Up;
use aquifer_proto::v1::agents_client::AgentsClient;
use aquifer_proto::v1::scheduler_message::Message as Down;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;
use tonic::{Request, Status};

/// Messages that may wait to be sent, at most.
const OUTBOX: usize = 256;
/// Bytes of an assignment, at most.
const MAX_MESSAGE: usize = 64 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the connection tells the daemon.
pub enum Incoming {
    /// A session began; messages go here.
    Welcome(v1::Welcome, mpsc::Sender<v1::AgentMessage>),
    /// The scheduler said something.
    Message(Down),
    /// The session is over.
    Ended(String),
}

/// How to reach the scheduler.
pub struct Link {
    pub endpoint: Endpoint,
    pub token: Option<MetadataValue<Ascii>>,
}

/// Begins a session with what `hello` holds, again and again, until the daemon is gone.
pub async fn keep_up(link: Link, hello: watch::Receiver<v1::Hello>, daemon: mpsc::Sender<Incoming>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut welcomed = false;
        let now = hello.borrow().clone();
        let ended = converse(&link, now, &daemon, &mut welcomed).await;
        let why = ended.err().map_or("the scheduler closed the session".into(), |status| {
            let source = std::error::Error::source(&status).map(|source| format!(": {source}"));
            format!("{}{}", status.message(), source.unwrap_or_default())
        });
        if daemon.send(Incoming::Ended(why)).await.is_err() {
            return;
        }
        pause = if welcomed { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        tokio::time::sleep(jittered(pause)).await;
    }
}

async fn converse(
    link: &Link,
    hello: v1::Hello,
    daemon: &mpsc::Sender<Incoming>,
    welcomed: &mut bool,
) -> Result<(), Status> {
    let channel = link.endpoint.connect().await.map_err(|error| Status::from_error(error.into()))?;
    let mut client = AgentsClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let (outbox, messages) = mpsc::channel(OUTBOX);
    let first = v1::AgentMessage { message: Some(Up::Hello(hello)) };
    outbox.send(first).await.expect("its receiver is here");
    let mut request = Request::new(ReceiverStream::new(messages));
    if let Some(token) = &link.token {
        request.metadata_mut().insert("authorization", token.clone());
    }
    let mut inbox = client.session(request).await?.into_inner();
    while let Some(message) = inbox.next().await {
        let incoming = match message?.message {
            Some(Down::Welcome(welcome)) => {
                *welcomed = true;
                Incoming::Welcome(welcome, outbox.clone())
            }
            Some(message) => Incoming::Message(message),
            None => continue,
        };
        if daemon.send(incoming).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Between half and all of a pause. The low bits of the clock are as good as chance for keeping agents out of step.
fn jittered(pause: Duration) -> Duration {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    pause / 2 + pause / 2 * (nanos.subsec_nanos() % 1000) / 1000
}
