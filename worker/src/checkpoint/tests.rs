use super::*;
use crate::elastic::Spent;
use crate::kernels::Precision;
use crate::model::{Model, Trained};
use crate::testing::TempDir;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::sync::Arc;

fn settings() -> Settings {
    Settings {
        seed: 1,
        batch: 8,
        micro_batch: 1,
        precision: Precision::F32,
        context: 16,
        steps: 100,
        learning_rate: 3e-3,
        warmup: 0,
        weight_decay: 0.1,
        clip: 1.0,
        inner_steps: 0,
        replicas: 0,
        keeps_moments: false,
    }
}

fn config() -> ModelConfig {
    ModelConfig {
        hidden_size: 16,
        intermediate_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        ..ModelConfig::preset("tiny").unwrap()
    }
}

fn state(step: u64) -> TrainingState {
    let model = Model::new(config(), step);
    let (first, second) = (model.weights.parameters.clone(), model.layout.initial(77));
    let record = Record {
        step,
        tokens_seen: 128 * step,
        loss: 2.5,
        settings: settings(),
        data_tokens: 1000,
        data_crc32: 7,
        files: BTreeMap::new(),
        spent: Spent::default(),
        saved_at_ms: 0,
    };
    TrainingState { trained: Arc::new(Trained { model, first, second }), record }
}

fn open(path: &Path, keep: usize) -> Result<CheckpointDir, CheckpointError> {
    CheckpointDir::open(path, keep, Vec::new())
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_state_survives_its_checkpoint_and_only_the_newest_are_kept() {
    let temporary = TempDir::new();
    let dir = open(&temporary.path().join("a/b"), 2).unwrap();
    for step in [10, 20, 30] {
        dir.save(&state(step)).unwrap();
    }
    assert_eq!(names(&dir.path), [".writing-over-this", "latest", "step-000020", "step-000030"]);
    let (loaded, skipped) = dir.load_newest(&settings(), &config()).unwrap();
    let (loaded, saved) = (loaded.unwrap(), state(30));
    assert!(skipped.is_empty());
    assert!(loaded.trained.vectors() == saved.trained.vectors());
    assert_eq!((loaded.record.step, loaded.record.loss), (30, 2.5));
    assert!(
        load_model(&dir.path, Precision::F32).unwrap().weights.parameters
            == saved.trained.model.weights.parameters
    );
    assert!(
        load_model(&dir.path.join("step-000020"), Precision::F32).unwrap().weights.parameters
            == state(20).trained.model.weights.parameters
    );
}

/// Who has opened a checkpoint that is removed meanwhile has it as it was.
#[test]
fn the_files_of_old_checkpoints_are_written_over_unless_somebody_reads_them() {
    use std::os::unix::fs::MetadataExt;
    let temporary = TempDir::new();
    let dir = open(temporary.path(), 1).unwrap();
    let file = |step: u64| dir.path.join(name_of(step)).join(MODEL);
    let number = |step| file(step).metadata().unwrap().ino();
    dir.save(&state(1)).unwrap();
    let first = number(1);
    // What is written over it is shorter.
    File::options().append(true).open(file(1)).unwrap().set_len(1 << 20).unwrap();
    dir.save(&state(2)).unwrap();
    dir.save(&state(3)).unwrap();
    assert_eq!(number(3), first);
    assert_eq!(dir.load_newest(&settings(), &config()).unwrap().0.unwrap().record.step, 3);
    let (number_read, read) = (number(3), crate::mapping::Mapping::of(&file(3)).unwrap());
    for step in [4, 5] {
        dir.save(&state(step)).unwrap();
        assert_ne!(number(step), number_read);
        let weights = fs::read(file(step)).unwrap();
        assert!(read[..] != weights[..] && read.len() == weights.len());
    }
    let path = dir.path.clone();
    drop(dir);
    assert_eq!(names(&path), ["latest", "step-000005"]);
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_taken() {
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 5] = [
        ("a flipped bit in the weights", |dir| flip(&dir.join(MODEL))),
        ("a flipped bit in the moments", |dir| flip(&dir.join(OPTIMIZER))),
        ("cut weights", |dir| {
            File::options().write(true).open(dir.join(MODEL)).unwrap().set_len(999).unwrap()
        }),
        ("an empty record", |dir| fs::write(dir.join(RECORD), "").unwrap()),
        ("a missing shape", |dir| fs::remove_file(dir.join("config.json")).unwrap()),
    ];
    for (what, damage) in damage {
        let temporary = TempDir::new();
        let dir = open(temporary.path(), 5).unwrap();
        dir.save(&state(10)).unwrap();
        dir.save(&state(20)).unwrap();
        damage(&dir.path.join("step-000020"));
        let (loaded, skipped) = dir.load_newest(&settings(), &config()).unwrap();
        assert_eq!(loaded.unwrap().record.step, 10, "{what}");
        assert!(skipped.len() == 1 && skipped[0].contains("step-000020"), "{what}: {skipped:?}");
        // The step is reached again and takes the damaged one's place.
        dir.save(&state(20)).unwrap();
        assert_eq!(dir.load_newest(&settings(), &config()).unwrap().0.unwrap().record.step, 20);
    }
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 4;
    fs::write(path, bytes).unwrap();
}

#[test]
fn another_training_is_refused_with_both_values() {
    let temporary = TempDir::new();
    let dir = open(temporary.path(), 2).unwrap();
    dir.save(&state(10)).unwrap();
    let error = |settings: &Settings, config: &ModelConfig| {
        let error = dir.load_newest(settings, config).err().unwrap().to_string();
        error.split_once("step-000010 ").unwrap().1.to_string()
    };
    assert_eq!(
        error(&Settings { seed: 2, ..settings() }, &config()),
        "was written with --seed 1, this training has 2"
    );
    let rounds = |keeps_moments| Settings { inner_steps: 5, replicas: 2, keeps_moments, ..settings() };
    assert_eq!(error(&rounds(true), &config()), "was written with --inner-steps 0, this training has 5");
    let wider = ModelConfig { intermediate_size: 32, ..config() };
    assert_eq!(
        error(&settings(), &wider),
        "was written with --model intermediate_size 16, this training has 32"
    );
    // What only changes how the training goes on may differ.
    assert!(dir.load_newest(&Settings { steps: 500, ..settings() }, &config()).unwrap().0.is_some());
}

#[test]
fn rounds_that_began_with_other_moments_are_refused() {
    let temporary = TempDir::new();
    let dir = open(temporary.path(), 2).unwrap();
    let mut old = state(10);
    (old.record.settings.inner_steps, old.record.settings.replicas) = (5, 2);
    dir.save(&old).unwrap();
    // As versions before wrote it.
    let record = fs::read_to_string(dir.path.join("step-000010").join(RECORD)).unwrap();
    assert!(record.contains("inner_steps") && !record.contains("moments"), "{record}");
    let settings = Settings { keeps_moments: true, ..old.record.settings.clone() };
    let error = dir.load_newest(&settings, &config()).err().unwrap().to_string();
    let said =
        "was written with rounds that begin with moments of zero, this training has of the round before";
    assert!(error.ends_with(said), "{error}");
}

#[test]
fn what_an_interrupted_write_left_is_removed_and_never_read() {
    let temporary = TempDir::new();
    fs::create_dir_all(temporary.path().join(".writing-step-000050")).unwrap();
    let dir = open(temporary.path(), 2).unwrap();
    assert!(names(&dir.path).is_empty());
    assert!(dir.load_newest(&settings(), &config()).unwrap().0.is_none());
    let error = load_model(&dir.path, Precision::F32).err().unwrap().to_string();
    assert!(error.contains("holds no model"), "{error}");
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error_at_the_start() {
    let temporary = TempDir::new();
    let file = temporary.path().join("file");
    fs::write(&file, "").unwrap();
    let error = open(&file.join("dir"), 2).err().unwrap().to_string();
    assert!(error.contains("file/dir was not written: Not a directory"), "{error}");
}
