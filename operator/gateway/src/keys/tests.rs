//! Who is let in when.

use proptest::prelude::*;
use rstest::rstest;

use spillway_crds::key::{ID_BYTES, ID_LENGTH, SECRET_BYTES};

use super::*;

const NOW_MS: u64 = 1_000_000;

/// A key of these random bytes, and what is known of it.
fn minted(seed: u8) -> (String, Key) {
    let text = mint(KeyId::new(&[seed; ID_BYTES]), &[seed; SECRET_BYTES]);
    let presented = PresentedKey::parse(&text).expect("a key");
    let key = Key {
        id: presented.id(),
        tenant: "acme".into(),
        namespace: "acme-ns".into(),
        secrets: vec![Secret { hash: presented.hash(), expires_at_ms: None }],
        expires_at_ms: None,
        revoked: false,
        models: AllowedModels::All,
        limits: Limits::default(),
        residency: BTreeSet::new(),
    };
    (text, key)
}

fn check(key: &Key, text: &str) -> Result<KeyId, KeyError> {
    let keyring: Keyring = [key.clone()].into_iter().collect();
    keyring.authenticate(Some(&format!("Bearer {text}")), NOW_MS).map(|key| key.id)
}

#[test]
fn what_is_no_key_is_told_so() {
    let (text, key) = minted(1);
    for wrong in ["x", "sk-spw-", &text[..KEY_LENGTH - 1], &format!("{text}A"), &text.replace("sk-spw-", "sk-proj-")] {
        assert_eq!(check(&key, wrong), Err(KeyError::Malformed));
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
    key.secrets[0].expires_at_ms = secret_end;
    key.revoked = revoked;
    assert_eq!(check(&key, &text).map(drop), expected);
    // The id, with the secret of another key.
    let guess = format!("{PREFIX}{}-{}", key.id, &minted(2).0[PREFIX.len() + ID_LENGTH + 1..]);
    assert_eq!(check(&key, &guess), Err(KeyError::Unknown));
}

#[test]
fn two_secrets_of_one_key_are_good_while_it_is_rotated() {
    let (old, mut key) = minted(1);
    let new = mint(key.id, &[9; SECRET_BYTES]);
    let presented = PresentedKey::parse(&new).expect("a key");
    assert_eq!(presented.id(), key.id);
    assert_eq!(check(&key, &new), Err(KeyError::Unknown));
    key.secrets.push(Secret { hash: presented.hash(), expires_at_ms: None });
    assert_eq!((check(&key, &old), check(&key, &new)), (Ok(key.id), Ok(key.id)));
    key.secrets[0].expires_at_ms = Some(NOW_MS);
    assert_eq!((check(&key, &old), check(&key, &new)), (Err(KeyError::Expired), Ok(key.id)));
}

#[test]
fn a_key_without_secrets_lets_nobody_in() {
    let (text, key) = minted(1);
    let keyring = Keyring::default();
    assert!(matches!(keyring.authenticate(Some(&format!("Bearer {text}")), NOW_MS), Err(KeyError::Unknown)));
    let nobody = Key { secrets: Vec::new(), ..key };
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
