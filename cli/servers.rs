//! All schedulers of a pool as one connection: whoever is asked and does not lead names the one that does.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use aquifer_proto::tls::{ClientTls, EndpointError, leads_on};
use aquifer_proto::{AGE, LEADER};
use http_body_util::{BodyExt, Full};
use hyper::http;
use tonic::body::Body;
use tonic::transport::Channel;
use tower_service::Service;

use crate::output::aside;
use crate::units;

/// Answers of schedulers that do not lead that one call follows, at most.
const REDIRECTIONS: usize = 3;

/// Path of the call whose request goes on for as long as it does.
const STREAM: &str = "/aquifer.v1.Exec/Run";

/// Where the schedulers are, and which of them was last found to lead.
#[derive(Clone, Debug)]
pub struct Servers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    listed: Vec<String>,
    tls: ClientTls,
    current: Mutex<Current>,
    /// It was said how old answers are.
    is_dated: AtomicBool,
}

#[derive(Debug)]
struct Current {
    url: String,
    channel: Channel,
}

impl Servers {
    /// Reads URLs with commas between them; `http://` may be left out, and so may `https://` where `tls` names an
    /// authority. Nothing is sent yet.
    ///
    /// # Errors
    /// Names the first that cannot be used, and why.
    pub fn new(list: &str, tls: &ClientTls) -> Result<Servers, EndpointError> {
        let listed: Vec<String> = list.split(',').map(|url| tls.with_scheme(url.trim())).collect();
        let mut channels = Vec::new();
        for url in &listed {
            channels.push(connect(tls, url, 1 < listed.len())?);
        }
        let current = Current { url: listed[0].clone(), channel: channels.swap_remove(0) };
        let is_dated = AtomicBool::new(false);
        let shared = Shared { listed, tls: tls.clone(), current: Mutex::new(current), is_dated };
        Ok(Servers { shared: Arc::new(shared) })
    }

    /// The URLs.
    pub fn listed(&self) -> &[String] {
        &self.shared.listed
    }
}

impl Shared {
    fn current(&self) -> (String, Channel) {
        let current = self.current.lock().expect("no holder panics");
        (current.url.clone(), current.channel.clone())
    }

    /// Turns away from one, if nobody has yet: to `leader`, or to the next of the list.
    fn turn(&self, from: &str, leader: Option<&str>) {
        let mut current = self.current.lock().expect("no holder panics");
        if current.url != from || leader.is_some_and(|leader| !leads_on(from, leader)) {
            return;
        }
        let at = self.listed.iter().position(|url| url == from);
        let next = &self.listed[at.map_or(0, |at| (at + 1) % self.listed.len())];
        let url = leader.unwrap_or(next);
        // A channel connects again by itself.
        if let (true, Ok(channel)) = (url != from, connect(&self.tls, url, true)) {
            *current = Current { url: url.into(), channel };
        }
    }
}

impl Shared {
    /// Says once of when the answers are, if they are not of now.
    fn date(&self, url: &str, answer: &Answer) {
        let age = answer.headers().get(AGE).and_then(|age| age.to_str().ok()?.parse().ok());
        if let Some(age) = age
            && !self.is_dated.swap(true, Ordering::Relaxed)
        {
            let age = units::duration(age);
            aside(format!("the scheduler at {url} stands by: this is the pool as it was {age} ago"));
        }
    }

    /// Asks the one that was last found to lead, once: what was sent cannot be sent again.
    async fn stream(&self, request: http::Request<Body>) -> Result<Answer, tonic::Status> {
        let (url, mut channel) = self.current();
        let answer = match poll_fn(|cx| channel.poll_ready(cx)).await {
            Ok(()) => channel.call(request).await,
            Err(error) => Err(error),
        };
        let answer = answer.map_err(|error| self.failed(&url, error))?;
        if let Some(leader) = answer.headers().get(LEADER).and_then(|leader| leader.to_str().ok()) {
            self.turn(&url, Some(leader));
        }
        Ok(answer)
    }

    fn failed(&self, url: &str, error: tonic::transport::Error) -> tonic::Status {
        match self.tls.explain(url, &error) {
            Some(sentence) => tonic::Status::failed_precondition(sentence),
            None => tonic::Status::from_error(error.into()),
        }
    }
}

type Answer = http::Response<Body>;

impl Service<http::Request<Body>> for Servers {
    type Response = Answer;
    type Error = tonic::Status;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, tonic::Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), tonic::Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = self.shared.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            if head.uri.path() == STREAM {
                return shared.stream(http::Request::from_parts(head, body)).await;
            }
            // Requests are single messages, so that they can be sent to another one.
            let body = body.collect().await?.to_bytes();
            let (mut redirections, mut silent) = (0, 0);
            loop {
                let (url, mut channel) = shared.current();
                let request = http::Request::from_parts(head.clone(), Body::new(Full::new(body.clone())));
                let answer = match poll_fn(|cx| channel.poll_ready(cx)).await {
                    Ok(()) => channel.call(request).await,
                    Err(error) => Err(error),
                };
                match answer {
                    Ok(answer) => {
                        shared.date(&url, &answer);
                        let leader = answer.headers().get(LEADER).and_then(|leader| leader.to_str().ok());
                        if leader.is_some() || stands_by(&answer) {
                            shared.turn(&url, leader);
                        }
                        if leader.is_none() || redirections == REDIRECTIONS {
                            return Ok(answer);
                        }
                        redirections += 1;
                    }
                    Err(error) => {
                        shared.turn(&url, None);
                        silent += 1;
                        if !was_not_sent(&error) || shared.listed.len() <= silent {
                            return Err(shared.failed(&url, error));
                        }
                    }
                }
            }
        })
    }
}

/// Whether the one that answered is not to be asked again at once.
fn stands_by(answer: &Answer) -> bool {
    let status = answer.headers().get("grpc-status");
    status.is_some_and(|status| status.as_bytes() == (tonic::Code::Unavailable as i32).to_string().as_bytes())
}

/// Whether there was no connection, so that nobody can have got the request.
fn was_not_sent(error: &tonic::transport::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn connect(tls: &ClientTls, url: &str, of_several: bool) -> Result<Channel, EndpointError> {
    // Another one takes over from one that stands still.
    let silence = Duration::from_secs(if of_several { 5 } else { 10 });
    let endpoint = tls.endpoint(url)?;
    let endpoint = endpoint
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(silence)
        .keep_alive_timeout(silence)
        .tcp_nodelay(true);
    Ok(endpoint.connect_lazy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lists_are_read_and_one_turns_to_whoever_leads() {
        let plain = ClientTls::default();
        let servers = Servers::new("http://a:1, b:2,http://c:3", &plain).expect("URLs");
        assert_eq!(servers.listed(), ["http://a:1", "http://b:2", "http://c:3"]);
        let shared = &servers.shared;
        let mut seen = vec![shared.current().0];
        for (from, leader) in [
            ("http://a:1", None),
            ("http://a:1", None), // Somebody else has turned away from it.
            ("http://b:2", Some("http://elsewhere:9")),
            ("http://elsewhere:9", None),
            ("http://a:1", Some("no URL")),
            ("http://a:1", Some("http://c:3")),
            ("http://c:3", None),
        ] {
            shared.turn(from, leader);
            seen.push(shared.current().0);
        }
        let expected = ["a:1", "b:2", "b:2", "elsewhere:9", "a:1", "a:1", "c:3", "a:1"];
        assert_eq!(seen, expected.map(|url| format!("http://{url}")));
        assert!(Servers::new("a:1,,", &plain).is_err());
    }

    #[tokio::test]
    async fn nobody_leads_from_tls_to_clear_text() {
        let servers = Servers::new("https://a:1,https://b:2", &ClientTls::default()).expect("URLs");
        let shared = &servers.shared;
        let mut seen = Vec::new();
        for (from, leader) in [("https://a:1", "https://c:3"), ("https://c:3", "http://d:4")] {
            shared.turn(from, Some(leader));
            seen.push(shared.current().0);
        }
        assert_eq!(seen, ["https://c:3"; 2]);
    }
}
