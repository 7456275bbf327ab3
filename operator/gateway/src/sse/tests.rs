//! What events are, and that neither the cuts of a stream nor its line ends change what comes out.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

const USAGE_CHUNK: &str = r#"{"id":"c","choices":[],"usage":{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}"#;
const USAGE: TokenUsage = TokenUsage { prompt: 9, completion: 3, cached: 4 };

/// What comes of `chunks`: bytes, events without line feeds that came late, and the outcome.
fn run(wants_usage: bool, limit: usize, chunks: &[&[u8]]) -> (Vec<u8>, Vec<Event>, Result<(), Error>, Tally) {
    let mut stream = EventStream::new(wants_usage, limit);
    let (mut bytes, mut events) = (Vec::new(), Vec::new());
    let mut outcome = Ok(());
    for chunk in chunks {
        outcome = stream.push(chunk, |piece| {
            bytes.extend_from_slice(piece.bytes);
            events.extend((piece.event != Event::LineFeed).then_some(piece.event));
        });
    }
    let tally = stream.finish(|piece| {
        bytes.extend_from_slice(piece.bytes);
        events.push(piece.event);
    });
    (bytes, events, outcome, tally)
}

fn delta(tokens: u32) -> Event {
    Event::Delta { tokens, finished: 0, usage: None }
}

#[rstest]
#[case::done("[DONE]", Event::Done)]
#[case::role(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#, delta(0))]
#[case::content(r#"{"choices":[{"index":0,"delta":{"content":"Hi"}}]}"#, delta(1))]
#[case::name_with_escapes(r#"{"\u0063hoices":[{"delta":{"con\u0074ent":"Hi"}}]}"#, delta(1))]
#[case::content_of_null(r#"{"choices":[{"delta":{"content":null}}]}"#, delta(0))]
#[case::reasoning(r#"{"choices":[{"delta":{"reasoning_content":"Hm"}}]}"#, delta(1))]
#[case::tool_call(r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{"}}]}}]}"#, delta(1))]
#[case::large_tool_call(r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"call_with_a_long_id","type":"function","function":{"name":"look_up","arguments":"{\"where\": \"in the atlas\"}"}}]}}]}"#, delta(2))]
#[case::no_tool_call(r#"{"choices":[{"delta":{"tool_calls":[]}}]}"#, delta(0))]
#[case::content_and_call(r#"{"choices":[{"delta":{"content":"a","tool_calls":[{"index":0}]}}]}"#, delta(1))]
#[case::two_choices(r#"{"choices":[{"delta":{"content":"a"}},{"delta":{"content":"b"}}]}"#, delta(2))]
#[case::completion(r#"{"choices":[{"text":" once","logprobs":null}]}"#, delta(1))]
#[case::end(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, Event::Delta { tokens: 0, finished: 1, usage: None })]
#[case::several_at_once(
    r#"{"choices":[{"delta":{"content":"a piece of forty-eight bytes, which is no token."}}]}"#,
    delta(3)
)]
#[case::usage(USAGE_CHUNK, Event::Usage(USAGE))]
#[case::usage_of_null(r#"{"choices":[{"text":"a"}],"usage":null}"#, delta(1))]
#[case::usage_with_choices(
    r#"{"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":2,"completion_tokens":1}}"#,
    Event::Delta { tokens: 1, finished: 0, usage: Some(TokenUsage { prompt: 2, completion: 1, cached: 0 }) }
)]
#[case::details_of_null(
    r#"{"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":1,"prompt_tokens_details":null}}"#,
    Event::Usage(TokenUsage { prompt: 2, completion: 1, cached: 0 })
)]
#[case::more_cached_than_there_is(
    r#"{"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":0,"prompt_tokens_details":{"cached_tokens":3}}}"#,
    Event::Usage(TokenUsage { prompt: 2, completion: 0, cached: 2 })
)]
#[case::usage_that_is_not_whole(r#"{"choices":[],"usage":{"prompt_tokens":2}}"#, Event::Other)]
#[case::usage_that_is_no_number(r#"{"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":7.0}}"#, Event::Other)]
#[case::no_choices_and_no_usage(r#"{"choices":[],"prompt_filter_results":[]}"#, Event::Other)]
#[case::usage_alone(r#"{"usage":{"prompt_tokens":2}}"#, Event::Other)]
#[case::error(r#"{"error":{"message":"out of memory","code":500}}"#, Event::Failure)]
#[case::error_of_null(r#"{"error":null,"choices":[{"text":"a"}]}"#, delta(1))]
#[case::no_json("hello", Event::Other)]
#[case::half_json(r#"{"choices":[{"text":"a"}"#, Event::Other)]
fn data_is_told_apart(#[case] data: &str, #[case] event: Event) {
    let stream = format!("data: {data}\n\n");
    assert_eq!(
        run(true, 1024, &[stream.as_bytes()]),
        (stream.clone().into_bytes(), vec![event], Ok(()), {
            let mut counted = EventStream::new(true, 0);
            counted.count(event);
            if data.contains("stop") {
                counted.tally.reasons.add("stop");
            }
            counted.tally()
        })
    );
}

#[rstest]
#[case::lf("data: [DONE]\n\n")]
#[case::cr("data: [DONE]\r\r")]
#[case::crlf("data: [DONE]\r\n\r\n")]
#[case::mixed("data: [DONE]\r\n\n")]
#[case::no_space("data:[DONE]\n\n")]
#[case::byte_order_mark("\u{feff}data: [DONE]\n\n")]
#[case::comment_before(": hello\ndata: [DONE]\n\n")]
#[case::other_fields("id: 1\nevent: message\nretry: 5\ndata: [DONE]\nunknown\n\n")]
#[case::end_is_missing("data: [DONE]")]
#[case::half_of_the_end("data: [DONE]\r\n")]
fn lines_are_read_as_the_standard_says(#[case] stream: &str) {
    let (bytes, events, outcome, tally) = run(false, 1024, &[stream.as_bytes()]);
    assert_eq!((bytes.as_slice(), events.as_slice(), outcome), (stream.as_bytes(), [Event::Done].as_slice(), Ok(())));
    assert!(tally.done);
}

#[rstest]
#[case::comment(": keep-alive\n\n", &[Event::Other])]
#[case::empty_lines("\n\r\n\r", &[Event::Other, Event::Other, Event::Other])]
#[case::data_in_lines("data: {\"choices\":\ndata: [{\"text\":\"a\"}]}\n\n", &[delta(1)])]
#[case::named_error("event: error\ndata: {\"message\":\"no\"}\n\n", &[Event::Failure])]
#[case::mark_in_the_middle("\n\u{feff}data: [DONE]\n\n", &[Event::Other, Event::Other])]
#[case::spaced_done("data:  [DONE]\n\n", &[Event::Other])]
fn events_go_on_as_they_came(#[case] stream: &str, #[case] expected: &[Event]) {
    let (bytes, events, outcome, _) = run(false, 1024, &[stream.as_bytes()]);
    assert_eq!((bytes.as_slice(), events.as_slice(), outcome), (stream.as_bytes(), expected, Ok(())));
}

#[rstest]
#[case::lf("\n")]
#[case::cr("\r")]
#[case::crlf("\r\n")]
fn usage_is_withheld_from_who_did_not_ask(#[case] line_end: &str) {
    let text = |with_usage: bool| {
        let usage = if with_usage { format!("data: {USAGE_CHUNK}{line_end}{line_end}") } else { String::new() };
        let (before, after) = (r#"data: {"choices":[{"text":"a"}]}"#, "data: [DONE]");
        format!("{before}{line_end}{line_end}{usage}{after}{line_end}{line_end}")
    };
    let stream = text(true);
    for at in 0..stream.len() {
        let (before, after) = stream.as_bytes().split_at(at);
        let (bytes, events, _, tally) = run(false, 1024, &[before, after]);
        assert_eq!(String::from_utf8(bytes).expect("UTF-8"), text(false), "cut at {at}");
        assert_eq!(events, [delta(1), Event::Usage(USAGE), Event::Done]);
        assert_eq!(tally, Tally { tokens: 1, usage: Some(USAGE), usage_chunk: true, done: true, ..Tally::default() });
    }
    let (bytes, ..) = run(true, 1024, &[stream.as_bytes()]);
    assert_eq!(String::from_utf8(bytes).expect("UTF-8"), stream);
}

/// No event waits for a byte that is not its own.
#[rstest]
#[case::lf("data: [DONE]\n\n")]
#[case::cr("data: [DONE]\r\r")]
#[case::crlf("data: [DONE]\r\n\r")]
fn an_event_goes_at_once(#[case] stream: &str) {
    let mut events = Vec::new();
    let mut cut = EventStream::new(false, 64);
    cut.push(stream.as_bytes(), |piece| events.push(piece.event)).expect("short");
    assert_eq!(events, [Event::Done]);
}

#[test]
fn an_event_that_never_ends_ends_the_stream() {
    let limit = 16;
    let mut stream = EventStream::new(false, limit);
    let mut bytes = Vec::new();
    let mut sink = |piece: Piece<'_>| bytes.extend_from_slice(piece.bytes);
    assert_eq!(stream.push(b": 3456789012345\n\n: next", &mut sink), Err(Error::EventTooLarge { limit }));
    let mut stream = EventStream::new(false, limit);
    assert_eq!(stream.push(b": 345678901234\n\n: next one, when", &mut sink), Ok(()));
    assert_eq!(stream.push(b"?", &mut sink), Err(Error::EventTooLarge { limit }));
    assert_eq!(stream.push(b"\n\n", &mut sink), Err(Error::EventTooLarge { limit }));
    assert_eq!(stream.finish(&mut sink), Tally::default());
    assert_eq!(bytes, b": 345678901234\n\n");
}

/// The last line feed does not count, as it may come when the event is gone already.
#[rstest]
#[case::whole(&[b": 4567890123\r\n\r\n".as_slice()])]
#[case::cut(&[b": 4567890123\r\n\r".as_slice(), b"\n"])]
fn the_longest_event_is_as_long_however_it_is_cut(#[case] chunks: &[&[u8]]) {
    assert_eq!(run(false, 15, chunks), (chunks.concat(), vec![Event::Other], Ok(()), Tally::default()));
    assert_eq!(run(false, 14, chunks).2, Err(Error::EventTooLarge { limit: 14 }));
}

#[test]
fn an_answer_in_one_piece_tells_its_usage() {
    assert_eq!(usage_of_answer(USAGE_CHUNK.as_bytes()).0, Some(USAGE));
    let embeddings = br#"{"data":[{"embedding":[0.25,-1e-3]}],"usage":{"prompt_tokens":5,"total_tokens":5}}"#;
    assert_eq!(usage_of_answer(embeddings).0, Some(TokenUsage { prompt: 5, completion: 0, cached: 0 }));
    assert_eq!(usage_of_answer(b"{}").0, None);
    assert_eq!(usage_of_answer(b"<html>").0, None);
}

#[test]
fn text_is_not_shown() {
    let mut stream = EventStream::new(false, 1024);
    stream.push(br#"data: {"choices":[{"text":"secret words"#, |_| {}).expect("short");
    assert!(!format!("{stream:?}").contains("secret"));
}

/// Streams of events, well formed and not, with all line ends.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let lines = prop::sample::select(vec![
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}",
        "data: {\"choices\":[{\"text\":\"é\"}]}",
        "data: [DONE]",
        "data: {\"choices\":",
        "data: [{\"text\":\"a\"}]}",
        "data:",
        "data: {\"error\":1}",
        ": comment",
        "event: error",
        "id: 7",
        "junk",
        "",
        "",
        "",
    ]);
    let ends = prop::sample::select(vec!["\n", "\r", "\r\n"]);
    let line = (prop_oneof![8 => lines.prop_map(str::to_owned), 1 => Just(format!("data: {USAGE_CHUNK}"))], ends);
    let lines = prop::collection::vec(line.prop_map(|(line, end)| line + end), 0..24);
    prop_oneof![
        4 => (any::<bool>(), lines).prop_map(|(mark, lines)| {
            [if mark { "\u{feff}" } else { "" }.to_owned(), lines.concat()].concat().into_bytes()
        }),
        1 => prop::collection::vec(prop::sample::select(b"\r\n:a d".to_vec()), 0..64),
        1 => prop::collection::vec(any::<u8>(), 0..64),
    ]
}

fn cut<'a>(stream: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).chain([0, stream.len()]).collect();
    at.sort_unstable();
    at.windows(2).map(|range| &stream[range[0]..range[1]]).collect()
}

proptest! {
    /// However a stream is cut, the same bytes, events, error and sums come of it.
    #[test]
    fn cuts_change_nothing(
        stream in stream(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        wants_usage in any::<bool>(),
        limit in 8_usize..400,
    ) {
        let whole = run(wants_usage, limit, &[&stream]);
        prop_assert_eq!(run(wants_usage, limit, &cut(&stream, &cuts)), whole.clone());
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        prop_assert_eq!(run(wants_usage, limit, &bytes), whole);
    }

    /// Without a usage chunk, or with a client that wants it, what goes out is what came in.
    #[test]
    fn bytes_go_through(stream in stream(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12), wants_usage in any::<bool>()) {
        let (bytes, events, outcome, _) = run(wants_usage, 1 << 16, &cut(&stream, &cuts));
        prop_assert_eq!(outcome, Ok(()));
        if wants_usage || !events.iter().any(|event| matches!(event, Event::Usage(_))) {
            prop_assert_eq!(bytes, stream);
        }
    }

    /// What is withheld is the usage chunk and nothing else: leaving the pieces of usage out of the whole gives the same bytes.
    #[test]
    fn only_usage_is_withheld(stream in stream()) {
        let mut kept = Vec::new();
        let mut withheld = false;
        let mut sink = |piece: Piece<'_>| {
            match piece.event {
                Event::Usage(_) => withheld = true,
                // Belongs to the piece before it.
                Event::LineFeed if withheld => {}
                _ => {
                    withheld = false;
                    kept.extend_from_slice(piece.bytes);
                }
            }
        };
        let mut events = EventStream::new(true, 1 << 16);
        events.push(&stream, &mut sink).expect("short");
        events.finish(&mut sink);
        prop_assert_eq!(run(false, 1 << 16, &[&stream]).0, kept);
    }

    /// The entry of the fuzzer holds for what a fuzzer would try.
    #[test]
    fn fuzzed(prefix in prop::collection::vec(any::<u8>(), 1..16), stream in stream()) {
        fuzz_sse(&[prefix, stream].concat());
    }
}

/// Words that an engine makes up are nobody's: what is told of a request is told in OpenAI's.
#[test]
fn reasons_are_known_words() {
    let choice = |word: &str| format!(r#"{{"choices":[{{"index":0,"delta":{{}},"finish_reason":{word}}}]}}"#);
    let mut stream = EventStream::new(true, EVENT_BYTES_MAX);
    for word in ["null", r#""stop""#, r#""my secret""#, r#""tool_\u0063alls""#, r#""stop""#] {
        stream.push(format!("data: {}\n\n", choice(word)).as_bytes(), |_| ()).unwrap();
    }
    assert_eq!(stream.tally().finished, 4);
    assert_eq!(stream.tally().reasons.words().collect::<Vec<_>>(), ["stop", "tool_calls"]);
    let (_, reasons) = usage_of_answer(choice(r#""length""#).as_bytes());
    assert_eq!(reasons.words().collect::<Vec<_>>(), ["length"]);
    assert_eq!(usage_of_answer(b"<html>").1.words().count(), 0);
}
