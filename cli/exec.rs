//! `aquifer exec`: a command, or a shell, beside a worker.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::border::is_terminal_kind;
use aquifer_proto::core::JobId;
use aquifer_proto::{LEADER, v1};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use v1::exec_end::How;
use v1::exec_input::Message as Input;
use v1::exec_output::Message as Output;

use crate::client::{Patience, is_lost};
use crate::output::Failure;
use crate::{Session, job};

/// Bytes of standard input in one message.
const PIECE: usize = 16 << 10;
/// Messages that wait to be sent, at most.
const ON_THE_WAY: usize = 2;
/// Schedulers that are asked, at most: one that stands by names another.
const TRIES: u32 = 3;
/// Exit code of what was ended by a signal, without its number, as shells have it.
const BY_SIGNAL: u32 = 128;
/// Number of the signal that ends who writes where nobody reads.
const PIPE: u32 = 13;

/// Run a command, or a shell, beside a worker of a job that runs
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer exec job-7 nvidia-smi
  aquifer exec job-7 --rank 3 -- py-spy dump --pid 4711
  aquifer exec job-7

It runs on the worker's node, as its user, in its directory, with its environment and devices, within its limits and in its
container, and ends with it. The exit code is the command's, or 128 and the number of the signal that ended it.")]
pub struct Args {
    /// Beside which rank. Default: the first one that runs
    #[arg(long, value_name = "N")]
    pub rank: Option<u32>,
    /// Give the command a terminal. Default: without a command, if this is called from one
    #[arg(short, long)]
    pub tty: bool,
    /// Changes nothing, for hands that are used to it: standard input is always passed on
    #[arg(short, long)]
    pub interactive: bool,
    /// The job: job-7, or 7
    #[arg(value_name = "JOB")]
    pub job: JobId,
    /// Program and its arguments; the program is looked up in the PATH of the worker. Default: /bin/sh
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Runs the command.
pub async fn run(args: Args, session: &Session) -> Result<ExitCode> {
    let may_type = io::stdin().is_terminal();
    if args.tty && !may_type {
        let next = "Leave --tty out, or call it from a terminal.";
        return Err(Failure::usage("--tty: standard input is no terminal", next).into());
    }
    let is_shell = args.command.is_empty() && io::stdout().is_terminal();
    let has_terminal = args.tty || (may_type && is_shell);
    // Finds the scheduler that leads, and says what is wrong with a job that is not there.
    job::get(args.job, Patience::Short, session).await?;
    let (to_command, outputs) =
        begin(&args, has_terminal, session).await.map_err(|status| session.pool.failure(&status))?;
    let raw = if has_terminal { Some(Raw::enter()?) } else { None };
    let ended = tokio::select! {
        ended = print(outputs) => ended,
        never = pass_on(to_command, has_terminal) => match never {},
    };
    drop(raw);
    match ended {
        Ok(How::Code(code)) => Ok(ExitCode::from(code as u8)),
        Ok(How::Signal(signal)) => Ok(ExitCode::from((BY_SIGNAL + signal) as u8)),
        Ok(How::Failed(why)) => Err(Failure::refused(why, "").into()),
        Err(status) if is_lost(&status) => {
            let failure = session.pool.failure(&status);
            let sentence = format!("the command is ended, for the connection was lost: {}", failure.sentence);
            Err(Failure { sentence, ..failure }.into())
        }
        Err(status) => Err(session.pool.failure(&status).into()),
    }
}

type Begun = (mpsc::Sender<v1::ExecInput>, Streaming<v1::ExecOutput>);

async fn begin(args: &Args, has_terminal: bool, session: &Session) -> Result<Begun, Status> {
    let terminal = has_terminal.then(|| v1::Terminal { kind: kind(), size: size() });
    let begin = v1::ExecBegin { job: args.job.0, rank: args.rank, command: args.command.clone(), terminal };
    let mut tries = 1;
    loop {
        let (to_command, inputs) = mpsc::channel(ON_THE_WAY);
        let first = v1::ExecInput { message: Some(Input::Begin(begin.clone())) };
        to_command.send(first).await.expect("its receiver is here");
        match session.pool.exec_client().run(ReceiverStream::new(inputs)).await {
            Ok(outputs) => return Ok((to_command, outputs.into_inner())),
            Err(status) if tries < TRIES && status.metadata().contains_key(LEADER) => tries += 1,
            Err(status) => return Err(status),
        }
    }
}

/// What this terminal is called, if that can be passed on.
fn kind() -> String {
    std::env::var("TERM").ok().filter(|kind| is_terminal_kind(kind)).unwrap_or_default()
}

fn size() -> Option<v1::WindowSize> {
    let size = [stdin(), stdout(), stderr()].into_iter().find_map(|end| tcgetwinsize(end).ok())?;
    Some(v1::WindowSize { rows: size.ws_row.into(), columns: size.ws_col.into() })
}

/// A terminal that passes every key on, until this is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Result<Raw> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        // What was typed before is the command's as well.
        tcsetattr(stdin(), OptionalActions::Drain, &raw)?;
        Ok(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Never returns: what is said last, nobody waits for.
async fn pass_on(to_command: mpsc::Sender<v1::ExecInput>, has_terminal: bool) -> std::convert::Infallible {
    let say = async |message: Input| _ = to_command.send(v1::ExecInput { message: Some(message) }).await;
    let typed = async {
        let mut pieces = read_input();
        while let Some(piece) = pieces.recv().await {
            say(Input::Data(piece)).await;
        }
        say(Input::End(v1::ExecInputEnd {})).await;
    };
    let sized = async {
        let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
        while has_terminal && changes.recv().await.is_some() {
            if let Some(size) = size() {
                say(Input::Size(size)).await;
            }
        }
    };
    tokio::join!(typed, sized);
    std::future::pending().await
}

/// Standard input, piece by piece, read by a thread that nobody waits for: it may not end before somebody types.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, pieces) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut piece = vec![0; PIECE];
        while let Ok(length @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(stdin(), &mut piece[..])) {
            if sender.blocking_send(piece[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    pieces
}

/// Prints what the command says, and returns how it ended.
async fn print(mut outputs: Streaming<v1::ExecOutput>) -> Result<How, Status> {
    let (mut out, mut errors) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        let output = outputs.message().await?;
        let written = match output.and_then(|output| output.message) {
            Some(Output::Data(data)) => write(&mut out, &data).await,
            Some(Output::Errors(data)) => write(&mut errors, &data).await,
            Some(Output::End(v1::ExecEnd { how: Some(how) })) => return Ok(how),
            Some(Output::End(v1::ExecEnd { how: None })) | None => {
                return Err(Status::unavailable("the scheduler closed the stream"));
            }
        };
        if written.is_err() {
            return Ok(How::Signal(PIPE));
        }
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> io::Result<()> {
    to.write_all(data).await?;
    to.flush().await
}
