//! `aquifer plan`: what would happen.

use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::v1;

use crate::client::{Client, Patience};
use crate::flags::JobFlags;
use crate::output::{Output, Side, Table};
use crate::{Session, explain, submit, time_now, units, view};

/// Tell what would happen if a job were submitted now, without submitting it
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer plan train.yaml --ranks 16")]
pub struct Args {
    /// Job file; `-` is standard input
    #[arg(value_name = "FILE")]
    pub file: String,
    /// Replace a value of the file: train.steps=400, roles.0.ranks=2. May be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub job: JobFlags,
}

/// Runs the command.
pub async fn run(args: Args, session: &Session) -> Result<ExitCode> {
    let ready = submit::read(&args.file, &args.sets, &args.job, session).await?;
    let wanted = ready.wire.roles.iter().map(|role| role.ranks).sum();
    let request = v1::PlanRequest { spec: Some(ready.wire) };
    let plan = async |mut client: Client| client.plan(request.clone()).await;
    let answer = session.pool.call(Patience::Short, plan).await?;
    let view = view::Plan {
        starts_now: answer.starts_now,
        domain: answer.domain.clone(),
        fewer: (answer.starts_now && (answer.ranks.len() as u32) < wanted).then_some(wanted),
        class: answer.class.clone(),
        workers: answer.ranks.iter().map(|rank| view::Rank::new(rank, false)).collect(),
        explanation: answer.explanation.as_ref().map(|wire| view::Explanation::new(None, wire)),
        victims: answer.victims.iter().map(Into::into).collect(),
    };
    match session.output.json {
        true => session.output.document(&view),
        false => session.output.text(text(&view, time_now(), &session.output)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The plan for people.
pub fn text(plan: &view::Plan, now_ms: u64, output: &Output) -> String {
    if !plan.victims.is_empty() {
        return text_with_victims(plan, output);
    }
    if !plan.starts_now {
        return match &plan.explanation {
            Some(explanation) => explain::text(explanation, now_ms, output),
            None => "The job would not start now.".into(),
        };
    }
    let columns =
        [("RANK", Side::Right), ("ROLE", Side::Left), ("NODE", Side::Left), ("DEVICES", Side::Left)];
    let mut table = Table::new(&columns).elastic(&[3, 2]);
    for rank in &plan.workers {
        let devices = explain::devices(&rank.devices, &rank.model);
        table.row([rank.rank.to_string(), rank.role.clone(), rank.node.clone(), devices]);
    }
    let number = plan.workers.len();
    let ranks = match (number, &plan.fewer) {
        (_, Some(of)) => format!("{number} of its {of} ranks"),
        (1, None) => "its rank".into(),
        (_, None) => format!("all of its {number} ranks"),
    };
    let ranks = if plan.domain.is_empty() { ranks } else { format!("{ranks} in {}", plan.domain) };
    let class = if plan.class.is_empty() { String::new() } else { format!("\n\nOn {}.", plan.class) };
    format!("The job would start now, with {ranks}:\n\n{}{class}", table.plain(output))
}

fn text_with_victims(plan: &view::Plan, output: &Output) -> String {
    let columns =
        [("GIVES WAY", Side::Left), ("STOPS WITHIN", Side::Right), ("LOST DEVICE TIME", Side::Right)];
    let mut table = Table::new(&columns);
    for victim in &plan.victims {
        let (grace, lost) = (units::duration(victim.grace_ms), units::duration(victim.lost_device_ms));
        let job = match victim.stays {
            0 => victim.job.clone(),
            stays => format!("{}: {} of {} ranks", victim.job, victim.ranks - stays, victim.ranks),
        };
        table.row([job, grace, lost]);
    }
    let shrinks = plan.victims.iter().filter(|victim| victim.stays != 0).count();
    let number = plan.victims.len();
    let others = if number == 1 { "another one has".into() } else { format!("{number} others have") };
    let later = match shrinks {
        0 => "What gives way is placed again later; what it did since its last checkpoint is lost.",
        _ if shrinks == number => {
            "What shrinks goes on at once with the ranks that it keeps, from its last checkpoint."
        }
        _ => {
            "What shrinks goes on at once with the ranks that it keeps, the rest is placed again later; both from \
             their last checkpoints."
        }
    };
    let verb = match shrinks {
        0 => "stopped",
        _ if shrinks == number => "shrunk",
        _ => "stopped or shrunk",
    };
    format!("The job would start once {others} {verb}:\n\n{}\n\n{later}", table.plain(output))
}
