//! Serving a model over HTTP, in the words that OpenAI's clients speak.
//!
//! [`request`] reads requests, [`openai`] words answers, [`engine`] generates, [`http`] connects them, and this file
//! starts and stops all of it.

pub mod blocks;
pub mod engine;
pub mod form;
pub mod grammar;
pub mod http;
pub mod memory;
pub mod metrics;
pub mod openai;
pub mod request;
mod runner;
pub mod sampling;
pub mod text;
pub mod tools;

use crate::args::{ServeArgs, UsageError};
use crate::checkpoint::{Place, Store, load_model, load_tokenizer};
use crate::contract::Contract;
use crate::error::WorkerError;
use crate::kernels::{Backend, Chosen, Cpu};
use crate::model::Model;
use crate::status::{State as Life, Status, StatusFile};
use crate::tokenizer::Tokenizer;
use axum::serve::ListenerExt;
use engine::{Engine, Limits};
use http::App;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Serves as the environment and the options say, until a signal comes. Starts a runtime of its own, so it must not
/// be called from within one.
///
/// # Errors
/// See [`WorkerError`], which also knows the exit code.
pub fn main(args: ServeArgs) -> Result<(), WorkerError> {
    let contract = Contract::from_env()?;
    crate::kernels::pin_threads(crate::contract::pins(|name| std::env::var(name).ok()));
    let io = |what: &str| {
        let what = what.to_string();
        move |error| WorkerError::Io { what, error }
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io("runtime"))?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).map_err(io("SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io("SIGINT"))?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => (),
                _ = interrupt.recv() => (),
            }
        };
        run(&args, &contract, stop, |_| ()).await
    })
}

/// The model and its tokenizer, of a directory or from an object store.
fn load(args: &ServeArgs, contract: &Contract) -> Result<(Model, Tokenizer), WorkerError> {
    let fetched = match Place::parse("--model", &args.model.to_string_lossy())? {
        Place::Directory(_) => None,
        Place::Store(url) => {
            // The store has a runtime of its own, which that of requests would not let run.
            Some(Store::fetch("--model", &url, &contract.scratch())?)
        }
    };
    let path = fetched.as_ref().map_or(args.model.as_path(), TempDir::path);
    let model = load_model(path, args.precision)?;
    let tokenizer = load_tokenizer(path, &model.config)?;
    Ok((model, tokenizer))
}

/// What serves.
struct Serving {
    engine: Engine,
    tokenizer: Tokenizer,
    /// The model's window and the length of its hidden vectors.
    window: usize,
    width: usize,
    /// What computes.
    device: String,
}

/// Loads the model onto what is to compute, and starts the engine there.
fn start(args: &ServeArgs, contract: &Contract) -> Result<Serving, WorkerError> {
    let (model, tokenizer) = load(args, contract)?;
    let (window, width) = (model.config.window(), model.config.hidden_size);
    let chosen = args
        .device
        .open(args.precision, model.config.head_dim)
        .map_err(|error| UsageError::new("--device", args.device, error.to_string()))?;
    let device = chosen.describe(contract.threads);
    let engine = match chosen {
        Chosen::Processor(_) => {
            start_on(Cpu::with_precision(contract.threads, args.precision), args, model, &tokenizer)
        }
        Chosen::CudaF32(kernels) => start_on(kernels, args, model, &tokenizer),
        Chosen::CudaBf16(kernels) => start_on(kernels, args, model, &tokenizer),
    }?;
    Ok(Serving { engine, tokenizer, window, width, device })
}

fn start_on<K: Backend + 'static>(
    kernels: K,
    args: &ServeArgs,
    model: Model,
    tokenizer: &Tokenizer,
) -> Result<Engine, WorkerError> {
    let model = kernels.adopt(model)?;
    let blocks = memory::blocks(&model.config, args.kv_memory, kernels.cache_bytes())?;
    let limits = Limits { max_queue: args.max_queue, blocks };
    Ok(Engine::start(model, tokenizer.clone(), kernels, limits)?)
}

/// As [`main`], with the environment and the signal as arguments; calls `on_ready` once requests are answered.
///
/// # Errors
/// As [`main`].
pub async fn run(
    args: &ServeArgs,
    contract: &Contract,
    stop: impl Future<Output = ()> + Send + 'static,
    on_ready: impl FnOnce(SocketAddr),
) -> Result<(), WorkerError> {
    args.validate()?;
    let mut file = StatusFile::new(contract.run_dir.as_deref());
    let mut status = Status { message: "loading the model".into(), ..Status::default() };
    file.update(&status);
    // A store that does not answer is not waited for by one who is asked to stop.
    let (sender, loaded) = tokio::sync::oneshot::channel();
    let asked = (args.clone(), contract.clone());
    std::thread::spawn(move || _ = sender.send(start(&asked.0, &asked.1)));
    let mut stop = Box::pin(stop);
    let Serving { engine, tokenizer, window, width, device } = tokio::select! {
        loaded = loaded => loaded.map_err(|_| WorkerError::Group("the model could not be loaded".into()))??,
        () = &mut stop => {
            (status.state, status.message) = (Life::Stopping, "stopped".into());
            file.flush(&status);
            return Ok(());
        }
    };
    let app = Arc::new(App::new(engine, tokenizer, args.model_name(), window, width));

    let address = format!("{}:{}", args.host, args.port);
    let failed = |error| WorkerError::Io { what: format!("cannot listen at {address}"), error };
    let listener = tokio::net::TcpListener::bind((args.host.as_str(), args.port)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    // A host that means all addresses is no address to call.
    let endpoint = match address.ip().is_unspecified() {
        true => format!("http://127.0.0.1:{}/v1", address.port()),
        false => format!("http://{address}/v1"),
    };
    let (stopped, mut stopping) = tokio::sync::watch::channel(false);
    let server = {
        let app = Arc::clone(&app);
        let mut stopping = stopping.clone();
        let listener = listener.tap_io(|stream| {
            // Only costs latency where it fails.
            let _ = stream.set_nodelay(true);
        });
        let stop = async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        axum::serve(listener, http::router(app)).with_graceful_shutdown(stop).into_future()
    };
    let mut server = tokio::spawn(server);
    tokio::spawn(async move {
        stop.await;
        let _ = stopped.send(true);
    });

    status.state = Life::Running;
    status.ready = true;
    status.message = format!("serving {}", app.name);
    status.endpoint = Some(endpoint.clone());
    file.update(&status);
    let mut out = std::io::stdout();
    // A closed output is no reason to stop.
    let _ = writeln!(out, "{device}\nserving {} on {endpoint}", app.name).and_then(|()| out.flush());
    on_ready(address);

    report_until(&app, &mut file, &mut status, stopping.wait_for(|stopping| *stopping)).await;
    app.engine.stop();
    status.state = Life::Stopping;
    status.ready = false;
    status.message = "finishing running requests".into();
    file.update(&status);
    if tokio::time::timeout(Duration::from_secs(args.grace), &mut server).await.is_err() {
        app.engine.abandon();
        server.abort();
        // That it was aborted is no news.
        let _ = server.await;
    }
    status.message = "stopped".into();
    file.flush(&status);
    app.engine.failure().map_or(Ok(()), |error| Err(error.into()))
}

/// Keeps the speed in the status file up to date until `stop`, or the engine's own end.
async fn report_until<T>(
    app: &App,
    file: &mut StatusFile,
    status: &mut Status,
    stop: impl Future<Output = T>,
) {
    tokio::pin!(stop);
    let (mut since, mut tokens) = (Instant::now(), 0);
    loop {
        tokio::select! {
            _ = &mut stop => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => (),
        }
        if app.engine.failure().is_some() {
            return;
        }
        let (running, waiting) = app.engine.load();
        let metrics = app.engine.metrics();
        let total = metrics.computed_tokens;
        status.tokens_per_s = Some(((total - tokens) as f64 / since.elapsed().as_secs_f64()).round());
        (since, tokens) = (Instant::now(), total);
        (status.running, status.waiting) = (Some(running as u64), Some(waiting as u64));
        status.ttft_ms = metrics.first_token.quantile_ms(0.9);
        status.ttft_p50_ms = metrics.first_token.quantile_ms(0.5);
        status.ttft_p99_ms = metrics.first_token.quantile_ms(0.99);
        status.tpot_ms = metrics.next_token.quantile_ms(0.9);
        status.work = Some(metrics.work);
        status.idle_s = metrics.last_request.map(|last| last.elapsed().as_secs());
        drop(metrics);
        status.message = format!("serving {}, {running} running, {waiting} waiting", app.name);
        file.update(status);
    }
}
