//! Commands beside workers, as the agent carries them: what the client says goes into the command, and what the command says goes
//! back, over a connection to the scheduler for each. Its supervisor starts and ends it (`beside.rs`).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::WorkerId;
use aquifer_proto::border::{self, MAX_PIECE, Wanted};
use aquifer_proto::v1;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tonic::Streaming;
use v1::exec_answer::Message as Answer;
use v1::exec_input::Message as Input;
use v1::exec_output::Message as Output;

use crate::beside::{self, Order, Word};
use crate::container::Left;
use crate::json;
use crate::process;
use crate::run_dir::{RunDirs, Spec};
use crate::session::Side;
use crate::supervisors::watched;

/// Commands beside all workers of a node at a time.
const MOST: usize = 256;
/// Messages that wait to be sent, at most.
const ON_THE_WAY: usize = 2;
/// Pieces of input that wait for a command, at most, with the end behind them.
const MOST_PIECES: usize = border::MAX_UNTAKEN / border::LEAST_PIECE + 1;
/// After a command has ended: how long a terminal may take to pass on what it wrote.
const LINGER: Duration = Duration::from_millis(200);
/// Bytes that a pipe, or a terminal, may hold of what a command wrote before it ended: more than that is of what it left running.
const MOST_LEFT: usize = 64 << 10;
/// From the end of a connection until what is left of its command is killed: what still lives has had its signal by then.
const UNTIL_KILLED: Duration = Duration::from_millis(1200);
/// Marks every process of a command.
const MARK: &str = "AQUIFER_EXEC";
/// What runs where nothing is named.
const SHELL: &str = "/bin/sh";

/// The commands of a node.
#[derive(Clone)]
pub(crate) struct Commands {
    room: Arc<Semaphore>,
}

impl Default for Commands {
    fn default() -> Commands {
        Commands { room: Arc::new(Semaphore::new(MOST)) }
    }
}

impl Commands {
    /// Carries a command to its end, in a task of its own.
    pub fn carry(&self, order: v1::ExecOrder, side: Side, dirs: RunDirs) {
        let room = self.room.clone().try_acquire_owned();
        tokio::spawn(async move {
            let (sender, answers) = mpsc::channel(ON_THE_WAY);
            let first = v1::ExecAnswer { message: Some(Answer::Id(order.id)) };
            sender.send(first).await.expect("its receiver is here");
            let mut inputs = match side.carry(answers).await {
                Ok(inputs) => inputs,
                Err(status) => return tracing::warn!("no connection for a command: {}", status.message()),
            };
            let end = match room {
                Ok(_room) => run(&order, &dirs, &mut inputs, &sender).await,
                Err(_) => Some(failed(format!("{MOST} commands run on this node, and no more may"))),
            };
            if let Some(how) = end {
                let end = Output::End(v1::ExecEnd { how: Some(how) });
                _ = sender.send(answer(end)).await; // Its client may have left.
            }
            drop(sender);
            // The scheduler closes it once it has taken everything.
            while let Ok(Some(_)) = inputs.message().await {}
        });
    }
}

type How = v1::exec_end::How;

fn failed(why: impl Into<String>) -> How {
    How::Failed(why.into())
}

fn answer(output: Output) -> v1::ExecAnswer {
    v1::ExecAnswer { message: Some(Answer::Output(v1::ExecOutput { message: Some(output) })) }
}

/// Returns how it ended; `None`: its client has left.
async fn run(
    order: &v1::ExecOrder,
    dirs: &RunDirs,
    inputs: &mut Streaming<v1::ExecInput>,
    sender: &mpsc::Sender<v1::ExecAnswer>,
) -> Option<How> {
    let worker = match border::worker_id("exec.worker", order.worker.as_ref()) {
        Ok(worker) => worker,
        Err(invalid) => return Some(failed(invalid.to_string())),
    };
    let wanted = match border::wanted(order.begin.as_ref().unwrap_or(&v1::ExecBegin::default())) {
        Ok(wanted) => wanted,
        Err(invalid) => return Some(failed(invalid.to_string())),
    };
    // Arguments may hold secrets, so that they are in no log.
    let (who, program, words) = (&order.who, wanted.command.first(), wanted.command.len());
    tracing::info!(%worker, who, program, words, "a command begins beside a worker");
    let command = match Command::begin(worker, order.id, wanted, dirs) {
        Ok(command) => command,
        Err(why) => return Some(failed(why)),
    };
    let mark = command.mark.clone();
    let how = command.carry(inputs, sender).await;
    tracing::info!(%worker, who, ?how, "a command beside a worker has ended");
    if how.is_none() {
        tokio::time::sleep(UNTIL_KILLED).await;
        let kill = move || process::kill_marked(&mark.0, &mark.1);
        if let Ok(killed @ 1..) = tokio::task::spawn_blocking(kill).await {
            tracing::info!(%worker, killed, "what the command had left running was killed");
        }
    }
    how
}

/// A command that was handed to a supervisor.
struct Command {
    /// Where it is said how it ended. While this is open, it runs.
    line: AsyncFd<OwnedFd>,
    input: Sender,
    output: Receiver,
    /// `None`: they are in the output of its terminal.
    errors: Option<Receiver>,
    terminal: Option<OwnedFd>,
    mark: (String, String),
}

impl Command {
    /// Hands it to the worker's supervisor.
    ///
    /// # Errors
    /// Says why it cannot run.
    fn begin(worker: WorkerId, id: u64, wanted: Wanted, dirs: &RunDirs) -> Result<Command, String> {
        let dir = dirs.of(worker);
        let spec: Spec =
            json::read(&dir.spec_path()).map_err(|_| format!("{worker} is not known on its node"))?;
        if dir.read_exit().is_some() {
            return Err(format!("{worker} has ended"));
        }
        let mark = (MARK.to_string(), format!("{id:016x}"));
        let is_terminal = wanted.terminal.is_some();
        let mut env = BTreeMap::from([mark.clone()]);
        let kind = wanted.terminal.as_ref().map(|terminal| terminal.kind.clone());
        env.extend(kind.filter(|kind| !kind.is_empty()).map(|kind| ("TERM".to_string(), kind)));
        let mut command = wanted.command;
        if command.is_empty() {
            command.push(SHELL.into());
        }
        if let Some(container) = &spec.container {
            command = within(container, command, &env, is_terminal);
        }
        let order = Order { worker: spec.id, command, env: env.into_iter().collect(), is_terminal };
        let refused = |error: io::Error| format!("the node gives no pipes: {error}");
        let (made, theirs) = match &wanted.terminal {
            Some(terminal) => Made::terminal(terminal.size).map_err(refused)?,
            None => Made::pipes().map_err(refused)?,
        };
        let line = beside::order(&dir, &order, &theirs).map_err(|why| format!("{worker}: {why}"))?;
        let line = watched(line).map_err(refused)?;
        let Made { input, output, errors, terminal } = made;
        Ok(Command { line, input, output, errors, terminal, mark })
    }

    /// Returns how it ended; `None`: its client has left, and it is being ended.
    async fn carry(
        self,
        inputs: &mut Streaming<v1::ExecInput>,
        sender: &mpsc::Sender<v1::ExecAnswer>,
    ) -> Option<How> {
        let Command { line, input, mut output, errors, terminal, .. } = self;
        let (to_command, pieces) = mpsc::channel(MOST_PIECES);
        let (ended, mut has_ended) = tokio::sync::watch::channel(false);
        let mut errors_have_ended = has_ended.clone();
        let said = async {
            let errors = async {
                if let Some(mut errors) = errors {
                    pass_on(&mut errors, &mut errors_have_ended, sender, Output::Errors).await;
                }
            };
            let how = async {
                let word = line.async_io(Interest::READABLE, beside::word).await;
                _ = ended.send(true); // The others may have ended.
                word
            };
            let output = pass_on(&mut output, &mut has_ended, sender, Output::Data);
            let (how, (), ()) = tokio::join!(how, output, errors);
            how
        };
        tokio::select! {
            word = said => Some(match word {
                Ok(Word::Code(code)) => How::Code(code as u32),
                Ok(Word::WithWorker) => failed("its worker has ended, and all beside it"),
                Ok(Word::Signal(signal)) => How::Signal(signal as u32),
                Ok(Word::Refused(why)) => failed(why),
                Err(_) => failed("its supervisor was killed"),
            }),
            () = take_in(inputs, to_command, terminal.as_ref()) => None,
            never = feed(pieces, input, sender, terminal.is_some()) => match never {},
        }
    }
}

/// Both sides of what a command reads and writes: this process's.
struct Made {
    input: Sender,
    output: Receiver,
    errors: Option<Receiver>,
    terminal: Option<OwnedFd>,
}

impl Made {
    /// Returns the command's three ends as well.
    fn pipes() -> io::Result<(Made, [OwnedFd; 3])> {
        let ((input, to_input), (output, errors)) = (io::pipe()?, (io::pipe()?, io::pipe()?));
        let made = Made {
            input: Sender::from_owned_fd(to_input.into())?,
            output: Receiver::from_owned_fd(output.0.into())?,
            errors: Some(Receiver::from_owned_fd(errors.0.into())?),
            terminal: None,
        };
        Ok((made, [input.into(), output.1.into(), errors.1.into()]))
    }

    fn terminal(size: Option<(u16, u16)>) -> io::Result<(Made, [OwnedFd; 3])> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&ours)?;
        rustix::pty::unlockpt(&ours)?;
        let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
        if let Some(size) = size {
            resize(&ours, size)?;
        }
        rustix::io::ioctl_fionbio(&ours, true)?;
        let made = Made {
            input: Sender::from_owned_fd_unchecked(ours.try_clone()?)?,
            output: Receiver::from_owned_fd_unchecked(ours.try_clone()?)?,
            errors: None,
            terminal: Some(ours),
        };
        Ok((made, [theirs.try_clone()?, theirs.try_clone()?, theirs]))
    }
}

fn resize(terminal: &OwnedFd, (ws_row, ws_col): (u16, u16)) -> io::Result<()> {
    let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal.as_fd(), size)?)
}

/// Takes in what the client says, until it leaves. That is heard at once: nothing waits for the command here.
///
/// * `to_command`: gets what is for its input, of which no more comes than it has told that it took; `None` at its end.
async fn take_in(
    inputs: &mut Streaming<v1::ExecInput>,
    to_command: mpsc::Sender<Option<Vec<u8>>>,
    terminal: Option<&OwnedFd>,
) {
    while let Ok(Some(said)) = inputs.message().await {
        let piece = match said.message {
            Some(Input::Data(data)) => Some(data),
            Some(Input::End(_)) => None,
            Some(Input::Size(size)) => {
                if let (Some(terminal), Ok(size)) = (terminal, border::window_size(&size)) {
                    _ = resize(terminal, size); // It has the size that it had.
                }
                continue;
            }
            Some(Input::Begin(_)) | None => continue,
        };
        if to_command.try_send(piece).is_err() {
            return; // More than was agreed on.
        }
    }
}

/// Gives a command its input. Never returns: one that reads no more may go on all the same.
async fn feed(
    mut pieces: mpsc::Receiver<Option<Vec<u8>>>,
    input: Sender,
    sender: &mpsc::Sender<v1::ExecAnswer>,
    has_terminal: bool,
) -> Infallible {
    let mut input = Some(input);
    while let Some(piece) = pieces.recv().await {
        match (piece, &mut input) {
            (Some(data), to) => {
                if let Some(open) = to
                    && open.write_all(&data).await.is_err()
                {
                    *to = None;
                }
                let taken = v1::ExecAnswer { message: Some(Answer::Taken(border::weight(&data))) };
                _ = sender.send(taken).await; // Nobody may be left to hear it.
            }
            (None, input) if !has_terminal => *input = None,
            (None, _) => (),
        }
    }
    std::future::pending().await
}

/// Passes on what a command writes: to the end, or, once it has ended, what it had written by then.
async fn pass_on(
    from: &mut Receiver,
    has_ended: &mut tokio::sync::watch::Receiver<bool>,
    sender: &mpsc::Sender<v1::ExecAnswer>,
    of: fn(Vec<u8>) -> Output,
) {
    let (mut piece, mut left) = (vec![0; MAX_PIECE / 2], None::<usize>);
    while left != Some(0) {
        let read = match left {
            None => tokio::select! {
                biased;
                read = from.read(&mut piece) => read,
                _ = has_ended.wait_for(|ended| *ended) => {
                    left = Some(MOST_LEFT);
                    continue;
                }
            },
            Some(left) => {
                let most = left.min(piece.len());
                let Ok(read) = timeout(LINGER, from.read(&mut piece[..most])).await else { return };
                read
            }
        };
        // A terminal that nobody has open any more gives an error instead of an end.
        let Ok(length @ 1..) = read else { return };
        left = left.map(|left| left - length);
        if sender.send(answer(of(piece[..length].to_vec()))).await.is_err() {
            return;
        }
    }
}

/// A command as an engine's client runs it in a container.
fn within(
    container: &Left,
    command: Vec<String>,
    env: &BTreeMap<String, String>,
    is_terminal: bool,
) -> Vec<String> {
    let mut line =
        vec![container.program.to_string_lossy().into_owned(), "exec".into(), "--interactive".into()];
    line.extend(is_terminal.then(|| "--tty".into()));
    line.extend(env.iter().map(|(name, value)| format!("--env={name}={value}")));
    line.push(container.name.clone());
    line.extend(command);
    line
}
