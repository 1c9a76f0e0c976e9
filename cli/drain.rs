//! `aquifer cordon`, `drain` and `uncordon`: whether nodes take work.

use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::v1;
use serde::Serialize;

use crate::client::{Client, Patience};
use crate::{Session, nodes, wait};

/// Keep new work away from nodes; what runs there runs on
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer cordon gpu-12 gpu-13")]
pub struct CordonArgs {
    /// Names of nodes
    #[arg(required = true, value_name = "NODE")]
    pub names: Vec<String>,
}

/// Keep new work away from nodes, and place elsewhere what runs there
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer drain --wait gpu-12

What runs there is stopped with its grace; training goes on from its last checkpoint.")]
pub struct DrainArgs {
    /// Names of nodes
    #[arg(required = true, value_name = "NODE")]
    pub names: Vec<String>,
    /// Return only when nothing runs on them any more
    #[arg(long)]
    pub wait: bool,
}

/// Let nodes take work again
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer uncordon gpu-12")]
pub struct UncordonArgs {
    /// Names of nodes
    #[arg(required = true, value_name = "NODE")]
    pub names: Vec<String>,
}

#[derive(Clone, Copy)]
enum Change {
    Cordon,
    Drain,
    Uncordon,
}

#[derive(Serialize)]
struct Changed {
    name: String,
    availability: &'static str,
}

/// Runs `aquifer cordon`.
pub async fn cordon(args: CordonArgs, session: &Session) -> Result<ExitCode> {
    change(&args.names, Change::Cordon, session).await
}

/// Runs `aquifer drain`.
pub async fn drain(args: DrainArgs, session: &Session) -> Result<ExitCode> {
    let code = change(&args.names, Change::Drain, session).await?;
    if args.wait {
        for name in &args.names {
            let mut pause = wait::Pause::default();
            while !nodes::one(name, Patience::Endless, session).await?.workers.is_empty() {
                pause.wait().await;
            }
            if !session.output.json {
                session.output.text(format!("{name} is drained"));
            }
        }
    }
    Ok(code)
}

/// Runs `aquifer uncordon`.
pub async fn uncordon(args: UncordonArgs, session: &Session) -> Result<ExitCode> {
    change(&args.names, Change::Uncordon, session).await
}

async fn change(names: &[String], change: Change, session: &Session) -> Result<ExitCode> {
    let mut all = Vec::new();
    for name in names {
        let request = v1::NodeRequest { name: name.clone() };
        let ask = async |mut client: Client| match change {
            Change::Cordon => client.cordon(request.clone()).await,
            Change::Drain => client.drain(request.clone()).await,
            Change::Uncordon => client.uncordon(request.clone()).await,
        };
        session.pool.call(Patience::Long, ask).await?;
        let (availability, says) = match change {
            Change::Cordon => ("cordoned", "takes no new work"),
            Change::Drain => ("draining", "takes no new work, and what runs there is stopped"),
            Change::Uncordon => ("open", "takes work"),
        };
        if !session.output.json {
            session.output.text(format!("{name} {says}"));
        }
        all.push(Changed { name: name.clone(), availability });
    }
    if session.output.json {
        session.output.document(&all);
    }
    Ok(ExitCode::SUCCESS)
}
