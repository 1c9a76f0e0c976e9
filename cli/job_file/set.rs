//! Single values over a file: `--set train.steps=400`.

use super::*;

/// Replaces a value of a file: `train.steps=400`, `env.SEED=7`, `roles.0.ranks=2`.
///
/// # Errors
/// Names the setting.
pub fn apply(file: &mut JobFile, set: &str) -> Result<(), FileError> {
    let wrong = |why: String| FileError::new(format!("--set {set}: {why}"));
    let (path, value) = match set.split_once('=') {
        Some((path, value)) if !path.split('.').any(str::is_empty) => (path, value),
        Some(_) => return Err(wrong("a part of the key is empty".into())),
        None => return Err(wrong("expected KEY=VALUE, like train.steps=400".into())),
    };
    let keys: Vec<&str> = path.split('.').collect();
    match keys[..] {
        ["roles", at, ref rest @ ..] if !rest.is_empty() => {
            let roles = file.roles.as_mut().ok_or_else(|| wrong("the file has no roles".into()))?;
            let number = roles.len();
            let at = at.parse::<usize>().ok().filter(|at| *at < number);
            let at = at
                .ok_or_else(|| wrong(format!("expected the position of a role, from 0 to {}", number - 1)))?;
            let over = document(rest, value).and_then(|text| read::<Role>(&text)).map_err(wrong)?;
            roles[at].put(over, rest.len());
        }
        _ => {
            let over = document(&keys, value).and_then(|text| read::<JobFile>(&text)).map_err(wrong)?;
            file.put(over, keys.len());
        }
    }
    Ok(())
}

/// A document with nothing but that value. Texts of `env` and `labels` are taken as they are.
fn document(keys: &[&str], value: &str) -> Result<String, String> {
    if value.contains(['\n', '\r']) {
        return Err("the value has several lines: put it into the file".into());
    }
    let (last, above) = keys.split_last().expect("a key is not empty");
    let mut text = String::new();
    for (depth, key) in above.iter().enumerate() {
        text += &format!("{}{}:\n", "  ".repeat(depth), quoted(key));
    }
    let is_text = matches!(above.last(), Some(&("env" | "labels"))) || value.is_empty();
    let value = if is_text { quoted(value) } else { value.into() };
    Ok(text + &format!("{}{}: {value}\n", "  ".repeat(above.len()), quoted(last)))
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a text is JSON, which is YAML")
}

fn read<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
    if yaml_serde::from_str::<serde::de::IgnoredAny>(text).is_err() {
        return Err("the value is not YAML".into());
    }
    yaml_serde::from_str(text).map_err(|error| told(&error).text)
}

fn put<T>(to: &mut Option<T>, from: Option<T>) {
    if from.is_some() {
        *to = from;
    }
}

/// Puts mappings together if the setting names a key below them, else replaces them.
fn join<T: Default>(to: &mut Option<T>, from: Option<T>, below: bool, put: impl FnOnce(&mut T, T)) {
    match from {
        Some(from) if below => put(to.get_or_insert_default(), from),
        from => self::put(to, from),
    }
}

impl JobFile {
    fn put(&mut self, over: JobFile, depth: usize) {
        let below = 1 < depth;
        put(&mut self.kind, over.kind);
        put(&mut self.name, over.name);
        put(&mut self.queue, over.queue);
        put(&mut self.priority, over.priority);
        put(&mut self.time_limit, over.time_limit);
        put(&mut self.retries, over.retries);
        put(&mut self.restart, over.restart);
        put(&mut self.on_partition, over.on_partition);
        put(&mut self.grace, over.grace);
        put(&mut self.working_dir, over.working_dir);
        put(&mut self.checkpoint_dir, over.checkpoint_dir);
        put(&mut self.reservation, over.reservation);
        put(&mut self.after, over.after);
        put(&mut self.array, over.array);
        put(&mut self.roles, over.roles);
        put(&mut self.apart, over.apart);
        put(&mut self.spread, over.spread);
        join(&mut self.topology, over.topology, below, |to, from| {
            put(&mut to.require, from.require);
            put(&mut to.prefer, from.prefer);
        });
        join(&mut self.env, over.env, below, |to, from| to.0.extend(from.0));
        put(&mut self.ranks, over.ranks);
        put(&mut self.min_ranks, over.min_ranks);
        put(&mut self.cpus, over.cpus);
        put(&mut self.memory, over.memory);
        put(&mut self.command, over.command);
        put(&mut self.image, over.image);
        put(&mut self.mounts, over.mounts);
        join(&mut self.labels, over.labels, below, |to, from| to.0.extend(from.0));
        join(&mut self.devices, over.devices, below, Devices::put);
        join(&mut self.train, over.train, below, Train::put);
        join(&mut self.serve, over.serve, below, Serve::put);
    }
}

impl Role {
    fn put(&mut self, over: Role, depth: usize) {
        let below = 1 < depth;
        put(&mut self.apart, over.apart);
        put(&mut self.spread, over.spread);
        put(&mut self.name, over.name);
        put(&mut self.ranks, over.ranks);
        put(&mut self.min_ranks, over.min_ranks);
        put(&mut self.cpus, over.cpus);
        put(&mut self.memory, over.memory);
        put(&mut self.command, over.command);
        put(&mut self.image, over.image);
        put(&mut self.mounts, over.mounts);
        join(&mut self.labels, over.labels, below, |to, from| to.0.extend(from.0));
        join(&mut self.devices, over.devices, below, Devices::put);
        join(&mut self.train, over.train, below, Train::put);
        join(&mut self.serve, over.serve, below, Serve::put);
    }
}

impl Devices {
    /// Into every alternative; `any_of` itself replaces them.
    fn put(&mut self, over: Devices) {
        let [over] = &over.any_of[..] else {
            *self = over;
            return;
        };
        if self.any_of.is_empty() {
            self.any_of.push(Device::default());
        }
        for device in &mut self.any_of {
            put(&mut device.count, over.count);
            put(&mut device.class, over.class.clone());
            put(&mut device.vendor, over.vendor);
            put(&mut device.memory, over.memory);
            put(&mut device.island, over.island);
            if let Some(over) = over.slice {
                let slice = device.slice.get_or_insert_default();
                put(&mut slice.compute, over.compute);
                put(&mut slice.memory, over.memory);
                put(&mut slice.isolation, over.isolation);
            }
        }
    }
}

impl Train {
    fn put(&mut self, over: Train) {
        put(&mut self.model, over.model);
        put(&mut self.data, over.data);
        put(&mut self.steps, over.steps);
        put(&mut self.batch, over.batch);
        put(&mut self.context, over.context);
        put(&mut self.learning_rate, over.learning_rate);
        put(&mut self.seed, over.seed);
        put(&mut self.checkpoint_every, over.checkpoint_every);
        put(&mut self.precision, over.precision);
        put(&mut self.micro_batch, over.micro_batch);
        put(&mut self.spares, over.spares);
        put(&mut self.audit_every, over.audit_every);
        put(&mut self.inner_steps, over.inner_steps);
        put(&mut self.replicas, over.replicas);
    }
}

impl Serve {
    fn put(&mut self, over: Serve) {
        put(&mut self.model, over.model);
        put(&mut self.served_name, over.served_name);
        put(&mut self.max_queue, over.max_queue);
        put(&mut self.precision, over.precision);
        put(&mut self.kv_memory, over.kv_memory);
        put(&mut self.autoscale, over.autoscale);
    }
}
