//! What is told as it happens: notes, and what workers print. Each event is a line of `watch` or `logs`, as JSON.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use aquifer_proto::v1;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::StreamExt;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::answer::{Answered, Refusal};
use super::door::Viewer;
use super::pages::{Query, job_of};
use crate::client::{Patience, Pool};
use crate::logs::{Printer, Reader, Tail};
use crate::output::Failure;
use crate::{job, view};

/// Whether the dashboard is about to end.
pub type Draining = watch::Receiver<bool>;

type Of = Extension<Arc<Viewer>>;

/// So long a scheduler may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);
/// Notes of the past that can be asked for, at most.
const MOST_NOTES: u32 = 1000;
/// Lines of each rank that can be asked for, at most.
const MOST_LINES: u32 = 10_000;
/// Pieces of a log that wait for the browser.
const WAITING: usize = 256;

fn place(viewer: &Viewer) -> Result<OwnedSemaphorePermit, Refusal> {
    let place = viewer.streams.clone().try_acquire_owned();
    place.map_err(|_| Refusal::busy("too many streams of yours are open: close a tab"))
}

fn refusal(pool: &Pool, status: &Status) -> Refusal {
    Refusal::of(pool.failure(status), Some(status.code()))
}

/// The end of a stream, in the words of a command.
fn end(failure: &Failure) -> Event {
    Event::default().event("end").data(json!({ "error": failure.sentence, "next": failure.next }).to_string())
}

/// `aquifer watch`: first the last notes that there were, or those after the last one that the browser saw.
pub async fn notes(
    State(draining): State<Draining>,
    Extension(viewer): Of,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
) -> Answered {
    let query = Query::read(raw, &["job", "node", "recent"])?;
    let recent = query.number("recent", MOST_NOTES)?;
    let job = query.get("job").map(job_of).transpose()?;
    let node = query.get("node").unwrap_or_default().to_string();
    let place = place(&viewer)?;
    let pool = viewer.session(false).pool;
    let seen = headers.get("last-event-id").and_then(|seq| seq.to_str().ok()?.parse::<u64>().ok());
    let began = timeout(PATIENCE, async {
        let after_seq = match (seen, recent) {
            (Some(seen), _) => Some(seen),
            // Of all notes: of one job or node, they go back further.
            (None, Some(recent)) => {
                let status = pool.client().status(v1::StatusRequest {}).await?.into_inner();
                let all = job.is_some() || !node.is_empty();
                Some(if all { 0 } else { status.latest_note.saturating_sub(recent.into()) })
            }
            (None, None) => None,
        };
        pool.client().watch(v1::WatchRequest { job: job.map(|job| job.0), node, after_seq }).await
    });
    let late = |_| Status::unavailable("it does not answer in time");
    let stream = began.await.map_err(late).and_then(|it| it).map_err(|status| refusal(&pool, &status))?;
    let events = stream.into_inner().map(move |note| {
        _ = &place; // Until the stream is over.
        Ok::<_, Infallible>(match note {
            Ok(note) => {
                let json = serde_json::to_string(&view::Note::from(&note)).expect("views are JSON");
                Event::default().id(note.seq.to_string()).data(json)
            }
            Err(status) => end(&pool.failure(&status)),
        })
    });
    Ok(sent(events, draining))
}

fn sent(
    events: impl futures::Stream<Item = Result<Event, Infallible>> + Send + 'static,
    mut draining: Draining,
) -> axum::response::Response {
    let ended = async move { _ = draining.wait_for(|draining| *draining).await };
    let events = events.take_until(Box::pin(ended));
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

/// `aquifer logs -f --tail LINES`.
pub async fn logs(
    State(draining): State<Draining>,
    Extension(viewer): Of,
    Path(id): Path<String>,
    RawQuery(raw): RawQuery,
) -> Answered {
    let query = Query::read(raw, &["tail", "rank"])?;
    let lines = query.number("tail", MOST_LINES)?.unwrap_or(200) as usize;
    let rank = query.get("rank").map(|text| {
        text.parse::<u32>().map_err(|_| Refusal::bad(format!("rank is {text:?}: expected a number")))
    });
    let (rank, place, id) = (rank.transpose()?, place(&viewer)?, job_of(&id)?);
    let session = viewer.session(false);
    let asked = job::get(id, Patience::Short, &session).await;
    let job = asked.map_err(|failure| Refusal::of(failure, session.pool.heard().refusal))?;
    let pool = session.pool;
    let mut reader = Reader { job: id, rank, attempt: None, positions: BTreeMap::new() };
    // Whether it may be read is told now, and not within the stream.
    let begun = timeout(PATIENCE, begin(&pool, &reader, false)).await;
    let late = |_| Status::unavailable("it does not answer in time");
    let mut chunks = begun.map_err(late).and_then(|it| it).map_err(|status| refusal(&pool, &status))?;
    let (sink, pieces) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let browser = sink.clone();
        let mut told = Told { printer: Printer::new(&job, rank, session.output), sink, left_out: 0 };
        let ended = async {
            let mut tail = Tail { lines, ranks: BTreeMap::new() };
            while let Some(mut chunk) = chunks.message().await? {
                match chunk.unavailable.is_empty() {
                    true if reader.accept(&mut chunk) => tail.keep(&chunk),
                    true => (),
                    false => told.unavailable(&chunk).await,
                }
            }
            for ((attempt, rank), bytes) in tail.rest() {
                told.all(&bytes, attempt, rank).await;
            }
            let mut chunks = begin(&pool, &reader, true).await?;
            while let Some(mut chunk) = chunks.message().await? {
                if chunk.unavailable.is_empty() && reader.accept(&mut chunk) {
                    told.some(&chunk);
                }
            }
            told.rest().await;
            Ok::<_, Status>(())
        };
        let ended = tokio::select! {
            ended = ended => ended,
            () = browser.closed() => return,
        };
        let last = match ended {
            Ok(()) => Event::default().event("end").data("{}"),
            Err(status) => end(&pool.failure(&status)),
        };
        _ = browser.send(last).await; // The browser may have gone.
    });
    let events = ReceiverStream::new(pieces).map(move |event| {
        _ = &place; // Until the stream is over.
        Ok::<_, Infallible>(event)
    });
    Ok(sent(events, draining))
}

/// Asks for logs from where a reader is.
async fn begin(pool: &Pool, reader: &Reader, follow: bool) -> Result<Streaming<v1::LogChunk>, Status> {
    let positions = reader.positions.iter();
    let from = positions.map(|((attempt, rank), offset)| v1::LogPosition {
        attempt: *attempt,
        rank: *rank,
        offset: *offset,
    });
    let from = from.collect();
    let request = v1::LogsRequest { job: reader.job.0, rank: reader.rank, attempt: None, follow, from };
    Ok(pool.client().logs(request).await?.into_inner())
}

/// Lines on their way to a browser.
struct Told {
    printer: Printer,
    sink: mpsc::Sender<Event>,
    /// Lines that it did not take in time.
    left_out: u64,
}

impl Told {
    /// Waits until all lines are taken.
    async fn all(&mut self, bytes: &[u8], attempt: u32, rank: u32) {
        for event in events(&self.printer.bytes(attempt, rank, bytes)) {
            _ = self.sink.send(event).await; // The browser may have gone: then the stream ends.
        }
    }

    /// Does not wait: a worker that prints faster than the browser reads would go on anyway.
    fn some(&mut self, chunk: &v1::LogChunk) {
        for event in events(&self.printer.bytes(chunk.attempt, chunk.rank, &chunk.data)) {
            if 0 < self.left_out && self.sink.try_send(missing(self.left_out)).is_ok() {
                self.left_out = 0;
            }
            self.left_out += u64::from(self.sink.try_send(event).is_err());
        }
    }

    async fn unavailable(&self, chunk: &v1::LogChunk) {
        let why = json!({ "rank": chunk.rank, "why": chunk.unavailable }).to_string();
        _ = self.sink.send(Event::default().event("unavailable").data(why)).await; // The same.
    }

    async fn rest(&mut self) {
        for event in events(&self.printer.rest()) {
            _ = self.sink.send(event).await; // The same.
        }
    }
}

fn missing(lines: u64) -> Event {
    Event::default().event("missing").data(json!({ "lines": lines }).to_string())
}

/// An event for each line.
fn events(lines: &[u8]) -> Vec<Event> {
    let text = String::from_utf8_lossy(lines);
    text.lines().map(|line| Event::default().data(line)).collect()
}
