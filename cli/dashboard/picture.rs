//! All devices of a pool in few bytes: what each does, and for whom.
//!
//! Ten thousand nodes of eight devices are some megabytes of `aquifer nodes --json`, and a page looks every few seconds. So
//! a letter stands for a device here, and what was seen is kept for as long as looking is worth.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aquifer_proto::v1;
use serde::Serialize;
use tokio::sync::Mutex;

use super::answer::{Found, Refusal, ask};
use super::door::Viewer;
use crate::Session;
use crate::output::Failure;
use crate::overview::{self, Does, Overview};
use crate::{jobs, view};

/// A picture is kept for so long at least,
const KEPT: Duration = Duration::from_secs(1);
/// and for so many times what it took to make.
const TIMES: u32 = 10;
/// Jobs that hold devices, of which it is asked where they are; of the others what their nodes tell.
const PAGES: usize = 4;
const PAGE: u32 = 500;

/// A pool as it was.
pub struct Picture {
    /// In numbers.
    pub overview: Overview,
    /// Its devices, as JSON.
    pub devices: String,
}

/// The last picture.
#[derive(Default)]
pub struct Kept(Mutex<Option<Last>>);

struct Last {
    picture: Arc<Picture>,
    age_ms: Option<u64>,
    made: Instant,
    took: Duration,
}

/// What the page draws.
#[derive(Default, Serialize)]
struct Devices {
    /// Vendor and model.
    classes: Vec<(String, String)>,
    nodes: Vec<Row>,
    /// Jobs that hold devices, by number: name, user, queue. Of large pools not all.
    jobs: BTreeMap<u64, (String, String, String)>,
}

/// A node.
#[derive(Serialize)]
struct Row {
    name: String,
    /// up, cordoned, draining, lost.
    state: String,
    /// Places among the classes: one for all devices, or one for each.
    classes: Vec<usize>,
    /// A letter for each device: u(sed), i(dle), x (unwell), c(ordoned), l(ost).
    does: String,
    /// Numbers of jobs that hold them; 0: nobody, or nobody knows. Empty: no job holds any.
    jobs: Vec<u64>,
    /// Why devices are unwell, by index.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    why: BTreeMap<u32, String>,
}

/// The pool now, or a moment ago.
pub async fn of(viewer: &Viewer) -> Result<Found<Arc<Picture>>, Refusal> {
    let mut kept = viewer.kept.0.lock().await; // Who comes meanwhile sees the same.
    if let Some(last) = kept.as_ref().filter(|last| last.made.elapsed() < KEPT.max(last.took * TIMES)) {
        return Ok(Found { value: last.picture.clone(), age_ms: last.age_ms });
    }
    let begun = Instant::now();
    let found = ask(viewer, |session| async move { make(&session).await.map(Arc::new) }).await?;
    let (made, took) = (Instant::now(), begun.elapsed());
    *kept = Some(Last { picture: found.value.clone(), age_ms: found.age_ms, made, took });
    Ok(found)
}

async fn make(session: &Session) -> Result<Picture, Failure> {
    let mut devices = Devices::default();
    let holders = holders(&mut devices, session).await?;
    let mut classes: HashMap<(String, String), usize> = HashMap::new();
    let see = |node: &view::Node| {
        let class = |device: &view::Device| {
            let next = classes.len();
            *classes.entry((device.vendor.clone(), device.model.clone())).or_insert(next)
        };
        let mut of_node: Vec<usize> = node.devices.iter().map(class).collect();
        if of_node.iter().all(|class| *class == of_node[0]) {
            of_node.truncate(1);
        }
        let does = |device: &view::Device| match Does::of(node, device) {
            Does::Used => 'u',
            Does::Idle => 'i',
            Does::Unwell => 'x',
            Does::Cordoned => 'c',
            Does::Lost => 'l',
        };
        let known = holders.get(&node.name);
        let mut workers = node.workers.iter().filter_map(|worker| number(worker));
        // Whoever is alone on a node has what is held of it.
        let first = workers.next();
        let alone = first.filter(|first| workers.all(|other| other == *first));
        let holder = |device: &view::Device| match device.held {
            true => known.and_then(|known| known.get(&device.index).copied()).or(alone).unwrap_or(0),
            false => 0,
        };
        let held = node.devices.iter().any(|device| device.held);
        let why = |device: &view::Device| {
            let fault = device.fault.as_ref()?;
            Some((device.index, format!("{}: {fault}", device.health)))
        };
        devices.nodes.push(Row {
            name: node.name.clone(),
            state: node.state.clone(),
            classes: of_node,
            does: node.devices.iter().map(does).collect(),
            why: node.devices.iter().filter_map(why).collect(),
            jobs: if held { node.devices.iter().map(holder).collect() } else { Vec::new() },
        });
    };
    let overview = overview::ask(session, see).await?;
    let mut named: Vec<_> = classes.into_iter().collect();
    named.sort_by_key(|(_, at)| *at);
    devices.classes = named.into_iter().map(|(class, _)| class).collect();
    let devices = serde_json::to_string(&devices).expect("views are JSON");
    Ok(Picture { overview, devices })
}

/// Which job holds which devices, by node.
async fn holders(
    devices: &mut Devices,
    session: &Session,
) -> Result<HashMap<String, HashMap<u32, u64>>, Failure> {
    use v1::JobState::{Running, Starting, Stopping};
    let states = [Starting, Running, Stopping].map(i32::from).to_vec();
    let mut request = v1::ListRequest { states, page_size: PAGE, ..Default::default() };
    let mut holders: HashMap<String, HashMap<u32, u64>> = HashMap::new();
    for _ in 0..PAGES {
        let page = jobs::page(&request, session).await?;
        for job in page.jobs {
            let Some(number) = number(&job.id) else { continue };
            for worker in &job.workers {
                let of_node = holders.entry(worker.node.clone()).or_default();
                of_node.extend(worker.devices.iter().map(|device| (*device, number)));
            }
            devices.jobs.insert(number, (job.name, job.user, job.queue));
        }
        request.page_token = page.next;
        if request.page_token.is_empty() {
            break;
        }
    }
    Ok(holders)
}

/// The number of a job or of one of its workers: 7 of `job-7.1/0`.
fn number(id: &str) -> Option<u64> {
    let digits = id.strip_prefix("job-")?;
    digits.split('.').next()?.parse().ok()
}
