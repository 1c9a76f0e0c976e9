//! Changes of a request that would let it start now.

use std::cell::RefCell;

use super::*;

/// A change of a request.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Change {
    CpusMilli {
        from: u32,
        to: u32,
    },
    MemoryBytes {
        from: u64,
        to: u64,
    },
    DeviceMemoryBytes {
        from: u64,
        to: u64,
    },
    Devices {
        from: u16,
        to: u16,
    },
    Ranks {
        from: u32,
        to: u32,
    },
    MinRanks {
        from: u32,
        to: u32,
    },
    Model {
        from: Name,
    },
    Vendor {
        from: Vendor,
    },
    Labels,
    Image,
    Topology {
        from: Level,
    },
    Apart {
        from: Level,
    },
    Island,
    Isolation {
        from: Isolation,
        to: Isolation,
    },
    /// In milliseconds.
    TimeLimit {
        from: Option<u64>,
        to: u64,
    },
}

/// Tries changes from the least painful on; of each the smallest that works.
pub fn change(free: &mut Free, job: &Job) -> Option<Change> {
    let free = RefCell::new(free);
    let fits_as = |edit: &dyn Fn(&mut JobSpec)| {
        let mut spec = (*job.spec).clone();
        edit(&mut spec);
        fits(&mut free.borrow_mut(), &Job { spec: spec.into(), ..job.clone() }).is_ok()
    };
    let fits = |edit: &dyn Fn(&mut Role)| fits_as(&|spec| spec.roles.iter_mut().for_each(edit));
    let each_device = |edit: &dyn Fn(&mut DeviceRequest), role: &mut Role| {
        role.request.devices.iter_mut().for_each(edit);
    };
    // One role is what nearly all jobs have; with more, the figures named are those of the largest.
    let role = job.spec.roles.iter().max_by_key(|role| role.least())?;
    let request = &role.request;
    let device = request.devices.first();

    // It keeps all that it computes with.
    if let Some(from) = job.spec.topology.require.clone()
        && fits_as(&|spec| spec.topology.require = None)
    {
        return Some(Change::Topology { from });
    }
    if let Some(from) = job.spec.roles.iter().find_map(|role| role.standing.apart.clone())
        && fits(&|role| role.standing.apart = None)
    {
        return Some(Change::Apart { from });
    }
    if request.devices.iter().any(|want| want.one_island)
        && fits(&|role| each_device(&|d| d.one_island = false, role))
    {
        return Some(Change::Island);
    }
    if let Some(from) = request.devices.iter().map(|want| want.isolation).max() {
        let weaker = Isolation::ALL.iter().rev().map(|(isolation, _)| *isolation).filter(|it| *it < from);
        for to in weaker {
            if fits(&|role| each_device(&|d| d.isolation = d.isolation.min(to), role)) {
                return Some(Change::Isolation { from, to });
            }
        }
    }
    let cpus = largest(u64::from(request.cpus_milli / 1000), &|cpus| {
        fits(&|role| role.request.cpus_milli = role.request.cpus_milli.min(1000 * cpus as u32))
    });
    if let Some(cpus) = cpus {
        return Some(Change::CpusMilli { from: request.cpus_milli, to: 1000 * cpus as u32 });
    }
    let memory = largest(request.memory_bytes >> 30, &|gib| {
        fits(&|role| role.request.memory_bytes = role.request.memory_bytes.min(gib << 30))
    });
    if let Some(gib) = memory {
        return Some(Change::MemoryBytes { from: request.memory_bytes, to: gib << 30 });
    }
    if let Some(device) = device {
        let memory = largest(device.memory_bytes >> 30, &|gib| {
            fits(&|role| each_device(&|d| d.memory_bytes = d.memory_bytes.min(gib << 30), role))
        });
        if let Some(gib) = memory {
            return Some(Change::DeviceMemoryBytes { from: device.memory_bytes, to: gib << 30 });
        }
        let fewer = largest(u64::from(device.count), &|count| {
            0 < count && fits(&|role| each_device(&|d| d.count = d.count.min(count as u16), role))
        });
        if let Some(to) = fewer {
            return Some(Change::Devices { from: device.count, to: to as u16 });
        }
    }
    let fewer = largest(u64::from(role.least()), &|ranks| {
        let fewer = |role: &mut Role| match &mut role.min_ranks {
            Some(least) => *least = (*least).min(ranks as u32),
            None => role.ranks = role.ranks.min(ranks as u32),
        };
        0 < ranks && fits(&fewer)
    });
    if let Some(to) = fewer.map(|to| to as u32) {
        let from = role.least();
        return Some(match role.min_ranks {
            Some(_) => Change::MinRanks { from, to },
            None => Change::Ranks { from, to },
        });
    }
    if let Some(from) = device.and_then(|device| device.model.clone())
        && fits(&|role| each_device(&|d| d.model = None, role))
    {
        return Some(Change::Model { from });
    }
    if let Some(from) = device.and_then(|device| device.vendor)
        && fits(&|role| each_device(&|d| (d.model, d.vendor) = (None, None), role))
    {
        return Some(Change::Vendor { from });
    }
    let labelled = !request.labels.is_empty();
    if labelled && fits(&|role| role.request.labels.clear()) {
        return Some(Change::Labels);
    }
    let contained = request.image.is_some();
    (contained && fits(&|role| role.request.image = None)).then_some(Change::Image)
}

/// The largest value below `from` that fits, if smaller values fit whenever larger ones do.
fn largest(from: u64, fits: &dyn Fn(u64) -> bool) -> Option<u64> {
    if from == 0 || !(fits(0) || fits(1)) {
        return None;
    }
    let (mut fitting, mut unfit) = (u64::from(!fits(0)), from);
    while 1 < unfit - fitting {
        let middle = (fitting + unfit) / 2;
        if fits(middle) { fitting = middle } else { unfit = middle }
    }
    (fitting < from).then_some(fitting)
}
