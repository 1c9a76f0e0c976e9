//! A hub and nodes, each in a network namespace of its own, with a link from the hub to each node and to us.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// Which way nothing passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the hub and from it.
    Both,
    /// To the hub.
    Up,
    /// From the hub.
    Down,
}

/// All that was made, and goes with it.
pub struct Net {
    /// Begins the names of all namespaces and links.
    name: String,
    /// Begins all addresses.
    subnet: String,
    links: u32,
    namespaces: Vec<String>,
}

impl Net {
    /// The hub, and a link from it to us.
    ///
    /// # Errors
    /// Says why there can be none.
    pub fn new() -> Result<Net, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (number, pid) = (NEXT.fetch_add(1, Ordering::Relaxed), std::process::id());
        let subnet = format!("10.{}.{}", 200 + number % 50, pid % 250);
        let mut net = Net { name: format!("aq{pid}-{number}"), subnet, links: 0, namespaces: Vec::new() };
        let hub = net.hub();
        net.namespace(&hub)?;
        net.link(None)?;
        run("ip", &["netns", "exec", &hub, "iptables", "-L", "INPUT"])?;
        Ok(net)
    }

    /// Namespace of the hub.
    pub fn hub(&self) -> String {
        format!("{}-h", self.name)
    }

    /// Address of the hub on the link to us.
    pub fn to_us(&self) -> String {
        self.address(0, 1)
    }

    /// Another namespace with a link to the hub; returns its name, and the hub's address on that link.
    pub fn join(&mut self, name: &str) -> Result<(String, String), String> {
        let namespace = self.of(name);
        self.namespace(&namespace)?;
        let hub = self.link(Some(&namespace))?;
        Ok((namespace, hub))
    }

    /// From now on nothing passes.
    pub fn cut(&self, name: &str, way: Way) {
        let rule = |chain, flag| self.iptables(&["-A", chain, flag, &self.of(name), "-j", "DROP"]);
        if way != Way::Down {
            rule("INPUT", "-i");
        }
        if way != Way::Up {
            rule("OUTPUT", "-o");
        }
    }

    /// From now on packets are lost with this probability, each way.
    pub fn lose(&self, name: &str, probability: &str) {
        for (chain, flag) in [("INPUT", "-i"), ("OUTPUT", "-o")] {
            let random = ["-m", "statistic", "--mode", "random", "--probability", probability];
            let of = self.of(name);
            let rule = [&["-A", chain, flag, &of][..], &random, &["-j", "DROP"]].concat();
            self.iptables(&rule);
        }
    }

    /// From now on so much passes in a second, each way.
    ///
    /// # Errors
    /// The kernel, or this machine, cannot do that.
    pub fn narrow(&self, name: &str, rate: &str) -> Result<(), String> {
        let (hub, near) = (self.hub(), self.of(name));
        let far = run("ip", &["-n", &near, "-o", "link", "show", "type", "veth"])?;
        let far = far.split([' ', '@']).find(|word| word.starts_with(&self.name)).ok_or("it has no link")?;
        for (namespace, link) in [(&hub, &near[..]), (&near, far)] {
            let shape = ["root", "tbf", "rate", rate, "burst", "4kb", "latency", "400ms"];
            let words =
                [&["netns", "exec", namespace, "tc", "qdisc", "add", "dev", link][..], &shape].concat();
            run("ip", &words)?;
        }
        Ok(())
    }

    /// Packets that were dropped.
    pub fn lost(&self, name: &str) -> u64 {
        let rules = self.iptables(&["-L", "-v", "-x", "-n"]);
        let dropped = rules.lines().filter(|line| line.contains("DROP") && line.contains(&self.of(name)));
        dropped.filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok()).sum()
    }

    /// Everything passes again on all links.
    pub fn heal(&self, _: &str) {
        self.iptables(&["-F"]);
    }

    fn iptables(&self, rule: &[&str]) -> String {
        // `-w`: waits for others that change rules.
        let hub = self.hub();
        let words = [&["netns", "exec", &hub, "iptables", "-w"][..], rule].concat();
        run("ip", &words).expect("iptables")
    }

    /// Name of a namespace, and of the hub's end of the link to it.
    fn of(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }

    fn address(&self, link: u32, end: u32) -> String {
        format!("{}.{}", self.subnet, 4 * link + end)
    }

    fn namespace(&mut self, name: &str) -> Result<(), String> {
        run("ip", &["netns", "add", name])?;
        self.namespaces.push(name.into());
        run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        Ok(())
    }

    /// Links the hub with a namespace, or with ours.
    fn link(&mut self, namespace: Option<&str>) -> Result<String, String> {
        let number = self.links;
        self.links += 1;
        let (hub, far) = (self.hub(), format!("{}-f{number}", self.name));
        let near = namespace.map_or(format!("{}-us", self.name), Into::into);
        let [ours, theirs] = [1, 2].map(|end| format!("{}/30", self.address(number, end)));
        run("ip", &["link", "add", &near, "netns", &hub, "type", "veth", "peer", "name", &far])?;
        run("ip", &["-n", &hub, "addr", "add", &ours, "dev", &near])?;
        run("ip", &["-n", &hub, "link", "set", &near, "up"])?;
        if let Some(namespace) = namespace {
            run("ip", &["link", "set", &far, "netns", namespace])?;
        }
        let inside = namespace.map_or(vec![], |namespace| vec!["-n", namespace]);
        run("ip", &[&inside[..], &["addr", "add", &theirs, "dev", &far]].concat())?;
        run("ip", &[&inside[..], &["link", "set", &far, "up"]].concat())?;
        Ok(self.address(number, 1))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            _ = run("ip", &["netns", "del", namespace]); // Its links go with it.
        }
    }
}

/// Lets a fault last.
pub fn pass(time: Duration) {
    thread::sleep(time);
}

fn run(program: &str, words: &[&str]) -> Result<String, String> {
    let said = |what: &dyn std::fmt::Display| format!("{program} {}: {what}", words.join(" "));
    let output = Command::new(program).args(words).output().map_err(|error| said(&error))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(said(&String::from_utf8_lossy(&output.stderr).trim())),
    }
}
