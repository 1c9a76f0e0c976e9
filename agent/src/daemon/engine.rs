//! The engine that runs containers: looked for until there is one, since it may start after the agent.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::config::AgentConfig;
use crate::cgroup::Limits;
use crate::container::{self, Engine, EngineChoice};

/// First pause before it is looked for again; twice as long each time, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a search found: an engine, and why those that are there do not work.
pub type Search = (Option<Engine>, Vec<String>);

/// The engine of the node, or the search for it.
pub struct EngineWatch {
    choice: EngineChoice,
    enforce_limits: bool,
    /// What runs containers.
    pub found: Option<Arc<Engine>>,
    /// Why one that is there does not.
    pub findings: Vec<String>,
    /// When to search again; `None`: not, or a search is under way.
    due: Option<Instant>,
    pause: Duration,
}

impl EngineWatch {
    /// One that has not searched.
    pub fn new(config: &AgentConfig) -> EngineWatch {
        let (choice, enforce_limits) = (config.engine.clone(), config.enforce_limits);
        EngineWatch { choice, enforce_limits, found: None, findings: Vec::new(), due: None, pause: PAUSE }
    }

    /// Searches now, on a thread that may block: docker's client waits for its daemon.
    pub fn search(&self) -> tokio::task::JoinHandle<Search> {
        let choice = self.choice.clone();
        tokio::task::spawn_blocking(move || container::find(&choice))
    }

    /// Searches, if it is time to.
    pub fn search_if_due(&mut self, done: &mpsc::Sender<Search>) {
        if self.due.take_if(|due| *due <= Instant::now()).is_some() {
            let (search, done) = (self.search(), done.clone());
            tokio::spawn(async move {
                if let Ok(found) = search.await {
                    _ = done.send(found).await; // The daemon may have ended.
                }
            });
        }
    }

    /// Takes in what a search has found.
    pub fn on_search(&mut self, (engine, findings): Search) {
        for finding in findings.iter().filter(|finding| !self.findings.contains(finding)) {
            tracing::warn!("{finding}");
        }
        self.findings = findings;
        let Some(mut engine) = engine else {
            if self.choice != EngineChoice::Never {
                self.due = Some(Instant::now() + self.pause);
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
            return;
        };
        if !self.enforce_limits {
            (engine.limits, engine.cpuset) = (Limits::default(), false);
        }
        tracing::info!(%engine, "containers can run");
        self.found = Some(Arc::new(engine));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(choice: EngineChoice) -> EngineWatch {
        let (found, findings, due) = (None, Vec::new(), None);
        EngineWatch { choice, enforce_limits: true, found, findings, due, pause: PAUSE }
    }

    #[tokio::test]
    async fn an_engine_is_looked_for_ever_more_rarely_until_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("engine");
        let mut watch = watch(EngineChoice::This(program.clone()));
        let (done, mut searches) = mpsc::channel(1);
        let mut pauses = Vec::new();
        watch.on_search(watch.search().await.unwrap());
        assert_eq!(watch.findings, [format!("container engine {}: no such program", program.display())]);
        while watch.found.is_none() {
            watch.search_if_due(&done);
            let due = watch.due.expect("it is not searched for before its time");
            pauses.push((due - Instant::now()).as_secs_f64().round());
            if pauses.len() == 6 {
                std::fs::copy("tests/containers/engine.sh", &program).unwrap();
                std::fs::create_dir(dir.path().join("containers")).unwrap();
            }
            watch.due = Some(Instant::now());
            watch.search_if_due(&done);
            assert_eq!(watch.due, None, "a search is under way");
            watch.on_search(searches.recv().await.unwrap());
        }
        assert_eq!(pauses, [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]);
        assert_eq!((watch.findings.len(), watch.due), (0, None));
    }

    #[test]
    fn none_is_looked_for_where_none_is_wanted() {
        let mut watch = watch(EngineChoice::Never);
        watch.on_search((None, Vec::new()));
        assert_eq!(watch.due, None);
    }
}
