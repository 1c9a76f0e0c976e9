use super::*;

fn parse_json(interface: Interface, body: Value) -> Result<Call, ApiError> {
    let tokenizer = Tokenizer::bytes();
    let grammars = Grammars::new(tokenizer.clone());
    let served = Served { name: "m", tokenizer: &tokenizer, grammars: &grammars, window: 100, capacity: 80 };
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
        ("guided_regex", json!("a("), "guided_regex: "),
        ("guided_choice", json!([]), "guided_choice is not a list of strings"),
        ("guided_json", json!("x"), "guided_json is no JSON schema"),
        ("tools", json!([{}]), "tools is not supported"),
        ("top_logprobs", json!(1), "top_logprobs is not supported"),
    ] {
        let error = refusal(Interface::Completions, with(Interface::Completions, field, value));
        let (status, said, param) = error;
        // What the compiler of grammars says is its own.
        let said =
            said.get(..message.len()).filter(|_| message.ends_with(": ")).map(String::from).unwrap_or(said);
        assert_eq!((status, said.as_str(), param.as_deref()), (400, message, Some(field)));
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
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "" }, { "role": "robot" }] });
    let (_, message, param) = refusal(Interface::Chat, body);
    assert_eq!(message, "messages[1].role is not system, developer, user, assistant or tool");
    assert_eq!(param.unwrap(), "messages[1].role");
}

fn weather() -> Value {
    let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
    json!({ "type": "function", "function": { "name": "weather", "parameters": parameters } })
}

#[test]
fn what_is_wrong_about_the_form_of_an_answer_is_named() {
    let schema =
        |schema: Value| json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": schema } });
    let two = json!([weather(), weather()]);
    for (fields, field, message) in [
        (
            json!({ "response_format": { "type": "xml" } }),
            "response_format",
            "response_format.type is not text,",
        ),
        (
            json!({ "response_format": schema(json!([])) }),
            "response_format",
            "response_format.json_schema.schema is",
        ),
        (
            json!({ "response_format": schema(json!({ "type": "string", "minLength": 9, "maxLength": 2 })) }),
            "response_format",
            "response_format: ",
        ),
        (
            json!({ "response_format": { "type": "json_object" }, "guided_regex": "a" }),
            "guided_regex",
            "guided_regex and response_format exclude each other",
        ),
        (
            json!({ "response_format": { "type": "json_object" }, "tools": [weather()] }),
            "response_format",
            "response_format and tools exclude each other, unless tool_choice is none",
        ),
        (json!({ "tools": {} }), "tools", "tools is not a list"),
        (json!({ "tools": [{}] }), "tools[0].type", "tools[0].type is not function"),
        (
            json!({ "tools": two }),
            "tools[1].function.name",
            "tools[1].function.name is \"weather\", as of another",
        ),
        (
            json!({ "tool_choice": "required" }),
            "tool_choice",
            "tool_choice asks for a call, and there are no tools",
        ),
        (
            json!({ "tools": [weather()], "tool_choice": { "type": "function", "function": { "name": "time" } } }),
            "tool_choice",
            "tool_choice names \"time\", which is none of tools",
        ),
        (
            json!({ "tools": [weather()], "parallel_tool_calls": 1 }),
            "parallel_tool_calls",
            "parallel_tool_calls is 1;",
        ),
        (
            json!({ "messages": [{ "role": "tool", "content": "x" }] }),
            "messages[0].tool_call_id",
            "messages[0].tool_call_id is not a string",
        ),
        (
            json!({ "messages": [{
                "role": "assistant", "tool_calls": [{ "id": "1", "function": { "name": "f", "arguments": "{" } }],
            }] }),
            "messages[0].tool_calls[0].function.arguments",
            "messages[0].tool_calls[0].function.arguments is not a string with a JSON object",
        ),
    ] {
        let mut body = with(Interface::Chat, "temperature", json!(0));
        fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        let (status, said, param) = refusal(Interface::Chat, body);
        assert_eq!((status, param.as_deref()), (400, Some(field)), "{said}");
        assert!(said.starts_with(message), "{said}");
    }
}

#[test]
fn tools_and_calls_of_them_are_part_of_the_conversation_unless_none_is_to_be_called() {
    let call = json!({
        "id": "c1", "type": "function", "function": { "name": "weather", "arguments": "{\"city\":\"Rome\"}" },
    });
    let messages = json!([
        { "role": "user", "content": "Rain?" }, { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "c1", "content": "no" },
    ]);
    let tokenizer = Tokenizer::bytes();
    let prompt = |choice: &str| {
        let body = json!({ "model": "m", "messages": messages, "tools": [weather()], "tool_choice": choice });
        let grammars = Grammars::new(tokenizer.clone());
        let served =
            Served { name: "m", tokenizer: &tokenizer, grammars: &grammars, window: 999, capacity: 999 };
        let call = parse(Interface::Chat, body.to_string().as_bytes(), served, 7, None).unwrap();
        let bytes: Vec<u8> = call.requests[0].prompt[1..].iter().map(|token| *token as u8).collect();
        let constrained = call.requests[0].constraint.is_some();
        (String::from_utf8(bytes).unwrap(), call.offer.is_some(), constrained)
    };
    let said = "user: Rain?\nassistant: <tool_call>{\"name\":\"weather\",\"arguments\":{\"city\":\"Rome\"}}</tool_call>\n\
        tool: no\nassistant:";
    assert_eq!(prompt("none"), (said.to_string(), false, false));
    let with_tools = format!("tools: {}\n{said}", json!([weather()]));
    assert_eq!(prompt("auto"), (with_tools.clone(), true, false));
    assert_eq!(prompt("required"), (with_tools, true, true));
}
