//! The connection to etcd: what is asked is asked again until it is answered, or patience is over.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, GetResponse, Identity, KvClient, TlsOptions, Txn,
    TxnOp, TxnResponse,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use crate::store::{EtcdAddress, StoreError};

/// For so long one attempt waits. An etcd whose leader was lost elects another in about two seconds.
const ATTEMPT: Duration = Duration::from_secs(2);
/// For so long it is tried: a member that is started again is back by then.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer, at most: a page of rows of the largest kind.
const MAX_ANSWER: usize = 512 << 20;

/// A connection with threads of its own: whoever waits for an answer may be in a thread of any kind.
pub struct Link {
    runtime: Option<tokio::runtime::Runtime>,
    client: Client,
    kv: KvClient,
    path: String,
}

impl Link {
    /// Prepares the connection. Whether anybody answers shows when something is asked; a user is let in at once.
    ///
    /// # Errors
    /// When no thread can be started, a certificate is none, or the user is not let in.
    pub fn open(address: &EtcdAddress) -> Result<Arc<Link>, StoreError> {
        let path = address.to_string();
        let failed = |cause: String| StoreError::Failed { path: path.clone(), cause };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("etcd")
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let access = &address.access;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(1))
            .with_keep_alive(Duration::from_secs(2), Duration::from_secs(2))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some((user, password)) = &access.user {
            options = options.with_user(user, password).with_auto_token_refresh(true);
        }
        if let Some(ca) = &access.ca {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
            if let Some((certificate, key)) = &access.identity {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(tls);
        }
        let scheme = if access.ca.is_some() { "https" } else { "http" };
        let members: Vec<String> =
            address.members.iter().map(|member| format!("{scheme}://{member}")).collect();
        let name = path.clone();
        let connect = async move {
            let connect = || Client::connect(members.clone(), Some(options.clone()));
            patiently(&name, PATIENCE, connect).await
        };
        let client = wait(&runtime, connect)?;
        let kv = client.kv_client().max_decoding_message_size(MAX_ANSWER);
        Ok(Arc::new(Link { runtime: Some(runtime), client, kv, path }))
    }

    /// The store's name.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// For what is not asked again by itself.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Runs something beside.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime().spawn(task);
    }

    /// Waits for something in this thread.
    pub fn wait<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        wait(self.runtime(), future)
    }

    /// Carries out a transaction. It may be carried out more than once, or, after an error, later.
    ///
    /// # Errors
    /// When it is refused, or there is no answer for too long.
    pub async fn transact(&self, transaction: Txn, patience: Duration) -> Result<TxnResponse, StoreError> {
        let ask = |mut kv: KvClient| {
            let transaction = transaction.clone();
            async move { kv.txn(transaction).await }
        };
        self.ask(ask, patience).await
    }

    /// Reads keys.
    ///
    /// # Errors
    /// When it is refused, or there is no answer for too long.
    pub async fn get(
        &self,
        key: Vec<u8>,
        options: GetOptions,
        patience: Duration,
    ) -> Result<GetResponse, StoreError> {
        let ask = |mut kv: KvClient| {
            let (key, options) = (key.clone(), options.clone());
            async move { kv.get(key, Some(options)).await }
        };
        self.ask(ask, patience).await
    }

    async fn ask<T, F: Future<Output = Result<T, Error>>>(
        &self,
        ask: impl Fn(KvClient) -> F,
        patience: Duration,
    ) -> Result<T, StoreError> {
        patiently(&self.path, patience, || ask(self.kv.clone())).await
    }

    fn runtime(&self) -> &tokio::runtime::Runtime {
        self.runtime.as_ref().expect("it is taken by the drop alone")
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The last owner may be in a thread that must not wait.
        self.runtime.take().expect("there is one drop").shutdown_background();
    }
}

/// Asks until there is an answer, or patience is over.
async fn patiently<T, F: Future<Output = Result<T, Error>>>(
    path: &str,
    patience: Duration,
    ask: impl Fn() -> F,
) -> Result<T, StoreError> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(10);
    loop {
        let cause = match timeout(ATTEMPT, ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) if is_refusal(&error) => {
                return Err(StoreError::Failed { path: path.into(), cause: text(&error) });
            }
            Ok(Err(error)) => text(&error),
            Err(_) => format!("no answer within {} s", ATTEMPT.as_secs()),
        };
        if deadline < Instant::now() {
            let cause = format!("{cause}; tried for {:.0} s", patience.as_secs_f64());
            return Err(StoreError::Away { path: path.into(), cause });
        }
        tracing::debug!("etcd: {cause}; trying again");
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(320));
    }
}

/// A read within a transaction.
pub fn read(key: &[u8]) -> TxnOp {
    TxnOp::get(key, None)
}

fn wait<T: Send + 'static>(
    runtime: &tokio::runtime::Runtime,
    future: impl Future<Output = T> + Send + 'static,
) -> T {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    runtime.spawn(async move { _ = sender.send(future.await) });
    receiver.recv().expect("the task does not panic")
}

/// Whether asking again is in vain: it was looked at, and not done.
fn is_refusal(error: &Error) -> bool {
    match error {
        Error::GRpcStatus(status) => match status.code() {
            Code::InvalidArgument | Code::OutOfRange | Code::PermissionDenied | Code::Unauthenticated => true,
            Code::ResourceExhausted => !status.message().contains("too many requests"),
            _ => false,
        },
        Error::TransportError(_) | Error::IoError(_) => false,
        _ => true,
    }
}

/// What happened, down to its cause.
pub fn text(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    if let Error::GRpcStatus(status) = error {
        if std::error::Error::source(status).is_none() {
            return status.message().into();
        }
        cause = status;
    }
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
