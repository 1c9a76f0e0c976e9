//! What the clients of a pool have in common that serve HTTP themselves, `gateway` and `dashboard`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aquifer_gateway::serve::converse;
use aquifer_gateway::{Router, plain};
use aquifer_scheduler::tls::{Accepted, Files, Protocol, Tls};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::accept::accept;
use crate::client::{Global, identity};
use crate::output::Failure;
use crate::settings::{self, Settings};

/// Where the scheduler is and who asks it, from flags, the environment or the file.
///
/// # Errors
/// As [`Settings::take`].
pub fn reach(settings: &mut Settings, global: &Global) -> Result<Global, Failure> {
    let mut global = global.clone();
    global.server = settings.take_optional("server", global.server.as_ref(), |text| Ok(text.to_string()))?;
    let mut file = |name, flag: &Option<PathBuf>| settings::file(settings, name, flag);
    global.token_file = file("token-file", &global.token_file)?;
    global.tls_ca = file("tls-ca", &global.tls_ca)?;
    global.tls_cert = file("tls-cert", &global.tls_cert)?;
    global.tls_key = file("tls-key", &global.tls_key)?;
    Ok(global)
}

/// TLS with the certificate that is shown to the scheduler, too; `None`: there is none.
///
/// # Errors
/// A file is missing, or cannot be read.
pub fn tls(global: &Global) -> Result<Option<Tls>, Failure> {
    let files = identity(&global.tls_cert, &global.tls_key)?;
    let files = files.map(|(certificate, key)| Files { certificate, key, client_ca: None });
    let tls = files.map(|files| Tls::open(files, Protocol::Http1)).transpose();
    tls.map_err(|error| Failure::usage(error.to_string(), ""))
}

/// Who listens.
pub struct Front {
    /// Where.
    pub socket: TcpListener,
    /// `None`: clear text.
    pub tls: Option<Tls>,
    /// What is answered.
    pub router: Router,
    /// Connections at a time, at most.
    pub connections: usize,
    /// Tells connections to end.
    pub draining: watch::Sender<bool>,
    /// So long they may take for that.
    pub grace: Duration,
}

impl Front {
    /// Answers until `stopped` is ready, and then what is under way. Returns whether all of that was answered in time.
    pub async fn serve(self, stopped: impl Future<Output = ()>) -> bool {
        let Front { socket, tls, router, connections, draining, grace } = self;
        let (tls, seen) = (tls.map(Arc::new), draining.subscribe());
        let places = Arc::new(Semaphore::new(connections));
        tokio::select! {
            () = accept(socket, places.clone(), |stream| {
                _ = stream.set_nodelay(true); // Only costs latency where it fails.
                begin(stream, tls.clone(), router.clone(), seen.clone())
            }) => (),
            () = stopped => (),
        }
        _ = draining.send(true); // Without connections nobody listens.
        timeout(grace, places.acquire_many(connections as u32)).await.is_ok()
    }
}

/// One connection, to its end.
async fn begin(stream: TcpStream, tls: Option<Arc<Tls>>, router: Router, draining: watch::Receiver<bool>) {
    let Some(tls) = tls else { return converse(stream, router, draining).await };
    match tls.accept(stream).await {
        Ok(Accepted::Tls(stream)) => converse(stream, router, draining).await,
        Ok(Accepted::Plain(stream)) => converse(stream, plain(), draining).await,
        Err(_) => (), // Whoever it was has gone, or does not agree and knows.
    }
}
