//! As much of S3 as checkpoints need, in memory, with faults on demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

/// What is asked of the server.
pub struct Request {
    pub method: String,
    /// Bucket and key.
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    /// Whether it is about an object whose key contains `text`, by this method.
    pub fn is(&self, method: &str, text: &str) -> bool {
        self.method == method && self.path.contains(text)
    }
}

/// What the server does with a request.
pub enum Fault {
    /// What it should.
    None,
    /// It answers with this status, and repeats what came, as servers do to explain a signature.
    Status(u16),
    /// It closes the connection half-way through its answer, and has done nothing.
    Lost,
    /// It does what it is asked for, and closes the connection without an answer.
    Unanswered,
    /// It does what it is asked for, and says that it could not.
    Denied,
    /// It waits for a word, then does what it should.
    Held(Receiver<()>),
    /// It takes the request and never answers.
    Silent,
}

type Faults = Box<dyn FnMut(&Request) -> Fault + Send>;

#[derive(Default)]
struct Content {
    objects: BTreeMap<String, Vec<u8>>,
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    uploads_made: u64,
    most_parts: usize,
}

/// The server. Its one bucket is `bucket`.
#[derive(Clone)]
pub struct S3 {
    pub url: String,
    content: Arc<Mutex<Content>>,
    faults: Arc<Mutex<Faults>>,
}

impl S3 {
    pub fn start() -> S3 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let none: Faults = Box::new(|_| Fault::None);
        let server = S3 { url, content: Arc::default(), faults: Arc::new(Mutex::new(none)) };
        let own = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let own = own.clone();
                std::thread::spawn(move || own.serve(stream));
            }
        });
        server
    }

    /// From now on `faults` decides what happens to a request.
    pub fn set(&self, faults: impl FnMut(&Request) -> Fault + Send + 'static) {
        *self.faults.lock().unwrap() = Box::new(faults);
    }

    /// Keys of all objects.
    pub fn keys(&self) -> Vec<String> {
        self.content.lock().unwrap().objects.keys().cloned().collect()
    }

    /// The object whose key ends in this.
    pub fn object(&self, end: &str) -> Vec<u8> {
        let content = self.content.lock().unwrap();
        let found = content.objects.iter().find(|(key, _)| key.ends_with(end));
        found.unwrap_or_else(|| panic!("{end} is not in {:?}", content.objects.keys())).1.clone()
    }

    /// Changes the objects whose keys contain `part`; `None` removes one.
    pub fn change(&self, part: &str, change: impl Fn(&[u8]) -> Option<Vec<u8>>) {
        let mut content = self.content.lock().unwrap();
        let keys: Vec<_> = content.objects.keys().filter(|key| key.contains(part)).cloned().collect();
        assert!(!keys.is_empty(), "{part} is not there");
        for key in keys {
            match change(&content.objects[&key]) {
                Some(object) => content.objects.insert(key, object),
                None => content.objects.remove(&key),
            };
        }
    }

    /// Uploads in parts that are neither ended nor given up, and the most parts that one had.
    pub fn uploads(&self) -> (usize, usize) {
        let content = self.content.lock().unwrap();
        (content.uploads.len(), content.most_parts)
    }

    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let request = read(&stream)?;
        let fault = (self.faults.lock().unwrap())(&request);
        let (status, headers, body) = match fault {
            Fault::None => self.answer(&request),
            Fault::Status(status) => {
                let headers = format!("{:?}", request.headers);
                (status, String::new(), format!("<Error><Message>{headers}</Message></Error>").into_bytes())
            }
            Fault::Lost => {
                _ = stream.write_all(b"HTTP/1.1 200 O");
                return None;
            }
            Fault::Unanswered => {
                self.answer(&request);
                return None;
            }
            Fault::Denied => {
                self.answer(&request);
                (500, String::new(), Vec::new())
            }
            Fault::Held(word) => {
                _ = word.recv();
                self.answer(&request)
            }
            Fault::Silent => loop {
                std::thread::park();
            },
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\nconnection: close\r\nlast-modified: Sun, 29 Nov 2026 10:00:00 GMT\r\n\
             {headers}content-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).ok()?;
        if request.method != "HEAD" {
            stream.write_all(&body).ok()?;
        }
        Some(())
    }

    fn answer(&self, request: &Request) -> (u16, String, Vec<u8>) {
        let mut content = self.content.lock().unwrap();
        let path = request.path.trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let (key, query) = (key.to_string(), &request.query);
        if bucket != "bucket" {
            return (404, String::new(), b"<Error><Code>NoSuchBucket</Code></Error>".to_vec());
        }
        let ok = |text: &str| (200, String::new(), text.as_bytes().to_vec());
        let tag = "etag: \"e\"\r\n".to_string();
        match (request.method.as_str(), query.get("uploadId")) {
            ("POST", None) if query.contains_key("uploads") => {
                content.uploads_made += 1;
                let id = content.uploads_made.to_string();
                content.uploads.insert(id.clone(), BTreeMap::new());
                ok(&format!(
                    "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                ))
            }
            ("PUT", Some(id)) => {
                let part = query["partNumber"].parse().unwrap();
                let Some(parts) = content.uploads.get_mut(id) else { return (404, String::new(), vec![]) };
                parts.insert(part, request.body.clone());
                (200, tag, vec![])
            }
            ("POST", Some(id)) => {
                let Some(parts) = content.uploads.remove(id) else { return (404, String::new(), vec![]) };
                content.most_parts = content.most_parts.max(parts.len());
                let small = parts.values().rev().skip(1).any(|part| part.len() < 5 << 20);
                assert!(!small, "parts but the last have 5 MiB at least");
                content.objects.insert(key, parts.into_values().flatten().collect());
                ok("<CompleteMultipartUploadResult><ETag>\"e\"</ETag></CompleteMultipartUploadResult>")
            }
            ("DELETE", Some(id)) => {
                content.uploads.remove(id);
                (204, String::new(), vec![])
            }
            ("POST", None) if query.contains_key("delete") => {
                let text = String::from_utf8(request.body.clone()).unwrap();
                let mut answer = String::new();
                for piece in text.split("<Key>").skip(1) {
                    let key = piece.split("</Key>").next().unwrap();
                    content.objects.remove(key);
                    answer += &format!("<Deleted><Key>{key}</Key></Deleted>");
                }
                ok(&format!("<DeleteResult>{answer}</DeleteResult>"))
            }
            ("PUT", None) => {
                if request.headers.contains_key("if-none-match") && content.objects.contains_key(&key) {
                    return (412, String::new(), vec![]);
                }
                content.objects.insert(key, request.body.clone());
                (200, tag, vec![])
            }
            ("GET", None) if key.is_empty() => ok(&list(&content, query)),
            ("GET" | "HEAD", None) => {
                let Some(object) = content.objects.get(&key) else { return (404, String::new(), vec![]) };
                match request.headers.get("range") {
                    None => (200, tag, object.clone()),
                    Some(range) => {
                        let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                        let headers =
                            format!("{tag}content-range: bytes {first}-{last}/{}\r\n", object.len());
                        (206, headers, object[first..=last].to_vec())
                    }
                }
            }
            _ => panic!("{} {} {:?}", request.method, request.path, request.query),
        }
    }
}

fn list(content: &Content, query: &BTreeMap<String, String>) -> String {
    let prefix = query.get("prefix").map_or("", String::as_str);
    let (mut objects, mut folders) = (String::new(), BTreeMap::new());
    for (key, object) in content.objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
        match (query.get("delimiter"), key[prefix.len()..].find('/')) {
            (Some(_), Some(at)) => _ = folders.insert(key[..=prefix.len() + at].to_string(), ()),
            _ => {
                objects += &format!(
                    "<Contents><Key>{key}</Key><LastModified>2026-11-29T10:00:00.000Z</LastModified>\
                     <ETag>\"e\"</ETag><Size>{}</Size></Contents>",
                    object.len()
                );
            }
        }
    }
    let folder = |folder: &String| format!("<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>");
    let folders: String = folders.keys().map(folder).collect();
    format!("<ListBucketResult><IsTruncated>false</IsTruncated>{objects}{folders}</ListBucketResult>")
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_string(), words.next()?.to_string());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_string());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.to_string(), value.replace("%2F", "/"))
    };
    let query = query.split('&').filter(|text| !text.is_empty()).map(pair).collect();
    Some(Request { method, path: path.to_string(), query, headers, body })
}
