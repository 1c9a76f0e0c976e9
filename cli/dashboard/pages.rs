//! What can be read: the page's files, and JSON as the commands print it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aquifer_proto::core::JobId;
use aquifer_proto::v1;
use axum::Json;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::answer::{Answered, Refusal, ask, dated, written};
use super::door::{Door, Viewer};
use super::picture;
use crate::client::{Client, Patience};
use crate::jobs::Page;
use crate::output::Failure;
use crate::units::parse_duration;
use crate::view::{self, STATES};
use crate::{Session, explain, job, jobs, nodes, queues, reservations, services, time_now, usage};

/// What to ask for the next page with; absent on the last one.
const NEXT: HeaderName = HeaderName::from_static("aquifer-next-page");
/// Jobs by state over all pages.
const JOBS: HeaderName = HeaderName::from_static("aquifer-jobs");
/// Entries of a page, at most, and if nothing is said.
const MOST: u32 = 1000;
const USUAL: u32 = 100;
/// For so long a page is filled with jobs that are looked for.
const LOOKED_FOR: Duration = Duration::from_secs(2);

type Of = Extension<Arc<Viewer>>;

/// The page.
pub fn index() -> Response {
    text("text/html; charset=utf-8", include_str!("ui/index.html"))
}

fn text(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// A file of the page.
pub async fn asset(Path(file): Path<String>) -> Answered {
    const SCRIPT: &str = "text/javascript; charset=utf-8";
    let (kind, body) = match &file[..] {
        "style.css" => ("text/css; charset=utf-8", include_str!("ui/style.css")),
        "icon.svg" => ("image/svg+xml", include_str!("ui/icon.svg")),
        "app.js" => (SCRIPT, include_str!("ui/app.js")),
        "dom.js" => (SCRIPT, include_str!("ui/dom.js")),
        "net.js" => (SCRIPT, include_str!("ui/net.js")),
        "overview.js" => (SCRIPT, include_str!("ui/overview.js")),
        "nodes.js" => (SCRIPT, include_str!("ui/nodes.js")),
        "grid.js" => (SCRIPT, include_str!("ui/grid.js")),
        "jobs.js" => (SCRIPT, include_str!("ui/jobs.js")),
        "job.js" => (SCRIPT, include_str!("ui/job.js")),
        "pool.js" => (SCRIPT, include_str!("ui/pool.js")),
        "notes.js" => (SCRIPT, include_str!("ui/notes.js")),
        _ => return Err(Refusal::not_found("the page has no such file")),
    };
    Ok(text(kind, body))
}

/// What follows the path.
pub struct Query(HashMap<String, String>);

impl Query {
    /// Reads it; all of its names must be `known`.
    pub fn read(raw: Option<String>, known: &[&str]) -> Result<Query, Refusal> {
        let pairs = form_urlencoded::parse(raw.as_deref().unwrap_or_default().as_bytes()).into_owned();
        let pairs: HashMap<String, String> = pairs.collect();
        match pairs.keys().find(|name| !known.contains(&&name[..])) {
            None => Ok(Query(pairs)),
            Some(name) => Err(Refusal::bad(format!("there is no {name:?}: expected {}", known.join(", ")))),
        }
    }

    /// Empty where it is not given.
    fn take(&mut self, name: &str) -> String {
        self.0.remove(name).unwrap_or_default()
    }

    /// A number, if it is given.
    pub fn number(&self, name: &str, most: u32) -> Result<Option<u32>, Refusal> {
        let Some(text) = self.0.get(name) else { return Ok(None) };
        let number = text.parse::<u32>().ok().filter(|number| (1..=most).contains(number));
        let wrong = || Refusal::bad(format!("{name} is {text:?}: expected 1 to {most}"));
        number.map(Some).ok_or_else(wrong)
    }

    /// A word that is given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// The job of a path.
pub fn job_of(text: &str) -> Result<JobId, Refusal> {
    text.parse().map_err(|why| Refusal::bad(format!("job is {text:?}: {why}")))
}

/// What the page must know of itself.
pub async fn me(State(door): State<Arc<Door>>, Extension(viewer): Of) -> Response {
    let server = viewer.session(false).pool.server().to_string();
    let version = env!("CARGO_PKG_VERSION");
    Json(json!({ "sign_in": door.way(), "server": server, "version": version, "now_ms": time_now() }))
        .into_response()
}

/// `aquifer overview`.
pub async fn overview(Extension(viewer): Of) -> Answered {
    let found = picture::of(&viewer).await?;
    Ok(dated(Json(&found.value.overview), found.age_ms))
}

/// All devices of the pool.
pub async fn devices(Extension(viewer): Of) -> Answered {
    let found = picture::of(&viewer).await?;
    Ok(dated(written(found.value.devices.clone()), found.age_ms))
}

/// `aquifer nodes`, in pages.
pub async fn nodes(Extension(viewer): Of, RawQuery(raw): RawQuery) -> Answered {
    let mut query = Query::read(raw, &["limit", "page"])?;
    let page_size = query.number("limit", MOST)?.unwrap_or(MOST);
    let request = v1::ListNodesRequest { page_size, page_token: query.take("page"), ..Default::default() };
    let found = ask(&viewer, |session| {
        let request = request.clone();
        async move {
            let list = async |mut client: Client| client.list_nodes(request.clone()).await;
            session.pool.call(Patience::Short, list).await
        }
    });
    let found = found.await?;
    let nodes: Vec<view::Node> = found.value.nodes.iter().map(view::Node::from).collect();
    Ok(page(dated(Json(nodes), found.age_ms), &found.value.next_page_token))
}

fn page(mut answer: Response, next: &str) -> Response {
    if let (false, Ok(next)) = (next.is_empty(), HeaderValue::from_str(next)) {
        answer.headers_mut().insert(NEXT, next);
    }
    answer
}

/// `aquifer node`.
pub async fn node(Extension(viewer): Of, Path(name): Path<String>) -> Answered {
    let found = ask(&viewer, |session| {
        let name = name.clone();
        async move { nodes::one(&name, Patience::Short, &session).await }
    });
    Ok(found.await?.answer())
}

/// `aquifer explain NODE --device INDEX`.
pub async fn device(Extension(viewer): Of, Path((name, index)): Path<(String, String)>) -> Answered {
    let wrong = |_| Refusal::bad(format!("device is {index:?}: expected an index, 0 to 65535"));
    let index: u16 = index.parse().map_err(wrong)?;
    let found = ask(&viewer, |session| {
        let name = name.clone();
        async move { explain::of_device(&name, index, &session).await }
    });
    Ok(found.await?.answer())
}

/// `aquifer jobs --all`, in pages.
pub async fn list(Extension(viewer): Of, RawQuery(raw): RawQuery) -> Answered {
    let mut query = Query::read(raw, &["state", "queue", "user", "name", "limit", "page"])?;
    let mut states = Vec::new();
    for name in query.take("state").split(',').filter(|name| !name.is_empty()) {
        let state = STATES.iter().find(|(_, known)| *known == name);
        let known = STATES.map(|(_, name)| name).join(", ");
        let (state, _) = state.ok_or_else(|| Refusal::bad(format!("state is {name:?}: expected {known}")))?;
        states.push(i32::from(*state));
    }
    let request = v1::ListRequest {
        states,
        queue: query.take("queue"),
        user: query.take("user"),
        name: query.take("name"),
        page_size: query.number("limit", MOST)?.unwrap_or(USUAL),
        page_token: query.take("page"),
    };
    let found = ask(&viewer, |session| {
        let request = request.clone();
        async move { some_jobs(request, &session).await }
    });
    let found = found.await?;
    let counts = found.value.counts.iter().map(|(state, jobs)| format!("{state}={jobs}"));
    let counts = counts.collect::<Vec<_>>().join(" ");
    let mut answer = page(dated(Json(found.value.jobs), found.age_ms), &found.value.next);
    answer.headers_mut().insert(JOBS, HeaderValue::try_from(counts).expect("words and digits"));
    Ok(answer)
}

/// Jobs of as many pages as it takes to fill one: those with few that are looked for may have none.
async fn some_jobs(mut request: v1::ListRequest, session: &Session) -> Result<Page, Failure> {
    let (begun, size) = (Instant::now(), request.page_size);
    let mut found = jobs::page(&request, session).await?;
    while !found.next.is_empty() && (found.jobs.len() as u32) < size && begun.elapsed() < LOOKED_FOR {
        request.page_size = size - found.jobs.len() as u32;
        request.page_token = found.next;
        let more = jobs::page(&request, session).await?;
        found.jobs.extend(more.jobs);
        found.next = more.next;
    }
    Ok(found)
}

/// `aquifer job`.
pub async fn job(Extension(viewer): Of, Path(job): Path<String>) -> Answered {
    let job = job_of(&job)?;
    Ok(ask(&viewer, |session| async move { job::one(job, &session).await }).await?.answer())
}

/// `aquifer explain`.
pub async fn explain(Extension(viewer): Of, Path(job): Path<String>) -> Answered {
    let job = job_of(&job)?;
    Ok(ask(&viewer, |session| async move { explain::of_job(job, &session).await }).await?.answer())
}

/// `aquifer queues`.
pub async fn queues(Extension(viewer): Of) -> Answered {
    Ok(ask(&viewer, |session| async move { Ok(queues::list(&session).await?.0) }).await?.answer())
}

/// `aquifer usage`.
pub async fn usage(Extension(viewer): Of, RawQuery(raw): RawQuery) -> Answered {
    let query = Query::read(raw, &["since"])?;
    let since = query.get("since").unwrap_or("7d");
    let wrong = |why| Refusal::bad(format!("since is {since:?}: {why}"));
    let since_ms = match parse_duration(since).map_err(wrong)? {
        0 => 0,
        ms => time_now().saturating_sub(ms),
    };
    Ok(ask(&viewer, |session| async move { usage::ask(since_ms, &session).await }).await?.answer())
}

/// `aquifer services`.
pub async fn services(Extension(viewer): Of) -> Answered {
    Ok(ask(&viewer, |session| async move { services::ask(&session).await }).await?.answer())
}

/// `aquifer reservations`.
pub async fn reservations(Extension(viewer): Of) -> Answered {
    Ok(ask(&viewer, |session| async move { reservations::ask(&session).await }).await?.answer())
}
