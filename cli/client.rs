//! The connection to the scheduler: calls that are repeated when it is lost, errors in the words of people.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{env, fs};

use aquifer_proto::tls::{ClientTls, EndpointError};
use aquifer_proto::v1::exec_client::ExecClient;
use aquifer_proto::v1::pool_client::PoolClient;
use aquifer_proto::{AGE, STALE, v1};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Response, Status};

use crate::output::{Failure, aside};
use crate::servers::Servers;

/// Where the scheduler is if nothing says so.
pub const DEFAULT_SERVER: &str = "http://127.0.0.1:7700";

/// Where the scheduler is, and how output looks: the flags of every command.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Connection and output")]
pub struct Global {
    /// URL of the scheduler, or of each of several with commas between them. Default: http://127.0.0.1:7700
    #[arg(long, global = true, env = "AQUIFER_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// Take answers of a scheduler that stands by as well, from its copy of the pool: how old it is is said on standard
    /// error. What changes something goes to the one that leads
    #[arg(long, global = true, env = "AQUIFER_STALE")]
    pub stale: bool,
    /// File with the token that is sent as `authorization: Bearer …`. Default: the variable AQUIFER_TOKEN, else none
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// File with the certificates of authorities, in PEM, that are trusted where --server says https://. Default: those
    /// of the system
    #[arg(long, global = true, env = "AQUIFER_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// File with the certificate that this program shows, in PEM: a scheduler and a gateway to everyone, others to a scheduler that
    /// wants one. Default: none
    #[arg(long, global = true, env = "AQUIFER_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// File with the key of that certificate, in PEM, for its owner alone. Default: none
    #[arg(long, global = true, env = "AQUIFER_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Print JSON with stable field names instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Print no colours. Default: colours on a terminal, unless NO_COLOR is set
    #[arg(long, global = true)]
    pub no_color: bool,
}

/// The generated client, with the token in every request.
pub type Client = PoolClient<InterceptedService<Servers, Bearer>>;

/// The scheduler, as commands see it.
#[derive(Clone, Debug)]
pub struct Pool {
    client: Client,
    bearer: Bearer,
    servers: Servers,
    server: String,
    /// There is a single scheduler: another one will not take over.
    is_one: bool,
    takes_stale: bool,
    /// Calls are made once: whoever asks will ask again.
    is_hasty: bool,
    heard: Arc<Mutex<Heard>>,
}

/// What was last heard of a scheduler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// How old its answer was, in milliseconds; `None`: of now.
    pub age_ms: Option<u64>,
    /// What kind of refusal it was.
    pub refusal: Option<Code>,
}

/// Puts the token into requests, and whether old answers will do.
#[derive(Clone, Debug)]
pub struct Bearer {
    token: Option<MetadataValue<Ascii>>,
    stale: bool,
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        if self.stale {
            request.metadata_mut().insert(STALE, MetadataValue::from_static("yes"));
        }
        Ok(request)
    }
}

/// How long a call is repeated while the scheduler does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Once more: somebody waits for an answer, and asking again is easy. With several schedulers for as long as it takes
    /// another one to lead.
    Short,
    /// For about ten seconds: something was said that must not be lost by a restart of the scheduler.
    Long,
    /// For ever: the command waits anyway.
    Endless,
}

impl Global {
    /// URL of the scheduler, or of each of several.
    pub fn server(&self) -> &str {
        self.server.as_deref().unwrap_or(DEFAULT_SERVER)
    }

    /// Without TLS, for a pool of this machine alone.
    pub fn plain(&self) -> Global {
        Global { tls_ca: None, tls_cert: None, tls_key: None, ..self.clone() }
    }
}

impl Pool {
    /// Prepares the connection. Nothing is sent before the first call.
    ///
    /// # Errors
    /// The URL or the token cannot be used.
    pub fn new(global: &Global) -> Result<Pool, Failure> {
        let tls =
            ClientTls { ca: global.tls_ca.clone(), identity: identity(&global.tls_cert, &global.tls_key)? };
        let servers = Servers::new(global.server(), &tls).map_err(|error| {
            let next = match error {
                EndpointError::Url(..) => "give --server a URL like http://scheduler:7700",
                _ => "",
            };
            Failure::usage(error.to_string(), next)
        })?;
        let (server, is_one) = (servers.listed().join(" or "), servers.listed().len() == 1);
        let (token, takes_stale, heard) = (token(global)?, global.stale, Arc::default());
        let bearer = Bearer { token, stale: takes_stale };
        let client = client(&servers, bearer.clone());
        Ok(Pool { client, bearer, servers, server, is_one, takes_stale, is_hasty: false, heard })
    }

    /// The same connections for one question in the name of somebody: it is asked once, and [`Pool::heard`] tells of it
    /// alone.
    pub fn for_question(&self, token: Option<MetadataValue<Ascii>>, stale: bool) -> Pool {
        let bearer = Bearer { token, stale };
        let client = client(&self.servers, bearer.clone());
        Pool { client, bearer, takes_stale: stale, is_hasty: true, heard: Arc::default(), ..self.clone() }
    }

    /// What was last heard of a scheduler in answer to [`Pool::call`].
    pub fn heard(&self) -> Heard {
        *self.heard.lock().expect("no holder panics")
    }

    /// URLs of the schedulers, for people.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Whether there is a single scheduler.
    pub fn is_one(&self) -> bool {
        self.is_one
    }

    /// A client for one call, for those who repeat it themselves.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client for a command beside a worker.
    pub fn exec_client(&self) -> ExecClient<InterceptedService<Servers, Bearer>> {
        ExecClient::with_interceptor(self.servers.clone(), self.bearer.clone())
    }

    /// Whether answers of a scheduler that stands by will do.
    pub fn takes_stale(&self) -> bool {
        self.takes_stale
    }

    /// The nodes of a name, all if it is empty, by as many pages as that takes.
    ///
    /// # Errors
    /// As of [`Pool::call`].
    pub async fn nodes(&self, name: &str, patience: Patience) -> Result<Vec<v1::Node>, Failure> {
        let mut request = v1::ListNodesRequest { name: name.into(), ..Default::default() };
        let mut nodes = Vec::new();
        loop {
            let list = async |mut client: Client| client.list_nodes(request.clone()).await;
            let page = self.call(patience, list).await?;
            nodes.extend(page.nodes);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return Ok(nodes);
            }
        }
    }

    /// Asks the scheduler, again if the connection was lost. `call` must be harmless when repeated.
    ///
    /// # Errors
    /// The scheduler refused, or did not answer for as long as there was patience.
    pub async fn call<Answer, Called>(
        &self,
        patience: Patience,
        // No `AsyncFn`: of its futures nobody can say that they may be sent to another thread.
        call: impl Fn(Client) -> Called,
    ) -> Result<Answer, Failure>
    where
        Called: Future<Output = Result<Response<Answer>, Status>>,
    {
        let (mut backoff, mut told_to_wait) = (Backoff::default(), 0);
        loop {
            match call(self.client()).await {
                Ok(answer) => {
                    let age = answer.metadata().get(AGE).and_then(|age| age.to_str().ok()?.parse().ok());
                    let mut heard = self.heard.lock().expect("no holder panics");
                    heard.age_ms = age.or(heard.age_ms);
                    return Ok(answer.into_inner());
                }
                Err(status) if self.is_hasty => {
                    self.heard.lock().expect("no holder panics").refusal = Some(status.code());
                    return Err(self.failure(&status));
                }
                Err(status) if told_to_wait < MOST_WAITS && obey(&status).await => told_to_wait += 1,
                Err(status) if is_lost(&status) && backoff.goes_on(patience, self.is_one) => {
                    if backoff.pauses == 2 {
                        aside(format!("the scheduler at {} does not answer; trying again", self.server));
                    }
                    backoff.pause().await;
                }
                Err(status) => return Err(self.failure(&status)),
            }
        }
    }

    /// What a status means for the user.
    pub fn failure(&self, status: &Status) -> Failure {
        let said = status.message();
        if is_lost(status) {
            let (sentence, next) = match said.contains("stands by") {
                true => (
                    format!("no scheduler leads at {}: {said}", self.server),
                    "try again; with --stale, what those that stand by know is shown meanwhile",
                ),
                false => (
                    format!("no scheduler answers at {}: {}", self.server, root_cause(status)),
                    "is it running? start one with `aquifer up`, or name another with --server or AQUIFER_SERVER",
                ),
            };
            return Failure { exit: 3, sentence, next: next.into() };
        }
        let next = match status.code() {
            Code::Unauthenticated => "put your token into AQUIFER_TOKEN, or name its file with --token-file",
            Code::PermissionDenied => "ask an administrator of the pool, or the user it is of",
            Code::NotFound => "`aquifer jobs --all`, `aquifer nodes` and `aquifer queues` tell what there is",
            Code::AlreadyExists if said.contains("reservation") => {
                "choose another name, or give that one up with `aquifer unreserve`"
            }
            Code::AlreadyExists => "choose another --key, or leave it out",
            Code::InvalidArgument if status.message().starts_with("queue.") => {
                "correct it and try again; `aquifer queues` shows the tree"
            }
            Code::InvalidArgument => {
                "correct it and try again; docs/job-file.md has every key with its limits"
            }
            Code::Unimplemented => {
                "the scheduler is of another version than this program: `aquifer --version`"
            }
            Code::ResourceExhausted => {
                "try again later, or with less at once; docs/operations.md has the limits"
            }
            _ => "",
        };
        let sentence = match said {
            "" => format!("the scheduler refused: {}", status.code().description()),
            said => said.to_string(),
        };
        Failure::refused(sentence, next)
    }
}

fn client(servers: &Servers, bearer: Bearer) -> Client {
    let client = PoolClient::with_interceptor(servers.clone(), bearer);
    // Specifications may carry a mebibyte of environment each.
    client.max_decoding_message_size(1 << 30)
}

/// How often a call waits as long as the scheduler tells it to.
const MOST_WAITS: u32 = 20;

/// After how long the scheduler said to try again, if it did.
fn pushback(status: &Status) -> Option<Duration> {
    let told = status.metadata().get("grpc-retry-pushback-ms")?.to_str().ok()?.parse().ok()?;
    (status.code() == Code::ResourceExhausted).then(|| Duration::from_millis(told))
}

/// Waits for as long as the scheduler said, and up to a quarter longer, but a minute at most. `false`: it said nothing
/// of that kind.
pub async fn obey(status: &Status) -> bool {
    let Some(wait) = pushback(status) else { return false };
    let wait = wait.min(Duration::from_secs(60));
    let jitter = u64::from_le_bytes(random()) % (wait.as_millis() as u64 / 4 + 1);
    aside(format!("{}; it waits", status.message()));
    tokio::time::sleep(wait + Duration::from_millis(jitter)).await;
    true
}

/// Whether the scheduler did not answer, as opposed to answering with a refusal.
pub fn is_lost(status: &Status) -> bool {
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

fn root_cause(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    match (std::error::Error::source(status), status.message()) {
        (None, said) => said.to_string(),
        (Some(_), _) => cause.to_string(),
    }
}

/// Files with a certificate and its key.
///
/// # Errors
/// There is one without the other.
pub fn identity<File: Clone>(
    certificate: &Option<File>,
    key: &Option<File>,
) -> Result<Option<(File, File)>, Failure> {
    let (given, missing) = match (certificate, key) {
        (Some(certificate), Some(key)) => return Ok(Some((certificate.clone(), key.clone()))),
        (None, None) => return Ok(None),
        (Some(_), None) => ("--tls-cert", "--tls-key"),
        (None, Some(_)) => ("--tls-key", "--tls-cert"),
    };
    Err(Failure::usage(format!("{given} is given without {missing}"), "Give both, or neither."))
}

/// The token that is sent, from a file or from `AQUIFER_TOKEN`; `None`: there is none.
///
/// # Errors
/// It cannot be read, or not be sent.
pub fn token(global: &Global) -> Result<Option<MetadataValue<Ascii>>, Failure> {
    let (token, whence) = match &global.token_file {
        Some(file) => {
            let next = "name a file that holds nothing but the token";
            let read = fs::read_to_string(file);
            let text = read.map_err(|error| Failure::usage(format!("{}: {error}", file.display()), next))?;
            (text, file.display().to_string())
        }
        None => (env::var("AQUIFER_TOKEN").unwrap_or_default(), "AQUIFER_TOKEN".into()),
    };
    if token.trim().is_empty() {
        return Ok(None);
    }
    let value = bearer(token.trim()).ok_or_else(|| {
        Failure::usage(format!("the token in {whence} has characters that cannot be sent"), "is it a token?")
    })?;
    Ok(Some(value))
}

/// A token as it is sent; `None`: it has characters that cannot be.
pub fn bearer(token: &str) -> Option<MetadataValue<Ascii>> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Pauses between attempts that grow, and differ from those of other clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    pauses: u32,
}

impl Backoff {
    fn goes_on(&self, patience: Patience, is_one: bool) -> bool {
        match patience {
            Patience::Short => self.pauses < if is_one { 1 } else { 6 },
            Patience::Long => self.pauses < 7,
            Patience::Endless => true,
        }
    }

    /// Waits 100 ms, 200 ms, … up to 5 s; a quarter more or less.
    pub async fn pause(&mut self) {
        let ms = (100u64 << self.pauses.min(6)).min(5000);
        self.pauses += 1;
        let jitter = u64::from_le_bytes(random()) % (ms / 2 + 1);
        tokio::time::sleep(Duration::from_millis(ms - ms / 4 + jitter)).await;
    }

    /// Begins anew: something was heard.
    pub fn reset(&mut self) {
        self.pauses = 0;
    }
}

/// A key that no other invocation has.
pub fn random_key() -> String {
    random_digits::<16>()
}

/// A secret that nobody guesses.
pub fn random_token() -> String {
    random_digits::<32>()
}

/// So many random bytes, in hexadecimal digits.
fn random_digits<const N: usize>() -> String {
    random::<N>().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let got = rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty());
        filled += got.expect("the kernel gives random bytes");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_two_invocations_differ() {
        assert_ne!(random_key(), random_key());
        assert_eq!(random_key().len(), 32);
    }

    #[test]
    fn patience_ends() {
        let all = [Patience::Short, Patience::Long, Patience::Endless];
        for (is_one, tries) in [(true, [1, 7, 100]), (false, [6, 7, 100])] {
            let goes_on = |pauses, patience| Backoff { pauses }.goes_on(patience, is_one);
            let tried = all.map(|patience| (0..100).take_while(|pauses| goes_on(*pauses, patience)).count());
            assert_eq!(tried, tries);
        }
    }
}
