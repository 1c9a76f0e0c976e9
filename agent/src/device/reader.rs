//! Reads the cards of one vendor through its library. Runs on a thread of its own, since any call may never return.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use aquifer_core::{DeviceClass, Fault, Health, Isolation, Name, Vendor};

use super::api::{CallError, Context, Level, Listed, Opened, Rule, Slices, TOO_MANY, Value};
use super::open;
use super::recurring::Recurring;
use super::roots::{LONGEST_PAUSE, Roots, read_number};
use super::tool::ByTool;
use super::vendor::Maker;
use super::watch::SUSPICION_MS;
use super::{Discovery, Finding, Found, count_text, model_of, topology, visible};

/// Events of a library that are taken at a time, at most.
const MOST_EVENTS: usize = 64;
/// Reasons that are told of one card, at most.
const MOST_REASONS: usize = 4;

/// What outlives a thread whose call hangs.
#[derive(Default)]
pub struct Shared(Mutex<State>);

#[derive(Default)]
struct State {
    opened: Option<Arc<Opened>>,
    /// Cards that could be read: one that is lost later keeps its identity.
    known: BTreeMap<u32, Vec<Found>>,
    /// Cards that are not asked, and why: a call for them has not returned.
    hung: BTreeMap<u32, String>,
    /// The call that is being made, and for which card.
    now: (Option<u32>, &'static str),
    /// Handles, with those of their memory, as far as they are kept.
    handles: BTreeMap<u32, [usize; 2]>,
    /// Cards whose events come.
    registered: BTreeSet<u32>,
    /// What events said of cards, and when.
    alarms: BTreeMap<u32, (Level, String, Instant)>,
    /// Codes that come and go.
    recurring: BTreeMap<u32, Recurring>,
    /// Pairs that were asked about, and whether they are linked.
    pairs: BTreeMap<(u32, u32), bool>,
    /// Version of the driver, if the library says it.
    driver: Option<String>,
    /// Domains of links beyond the node, of cards that have said theirs.
    super_pods: BTreeMap<u32, String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The call that is being made.
    pub fn now(&self) -> (Option<u32>, &'static str) {
        self.lock().now
    }

    /// Version of the driver, where it matters and is known.
    pub fn driver(&self) -> Option<String> {
        self.lock().driver.clone()
    }

    /// The domains of links beyond the node in which its cards are, each once.
    pub fn super_pods(&self) -> BTreeSet<String> {
        self.lock().super_pods.values().cloned().collect()
    }

    /// Leaves out a card.
    pub fn leave_out(&self, card: u32, why: String) {
        self.lock().hung.insert(card, why);
    }

    /// Forgets what events said of a card.
    pub fn forget_alarms(&self, uuid: &Name) {
        let mut state = self.lock();
        let card = state.known.iter().find(|(_, found)| found.iter().any(|it| it.uuid == *uuid));
        if let Some(card) = card.map(|(card, _)| *card) {
            state.alarms.remove(&card);
        }
    }

    /// Asks for a card again.
    pub fn take_in(&self, card: u32) {
        self.lock().hung.remove(&card);
    }
}

/// Reads cards.
pub struct Reader {
    maker: &'static Maker,
    roots: Roots,
    /// The library to use, instead of those of the table.
    library: Option<PathBuf>,
    shared: Arc<Shared>,
    /// Why there is no library, from when on to try again, and how long to wait after that.
    failed: Option<(String, Instant, Duration)>,
    /// What lists cards where there is none.
    tool: Option<ByTool>,
}

impl Reader {
    pub fn new(maker: &'static Maker, roots: Roots, library: Option<PathBuf>, shared: Arc<Shared>) -> Reader {
        Reader { maker, roots, library, shared, failed: None, tool: ByTool::new(maker) }
    }

    /// Looks at all cards.
    pub fn look(&mut self) -> Discovery {
        let opened = match self.opened() {
            Ok(opened) => opened,
            Err(why) => return self.by_tool(why),
        };
        self.shared.lock().now = (None, "");
        let cards = match open::addresses(&opened) {
            Ok(cards) => cards,
            Err(error) => return self.by_tool(format!("{} cannot count devices: {error}", self.maker.name)),
        };
        let mut found = Discovery::default();
        let mut handles = BTreeMap::new();
        for (index, address) in (0u32..).zip(cards) {
            self.shared.lock().now = (Some(index), "");
            let mut notes = Vec::new();
            let devices = match self.read_card(&opened, index, address, &mut notes) {
                Ok((devices, handle)) => {
                    handles.insert(index, handle);
                    devices
                }
                Err(why) => self.at_fault(index, why),
            };
            found.devices.extend(devices);
            let note = |note| self.finding(format!("device {index}: {note}"));
            found.findings.extend(notes.into_iter().map(note));
        }
        self.shared.lock().now = (None, "");
        self.mark_islands(&opened, &handles, &mut found.devices);
        self.take_events(&opened, &handles);
        self.count_plugged(&mut found, self.maker.name);
        found
    }

    /// What the vendor's tool lists, or else what is plugged in.
    fn by_tool(&mut self, why: String) -> Discovery {
        let listed = self.tool.as_mut().and_then(|tool| tool.look(&self.roots, &why));
        match listed {
            Some(Ok(mut found)) => {
                self.count_plugged(&mut found, self.maker.tool.as_ref().map_or("", |tool| tool.name));
                found
            }
            Some(Err(also)) => without_library(self.maker.vendor, &self.roots, format!("{why}; {also}")),
            None => without_library(self.maker.vendor, &self.roots, why),
        }
    }

    /// The library, initialised by this or an earlier thread. After a failure it is not tried for a while.
    fn opened(&mut self) -> Result<Arc<Opened>, String> {
        if let Some(opened) = &self.shared.lock().opened {
            return Ok(opened.clone());
        }
        let pause = match &self.failed {
            Some((why, again, _)) if Instant::now() < *again => return Err(why.clone()),
            Some((_, _, pause)) => (*pause * 2).min(LONGEST_PAUSE),
            None => self.roots.pause,
        };
        match self.open() {
            Ok(opened) => {
                self.failed = None;
                Ok(self.shared.lock().opened.insert(Arc::new(opened)).clone())
            }
            Err(why) => {
                let why = match why.ends_with("not found") {
                    true => why,
                    false => format!("{} cannot be used: {why}", self.maker.name),
                };
                self.failed = Some((why.clone(), Instant::now() + pause, pause));
                Err(why)
            }
        }
    }

    fn open(&self) -> Result<Opened, String> {
        let shared = Arc::downgrade(&self.shared);
        let before = move |symbol| _ = shared.upgrade().map(|shared| shared.lock().now.1 = symbol);
        let mut opened = open::open(self.maker, self.library.as_deref(), &self.roots.libraries, before)?;
        let driver = opened.first(opened.api.driver, &Context::default());
        self.shared.lock().driver = driver.ok().map(Value::text);
        if let Some(events) = opened.api.events {
            let set = opened.ask(&events.create, &Context::default());
            opened.events = set.map_or(0, |set| set.number() as usize);
        }
        Ok(opened)
    }

    /// A card or its slices, and its handle. What is merely nice to know may be missing.
    fn read_card(
        &self,
        opened: &Opened,
        index: u32,
        address: [usize; 2],
        notes: &mut Vec<String>,
    ) -> Result<(Vec<Found>, [usize; 2]), String> {
        let hung = self.shared.lock().hung.get(&index).cloned();
        hung.map_or(Ok(()), Err)?;
        let fault = |error: CallError| fault_of(opened, &error);
        let mut about = Context { index: index as usize, card: address, ..Context::default() };
        let kept = self.shared.lock().handles.get(&index).copied();
        if let Some([card, memory]) = kept {
            (about.card[0], about.memory) = (card, memory);
        } else {
            if !opened.api.handle.is_empty() {
                about.card[0] = opened.first(opened.api.handle, &about).map_err(fault)?.number() as usize;
            }
            if !opened.api.memory_part.is_empty() {
                about.memory =
                    opened.first(opened.api.memory_part, &about).map_or(0, |part| part.number() as usize);
            }
            if opened.api.keeps_handles {
                self.shared.lock().handles.insert(index, [about.card[0], about.memory]);
            }
        }
        if let Some(events) = opened.api.events.filter(|_| opened.events != 0)
            && self.shared.lock().registered.insert(index)
        {
            _ = opened.ask(&events.register, &about); // Older ones have none.
        }
        // Cards may still be registering with their fabric, but do not change it.
        if let Some(super_pod) = opened.api.super_pod
            && !self.shared.lock().super_pods.contains_key(&index)
            && let Some(name) = super_pod(opened, &about)
        {
            self.shared.lock().super_pods.insert(index, name);
        }
        let on_demand = self.roots.parts_on_demand.contains(&self.maker.vendor);
        let slices = opened.api.slices.filter(|slices| (slices.is_divided)(opened, &about));
        let device = |notes: &mut Vec<String>| self.read_device(opened, &about, notes).map_err(fault);
        let devices = match slices {
            Some(Slices { listed: Some(listed), .. }) if !on_demand => {
                self.read_slices(opened, &listed, &about, notes)?
            }
            Some(slices) => vec![Found { parts: Some(slices.level), ..device(notes)? }],
            None => vec![device(notes)?],
        };
        let worst = self.health(opened, &about, notes).map_err(fault)?;
        self.shared.lock().known.insert(index, devices.clone());
        let marked = devices.into_iter().map(|device| Found { fault: worst.clone(), ..device });
        Ok((marked.collect(), about.card))
    }

    fn read_slices(
        &self,
        opened: &Opened,
        slices: &Listed,
        card: &Context,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Found>, String> {
        let whole = self.read_device(opened, card, notes).map_err(|error| fault_of(opened, &error))?;
        let most = opened.ask(&slices.most, card).map_or(0, Value::number);
        let mut found = Vec::new();
        for number in 0..most as usize {
            // The most there could be is told: that there is no such slice is no error.
            let about = Context { index: number, ..*card };
            let Ok(handle) = opened.ask(&slices.handle, &about) else { continue };
            let about = Context { index: card.index, card: [handle.number() as usize, 0], ..*card };
            match self.read_device(opened, &about, notes) {
                Ok(slice) => found.push(Found {
                    place: format!("{}/{number:03}", whole.place),
                    physical: whole.physical,
                    nodes: [&whole.nodes[..], &(slices.nodes)(opened, &about, whole.physical, &self.roots)]
                        .concat(),
                    ..slice
                }),
                Err(error) => notes.push(format!("slice {number}: {error}")),
            }
        }
        if found.is_empty() {
            notes.push("divided, but there are no slices".to_string());
        }
        Ok(found)
    }

    fn read_device(
        &self,
        opened: &Opened,
        about: &Context,
        notes: &mut Vec<String>,
    ) -> Result<Found, CallError> {
        let (api, vendor, index) = (opened.api, self.maker.vendor, about.index as u32);
        // An answer, or none; only that the card is gone ends the reading.
        let ask = |probes| match opened.first(probes, about) {
            Err(error) if opened.is_lost(&error) => Err(error),
            answer => Ok(answer),
        };
        let place = ask(api.place)?.map(Value::text).map(|place| place.to_lowercase());
        let uuid = match (ask(api.uuid)?, &place) {
            (Ok(uuid), _) => format!("{}{}", api.uuid_prefix, uuid.text()),
            (Err(_), Ok(place)) => format!("{vendor}-{place}"),
            (Err(error), Err(_)) => return Err(error),
        };
        let place = place.unwrap_or_else(|_| format!("index-{index:05}"));
        let model = match ask(api.model)? {
            Ok(name) => model_of(vendor, &name.text()),
            Err(error @ CallError::Status { .. }) => return Err(error),
            // Some libraries know no names: the number of the model is one.
            Err(_) => match read_number(self.roots.pci(&place).join("device")) {
                Some(number) => format!("{vendor}-{number:04x}"),
                None => "unknown".to_string(),
            },
        };
        let memory_bytes = ask(api.memory)?.map_or_else(
            |error| {
                notes.push(format!("memory unknown: {error}"));
                0
            },
            Value::number,
        );
        // A worker that is told a wrong number gets another one's card: without an answer there is no card.
        let logical = match api.logical {
            // The second generation of DCMI addresses cards by what is the logical number.
            [] if api.list.is_some() => about.card[0] as u32,
            [] => index,
            probes => opened.first(probes, about)?.number() as u32,
        };
        let of_logical = Context { index: logical as usize, ..*about };
        let physical = match opened.first(api.physical, &of_logical) {
            Err(error) if api.needs_physical => return Err(error),
            answer => answer.map_or(logical, |number| number.number() as u32),
        };
        let is_used = match ask(api.users)? {
            Ok(count) => count.number() != 0,
            Err(error) => matches!(error, CallError::Status { status: TOO_MANY, .. }),
        };
        Ok(Found {
            class: Arc::new(DeviceClass { vendor, model: model.as_str().into(), memory_bytes }),
            uuid: uuid.as_str().into(),
            fault: None,
            island: None,
            isolation: Isolation::Advisory,
            parts: None,
            speed_milli: None,
            memory_gbs: None,
            is_used,
            one_of: 1,
            nodes: visible::nodes(vendor, physical, &place, &self.roots.sysfs),
            place,
            logical,
            physical,
        })
    }

    /// Why a card must not be used, if so; what people should look at is noted.
    fn health(
        &self,
        opened: &Opened,
        about: &Context,
        notes: &mut Vec<String>,
    ) -> Result<Option<Fault>, CallError> {
        let mut said: Vec<(Level, String)> = Vec::new();
        for check in opened.api.checks {
            let (value, bytes) = match opened.ask_raw(&check.probe, about) {
                Ok((value, bytes)) => (value.number(), bytes),
                Err(error) if opened.is_lost(&error) => return Err(error),
                // What a card or a library cannot tell is no fault.
                Err(_) => continue,
            };
            let mut meant = meanings(&check.rule, value, &bytes, &said);
            if let Rule::Each { often: Some(often), .. } = check.rule {
                let mut state = self.shared.lock();
                let codes = state.recurring.entry(about.index as u32).or_default();
                meant.extend(codes.look(Instant::now(), &numbers(&check.rule, value, &bytes), often));
            }
            for one in meant {
                if !said.contains(&one) {
                    said.push(one);
                }
            }
        }
        let is_suspicious = |said: &(Level, String)| Level::Suspect <= said.0;
        let mut kinds = u32::from(said.iter().any(is_suspicious));
        if let Some((level, what)) = self.alarm(about.index as u32) {
            kinds += u32::from(Level::Suspect <= level);
            said.push((level, what));
        }
        let worst = said.iter().map(|(level, _)| *level).max();
        let of_worst = said.iter().filter(|(level, _)| Some(*level) == worst).map(|(_, what)| &what[..]);
        let of_worst: Vec<&str> = of_worst.collect();
        let mut why = of_worst[..of_worst.len().min(MOST_REASONS)].join("; ");
        if MOST_REASONS < of_worst.len() {
            why += &format!("; {} more", of_worst.len() - MOST_REASONS);
        }
        let fault = worst
            .filter(|level| Level::Suspect <= *level)
            .map(|level| Fault { health: health_of(level, kinds), ..Fault::faulty(why) });
        notes.extend(said.iter().filter(|(level, _)| *level <= Level::Suspect).map(|(_, what)| what.clone()));
        Ok(fault)
    }

    /// What events said of a card; a suspicion is forgotten after a while.
    fn alarm(&self, card: u32) -> Option<(Level, String)> {
        let mut state = self.shared.lock();
        let is_over = |(level, _, at): &(Level, String, Instant)| {
            *level <= Level::Suspect && Duration::from_millis(SUSPICION_MS) <= at.elapsed()
        };
        if state.alarms.get(&card).is_some_and(is_over) {
            state.alarms.remove(&card);
        }
        state.alarms.get(&card).map(|(level, what, _)| (*level, what.clone()))
    }

    /// Takes what the driver has told since. What it means for a card shows at the next look.
    fn take_events(&self, opened: &Opened, cards: &BTreeMap<u32, [usize; 2]>) {
        let Some(events) = opened.api.events.filter(|_| opened.events != 0) else { return };
        for _ in 0..MOST_EVENTS {
            let Ok((number, bytes)) = opened.ask_raw(&events.next, &Context::default()) else { return };
            let handle = bytes.get(events.card_at..events.card_at + 8).and_then(|word| word.try_into().ok());
            let handle = handle.map_or(0, usize::from_le_bytes);
            let card = cards.iter().find(|(_, card)| card[0] == handle);
            let (Some((index, card)), Some((level, what))) = (card, (events.means)(number.number())) else {
                continue;
            };
            let about = Context { card: *card, index: *index as usize, ..Context::default() };
            let settled = opened.ask(&events.settled_by, &about).is_ok();
            let level = if settled { Level::Note } else { level };
            self.shared.lock().alarms.insert(*index, (level, what, Instant::now()));
        }
    }

    /// Asks about every pair once.
    fn mark_islands(&self, opened: &Opened, cards: &BTreeMap<u32, [usize; 2]>, devices: &mut [Found]) {
        let Some(link) = opened.api.link else { return };
        let numbers: Vec<u32> = cards.keys().copied().collect();
        for (at, one) in numbers.iter().enumerate() {
            for other in &numbers[at + 1..] {
                if self.shared.lock().pairs.contains_key(&(*one, *other)) {
                    continue;
                }
                let about =
                    Context { index: *one as usize, card: cards[one], other: cards[other], memory: 0 };
                let linked = opened.ask(&link.probe, &about).is_ok_and(|way| (link.is_linked)(way.number()));
                self.shared.lock().pairs.insert((*one, *other), linked);
            }
        }
        let state = self.shared.lock();
        let linked = state.pairs.iter().filter(|(_, linked)| **linked).map(|(pair, _)| *pair);
        // The slices of a card are not linked, neither with each other nor with other cards.
        let is_whole = |own: &&Vec<Found>| own.len() == 1 && !own[0].place.contains('/');
        let whole: BTreeMap<u32, &Name> = state
            .known
            .iter()
            .filter(|(_, own)| is_whole(own))
            .map(|(index, own)| (*index, &own[0].uuid))
            .collect();
        let all: Vec<u32> = whole.keys().copied().collect();
        for (index, island) in topology::islands(&all, linked) {
            let own = devices.iter_mut().filter(|device| device.uuid == *whole[&index]);
            own.for_each(|device| device.island = Some(island));
        }
    }

    /// Compares what was found by somebody with what is plugged in.
    fn count_plugged(&self, found: &mut Discovery, by: &str) {
        let has =
            |place: &String| found.devices.iter().any(|device| device.place.starts_with(place.as_str()));
        let places_are_known = found
            .devices
            .iter()
            .all(|device| topology::is_place(&device.place[..device.place.len().min(12)]));
        let unlisted: Vec<String> =
            self.roots.plugged(self.maker.vendor).into_iter().filter(|place| !has(place)).collect();
        if places_are_known && !unlisted.is_empty() {
            let what = format!(
                "{} on PCI that {by} does not list: {}",
                count_text(unlisted.len(), "more device"),
                unlisted.join(" ")
            );
            found.findings.push(self.finding(what));
        }
    }

    /// The devices of a card as they were known, or one of which nothing is.
    fn at_fault(&self, index: u32, why: String) -> Vec<Found> {
        let known = self.shared.lock().known.get(&index).cloned();
        let known = known.unwrap_or_else(|| {
            let place = format!("index-{index:05}");
            vec![Found {
                logical: index,
                physical: index,
                ..unread(self.maker.vendor, &index.to_string(), place)
            }]
        });
        known.into_iter().map(|device| Found { fault: Some(Fault::faulty(why.as_str())), ..device }).collect()
    }

    fn finding(&self, what: String) -> Finding {
        Finding { vendor: self.maker.vendor, what }
    }
}

/// What there is without a library: every card that is plugged in, with the reason.
pub fn without_library(vendor: Vendor, roots: &Roots, why: String) -> Discovery {
    let places = roots.plugged(vendor);
    let what = match places.len() {
        0 => why.clone(),
        count => format!("{} on PCI, but {why}", count_text(count, "device")),
    };
    let fault = Fault::faulty(why.as_str());
    let device =
        |place: String| Found { fault: Some(fault.clone()), ..unread(vendor, &place.clone(), place) };
    Discovery { devices: places.into_iter().map(device).collect(), findings: vec![Finding { vendor, what }] }
}

/// A card of which nothing could be read.
pub(super) fn unread(vendor: Vendor, name: &str, place: String) -> Found {
    let class = DeviceClass { vendor, model: "unknown".into(), memory_bytes: 0 };
    Found {
        class: Arc::new(class),
        uuid: format!("{vendor}-{name}").into(),
        fault: None,
        island: None,
        isolation: Isolation::Advisory,
        parts: None,
        speed_milli: None,
        memory_gbs: None,
        is_used: false,
        one_of: 1,
        place,
        logical: u32::MAX,
        physical: u32::MAX,
        nodes: Vec::new(),
    }
}

/// What an answer means.
///
/// * `bytes`: all that the call wrote. `before`: what other checks of the card have said.
fn meanings(rule: &Rule, value: u64, bytes: &[u8], before: &[(Level, String)]) -> Vec<(Level, String)> {
    let of = |(_, level, what): &(u64, Level, &str)| (*level, what.to_string());
    let told = |level: Level| before.iter().any(|(before, _)| level.min(Level::Drain) <= *before);
    match *rule {
        Rule::Values(values) => values.iter().filter(|(bad, ..)| *bad == value).map(of).collect(),
        Rule::Bits(bits) => bits.iter().filter(|(bit, ..)| value & bit != 0).map(of).collect(),
        Rule::Else(values) => {
            values.iter().filter(|(bad, level, _)| *bad == value && !told(*level)).map(of).collect()
        }
        Rule::Not0(level, what) if value != 0 => vec![(level, what.to_string())],
        Rule::Not0(..) => Vec::new(),
        Rule::Each { means, .. } => numbers(rule, value, bytes).into_iter().filter_map(means).collect(),
    }
}

/// The numbers of a list.
fn numbers(rule: &Rule, value: u64, bytes: &[u8]) -> Vec<u64> {
    let Rule::Each { at, stride, most, .. } = *rule else { return Vec::new() };
    let number = |item: usize| {
        let word = bytes.get(at + stride * item..)?.get(..4)?.try_into().ok()?;
        Some(u32::from_le_bytes(word).into())
    };
    (0..(value as usize).min(most)).filter_map(number).collect()
}

/// How bad a level is, where so many kinds of signals say something: two that are suspicious are one that is bad.
fn health_of(level: Level, kinds: u32) -> Health {
    match level {
        Level::Note | Level::Suspect if 1 < kinds => Health::Quarantined,
        Level::Note | Level::Suspect => Health::Suspect,
        Level::Drain => Health::Draining,
        Level::Reset => Health::ResetWanted,
        Level::Reboot => Health::RebootWanted,
        Level::Lost => Health::Faulty,
    }
}

fn fault_of(opened: &Opened, error: &CallError) -> String {
    match opened.is_lost(error) {
        true => "fell off the bus".to_string(),
        false => format!("cannot be read: {error}"),
    }
}
