//! What ranks run: commands, and options of the bundled programs.

use aquifer_core::*;

use super::{Checked, Invalid, MAX_ARGUMENTS, path, place, text};
use crate::v1;

pub(super) fn arguments(field: &str, arguments: &[String]) -> Checked<Vec<Name>> {
    let bytes: usize = arguments.iter().map(|argument| argument.len() + 1).sum();
    if MAX_ARGUMENTS < bytes {
        return Err(Invalid::new(field, format!("{bytes} bytes long"), format!("at most {MAX_ARGUMENTS}")));
    }
    if arguments.first().is_none_or(|program| program.is_empty()) {
        return Err(Invalid::new(field, "empty", "expected a program and its arguments"));
    }
    if let Some(at) = arguments.iter().position(|argument| argument.contains('\0')) {
        return Err(Invalid::new(
            format!("{field}[{at}]"),
            format!("{:?}", arguments[at]),
            "must not contain a zero byte",
        ));
    }
    Ok(arguments.iter().map(|argument| argument.as_str().into()).collect())
}

pub(super) fn train(field: &str, wire: &v1::Train) -> Checked<TrainOptions> {
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    let learning_rate = if wire.learning_rate == 0.0 { 3e-3 } else { wire.learning_rate };
    if !(0.0 < learning_rate && learning_rate <= 1.0) {
        let field = format!("{field}.learning_rate");
        return Err(Invalid::new(field, wire.learning_rate, "expected more than 0 and at most 1"));
    }
    let limit = |name: &str, value: u64, most: u64| match value <= most {
        true => Ok(value),
        false => Err(Invalid::new(format!("{field}.{name}"), value, format!("at most {most}"))),
    };
    let model = if wire.model.is_empty() { "tiny" } else { &wire.model };
    Ok(TrainOptions {
        model: text(&format!("{field}.model"), model, 4096)?,
        data: path(&format!("{field}.data"), &wire.data)?,
        steps: limit("steps", or(wire.steps, 200), 1_000_000_000)?,
        batch: limit("batch", or(wire.batch.into(), 8), 1_000_000)? as u32,
        context: limit("context", or(wire.context.into(), 128), 1 << 20)? as u32,
        learning_rate,
        seed: wire.seed,
        checkpoint_every: limit("checkpoint_every", or(wire.checkpoint_every, 50), 1_000_000_000)?,
        precision: precision(field, &wire.precision, TRAIN_PRECISIONS)?,
        micro_batch: limit("micro_batch", or(wire.micro_batch.into(), 1), 1_000_000)? as u32,
        spares: wire.spares,
        audit_every: limit("audit_every", wire.audit_every, 1_000_000_000)?,
        inner_steps: limit("inner_steps", wire.inner_steps, 1 << 20)?,
        replicas: limit("replicas", wire.replicas.into(), 1_000_000)? as u32,
    })
}

/// Checks that so many ranks can share the steps of a training.
pub(super) fn trains_on(field: &str, options: &TrainOptions, ranks: u32) -> Checked<()> {
    let TrainOptions { batch, micro_batch, spares, inner_steps, replicas, .. } = *options;
    let refuse = |name: &str, value: u32, allowed: String| {
        Err(Invalid::new(format!("{field}.{name}"), value, allowed))
    };
    if batch < ranks {
        return refuse("batch", batch, format!("expected at least the number of ranks, {ranks}"));
    }
    if inner_steps == 0 && replicas != 0 {
        return refuse("replicas", replicas, "expected 0 where inner_steps is".into());
    }
    if inner_steps != 0 {
        let sequences = u64::from(replicas) * u64::from(micro_batch);
        if replicas < ranks || !u64::from(batch).is_multiple_of(sequences) {
            let allowed = format!(
                "expected at least the number of ranks, {ranks}, and that it divides batch / micro_batch, {batch} / {micro_batch}"
            );
            return refuse("replicas", replicas, allowed);
        }
    } else if !batch.is_multiple_of(micro_batch) || batch / micro_batch < ranks {
        let allowed =
            format!("expected a divisor of the batch, {batch}, that leaves one for each of {ranks} ranks");
        return refuse("micro_batch", micro_batch, allowed);
    }
    if ranks <= spares {
        return refuse("spares", spares, format!("expected less than the number of ranks, {ranks}"));
    }
    Ok(())
}

/// What a training job may compute in; the first is what it does where it says nothing.
pub const TRAIN_PRECISIONS: &[&str] = &["f32", "bf16"];

/// What a service may keep its weights in, likewise.
pub const SERVE_PRECISIONS: &[&str] = &["f32", "bf16", "int8"];

fn precision(field: &str, wire: &str, known: &[&str]) -> Checked<Name> {
    match wire {
        "" => Ok(known[0].into()),
        _ if known.contains(&wire) => Ok(wire.into()),
        _ => {
            let expected = format!("expected one of {}", known.join(", "));
            Err(Invalid::new(format!("{field}.precision"), wire.escape_debug(), expected))
        }
    }
}

pub(super) fn serve(field: &str, wire: &v1::Serve) -> Checked<ServeOptions> {
    let max_queue = if wire.max_queue == 0 { 64 } else { wire.max_queue };
    if 100_000 < max_queue {
        return Err(Invalid::new(format!("{field}.max_queue"), max_queue, "expected 1 to 100,000"));
    }
    let model = place(&format!("{field}.model"), &wire.model)?;
    let served_name = text(&format!("{field}.served_name"), &wire.served_name, 128)?;
    let precision = precision(field, &wire.precision, SERVE_PRECISIONS)?;
    let autoscale =
        wire.autoscale.as_ref().map(|wire| promise(&format!("{field}.autoscale"), wire)).transpose()?;
    if let Some(bytes) = wire.kv_memory_bytes.filter(|bytes| !(1 << 20..=1 << 44).contains(bytes)) {
        return Err(Invalid::new(format!("{field}.kv_memory_bytes"), bytes, "expected 1 MiB to 16 TiB"));
    }
    let kv_memory_bytes = wire.kv_memory_bytes;
    Ok(ServeOptions { model, served_name, max_queue, precision, kv_memory_bytes, autoscale })
}

fn promise(field: &str, wire: &v1::Autoscale) -> Checked<Promise> {
    let concurrency = if wire.concurrency == 0 { 8 } else { wire.concurrency };
    if 10_000 < concurrency {
        return Err(Invalid::new(format!("{field}.concurrency"), concurrency, "expected 1 to 10,000"));
    }
    let within = |name: &str, ms: Option<u64>, least: u64, most: u64| match ms {
        Some(ms) if !(least..=most).contains(&ms) => {
            Err(Invalid::new(format!("{field}.{name}"), ms, format!("expected {least} to {most} ms")))
        }
        _ => Ok(ms),
    };
    Ok(Promise {
        concurrency,
        ttft_ms: within("ttft_ms", wire.ttft_ms, 1, 600_000)?,
        tpot_ms: within("tpot_ms", wire.tpot_ms, 1, 60_000)?,
        sleep_after_ms: within("sleep_after_ms", wire.sleep_after_ms, 1_000, 604_800_000)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_have_replicas_for_all_ranks_of_the_same_size() {
        let refusal = |inner_steps, replicas, ranks| {
            let wire =
                v1::Train { data: "/data".into(), batch: 8, inner_steps, replicas, ..v1::Train::default() };
            let options = train("train", &wire).unwrap();
            trains_on("train", &options, ranks).err().map(|invalid| invalid.to_string())
        };
        assert_eq!([refusal(0, 0, 2), refusal(5, 2, 2), refusal(5, 8, 3)], [None, None, None]);
        for (inner_steps, replicas, ranks) in [(0, 4, 2), (5, 0, 1), (5, 2, 3), (5, 3, 2)] {
            let said = refusal(inner_steps, replicas, ranks).unwrap_or_default();
            assert!(said.contains("train.replicas"), "{inner_steps} {replicas} {ranks}: {said}");
        }
    }
}
