//! The format of keys, and who is let in when.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

const NOW_MS: u64 = 1_000_000;

/// A key of these random bytes, and what is known of it.
fn minted(seed: u8) -> (String, Key) {
    let text = mint(&[seed; RANDOM_BYTES]);
    let presented = PresentedKey::parse(&text).expect("a key");
    let key = Key {
        id: presented.id(),
        tenant: "acme".into(),
        namespace: "acme-ns".into(),
        secret: Secret { hash: presented.hash(), expires_at_ms: None },
        rotated: None,
        expires_at_ms: None,
        revoked: false,
        models: AllowedModels::All,
        limits: Limits::default(),
    };
    (text, key)
}

fn check(key: &Key, text: &str) -> Result<KeyId, KeyError> {
    let keyring: Keyring = [key.clone()].into_iter().collect();
    keyring.authenticate(Some(&format!("Bearer {text}")), NOW_MS).map(|key| key.id)
}

/// Written out once, so that a change of the format is seen.
#[test]
fn a_key_looks_like_this() {
    let mut random = [0; RANDOM_BYTES];
    random.iter_mut().zip(0..).for_each(|(byte, value)| *byte = value);
    let text = mint(&random);
    assert_eq!(text, "sk-spw-000g40r4-BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQ");
    assert_eq!(text.len(), KEY_LENGTH);
    let hash = PresentedKey::parse(&text).expect("a key").hash();
    assert_eq!(hash.as_bytes(), &<[u8; 32]>::from(Sha256::digest(&text)));
}

#[rstest]
#[case::nothing("")]
#[case::only_the_prefix("sk-spw-")]
#[case::another_service("sk-proj-000g40r4-BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQ")]
#[case::upper_case_id("sk-spw-000G40R4-BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQ")]
#[case::letter_of_an_id_that_is_none("sk-spw-000g40rl-BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQ")]
#[case::no_hyphen("sk-spw-000g40r4_BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQ")]
#[case::too_short("sk-spw-000g40r4-BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIy")]
#[case::too_long("sk-spw-000g40r4-BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQQ")]
#[case::padded("sk-spw-000g40r4-BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQ=")]
#[case::not_base64url("sk-spw-000g40r4-BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEi+yQ")]
#[case::bits_left_over("sk-spw-000g40r4-BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyR")]
#[case::character_across_the_id("sk-spw-000g40ré-BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQ")]
#[case::character_at_its_end("sk-spw-000g40r\u{1f600}BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIy")]
fn what_is_no_key_is_told_so(#[case] text: &str) {
    assert!(PresentedKey::parse(text).is_none());
    let (_, key) = minted(1);
    if !text.is_empty() {
        assert_eq!(check(&key, text), Err(KeyError::Malformed));
    }
}

#[rstest]
#[case::usual("Bearer abc", Some("abc"))]
#[case::lower_case("bearer abc", Some("abc"))]
#[case::spaces("  Bearer   abc ", Some("abc"))]
#[case::basic("Basic abc", None)]
#[case::alone("Bearer", None)]
#[case::no_scheme("abc", None)]
fn a_header_holds_a_key(#[case] header: &str, #[case] key: Option<&str>) {
    assert_eq!(bearer(header), key);
}

#[test]
fn a_good_key_is_let_in() {
    let (text, key) = minted(1);
    assert_eq!(check(&key, &text), Ok(key.id));
    assert_eq!(Keyring::default().authenticate(None, NOW_MS).map(|key| key.id), Err(KeyError::Missing));
}

/// What happens at the ends of a key, for one who knows the secret and for one who does not.
#[rstest]
#[case::good(None, None, false, Ok(()))]
#[case::not_yet_expired(Some(NOW_MS + 1), None, false, Ok(()))]
#[case::expired(Some(NOW_MS), None, false, Err(KeyError::Expired))]
#[case::secret_expired(None, Some(NOW_MS), false, Err(KeyError::Expired))]
#[case::revoked(None, None, true, Err(KeyError::Revoked))]
#[case::revoked_and_expired(Some(0), None, true, Err(KeyError::Revoked))]
fn ends_are_told_to_those_who_know_the_secret(
    #[case] key_end: Option<u64>,
    #[case] secret_end: Option<u64>,
    #[case] revoked: bool,
    #[case] expected: Result<(), KeyError>,
) {
    let (text, mut key) = minted(1);
    key.expires_at_ms = key_end;
    key.secret.expires_at_ms = secret_end;
    key.revoked = revoked;
    assert_eq!(check(&key, &text).map(drop), expected);
    // The id, with the secret of another key.
    let guess = format!("{PREFIX}{}-{}", key.id, &minted(2).0[PREFIX.len() + ID_LENGTH + 1..]);
    assert_eq!(check(&key, &guess), Err(KeyError::Unknown));
}

#[test]
fn two_secrets_of_one_key_are_good_while_it_is_rotated() {
    let (old, mut key) = minted(1);
    let mut random = [1; RANDOM_BYTES];
    random[RANDOM_BYTES - 1] = 9;
    let new = mint(&random);
    let presented = PresentedKey::parse(&new).expect("a key");
    assert_eq!(presented.id(), key.id);
    assert_eq!(check(&key, &new), Err(KeyError::Unknown));
    key.rotated = Some(Secret { hash: presented.hash(), expires_at_ms: None });
    assert_eq!((check(&key, &old), check(&key, &new)), (Ok(key.id), Ok(key.id)));
    key.secret.expires_at_ms = Some(NOW_MS);
    assert_eq!((check(&key, &old), check(&key, &new)), (Err(KeyError::Expired), Ok(key.id)));
}

/// The hash that stands for no key lets nobody in, even where it is one.
#[test]
fn the_hash_that_is_none_is_never_taken() {
    let (text, key) = minted(1);
    let keyring = Keyring::default();
    assert!(matches!(keyring.authenticate(Some(&format!("Bearer {text}")), NOW_MS), Err(KeyError::Unknown)));
    let nobody = Key { secret: Secret { hash: NO_HASH, expires_at_ms: None }, ..key };
    assert_eq!(check(&nobody, &text), Err(KeyError::Unknown));
}

#[test]
fn models_are_allowed_by_name() {
    let (_, mut key) = minted(1);
    assert!(key.allows("anything"));
    key.models = AllowedModels::Only(["chat".to_owned(), "other/chat".to_owned()].into());
    assert!(key.allows("chat") && key.allows("other/chat") && !key.allows("cha") && !key.allows(""));
}

#[test]
fn secrets_are_not_shown() {
    let (text, key) = minted(77);
    let secret = &text[PREFIX.len() + ID_LENGTH + 1..];
    let presented = PresentedKey::parse(&text).expect("a key");
    let keyring: Keyring = [key].into_iter().collect();
    let shown = format!("{presented:?} {keyring:?} {:?}", presented.hash());
    assert!(!shown.contains(secret) && shown.contains(presented.id().as_str()));
    assert!(shown.contains("SecretHash(...)"));
}

proptest! {
    /// Every key that is made is read, with all its bits: other random bytes make another key.
    #[test]
    fn keys_are_read_as_they_were_made(one in any::<[u8; 32]>(), other in any::<[u8; 32]>(), id in any::<[u8; 5]>()) {
        let make = |secret: [u8; 32]| mint([id.as_slice(), &secret].concat().as_slice().try_into().expect("37 bytes"));
        let (text, changed) = (make(one), make(other));
        let presented = PresentedKey::parse(&text);
        prop_assert!(presented.is_some_and(|key| KeyId::parse(key.id().as_str()) == Some(key.id())));
        prop_assert_eq!(text == changed, one == other);
    }

    /// A key with one character changed lets nobody in.
    #[test]
    fn one_character_makes_another_key(seed in any::<u8>(), at in 0..KEY_LENGTH, character in "[0-9A-Za-z_-]") {
        let (text, key) = minted(seed);
        let mut changed = text.clone();
        changed.replace_range(at..=at, &character);
        prop_assert_eq!(check(&key, &changed).is_ok(), changed == text);
    }

    #[test]
    fn fuzzed(text in "( ?[Bb]earer ?)?(sk-spw-)?[0-9a-z]{8}-[0-9A-Za-z_-]{40,44}|.*") {
        fuzz_keys(text.as_bytes());
    }
}
