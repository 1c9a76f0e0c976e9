//! `aquifer prices`: what device hours cost.

use std::process::ExitCode;

use anyhow::Result;
use aquifer_core::explain::bytes;
use aquifer_proto::{tariff as border, v1};
use serde::Serialize;

use crate::client::{Client, Patience};
use crate::output::{Failure, Output, Side, Table};
use crate::{Session, units};

/// List what device hours cost, or set a price
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer prices set h100 2.5
  aquifer prices set t4 none
  aquifer prices")]
pub struct Args {
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: Option<Command>,
}

/// What is done with prices.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// List prices, and what an hour of each class counts
    List,
    /// Say what an hour of devices of a class costs, for what is placed from now on
    #[command(after_help = "\
Example:
  aquifer prices set h100 2.5")]
    Set(SetArgs),
}

/// A price.
#[derive(Clone, Debug, clap::Args)]
pub struct SetArgs {
    /// Model of devices, or its first words: h100 is also the price of h100-80gb-hbm3, unless that has one of its own
    #[arg(value_name = "CLASS")]
    pub class: String,
    /// Of an hour of a whole device, in any unit: 0.001 to 10,000; or `none`: its speed counts
    #[arg(value_name = "PRICE", value_parser = price)]
    pub price: Price,
}

/// Thousandths of a unit, if it has a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price(pub Option<u64>);

/// A price, or `none`.
pub(crate) fn price(text: &str) -> Result<Price, String> {
    match text {
        "none" => Ok(Price(None)),
        text => match units::parse_milli(text).map_err(|error| format!("{error}, or none"))? {
            milli @ 1..=border::MOST_MILLI => Ok(Price(Some(milli))),
            _ => Err("expected 0.001 to 10000, or none: a larger or smaller unit can say the rest".into()),
        },
    }
}

/// What `prices` prints.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct View {
    /// Prices as they were set.
    pub prices: Vec<Set>,
    /// Classes of devices that nodes have which are up.
    pub classes: Vec<Class>,
}

/// A price as it was set, in thousandths of a unit; `None`: there is none any more.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Set {
    pub class: String,
    pub price_milli: Option<u64>,
}

/// What an hour of devices of a class counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Class {
    pub vendor: String,
    pub model: String,
    pub memory_bytes: u64,
    pub devices: u64,
    /// In thousandths of a reference device.
    pub speed_milli: u64,
    /// In thousandths of a unit; `None`: its speed counts.
    pub price_milli: Option<u64>,
}

/// Runs the command.
pub async fn run(args: Args, session: &Session) -> Result<ExitCode> {
    match args.command {
        None | Some(Command::List) => list(session).await?,
        Some(Command::Set(args)) => set(args, session).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for prices, and what an hour of each class counts.
pub async fn ask(session: &Session) -> Result<View, Failure> {
    let list = async |mut client: Client| client.list_prices(v1::ListPricesRequest {}).await;
    let answer = session.pool.call(Patience::Short, list).await?;
    let set = |it: v1::Price| Set { class: it.class, price_milli: Some(it.price_milli) };
    let class = |it: v1::ClassPrice| Class {
        vendor: it.vendor,
        model: it.model,
        memory_bytes: it.memory_bytes,
        devices: it.devices,
        speed_milli: it.speed_milli,
        price_milli: it.price_milli,
    };
    Ok(View {
        prices: answer.prices.into_iter().map(set).collect(),
        classes: answer.classes.into_iter().map(class).collect(),
    })
}

async fn list(session: &Session) -> Result<()> {
    let view = ask(session).await?;
    match session.output.json {
        true => session.output.document(&view),
        false => session.output.text(text(&view, &session.output)),
    }
    Ok(())
}

async fn set(args: SetArgs, session: &Session) -> Result<()> {
    let SetArgs { class, price: Price(price_milli) } = args;
    let request = v1::SetPriceRequest { class, price_milli };
    let (model, _) = border::price(&request)
        .map_err(|invalid| Failure::refused(invalid.to_string(), "correct it and try again"))?;
    let set = async |mut client: Client| client.set_price(request.clone()).await;
    session.pool.call(Patience::Long, set).await?;
    let view = Set { class: model.to_string(), price_milli };
    match session.output.json {
        true => session.output.document(&view),
        false => session.output.text(match price_milli {
            Some(milli) => format!("a device hour of {model} costs {} from now on", units::milli(milli)),
            None => format!("a device hour of {model} has no price, and counts its speed from now on"),
        }),
    }
    Ok(())
}

/// The classes for people, with what an hour of each counts, and prices of what no node has.
pub fn text(view: &View, output: &Output) -> String {
    let columns = [
        ("MODEL", Side::Left),
        ("VENDOR", Side::Left),
        ("MEMORY", Side::Right),
        ("DEVICES", Side::Right),
        ("SPEED", Side::Right),
        ("PRICE", Side::Right),
    ];
    let mut table = Table::new(&columns).elastic(&[0]);
    for class in &view.classes {
        table.row([
            class.model.clone(),
            class.vendor.clone(),
            bytes(class.memory_bytes),
            units::group(class.devices),
            units::milli(class.speed_milli),
            class.price_milli.map_or("none".into(), units::milli),
        ]);
    }
    let set = |it: &Set| Some(format!("{} {}", it.class, units::milli(it.price_milli?)));
    let set: Vec<String> = view.prices.iter().filter_map(set).collect();
    let set = match set.is_empty() {
        true => "No prices are set: an hour of a device counts its speed.".into(),
        false => format!("Set: {}. An hour of a device without a price counts its speed.", set.join(", ")),
    };
    match table.is_empty() {
        true => set,
        false => format!("{}\n\n{set}", table.plain(output)),
    }
}
