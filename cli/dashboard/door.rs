//! Who gets in: browsers with the key of the printed address, or with a token of the pool.
//!
//! A browser that has shown either gets a cookie, which is a secret of its own: neither the key nor a token is in it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aquifer_scheduler::grpc::Guard;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tonic::metadata::{Ascii, MetadataValue};

use super::SignIn;
use super::answer::{Answered, Refusal, ask};
use super::pages;
use super::picture::Kept;
use crate::client::{Pool, bearer, random_token};
use crate::output::Output;
use crate::{Session, queues};

/// Browsers that are remembered; of more, those that were not seen for longest sign in again.
const BROWSERS: usize = 1000;
/// A browser that is not seen for so long signs in again.
const REMEMBERED: Duration = Duration::from_secs(12 * 3600);
/// Questions of one viewer under way, at most; others wait.
const QUESTIONS: usize = 8;
/// Streams of one viewer, at most.
const STREAMS: usize = 32;
/// Bytes of what a browser sends, at most.
const MAX_BODY: usize = 16 << 10;
/// Bytes of a path with what follows it, at most.
const MAX_PATH: usize = 4 << 10;
/// Browsers that sign in at a time: others wait, so that guesses do not use up what the scheduler gives to this client.
const SIGNING_IN: usize = 4;
/// So long a refusal to let in is held back.
const HELD_BACK: Duration = Duration::from_millis(250);

/// Nothing from elsewhere, no script but the page's own files, nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// The way in.
pub struct Door {
    pool: Pool,
    sign_in: SignIn,
    address: SocketAddr,
    hosts: Vec<String>,
    is_secure: bool,
    /// Of the printed address.
    key: String,
    /// All who have the key are one viewer.
    keyholder: Arc<Viewer>,
    browsers: Mutex<VecDeque<Browser>>,
    signing_in: Semaphore,
}

/// Somebody in whose name the pool is asked.
pub struct Viewer {
    pool: Pool,
    token: Option<MetadataValue<Ascii>>,
    /// Turns to ask the scheduler.
    pub questions: Semaphore,
    /// Places for streams.
    pub streams: Arc<Semaphore>,
    /// The devices of the pool, as they were seen last.
    pub kept: Kept,
}

/// A browser that was let in.
struct Browser {
    cookie: Guard,
    viewer: Arc<Viewer>,
    seen: Instant,
}

impl Viewer {
    fn new(pool: &Pool, token: Option<MetadataValue<Ascii>>) -> Arc<Viewer> {
        Arc::new(Viewer {
            pool: pool.clone(),
            token,
            questions: Semaphore::new(QUESTIONS),
            streams: Arc::new(Semaphore::new(STREAMS)),
            kept: Kept::default(),
        })
    }

    /// For one question. `stale`: whether the answer of one that stands by will do.
    pub fn session(&self, stale: bool) -> Session {
        let output = Output { json: true, ..Output::default() };
        Session { pool: self.pool.for_question(self.token.clone(), stale), output }
    }

    /// Whether there is a single scheduler.
    pub fn is_of_one(&self) -> bool {
        self.pool.is_one()
    }
}

impl Door {
    pub fn new(
        pool: Pool,
        sign_in: SignIn,
        token: Option<MetadataValue<Ascii>>,
        address: SocketAddr,
        hosts: Vec<String>,
        is_secure: bool,
    ) -> Door {
        let keyholder = Viewer::new(&pool, token);
        let (key, browsers) = (random_token(), Mutex::default());
        let signing_in = Semaphore::new(SIGNING_IN);
        Door { pool, sign_in, address, hosts, is_secure, key, keyholder, browsers, signing_in }
    }

    /// What to open.
    pub fn url(&self) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        let host = match self.hosts.first() {
            Some(name) => format!("{name}:{}", self.address.port()),
            None => self.address.to_string(),
        };
        match self.sign_in {
            SignIn::Key => format!("{scheme}://{host}/?key={}", self.key),
            SignIn::Token => format!("{scheme}://{host}/"),
        }
    }

    /// How a browser gets in.
    pub fn way(&self) -> &'static str {
        match self.sign_in {
            SignIn::Key => "key",
            SignIn::Token => "token",
        }
    }

    /// Cookies are of hosts, not of ports: so that two dashboards of one host do not take each other's place.
    fn cookie_name(&self) -> String {
        let prefix = if self.is_secure { "__Host-" } else { "" };
        format!("{prefix}aquifer-{}", self.address.port())
    }

    /// Remembers a browser, and returns the header for its cookie.
    fn let_in(&self, viewer: Arc<Viewer>) -> HeaderValue {
        let (secret, now) = (random_token(), Instant::now());
        let mut browsers = self.browsers.lock().expect("no holder panics");
        browsers.retain(|browser| now.duration_since(browser.seen) < REMEMBERED);
        if BROWSERS <= browsers.len() {
            let oldest = (0..browsers.len()).min_by_key(|at| browsers[*at].seen);
            oldest.and_then(|at| browsers.remove(at));
        }
        browsers.push_back(Browser { cookie: Guard::new(Some(&secret)), viewer, seen: now });
        self.cookie(&secret, REMEMBERED)
    }

    fn cookie(&self, secret: &str, for_: Duration) -> HeaderValue {
        let secure = if self.is_secure { "; Secure" } else { "" };
        let (name, age) = (self.cookie_name(), for_.as_secs());
        let text = format!("{name}={secret}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}");
        let mut value = HeaderValue::try_from(text).expect("letters and digits");
        value.set_sensitive(true);
        value
    }

    /// The place of the browser that sent these headers.
    fn find(&self, headers: &HeaderMap, browsers: &VecDeque<Browser>) -> Option<usize> {
        let name = self.cookie_name();
        let mut cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let given = cookies.find_map(|cookies| {
            let mut pairs = cookies.split(';').filter_map(|pair| pair.trim().split_once('='));
            pairs.find(|(known, _)| *known == name).map(|(_, secret)| format!("Bearer {secret}"))
        })?;
        // All are looked at: how long that takes tells nothing.
        let is_it = |browser: &Browser| browser.cookie.admits(Some(given.as_bytes()));
        let (mut found, now) = (None, Instant::now());
        for (at, browser) in browsers.iter().enumerate() {
            if is_it(browser) && now.duration_since(browser.seen) < REMEMBERED {
                found = Some(at);
            }
        }
        found
    }

    /// Whose browser sent these headers.
    fn viewer(&self, headers: &HeaderMap) -> Option<Arc<Viewer>> {
        let mut browsers = self.browsers.lock().expect("no holder panics");
        let at = self.find(headers, &browsers)?;
        browsers[at].seen = Instant::now();
        Some(browsers[at].viewer.clone())
    }

    /// Who has this token; the same one in all of their browsers.
    fn viewer_of(&self, token: MetadataValue<Ascii>) -> Arc<Viewer> {
        let browsers = self.browsers.lock().expect("no holder panics");
        let known = browsers.iter().find(|browser| browser.viewer.token.as_ref() == Some(&token));
        known.map_or_else(|| Viewer::new(&self.pool, Some(token)), |browser| browser.viewer.clone())
    }

    fn forget(&self, headers: &HeaderMap) {
        let mut browsers = self.browsers.lock().expect("no holder panics");
        if let Some(at) = self.find(headers, &browsers) {
            browsers.remove(at);
        }
    }

    /// Whether a browser that shows this `Host` means us: a page of another name that was pointed at this address does not.
    /// Source: "Protecting Browsers from DNS Rebinding Attacks", Jackson et al., CCS 2007, section 5.1.
    fn is_ours(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.trim_start_matches('[').trim_end_matches(']').to_lowercase();
        let address = name.parse::<IpAddr>().ok();
        match address {
            // A name is what is rebound.
            Some(ip) => ip.is_loopback() || !self.address.ip().is_loopback(),
            None => name == "localhost" || self.hosts.contains(&name),
        }
    }

    /// Whether a request that changes something comes from the page itself.
    fn is_from_page(&self, headers: &HeaderMap) -> bool {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let origin =
            text(header::ORIGIN).map(|origin| origin.split_once("://").map_or(origin, |(_, host)| host));
        let kind = text(header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/json"));
        kind && origin.is_none_or(|origin| Some(origin) == text(header::HOST))
    }
}

/// What holds for every request and every answer.
pub async fn guard(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let mut answer = check(&door, request, next).await.into_response();
    for (name, value) in HEADERS {
        answer.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    answer
}

async fn check(door: &Door, request: Request, next: Next) -> Answered {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if !host.is_some_and(|host| door.is_ours(host)) {
        let next = "open the printed address, or name this one with --host";
        return Err(Refusal::new(
            StatusCode::MISDIRECTED_REQUEST,
            "this dashboard is not known by that name",
            next,
        ));
    }
    let length = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    if MAX_PATH < length {
        let sentence = format!("the path has {length} bytes, at most {MAX_PATH} are allowed");
        return Err(Refusal::new(StatusCode::URI_TOO_LONG, sentence, ""));
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) && !door.is_from_page(request.headers()) {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "what changes something must come from the page itself",
            "",
        ));
    }
    Ok(next.run(request).await)
}

/// Lets pass who has signed in.
pub async fn admit(State(door): State<Arc<Door>>, mut request: Request, next: Next) -> Answered {
    let Some(viewer) = door.viewer(request.headers()) else { return Err(door.unknown()) };
    let headers = request.headers().clone();
    request.extensions_mut().insert(viewer);
    let answer = next.run(request).await;
    if answer.status() == StatusCode::UNAUTHORIZED && door.sign_in == SignIn::Token {
        door.forget(&headers); // The pool knows the token no more.
    }
    Ok(answer)
}

impl Door {
    fn unknown(&self) -> Refusal {
        let next = match self.sign_in {
            SignIn::Key => "open the address that `aquifer dashboard` printed: it has a key",
            SignIn::Token => "sign in with your token of the pool",
        };
        Refusal::new(StatusCode::UNAUTHORIZED, "this browser has not signed in", next)
    }
}

/// The page; with the key, the cookie first, so that the key is in no address any more.
pub async fn enter(State(door): State<Arc<Door>>, request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let Some((_, given)) = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "key") else {
        return pages::index();
    };
    let guard = Guard::new(Some(&door.key));
    if door.sign_in != SignIn::Key || !guard.admits(Some(format!("Bearer {given}").as_bytes())) {
        sleep(HELD_BACK).await;
        let next = "open the address that `aquifer dashboard` printed last";
        return Refusal::new(StatusCode::FORBIDDEN, "this is not the key of this dashboard", next)
            .into_response();
    }
    let cookie = door.let_in(door.keyholder.clone());
    (StatusCode::SEE_OTHER, [(header::LOCATION, HeaderValue::from_static("/")), (header::SET_COOKIE, cookie)])
        .into_response()
}

/// What a browser signs in with.
#[derive(Deserialize)]
struct Shown {
    token: String,
}

/// Takes a token, if the pool does.
pub async fn sign_in(State(door): State<Arc<Door>>, request: Request) -> Answered {
    if door.sign_in != SignIn::Token {
        return Err(door.unknown());
    }
    let body = body(request.into_body()).await?;
    let shown: Shown =
        serde_json::from_slice(&body).map_err(|_| Refusal::bad("expected {\"token\": \"…\"}"))?;
    let token = bearer(shown.token.trim()).filter(|_| !shown.token.trim().is_empty());
    let token = token.ok_or_else(|| Refusal::bad("token is no token: it is empty, or cannot be sent"))?;
    let _turn = door.signing_in.acquire().await.expect("it is never closed");
    // A pool that takes calls of anybody could tell nobody apart.
    let stranger = Viewer::new(&door.pool, bearer(&random_token()));
    match is_taken(&stranger).await {
        Err(refusal) if refusal.status() == StatusCode::UNAUTHORIZED => (),
        Err(refusal) => return Err(refusal),
        Ok(()) => {
            let next = "start the scheduler with --token-file, and give users tokens: `aquifer token`";
            let sentence = "this pool takes calls without a token, so that nobody can sign in";
            return Err(Refusal::new(StatusCode::CONFLICT, sentence, next));
        }
    }
    let viewer = door.viewer_of(token);
    if let Err(refusal) = is_taken(&viewer).await {
        if refusal.status() != StatusCode::UNAUTHORIZED {
            return Err(refusal);
        }
        sleep(HELD_BACK).await;
        let next = "ask an administrator of the pool for one: `aquifer token`";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "the pool does not know this token", next));
    }
    let cookie = door.let_in(viewer);
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}

/// Whether the pool answers this viewer.
async fn is_taken(viewer: &Viewer) -> Result<(), Refusal> {
    ask(viewer, |session| async move { queues::list(&session).await.map(|_| ()) }).await.map(|_| ())
}

/// Forgets the browser.
pub async fn sign_out(State(door): State<Arc<Door>>, headers: HeaderMap) -> Response {
    door.forget(&headers);
    (StatusCode::NO_CONTENT, [(header::SET_COOKIE, door.cookie("", Duration::ZERO))]).into_response()
}

/// All of what a browser sends.
async fn body(body: Body) -> Result<Vec<u8>, Refusal> {
    let read = tokio::time::timeout(Duration::from_secs(10), to_bytes(body, MAX_BODY)).await;
    let late = |_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time", "");
    let large = |_| {
        let sentence = format!("the body is larger than {MAX_BODY} bytes");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, sentence, "")
    };
    Ok(read.map_err(late)?.map_err(large)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Global;

    fn door(address: &str, hosts: &[&str], is_secure: bool) -> Door {
        let global = Global {
            server: None,
            stale: false,
            token_file: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            json: false,
            no_color: true,
        };
        let pool = Pool::new(&global).expect("a URL");
        let hosts = hosts.iter().map(ToString::to_string).collect();
        Door::new(pool, SignIn::Key, None, address.parse().expect("an address"), hosts, is_secure)
    }

    #[tokio::test]
    async fn names_that_nobody_gave_are_not_ours() {
        let door = door("127.0.0.1:7780", &["pool.example.org"], false);
        for ours in ["127.0.0.1:7780", "localhost:1", "LOCALHOST", "[::1]:7780", "pool.example.org:443"] {
            assert!(door.is_ours(ours), "{ours}");
        }
        for other in
            ["", "evil.example", "192.0.2.1:7780", "localhost.evil.example", "127.0.0.1.evil.example:7780"]
        {
            assert!(!door.is_ours(other), "{other}");
        }
        let door = self::door("192.0.2.1:7780", &[], false);
        assert!(door.is_ours("192.0.2.1:7780") && !door.is_ours("evil.example"));
    }

    #[tokio::test]
    async fn a_browser_is_known_by_its_cookie_until_it_is_forgotten() {
        let door = door("127.0.0.1:7780", &[], true);
        let headers = |text: &str| HeaderMap::from_iter([(header::COOKIE, text.parse().expect("a value"))]);
        let mut cookies = Vec::new();
        for _ in 0..BROWSERS + 1 {
            let cookie = door.let_in(door.keyholder.clone());
            let cookie = cookie.to_str().expect("text");
            assert!(cookie.starts_with("__Host-aquifer-7780=") && cookie.ends_with("; Secure"), "{cookie}");
            let cookie = cookie.split(';').next().expect("a pair");
            cookies.push(headers(&format!("other=1; {cookie}")));
        }
        let known = |at: usize| door.viewer(&cookies[at]).is_some();
        assert!(!known(0) && known(1) && known(BROWSERS), "the oldest gave way");
        assert!(door.viewer(&headers("__Host-aquifer-7780=guess")).is_none());
        assert!(door.viewer(&HeaderMap::new()).is_none());
        door.forget(&cookies[1]);
        assert!(!known(1) && known(2));
    }
}
