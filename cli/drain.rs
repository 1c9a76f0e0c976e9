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
  aquifer cordon gpu-12 gpu-13
  aquifer cordon gpu-12 --device 3")]
pub struct CordonArgs {
    /// Names of nodes
    #[arg(required = true, value_name = "NODE")]
    pub names: Vec<String>,
    /// Only this device of the node, by its index
    #[arg(long, value_name = "INDEX")]
    pub device: Option<u16>,
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
  aquifer uncordon gpu-12
  aquifer uncordon gpu-12 --device 3")]
pub struct UncordonArgs {
    /// Names of nodes
    #[arg(required = true, value_name = "NODE")]
    pub names: Vec<String>,
    /// Only this device of the node, by its index
    #[arg(long, value_name = "INDEX")]
    pub device: Option<u16>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<u16>,
    availability: &'static str,
}

/// Runs `aquifer cordon`.
pub async fn cordon(args: CordonArgs, session: &Session) -> Result<ExitCode> {
    change(&args.names, args.device, Change::Cordon, session).await
}

/// Runs `aquifer drain`.
pub async fn drain(args: DrainArgs, session: &Session) -> Result<ExitCode> {
    let code = change(&args.names, None, Change::Drain, session).await?;
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
    change(&args.names, args.device, Change::Uncordon, session).await
}

async fn change(
    names: &[String],
    device: Option<u16>,
    change: Change,
    session: &Session,
) -> Result<ExitCode> {
    let mut all = Vec::new();
    for name in names {
        let request = v1::NodeRequest { name: name.clone(), device: device.map(u32::from) };
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
            let of = device.map(|device| format!(" device {device}")).unwrap_or_default();
            session.output.text(format!("{name}{of} {says}"));
        }
        all.push(Changed { name: name.clone(), device, availability });
    }
    if session.output.json {
        session.output.document(&all);
    }
    Ok(ExitCode::SUCCESS)
}
