//! Models and tokenizers of Hugging Face against what `transformers` computes with them (`fixtures/make.py`).

use aquifer_worker::checkpoint::{load_model, load_tokenizer};
use aquifer_worker::kernels::{Cpu, Precision};
use aquifer_worker::model::ModelConfig;
use aquifer_worker::model::training::{Sample, Workspace};
use aquifer_worker::tokenizer::Tokenizer;
use serde_json::Value;
use std::path::{Path, PathBuf};

const FAMILIES: [&str; 6] = ["llama", "llama3", "llama-biases", "mistral", "qwen2", "qwen3"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn expected(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name).join("expected.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u32).collect()
}

fn length(values: impl Iterator<Item = f32>) -> f32 {
    values.map(|x| x * x).sum::<f32>().sqrt()
}

/// The error of all recorded logits, as a share of their length.
fn logits_error(name: &str, precision: Precision, threads: usize) -> f32 {
    let (expected, model) = (expected(name), load_model(&fixture(name), precision).unwrap());
    let (kernels, mut workspace) = (Cpu::with_precision(threads, precision), Workspace::default());
    let tokens = tokens(&expected["tokens"]);
    let (mut wrong, mut all) = (Vec::new(), Vec::new());
    // A short sequence goes through dot products, a long one through packed panels.
    for (length, positions) in [(8, &[0, 7][..]), (40, &[0, 7, 23, 39])] {
        let logits = model.forward(&kernels, &mut workspace, &tokens[..length]).unwrap();
        for at in positions {
            let row = numbers(&expected["logits"][at.to_string()]);
            wrong.extend(logits[at * row.len()..(at + 1) * row.len()].iter().zip(&row).map(|(x, y)| x - y));
            all.extend(row);
        }
    }
    length(wrong.into_iter()) / length(all.into_iter())
}

/// Both sides compute in f32 with sums in another order, and their angles differ in the last place: some 1e-6 of the
/// logits, and no more than 1e-5. Factors rounded to bf16 are off by up to 2^-9 each, weights in int8 by up to 1/254 of
/// the largest in their group: some hundredths after two layers whose weights are several times as large as trained ones.
#[test]
fn logits_are_those_of_transformers_in_every_precision() {
    for name in FAMILIES {
        for (precision, tolerance) in
            [(Precision::F32, 1e-5), (Precision::Bf16, 0.03), (Precision::Int8, 0.04)]
        {
            let error = logits_error(name, precision, 2);
            println!("{name} {precision:?}: {error:.1e}");
            assert!(error < tolerance, "{name} in {precision:?}: {error} of the logits");
            assert!(precision == Precision::F32 || 1e-4 < error, "{name} in {precision:?} was not rounded");
        }
    }
}

/// Each within 1e-4 of the gradient's length: sums over 40 positions in f32, in another order.
#[test]
fn losses_and_gradients_are_those_of_transformers() {
    for name in FAMILIES {
        let (expected, model) = (expected(name), load_model(&fixture(name), Precision::F32).unwrap());
        let tokens = tokens(&expected["tokens"]);
        let sample = Sample { tokens: &tokens[..40], targets: &tokens[1..], length: 40 };
        let mut gradient = vec![0.0; model.layout.len];
        let loss = model.loss_and_gradient(&Cpu::new(1), &mut Workspace::default(), &mut gradient, sample);
        let theirs = expected["loss"].as_f64().unwrap() as f32;
        assert!((loss - theirs).abs() < 1e-5 * theirs, "{name}: loss {loss}, not {theirs}");
        let gradients = expected["gradients"].as_object().unwrap();
        assert_eq!(gradients.len(), model.layout.tensors.len(), "{name}");
        // What all scores of a row have in common changes nothing, so some gradients are all but zero.
        let largest = gradients.values().map(|theirs| theirs["length"].as_f64().unwrap()).fold(0.0, f64::max);
        for tensor in &model.layout.tensors {
            let (ours, theirs) = (tensor.span.of(&gradient), &gradients[&tensor.name]);
            let size = theirs["length"].as_f64().unwrap() as f32;
            let tolerance = 1e-4 * size + 1e-6 * largest as f32;
            let error = (length(ours.iter().copied()) - size).abs();
            assert!(error < tolerance, "{name}, {}: length is off by {error} of {size}", tensor.name);
            for (i, (x, y)) in ours.iter().zip(numbers(&theirs["first"])).enumerate() {
                assert!((x - y).abs() < tolerance, "{name}, {}[{i}]: {x}, not {y}", tensor.name);
            }
        }
    }
}

#[test]
fn a_tensor_that_is_missing_or_not_the_models_is_named() {
    let error = |change: fn(&mut Value)| {
        let directory = std::env::temp_dir().join(format!("aquifer-models-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        for file in ["model.safetensors", "config.json"] {
            std::fs::copy(fixture("qwen3").join(file), directory.join(file)).unwrap();
        }
        let path = directory.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(&path, config.to_string()).unwrap();
        let error = load_model(&directory, Precision::Bf16).err().unwrap().to_string();
        std::fs::remove_dir_all(&directory).unwrap();
        error.split_once(": ").unwrap().1.to_string()
    };
    let message = error(|config| config["num_hidden_layers"] = 3.into());
    assert_eq!(message, "model.layers.2.input_layernorm.weight is missing");
    let message = error(|config| config["num_hidden_layers"] = 1.into());
    assert_eq!(
        message,
        "model.layers.1.input_layernorm.weight is no tensor of the model that config.json describes"
    );
    let message = error(|config| config["intermediate_size"] = 40.into());
    assert_eq!(message, "model.layers.0.mlp.gate_proj.weight has shape [48, 32], the model needs [40, 32]");
}

fn tokenizer(name: &str) -> Tokenizer {
    let config = ModelConfig { vocab_size: 400, ..ModelConfig::preset("tiny").unwrap() };
    Tokenizer::load(&fixture(name), &config).unwrap()
}

#[test]
fn texts_have_the_tokens_of_transformers_and_come_back_from_them() {
    for name in ["bpe", "sentencepiece"] {
        let tokenizer = tokenizer(name);
        let texts = expected(name)["texts"].as_array().unwrap().clone();
        assert!(5 < texts.len());
        for case in texts {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, true), tokens(&case["tokens"]), "{name}: {text:?}");
            let plain = tokenizer.encode(text, false);
            assert_eq!(plain, tokens(&case["plain"]), "{name}: {text:?}");
            let bytes: Vec<u8> =
                plain.iter().filter_map(|token| tokenizer.token_bytes(*token)).flatten().copied().collect();
            let back = String::from_utf8(bytes).unwrap();
            // Marks are no text, and sentencepiece puts a space before the first word.
            let mut text = text.to_string();
            if name == "bpe" {
                text = text.replace("<|im_start|>", "").replace("<|im_end|>", "");
            } else if !text.is_empty() {
                text.insert(0, ' ');
            }
            assert_eq!(back, text, "{name}");
        }
    }
    let tokenizer = tokenizer("bpe");
    let [end, think] = ["<|im_end|>", "<think>"].map(|text| tokenizer.encode(text, false)[0]);
    assert!(tokenizer.is_end(end) && tokenizer.token_bytes(end).is_none());
    assert_eq!(tokenizer.token_bytes(think), Some(&b"<think>"[..]));
}

#[test]
fn conversations_are_worded_as_by_transformers() {
    for name in ["bpe", "sentencepiece"] {
        let tokenizer = tokenizer(name);
        let conversations = expected(name)["conversations"].as_array().unwrap().clone();
        assert_eq!(conversations.len(), 4);
        for case in conversations {
            let tools = Some(&case["tools"]).filter(|tools| !tools.is_null());
            let text = tokenizer.chat(&case["messages"], true, tools).unwrap();
            assert_eq!(text, case["text"].as_str().unwrap(), "{name}");
            let ours = tokenizer.chat_tokens(&case["messages"], true, tools).unwrap();
            assert_eq!(ours, tokens(&case["tokens"]), "{name}");
        }
    }
    let messages = serde_json::json!([{ "role": "wizard", "content": "" }]);
    let error = tokenizer("bpe").chat(&messages, true, None).unwrap_err().to_string();
    assert_eq!(error, "chat template: role wizard is unknown");
}

#[test]
fn a_tokenizer_in_another_file_or_larger_than_the_model_is_named() {
    let config = ModelConfig { vocab_size: 300, ..ModelConfig::preset("tiny").unwrap() };
    let error = Tokenizer::load(&fixture("bpe"), &config).err().unwrap().to_string();
    assert!(error.ends_with("; the model's vocab_size is 300"), "{error}");
    assert!(load_tokenizer(&fixture("llama"), &config).unwrap().vocab_size() == 258);
}
