//! An agent that makes a MIG instance for one worker and removes it again, for tests to kill: `part_one STATE_DIR
//! LIBRARY_DIR`.

use aquifer_agent::partitions::{Mig, Partition, Partitions};
use aquifer_core::{JobId, Slice, WorkerId};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mig = Mig::open(&[args[1].clone().into()]).expect("a library");
    let partitions = Partitions::new(args[0].as_ref(), None, Some(mig));
    let id = WorkerId { job: JobId(1), attempt: 1, rank: 0 };
    let slice = Some(Slice { compute_milli: 200, memory_bytes: 8 << 30 });
    let partition = Partition::Instances { cards: vec!["GPU-0000".into()], slice };
    println!("{:?}", partitions.prepare(id, &partition).expect("an instance").devices);
    partitions.release(id);
}
