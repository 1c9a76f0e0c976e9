//! Scripts: a few verbs, and what they lead to. The language is described in `tests/README.md`.

use std::sync::Arc;

use aquifer_core::explain::{class_text, explain};
use aquifer_core::jobs::Phase;
use aquifer_core::plan::Order;
use aquifer_core::*;

use crate::faults::{Faults, Timing};
use crate::sim::{CrashPoint, Sim, Work, WorkPace};

const GIB: u64 = 1 << 30;
/// For as long as a script runs, at least.
const LONG: Time = Time(1 << 50);

/// Plays a script, and returns all that was said. Times are fixed, nothing is random.
///
/// # Errors
/// The line that cannot be read, and why.
pub fn play(script: &str) -> Result<String, String> {
    let mut lines =
        script.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).peekable();
    let mut policy = Policy::new(Order::FairShare);
    while let Some(line) = lines.next_if(|line| line.starts_with("policy ")) {
        for (key, value) in options(&words(line)[1..])? {
            match key {
                "order" if value == "priority" => policy.order = Order::Priority,
                "order" if value == "fair-share" => policy.order = Order::FairShare,
                "preemption" if value == "on" || value == "off" => policy.preemption = value == "on",
                "yield" if value == "on" || value == "off" => policy.yield_to_services = value == "on",
                "growth" if value == "off" => policy.grow_after = None,
                "growth" => policy.grow_after = Some(std::time::Duration::from_secs(number(value)?)),
                "lease" => policy.lease = std::time::Duration::from_secs(number(value)?),
                "backoff" => policy.backoff = std::time::Duration::from_secs(number(value)?),
                "rounds" => policy.rounds = std::time::Duration::from_secs(number(value)?),
                "half-life" => policy.half_life = std::time::Duration::from_secs(number(value)?),
                "ageing" => policy.ageing = std::time::Duration::from_secs(number(value)?),
                _ => return Err(format!("{line}: no option {key}={value}")),
            }
        }
    }
    let mut player =
        Player { sim: Sim::new(1, policy, Faults::default(), Timing::fixed(), Time(0)), jobs: 0 };
    for line in lines {
        player.play_line(line).map_err(|why| format!("{line}: {why}"))?;
    }
    let log = player.sim.log.into_iter();
    Ok(log.map(|(at, line)| format!("{at} {line}\n")).collect())
}

struct Player {
    sim: Sim,
    /// Submissions so far; names of jobs that have none are made from it.
    jobs: u64,
}

impl Player {
    fn play_line(&mut self, line: &str) -> Result<(), String> {
        let words = words(line);
        let sim = &mut self.sim;
        match words[..] {
            ["node", name, devices, ref rest @ ..] => {
                let inventory = inventory(sim.machines.len(), name, devices, rest)?;
                let ahead = 1_000_000 * (1 + sim.machines.len() as u64);
                sim.add_machine(name, inventory, ahead);
                // One after the other, so that they are numbered in the order of the script.
                let now = sim.now;
                sim.run_until(Time(now.0 + 20));
            }
            ["queue", name, ref rest @ ..] => self.set_queue(name, rest)?,
            ["price", model, "none"] => self.ask(Command::SetPrice { model: model.into(), milli: None }),
            ["price", model, milli] => {
                self.ask(Command::SetPrice { model: model.into(), milli: Some(number(milli)?) });
            }
            ["reserve", name, ref rest @ ..] => self.reserve(name, rest)?,
            ["unreserve", name] => self.ask(Command::Unreserve(name.into())),
            ["show-reservations"] => self.show_reservations(),
            ["submit", ref rest @ ..] => self.submit(rest)?,
            ["cancel", job] => self.ask(Command::Cancel { job: job.parse()?, whole_array: false }),
            ["cancel", job, "array"] => self.ask(Command::Cancel { job: job.parse()?, whole_array: true }),
            ["scale", job, ranks] => {
                let ranks = if ranks == "auto" { None } else { Some(number(ranks)?) };
                self.ask(Command::Scale { job: job.parse()?, ranks });
            }
            ["load", job, requests] => self.sim.set_load(job.parse()?, number(requests)?),
            ["ask", job, waiting] => {
                self.ask(Command::Demand { job: job.parse()?, waiting: number(waiting)? });
            }
            ["cordon", node, device] => self.set_device(node, number(device)?, true),
            ["open", node, device] => self.set_device(node, number(device)?, false),
            ["open", node] => self.set_node(node, Availability::Open),
            ["cordon", node] => self.set_node(node, Availability::Cordoned),
            ["drain", node] => self.set_node(node, Availability::Draining),
            ["run", seconds] => {
                let ms = number::<f64>(seconds)? * 1000.0;
                let until = Time(self.sim.now.0 + ms as u64);
                self.sim.run_until(until);
            }
            ["explain", job] => self.explain(job.parse()?)?,
            ["show", job] => self.show(job.parse()?)?,
            ["show-queues"] => self.show_queues(),
            ["show-usage"] => self.show_usage(),
            ["show-processes"] => self.show_processes(),
            ["scheduler", what] => self.scheduler(what)?,
            ["exit", worker, ref how @ ..] => self.exit(worker, how)?,
            [verb, node, ref rest @ ..] => self.machine(verb, node, rest)?,
            _ => return Err("no such verb".into()),
        }
        Ok(())
    }

    fn ask(&mut self, command: Command) {
        match self.sim.ask(command) {
            Some(Err(refusal)) => self.sim.say(format!("refused: {refusal}")),
            Some(Ok(Answer::Submitted { first, repeated: true, .. })) => {
                self.sim.say(format!("answered: {first}, submitted before"));
            }
            Some(Ok(Answer::Cancelled(jobs))) => self.sim.say(format!("answered: {jobs} told to end")),
            Some(Ok(Answer::Submitted { .. } | Answer::Reserved(_) | Answer::Done)) => (),
            None => self.sim.say("no answer".into()),
        }
    }

    fn set_node(&mut self, node: &str, availability: Availability) {
        self.ask(Command::SetNode { node: node.into(), availability });
    }

    fn set_device(&mut self, node: &str, device: u16, cordoned: bool) {
        self.ask(Command::SetDevice { node: node.into(), device, cordoned });
    }

    fn set_queue(&mut self, name: &str, rest: &[&str]) -> Result<(), String> {
        let mut queue = Queue::new(name.into());
        for (key, value) in options(rest)? {
            match key {
                "parent" => queue.parent = Some(value.into()),
                "weight" => queue.weight = number(value)?,
                "guarantee" => queue.guaranteed_milli = 1000 * number::<u64>(value)?,
                "limit" => queue.limit_milli = Some(1000 * number::<u64>(value)?),
                "user" => queue.users.push(value.into()),
                _ => return Err(format!("no option {key}")),
            }
        }
        self.ask(Command::SetQueue(queue));
        Ok(())
    }

    /// `reserve maint nodes=a,b in=60 for=120`, or `count=2 model=h100 rack=a`; `queue=red user=ada`.
    fn reserve(&mut self, name: &str, rest: &[&str]) -> Result<(), String> {
        let now = self.sim.now;
        let (mut start, mut length, mut named, mut count) = (None, 0, None, 1);
        let (mut queues, mut users, mut labels, mut model) = (Vec::new(), Vec::new(), Vec::new(), None);
        for (key, value) in options(rest)? {
            match key {
                "nodes" => named = Some(value.split(',').map(Name::from).collect()),
                "count" => count = number(value)?,
                "in" => start = Some(Time(now.0 + 1000 * number::<u64>(value)?)),
                "for" => length = 1000 * number::<u64>(value)?,
                "queue" => queues.push(value.into()),
                "user" => users.push(value.into()),
                "model" => model = Some(value.into()),
                label => labels.push((label.into(), value.into())),
            }
        }
        let end = Time(start.unwrap_or(now).0 + length);
        let chosen = BookedNodes::Chosen { count, labels, model };
        let nodes = named.map_or(chosen, BookedNodes::Named);
        self.ask(Command::Reserve(Booking { name: name.into(), nodes, start, end, queues, users }));
        Ok(())
    }

    fn show_reservations(&mut self) {
        let Some(cluster) = &self.sim.cluster else { return };
        let mut text = String::from("reservations:");
        for it in cluster.reservations().iter() {
            let nodes: Vec<&str> = it.nodes.iter().map(|node| &*cluster.nodes().get(*node).name).collect();
            let state = if it.begun { "running" } else { "to come" };
            text += &format!("\n  {} {state} on {} conflicts", it.name, nodes.join(" "));
            let conflicts = cluster.conflicts(it);
            text += &if conflicts.is_empty() { " none".into() } else { format!(" {conflicts:?}") };
        }
        self.sim.say(text);
    }

    fn submit(&mut self, words: &[&str]) -> Result<(), String> {
        self.jobs += 1;
        let at = words.iter().position(|word| *word == "for").ok_or("it says not for how long")?;
        let roles = words[..at].iter().map(|word| role(word)).collect::<Result<Vec<Role>, String>>()?;
        let mut spec = JobSpec {
            name: format!("job {}", self.jobs).into(),
            user: "ada".into(),
            queue: "default".into(),
            roles,
            grace_ms: 5_000,
            ..JobSpec::default()
        };
        let run_ms = match *words.get(at + 1).ok_or("for how long?")? {
            "ever" => None,
            seconds => Some(1000 * number::<u64>(seconds)?),
        };
        let mut work = Work { run_ms, failures: 0, exit: Exit::Code(1), checkpoint_ms: None, pace: None };
        for (key, value) in options(&words[at + 2..])? {
            let each = |spec: &mut JobSpec, change: &dyn Fn(&mut Request)| {
                spec.roles.iter_mut().for_each(|role| change(&mut role.request));
            };
            match key {
                "name" => spec.name = value.into(),
                "queue" => spec.queue = value.into(),
                "user" => spec.user = value.into(),
                "reservation" => spec.reservation = Some(value.into()),
                "key" => spec.client_key = value.into(),
                "priority" => spec.priority = number(value)?,
                "after" => spec.after = value.split(',').map(str::parse).collect::<Result<_, String>>()?,
                "array" => spec.array = Some(array(value)?),
                "limit" => spec.time_limit_ms = Some(1000 * number::<u64>(value)?),
                "retries" => spec.retries = number(value)?,
                "restart" => {
                    spec.restart = match value {
                        "rank" => Restart::Rank,
                        "gang" => Restart::Gang,
                        _ => return Err(format!("restart {value}: gang or rank")),
                    }
                }
                "on-partition" => {
                    spec.on_partition = match value {
                        "stop" => OnPartition::Stop,
                        "keep" => OnPartition::Keep,
                        _ => return Err(format!("on-partition {value}: stop or keep")),
                    }
                }
                "serves" => serve(&mut spec, value)?,
                "grace" => spec.grace_ms = 1000 * number::<u64>(value)?,
                "cpus" => {
                    let cpus_milli = (number::<f64>(value)? * 1000.0) as u32;
                    each(&mut spec, &|request| request.cpus_milli = cpus_milli);
                }
                "memory" => {
                    let memory_bytes = GIB * number::<u64>(value)?;
                    each(&mut spec, &|request| request.memory_bytes = memory_bytes);
                }
                "require" => spec.topology.require = Some(level(value)),
                "prefer" => spec.topology.prefer = value.split(',').map(level).collect(),
                "apart" => spec.roles.iter_mut().for_each(|role| role.standing.apart = Some(level(value))),
                "spread" => spec.roles.iter_mut().for_each(|role| role.standing.spread = Some(level(value))),
                "island" if value == "require" => each(&mut spec, &|request| {
                    request.devices.iter_mut().for_each(|want| want.one_island = true);
                }),
                "isolation" => {
                    let isolation: Isolation = value.parse()?;
                    each(&mut spec, &|request| {
                        request.devices.iter_mut().for_each(|want| want.isolation = isolation);
                    });
                }
                "checkpoint" => work.checkpoint_ms = Some(1000 * number::<u64>(value)?),
                "steps" => {
                    let (total_steps, rates) = value.split_once('/').ok_or("expected TOTAL/MODEL:RATE,…")?;
                    let rate = |rate: &str| {
                        let (model, rate) = rate.split_once(':').ok_or("expected MODEL:RATE")?;
                        Ok((model.into(), (number::<f64>(rate)? * 1000.0) as u64))
                    };
                    let rates_milli = rates.split(',').map(rate).collect::<Result<_, String>>()?;
                    work.pace = Some(WorkPace { total_steps: number(total_steps)?, rates_milli });
                }
                "fails" => work.failures = number(value)?,
                "exit" => work.exit = Exit::Code(number(value)?),
                "signal" => work.exit = Exit::Signal(number(value)?),
                "launch" => work.exit = Exit::Failed(format!("{value} is not a program").into()),
                "image" => each(&mut spec, &|request| request.image = Some(value.into())),
                label => each(&mut spec, &|request| request.labels.push((label.into(), value.into()))),
            }
        }
        if !spec.client_key.is_empty() {
            spec.name = spec.client_key.clone();
        }
        self.sim.set_work(spec.name.clone(), work);
        self.ask(Command::Submit(Arc::new(spec)));
        Ok(())
    }

    fn explain(&mut self, job: JobId) -> Result<(), String> {
        let cluster = self.sim.cluster.as_ref().ok_or("no scheduler")?;
        let it = cluster.jobs().get(job).ok_or("no such job")?;
        let text = explain(cluster, it).text(job, cluster.now());
        self.sim.say(format!("explained:\n{text}"));
        Ok(())
    }

    fn show(&mut self, job: JobId) -> Result<(), String> {
        let cluster = self.sim.cluster.as_ref().ok_or("no scheduler")?;
        let it = cluster.jobs().get(job).ok_or("no such job")?;
        let phase = match &it.phase {
            Phase::Pending(_) => "pending".into(),
            Phase::Active => "active".into(),
            Phase::Stopping(_) => "stopping".into(),
            Phase::Done(outcome) => outcome.to_string(),
        };
        let mut text = format!("shown: {job} {phase}, attempt {}, failures {}", it.attempt, it.failures);
        for (rank, on) in it.ranks.iter().enumerate() {
            let node = &cluster.nodes().get(on.node).name;
            text += &format!("\n  rank {rank} on {node} devices {:?} {:?}", on.devices, on.worker);
        }
        if let Some(choice) = class_text(cluster, it) {
            text += &format!("\n  {choice}");
        }
        self.sim.say(text);
        Ok(())
    }

    fn show_queues(&mut self) {
        let Some(cluster) = &self.sim.cluster else { return };
        let queues = cluster.queues();
        let held =
            |queue: &Queue| format!(" {}={}", queue.name, explain_milli(queues.held_milli(&queue.name)));
        let text: String = queues.iter().map(held).collect();
        self.sim.say(format!("queues hold{text}"));
    }

    /// In seconds of a reference device.
    fn show_usage(&mut self) {
        let Some(cluster) = &self.sim.cluster else { return };
        let used = cluster.queues().overview(self.sim.now);
        let used = used.iter().map(|row| format!(" {}={}", row.queue.name, row.spent / 1_000_000));
        let text: String = used.collect();
        self.sim.say(format!("queues used{text}"));
    }

    fn show_processes(&mut self) {
        let mut text = String::from("processes:");
        for machine in &self.sim.machines {
            for (worker, process) in machine.alive() {
                text += &format!(" {worker} on {} {:?};", machine.name, process.state);
            }
        }
        self.sim.say(text);
    }

    fn scheduler(&mut self, what: &str) -> Result<(), String> {
        match what {
            "crash" => self.sim.crash_scheduler(),
            "stop" => self.sim.stop_scheduler(),
            "start" => self.sim.start_scheduler(),
            "crash-before-commit" => self.sim.crash_at_next_commit(CrashPoint::BeforeCommit),
            "crash-after-commit" => self.sim.crash_at_next_commit(CrashPoint::AfterCommit),
            _ => return Err("it can stop, start, crash, crash-before-commit or crash-after-commit".into()),
        }
        Ok(())
    }

    /// `exit job-1/0 3`, `exit job-1/0 signal 9`: of the current attempt.
    fn exit(&mut self, worker: &str, how: &[&str]) -> Result<(), String> {
        let (job, rank) = worker.split_once('/').ok_or("expected job-N/RANK")?;
        let (job, rank): (JobId, u32) = (job.parse()?, number(rank)?);
        let exit = match how {
            ["signal", signal] => Exit::Signal(number(signal)?),
            [code] => Exit::Code(number(code)?),
            _ => return Err("expected a code, or signal N".into()),
        };
        let attempt = self.sim.store.jobs.get(&job).map_or(0, |job| job.attempt);
        self.sim.say(format!("{worker} {exit}"));
        self.sim.end_worker(WorkerId { job, attempt, rank }, exit);
        Ok(())
    }

    fn machine(&mut self, verb: &str, node: &str, rest: &[&str]) -> Result<(), String> {
        let sim = &mut self.sim;
        let machine = sim.machine(node).ok_or_else(|| format!("no verb {verb:?}, or no node {node:?}"))?;
        match (verb, rest) {
            ("power-off", []) => sim.power_off(machine),
            ("power-on", []) => sim.power_on(machine),
            ("stop-agent", []) => sim.machines[machine].stop_agent(),
            ("start-agent", []) => sim.start_agent(machine),
            ("mute", []) => sim.machines[machine].mute_until = LONG,
            ("deafen", []) => sim.machines[machine].deaf_until = LONG,
            ("connect", []) => {
                sim.machines[machine].mute_until = sim.now;
                sim.machines[machine].deaf_until = sim.now;
            }
            ("repeat-report", []) => {
                sim.repeat_report(machine);
                return Ok(());
            }
            ("break", [device, why @ ..]) => {
                // `break NODE DEVICE [HEALTH:] WHY`
                let (health, why) = match why.split_first() {
                    Some((first, rest)) if first.ends_with(':') => (first.trim_end_matches(':'), rest),
                    _ => ("faulty", why),
                };
                let known = Health::ALL.iter().find(|(_, name)| name.replace(' ', "-") == health);
                let (health, _) = *known.ok_or_else(|| format!("no health {health:?}"))?;
                let fault = Fault { health, why: why.join(" ").into(), since_ms: 0 };
                sim.set_device_fault(machine, number(device)?, Some(fault));
            }
            ("spoil", []) => sim.set_bad(machine, true),
            ("heal", []) => sim.set_bad(machine, false),
            ("repair", [device]) => sim.set_device_fault(machine, number(device)?, None),
            _ => return Err(format!("no verb {verb:?} for a node")),
        }
        sim.say(format!("{verb} {node} {}", rest.join(" ")).trim_end().into());
        Ok(())
    }
}

fn explain_milli(milli: u64) -> String {
    aquifer_core::explain::milli(milli)
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word:?} is no number"))
}

fn options<'a>(words: &[&'a str]) -> Result<Vec<(&'a str, &'a str)>, String> {
    let option = |word: &&'a str| word.split_once('=').ok_or_else(|| format!("{word:?} is no option"));
    words.iter().map(option).collect()
}

fn level(text: &str) -> Level {
    text.parse().expect("every text is a level")
}

/// `first-last` or `first-last/step`.
fn array(text: &str) -> Result<ArrayRange, String> {
    let (range, step) = text.split_once('/').unwrap_or((text, "1"));
    let (first, last) = range.split_once('-').ok_or("expected first-last")?;
    Ok(ArrayRange { first: number(first)?, last: number(last)?, step: number(step)? })
}

/// `8:h200`, `8:h200+16:cpu`; then `cpus=64 memory=512 ports=20000-20063 rack=a`.
fn inventory(at: usize, name: &str, devices: &str, rest: &[&str]) -> Result<Inventory, String> {
    let mut inventory = Inventory {
        devices: Vec::new(),
        cpus_milli: 64_000,
        memory_bytes: 512 * GIB,
        address: format!("10.0.0.{at}").into(),
        ports: Ports { first: 20_000, last: 20_063 },
        labels: [].into(),
        engine: "".into(),
        measured: Default::default(),
    };
    for group in devices.split('+').filter(|group| *group != "0") {
        let (count, model) = group.split_once(':').ok_or("expected COUNT:MODEL")?;
        let (vendor, memory_gib) = match model {
            "cpu" => (Vendor::Cpu, 0),
            model if model.starts_with("910") => (Vendor::Ascend, 64),
            model if model.starts_with("h100") => (Vendor::Nvidia, 80),
            _ => (Vendor::Nvidia, 141),
        };
        let class = Arc::new(DeviceClass { vendor, model: model.into(), memory_bytes: memory_gib * GIB });
        for _ in 0..number::<usize>(count)? {
            let uuid = format!("{name}-{}", inventory.devices.len()).into();
            let (class, fault) = (class.clone(), None);
            inventory.devices.push(Device {
                class,
                uuid,
                fault,
                speed_milli: 1000,
                speed_source: "".into(),
                memory_gbs: 0,
                number: 0,
                isolation: Isolation::Advisory,
                island: None,
                locality: Default::default(),
            });
        }
    }
    for (key, value) in options(rest)? {
        match key {
            "cpus" => inventory.cpus_milli = 1000 * number::<u32>(value)?,
            "memory" => inventory.memory_bytes = GIB * number::<u64>(value)?,
            "speed" => {
                let speed_milli = (number::<f64>(value)? * 1000.0) as u32;
                inventory.devices.iter_mut().for_each(|device| device.speed_milli = speed_milli);
            }
            "isolation" => {
                let isolation: Isolation = value.parse()?;
                inventory.devices.iter_mut().for_each(|device| device.isolation = isolation);
            }
            "islands" => {
                let size = number::<usize>(value)?.max(1);
                let devices = inventory.devices.iter_mut().enumerate();
                devices.for_each(|(at, device)| device.island = Some((at / size) as u16));
            }
            "ports" => {
                let (first, last) = value.split_once('-').ok_or("expected first-last")?;
                inventory.ports = Ports { first: number(first)?, last: number(last)? };
            }
            "engine" => inventory.engine = value.into(),
            label => _ = inventory.labels.insert(label.into(), value.into()),
        }
    }
    Ok(inventory)
}

/// `2x8:h200`, `2-8x1:h200` (2 to 8 ranks), `trainer=2x8:h200|16:910b`, `1x0`, `1x2:@nvidia>=80`, `1x1/400:h200` (400 thousandths of a device).
fn role(word: &str) -> Result<Role, String> {
    let (name, word) = match word.split_once('=') {
        Some((name, word)) if !name.contains('>') => (name, word),
        _ => ("worker", word),
    };
    let (ranks, devices) = word.split_once('x').ok_or("expected RANKSxDEVICES")?;
    let devices = devices.split('|').filter(|devices| *devices != "0").map(device_request);
    let devices = devices.collect::<Result<Vec<_>, String>>()?;
    let request = Request { devices, ..Request::default() };
    let program = Program::Command(vec!["work".into()]);
    let (min_ranks, ranks) = match ranks.split_once('-') {
        Some((least, most)) => (Some(number(least)?), most),
        None => (None, ranks),
    };
    let standing = Standing::default();
    Ok(Role {
        name: name.into(),
        ranks: number(ranks)?,
        min_ranks,
        request,
        mounts: Vec::new(),
        standing,
        program,
    })
}

/// `serves=4`, so many requests a replica; `serves=4/30`, it sleeps after so many seconds.
fn serve(spec: &mut JobSpec, value: &str) -> Result<(), String> {
    let (concurrency, sleeps) = match value.split_once('/') {
        Some((concurrency, seconds)) => (concurrency, Some(1000 * number::<u64>(seconds)?)),
        None => (value, None),
    };
    let concurrency = number(concurrency)?;
    let promise = Promise { concurrency, ttft_ms: None, tpot_ms: None, sleep_after_ms: sleeps };
    for role in &mut spec.roles {
        role.program = Program::Serve(ServeOptions {
            model: "/m".into(),
            served_name: "m".into(),
            max_queue: 64,
            kv_memory_bytes: None,
            precision: "f32".into(),
            autoscale: Some(promise),
        });
    }
    Ok(())
}

fn device_request(text: &str) -> Result<DeviceRequest, String> {
    let (text, memory_gib) = match text.split_once(">=") {
        Some((text, gib)) => (text, number(gib)?),
        None => (text, 0),
    };
    let (count, what) = text.split_once(':').unwrap_or((text, ""));
    let (count, slice) = match count.split_once('/') {
        Some((count, milli)) => (count, Some(Slice { compute_milli: number(milli)?, memory_bytes: 0 })),
        None => (count, None),
    };
    let mut request =
        DeviceRequest { count: number(count)?, memory_bytes: memory_gib * GIB, slice, ..Default::default() };
    match what.strip_prefix('@') {
        Some(vendor) => {
            request.vendor = Some(vendor.parse().map_err(|unknown: UnknownVendor| unknown.to_string())?)
        }
        None if what.is_empty() => (),
        None => request.model = Some(what.into()),
    }
    Ok(request)
}
