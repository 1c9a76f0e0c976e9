//! The core's decisions by criterion, which tells whether a change made them faster: `cargo bench -p aquifer-sim`.
//!
//! `aquifer bench decisions` prints all of them once, for all sizes of pools.

#![allow(missing_docs)] // Of what the macro makes.

use std::hint::black_box;
use std::sync::Arc;

use aquifer_core::explain::explain;
use aquifer_core::jobs::Job;
use aquifer_core::plan::{Free, fits, plan};
use aquifer_core::{Cluster, Command, Event, JobId, Time};
use aquifer_sim::bench::pool;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

const NODES: u32 = 10_000;
const WAITING: u32 = 100_000;

fn step(mut cluster: Cluster, event: Event) -> Cluster {
    let now = cluster.now();
    cluster.step(now, event, &mut Vec::new());
    cluster
}

fn decisions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("10,000 nodes");
    group.sample_size(10);

    let waiting = pool::waiting(NODES, WAITING);
    let begin = || Free::of(&waiting);
    group.bench_function("a round of 100,000 jobs", |bench| {
        bench.iter_batched_ref(begin, |free| black_box(plan(free, Time(0))), BatchSize::PerIteration);
    });

    let busy = step(waiting.clone(), Event::Tick);
    let submit = |spec| Event::Request { id: 0, command: Command::Submit(Arc::new(spec)) };
    let unfit = pool::spec(1, pool::want(8, None, None), 100_000_000);
    group.bench_function("a submission that waits", |bench| {
        let copy = || (busy.clone(), submit(unfit.clone()));
        bench.iter_batched(copy, |(cluster, event)| step(cluster, event), BatchSize::PerIteration);
    });
    group.bench_function("a step that changes nothing", |bench| {
        bench.iter_batched(|| busy.clone(), |cluster| step(cluster, Event::Tick), BatchSize::PerIteration);
    });
    let last = busy.jobs().iter().next_back().expect("one that waits");
    group.bench_function("explain", |bench| bench.iter(|| black_box(explain(&busy, last))));

    let idle = pool::idle(NODES);
    let gang = pool::spec(1024, pool::want(1, Some(pool::CLASSES[0].1), None), 4000);
    let gang = Job::new(JobId(1), Arc::new(gang), None, Time(0));
    let mut free = Free::of(&idle);
    group.bench_function("a gang of 1,024", |bench| bench.iter(|| black_box(fits(&mut free, &gang))));
    group.finish();
}

criterion_group!(benches, decisions);
criterion_main!(benches);
