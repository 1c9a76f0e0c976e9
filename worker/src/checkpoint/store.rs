//! Checkpoints in an object store.
//!
//! ```text
//! URL/step-000050/1-0-5be12a90-0/config.json  model.safetensors  optimizer.safetensors  train.json
//! URL/step-000050/manifest.json                which of them are the checkpoint, with length and checksum
//! ```
//!
//! Stores rename nothing, so the manifest is what makes a checkpoint: it is written last, and only where there is none.
//! Every try writes objects under a name of its own, and nobody removes what another one may be writing. So two that
//! lead at the same time, or one that was declared dead and was not, publish one checkpoint between them, and a whole one.
//!
//! Objects are sent in parts as they are made, and checked as they are read: memory for a few parts, no disk to write.

use super::files::{Companions, Put, load_training, write_files};
use super::{
    CONFIG, CheckpointError, MODEL, OPTIMIZER, RECORD, Settings, TrainingState, name_of, step_of, unix_ms,
};
use crate::model::ModelConfig;
use crate::safetensors::{Checksummed, Content, Written};
use crate::tokenizer;
use futures::StreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{
    Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig, WriteMultipart,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::{self, Runtime};
use url::Url;

const MANIFEST: &str = "manifest.json";
/// Bytes of a part; S3 takes no smaller ones.
const PART: u64 = 5 << 20;
/// Parts of an object, at most; S3 takes 10,000.
const MOST_PARTS: u64 = 9_000;
/// Parts that are on their way at a time.
const PARTS_AT_ONCE: usize = 4;
/// The longest manifest that is read.
const MOST_MANIFEST: u64 = 1 << 20;
/// For how long objects that belong to no checkpoint may still be those of one that is being written.
const MAY_BE_WRITING: Duration = Duration::from_secs(86_400);
/// Who writes checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    /// Which try of the job it belongs to.
    pub attempt: u64,
    /// Its number in the group.
    pub rank: usize,
}

/// `manifest.json`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Manifest {
    /// Version of this format.
    format: u32,
    step: u64,
    attempt: u64,
    rank: usize,
    /// The folder of the objects, beside the manifest.
    folder: String,
    written_at_ms: u64,
    objects: BTreeMap<String, Written>,
}

const FORMAT: u32 = 1;

impl Manifest {
    /// Reads one. Nothing in it leads out of its folder, or of the directory that the objects are read into.
    fn parse(text: &[u8], step: u64) -> Result<Manifest, String> {
        let manifest: Manifest =
            serde_json::from_slice(text).map_err(|error| format!("{MANIFEST}: {error}"))?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let needed = [MODEL, OPTIMIZER, CONFIG, RECORD];
        if manifest.format != FORMAT {
            return Err(format!("{MANIFEST}: format is {}, this version reads {FORMAT}", manifest.format));
        }
        if manifest.step != step {
            return Err(format!("{MANIFEST} is of step {}", manifest.step));
        }
        if manifest.folder.is_empty() || !manifest.folder.chars().all(is_plain) {
            return Err(format!("{MANIFEST}: folder is {:?}", manifest.folder));
        }
        if let Some(missing) = needed.iter().find(|name| !manifest.objects.contains_key(**name)) {
            return Err(format!("{MANIFEST} names no {missing}"));
        }
        let is_known = |name: &str| needed.contains(&name) || tokenizer::FILES.contains(&name);
        match manifest.objects.keys().find(|name| !is_known(name)) {
            Some(name) => Err(format!("{MANIFEST} names {name:?}, which is no file of a checkpoint")),
            None => Ok(manifest),
        }
    }
}

/// The checkpoints below a URL.
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: Key,
    /// The URL, for people, and the option that gave it.
    place: String,
    option: &'static str,
    keep: usize,
    companions: Companions,
    writer: Writer,
    /// Start of the names of the folders that it writes, and how many it has written.
    name: String,
    tries: AtomicU64,
    scratch: PathBuf,
    runtime: Runtime,
}

impl Store {
    /// Reads settings and credentials from the environment, as the crate `object_store` does.
    ///
    /// # Errors
    /// Where they make no sense.
    pub fn open(
        url: &Url,
        keep: usize,
        writer: Writer,
        companions: Companions,
        scratch: &Path,
    ) -> Result<Store, CheckpointError> {
        let place = url.as_str().trim_end_matches('/').to_string();
        let option = "--checkpoint-dir";
        let refused =
            |error: Error| CheckpointError::Refused { option, place: place.clone(), reason: plain(&error) };
        // Another one that was installed before is as good.
        _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let objects: Result<Arc<dyn ObjectStore>, Error> = match url.scheme() {
            "s3" => AmazonS3Builder::from_env()
                .with_url(url.as_str())
                .with_retry(retry())
                .build()
                .map(|store| Arc::new(store) as _),
            "gs" => GoogleCloudStorageBuilder::from_env()
                .with_url(url.as_str())
                .with_retry(retry())
                .build()
                .map(|store| Arc::new(store) as _),
            "az" => MicrosoftAzureBuilder::from_env()
                .with_url(url.as_str())
                .with_retry(retry())
                .build()
                .map(|store| Arc::new(store) as _),
            _ => directory(url).map(|store| Arc::new(store) as _),
        };
        let prefix = match url.scheme() {
            "file" => Key::default(),
            _ => Key::from_url_path(url.path()).map_err(|error| refused(error.into()))?,
        };
        Ok(Store::over(objects.map_err(refused)?, prefix, place, keep, scratch).with(writer, companions))
    }

    /// The checkpoints below `prefix` of any store; `place` names it to people.
    pub fn over(
        objects: Arc<dyn ObjectStore>,
        prefix: Key,
        place: String,
        keep: usize,
        scratch: &Path,
    ) -> Store {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        Store {
            objects,
            prefix,
            place,
            option: "--checkpoint-dir",
            keep,
            companions: Vec::new(),
            writer: Writer::default(),
            name: String::new(),
            tries: AtomicU64::new(0),
            scratch: scratch.to_path_buf(),
            runtime: runtime.expect("a runtime of one thread"),
        }
        .with(Writer::default(), Vec::new())
    }

    fn with(self, writer: Writer, companions: Companions) -> Store {
        // Numbers of ranks and attempts are used again by hand.
        let random = RandomState::new().hash_one(unix_ms()) as u32;
        let name = format!("{}-{}-{random:08x}", writer.attempt, writer.rank);
        Store { writer, companions, name, ..self }
    }

    /// Checks that objects can be written.
    ///
    /// # Errors
    /// Where they cannot.
    pub fn probe(&self) -> Result<(), CheckpointError> {
        let key = self.prefix.clone().join(format!("probe-{}", self.name));
        self.wait(self.objects.put(&key, PutPayload::from_static(b"probe")))?;
        self.wait(self.objects.delete(&key))
    }

    /// Writes a checkpoint and removes the oldest ones.
    ///
    /// # Errors
    /// Where the store does not take it; there is then no checkpoint of this step, and the others are untouched.
    pub fn save(&self, state: &TrainingState) -> Result<(), CheckpointError> {
        let step = state.record.step;
        let found = self.manifest(step)?;
        if let Some(text) = &found
            && let Ok(manifest) = Manifest::parse(text, step)
            && self.read(&manifest, None)?.is_none()
        {
            // Another member that led for a while has written it: a step has one state.
            return Ok(());
        }
        let folder = format!("{}-{}", self.name, self.tries.fetch_add(1, Ordering::Relaxed));
        let mut objects = BTreeMap::new();
        let put: Put = &mut |name, bytes, content| {
            let written = self.upload(&self.key(step, &folder).join(name), bytes, content)?;
            objects.insert(name.to_string(), written.clone());
            Ok(written)
        };
        if let Err(error) = write_files(state, &self.companions, put) {
            self.forget(step, &folder);
            return Err(match error.downcast::<Error>() {
                Ok(error) => self.error(error),
                Err(error) => CheckpointError::Store { place: self.url(step), reason: error.to_string() },
            });
        }
        let Writer { attempt, rank } = self.writer;
        let written_at_ms = unix_ms();
        let manifest = Manifest { format: FORMAT, step, attempt, rank, folder, written_at_ms, objects };
        if found.is_some() && self.manifest(step)? == found {
            // Only a damaged checkpoint is ever written again.
            self.wait(self.objects.delete(&self.manifest_key(step)))?;
        }
        self.publish(&manifest)?;
        if let Err(error) = self.remove_old() {
            eprintln!("old checkpoints were not removed: {error}");
        }
        Ok(())
    }

    /// Makes the objects of a manifest the checkpoint, unless another one is there.
    fn publish(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let text = serde_json::to_string_pretty(manifest).expect("plain fields") + "\n";
        let key = self.manifest_key(manifest.step);
        let put = self.objects.put_opts(&key, text.clone().into(), PutMode::Create.into());
        match self.runtime.block_on(put) {
            Ok(_) => Ok(()),
            Err(Error::AlreadyExists { .. }) => match self.manifest(manifest.step)? {
                // The answer to the first try was lost.
                Some(found) if found == text.as_bytes() => Ok(()),
                Some(_) => {
                    self.forget(manifest.step, &manifest.folder);
                    Ok(())
                }
                None => Err(self.passing(manifest.step, "the manifest was removed while it was written")),
            },
            // It may have arrived, so what it names stays.
            Err(error) => Err(self.error(error)),
        }
    }

    /// The newest checkpoint that is whole, as [`super::Checkpoints::load_newest`] has it.
    ///
    /// # Errors
    /// Where it belongs to a training with other settings, or the store does not answer.
    pub fn load_newest(
        &self,
        settings: &Settings,
        config: &ModelConfig,
    ) -> Result<(Option<TrainingState>, Vec<String>), CheckpointError> {
        let (mut loaded, mut skipped) = (None, Vec::new());
        self.find(&mut skipped, |step, directory| {
            match load_training(directory, settings, config) {
                Ok(state) => loaded = Some(state),
                Err(CheckpointError::Mismatch { field, theirs, ours, .. }) => {
                    let path = self.url(step).into();
                    return Err(CheckpointError::Mismatch { path, field, theirs, ours });
                }
                Err(error) => {
                    let own = format!("{}/", directory.display());
                    return Ok(Some(error.to_string().replace(&own, "")));
                }
            }
            Ok(None)
        })?;
        Ok((loaded, skipped))
    }

    /// Copies the newest checkpoint that is whole into a directory that is removed when dropped, to be read as a model.
    /// `option` gave the URL.
    ///
    /// # Errors
    /// Where there is none, or the store does not answer.
    pub fn fetch(option: &'static str, url: &Url, scratch: &Path) -> Result<TempDir, CheckpointError> {
        let store = Store::open(url, 0, Writer::default(), Vec::new(), scratch)?;
        let store = Store { option, ..store };
        let mut skipped = Vec::new();
        let found = store.find(&mut skipped, |_, _| Ok(None))?;
        skipped.iter().for_each(|sentence| eprintln!("{sentence}"));
        found.ok_or_else(|| CheckpointError::NoModel { path: store.place.into() })
    }

    /// Copies checkpoints into a directory, the newest first, until one is whole and `accept` says nothing against it.
    fn find(
        &self,
        skipped: &mut Vec<String>,
        mut accept: impl FnMut(u64, &Path) -> Result<Option<String>, CheckpointError>,
    ) -> Result<Option<TempDir>, CheckpointError> {
        let mut seen = Vec::new();
        loop {
            let steps = self.steps()?;
            if steps == seen {
                return Ok(None);
            }
            // Others may write and remove meanwhile: that there is none is believed once the list stays the same.
            skipped.clear();
            for &step in &steps {
                let Some(text) = self.manifest(step)? else { continue };
                let directory = tempfile::Builder::new().prefix("checkpoint-").tempdir_in(&self.scratch);
                let directory = directory
                    .map_err(|error| CheckpointError::Write { path: self.scratch.clone(), error })?;
                let damage = match Manifest::parse(&text, step) {
                    Ok(manifest) => match self.read(&manifest, Some(directory.path()))? {
                        None => accept(step, directory.path())?,
                        damage => damage,
                    },
                    Err(damage) => Some(damage),
                };
                let Some(damage) = damage else { return Ok(Some(directory)) };
                skipped.push(format!("skipped a damaged checkpoint: {}: {damage}", self.url(step)));
            }
            seen = steps;
        }
    }

    /// Reads all objects of a checkpoint, into a directory where one is given, and says what is wrong with them, if
    /// anything.
    fn read(&self, manifest: &Manifest, into: Option<&Path>) -> Result<Option<String>, CheckpointError> {
        for (name, expected) in &manifest.objects {
            let key = self.key(manifest.step, &manifest.folder).join(name.as_str());
            let bytes = match self.runtime.block_on(self.objects.head(&key)) {
                Ok(meta) => meta.size,
                Err(Error::NotFound { .. }) => return Ok(Some(format!("{name} is missing"))),
                Err(error) => return Err(self.error(error)),
            };
            if bytes != expected.bytes {
                return Ok(Some(format!("{name} has {bytes} bytes, it was written with {}", expected.bytes)));
            }
            let unwritten = |error| CheckpointError::Write { path: self.scratch.clone(), error };
            let out: Box<dyn Write> = match into {
                Some(directory) => Box::new(std::fs::File::create(directory.join(name)).map_err(unwritten)?),
                None => Box::new(io::sink()),
            };
            let mut out = Checksummed::new(out);
            let starts = (0..bytes).step_by(PART as usize);
            let part = |start: u64| self.objects.get_range(&key, start..bytes.min(start + PART));
            let mut parts = futures::stream::iter(starts).map(part).buffered(PARTS_AT_ONCE);
            while let Some(part) = self.runtime.block_on(parts.next()) {
                match part {
                    Ok(part) => out.write_all(&part).map_err(unwritten)?,
                    Err(Error::NotFound { .. }) => return Ok(Some(format!("{name} is missing"))),
                    Err(error) => return Err(self.error(error)),
                }
            }
            let found = out.end().1.crc32;
            if found != expected.crc32 {
                let written = expected.crc32;
                return Ok(Some(format!(
                    "checksum of {name} is {found:08x}, it was written with {written:08x}"
                )));
            }
        }
        Ok(None)
    }

    /// Sends an object while it is made.
    fn upload(&self, key: &Key, bytes: u64, content: Content<'_>) -> io::Result<Written> {
        if bytes <= PART {
            let mut out = Checksummed::new(Vec::new());
            content(&mut out)?;
            let (object, written) = out.end();
            self.runtime.block_on(self.objects.put(key, object.into())).map_err(io::Error::other)?;
            return Ok(written);
        }
        let part = PART.max(bytes.div_ceil(MOST_PARTS)) as usize;
        let parts = self.runtime.block_on(self.objects.put_multipart(key)).map_err(io::Error::other)?;
        let parts = WriteMultipart::new_with_chunk_size(parts, part);
        let mut out = Checksummed::new(Upload { runtime: &self.runtime, parts });
        let sent = content(&mut out);
        let (Upload { parts, .. }, written) = out.end();
        let ended = match sent {
            Ok(()) => self.runtime.block_on(parts.finish()).map(|_| ()).map_err(io::Error::other),
            Err(error) => {
                // What the first error was matters more than a second one.
                _ = self.runtime.block_on(parts.abort());
                Err(error)
            }
        };
        ended.map(|()| written)
    }

    /// Steps that may have a checkpoint, the newest first.
    fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let listed = self.wait(self.objects.list_with_delimiter(Some(&self.prefix)))?;
        let names = listed.common_prefixes.iter().filter_map(|key| key.parts().next_back());
        let mut steps: Vec<_> = names.filter_map(|name| step_of(name.as_ref())).collect();
        steps.sort_by(|left, right| right.cmp(left));
        Ok(steps)
    }

    /// Removes all checkpoints but the newest ones, the manifest of each first, and what interrupted writes have left.
    fn remove_old(&self) -> Result<(), CheckpointError> {
        let mut steps = BTreeMap::<u64, Vec<ObjectMeta>>::new();
        let mut listed = self.objects.list(Some(&self.prefix));
        while let Some(object) = self.runtime.block_on(listed.next()) {
            let object = object.map_err(|error| self.error(error))?;
            let name = object.location.prefix_match(&self.prefix).and_then(|mut parts| parts.next());
            if let Some(step) = name.and_then(|name| step_of(name.as_ref())) {
                steps.entry(step).or_default().push(object);
            }
        }
        // By the clock of the store.
        let newest = steps.values().flatten().map(|object| object.last_modified).max();
        let mut whole = 0;
        for (&step, objects) in steps.iter().rev() {
            let manifest_key = self.manifest_key(step);
            if objects.iter().any(|object| object.location == manifest_key) {
                whole += 1;
                if self.keep < whole {
                    let manifest = self.manifest(step)?.and_then(|text| Manifest::parse(&text, step).ok());
                    self.wait(self.objects.delete(&manifest_key))?;
                    manifest.iter().for_each(|manifest| self.forget(step, &manifest.folder));
                }
                continue;
            }
            for object in objects {
                let age = newest.and_then(|newest| (newest - object.last_modified).to_std().ok());
                if age.is_some_and(|age| MAY_BE_WRITING < age) {
                    self.wait(self.objects.delete(&object.location))?;
                }
            }
        }
        Ok(())
    }

    /// Removes the objects of a folder. What is left does no harm.
    fn forget(&self, step: u64, folder: &str) {
        let folder = self.key(step, folder);
        let removed = self.runtime.block_on(async {
            let mut objects = self.objects.list(Some(&folder));
            while let Some(object) = objects.next().await {
                self.objects.delete(&object?.location).await?;
            }
            Ok(())
        });
        if let Err(error) = removed {
            eprintln!("{}: {folder} was not removed: {}", self.place, plain(&error));
        }
    }

    /// The manifest of a step, as it is written.
    fn manifest(&self, step: u64) -> Result<Option<Vec<u8>>, CheckpointError> {
        let read = async {
            let found = match self.objects.get(&self.manifest_key(step)).await {
                Err(Error::NotFound { .. }) => return Ok(None),
                found => found?,
            };
            // One that is too long is damaged, as an empty one is.
            let bytes =
                if found.meta.size <= MOST_MANIFEST { found.bytes().await?.to_vec() } else { Vec::new() };
            Ok(Some(bytes))
        };
        self.wait(read)
    }

    fn key(&self, step: u64, folder: &str) -> Key {
        self.prefix.clone().join(name_of(step)).join(folder)
    }

    fn manifest_key(&self, step: u64) -> Key {
        self.key(step, MANIFEST)
    }

    fn url(&self, step: u64) -> String {
        format!("{}/{}", self.place, name_of(step))
    }

    fn wait<T>(&self, request: impl Future<Output = Result<T, Error>>) -> Result<T, CheckpointError> {
        self.runtime.block_on(request).map_err(|error| self.error(error))
    }

    fn passing(&self, step: u64, reason: &str) -> CheckpointError {
        CheckpointError::Store { place: self.url(step), reason: reason.into() }
    }

    fn error(&self, error: Error) -> CheckpointError {
        let (option, place) = (self.option, self.place.clone());
        let text = error.to_string();
        let has = |status: &str| text.contains(&format!("status code: {status}"));
        let (forbidden, missing) = match &error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => (true, false),
            Error::NotFound { .. } => (false, true),
            _ => (has("401") || has("403") || is_forbidden(&error), has("404")),
        };
        match (forbidden, missing) {
            (true, _) => {
                let reason =
                    "the store refuses the credentials, or they do not permit to list, read, write and \
                              remove objects there"
                        .into();
                CheckpointError::Refused { option, place, reason }
            }
            (_, true) => CheckpointError::Refused {
                option,
                place,
                reason: "there is no such bucket or container".into(),
            },
            _ => CheckpointError::Store { place, reason: plain(&error) },
        }
    }
}

/// What a request repeats by itself. Who calls has more patience than this.
fn retry() -> RetryConfig {
    RetryConfig { max_retries: 3, retry_timeout: Duration::from_secs(20), ..RetryConfig::default() }
}

/// A directory as a store.
fn directory(url: &Url) -> Result<LocalFileSystem, Error> {
    let path = url.to_file_path().expect("checked when it was parsed");
    std::fs::create_dir_all(&path)
        .map_err(|error| Error::Generic { store: "LocalFileSystem", source: error.into() })?;
    Ok(LocalFileSystem::new_with_prefix(path)?.with_fsync(true).with_automatic_cleanup(true))
}

/// Whether a file system refuses.
fn is_forbidden(error: &Error) -> bool {
    let mut error: Option<&dyn std::error::Error> = Some(error);
    while let Some(cause) = error {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(kind, Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)) {
            return true;
        }
        error = cause.source();
    }
    false
}

/// What went wrong, in one line. Answers of a store may repeat what was signed, and a query may be a signature: both are
/// left out.
fn plain(error: &Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let line = line.split("error response: ").next().unwrap_or_default();
    let text = match line.split_once("status code: ") {
        Some((before, answer)) => {
            format!("{before}status code: {}", answer.split(':').next().unwrap_or_default())
        }
        None => line.to_string(),
    };
    let words = text.split_whitespace().map(|word| word.split('?').next().unwrap_or_default());
    words.collect::<Vec<_>>().join(" ").chars().take(400).collect()
}

/// Sends what is written in parts; waits while enough of them are on their way.
struct Upload<'a> {
    runtime: &'a Runtime,
    parts: WriteMultipart,
}

impl Write for Upload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.runtime.block_on(async {
            self.parts.wait_for_capacity(PARTS_AT_ONCE).await?;
            self.parts.write(bytes);
            Ok::<_, Error>(bytes.len())
        });
        sent.map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
