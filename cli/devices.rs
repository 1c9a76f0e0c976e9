//! `aquifer devices`: what this machine has, without any scheduler.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use aquifer_agent::device::measured::{self, Ended, Figures, Measurements, Site};
use aquifer_agent::device::topology::seat;
use aquifer_agent::device::{Backends, DeviceChoice, Roots};
use aquifer_agent::host::Host;
use aquifer_agent::partitions::ON_DEMAND;
use aquifer_agent::run_dir;
use aquifer_core::Vendor;
use serde::Serialize;

use crate::client::Global;
use crate::output::{Color, Failure, Output, Side, Table, aside, printable};
use crate::{agent, explain, figures, settings, units};

/// Show the devices of this machine, and why one is missing or faulty; needs no scheduler
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
#[command(after_help = "\
Example:
  aquifer devices --measure

This is what an agent on this machine would offer.")]
pub struct Args {
    /// What to look at.
    #[command(flatten)]
    pub place: Place,
    /// Measure them now, even if something runs on them: a few seconds for each kind that the worker has kernels for
    #[arg(long)]
    pub measure: bool,
    /// Program that measures devices which the worker has no kernels for: PROGRAM VENDOR UUID BUS-ADDRESS NUMBER. Default: none
    #[arg(long, env = "AQUIFER_MEASURE_WITH", value_name = "PROGRAM")]
    pub measure_with: Option<String>,
    /// Directory of the agent, which keeps what was measured. Default: the user's data directory
    #[arg(long, env = "AQUIFER_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Where devices are looked for.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub struct Place {
    /// Devices to look for: `auto`, `none`, or a list of `cpu`, `cpu:0-3+6`, vendors and `fake:FILE` with commas
    #[arg(long, env = "AQUIFER_DEVICES", value_name = "DEVICES", default_value = "auto")]
    pub devices: String,
    /// Directories in which vendors' libraries are looked for first, with colons. Default: none
    #[arg(
        long,
        env = "AQUIFER_LIBRARY_PATH",
        value_name = "DIRS",
        default_value = "",
        hide_default_value = true
    )]
    pub library_path: String,
    /// What the kernel knows of devices
    #[arg(long, env = "AQUIFER_SYSFS", value_name = "DIR", default_value = "/sys")]
    pub sysfs: PathBuf,
}

/// What a machine has.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Machine {
    pub node: String,
    pub devices: Vec<Device>,
    pub findings: Vec<Finding>,
}

/// One device.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Device {
    pub index: u16,
    pub vendor: String,
    pub model: String,
    pub memory_bytes: u64,
    pub uuid: String,
    /// Why it takes no work.
    pub fault: Option<String>,
    /// Address on the bus.
    pub place: String,
    pub numa_node: Option<u32>,
    /// Address of the PCIe switch above it.
    pub switch: Option<String>,
    /// How fast it is, in thousandths of a reference device.
    pub speed_milli: u32,
    /// Who says so: a measurement, a datasheet, a file of fake devices, or nobody.
    pub speed_source: String,
    /// How fast it reads its memory, in GB/s, by the same or, where that does not say, by a datasheet; 0: nobody knows.
    pub memory_gbs: u32,
    /// What a device of its kind was measured to do.
    pub measured: Option<Figures>,
    /// Those with the same number are linked directly.
    pub island: Option<u16>,
    /// How well slices of it are kept from each other: hard, limited, advisory.
    pub isolation: String,
    /// Setting of the agent under which parts of it are made on demand.
    pub parted_by: Option<String>,
    /// What a worker that holds it is told.
    pub environment: Vec<String>,
    /// What a worker that holds it must be able to open.
    pub device_nodes: Vec<String>,
}

/// What people should know about a vendor's devices.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Finding {
    pub vendor: String,
    pub what: String,
}

impl Device {
    /// Whether only the bus says that it is there.
    pub fn is_unread(&self) -> bool {
        self.fault.is_some() && self.memory_bytes == 0
    }
}

impl Place {
    /// Looks at the machine.
    ///
    /// * `state_dir`: where the agent keeps what was measured; `site`: what measures devices that the worker has no kernels for;
    ///   `measured_now`: anew.
    ///
    /// # Errors
    /// A flag that makes no sense, or devices that were asked for and cannot be had.
    pub fn look(&self, state_dir: &Path, site: Option<Site>, measured_now: bool) -> Result<Machine, Failure> {
        let next = "see `aquifer devices --help`";
        let choice: DeviceChoice =
            self.devices.parse().map_err(|error| Failure::usage(format!("{error}"), next))?;
        let libraries = agent::libraries(&self.library_path)
            .map_err(|why| Failure::usage(format!("--library-path: {why}"), next))?;
        // What is not there finds nothing, which looks as if there were nothing to be found.
        let flags = [("--sysfs", std::slice::from_ref(&self.sysfs)), ("--library-path", &libraries[..])];
        for (flag, dir) in flags.iter().flat_map(|(flag, dirs)| dirs.iter().map(move |dir| (flag, dir))) {
            if !dir.is_dir() {
                return Err(Failure::usage(format!("{flag}: {} is no directory", dir.display()), next));
            }
        }
        let roots = Roots { sysfs: self.sysfs.clone(), libraries, ..Roots::default() };
        let host = Host::read();
        let mut backends = Backends::open(&choice, &host, &roots, None)
            .map_err(|error| Failure::usage(format!("{error}"), next))?;
        backends.use_measured(Measurements::open(&state_dir.join("measured.json"), site));
        let unmeasured = if measured_now { measure(&mut backends, state_dir)? } else { Vec::new() };
        backends.enforce(aquifer_agent::cgroup::enforceable(), false);
        let offered = backends.devices();
        let devices = (0u16..).zip(offered).zip(backends.found()).map(|((index, device), found)| {
            let seat = seat(&roots.sysfs, &found.place);
            let shown = backends.visibility(&[index], None);
            Device {
                index,
                vendor: device.class.vendor.to_string(),
                model: device.class.model.to_string(),
                memory_bytes: device.class.memory_bytes,
                uuid: device.uuid.to_string(),
                fault: device.fault.map(|fault| fault.to_string()),
                place: found.place.clone(),
                numa_node: seat.numa_node,
                switch: seat.switch,
                speed_milli: device.speed_milli,
                speed_source: device.speed_source.to_string(),
                memory_gbs: device.memory_gbs,
                measured: backends.figures(index).cloned(),
                island: device.island,
                isolation: device.isolation.to_string(),
                parted_by: found.parts.and_then(|_| setting(found.class.vendor)),
                environment: shown.env.iter().map(|(key, value)| format!("{key}={value}")).collect(),
                device_nodes: shown.device_nodes.iter().map(|node| node.display().to_string()).collect(),
            }
        });
        let finding = |finding: &aquifer_agent::device::Finding| Finding {
            vendor: finding.vendor.to_string(),
            what: finding.what.clone(),
        };
        let strangers = backends.strangers().iter();
        let strangers = strangers.map(|what| Finding { vendor: "others".into(), what: what.clone() });
        Ok(Machine {
            node: host.name.clone(),
            devices: devices.collect(),
            findings: backends.findings().iter().map(finding).chain(strangers).chain(unmeasured).collect(),
        })
    }
}

/// Measures every kind of device that nobody uses, one after the other, and says why some were not.
fn measure(backends: &mut Backends, state_dir: &Path) -> Result<Vec<Finding>, Failure> {
    let failed = |what: String| Failure::refused(what, "`aquifer worker measure` says more");
    let program = std::env::current_exe().map_err(|error| failed(format!("this program: {error}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(format!("cannot start: {error}")))?;
    // What a core does says nothing while workers run on others.
    let works = run_dir::has_workers(state_dir);
    let cores: Vec<bool> = backends.found().map(|found| found.class.vendor == Vendor::Cpu).collect();
    let usable = |index: u16| !(works && cores[usize::from(index)]);
    let in_use = backends.in_use(usable).into_iter().map(|class| Finding {
        vendor: class.vendor.to_string(),
        what: format!("{} was not measured: it is in use", class.model),
    });
    let mut findings: Vec<Finding> = in_use.collect();
    for of in backends.to_measure(true, usable) {
        let (vendor, model) = (of.class.vendor.to_string(), &of.class.model);
        let never = std::future::pending();
        let trouble = match runtime.block_on(measured::measure(&program, &of, false, of.on.patience(), never))
        {
            Ended::Measured(figures, trouble) => {
                if let Err(error) = backends.enter_measured(&of, figures) {
                    aside(format!("what was measured cannot be kept for the agent: {error}"));
                }
                trouble.map(|why| format!("{model} was not measured to the end: {why}"))
            }
            Ended::Failed(why) => Some(format!("{model} could not be measured: {why}")),
            Ended::Busy => Some(format!("{model} was not measured: it is in use")),
            Ended::Stopped => None,
        };
        findings.extend(trouble.map(|what| Finding { vendor, what }));
    }
    Ok(findings)
}

/// Runs `aquifer devices`.
///
/// # Errors
/// A flag that makes no sense.
pub fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let output = Output::new(global.json, global.no_color);
    let state_dir = args.state_dir.clone().unwrap_or_else(|| settings::data_dir().join("agent"));
    let site = args.measure_with.as_deref().map(agent::program).transpose();
    let site = site.map_err(|why| Failure::usage(format!("--measure-with: {why}"), "give its whole path"))?;
    let machine = args.place.look(&state_dir, site.map(Site::new), args.measure)?;
    match output.json {
        true => output.document(&machine),
        false => output.text(text(&machine, &output)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The machine for people; what is missing or broken stands below the table.
pub fn text(machine: &Machine, output: &Output) -> String {
    let columns = [
        ("DEVICE", Side::Right),
        ("VENDOR", Side::Left),
        ("MODEL", Side::Left),
        ("MEMORY", Side::Right),
        ("SPEED", Side::Right),
        ("STATE", Side::Left),
        ("ISLAND", Side::Right),
        ("SWITCH", Side::Right),
        ("NUMA", Side::Right),
        ("PLACE", Side::Left),
        ("UUID", Side::Left),
    ];
    let mut table = Table::new(&columns).elastic(&[9, 4]);
    let switches: BTreeSet<&String> =
        machine.devices.iter().filter_map(|device| device.switch.as_ref()).collect();
    let switch = |device: &Device| {
        let own = device.switch.as_ref()?;
        switches.iter().position(|switch| *switch == own).map(|number| number as u32)
    };
    for device in &machine.devices {
        let number = |number: Option<u32>| number.map(|number| number.to_string()).unwrap_or_default();
        table.row([
            explain::devices(&[device.index.into()], ""),
            device.vendor.clone(),
            device.model.clone(),
            if device.is_unread() { String::new() } else { units::size(device.memory_bytes) },
            if device.is_unread() { String::new() } else { units::milli(device.speed_milli.into()) },
            device.fault.as_ref().map_or("well".into(), |fault| fault.to_string()),
            number(device.island.map(u32::from)),
            number(switch(device)),
            number(device.numa_node),
            if device.vendor == "cpu" { String::new() } else { device.place.clone() },
            device.uuid.clone(),
        ]);
    }
    let mut parts = vec![match machine.devices.is_empty() {
        true => "This machine has no devices.".to_string(),
        false => table.plain(output),
    }];
    let line = |finding: &Finding| {
        output.paint(Color::Yellow, &printable(&format!("{}: {}", finding.vendor, finding.what)))
    };
    let mut kinds: Vec<&Device> = Vec::new();
    // Of a card that could not be read there is nothing to say but why.
    for device in machine.devices.iter().filter(|device| !device.is_unread()) {
        if kinds.iter().all(|kind| (&kind.vendor, &kind.model) != (&device.vendor, &device.model)) {
            kinds.push(device);
        }
    }
    if !kinds.is_empty() {
        parts.push(kinds.iter().map(|kind| speed_text(kind)).collect::<Vec<String>>().join("\n"));
    }
    if !machine.findings.is_empty() {
        parts.push(machine.findings.iter().map(line).collect::<Vec<String>>().join("\n"));
    }
    parts.join("\n\n")
}

/// The setting of the agent that has it make parts of a vendor's cards.
fn setting(vendor: Vendor) -> Option<String> {
    let (_, setting) = ON_DEMAND.into_iter().find(|(own, _)| *own == vendor)?;
    Some(setting.into())
}

/// What a kind of devices does, and who says so.
fn speed_text(device: &Device) -> String {
    let mut parts = figures::parts(&device.speed_source, device.measured.as_ref(), device.memory_gbs);
    if let Some(setting) = &device.parted_by {
        parts.push(format!("parts of it can be made on demand (--{setting} on-demand)"));
    }
    printable(&format!("{}: {}", device.model, parts.join(", ")))
}
