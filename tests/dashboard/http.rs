//! A dashboard for tests, and requests to it as they travel.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::pool::{Pool, Running, program, start};

/// A dashboard of a pool, once it listens.
pub struct Dashboard {
    pub process: Running,
    pub port: u16,
    /// Of the printed address; empty where viewers sign in.
    pub key: String,
}

/// An answer, with its headers in lower case.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub fn cookie(&self) -> &str {
        self.header("set-cookie").expect("a cookie").split(';').next().expect("a pair")
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub fn refused(&self, status: u16, why: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.body.contains(why), "{self:?}");
    }
}

pub fn dashboard(pool: &Pool, flags: &[&str]) -> Dashboard {
    let url = pool.url();
    let listen: &[&str] = if flags.contains(&"--listen") { &[] } else { &["--listen", "127.0.0.1:0"] };
    let words = [&["dashboard", "--server", &url][..], listen, flags].concat();
    let mut process = start(pool.dir(), "dashboard", program(pool.dir(), &words));
    process.until_out("The dashboard is at http://");
    let (port, key) = address(&process.out());
    Dashboard { process, port, key }
}

impl Dashboard {
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
        stream
    }

    /// One request with the headers as given.
    pub fn raw(&self, request: &str, headers: &str, body: &str) -> Answer {
        let (mut stream, length) = (self.connect(), body.len());
        let head = format!(
            "{request} HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(head.as_bytes()).expect("it reads");
        let mut bytes = Vec::new();
        _ = stream.read_to_end(&mut bytes); // It may close a request that it does not read to the end.
        let text = String::from_utf8(bytes).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
        let (status, headers) = head.split_once("\r\n").expect("a status");
        Answer {
            status: status[9..12].parse().expect("a status"),
            headers: headers.to_lowercase().replace('\r', ""),
            body: body.into(),
        }
    }

    pub fn get(&self, path: &str, cookie: &str) -> Answer {
        let host = format!("host: 127.0.0.1:{}\r\n", self.port);
        self.raw(&format!("GET {path}"), &format!("{host}cookie: {cookie}\r\n"), "")
    }

    pub fn post(&self, path: &str, cookie: &str, body: &str) -> Answer {
        let port = self.port;
        let headers = format!(
            "host: 127.0.0.1:{port}\r\norigin: http://127.0.0.1:{port}\r\ncontent-type: application/json\r\ncookie: {cookie}\r\n"
        );
        self.raw(&format!("POST {path}"), &headers, body)
    }

    /// The cookie of a browser that has opened the printed address.
    pub fn enter(&self) -> String {
        let answer = self.get(&format!("/?key={}", self.key), "");
        assert_eq!((answer.status, answer.header("location")), (303, Some("/")), "{answer:?}");
        answer.cookie().to_string()
    }

    /// The cookie of a browser that has signed in with a token.
    pub fn sign_in(&self, token: &str) -> String {
        let answer = self.post("/api/sign-in", "", &format!("{{\"token\": {token:?}}}"));
        assert_eq!(answer.status, 204, "{answer:?}");
        answer.cookie().to_string()
    }

    /// A stream whose answer begins with a status.
    pub fn begin(&self, path: &str, cookie: &str, status: u16) -> TcpStream {
        let mut stream = self.connect();
        let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\ncookie: {cookie}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("it reads");
        let mut begun = [0; 12];
        stream.read_exact(&mut begun).expect("an answer in time");
        assert_eq!(String::from_utf8_lossy(&begun), format!("HTTP/1.1 {status}"), "{path}");
        stream
    }

    /// Data of the first event of a stream that holds a text.
    pub fn until_event(&self, path: &str, cookie: &str, text: &str, after: impl FnOnce()) -> Value {
        let stream = self.begin(path, cookie, 200);
        let mut lines = BufReader::new(stream).lines().map(|line| line.expect("a line in time"));
        lines.find(|line| line.is_empty()).expect("the end of the head");
        after();
        // Every now and then there is a line that says nothing.
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut lines = lines.take_while(|_| Instant::now() < deadline);
        let line = lines.find(|line| line.starts_with("data: ") && line.contains(text));
        let line = line.unwrap_or_else(|| panic!("no event says {text:?}"));
        serde_json::from_str(line.strip_prefix("data: ").expect("data")).expect("JSON")
    }

    pub fn end(self) {
        self.process.signal(Signal::TERM);
        let done = self.process.finish();
        assert_eq!(done.code, Some(0), "{done:?}");
    }
}

/// An HTTP port and the key, of a printed address.
pub fn address(printed: &str) -> (u16, String) {
    let url = printed.lines().find_map(|line| Some(line.split_once("The dashboard is at http://")?.1));
    let (address, key) = url.expect("a URL").trim().split_once('/').expect("a path");
    let port = address.rsplit(':').next().expect("a port").parse().expect("a number");
    (port, key.strip_prefix("?key=").unwrap_or_default().into())
}
