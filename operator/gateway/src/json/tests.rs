//! That the reader takes what JSON is, refuses what it is not, and reads strings as others do.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn check(text: &[u8], depth_max: u32) -> Result<(), SyntaxError> {
    let mut reader = Reader::new(text, depth_max)?;
    reader.skip()?;
    reader.end()
}

#[rstest]
#[case::null("null")]
#[case::number("-0.5e+10")]
#[case::zero("0")]
#[case::text(r#""a\"\\\/\b\f\n\r\té😀""#)]
#[case::pair(r#""\ud83d\ude00""#)]
#[case::empty_object("{}")]
#[case::empty_array(" [ ] ")]
#[case::nested(r#"{"a":[1,{"b":[[],{}]},"c"],"d":true,"e":false}"#)]
#[case::spaced("\t{ \"a\" :\r\n[ 1 , 2 ] } ")]
fn json_is_taken(#[case] text: &str) {
    assert_eq!(check(text.as_bytes(), 8), Ok(()));
}

#[rstest]
#[case::nothing("", 0, Problem::UnexpectedEnd)]
#[case::only_space("  ", 2, Problem::UnexpectedEnd)]
#[case::two_values("1 2", 2, Problem::Trailing)]
#[case::open_object(r#"{"a":1"#, 6, Problem::UnexpectedEnd)]
#[case::open_string(r#"["a"#, 3, Problem::UnexpectedEnd)]
#[case::wrong_close("[1}", 2, Problem::UnexpectedByte)]
#[case::comma_at_the_end("[1,]", 3, Problem::UnexpectedByte)]
#[case::comma_at_the_end_of_an_object(r#"{"a":1,}"#, 7, Problem::UnexpectedByte)]
#[case::name_without_quotes("{a:1}", 1, Problem::UnexpectedByte)]
#[case::no_colon(r#"{"a" 1}"#, 5, Problem::UnexpectedByte)]
#[case::leading_zero("01", 1, Problem::Trailing)]
#[case::plus("+1", 0, Problem::UnexpectedByte)]
#[case::no_fraction("1.", 2, Problem::BadNumber)]
#[case::no_exponent("1e", 2, Problem::BadNumber)]
#[case::only_minus("-", 1, Problem::BadNumber)]
#[case::not_a_number("NaN", 0, Problem::UnexpectedByte)]
#[case::half_a_word("nul", 0, Problem::UnexpectedByte)]
#[case::control("\"a\nb\"", 2, Problem::ControlCharacter)]
#[case::unknown_escape(r#""a\x""#, 2, Problem::BadEscape)]
#[case::escape_at_the_end(r#""\"#, 2, Problem::UnexpectedEnd)]
#[case::short_unicode(r#""\u12""#, 1, Problem::BadEscape)]
#[case::signed_unicode(r#""\u+123""#, 1, Problem::BadEscape)]
#[case::high_alone(r#""\ud83d""#, 1, Problem::LoneSurrogate)]
#[case::high_and_no_low(r#""\ud83dA""#, 1, Problem::LoneSurrogate)]
#[case::low_alone(r#""\ude00""#, 1, Problem::LoneSurrogate)]
#[case::too_deep("[[[[[[[[[", 9, Problem::TooDeep)]
fn what_is_not_json_is_refused(#[case] text: &str, #[case] at: usize, #[case] problem: Problem) {
    assert_eq!(check(text.as_bytes(), 8), Err(SyntaxError { at, problem }));
}

#[test]
fn what_is_not_utf8_is_refused() {
    assert_eq!(check(b"\"a\xff\"", 8), Err(SyntaxError { at: 2, problem: Problem::NotUtf8 }));
}

/// A million brackets need neither a stack nor a heap.
#[test]
fn depth_costs_nothing() {
    let deep = vec![b'['; 1 << 20];
    assert_eq!(check(&deep, u32::MAX), Err(SyntaxError { at: 129, problem: Problem::TooDeep }));
    let most = [vec![b'['; 128], vec![b']'; 128]].concat();
    assert_eq!(check(&most, u32::MAX), Ok(()));
}

/// JSON values of all kinds.
pub(crate) fn value() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1.0e9..1.0e9_f64).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// JSON and what is nearly JSON.
fn nearly_json() -> impl Strategy<Value = Vec<u8>> {
    let tokens = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"a\"",
        "\"\\u0061\"",
        "1",
        "-0.5e3",
        "01",
        "true",
        "nul",
        "null",
        " ",
        "\"",
        "\\",
        "\u{1}",
        "é",
    ]);
    prop_oneof![
        prop::collection::vec(tokens, 0..24).prop_map(|tokens| tokens.concat().into_bytes()),
        (value(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(value, index, byte)| {
            let mut text = value.to_string().into_bytes();
            let at = index.index(text.len());
            text[at] = byte;
            text
        }),
    ]
}

proptest! {
    /// What another reader writes is taken, whole.
    #[test]
    fn every_value_is_taken(value in value(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.expect("JSON");
        prop_assert_eq!(check(text.as_bytes(), 128), Ok(()));
    }

    /// Both readers agree on what is JSON. Serde's checks no surrogates in what it skips, so it is asked for the value.
    #[test]
    fn readers_agree(text in nearly_json()) {
        let theirs = serde_json::from_slice::<serde_json::Value>(&text);
        let ours = check(&text, 128);
        // Numbers out of a float's range are JSON, but no value of serde's.
        if !theirs.as_ref().is_err_and(|error| error.to_string().starts_with("number out of range")) {
            prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} {:?} {:?}", String::from_utf8_lossy(&text), ours, theirs);
        }
    }

    /// A string reads as it was, however it was escaped, and its length is known without reading it.
    #[test]
    fn strings_read_as_they_were(text in any::<String>(), escape in prop::collection::vec(any::<bool>(), 64)) {
        let mut raw = String::from("\"");
        for (index, character) in text.chars().enumerate() {
            if escape[index % escape.len()] || character < ' ' || character == '"' || character == '\\' {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    raw.push_str(&format!("\\u{unit:04x}"));
                }
            } else {
                raw.push(character);
            }
        }
        raw.push('"');
        let mut reader = Reader::new(raw.as_bytes(), 8).expect("UTF-8");
        let read = reader.string().expect("a string");
        prop_assert_eq!(read.decoded, text.len());
        prop_assert_eq!(reader.decode(read), text);
    }
}
