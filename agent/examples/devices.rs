//! Prints what a node offers: `devices CHOICE`, `auto` if left out.

use aquifer_agent::device::{Backends, DeviceChoice};
use aquifer_agent::host::Host;

fn main() {
    let choice = std::env::args().nth(1).unwrap_or("auto".to_string());
    let choice: DeviceChoice = choice.parse().unwrap_or_else(|error| panic!("{error}"));
    let host = Host::read();
    println!("{host:?}");
    let backends = Backends::open(&choice, &host, None).unwrap_or_else(|error| panic!("{error}"));
    for (index, device) in (0u16..).zip(backends.devices()) {
        let fault = device.fault.as_deref().unwrap_or("well");
        println!(
            "{index} {} {} {} MiB {}: {fault}",
            device.class.vendor,
            device.class.model,
            device.class.memory_bytes >> 20,
            device.uuid
        );
        println!("  {:?}", backends.visibility(&[index]));
    }
    for finding in backends.findings() {
        println!("{finding}");
    }
}
