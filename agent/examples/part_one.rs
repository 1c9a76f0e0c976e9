//! An agent that makes a part of a card for one worker and removes it again, for tests to kill: `part_one STATE_DIR VENDOR CARD
//! LIBRARY_DIR SYSFS`.

use aquifer_agent::device::{HelperCommand, Roots};
use aquifer_agent::partitions::{self, Partition, Partitions};
use aquifer_core::{JobId, Slice, WorkerId};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [state, vendor, card, library, sysfs] = &args[..] else { panic!("five arguments") };
    let own = std::env::current_exe().expect("this program");
    let helper = HelperCommand { program: own.with_file_name("ask_library"), args: Vec::new() };
    let roots = Roots { libraries: vec![library.into()], sysfs: sysfs.into(), helper, ..Roots::default() };
    let vendor = vendor.parse().expect("a vendor");
    let divider = partitions::open(vendor, &roots).expect("what parts its cards");
    let partitions = Partitions::new(state.as_ref(), None, vec![divider]);
    let id = WorkerId { job: JobId(1), attempt: 1, rank: 0 };
    let slice = Some(Slice { compute_milli: 200, memory_bytes: 8 << 30 });
    let partition = Partition::Instances { vendor, cards: vec![card.clone()], slice };
    println!("{:?}", partitions.prepare(id, &partition, true).expect("a part").devices);
    partitions.release(id);
}
