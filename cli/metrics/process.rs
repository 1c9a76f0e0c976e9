//! What this process uses, under the names that all of Prometheus' libraries have for it.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge};
use rustix::time::{ClockId, clock_gettime};

/// Looks when it is asked.
pub struct Process {
    cpu: Counter,
    memory: Gauge,
    files: Gauge,
    threads: Gauge,
    started: Gauge,
}

impl Process {
    /// Of this process, which has just started.
    pub fn new() -> Process {
        let gauge = |name, help| Gauge::new(name, help).expect("a name of the format");
        let cpu = Counter::new("process_cpu_seconds_total", "Processor time that this process has used");
        let started = gauge("process_start_time_seconds", "When this process started, in Unix time");
        started.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        Process {
            cpu: cpu.expect("a name of the format"),
            memory: gauge("process_resident_memory_bytes", "Main memory that this process has"),
            files: gauge("process_open_fds", "Files and connections that this process has open"),
            threads: gauge("process_threads", "Threads of this process"),
            started,
        }
    }

    fn parts(&self) -> [&dyn Collector; 5] {
        [&self.cpu, &self.memory, &self.files, &self.threads, &self.started]
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let used = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
        self.cpu.inc_by((used - self.cpu.get()).max(0.0));
        self.memory.set(resident() as f64);
        self.threads.set(field("Threads:"));
        self.files.set(fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as f64);
        self.parts().into_iter().flat_map(Collector::collect).collect()
    }
}

/// Main memory that this process has, in bytes; 0 where that is not told.
pub fn resident() -> u64 {
    field("VmRSS:") as u64 * 1024
}

/// The number after a word at the beginning of a line of what the kernel tells of this process; 0 where it does not.
fn field(name: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}
