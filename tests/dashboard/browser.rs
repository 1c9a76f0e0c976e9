//! A browser for tests: Chromium without a window, through the pipes of its debugging protocol.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::pool::until_or;

const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// For so long it is looked for what must stand on a page.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one tab.
pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Value,
    calls: u64,
    /// What pages complained about.
    said: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    /// `None`: there is none on this machine.
    pub fn start() -> Option<Browser> {
        let is_there = |name: &&&str| {
            let mut command = Command::new(name);
            let status = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        let name = NAMES.iter().find(is_there)?;
        let profile = TempDir::with_prefix("aquifer-browser-").expect("a temporary directory");
        // It speaks over the descriptors 3 and 4.
        let script = "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null";
        let mut command = Command::new("sh");
        command.args([
            "-c",
            script,
            name,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ]);
        command.args(["--remote-debugging-pipe", &format!("--user-data-dir={}", profile.path().display())]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("it starts");
        let (to, from) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        let (session, said) = (Value::Null, Vec::new());
        let from = BufReader::new(from);
        let mut browser = Browser { child, to, from, session, calls: 0, said, _profile: profile };
        let tab = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attach = json!({ "targetId": tab, "flatten": true });
        browser.session = browser.call("Target.attachToTarget", attach)["sessionId"].clone();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, json!({}));
        }
        Some(browser)
    }

    /// Opens an address, and waits until all of these texts stand on the page. Returns the page.
    #[track_caller]
    pub fn until(&mut self, url: &str, wanted: &[&str]) -> String {
        self.call("Page.navigate", json!({ "url": url }));
        let mut dom = String::new();
        let found = until_or(PATIENCE, || {
            let expression = "document.documentElement.outerHTML";
            let answer = self.call("Runtime.evaluate", json!({ "expression": expression }));
            dom = answer["result"]["value"].as_str().unwrap_or_default().into();
            wanted.iter().all(|text| dom.contains(text)).then_some(())
        });
        let missing: Vec<&&str> = wanted.iter().filter(|text| !dom.contains(**text)).collect();
        assert!(found.is_some(), "{url} does not show {missing:?}: {dom}\n{:?}", self.said);
        dom
    }

    /// What pages have complained about since it was asked last.
    pub fn said(&mut self) -> Vec<String> {
        std::mem::take(&mut self.said)
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut request = json!({ "id": self.calls, "method": method, "params": params });
        if self.session.is_string() {
            request["sessionId"] = self.session.clone();
        }
        self.to.write_all(format!("{request}\0").as_bytes()).expect("it reads");
        loop {
            let mut message = Vec::new();
            self.from.read_until(0, &mut message).expect("it answers");
            assert_eq!(message.pop(), Some(0), "the browser has ended");
            let mut message: Value = serde_json::from_slice(&message).expect("JSON");
            if message["id"] == self.calls {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].take();
            }
            match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => self.said.push(message["params"].to_string()),
                Some("Log.entryAdded") => self.said.push(message["params"]["entry"]["text"].to_string()),
                Some("Runtime.consoleAPICalled") => self.said.push(message["params"].to_string()),
                _ => (),
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        _ = self.child.kill(); // It has ended, or its test has failed.
        _ = self.child.wait();
    }
}
