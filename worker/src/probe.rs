//! `aquifer worker probe`: whether this node computes and exchanges as it should, beside one or two others.
//!
//! Products of whole numbers, whose sums are exact in any order, are compared with what they must be; then all nodes of the probe
//! add up vectors as members of a training do, and each looks at all of the sum. A node that is slow, wrong or silent fails the
//! probe for all: who of them it is, whoever asked finds out.

use std::sync::Arc;
use std::time::Duration;

use crate::WorkerError;
use crate::bench::{self, Summing, sum_up};
use crate::kernels::{
    Backend, Bf16, Card, Cpu, Cuda, DeviceError, Element, Kernels, Linear, Precision, reference,
};

/// Below so much of what its class was measured to do a device is too slow.
const SLOW: f64 = 0.7;
/// Of the products.
const SHAPE: (usize, usize, usize) = (512, 256, 256);
/// Floats of the vectors that are added up, and how often.
const FLOATS: usize = 4 << 20;
const ROUNDS: u64 = 8;

/// Options of a probe.
#[derive(clap::Args, Clone, Debug)]
pub struct ProbeArgs {
    /// Position of this node in the probe, from 0
    #[arg(long, value_name = "N")]
    pub rank: usize,

    /// Nodes that take part
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=16))]
    pub ranks: u64,

    /// Where the first node listens
    #[arg(long, value_name = "HOST:PORT")]
    pub master: String,

    /// Cards to compute on, of those that this process may see; 0: the processor
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub cards: usize,

    /// What such a device was measured to do, in TFLOP/s of bf16. Without, a card whose libraries are not found is done without
    #[arg(long, value_name = "TFLOPS")]
    pub usual: Option<f64>,

    /// Seconds to wait for the others, whose cards may take as long to start
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub join: u64,
}

/// Probes.
///
/// # Errors
/// Says what is wrong, or that the probe could not be made; the exit code tells which.
pub fn main(args: ProbeArgs) -> Result<(), WorkerError> {
    let computed = compute(&args);
    let plan = Summing {
        ranks: args.ranks as usize,
        floats: FLOATS,
        // Who has failed leaves early: the others need not wait to learn that.
        steps: if computed.is_ok() { ROUNDS } else { 1 },
        join: Duration::from_secs(args.join),
        whole: true,
    };
    let summed = sum_up(&plan, args.rank, &args.master);
    computed.and(summed)
}

fn compute(args: &ProbeArgs) -> Result<(), WorkerError> {
    for index in 0..args.cards {
        match Card::find(index) {
            Ok(card) => on_card(Arc::new(card), args.usual)?,
            // Nobody has ever computed on it here: that says nothing of it.
            Err(error) if args.usual.is_none() => {
                println!("{error}");
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if args.cards == 0 {
        on_processor(args.usual)?;
    }
    Ok(())
}

/// Whole numbers from -4 to 4.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mix = |at: usize| (at as u64 + 1).wrapping_mul(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (0..len).map(|at| (mix(at) % 9) as f32 - 4.0).collect()
}

/// What a product is made of, and what it must be.
fn factors() -> (Linear, [Vec<f32>; 3]) {
    let (rows, inputs, outputs) = SHAPE;
    let shape = Linear::new(rows, inputs, outputs);
    let (x, dy) = (numbers(rows * inputs, 3), numbers(rows * outputs, 5));
    let mut expected = vec![0.0; outputs * inputs];
    reference::linear_backward_weight(shape, &mut expected, &dy, &x);
    (shape, [x, dy, expected])
}

fn compare(what: &str, got: &[f32], expected: &[f32]) -> Result<(), DeviceError> {
    let wrong = got.iter().zip(expected).filter(|(got, expected)| got != expected).count();
    match wrong {
        0 => Ok(()),
        wrong => {
            let len = expected.len();
            Err(DeviceError(format!(
                "{what} computes {wrong} of {len} sums of a product in another way than it must"
            )))
        }
    }
}

fn fast_enough(what: &str, tflops: f64, usual: Option<f64>) -> Result<(), DeviceError> {
    match usual {
        Some(usual) if tflops < SLOW * usual => {
            let percent = 100.0 * tflops / usual;
            Err(DeviceError(format!("{what} does {percent:.0} % of what its class was measured to do")))
        }
        _ => Ok(()),
    }
}

fn on_processor(usual: Option<f64>) -> Result<(), DeviceError> {
    let (shape, [x, dy, expected]) = factors();
    for precision in [Precision::F32, Precision::Bf16] {
        let mut got = vec![0.0; expected.len()];
        Kernels::linear_backward_weight(&Cpu::with_precision(1, precision), shape, &mut got, &dy, &x);
        compare("a core", &got, &expected)?;
    }
    let tflops = crate::measure::core_tflops().unwrap_or(0.0);
    fast_enough("a core", tflops, usual)
}

fn on_card(card: Arc<Card>, usual: Option<f64>) -> Result<(), DeviceError> {
    let what = card.describe();
    product_on::<f32>(&card, &what)?;
    product_on::<Bf16>(&card, &what)?;
    let Some(usual) = usual else { return Ok(()) };
    let tflops =
        bench::tflops(&Cuda::<Bf16>::as_needed(card, 64), crate::measure::CardSizes::default().product)?;
    fast_enough(&what, tflops, Some(usual))
}

fn product_on<E: Element>(card: &Arc<Card>, what: &str) -> Result<(), DeviceError> {
    let (shape, [x, dy, expected]) = factors();
    let kernels = Cuda::<E>::as_needed(Arc::clone(card), 64);
    let elements = |values: &[f32]| {
        let mut buffer = Default::default();
        kernels.resize_elements(&mut buffer, values.len());
        card.upload(&mut buffer, &values.iter().copied().map(E::of).collect::<Vec<E>>());
        buffer
    };
    let (x, dy, mut dw) = (elements(&x), elements(&dy), Default::default());
    kernels.resize(&mut dw, expected.len());
    kernels.zero(&mut dw);
    kernels.linear_backward_weight(shape, &mut dw, &dy, &x);
    kernels.finish()?;
    compare(what, kernels.read(&dw, &mut Vec::new())?, &expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn probe(rank: usize, ranks: u64, master: &str) -> Result<(), WorkerError> {
        main(ProbeArgs { rank, ranks, master: master.into(), cards: 0, usual: None, join: 5 })
    }

    fn free() -> String {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
    }

    #[test]
    fn nodes_that_are_well_pass_together() {
        for ranks in [2, 3] {
            let master = free();
            std::thread::scope(|scope| {
                let master = &master;
                let all: Vec<_> =
                    (0..ranks).map(|rank| scope.spawn(move || probe(rank as usize, ranks, master))).collect();
                for one in all {
                    one.join().unwrap().unwrap();
                }
            });
        }
    }

    #[test]
    fn what_is_wrong_and_what_could_not_be_probed_are_told_apart() {
        let alone = probe(0, 2, &free()).unwrap_err();
        assert_eq!(alone.exit_code(), 85);
        assert!(alone.to_string().contains("waited 5 s"), "{alone}");
        let nobody = probe(1, 2, &free()).unwrap_err();
        assert_eq!(nobody.exit_code(), 85, "{nobody}");
        // Somebody else listens where it should.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().map(|at| (at, taken)).unwrap();
        let busy = probe(0, 2, &taken.0.to_string()).unwrap_err();
        assert_eq!(busy.exit_code(), 75, "{busy}");
        let slow = fast_enough("a core", 0.6, Some(1.0)).unwrap_err();
        assert_eq!(slow.to_string(), "a core does 60 % of what its class was measured to do");
        let (_, [x, _, expected]) = factors();
        assert!(compare("a core", &expected, &expected).is_ok());
        let mut wrong = expected.clone();
        wrong[7] += 1.0;
        let wrong = compare("a core", &wrong, &expected).unwrap_err();
        let said = "a core computes 1 of 65536 sums of a product in another way than it must";
        assert_eq!(wrong.to_string(), said);
        assert!((-4..=4).all(|number| x.contains(&(number as f32))));
    }
}
