//! What this worker trains, loaded by `transformers`. Skipped aloud where Python or the package is not there:
//! `AQUIFER_PYTHON` names another interpreter than `python3`.

mod support;

use aquifer_worker::checkpoint::{load_model, load_tokenizer};
use aquifer_worker::kernels::{Cpu, Precision};
use aquifer_worker::model::training::Workspace;
use serde_json::Value;
use std::path::{Path, PathBuf};
use support::{TempDir, python_with, train_args, train_group};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Sums in f32 in another order, as in `models.rs`: within 1e-5 of the largest logit.
#[test]
fn a_trained_checkpoint_gives_the_same_logits_in_transformers() {
    let Some(python) = python_with("torch, transformers") else { return };
    let dir = TempDir::new();
    let text = dir.text();
    // A model with a tokenizer of its own to start from.
    let start = dir.join("start");
    std::fs::create_dir(&start).unwrap();
    for (name, file) in [
        ("qwen3", "config.json"),
        ("qwen3", "model.safetensors"),
        ("bpe", "tokenizer.json"),
        ("bpe", "tokenizer_config.json"),
        ("bpe", "chat_template.jinja"),
    ] {
        std::fs::copy(fixture(name).join(file), start.join(file)).unwrap();
    }
    for (model, checkpoints) in [("tiny", dir.join("tiny")), (start.to_str().unwrap(), dir.join("qwen3"))] {
        let options = [
            ["--data", text.to_str().unwrap()],
            ["--checkpoint-dir", checkpoints.to_str().unwrap()],
            ["--model", model],
            ["--steps", "3"],
            ["--context", "32"],
        ];
        let ended = train_group(&train_args(&options.concat()), 1, 1, None);
        assert!(ended[0].1.is_ok(), "{:?}", ended[0].1);
        let directory = checkpoints.join("step-000003");
        let output = python()
            .arg(fixture("logits.py"))
            .args([directory.to_str().unwrap(), "line 7 says: Grüße"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();

        let model = load_model(&directory, Precision::F32).unwrap();
        let tokens = load_tokenizer(&directory, &model.config).unwrap().encode("line 7 says: Grüße", true);
        assert_eq!(serde_json::json!(tokens), theirs["tokens"]);
        let mut workspace = Workspace::default();
        let logits = model.forward(&Cpu::new(1), &mut workspace, &tokens).unwrap();
        let last = &logits[logits.len() - model.config.vocab_size..];
        let largest = last.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        for (ours, theirs) in last.iter().zip(theirs["logits"].as_array().unwrap()) {
            let theirs = theirs.as_f64().unwrap() as f32;
            assert!((ours - theirs).abs() < 1e-5 * largest, "{ours}, not {theirs}");
        }
    }
}
