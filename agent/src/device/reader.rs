//! Reads the cards of one vendor through its library, which any call may crash or never come back from: then the process that has it
//! is another one, the card of the call is left out for a while, and the others are read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use aquifer_core::{DeviceClass, Fault, Isolation, Name};

use super::api::{CallError, Context, Level, Listed, Opened, Rule, Slices, Value};
use super::library::LoadError;
use super::meaning::{health_of, meanings, numbers};
use super::open;
use super::recurring::Recurring;
use super::roots::{LONGEST_PAUSE, Roots, read_number};
use super::tool::ByTool;
use super::unread::{unread, without_library};
use super::vendor::Maker;
use super::watch::SUSPICION_MS;
use super::{Discovery, Finding, Found, count_text, model_of, topology, visible};

/// Events of a library that are taken at a time, at most.
const MOST_EVENTS: usize = 64;
/// Reasons that are told of one card, at most.
const MOST_REASONS: usize = 4;
/// Cards that may be left out before the library as a whole is given up for a while.
const MOST_LEFT_OUT: usize = 4;

/// Reads cards.
pub struct Reader {
    maker: &'static Maker,
    roots: Roots,
    /// The library to use, instead of those of the table.
    library: Option<PathBuf>,
    opened: Option<Arc<Opened>>,
    /// A library that is being started.
    opening: Option<Receiver<Result<Opened, LoadError>>>,
    /// Why there is no library.
    failed: Option<Trouble>,
    /// Cards that are not asked.
    left_out: BTreeMap<u32, Trouble>,
    /// Cards that could be read: one that is lost later keeps its identity.
    known: BTreeMap<u32, Vec<Found>>,
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
    /// What lists cards where there is no library.
    tool: Option<ByTool>,
}

/// Why something is not asked, from when on it is again, and how long that is if it comes again.
struct Trouble {
    why: String,
    again: Instant,
    pause: Duration,
}

impl Trouble {
    /// Twice as long as the last time.
    fn after(last: Option<&Trouble>, why: String, roots: &Roots) -> Trouble {
        let pause = last.map_or(roots.pause, |last| (last.pause * 2).min(LONGEST_PAUSE));
        Trouble { why, again: Instant::now() + pause, pause }
    }

    fn is_over(&self) -> bool {
        self.again <= Instant::now()
    }
}

/// A look that the library's process did not survive.
struct Broken {
    /// Of which it was asked.
    card: Option<u32>,
    why: String,
}

impl Reader {
    pub fn new(maker: &'static Maker, roots: Roots, library: Option<PathBuf>) -> Reader {
        Reader {
            maker,
            roots,
            library,
            opened: None,
            opening: None,
            failed: None,
            left_out: BTreeMap::new(),
            known: BTreeMap::new(),
            handles: BTreeMap::new(),
            registered: BTreeSet::new(),
            alarms: BTreeMap::new(),
            recurring: BTreeMap::new(),
            pairs: BTreeMap::new(),
            driver: None,
            super_pods: BTreeMap::new(),
            tool: ByTool::new(maker),
        }
    }

    /// Version of the driver, where it matters and is known.
    pub fn driver(&self) -> Option<String> {
        self.driver.clone()
    }

    /// The domains of links beyond the node in which its cards are, each once.
    pub fn super_pods(&self) -> BTreeSet<String> {
        self.super_pods.values().cloned().collect()
    }

    /// Forgets what events said of a card.
    pub fn forget_alarms(&mut self, uuid: &Name) {
        let card = self.known.iter().find(|(_, found)| found.iter().any(|it| it.uuid == *uuid));
        if let Some(card) = card.map(|(card, _)| *card) {
            self.alarms.remove(&card);
        }
    }

    /// Looks at all cards. Takes no longer than one look may, but for each card that breaks it.
    pub fn look(&mut self) -> Discovery {
        let mut breaks = 0;
        loop {
            let opened = match self.opened() {
                Ok(opened) => opened,
                Err(why) => return self.by_tool(why),
            };
            opened.library.allow(self.roots.patience);
            let Broken { card, why } = match self.read_all(&opened) {
                Ok(found) => {
                    self.failed = None;
                    return found;
                }
                Err(broken) => broken,
            };
            (self.opened, self.handles, self.registered) = (None, BTreeMap::new(), BTreeSet::new());
            let left_out = self.left_out.values().filter(|trouble| !trouble.is_over()).count();
            breaks += 1;
            match card.filter(|_| left_out.max(breaks - 1) < MOST_LEFT_OUT) {
                Some(card) => {
                    let trouble = Trouble::after(self.left_out.get(&card), why, &self.roots);
                    self.left_out.insert(card, trouble);
                }
                None => {
                    self.failed = Some(Trouble::after(self.failed.as_ref(), why.clone(), &self.roots));
                    return self.by_tool(why);
                }
            }
        }
    }

    fn read_all(&mut self, opened: &Opened) -> Result<Discovery, Broken> {
        let survived =
            |card: Option<u32>| opened.library.gone().map_or(Ok(()), |why| Err(Broken { card, why }));
        let cards = match open::addresses(opened) {
            Ok(cards) => cards,
            Err(error) => {
                survived(None)?;
                return Ok(self.by_tool(format!("{} cannot count devices: {error}", self.maker.name)));
            }
        };
        let mut found = Discovery::default();
        let mut handles = BTreeMap::new();
        for (index, address) in (0u32..).zip(cards) {
            let mut notes = Vec::new();
            let read = match self.left_out.get(&index).filter(|trouble| !trouble.is_over()) {
                Some(trouble) => Err(trouble.why.clone()),
                None => {
                    let read = self.read_card(opened, index, address, &mut notes);
                    survived(Some(index))?;
                    self.left_out.remove(&index);
                    read
                }
            };
            let devices = match read {
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
        self.mark_islands(opened, &handles, &mut found.devices);
        self.take_events(opened, &handles);
        survived(None)?;
        self.count_plugged(&mut found, self.maker.name);
        Ok(found)
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

    /// The library, started now or before. After a failure it is not tried for a while.
    fn opened(&mut self) -> Result<Arc<Opened>, String> {
        if let Some(opened) = &self.opened {
            let Some(ended) = opened.library.ended() else { return Ok(opened.clone()) };
            // Whoever ended it, that says nothing of a card.
            tracing::warn!("{ended}: it is started again");
            (self.opened, self.handles, self.registered) = (None, BTreeMap::new(), BTreeSet::new());
        }
        if let Some(trouble) = self.failed.as_ref().filter(|trouble| !trouble.is_over()) {
            return Err(trouble.why.clone());
        }
        let opening = self.opening.take().unwrap_or_else(|| self.open());
        match opening.recv_timeout(self.roots.patience) {
            Ok(Ok(opened)) => {
                opened.library.allow(self.roots.patience);
                let driver = opened.first(opened.api.driver, &Context::default());
                self.driver = driver.ok().map(Value::text);
                Ok(self.opened.insert(Arc::new(opened)).clone())
            }
            Ok(Err(error)) => {
                let why = match error {
                    LoadError::Refused(why) => format!("{} cannot be used: {why}", self.maker.name),
                    error => error.to_string(),
                };
                self.failed = Some(Trouble::after(self.failed.as_ref(), why.clone(), &self.roots));
                Err(why)
            }
            Err(RecvTimeoutError::Timeout) => {
                self.opening = Some(opening);
                let patience = self.roots.patience.as_secs_f64();
                Err(format!("{} has not started within {patience} s, and is waited for", self.maker.name))
            }
            Err(RecvTimeoutError::Disconnected) => Err(format!("{} cannot be started", self.maker.name)),
        }
    }

    /// Starts the library, beside the looks: drivers may take longer for that than a look may.
    fn open(&self) -> Receiver<Result<Opened, LoadError>> {
        let (maker, library, roots) = (self.maker, self.library.clone(), self.roots.clone());
        let (done, opening) = channel();
        let open = move || {
            let opened = open::open(maker, library.as_deref(), &roots).map(|mut opened| {
                if let Some(events) = opened.api.events {
                    let set = opened.ask(&events.create, &Context::default());
                    opened.events = set.map_or(0, |set| set.number() as usize);
                }
                opened
            });
            _ = done.send(opened); // Nobody may wait for it any more.
        };
        // Without a thread nobody says anything, which is what will then be reported.
        _ = thread::Builder::new().name(maker.name.into()).spawn(open);
        opening
    }

    /// A card or its slices, and its handle. What is merely nice to know may be missing.
    fn read_card(
        &mut self,
        opened: &Opened,
        index: u32,
        address: [usize; 2],
        notes: &mut Vec<String>,
    ) -> Result<(Vec<Found>, [usize; 2]), String> {
        let fault = |error: CallError| fault_of(opened, &error);
        let mut about = Context { index: index as usize, card: address, ..Context::default() };
        let kept = self.handles.get(&index).copied();
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
                self.handles.insert(index, [about.card[0], about.memory]);
            }
        }
        if let Some(events) = opened.api.events.filter(|_| opened.events != 0)
            && self.registered.insert(index)
        {
            _ = opened.ask(&events.register, &about); // Older ones have none.
        }
        // Cards may still be registering with their fabric, but do not change it.
        if let Some(super_pod) = opened.api.super_pod
            && !self.super_pods.contains_key(&index)
            && let Some(name) = super_pod(opened, &about)
        {
            self.super_pods.insert(index, name);
        }
        let on_demand = self.roots.parts_on_demand.contains(&self.maker.vendor);
        let slices = opened.api.slices.filter(|slices| (slices.is_divided)(opened, &about));
        let devices = match slices {
            Some(Slices { listed: Some(listed), .. }) if !on_demand => {
                self.read_slices(opened, &listed, &about, notes)?
            }
            Some(slices) => {
                let device = self.read_device(opened, &about, notes).map_err(fault)?;
                vec![Found { parts: Some(slices.level), ..device }]
            }
            None => vec![self.read_device(opened, &about, notes).map_err(fault)?],
        };
        let worst = self.health(opened, &about, notes).map_err(fault)?;
        self.known.insert(index, devices.clone());
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
            // More programs than there is room for, or a library that does not tell.
            Err(_) => !api.users.is_empty(),
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
        &mut self,
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
                let codes = self.recurring.entry(about.index as u32).or_default();
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
    fn alarm(&mut self, card: u32) -> Option<(Level, String)> {
        let is_over = |(level, _, at): &(Level, String, Instant)| {
            *level <= Level::Suspect && Duration::from_millis(SUSPICION_MS) <= at.elapsed()
        };
        if self.alarms.get(&card).is_some_and(is_over) {
            self.alarms.remove(&card);
        }
        self.alarms.get(&card).map(|(level, what, _)| (*level, what.clone()))
    }

    /// Takes what the driver has told since. What it means for a card shows at the next look.
    fn take_events(&mut self, opened: &Opened, cards: &BTreeMap<u32, [usize; 2]>) {
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
            self.alarms.insert(*index, (level, what, Instant::now()));
        }
    }

    /// Asks about every pair once.
    fn mark_islands(&mut self, opened: &Opened, cards: &BTreeMap<u32, [usize; 2]>, devices: &mut [Found]) {
        let Some(link) = opened.api.link else { return };
        let numbers: Vec<u32> = cards.keys().copied().collect();
        for (at, one) in numbers.iter().enumerate() {
            for other in &numbers[at + 1..] {
                if self.pairs.contains_key(&(*one, *other)) {
                    continue;
                }
                let about =
                    Context { index: *one as usize, card: cards[one], other: cards[other], memory: 0 };
                let linked = match opened.ask(&link.probe, &about) {
                    Err(CallError::Gone(_)) => return,
                    answer => answer.is_ok_and(|way| (link.is_linked)(way.number())),
                };
                self.pairs.insert((*one, *other), linked);
            }
        }
        let linked = self.pairs.iter().filter(|(_, linked)| **linked).map(|(pair, _)| *pair);
        // The slices of a card are not linked, neither with each other nor with other cards.
        let is_whole = |own: &&Vec<Found>| own.len() == 1 && !own[0].place.contains('/');
        let whole: BTreeMap<u32, &Name> = self
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
        let known = self.known.get(&index).cloned();
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

fn fault_of(opened: &Opened, error: &CallError) -> String {
    match opened.is_lost(error) {
        true => "fell off the bus".to_string(),
        false => format!("cannot be read: {error}"),
    }
}
