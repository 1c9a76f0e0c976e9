//! `aquifer logs`: what workers print. Lines of ranks never mix, and nothing is printed twice or lost when the
//! connection is.

use std::collections::{BTreeMap, VecDeque};
use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::core::JobId;
use aquifer_proto::v1;

use crate::client::{Backoff, Patience, is_lost, obey};
use crate::output::{Color, Failure, Output, aside, write_out};
use crate::{Session, job, units, view};

/// Print what the workers of a job print
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer logs -f --tail 20 job-7

Lines of jobs with several ranks begin with their rank, like [3].")]
pub struct Args {
    /// The job: job-7, or 7
    #[arg(value_name = "JOB")]
    pub job: JobId,
    /// Go on until the job has ended; a lost connection is taken up again where it was
    #[arg(short, long)]
    pub follow: bool,
    /// Only this rank. Default: all
    #[arg(long, value_name = "N")]
    pub rank: Option<u32>,
    /// Only this attempt, counted from 1. Default: the latest
    #[arg(long, value_name = "N")]
    pub attempt: Option<u32>,
    /// Of what is there already, only the last lines of each rank. Default: all
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
}

/// Runs the command.
pub async fn run(args: Args, session: &Session) -> Result<ExitCode> {
    let job = job::get(args.job, Patience::Short, session).await?;
    let mut printer = Printer::new(&job, args.rank, session.output);
    let mut read =
        Reader { job: args.job, rank: args.rank, attempt: args.attempt, positions: BTreeMap::new() };
    if let Some(lines) = args.tail {
        let mut tail = Tail { lines, ranks: BTreeMap::new() };
        read.all(false, session, &mut |chunk| tail.keep(chunk)).await?;
        for ((attempt, rank), bytes) in tail.rest() {
            write_out(&printer.bytes(attempt, rank, &bytes));
        }
    }
    // Without --follow there is nothing after the tail.
    if args.tail.is_none() || args.follow {
        read.all(args.follow, session, &mut |chunk| write_out(&printer.chunk(chunk))).await?;
    }
    write_out(&printer.rest());
    Ok(ExitCode::SUCCESS)
}

/// Reads the logs of a job, and knows how far it is.
pub struct Reader {
    /// Which job.
    pub job: JobId,
    /// Only this rank.
    pub rank: Option<u32>,
    /// Only this attempt.
    pub attempt: Option<u32>,
    /// Offset of the first byte that was not read yet, by attempt and rank.
    pub positions: BTreeMap<(u32, u32), u64>,
}

impl Reader {
    /// Reads all there is; with `follow` until the job has ended. A lost connection is made again, for ever if it
    /// follows.
    pub async fn all(
        &mut self,
        follow: bool,
        session: &Session,
        print: &mut impl FnMut(&v1::LogChunk),
    ) -> Result<(), Failure> {
        let (mut backoff, mut told, mut tries) = (Backoff::default(), false, 0);
        loop {
            let status = match self.stream(follow, session, &mut backoff, print).await {
                Ok(()) if !follow || self.attempt.is_some() => return Ok(()),
                // A scheduler that goes down in order ends its streams as well.
                Ok(()) if view::has_ended(job::get(self.job, Patience::Endless, session).await?.state()) => {
                    return Ok(());
                }
                Ok(()) => {
                    backoff.pause().await;
                    continue;
                }
                Err(status) => status,
            };
            tries += 1;
            if (follow || tries <= 20) && obey(&status).await {
                continue;
            }
            if !is_lost(&status) || (!follow && 3 < tries) {
                return Err(session.pool.failure(&status));
            }
            if !std::mem::replace(&mut told, true) {
                aside(
                    "the connection to the scheduler was lost; it is tried again, and nothing will be missing",
                );
            }
            backoff.pause().await;
        }
    }

    async fn stream(
        &mut self,
        follow: bool,
        session: &Session,
        backoff: &mut Backoff,
        print: &mut impl FnMut(&v1::LogChunk),
    ) -> Result<(), tonic::Status> {
        let from = self.positions.iter();
        let from = from.map(|((attempt, rank), offset)| v1::LogPosition {
            attempt: *attempt,
            rank: *rank,
            offset: *offset,
        });
        let request = v1::LogsRequest {
            job: self.job.0,
            rank: self.rank,
            attempt: self.attempt,
            follow,
            from: from.collect(),
        };
        let mut stream = session.pool.client().logs(request).await?.into_inner();
        while let Some(mut chunk) = stream.message().await? {
            backoff.reset();
            if self.accept(&mut chunk) {
                print(&chunk);
            }
        }
        Ok(())
    }

    /// Cuts off what was read before, and says whether anything is left.
    pub fn accept(&mut self, chunk: &mut v1::LogChunk) -> bool {
        if !chunk.unavailable.is_empty() {
            return true;
        }
        let position = self.positions.entry((chunk.attempt, chunk.rank)).or_default();
        if let Some(gone @ 1..) = chunk.offset.checked_sub(*position) {
            aside(format!(
                "rank {}: {} of its log were given up: it grew too large",
                chunk.rank,
                units::size(gone)
            ));
            *position = chunk.offset;
        }
        let known = position.saturating_sub(chunk.offset).min(chunk.data.len() as u64);
        chunk.data.drain(..known as usize);
        chunk.offset += known;
        *position = (*position).max(chunk.offset + chunk.data.len() as u64);
        !chunk.data.is_empty()
    }
}

/// Bytes of a line that are held back while it waits for its end, at most.
const MAX_LINE: usize = 64 << 10;

/// Puts chunks together to lines, with the rank before each.
pub struct Printer {
    output: Output,
    /// Digits of the highest rank; `None`: no prefix, and bytes pass as they come.
    digits: Option<usize>,
    partial: BTreeMap<(u32, u32), Vec<u8>>,
}

impl Printer {
    /// For the logs of a job.
    pub fn new(job: &v1::Job, rank: Option<u32>, output: Output) -> Printer {
        let ranks: u32 = job.spec.iter().flat_map(|spec| &spec.roles).map(|role| role.ranks).sum();
        Printer::of(if rank.is_some() { 1 } else { ranks }, output)
    }

    /// For so many ranks.
    pub fn of(ranks: u32, output: Output) -> Printer {
        let digits = (1 < ranks).then(|| (ranks - 1).to_string().len());
        Printer { output, digits, partial: BTreeMap::new() }
    }

    /// What is to be printed when a chunk arrives. What cannot be read is told on standard error.
    pub fn chunk(&mut self, chunk: &v1::LogChunk) -> Vec<u8> {
        if !chunk.unavailable.is_empty() {
            aside(format!("rank {}: {}", chunk.rank, chunk.unavailable));
            return Vec::new();
        }
        self.bytes(chunk.attempt, chunk.rank, &chunk.data)
    }

    /// What is to be printed when bytes of a rank arrive.
    pub fn bytes(&mut self, attempt: u32, rank: u32, data: &[u8]) -> Vec<u8> {
        if self.digits.is_none() && !self.output.json {
            return data.into();
        }
        let mut partial = self.partial.remove(&(attempt, rank)).unwrap_or_default();
        partial.extend_from_slice(data);
        let mut printed = Vec::new();
        let mut rest = &partial[..];
        // A carriage return ends a line as well: it would write over the lines of other ranks.
        while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let crlf = rest[at..].starts_with(b"\r\n");
            // The line feed may be in the next chunk.
            if rest[at] == b'\r' && at + 1 == rest.len() {
                break;
            }
            self.line(attempt, rank, &rest[..at], &mut printed);
            rest = &rest[at + 1 + usize::from(crlf)..];
        }
        while MAX_LINE < rest.len() {
            self.line(attempt, rank, &rest[..MAX_LINE], &mut printed);
            rest = &rest[MAX_LINE..];
        }
        if !rest.is_empty() {
            let rest = rest.to_vec();
            self.partial.insert((attempt, rank), rest);
        }
        printed
    }

    /// Lines whose end never came.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut printed = Vec::new();
        for ((attempt, rank), line) in std::mem::take(&mut self.partial) {
            self.line(attempt, rank, line.strip_suffix(b"\r").unwrap_or(&line), &mut printed);
        }
        printed
    }

    fn line(&self, attempt: u32, rank: u32, line: &[u8], printed: &mut Vec<u8>) {
        if self.output.json {
            let text = String::from_utf8_lossy(line).into_owned();
            let view = view::LogLine { attempt, rank, text };
            printed.extend(serde_json::to_string(&view).expect("views are JSON").bytes());
        } else {
            const COLORS: [Color; 5] =
                [Color::Cyan, Color::Green, Color::Yellow, Color::Magenta, Color::Blue];
            let prefix = format!("[{rank:digits$}]", digits = self.digits.unwrap_or(0));
            printed.extend(self.output.paint(COLORS[rank as usize % COLORS.len()], &prefix).bytes());
            printed.push(b' ');
            printed.extend_from_slice(line);
        }
        printed.push(b'\n');
    }
}

/// The last lines of each rank.
pub struct Tail {
    /// How many.
    pub lines: usize,
    /// Lines with their ends, by attempt and rank; the last one may still have none.
    pub ranks: BTreeMap<(u32, u32), VecDeque<Vec<u8>>>,
}

impl Tail {
    /// Takes a chunk in.
    pub fn keep(&mut self, chunk: &v1::LogChunk) {
        let lines = self.ranks.entry((chunk.attempt, chunk.rank)).or_default();
        for piece in chunk.data.split_inclusive(|byte| *byte == b'\n') {
            match lines.back_mut().filter(|last| !last.ends_with(b"\n")) {
                Some(last) => last.extend_from_slice(piece),
                None => lines.push_back(piece.into()),
            }
            while self.lines < lines.len() {
                lines.pop_front();
            }
        }
    }

    /// The lines that are left, by attempt and rank.
    pub fn rest(self) -> impl Iterator<Item = ((u32, u32), Vec<u8>)> {
        self.ranks.into_iter().map(|(key, lines)| (key, lines.into_iter().flatten().collect()))
    }
}
