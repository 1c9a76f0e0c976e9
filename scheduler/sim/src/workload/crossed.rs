//! Jobs that fill the pool before anybody knows which devices they are fast on.

use std::sync::Arc;

use aquifer_core::*;

use super::{Exit, Rng, Sim, Work, WorkPace, working};

/// Models on which one kind of jobs is fast and the other slow, or the other way round.
const MODELS: [[&str; 2]; 2] = [["h200-141gb", "core"], ["h100-80gb-hbm3", "910b"]];

/// As many long jobs of one device as the pool has, of two kinds with opposite advantages: some get each other's class, and
/// are worth changing places.
pub(super) fn submit(sim: &mut Sim, rng: &mut Rng, queues: &[&str], devices: u64) {
    for number in 0..devices.min(64) {
        let kind = rng.below(2) as usize;
        let device = |vendor| DeviceRequest { count: 1, vendor: Some(vendor), ..DeviceRequest::default() };
        let devices = [Vendor::Cpu, Vendor::Ascend, Vendor::Nvidia].map(device).into();
        let role = working("trainer", 1, Request { devices, cpus_milli: 100, ..Request::default() });
        let name: Name = format!("{}{number}", ["crossed-a", "crossed-b"][kind]).into();
        let spec = JobSpec {
            name: name.clone(),
            user: "ada".into(),
            queue: (*rng.pick(queues)).into(),
            client_key: name.clone(),
            roles: vec![role],
            grace_ms: *rng.pick(&[0, 1_000, 5_000]),
            retries: 3,
            ..JobSpec::default()
        };
        let rates_milli = (0..2)
            .flat_map(|at| MODELS[at].map(|model| (model.into(), if at == kind { 40_000 } else { 4_000 })));
        let pace = WorkPace { total_steps: rng.within((1_000, 3_000)), rates_milli: rates_milli.collect() };
        let checkpoint_ms = Some(rng.within((500, 2_000)));
        let (run_ms, pace) = (Some(0), Some(pace));
        sim.set_work(name, Work { run_ms, failures: 0, exit: Exit::Code(1), checkpoint_ms, pace });
        sim.client(Time(1_000 + number), Command::Submit(Arc::new(spec)), Time(u64::MAX));
    }
}
