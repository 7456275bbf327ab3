//! What is read of a body, and that the engine's body is the client's but for what is edited.

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::Endpoint::{ChatCompletions, Completions, Embeddings};
use super::*;
use crate::error::ApiError;
use crate::json::SyntaxError;

fn read(endpoint: Endpoint, body: &str) -> Result<Request, Error> {
    parse(endpoint, body.as_bytes(), &Bounds::default())
}

fn chat(fields: &str) -> Result<Request, Error> {
    read(ChatCompletions, &format!(r#"{{"model":"chat","messages":[]{fields}}}"#))
}

#[rstest]
#[case::models("GET", "/v1/models", Ok(Route::Models))]
#[case::model("GET", "/v1/models/chat", Ok(Route::Model("chat".into())))]
#[case::model_of_a_namespace("GET", "/v1/models/acme/chat", Ok(Route::Model("acme/chat".into())))]
#[case::model_with_an_escaped_slash("GET", "/v1/models/acme%2Fchat", Ok(Route::Model("acme/chat".into())))]
#[case::chat("POST", "/v1/chat/completions", Ok(Route::Engine(ChatCompletions)))]
#[case::completions("POST", "/v1/completions", Ok(Route::Engine(Completions)))]
#[case::embeddings("POST", "/v1/embeddings", Ok(Route::Engine(Embeddings)))]
#[case::wrong_method("GET", "/v1/completions", Err(ApiError::MethodNotAllowed { allowed: "POST" }))]
#[case::models_are_not_posted("POST", "/v1/models", Err(ApiError::MethodNotAllowed { allowed: "GET" }))]
#[case::unknown("POST", "/v1/images", Err(ApiError::UnknownPath))]
#[case::unknown_for_any_method("DELETE", "/", Err(ApiError::UnknownPath))]
#[case::slash_at_the_end("GET", "/v1/models/", Err(ApiError::UnknownPath))]
fn routes(#[case] method: &str, #[case] path: &str, #[case] expected: Result<Route<'static>, ApiError>) {
    assert_eq!(route(method, path), expected);
}

#[rstest]
#[case::none(None, true)]
#[case::json(Some("application/json"), true)]
#[case::with_a_parameter(Some("Application/JSON; charset=utf-8"), true)]
#[case::form(Some("application/x-www-form-urlencoded"), false)]
#[case::longer(Some("application/json-patch"), false)]
#[case::empty(Some(""), false)]
fn content_types(#[case] content_type: Option<&str>, #[case] good: bool) {
    assert_eq!(check_content_type(content_type), if good { Ok(()) } else { Err(ApiError::UnsupportedMediaType) });
}

#[test]
fn what_is_known_of_a_chat() {
    let body = json!({
        "model": "acme/chat",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "Whé\n"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ]},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]},
        ],
        "tools": [{"type": "function"}],
        "stream": true,
        "max_tokens": 7,
        "max_completion_tokens": 9,
        "n": 2,
        "temperature": 0.5,
    })
    .to_string();
    let request = read(ChatCompletions, &body).expect("a request");
    assert_eq!((request.endpoint(), request.model()), (ChatCompletions, "acme/chat"));
    assert_eq!((request.stream(), request.wants_usage()), (true, false));
    assert_eq!((request.max_completion_tokens(), request.choices()), (Some(9), 2));
    let text_bytes =
        ["Be brief.", "Whé\n", r#"[{"id":"1"}]"#, r#"[{"type":"function"}]"#].map(str::len).iter().sum::<usize>();
    let size = PromptSize { text_bytes: text_bytes as u64, messages: 3, media: 1, token_ids: 0 };
    assert_eq!(request.prompt_size(), size);
    assert_eq!(size.estimated_tokens(), (text_bytes as u64).div_ceil(4) + 3 * 4 + 1_024);
    let prefix: Vec<u8> = request.prefix(body.as_bytes()).flatten().copied().collect();
    // Members are sorted by this writer: `content` is before `role`.
    let parts = [
        r#"[{"type":"function"}]"#,
        "Be brief.",
        "system",
        r"Whé\n",
        r#"{"url":"data:image/png;base64,AAAA"}"#,
        "user",
        "assistant",
        r#"[{"id":"1"}]"#,
    ];
    assert_eq!(String::from_utf8(prefix).expect("UTF-8"), parts.join("\0"));
}

#[rstest]
#[case::text(Completions, r#"{"model":"m","prompt":"four"}"#, (4, 0), 1, "four")]
#[case::texts(Completions, r#"{"model":"m","prompt":["ab","c"],"n":3}"#, (3, 0), 6, "ab\0c")]
#[case::ids(Completions, r#"{"model":"m","prompt":[1, 22,3]}"#, (0, 3), 1, "[1, 22,3]")]
#[case::more_ids(Completions, r#"{"model":"m","prompt":[[1,2],[3]]}"#, (0, 3), 2, "[1,2]\0[3]")]
#[case::nothing(Completions, r#"{"model":"m"}"#, (0, 0), 1, "")]
#[case::null(Completions, r#"{"model":"m","prompt":null}"#, (0, 0), 1, "")]
#[case::input(Embeddings, r#"{"model":"m","input":["ab","c"],"n":9,"stream":true}"#, (3, 0), 0, "ab\0c")]
#[case::input_of_ids(Embeddings, r#"{"input":[7],"model":"m"}"#, (0, 1), 0, "[7]")]
fn prompts_that_are_no_chat(
    #[case] endpoint: Endpoint,
    #[case] body: &str,
    #[case] (text_bytes, token_ids): (u64, u64),
    #[case] choices: u32,
    #[case] prefix: &str,
) {
    let request = read(endpoint, body).expect("a request");
    assert_eq!(request.prompt_size(), PromptSize { text_bytes, token_ids, ..PromptSize::default() });
    assert_eq!((request.choices(), request.stream()), (choices, false));
    assert_eq!(request.prefix(body.as_bytes()).collect::<Vec<_>>().concat(), prefix.as_bytes());
}

#[rstest]
#[case::no_object("[]", Error::NotAnObject)]
#[case::no_model(r#"{"messages":[]}"#, Error::Missing { field: Field::Model })]
#[case::no_messages(r#"{"model":"m"}"#, Error::Missing { field: Field::Messages })]
#[case::two_models(r#"{"model":"m","messages":[],"model":"m"}"#, Error::Duplicate { field: Field::Model })]
#[case::two_models_one_escaped(r#"{"model":"m","\u006dodel":"n"}"#, Error::Duplicate { field: Field::Model })]
#[case::two_streams(r#"{"stream":true,"stream":false}"#, Error::Duplicate { field: Field::Stream })]
#[case::two_usages(
    r#"{"stream_options":{"include_usage":true,"include_usage":false}}"#,
    Error::Duplicate { field: Field::IncludeUsage }
)]
#[case::model_of_null(r#"{"model":null}"#, Error::Invalid { field: Field::Model, expected: "the name of a model, as GET /v1/models lists them" })]
#[case::stream_of_one(r#"{"stream":1}"#, Error::Invalid { field: Field::Stream, expected: "true or false" })]
#[case::options_of_text(r#"{"stream_options":"x"}"#, Error::Invalid { field: Field::StreamOptions, expected: "an object" })]
#[case::usage_of_text(r#"{"stream_options":{"include_usage":"true"}}"#, Error::Invalid { field: Field::IncludeUsage, expected: "true or false" })]
#[case::messages_of_text(r#"{"messages":"hi"}"#, Error::Invalid { field: Field::Messages, expected: "an array of messages" })]
#[case::message_of_text(r#"{"messages":["hi"]}"#, Error::Invalid { field: Field::Messages, expected: "an array of messages, each an object" })]
#[case::no_choices(r#"{"n":0}"#, Error::Invalid { field: Field::N, expected: "a whole number from 1 to 128" })]
#[case::too_many_choices(r#"{"n":129}"#, Error::Invalid { field: Field::N, expected: "a whole number from 1 to 128" })]
#[case::bad_json(
    r#"{"messages":[}"#,
    Error::NotJson { field: Some(Field::Messages), source: SyntaxError { at: 13, problem: crate::json::Problem::UnexpectedByte } }
)]
fn bodies_that_are_refused(#[case] body: &str, #[case] error: Error) {
    assert_eq!(read(ChatCompletions, body), Err(error));
}

#[rstest]
#[case("-1")]
#[case("1.0")]
#[case("1e3")]
#[case("4294967296")]
#[case("\"5\"")]
#[case("true")]
fn tokens_are_whole_numbers(#[case] value: &str) {
    for field in [Field::MaxTokens, Field::MaxCompletionTokens] {
        let error = chat(&format!(r#","{field}":{value}"#)).expect_err("no number of tokens");
        assert_eq!(error.field(), Some(field));
    }
    assert_eq!(chat(r#","max_tokens":null"#).map(|request| request.max_completion_tokens()), Ok(None));
}

#[test]
fn bounds_hold() {
    let bounds = Bounds { bytes: 100, depth: 4, messages: 2, parts: 3 };
    let read = |endpoint, body: &str| parse(endpoint, body.as_bytes(), &bounds).map(drop);
    assert_eq!(read(ChatCompletions, &" ".repeat(101)), Err(Error::TooLarge { limit: 100 }));
    let too_many = |field, limit| Err(Error::TooMany { field, limit });
    assert_eq!(read(ChatCompletions, r#"{"model":"m","messages":[{},{}]}"#), Ok(()));
    assert_eq!(read(ChatCompletions, r#"{"model":"m","messages":[{},{},{}]}"#), too_many(Field::Messages, 2));
    assert_eq!(
        read(ChatCompletions, r#"{"messages":[{"content":["a","b"]},{"content":["c","d"]}]}"#),
        too_many(Field::Messages, 3)
    );
    assert_eq!(read(Completions, r#"{"prompt":["a","b","c","d"]}"#), too_many(Field::Prompt, 3));
    assert_eq!(read(Completions, r#"{"prompt":[1,2,3,4],"model":"m"}"#), Ok(()));
    let deep = read(ChatCompletions, r#"{"model":"m","messages":[],"x":[[[[1]]]]}"#);
    assert!(matches!(deep, Err(Error::NotJson { field: None, .. })));
    let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(MODEL_BYTES_MAX + 1));
    let error = parse(Embeddings, long.as_bytes(), &Bounds::default()).expect_err("too long a name");
    assert_eq!(error.field(), Some(Field::Model));
}

#[rstest]
#[case::not_a_stream(r#"{"model": "chat","messages":[]}"#, r#"{"model": "llama","messages":[]}"#)]
#[case::options_without_a_stream(
    r#"{"model":"chat","messages":[],"stream_options":{}}"#,
    r#"{"model":"llama","messages":[],"stream_options":{}}"#
)]
#[case::no_options(
    r#"{"stream":true, "model" : "chat" ,"messages":[]}"#,
    r#"{"stream":true, "model" : "llama","stream_options":{"include_usage":true} ,"messages":[]}"#
)]
#[case::options_of_null(
    r#"{"model":"chat","messages":[],"stream":true,"stream_options": null}"#,
    r#"{"model":"llama","messages":[],"stream":true,"stream_options": {"include_usage":true}}"#
)]
#[case::empty_options(
    r#"{"stream_options":{ },"model":"chat","messages":[],"stream":true}"#,
    r#"{"stream_options":{"include_usage":true },"model":"llama","messages":[],"stream":true}"#
)]
#[case::other_options(
    r#"{"stream_options":{"a":[1]},"model":"chat","messages":[],"stream":true}"#,
    r#"{"stream_options":{"include_usage":true,"a":[1]},"model":"llama","messages":[],"stream":true}"#
)]
#[case::usage_is_off(
    r#"{"stream_options":{"include_usage" : false},"model":"chat","messages":[],"stream":true}"#,
    r#"{"stream_options":{"include_usage" : true},"model":"llama","messages":[],"stream":true}"#
)]
#[case::usage_of_null(
    r#"{"stream_options":{"include_usage": null},"model":"chat","messages":[],"stream":true}"#,
    r#"{"stream_options":{"include_usage": true},"model":"llama","messages":[],"stream":true}"#
)]
#[case::usage_is_on(
    r#"{"stream_options":{"include_usage":true},"model":"ch\u0061t","messages":[],"stream":true}"#,
    r#"{"stream_options":{"include_usage":true},"model":"llama","messages":[],"stream":true}"#
)]
fn the_engines_body(#[case] body: &str, #[case] upstream: &str) {
    let request = read(ChatCompletions, body).expect("a request");
    assert_eq!(request.model(), "chat");
    assert_eq!(String::from_utf8(request.upstream_body(body.as_bytes(), "llama")).expect("UTF-8"), upstream);
    assert_eq!(request.wants_usage(), upstream.contains(r#"{"include_usage":true}"#) && body.contains("true},"));
}

/// A request, an error, and what is kept of both show nothing of a prompt, wherever a body breaks.
#[test]
fn prompts_are_not_shown() {
    let body = json!({
        "model": "chat",
        "messages": [{"role": "user", "content": "SECRET"}, {"role": "user", "content": [{"type": "text", "text": "SECRET"}]}],
        "tools": [{"SECRET": "SECRET"}],
        "SECRET": {"SECRET": ["SECRET"]},
        "stream_options": {"SECRET": 1},
    })
    .to_string();
    let shown = |body: &[u8]| match parse(ChatCompletions, body, &Bounds::default()) {
        Ok(request) => format!("{request:?}{:?}", request.edits("llama")),
        Err(error) => format!("{error:?}{error}{}", ApiError::from(error).body()),
    };
    assert!(!shown(body.as_bytes()).contains("SECRET"));
    for at in 0..body.len() {
        for broken in ["", "\u{1}", "\"", "}", "{", "\\ud800", "x"] {
            let text = format!("{}{broken}{}", &body[..at], &body[at + 1..]);
            assert!(!shown(text.as_bytes()).contains("SECRET"), "{text}");
        }
        assert!(!shown(&body.as_bytes()[..at]).contains("SECRET"));
    }
}

/// A conversation that goes on begins as it did.
#[test]
fn prefixes_grow_at_their_end() {
    let prefix = |messages: Value| {
        let body = json!({"model": "chat", "messages": messages}).to_string();
        let request = read(ChatCompletions, &body).expect("a request");
        request.prefix(body.as_bytes()).collect::<Vec<_>>().concat()
    };
    let first = prefix(json!([{"role": "user", "content": "a"}]));
    let second = prefix(json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]));
    assert!(second.starts_with(&first) && second.len() > first.len());
    assert_ne!(
        prefix(json!([{"role": "user", "content": "ab"}])),
        prefix(json!([{"role": "user", "content": ["a", "b"]}]))
    );
}

/// A body as a client may write it: fields in any order, in any spelling, with spaces, and others that we do not know.
#[derive(Clone, Debug)]
struct Written {
    /// Name, value, and how the name is spelt.
    members: Vec<(String, Value, bool)>,
    pretty: bool,
}

impl Written {
    fn text(&self) -> String {
        let members: Vec<String> = self
            .members
            .iter()
            .map(|(name, value, escaped)| {
                let name = if *escaped {
                    let units: String = name.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
                    format!("\"{units}\"")
                } else {
                    Value::from(name.as_str()).to_string()
                };
                let (value, space) = if self.pretty {
                    (serde_json::to_string_pretty(value).expect("JSON"), "\n\t ")
                } else {
                    (value.to_string(), "")
                };
                format!("{space}{name}{space}:{space}{value}{space}")
            })
            .collect();
        format!("{{{}}}", members.join(","))
    }
}

fn written(endpoint: Endpoint) -> impl Strategy<Value = Written> {
    let other = crate::json::tests::value;
    let model = "[a-z]{1,8}(/[a-z]{1,8})?|\\PC{1,9}".prop_map(Value::from);
    let stream = prop::sample::select(vec![json!(true), json!(true), json!(false), json!(null)]);
    let usage = prop::sample::select(vec![None, Some(json!(true)), Some(json!(false)), Some(json!(null))]);
    let options = prop_oneof![
        Just(json!(null)),
        (usage, prop::collection::btree_map("[a-z]{1,4}", other(), 0..3)).prop_map(|(usage, others)| {
            let mut options: serde_json::Map<String, Value> = others.into_iter().collect();
            options.extend(usage.map(|usage| ("include_usage".to_owned(), usage)));
            Value::Object(options)
        }),
    ];
    let content = prop_oneof![
        any::<String>().prop_map(Value::from),
        prop::collection::vec(
            prop_oneof![any::<String>().prop_map(|text| json!({"type": "text", "text": text})), other()],
            0..4
        )
        .prop_map(Value::from),
        other(),
    ];
    let message = ("[a-z]{1,6}", content, other())
        .prop_map(|(role, content, other)| json!({"role": role, "content": content, "tool_calls": other, "name": "x"}));
    let messages = prop::collection::vec(message, 0..5).prop_map(Value::from);
    let tokens = prop_oneof![Just(json!(null)), (0_u32..10_000).prop_map(Value::from)];
    let extra = prop::collection::btree_map("[A-Z][a-zA-Z]{0,5}", other(), 0..4);
    let fields = (
        model,
        messages,
        prop::option::of(stream),
        prop::option::of(options),
        prop::option::of(tokens),
        prop::option::of(other()),
        extra,
    );
    (fields, any::<bool>(), any::<u64>(), any::<u16>()).prop_map(move |(fields, pretty, order, escaped)| {
        let (model, messages, stream, options, tokens, prompt, extra) = fields;
        let mut members = vec![("model".to_owned(), model), ("messages".to_owned(), messages)];
        members.extend(stream.map(|stream| ("stream".to_owned(), stream)));
        members.extend(options.map(|options| ("stream_options".to_owned(), options)));
        members.extend(tokens.map(|tokens| ("max_tokens".to_owned(), tokens)));
        let prompt_field = if endpoint == Embeddings { "input" } else { "prompt" };
        members.extend(prompt.map(|prompt| (prompt_field.to_owned(), prompt)));
        members.extend(extra);
        // Some order, the same for the same number.
        members.sort_by_key(|(name, _)| {
            name.bytes().fold(order, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
        });
        let members = members
            .into_iter()
            .enumerate()
            .map(|(index, (name, value))| (name, value, escaped & (1 << (index % 16)) != 0))
            .collect();
        Written { members, pretty }
    })
}

fn any_written() -> impl Strategy<Value = (Endpoint, Written)> {
    prop::sample::select(Endpoint::ALL.to_vec()).prop_flat_map(|endpoint| (Just(endpoint), written(endpoint)))
}

proptest! {
    /// The engine's body is, as another parser reads it, the client's with the engine's name and with usage asked for; and every byte outside
    /// the edits is the client's, in its place.
    #[test]
    fn only_what_is_edited_changes((endpoint, written) in any_written(), name in any::<String>()) {
        let body = written.text();
        let request = read(endpoint, &body).expect("a request");
        let upstream = request.upstream_body(body.as_bytes(), &name);

        let mut expected: serde_json::Map<String, Value> = serde_json::from_str(&body).expect("JSON");
        prop_assert_eq!(request.model(), expected["model"].as_str().expect("a name"));
        let streams = endpoint != Embeddings && expected.get("stream") == Some(&json!(true));
        prop_assert_eq!(request.stream(), streams);
        expected["model"] = Value::from(name.as_str());
        if streams {
            let options = expected.entry("stream_options").or_insert(json!({}));
            if options.is_null() {
                *options = json!({});
            }
            prop_assert_eq!(request.wants_usage(), options.get("include_usage") == Some(&json!(true)));
            options["include_usage"] = json!(true);
        }
        prop_assert_eq!(serde_json::from_slice::<Value>(&upstream).expect("JSON"), Value::Object(expected));

        let edits = request.edits(&name);
        let (mut client, mut engine) = (0, 0);
        for edit in &edits {
            let kept = edit.range.start - client;
            prop_assert_eq!(&body.as_bytes()[client..edit.range.start], &upstream[engine..engine + kept]);
            engine += kept + edit.text.len();
            client = edit.range.end;
        }
        prop_assert_eq!(&body.as_bytes()[client..], &upstream[engine..]);
        prop_assert!(edits.len() <= 2);
    }

    /// The size of a conversation is what another parser finds in it.
    #[test]
    fn sizes_are_those_of_the_text(written in written(ChatCompletions)) {
        let body = written.text();
        let size = read(ChatCompletions, &body).expect("a request").prompt_size();
        let value: Value = serde_json::from_str(&body).expect("JSON");
        let messages = value["messages"].as_array().expect("messages");
        let texts = messages.iter().map(|message| match &message["content"] {
            Value::String(text) => text.len(),
            Value::Array(parts) => parts
                .iter()
                .map(|part| part.as_str().or_else(|| part["text"].as_str()).unwrap_or_default().len())
                .sum(),
            _ => 0,
        });
        prop_assert_eq!(size.messages as usize, messages.len());
        let calls = messages.iter().any(|message| message["tool_calls"].is_array());
        let text_bytes = texts.sum::<usize>() as u64;
        prop_assert_eq!(size.text_bytes > text_bytes, calls);
        prop_assert!(size.text_bytes >= text_bytes);
    }

    /// The entry of the fuzzer holds for bodies, and for bodies with a byte changed.
    #[test]
    fn fuzzed((endpoint, written) in any_written(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let choice = Endpoint::ALL.iter().position(|other| *other == endpoint).expect("one of all") as u8;
        let mut input = [vec![choice], written.text().into_bytes()].concat();
        fuzz_request(&input);
        let at = at.index(input.len() - 1) + 1;
        input[at] = byte;
        fuzz_request(&input);
    }
}
