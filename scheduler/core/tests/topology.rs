//! Where ranks stand, relative to each other and to the structure of the pool.

mod fixture;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::explain::{Change, Reason, explain};
use aquifer_core::nodes::Node;
use aquifer_core::plan::{Free, Order, fits, place};
use aquifer_core::*;
use fixture::*;

const POOLS: u64 = 1500;

fn label(key: &str) -> Level {
    Level::Label(key.into())
}

fn labelled(devices: u16, labels: &[(&str, &str)]) -> Inventory {
    let mut inventory = inventory(devices, 64, 512);
    inventory.labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    inventory
}

/// A pool whose nodes may be silent for long.
fn pool() -> Fixture {
    let mut policy = Policy::new(Order::FairShare);
    policy.lease = Duration::from_secs(10_000);
    Fixture::with(policy)
}

/// Node `node-N` in a rack.
fn in_rack(t: &mut Fixture, number: u32, devices: u16, rack: &str) {
    t.report(number, labelled(devices, &[("rack", rack)]), Vec::new());
}

fn submit(t: &mut Fixture, spec: JobSpec) -> Vec<String> {
    t.tell(Command::Submit(Arc::new(spec)))
}

fn gang(ranks: u32, devices: u16, change: impl Fn(&mut JobSpec)) -> JobSpec {
    let mut spec = spec(ranks, devices);
    change(&mut spec);
    spec
}

fn nodes(t: &Fixture, job: u64) -> Vec<&Node> {
    t.job(job).ranks.iter().map(|rank| t.cluster.nodes().get(rank.node)).collect()
}

fn racks(t: &Fixture, job: u64) -> Vec<String> {
    nodes(t, job).iter().map(|node| node.inventory.labels["rack"].to_string()).collect()
}

/// A pool of racks in two zones, some nodes in neither, on which some jobs run.
fn any_pool(rng: &mut Rng) -> Fixture {
    let mut t = pool();
    for node in 0..3 + rng.below(6) as u32 {
        let (rack, zone) = (format!("r{}", rng.below(3)), format!("z{}", rng.below(2)));
        let mut labels = vec![("zone", &zone[..])];
        if rng.below(8) != 0 {
            labels.push(("rack", &rack));
        }
        let mut inventory = labelled(2 + rng.below(7) as u16, &labels);
        inventory.cpus_milli = 1000 * (4 + rng.below(16) as u32);
        t.report(node, inventory, Vec::new());
    }
    for _ in 0..rng.below(5) {
        submit(&mut t, spec(1, 1 + rng.below(4) as u16));
    }
    let waiting: Vec<JobId> =
        t.cluster.jobs().iter().filter(|job| job.ranks.is_empty()).map(|job| job.id).collect();
    waiting.into_iter().for_each(|job| _ = t.tell(Command::Cancel { job, whole_array: false }));
    t
}

fn any_spec(rng: &mut Rng) -> JobSpec {
    gang(1 + rng.below(5) as u32, 1 + rng.below(4) as u16, |spec| {
        spec.roles[0].request.cpus_milli = 1000;
    })
}

fn any_level(rng: &mut Rng) -> Level {
    [Level::Node, label("rack"), label("zone")][rng.below(3) as usize].clone()
}

/// For how many ranks of a role each node has room: counted from devices and cores alone.
fn room(t: &Fixture, role: &Role) -> Vec<u64> {
    let free = Free::of(&t.cluster);
    let of_node = |node: &Node| {
        let on = free.on(node);
        let devices = on.devices.len() as u64 / u64::from(role.request.devices[0].count);
        devices.min(on.cpus_milli / u64::from(role.request.cpus_milli))
    };
    t.cluster.nodes().iter().map(of_node).collect()
}

/// The same for each domain of a level.
fn room_by_domain(t: &Fixture, role: &Role, level: &Level, most: u64) -> BTreeMap<String, u64> {
    let mut domains: BTreeMap<String, u64> = BTreeMap::new();
    for (node, ranks) in t.cluster.nodes().iter().zip(room(t, role)) {
        if let Some(domain) = level.domain_of(node) {
            *domains.entry(domain.to_string()).or_default() += ranks.min(most);
        }
    }
    domains
}

fn domains_of(t: &Fixture, ranks: &[Allocation], level: &Level) -> Vec<Option<String>> {
    let of =
        |rank: &Allocation| level.domain_of(t.cluster.nodes().get(rank.node)).map(|name| name.to_string());
    ranks.iter().map(of).collect()
}

fn try_place(t: &Fixture, spec: &JobSpec) -> Option<Vec<Allocation>> {
    let job = jobs::Job::new(JobId(1000), Arc::new(spec.clone()), None, t.now);
    place(&mut Free::of(&t.cluster), &job).ok()
}

/// In the tightest domain that has room; nowhere only if none has.
#[test]
fn a_required_domain_holds_the_whole_gang() {
    let (mut placed, mut not, mut elsewhere) = (0, 0, 0);
    for seed in 0..POOLS {
        let mut rng = Rng(seed);
        let t = any_pool(&mut rng);
        let (mut spec, level) = (any_spec(&mut rng), any_level(&mut rng));
        let without = try_place(&t, &spec);
        spec.topology.require = Some(level.clone());
        let of = u64::from(spec.ranks());
        // A node counts for no more ranks than the job has.
        let by_domain = room_by_domain(&t, &spec.roles[0], &level, of);
        let tightest = by_domain.iter().filter(|(_, ranks)| of <= **ranks).min_by_key(|(_, ranks)| **ranks);
        let found = try_place(&t, &spec);
        let Some(ranks) = found else {
            assert!(tightest.is_none(), "seed {seed}: {tightest:?} has room");
            not += 1;
            elsewhere += usize::from(without.is_some());
            continue;
        };
        let domains: BTreeSet<Option<String>> = domains_of(&t, &ranks, &level).into_iter().collect();
        let [Some(domain)] = &Vec::from_iter(domains)[..] else { panic!("seed {seed}: {ranks:?}") };
        assert_eq!(Some(domain), tightest.map(|(name, _)| name), "seed {seed}: {by_domain:?}");
        placed += 1;
    }
    assert!(300 < placed && 50 < elsewhere, "{placed} placed, {not} not, {elsewhere} of them elsewhere");
}

/// Checked by brute force: the first level in the list that has a domain with room, and its domain alone.
#[test]
fn a_preferred_domain_is_taken_wherever_one_has_room() {
    let (mut first, mut second, mut anywhere) = (0, 0, 0);
    for seed in 0..POOLS {
        let mut rng = Rng(seed);
        let t = any_pool(&mut rng);
        let mut spec = any_spec(&mut rng);
        let without = try_place(&t, &spec);
        spec.topology.prefer = vec![any_level(&mut rng), any_level(&mut rng)];
        let ranks = try_place(&t, &spec);
        assert_eq!(ranks.is_some(), without.is_some(), "seed {seed}: what is preferred keeps no job waiting");
        let Some(ranks) = ranks else { continue };
        let has_room = |level: &&Level| {
            let by_domain = room_by_domain(&t, &spec.roles[0], level, u64::MAX);
            by_domain.values().any(|ranks| u64::from(spec.ranks()) <= *ranks)
        };
        let Some(level) = spec.topology.prefer.iter().find(has_room) else {
            assert_eq!(Some(ranks), without, "seed {seed}: else it is placed as ever");
            anywhere += 1;
            continue;
        };
        let domains: BTreeSet<Option<String>> = domains_of(&t, &ranks, level).into_iter().collect();
        assert!(domains.len() == 1 && !domains.contains(&None), "seed {seed}: {domains:?} of {level}");
        if *level == spec.topology.prefer[0] { first += 1 } else { second += 1 }
    }
    assert!(200 < first && 20 < second && 20 < anywhere, "{first}, {second}, {anywhere}");
}

#[test]
fn a_level_is_preferred_within_the_one_that_is_required() {
    let mut both = 0;
    for seed in 0..POOLS {
        let mut rng = Rng(seed);
        let t = any_pool(&mut rng);
        let mut spec = any_spec(&mut rng);
        spec.topology = Topology { require: Some(label("zone")), prefer: vec![label("rack")] };
        let Some(ranks) = try_place(&t, &spec) else { continue };
        let zones: BTreeSet<Option<String>> = domains_of(&t, &ranks, &label("zone")).into_iter().collect();
        assert_eq!(zones.len(), 1, "seed {seed}");
        let mut by_both: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for (node, ranks) in t.cluster.nodes().iter().zip(room(&t, &spec.roles[0])) {
            if let (Some(zone), Some(rack)) =
                (node.inventory.labels.get("zone"), node.inventory.labels.get("rack"))
            {
                *by_both.entry((zone, rack)).or_default() += ranks;
            }
        }
        if by_both.values().any(|room| ranks.len() as u64 <= *room) {
            let racks: BTreeSet<Option<String>> =
                domains_of(&t, &ranks, &label("rack")).into_iter().collect();
            assert!(racks.len() == 1 && !racks.contains(&None), "seed {seed}: {racks:?}");
            both += 1;
        }
    }
    assert!(200 < both, "{both}");
}

/// By brute force: no two in one domain, and not placed only if too few domains have room for one.
#[test]
fn ranks_that_stand_apart_share_no_domain() {
    let (mut placed, mut not) = (0, 0);
    for seed in 0..POOLS {
        let mut rng = Rng(seed);
        let t = any_pool(&mut rng);
        let (mut spec, level) = (any_spec(&mut rng), any_level(&mut rng));
        spec.roles[0].standing.apart = Some(level.clone());
        let by_domain = room_by_domain(&t, &spec.roles[0], &level, u64::MAX);
        let with_room = by_domain.values().filter(|ranks| 0 < **ranks).count();
        let Some(ranks) = try_place(&t, &spec) else {
            assert!(with_room < spec.ranks() as usize, "seed {seed}: {by_domain:?} for {}", spec.ranks());
            not += 1;
            continue;
        };
        let domains: BTreeSet<Option<String>> = domains_of(&t, &ranks, &level).into_iter().collect();
        assert!(domains.len() == ranks.len() && !domains.contains(&None), "seed {seed}: {domains:?}");
        placed += usize::from(1 < ranks.len());
    }
    assert!(200 < placed && 200 < not, "{placed} placed, {not} not");
}

/// A domain has fewer than another by two or more only if it is full; and nobody waits for what is only preferred.
#[test]
fn spread_ranks_are_in_all_domains_alike() {
    let (mut even, mut uneven, mut outside) = (0, 0, 0);
    for seed in 0..POOLS {
        let mut rng = Rng(seed);
        let t = any_pool(&mut rng);
        let (mut spec, level) = (any_spec(&mut rng), any_level(&mut rng));
        spec.roles[0].ranks = 2 + rng.below(7) as u32;
        let without = try_place(&t, &spec).is_some();
        spec.roles[0].standing.spread = Some(level.clone());
        let by_domain = room_by_domain(&t, &spec.roles[0], &level, u64::MAX);
        let found = try_place(&t, &spec);
        assert_eq!(found.is_some(), without, "seed {seed}: what is preferred keeps no job waiting");
        let Some(ranks) = found else { continue };
        let mut counts: BTreeMap<String, u64> = by_domain.keys().map(|name| (name.clone(), 0)).collect();
        let mut nowhere = 0;
        for domain in domains_of(&t, &ranks, &level) {
            match domain {
                Some(domain) => *counts.get_mut(&domain).expect("a domain") += 1,
                None => nowhere += 1,
            }
        }
        let most = counts.values().copied().max().unwrap_or(0);
        for (domain, count) in &counts {
            let full = *count == by_domain[domain];
            assert!(most <= count + 1 || full, "seed {seed}: {counts:?} of {by_domain:?}");
            assert!(nowhere == 0 || full, "seed {seed}: {domain} has room for those in no domain");
        }
        let least = counts.values().copied().min().unwrap_or(0);
        if most <= least + 1 {
            even += 1
        } else {
            uneven += 1
        }
        outside += usize::from(0 < nowhere);
    }
    assert!(200 < even && 50 < uneven && 3 < outside, "{even}, {uneven}, {outside}");
}

#[test]
fn all_roles_of_a_gang_stand_in_one_domain() {
    let mut t = pool();
    for (number, rack) in [(0, "a"), (1, "a"), (2, "b"), (3, "b"), (4, "b")] {
        in_rack(&mut t, number, 8, rack);
    }
    let mut spec = gang(2, 8, |spec| spec.topology.require = Some(label("rack")));
    let mut other = spec.roles[0].clone();
    (other.name, other.ranks) = ("rollout".into(), 1);
    spec.roles.push(other);
    submit(&mut t, spec.clone());
    assert_eq!(racks(&t, 1), ["b", "b", "b"]);
    submit(&mut t, spec);
    assert!(t.job(2).ranks.is_empty(), "two nodes of the other rack do not suffice");
}

#[test]
fn the_tightest_domain_is_taken_so_that_large_ones_stay_whole() {
    let mut t = pool();
    for number in 0..4 {
        in_rack(&mut t, number, 8, "a-large");
    }
    in_rack(&mut t, 4, 8, "b-small");
    in_rack(&mut t, 5, 8, "b-small");
    submit(&mut t, gang(2, 8, |spec| spec.topology.prefer = vec![Level::Node, label("rack")]));
    assert_eq!(racks(&t, 1), ["b-small", "b-small"], "no node takes both");
    submit(&mut t, gang(4, 8, |spec| spec.topology.require = Some(label("rack"))));
    assert_eq!(racks(&t, 2), ["a-large"; 4]);
}

#[test]
fn an_explanation_names_the_best_domain_and_what_it_would_do_without() {
    let mut t = pool();
    for (number, devices, rack) in [(0, 8, "r1"), (1, 4, "r1"), (2, 8, "r7"), (3, 8, "r7")] {
        in_rack(&mut t, number, devices, rack);
    }
    t.node(4, 8);
    submit(&mut t, gang(5, 4, |spec| spec.topology.require = Some(label("rack"))));
    let explanation = explain(&t.cluster, t.job(1));
    let sentence = "waits: no rack has room for all 5 ranks: the best, r7, has room for 4";
    assert_eq!(explanation.reason.to_string(), sentence);
    assert_eq!(explanation.change, Some(Change::Topology { from: label("rack") }));
    let text = explanation.text(JobId(1), t.now);
    assert!(text.contains("1  lacks the label rack"), "{text}");

    submit(&mut t, gang(3, 1, |spec| spec.roles[0].standing.apart = Some(label("rack"))));
    let explanation = explain(&t.cluster, t.job(2));
    assert!(matches!(explanation.reason, Reason::FewDomains { domains: 2, ranks: 3, .. }));
    let sentence =
        "waits: no two of the 3 ranks of worker may be in one rack, and only 2 could ever take one each";
    assert_eq!(explanation.reason.to_string(), sentence);
    assert_eq!(explanation.change, Some(Change::Apart { from: label("rack") }));
}

/// Ten seconds later all workers that were told to stop have.
fn obey(t: &mut Fixture) {
    t.now = t.now + Duration::from_secs(10);
    (0..t.cluster.nodes().len() as u32).for_each(|node| _ = t.obey(node));
}

/// Of the jobs of each node are lost, in seconds: 60 and 1 of rack a, 45 and 40 of rack b, 100 and 2 of rack c. Taken one by
/// one, the cheapest that complete a rack would be those of b.
#[test]
fn victims_are_those_of_the_domain_that_loses_least() {
    let mut t = pool();
    for number in 0..6 {
        let (rack, at) = (["a", "b", "c"][number as usize / 2], number.to_string());
        t.report(number, labelled(8, &[("rack", rack), ("at", &at)]), Vec::new());
    }
    for (node, later_s) in [(4, 40), (0, 15), (2, 5), (3, 38), (5, 1), (1, 1)] {
        let at = ("at".into(), node.to_string().into());
        submit(&mut t, gang(1, 8, |spec| spec.roles[0].request.labels = vec![at.clone()]));
        t.now = t.now + Duration::from_secs(later_s);
    }
    let topology = Topology { require: Some(label("rack")), prefer: Vec::new() };
    submit(&mut t, gang(2, 8, |spec| (spec.topology, spec.priority) = (topology.clone(), 1)));
    let stopping: Vec<u64> = t.cluster.jobs().stopping().map(|job| job.id.0).collect();
    assert_eq!(stopping, [2, 6], "both of the rack that loses least");
    obey(&mut t);
    assert_eq!(racks(&t, 7), ["a", "a"]);
}

/// In rack a both its jobs would have to stop. The one that stands in both racks is enough in rack b, whose other job makes
/// it look dearer.
#[test]
fn nobody_stops_who_is_needed_in_one_domain_alone_if_the_others_suffice_in_another() {
    let mut t = pool();
    for (number, devices, rack, x) in [(0, 4, "a", "0"), (1, 4, "a", "1"), (2, 4, "b", "0"), (3, 8, "b", "1")]
    {
        let at = number.to_string();
        t.report(number, labelled(devices, &[("rack", rack), ("x", x), ("at", &at)]), Vec::new());
    }
    let on = |key: &str, value: &str| vec![(key.into(), value.into())];
    submit(&mut t, gang(1, 4, |spec| spec.roles[0].request.labels = on("at", "3")));
    t.now = t.now + Duration::from_secs(100);
    submit(&mut t, gang(1, 4, |spec| spec.roles[0].request.labels = on("at", "0")));
    t.now = t.now + Duration::from_secs(10);
    submit(
        &mut t,
        gang(2, 4, |spec| {
            spec.roles[0].request.labels = on("x", "1");
            spec.roles[0].standing.apart = Some(label("rack"));
        }),
    );
    assert!((1..=3).all(|job| !t.job(job).ranks.is_empty()));
    t.now = t.now + Duration::from_secs(1);
    let topology = Topology { require: Some(label("rack")), prefer: Vec::new() };
    submit(&mut t, gang(2, 4, |spec| (spec.topology, spec.priority) = (topology.clone(), 1)));
    let stopping: Vec<u64> = t.cluster.jobs().stopping().map(|job| job.id.0).collect();
    assert_eq!(stopping, [3]);
    obey(&mut t);
    assert_eq!(racks(&t, 4), ["b", "b"]);
}

#[test]
fn nobody_stops_for_a_gang_that_no_domain_could_hold() {
    let mut t = pool();
    for number in 0..4 {
        in_rack(&mut t, number, 8, ["a", "b"][number as usize / 2]);
        submit(&mut t, spec(1, 8));
    }
    let wants = |ranks, level: Option<Level>| {
        gang(ranks, 8, |spec| {
            spec.topology.require = level.clone();
            spec.priority = 1;
        })
    };
    submit(&mut t, wants(3, Some(label("rack"))));
    submit(
        &mut t,
        gang(3, 8, |spec| (spec.roles[0].standing.apart, spec.priority) = (Some(label("rack")), 1)),
    );
    assert_eq!(t.cluster.jobs().stopping().count(), 0);
    submit(&mut t, wants(3, None));
    assert_eq!(t.cluster.jobs().stopping().count(), 3, "elsewhere they would");
}

/// Node 0 is soonest empty, then nodes 2 and 3, then node 1: its rack is complete later than the other.
#[test]
fn room_is_kept_in_one_domain() {
    let mut t = pool();
    for (number, rack) in [(0, "a"), (1, "a"), (2, "b"), (3, "b")] {
        in_rack(&mut t, number, 8, rack);
        let mut spec = spec(1, 8);
        spec.time_limit_ms = Some([10_000, 90_000, 50_000, 60_000][number as usize]);
        submit(&mut t, spec);
    }
    submit(&mut t, gang(2, 8, |spec| spec.topology.require = Some(label("rack"))));
    obey(&mut t);
    t.step(Event::Tick);
    (0..4).for_each(|node| _ = t.obey(node));
    // Node 0 is free, and kept for nobody: what has no limit may use it.
    submit(&mut t, spec(1, 8));
    assert_eq!(&*nodes(&t, 6)[0].name, "node-0");
    for _ in 0..12 {
        t.now = t.now + Duration::from_secs(5);
        t.step(Event::Tick);
        (0..4).for_each(|node| _ = t.obey(node));
        submit(&mut t, spec(1, 4));
    }
    assert_eq!(racks(&t, 5), ["b", "b"], "narrow ones that came later have not taken it");
}

#[test]
fn what_a_gang_cannot_use_is_not_kept_for_it() {
    let mut t = pool();
    for (number, rack) in [(0, "a"), (1, "a")] {
        in_rack(&mut t, number, 8, rack);
        let mut spec = spec(1, 8);
        spec.time_limit_ms = Some(10_000);
        submit(&mut t, spec);
    }
    // There is one rack: the two ranks can never stand apart.
    submit(&mut t, gang(2, 8, |spec| spec.roles[0].standing.apart = Some(label("rack"))));
    obey(&mut t);
    t.step(Event::Tick);
    (0..2).for_each(|node| _ = t.obey(node));
    submit(&mut t, spec(1, 1));
    assert_eq!(t.job(4).ranks.len(), 1);
}

#[test]
fn a_large_island_stays_whole_and_one_is_never_split_for_nothing() {
    let mut t = pool();
    let mut inventory = inventory(8, 64, 512);
    let islands = [0, 0, 0, 0, 0, 1, 1, 1];
    inventory.devices.iter_mut().zip(islands).for_each(|(device, island)| device.island = Some(island));
    t.report(0, inventory, Vec::new());
    let devices = |t: &Fixture, job: u64| t.job(job).ranks[0].devices.clone();
    submit(&mut t, spec(1, 2));
    assert_eq!(devices(&t, 1), [5, 6]);
    let require = |devices| gang(1, devices, |spec| spec.roles[0].request.devices[0].one_island = true);
    submit(&mut t, require(5));
    assert_eq!(devices(&t, 2), [0, 1, 2, 3, 4]);
    t.tell(Command::Cancel { job: JobId(2), whole_array: false });
    obey(&mut t);
    submit(&mut t, require(6));
    assert!(t.job(3).ranks.is_empty());
    let explanation = explain(&t.cluster, t.job(3));
    let text = explanation.text(JobId(3), t.now);
    assert!(text.contains("has 5 such devices in one island, a rank wants 6"), "{text}");
    assert!(text.contains("It would start now with devices of several islands."), "{text}");
    submit(&mut t, spec(1, 6));
    assert_eq!(devices(&t, 4), [0, 1, 2, 3, 4, 7], "what is only preferred keeps no job waiting");
}

/// The shape is what makes jobs fit alike: one that may be anywhere starts although one before it may not.
#[test]
fn jobs_of_other_wishes_are_of_another_shape() {
    let mut t = pool();
    in_rack(&mut t, 0, 4, "a");
    in_rack(&mut t, 1, 4, "b");
    let wishes: [&dyn Fn(&mut JobSpec); 3] = [
        &|spec| spec.topology.require = Some(label("rack")),
        &|spec| spec.roles[0].standing.apart = Some(label("zone")),
        &|spec| spec.roles[0].request.devices.iter_mut().for_each(|want| want.one_island = true),
    ];
    for wish in wishes {
        submit(&mut t, gang(2, 4, wish));
    }
    assert!((1..=3).all(|job| t.job(job).ranks.is_empty()));
    let shapes: BTreeSet<_> = (1..=3).map(|job| t.job(job).shape()).collect();
    assert_eq!(shapes.len(), 3);
    assert!(fits(&mut Free::of(&t.cluster), t.job(1)).is_err());
    submit(&mut t, gang(2, 4, |_| ()));
    assert_eq!(t.job(4).ranks.len(), 2);
}

/// Where devices hang counts less than how they are linked, and only for whole ones that are several.
#[test]
fn devices_of_a_rank_are_below_one_switch_or_near_one_memory_node_where_that_can_be() {
    let placed = |change: &dyn Fn(usize, &mut Device)| -> [Vec<u16>; 3] {
        let mut t = pool();
        let mut inventory = inventory(8, 64, 512);
        inventory.devices.iter_mut().enumerate().for_each(|(at, device)| change(at, device));
        t.report(0, inventory, Vec::new());
        // One device alone, of any switch; then two, then four of the five that are left.
        [1, 2, 4].map(|devices| {
            submit(&mut t, gang(1, devices, |_| ()));
            let last = t.cluster.jobs().iter().map(|job| job.id.0).max().expect("a job");
            t.job(last).ranks[0].devices.clone()
        })
    };
    let switches = |at: usize, device: &mut Device| device.locality.switch = Some(at as u16 / 2);
    let nodes = |at: usize, device: &mut Device| device.locality.numa_node = Some(at as u16 / 4);
    let both = |at: usize, device: &mut Device| {
        switches(at, device);
        nodes(at, device);
    };
    let four = vec![4, 5, 6, 7];
    assert_eq!(placed(&|_, _| ()), [vec![0], vec![1, 2], vec![3, 4, 5, 6]], "nothing is known");
    assert_eq!(placed(&switches), [vec![0], vec![2, 3], vec![1, 4, 5, 6]], "none has four");
    assert_eq!(placed(&nodes), [vec![0], vec![1, 2], four.clone()]);
    assert_eq!(placed(&both), [vec![0], vec![2, 3], four]);
    // One island goes before one switch, and within an island a switch counts.
    let linked = |at: usize, device: &mut Device| {
        both(at, device);
        device.island = Some(u16::from(3 <= at));
    };
    assert_eq!(placed(&linked), [vec![0], vec![1, 2], vec![4, 5, 6, 7]]);
}
