use super::*;

fn parse_json(interface: Interface, body: Value) -> Result<Call, ApiError> {
    let tokenizer = Tokenizer::bytes();
    let served = Served { name: "m", tokenizer: &tokenizer, window: 100, capacity: 80 };
    parse(interface, body.to_string().as_bytes(), served, 7, None)
}

fn refusal(interface: Interface, body: Value) -> (u16, String, Option<String>) {
    let error = parse_json(interface, body).unwrap_err();
    (error.status.as_u16(), error.message, error.param)
}

fn with(interface: Interface, field: &str, value: Value) -> Value {
    let mut body = match interface {
        Interface::Completions => json!({ "model": "m", "prompt": "p" }),
        Interface::Chat => json!({ "model": "m", "messages": [{ "role": "user", "content": "p" }] }),
    };
    body[field] = value;
    body
}

#[test]
fn a_conversation_becomes_lines_of_role_and_content() {
    let messages = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": [{ "type": "text", "text": "Hi" }, { "type": "text", "text": "!" }] },
    ]);
    let call = parse_json(Interface::Chat, json!({ "model": "m", "messages": messages })).unwrap();
    let expected = "system: Be brief.\nuser: Hi!\nassistant:";
    let request = &call.requests[0];
    assert_eq!(request.prompt, Tokenizer::bytes().encode(expected, true));
    assert_eq!(request.max_tokens, 80 - request.prompt.len());
    assert_eq!(request.sampling, Sampling { temperature: 1.0, seed: 7, ..Sampling::default() });
}

#[test]
fn every_field_that_cannot_be_is_named() {
    for (field, value, message) in [
        ("n", json!(0), "n is 0; it is a whole number, 1 to 128"),
        ("best_of", json!(2), "best_of is not supported"),
        ("temperature", json!(3), "temperature is 3; it is 0 to 2"),
        ("temperature", json!("hot"), "temperature is \"hot\"; it is 0 to 2"),
        ("top_p", json!(0), "top_p is 0; it is above 0 and at most 1"),
        ("top_k", json!(-2), "top_k is -2; it is a whole number, 0 to 4294967295"),
        ("min_p", json!(1.5), "min_p is 1.5; it is 0 to 1"),
        ("repetition_penalty", json!(0), "repetition_penalty is 0; it is above 0 and at most 10"),
        ("presence_penalty", json!(-3), "presence_penalty is -3; it is -2 to 2"),
        ("frequency_penalty", json!([]), "frequency_penalty is []; it is -2 to 2"),
        ("logprobs", json!(21), "logprobs is 21; it is a whole number, 0 to 20"),
        ("timeout", json!(0), "timeout is 0; it is above 0 and at most 86400"),
        ("max_tokens", json!(0), "max_tokens is 0; it is a whole number above 0"),
        (
            "max_tokens",
            json!(99),
            "max_tokens is 99 and the prompt has 2 tokens; the memory for keys and values has room for 80",
        ),
        ("seed", json!(1.5), "seed is 1.5; it is a whole number"),
        ("stop", json!([1]), "stop is not a string, or a list of at most 16"),
        ("stop_token_ids", json!([258]), "stop_token_ids is not a list of at most 16 tokens, 0 to 257"),
        ("stream", json!(1), "stream is 1; it is true or false"),
        ("stream_options", json!({}), "stream_options needs stream to be true"),
        ("prompt", json!(["a", 1]), "prompt is not a string, tokens, or a list of either"),
        ("prompt", json!([999]), "prompt has a token that is not 0 to 257, or has none"),
        (
            "logit_bias",
            json!({ "258": 2 }),
            "logit_bias is not from tokens, 0 to 257, to numbers, -100 to 100",
        ),
        ("guided_regex", json!("a*"), "guided_regex is not supported"),
        ("tools", json!([{}]), "tools is not supported"),
        ("top_logprobs", json!(1), "top_logprobs is not supported"),
    ] {
        let error = refusal(Interface::Completions, with(Interface::Completions, field, value));
        assert_eq!(error, (400, message.into(), Some(field.into())));
    }
    let long = refusal(Interface::Completions, with(Interface::Completions, "prompt", json!("x".repeat(80))));
    assert_eq!(
        long.1,
        "the prompt has 81 tokens; the memory for keys and values has room for 80, answer included"
    );
    let top = refusal(Interface::Chat, with(Interface::Chat, "top_logprobs", json!(2)));
    assert_eq!(top.1, "top_logprobs needs logprobs to be true");
}

#[test]
fn what_tells_about_the_client_or_asks_for_nothing_is_passed_over() {
    for (field, value) in [
        ("user", json!("ada")),
        ("metadata", json!({ "a": "b" })),
        ("store", json!(false)),
        ("tools", json!([])),
        ("response_format", json!({ "type": "text" })),
        ("best_of", json!(1)),
        ("stop", Value::Null),
        ("top_k", json!(-1)),
    ] {
        let call = parse_json(Interface::Chat, with(Interface::Chat, field, value)).unwrap();
        assert_eq!(call.requests.len(), 1, "{field}");
    }
}

#[test]
fn prompts_and_answers_multiply_and_each_answer_has_its_own_seed() {
    let mut body = with(Interface::Completions, "prompt", json!(["a", [98, 99], "d"]));
    (body["n"], body["echo"], body["seed"]) = (json!(2), json!(true), json!(5));
    let call = parse_json(Interface::Completions, body.clone()).unwrap();
    assert_eq!(call.echo.unwrap(), ["a", "bc", "d"]);
    let prompts: Vec<_> = call.requests.iter().map(|request| request.prompt.len()).collect();
    assert_eq!(prompts, [2, 2, 2, 2, 2, 2]);
    let seeds: Vec<_> = call.requests.iter().map(|request| request.sampling.seed).collect();
    assert!(seeds[0] == 5 && seeds[1] != 5 && seeds[..2] == seeds[2..4]);
    body["n"] = json!(43);
    assert!(refusal(Interface::Completions, body).1.starts_with("n is 43 for 3 prompts; at most 128"));
}

#[test]
fn a_model_that_is_not_served_is_not_found() {
    let error = parse_json(Interface::Completions, json!({ "model": "gpt" })).unwrap_err();
    assert_eq!((error.status.as_u16(), error.code), (404, Some("model_not_found")));
}

#[test]
fn a_message_that_cannot_be_is_named_with_its_place() {
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "" }, { "role": "tool" }] });
    let (_, message, param) = refusal(Interface::Chat, body);
    assert_eq!(message, "messages[1].role is not system, developer, user or assistant");
    assert_eq!(param.unwrap(), "messages[1].role");
}
