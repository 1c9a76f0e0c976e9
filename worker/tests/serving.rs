//! The HTTP interface as a client meets it, over loopback.

mod support;

use aquifer_worker::contract::Contract;
use aquifer_worker::serve;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use support::{TempDir, Worker, loud_model, save_model, serve_args};
use tokio::sync::oneshot;

#[test]
fn worker_process() {
    support::become_worker_if_asked();
}

/// A server in a thread of the test, on a free port; stopped when dropped.
struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl Server {
    fn start(options: &[&str]) -> Server {
        let dir = TempDir::new();
        save_model(&loud_model(), &dir.join("loud"));
        let model = dir.join("loud");
        let fixed = ["--model", model.to_str().unwrap(), "--port", "0"];
        let args = serve_args(&fixed.iter().chain(options).copied().collect::<Vec<_>>());
        let (stop, stopped) = oneshot::channel();
        let (ready, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let stopped = async {
                let _ = stopped.await;
            };
            let contract = Contract { threads: 1, ..Contract::default() };
            let ready = |address| ready.send(address).unwrap();
            runtime.block_on(serve::run(&args, &contract, stopped, ready)).unwrap();
        });
        Server { address: address.recv().unwrap(), stop: Some(stop), thread: Some(thread), _dir: dir }
    }

    /// Sends a request and leaves the connection to be read.
    fn send(&self, method: &str, path: &str, body: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
        stream.write_all(format!("{head}content-length: {length}\r\n\r\n{body}").as_bytes()).unwrap();
        BufReader::new(stream)
    }

    fn call(&self, method: &str, path: &str, body: &str) -> Reply {
        let mut stream = self.send(method, path, body);
        let head = read_head(&mut stream);
        let mut body = Vec::new();
        if head.contains("transfer-encoding: chunked") {
            while let Some(chunk) = read_chunk(&mut stream) {
                body.extend(chunk);
            }
        } else {
            stream.read_to_end(&mut body).unwrap();
        }
        Reply { head, body: String::from_utf8(body).unwrap() }
    }

    fn post(&self, path: &str, body: Value) -> Reply {
        self.call("POST", path, &body.to_string())
    }

    fn text(&self, body: Value) -> String {
        let reply = self.post("/v1/completions", body).json(200);
        reply["choices"][0]["text"].as_str().unwrap().to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || ended.is_ok());
    }
}

struct Reply {
    head: String,
    body: String,
}

impl Reply {
    fn json(&self, status: u16) -> Value {
        assert!(self.head.starts_with(&format!("HTTP/1.1 {status} ")), "{} {}", self.head, self.body);
        serde_json::from_str(&self.body).unwrap()
    }

    /// The parts of a stream; the last line is checked to be its end.
    fn parts(&self) -> Vec<Value> {
        assert!(self.head.contains("content-type: text/event-stream"), "{}", self.head);
        let mut lines: Vec<_> = self.body.split_terminator("\n\n").collect();
        assert_eq!(lines.pop(), Some("data: [DONE]"));
        lines.iter().map(|line| serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

fn read_head(stream: &mut BufReader<TcpStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut head).unwrap(), 0, "the connection ended in {head:?}");
    }
    head
}

fn read_chunk(stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut length = String::new();
    stream.read_line(&mut length).unwrap();
    let length = usize::from_str_radix(length.trim(), 16).unwrap();
    let mut chunk = vec![0; length + 2];
    stream.read_exact(&mut chunk).unwrap();
    chunk.truncate(length);
    (0 < length).then_some(chunk)
}

fn greedy(prompt: &str, max_tokens: u64) -> Value {
    json!({ "model": "loud", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0 })
}

#[test]
fn the_model_is_listed_under_the_name_of_its_directory() {
    let server = Server::start(&[]);
    let list = server.call("GET", "/v1/models", "").json(200);
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("loud")));
    assert_eq!(server.call("GET", "/v1/models/loud", "").json(200)["object"], "model");
    assert_eq!(server.call("GET", "/v1/models/quiet", "").json(404)["error"]["code"], "model_not_found");
    let health = server.call("GET", "/health", "");
    assert_eq!(health.json(200)["status"], "ok");
    assert!(health.head.contains("x-request-id: req-"), "{}", health.head);
}

#[test]
fn a_completion_counts_its_tokens_and_a_seed_repeats_it() {
    let server = Server::start(&[]);
    let reply = server.post("/v1/completions", greedy("water", 12)).json(200);
    assert_eq!(reply["object"], "text_completion");
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    let usage = json!({
        "prompt_tokens": 6, "completion_tokens": 12, "total_tokens": 18,
        "prompt_tokens_details": { "cached_tokens": 0 },
    });
    assert_eq!(reply["usage"], usage);
    let hot = |seed: u64| {
        server.text(
            json!({ "model": "loud", "prompt": "w", "max_tokens": 40, "temperature": 1.5, "seed": seed }),
        )
    };
    assert_eq!(hot(1), hot(1));
    assert_ne!(hot(1), hot(2));
}

#[test]
fn greedy_text_is_the_same_alone_and_among_many() {
    let server = Server::start(&[]);
    let prompts: Vec<_> = (0..20).map(|i| "prompt ".repeat(i)).collect();
    let alone: Vec<_> = prompts.iter().map(|prompt| server.text(greedy(prompt, 30))).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let server = &server;
        let ask = |prompt| scope.spawn(move || server.text(greedy(prompt, 30)));
        let handles: Vec<_> = prompts.iter().map(|prompt| ask(prompt.as_str())).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

#[test]
fn a_streamed_completion_is_the_whole_one_in_pieces() {
    let server = Server::start(&[]);
    let whole = server.text(greedy("water", 60));
    let mut body = greedy("water", 60);
    body["stream"] = true.into();
    let parts = server.post("/v1/completions", body.clone()).parts();
    let text: String = parts.iter().map(|part| part["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, whole);
    assert_eq!(parts.last().unwrap()["choices"][0]["finish_reason"], "length");

    body["stream_options"] = json!({ "include_usage": true });
    let parts = server.post("/v1/completions", body).parts();
    let last = parts.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(60)));
}

#[test]
fn a_streamed_chat_opens_with_the_role_and_closes_with_the_reason() {
    let server = Server::start(&[]);
    let mut body = json!({
        "model": "loud", "messages": [{ "role": "user", "content": "hé" }],
        "max_completion_tokens": 10, "temperature": 0,
    });
    let whole = server.post("/v1/chat/completions", body.clone()).json(200);
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["choices"][0]["message"]["role"], "assistant");
    body["stream"] = true.into();
    let parts = server.post("/v1/chat/completions", body).parts();
    assert_eq!(parts[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    assert_eq!(parts[0]["object"], "chat.completion.chunk");
    let last = parts.last().unwrap();
    assert_eq!(
        (&last["choices"][0]["delta"], &last["choices"][0]["finish_reason"]),
        (&json!({}), &json!("length"))
    );
    let pieces = parts.iter().filter_map(|part| part["choices"][0]["delta"]["content"].as_str());
    assert_eq!(pieces.collect::<String>(), whole["choices"][0]["message"]["content"].as_str().unwrap());
    assert!(parts.iter().all(|part| part["id"] == parts[0]["id"]));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let server = Server::start(&[]);
    let text = server.text(greedy("water", 40));
    let stop: String = text.chars().skip(3).take(2).collect();
    let mut body = greedy("water", 40);
    body["stop"] = json!([stop, "never said"]);
    let reply = server.post("/v1/completions", body).json(200);
    assert_eq!(reply["choices"][0]["text"].as_str(), text.split(&stop).next());
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
}

#[test]
fn errors_have_the_shape_that_clients_read() {
    let server = Server::start(&[]);
    let large = format!("{{\"prompt\": \"{}\"}}", "x".repeat(1 << 20));
    let unknown = json!({ "model": "gpt-4o", "prompt": "x" }).to_string();
    let none = json!({ "model": "loud", "prompt": "x", "n": 0 }).to_string();
    let long = greedy(&"x".repeat(2000), 1).to_string();
    for (method, path, body, status, code, message) in [
        ("POST", "/v1/completions", "{", 400, None, "the body is not JSON: EOF"),
        (
            "POST",
            "/v1/completions",
            &unknown,
            404,
            Some("model_not_found"),
            "the model \"gpt-4o\" does not exist",
        ),
        ("POST", "/v1/completions", &none, 400, None, "n is 0; it is a whole number, 1 to 128"),
        (
            "POST",
            "/v1/completions",
            &long,
            400,
            Some("context_length_exceeded"),
            "the prompt has 2001 tokens",
        ),
        ("POST", "/v1/chat/completions", &large, 413, None, "the body is larger than 1048576 bytes"),
        ("GET", "/v1/images", "", 404, None, "there is nothing at this path"),
        ("GET", "/v1/completions", "", 405, None, "this path does not know the method"),
    ] {
        let reply = server.call(method, path, body).json(status);
        let error = &reply["error"];
        assert_eq!(error["code"].as_str(), code, "{reply}");
        assert!(error["message"].as_str().unwrap().starts_with(message), "{reply}");
        assert_eq!(error["type"], "invalid_request_error", "{reply}");
        assert!(error.as_object().unwrap().contains_key("param"), "{reply}");
    }
}

#[test]
fn a_full_queue_answers_429_and_clients_that_leave_make_room() {
    let server = Server::start(&["--max-queue", "2"]);
    let mut body = greedy("water", 1000);
    body["stream"] = true.into();
    let mut open = Vec::new();
    let refused = loop {
        let mut stream = server.send("POST", "/v1/completions", &body.to_string());
        let head = read_head(&mut stream);
        if head.starts_with("HTTP/1.1 429") {
            break head;
        }
        open.push(stream);
    };
    let retry: u64 = refused.split("retry-after: ").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
    assert!(1 <= retry, "{refused}");
    drop(open);
    // Every request ends long before its last token, because nobody reads it.
    let idle = json!({ "status": "ok", "running": 0, "waiting": 0 });
    while server.call("GET", "/health", "").json(200) != idle {}
    server.text(greedy("w", 1));
}

/// A worker process with one request in the middle of its answer.
fn serving_process(dir: &TempDir, grace: &str) -> (Worker, String, BufReader<TcpStream>) {
    save_model(&loud_model(), &dir.join("loud"));
    let (model, run_dir) = (dir.join("loud"), dir.join("run"));
    std::fs::create_dir_all(&run_dir).unwrap();
    let line = ["serve", "--model", model.to_str().unwrap(), "--name", "served", "--grace", grace];
    let environment = [("AQUIFER_PORT", "0"), ("AQUIFER_RUN_DIR", run_dir.to_str().unwrap())];
    let mut worker = Worker::spawn(&line, &environment);
    let printed = worker.wait_for("serving ");
    let endpoint = printed.split_once("serving served on ").unwrap().1.to_string();
    let running = status(dir);
    assert_eq!((&running["ready"], &running["state"]), (&json!(true), &json!("running")));
    assert_eq!(running["endpoint"], endpoint.as_str());

    let address = endpoint.strip_prefix("http://").unwrap().strip_suffix("/v1").unwrap().to_string();
    let mut stream = TcpStream::connect(&address).unwrap();
    let body =
        json!({ "model": "served", "prompt": "w", "max_tokens": 1000, "temperature": 0, "stream": true });
    let body = body.to_string();
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    read_head(&mut stream);
    read_chunk(&mut stream).unwrap();
    (worker, address, stream)
}

fn status(dir: &TempDir) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("run/status.json")).unwrap()).unwrap()
}

#[test]
fn a_signal_lets_running_requests_finish_and_ends_with_success() {
    let dir = TempDir::new();
    let (worker, address, mut stream) = serving_process(&dir, "60");
    worker.signal("TERM");
    let mut answer = Vec::new();
    while let Some(chunk) = read_chunk(&mut stream) {
        answer.extend(chunk);
    }
    assert!(answer.ends_with(b"data: [DONE]\n\n"));
    let ended = worker.end();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert_eq!((&status(&dir)["state"], &status(&dir)["ready"]), (&json!("stopping"), &json!(false)));
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn requests_that_take_longer_than_the_grace_are_cut() {
    let dir = TempDir::new();
    let (worker, _, mut stream) = serving_process(&dir, "0");
    worker.signal("TERM");
    let mut rest = Vec::new();
    // Cut in the middle of a chunk, or after an event that says so.
    let _ = stream.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
    assert_eq!(worker.end().code, Some(0));
}

#[test]
fn a_directory_without_a_model_or_a_taken_port_is_an_error_in_one_sentence() {
    let dir = TempDir::new();
    let empty = dir.join("empty");
    std::fs::create_dir_all(&empty).unwrap();
    let ended = Worker::spawn(&["serve", "--model", empty.to_str().unwrap()], &[]).end();
    assert_eq!(ended.code, Some(1));
    let expected = "holds no model: neither config.json and model.safetensors nor a checkpoint\n";
    assert!(ended.stderr.ends_with(expected), "{ended:?}");

    let server = Server::start(&[]);
    save_model(&loud_model(), &dir.join("loud"));
    let (model, port) = (dir.join("loud"), server.address.port().to_string());
    let ended = Worker::spawn(&["serve", "--model", model.to_str().unwrap(), "--port", &port], &[]).end();
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.starts_with(&format!("cannot listen at 127.0.0.1:{port}: Address")), "{ended:?}");
}

fn chat(fields: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "Rain in Rome?" }]);
    let mut body = json!({ "model": "loud", "messages": messages, "max_completion_tokens": 300 });
    fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    body
}

/// A function whose arguments are of bounded length: the model would never end them.
fn weather() -> Value {
    let parameters = json!({
        "type": "object", "required": ["city", "days"], "additionalProperties": false,
        "properties": { "city": { "type": "string", "maxLength": 12 }, "days": { "enum": [1, 3, 7] } },
    });
    json!({ "type": "function", "function": { "name": "weather", "parameters": parameters } })
}

fn check_weather(arguments: &str) {
    let arguments: Value =
        serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{arguments}: {error}"));
    assert!(arguments["city"].as_str().unwrap().chars().count() <= 12, "{arguments}");
    assert!([1, 3, 7].contains(&arguments["days"].as_u64().unwrap()), "{arguments}");
}

#[test]
fn structured_answers_are_what_was_asked_for_whole_and_in_streams_and_others_are_not_held_up() {
    let server = Server::start(&[]);
    let schema = weather()["function"]["parameters"].clone();
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "w", "strict": true, "schema": schema } });
    for seed in 0..6 {
        let mut body = chat(json!({ "response_format": format, "seed": seed, "n": 2, "logprobs": true }));
        let whole = server.post("/v1/chat/completions", body.clone()).json(200);
        let texts: Vec<&str> =
            (0..2).map(|i| whole["choices"][i]["message"]["content"].as_str().unwrap()).collect();
        texts.iter().for_each(|text| check_weather(text));
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        body["stream"] = true.into();
        let parts = server.post("/v1/chat/completions", body).parts();
        for (index, text) in texts.iter().enumerate() {
            let own = parts.iter().filter(|part| part["choices"][0]["index"] == index);
            let pieces = own.filter_map(|part| part["choices"][0]["delta"]["content"].as_str());
            assert_eq!(pieces.collect::<String>(), *text);
        }
    }
    let any =
        json!({ "response_format": { "type": "json_object" }, "temperature": 0, "max_completion_tokens": 8 });
    let any = server.post("/v1/chat/completions", chat(any)).json(200);
    assert!(any["choices"][0]["message"]["content"].as_str().unwrap().starts_with('{'), "{any}");
    let choice = json!({ "model": "loud", "prompt": "w", "max_tokens": 9, "guided_choice": ["rain", "sun"] });
    assert!(["rain", "sun"].contains(&server.text(choice).as_str()));

    let all = (0..1001).map(|i| (format!("property{i}"), json!({ "type": "integer" })));
    let large = json!({ "type": "object", "properties": all.collect::<serde_json::Map<_, _>>() });
    let refused = server.post("/v1/chat/completions", chat(json!({ "guided_json": large }))).json(400);
    assert_eq!(refused["error"]["param"], "guided_json");
    assert!(refused["error"]["message"].as_str().unwrap().contains("an object of 1001;"), "{refused}");
    let schema = json!({ "type": "object", "dependencies": { "a": ["b"] } });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "w", "schema": schema } });
    let refused = server.post("/v1/chat/completions", chat(json!({ "response_format": format }))).json(400);
    assert!(refused["error"]["message"].as_str().unwrap().contains("dependencies"), "{refused}");
}

#[test]
fn functions_are_called_whole_and_in_streams_and_their_results_are_taken_back() {
    let server = Server::start(&[]);
    let named = json!({ "type": "function", "function": { "name": "weather" } });
    for (choice, parallel) in [(json!("required"), true), (json!("required"), false), (named, true)] {
        let mut body = chat(json!({
            "tools": [weather()], "tool_choice": choice, "parallel_tool_calls": parallel, "seed": 3,
            "max_completion_tokens": 600,
        }));
        let whole = server.post("/v1/chat/completions", body.clone()).json(200);
        let (message, reason) = (&whole["choices"][0]["message"], &whole["choices"][0]["finish_reason"]);
        let calls = message["tool_calls"].as_array().unwrap();
        assert!(message["content"].is_null(), "{whole}");
        // The model may begin one more call than fits.
        assert!(reason == "tool_calls" || (parallel && reason == "length"), "{whole}");
        assert!(parallel || calls.len() == 1, "{whole}");
        for call in calls {
            assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("weather")));
            check_weather(call["function"]["arguments"].as_str().unwrap());
        }

        body["stream"] = true.into();
        let parts = server.post("/v1/chat/completions", body.clone()).parts();
        let pieces: Vec<&Value> = parts
            .iter()
            .map(|part| &part["choices"][0]["delta"]["tool_calls"][0])
            .filter(|it| !it.is_null())
            .collect();
        assert_eq!(pieces.len(), 2 * calls.len());
        for (number, (piece, call)) in pieces.chunks(2).zip(calls).enumerate() {
            assert!(piece.iter().all(|piece| piece["index"] == number), "{piece:?}");
            assert_eq!(piece[0]["function"], json!({ "name": "weather", "arguments": "" }));
            assert!(piece[0]["id"].as_str().unwrap().starts_with("call_"), "{piece:?}");
            assert_eq!(piece[1]["function"], json!({ "arguments": call["function"]["arguments"] }));
        }
        assert_eq!(&parts.last().unwrap()["choices"][0]["finish_reason"], reason);

        let result = json!({ "role": "tool", "tool_call_id": calls[0]["id"], "content": "no rain" });
        body["stream"] = false.into();
        body["tool_choice"] = "auto".into();
        body["max_completion_tokens"] = 8.into();
        body["messages"].as_array_mut().unwrap().extend([message.clone(), result]);
        let after = server.post("/v1/chat/completions", body).json(200);
        assert_eq!(after["choices"][0]["finish_reason"], "length");
        let used = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
        assert!(used(&whole) + 60 < used(&after), "{after}");
    }
}

/// Skipped aloud where Python or the package is not there: `AQUIFER_PYTHON` names another interpreter than `python3`.
#[test]
fn the_openai_client_is_served() {
    let Some(python) = support::python_with("openai") else { return };
    let server = Server::start(&[]);
    let client = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/client.py");
    let output = python().args([client, &format!("http://{}/v1", server.address)]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
