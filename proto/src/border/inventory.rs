//! What a node offers, checked.

use super::*;

/// Checks what a node offers.
pub fn inventory(wire: &v1::Inventory) -> Checked<Inventory> {
    if usize::from(u16::MAX) < wire.devices.len() {
        return Err(Invalid::new("inventory.devices", wire.devices.len(), "at most 65,535"));
    }
    let mut classes: BTreeMap<(Vendor, Name, u64), Arc<DeviceClass>> = BTreeMap::new();
    let devices = wire.devices.iter().enumerate().map(|(at, wire)| {
        let vendor = vendor(&format!("inventory.devices[{at}].vendor"), &wire.vendor)?;
        let model = text(&format!("inventory.devices[{at}].model"), &wire.model, 128)?;
        let memory_bytes = wire.memory_bytes;
        let class = classes.entry((vendor, model.clone(), memory_bytes));
        let class = class.or_insert_with(|| Arc::new(DeviceClass { vendor, model, memory_bytes })).clone();
        let health = match (&wire.fault, &wire.health[..]) {
            (None, _) | (Some(_), "") => Health::Faulty,
            (Some(_), named) => {
                let known = Health::ALL.iter().find(|(_, name)| *name == named);
                let names: Vec<&str> = Health::ALL.iter().map(|(_, name)| *name).collect();
                let expected = || format!("expected one of {}", names.join(", "));
                let field = || format!("inventory.devices[{at}].health");
                known.ok_or_else(|| Invalid::new(field(), named, expected()))?.0
            }
        };
        let why = wire.fault.as_deref().map(Name::from);
        let fault = why.map(|why| Fault { health, why, since_ms: wire.fault_since_ms });
        let speed_milli = if wire.speed_milli == 0 { 1000 } else { wire.speed_milli };
        if 1_000_000 < speed_milli {
            let field = format!("inventory.devices[{at}].speed_milli");
            return Err(Invalid::new(field, speed_milli, "at most 1,000,000"));
        }
        let group = |name: &str, number: Option<u32>| {
            let field = || format!("inventory.devices[{at}].{name}");
            let small = |it| u16::try_from(it).map_err(|_| Invalid::new(field(), it, "at most 65,535"));
            number.map(small).transpose()
        };
        let island = group("island", wire.island)?;
        let switch = group("pcie_switch", wire.pcie_switch)?;
        let locality = Locality { switch, numa_node: group("numa_node", wire.numa_node)? };
        let uuid = wire.uuid.as_str().into();
        let speed_source = wire.speed_source.as_str().into();
        let number = wire.number;
        let isolation = isolation(&format!("inventory.devices[{at}].isolation"), &wire.isolation)?;
        let memory_gbs = wire.memory_gbs;
        Ok(Device {
            class,
            uuid,
            fault,
            speed_milli,
            speed_source,
            memory_gbs,
            number,
            isolation,
            island,
            locality,
        })
    });
    let devices = devices.collect::<Checked<Vec<Device>>>()?;
    let measured = wire.measured.iter().enumerate().map(|(at, wire)| {
        let vendor = vendor(&format!("inventory.measured[{at}].vendor"), &wire.vendor)?;
        let class = classes.get(&(vendor, wire.model.as_str().into(), wire.memory_bytes));
        let field = || format!("inventory.measured[{at}].model");
        let class = class.ok_or_else(|| Invalid::new(field(), &wire.model, "expected that of a device"))?;
        Ok((class.clone(), figures(wire)))
    });
    let measured = measured.collect::<Checked<BTreeMap<_, _>>>()?;
    let port = |field, port: u32| {
        u16::try_from(port).map_err(|_| Invalid::new(field, port, "expected a port, at most 65,535"))
    };
    Ok(Inventory {
        devices,
        cpus_milli: wire.cpus_milli,
        memory_bytes: wire.memory_bytes,
        address: address("inventory.address", &wire.address)?,
        ports: Ports {
            first: port("inventory.first_port", wire.first_port)?,
            last: port("inventory.last_port", wire.last_port)?,
        },
        labels: pairs("inventory.labels", &wire.labels, 65_536)?.into_iter().collect(),
        engine: text("inventory.engine", &wire.engine, 128)?,
        measured,
    })
}

fn figures(wire: &v1::Measured) -> Measured {
    Measured {
        f32_mflops: wire.f32_mflops,
        bf16_mflops: wire.bf16_mflops,
        int8_mflops: wire.int8_mflops,
        attention_mflops: wire.attention_mflops,
        memory_mbs: wire.memory_mbs,
        host_link_mbs: wire.host_link_mbs,
        train_tokens_milli: wire.train_tokens_milli,
        decode_tokens_milli: wire.decode_tokens_milli,
    }
}
