//! A thread for calls that may never return.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// Makes the same call again and again, on a thread of its own. If the call hangs, only that thread does.
pub struct Helper<R> {
    questions: Sender<()>,
    answers: Receiver<R>,
    /// A question was asked and its answer has not come.
    hangs: bool,
}

impl<R: Send + 'static> Helper<R> {
    /// The thread ends when the helper is dropped, or never if its call does not return.
    pub fn new(name: &str, mut call: impl FnMut() -> R + Send + 'static) -> Helper<R> {
        let (questions, asked) = channel();
        let (answer, answers) = channel();
        let body = move || {
            for () in asked {
                if answer.send(call()).is_err() {
                    break;
                }
            }
        };
        // Without a thread no answer comes, which is what will then be reported.
        let _ = thread::Builder::new().name(name.to_string()).spawn(body);
        Helper { questions, answers, hangs: false }
    }

    /// The answer, unless it takes longer than `patience`. While an earlier call hangs, there is no answer at once.
    pub fn ask(&mut self, patience: Duration) -> Option<R> {
        if self.hangs && self.answers.try_recv().is_err() {
            return None;
        }
        self.hangs = true;
        self.questions.send(()).ok()?;
        let answer = self.answers.recv_timeout(patience).ok()?;
        self.hangs = false;
        Some(answer)
    }
}
