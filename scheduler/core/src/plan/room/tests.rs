//! The index finds what a look at every node finds.

use super::*;
use crate::health::Fault;
use crate::nodes::{Span, Until};
use crate::plan::price::{Rank, UNIT, WHOLE};
use crate::plan::score::Chosen;
use crate::topology::Standing;

const SPAN: Span = Span { since: Time(0), until: Until::Unknown, plain_grace_ms: None };

struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }
}

const GIB: u64 = 1 << 30;

fn classes() -> Vec<Arc<DeviceClass>> {
    let class = |vendor, model: &str, gib: u64| {
        Arc::new(DeviceClass { vendor, model: model.into(), memory_bytes: gib * GIB })
    };
    vec![
        class(Vendor::Nvidia, "h100-80gb", 80),
        class(Vendor::Nvidia, "t4", 16),
        class(Vendor::Ascend, "910b", 64),
        class(Vendor::Cpu, "zen4", 0),
    ]
}

/// Mostly of one class; sometimes of two, or with faults.
fn inventory(rng: &mut Rng) -> Inventory {
    let classes = classes();
    let main = rng.pick(&classes);
    let (linked, size) = (rng.below(2) == 0, rng.pick(&[2, 3, 4]));
    let device = |rng: &mut Rng, at: u64| Device {
        class: if rng.below(12) == 0 { rng.pick(&classes) } else { main.clone() },
        uuid: at.to_string().into(),
        fault: (rng.below(20) == 0).then(|| Fault::faulty("xid 79")),
        speed_milli: 1000,
        speed_source: "".into(),
        memory_gbs: 0,
        number: 0,
        isolation: Isolation::Advisory,
        island: linked.then_some(at as u16 / size),
        // Nobody draws it, so that all else is as it was.
        locality: Locality { switch: (size != 3).then_some(at as u16 / 2), numa_node: Some(at as u16 / 4) },
    };
    Inventory {
        devices: (0..rng.pick(&[0, 1, 2, 4, 8, 8, 8])).map(|at| device(rng, at)).collect(),
        cpus_milli: rng.pick(&[8_000, 64_000, 96_000, 128_000]),
        memory_bytes: rng.pick(&[64, 512]) * GIB,
        ports: Ports { first: 1, last: 60_000 },
        ..Inventory::default()
    }
}

fn request(rng: &mut Rng) -> Request {
    let vendor = rng.pick(&[None, None, Some(Vendor::Nvidia), Some(Vendor::Cpu)]);
    let model = if rng.below(4) == 0 { Some(rng.pick(&["h100", "t4", "910b|t4"]).into()) } else { None };
    let slice = Slice {
        compute_milli: rng.pick(&[0, 100, 250, 500, 810]),
        memory_bytes: rng.pick(&[0, 0, 4, 20]) * GIB,
    };
    let want = DeviceRequest {
        count: rng.pick(&[1, 1, 1, 2, 4, 8]),
        vendor,
        model,
        memory_bytes: 0,
        slice: (rng.below(2) == 0 && slice != Slice::default()).then_some(slice),
        isolation: Isolation::Advisory,
        one_island: rng.below(3) == 0,
    };
    Request {
        devices: if rng.below(8) == 0 { Vec::new() } else { vec![want] },
        cpus_milli: rng.pick(&[0, 1_000, 4_000, 9_000, 30_000]),
        memory_bytes: rng.pick(&[0, 1, 40]) * GIB,
        labels: Vec::new(),
        image: None,
    }
}

fn spec(request: Request) -> JobSpec {
    let role = Role {
        name: "worker".into(),
        ranks: 1,
        min_ranks: None,
        request,
        mounts: Vec::new(),
        standing: Standing::default(),
        program: Program::Command(vec!["work".into()]),
    };
    JobSpec { roles: vec![role], ..JobSpec::default() }
}

fn prices(rng: &mut Rng) -> Prices {
    let core_value = rng.pick(&[0, 800, 6_500, 70_000]);
    let devices =
        DeviceRequest { count: rng.pick(&[1, 8]), model: Some("t4".into()), ..DeviceRequest::default() };
    let rank = Rank { devices, cpus_milli: rng.pick(&[0, 80_000]), ..Rank::default() };
    let ranks = if rng.below(2) == 0 { vec![(rank, rng.below(600_000))] } else { Vec::new() };
    let asked: Vec<JobSpec> = (0..20).map(|_| spec(request(rng))).collect();
    let mut prices = Prices::learn(asked.iter());
    (prices.core_value, prices.ranks) = (core_value, ranks);
    // From pools with cores enough to those with too few.
    prices.asked = Totals { devices_milli: 1000, cpus_milli: rng.pick(&[1_000, 12_000, 16_000, 40_000]) };
    let mut served = 0;
    for part in &mut prices.served {
        served = WHOLE.min(served + rng.below(3) as i64 * rng.below(40) as i64);
        *part = served;
    }
    prices
}

/// Several devices are of one island if that is required, and whole ones wherever that can be: of the smallest that has
/// so many. Returns whether they are.
fn check_islands(
    room: &Room,
    node: &Node,
    want: Option<&DeviceRequest>,
    chosen: &Chosen,
    seed: u64,
) -> usize {
    let island = |index: u16| node.inventory.devices[usize::from(index)].island;
    let (Some(want), [first, _, ..]) = (want, &chosen.devices[..]) else { return 0 };
    let together = island(*first).is_some() && chosen.devices.iter().all(|at| island(*at) == island(*first));
    assert!(together || !want.one_island, "seed {seed}: {want:?} {chosen:?}");
    let class = &node.inventory.devices[usize::from(*first)].class;
    let free = room.on(node.id).devices.iter().filter(|device| device.compute_milli == 1000);
    let free = free.map(|device| device.index);
    let alike = free.filter(|at| node.inventory.devices[usize::from(*at)].class == *class);
    let islands = islands(&node.inventory.devices, alike);
    let enough = islands.iter().filter(|(_, devices)| want.count <= **devices);
    if want.slice.is_none() {
        let smallest = enough.map(|(_, devices)| *devices).min();
        assert_eq!(together, smallest.is_some(), "seed {seed}: {want:?} {chosen:?}");
        if let (true, Some(island)) = (together, island(*first)) {
            assert_eq!(Some(islands[&island]), smallest, "seed {seed}: large islands stay whole");
        }
    }
    if want.slice.is_none() {
        // Of those of one island, if they are, or else of all: below one switch, else near one memory node, of the fewest.
        let all: Vec<u16> = room
            .on(node.id)
            .devices
            .iter()
            .filter(|it| it.compute_milli == 1000)
            .map(|it| it.index)
            .collect();
        let of = |index: u16| &node.inventory.devices[usize::from(index)];
        let alike = |at: &u16| of(*at).class == *class && (!together || island(*at) == island(*first));
        for group in [|it: &Device| it.locality.switch, |it: &Device| it.locality.numa_node] {
            let mut sizes = BTreeMap::new();
            let groups = all.iter().filter(|at| alike(at)).filter_map(|at| group(of(*at)));
            groups.for_each(|group| *sizes.entry(group).or_insert(0) += 1);
            let Some(smallest) = sizes.values().copied().filter(|size| want.count <= *size).min() else {
                continue;
            };
            let own = group(of(*first)).map(|group| sizes[&group]);
            assert!(
                chosen.devices.iter().all(|at| group(of(*at)) == group(of(*first))),
                "seed {seed}: {chosen:?}"
            );
            assert_eq!(own, Some(smallest), "seed {seed}: {chosen:?}");
            break;
        }
    }
    usize::from(together)
}

#[test]
fn the_index_finds_what_a_look_at_every_node_finds() {
    let (mut found, mut not, mut linked) = (0, 0, 0);
    for seed in 0..60 {
        let mut rng = Rng(seed);
        let mut room = Room::default();
        room.set_prices(Arc::new(prices(&mut rng)));
        let nodes: Vec<Node> = (0..1 + rng.below(120) as u32)
            .map(|id| Node {
                id: NodeId(id),
                name: format!("node-{id}").into(),
                inventory: Arc::new(inventory(&mut rng)),
                up: rng.below(10) != 0,
                boot: 1,
                ..Node::new(NodeId(id), "".into())
            })
            .collect();
        let mut held: Vec<Held> = nodes.iter().map(|_| Held::default()).collect();
        nodes.iter().zip(&held).for_each(|(node, held)| room.refresh(node, held));
        let mut running: Vec<(WorkerId, Allocation)> = Vec::new();
        for step in 0..400 {
            if step == 200 {
                room.set_prices(Arc::new(prices(&mut rng)));
            }
            if rng.below(3) == 0 && !running.is_empty() {
                let (worker, rank) = running.swap_remove(rng.below(running.len() as u64) as usize);
                let at = rank.node.0 as usize;
                held[at].change(worker, &rank, SPAN, false);
                room.refresh(&nodes[at], &held[at]);
            }
            let (request, mut scarcity) = (request(&mut rng), room.scarcity());
            if rng.below(2) == 0 {
                // What programs of different speeds lose on each class, cores included.
                scarcity.iter_mut().for_each(|cost| *cost += rng.pick(&[0, 900, UNIT / 10, UNIT, 5 * UNIT]));
            }
            let modulo = rng.pick(&[1, 1, 3]);
            let passes = |node: NodeId, _: &NodeFree| node.0.is_multiple_of(modulo);
            let devices = request.devices.first();
            let best = room.best(&request, devices, &scarcity, &passes);
            assert_eq!(best, room.scan(&request, devices, &scarcity, &passes), "seed {seed}: {request:?}");
            let Some(best) = best else {
                not += 1;
                continue;
            };
            found += 1;
            let left = room.on(best.node).clone();
            let chosen = room.choose(best.node, &left, &request, devices, &scarcity).expect("it fits");
            assert_eq!(chosen.score, best);
            linked += check_islands(&room, &nodes[best.node.0 as usize], devices, &chosen, seed);
            assert!(room.takes(best.node, &request), "seed {seed}: {request:?}");
            let takes = devices.map(|want| room.takes_of(want));
            let bound = room.bound(best.node, &request, takes.as_deref(), 1);
            assert_eq!(bound, 1, "seed {seed}: {request:?}");
            let worker = WorkerId { job: JobId(step + 1), attempt: 1, rank: 0 };
            let rank = Allocation {
                rank: 0,
                node: best.node,
                devices: chosen.devices,
                slice: chosen.take.and_then(|take| take.slice),
                charge_milli: 0,
                cpus_milli: chosen.cpus_milli,
                memory_bytes: request.memory_bytes,
                port: 1 + step as u16,
                worker: RankState::Assigned,
                since: Time(0),
                restart_at: None,
                hasty: 0,
            };
            let mut left = left;
            left.take(&rank);
            room.change(best.node, left);
            held[best.node.0 as usize].change(worker, &rank, SPAN, true);
            running.push((worker, rank));
        }
        room.check(nodes.iter().zip(&held), |node, held| room.left_on(node, held));
    }
    assert!(5_000 < found && 2_000 < not, "{found} found, {not} not");
    assert!(500 < linked, "{linked} of one island");
}
