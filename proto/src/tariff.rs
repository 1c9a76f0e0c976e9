//! Prices of device hours: at the border, on the wire, and in the store.

use aquifer_core::*;

use crate::border::{Invalid, text};
use crate::v1;

/// The most that a device hour costs, in thousandths of a unit: then usage of the largest pools can be counted.
pub const MOST_MILLI: u64 = 10_000_000;

/// Checks what an operator says that a device hour of a model costs; `None`: it has no price any more.
///
/// # Errors
/// Names the first field that cannot be accepted.
pub fn price(wire: &v1::SetPriceRequest) -> Result<(Name, Option<u64>), Invalid> {
    let price = wire.price_milli.map(|milli| self::milli("price_milli", milli)).transpose()?;
    Ok((model("class", &wire.class)?, price))
}

fn milli(field: &str, milli: u64) -> Result<u64, Invalid> {
    match milli {
        1..=MOST_MILLI => Ok(milli),
        _ => Err(Invalid::new(field, milli, "expected 1 to 10,000,000 thousandths of a unit")),
    }
}

fn model(field: &str, value: &str) -> Result<Name, Invalid> {
    let model = text(field, &value.to_lowercase(), 128)?;
    match model.is_empty() || model.contains('|') {
        true => Err(Invalid::new(
            field,
            format!("{value:?}"),
            "expected one model of devices, or its first words",
        )),
        false => Ok(model),
    }
}

/// The prices as they are told and stored.
pub fn prices(tariff: &Tariff) -> Vec<v1::Price> {
    tariff.iter().map(|(class, price_milli)| v1::Price { class: class.to_string(), price_milli }).collect()
}

pub(crate) fn decode(wire: &v1::StoredTariff) -> Result<Tariff, Invalid> {
    let price = |it: &v1::Price| Ok((model("class", &it.class)?, milli("price_milli", it.price_milli)?));
    Ok(Tariff::new(wire.prices.iter().map(price).collect::<Result<Vec<_>, Invalid>>()?))
}
