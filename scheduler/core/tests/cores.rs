//! Cores beside accelerators: whom they suffice, and ranks that few nodes are large enough for.

mod fixture;

use std::sync::Arc;

use aquifer_core::*;
use fixture::*;

/// A rank of so many devices, or a part of one, with cores.
fn job(devices: u16, compute_milli: Option<u32>, cores: u32) -> JobSpec {
    let mut spec = spec(1, devices);
    let request = &mut spec.roles[0].request;
    request.cpus_milli = 1000 * cores;
    for want in &mut request.devices {
        want.slice = compute_milli.map(|compute_milli| Slice { compute_milli, memory_bytes: 0 });
    }
    spec
}

fn submit(t: &mut Fixture, spec: &JobSpec) -> JobId {
    t.tell(Command::Submit(Arc::new(spec.clone())));
    t.cluster.jobs().iter().next_back().expect("just submitted").id
}

/// A pool that knows what is asked for, and has no nodes yet.
fn pool_that_saw(demand: &[(u32, JobSpec)]) -> Fixture {
    let mut t = Fixture::new();
    for (times, spec) in demand {
        for _ in 0..*times {
            let job = submit(&mut t, spec);
            t.tell(Command::Cancel { job, whole_array: false });
        }
    }
    t
}

/// The node on which the job is placed.
fn place(t: &mut Fixture, spec: &JobSpec) -> String {
    let job = submit(t, spec);
    let rank = &t.job(job.0).ranks[0];
    t.cluster.nodes().get(rank.node).name.to_string()
}

#[test]
fn cores_are_taken_where_nobody_can_use_what_is_left_of_the_accelerators() {
    let mut t = pool_that_saw(&[(48, job(1, Some(600), 8)), (16, job(0, None, 8))]);
    t.report(0, inventory(3, 32, 512), Vec::new());
    for _ in 0..3 {
        assert_eq!(place(&mut t, &job(1, Some(600), 8)), "node-0");
    }
    // Three times 400 thousandths, which nobody asks for, against a whole device.
    t.report(1, inventory(1, 14, 512), Vec::new());
    assert_eq!(place(&mut t, &job(0, None, 4)), "node-0");
}

#[test]
fn cores_count_by_whom_they_suffice_where_there_are_too_few() {
    // 64 more that ask for cores alone: then what is asked for needs more cores than there are.
    for (more, node) in [(job(0, None, 4), "node-1"), (job(0, None, 1), "node-0")] {
        let mut t = pool_that_saw(&[(32, job(1, None, 2)), (32, job(1, None, 10)), (64, more)]);
        // With 4 cores less, 12 serve only half of all, and 7 those whom they serve anyway.
        t.report(0, inventory(1, 12, 512), Vec::new());
        t.report(1, inventory(1, 7, 512), Vec::new());
        assert_eq!(place(&mut t, &job(0, None, 4)), node);
    }
}

#[test]
fn a_class_is_spared_that_alone_has_nodes_which_are_large_enough_for_some() {
    let mut large = job(8, None, 16);
    large.roles[0].request.memory_bytes = 1024 * GIB;
    let mut t = pool_that_saw(&[(32, large), (32, job(1, None, 4))]);
    let mut of_another_class = inventory(8, 64, 2048);
    let class = DeviceClass { model: "b200".into(), ..(*class()).clone() };
    of_another_class.devices.iter_mut().for_each(|device| device.class = Arc::new(class.clone()));
    t.report(0, of_another_class, Vec::new());
    t.report(1, inventory(8, 64, 512), Vec::new());
    assert_eq!(place(&mut t, &job(1, None, 4)), "node-1");
}
