use proptest::prelude::*;
use rstest::rstest;

use super::*;

/// Written out once, so that a change of the format is seen.
#[test]
fn a_key_looks_like_this() {
    let text = mint(KeyId::new(&[0, 1, 2, 3, 4]), &std::array::from_fn(|index| u8::try_from(index + 5).unwrap()));
    assert_eq!(text, "sk-spw-000g40r4-BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQ");
    assert_eq!(text.len(), KEY_LENGTH);
    let hash = PresentedKey::parse(&text).unwrap().hash();
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
fn what_is_no_key_is_none(#[case] text: &str) {
    assert!(PresentedKey::parse(text).is_none());
}

#[rstest]
#[case::short("ab")]
#[case::upper_case(&"AB".repeat(32))]
#[case::no_digit(&"zz".repeat(32))]
#[case::signs(&"+a".repeat(32))]
fn what_is_no_hash_is_none(#[case] text: &str) {
    let lower = SecretHash::from_hex(text).is_none_or(|hash| hash.to_hex() != text);
    assert!(lower, "{text}");
}

proptest! {
    /// Every key that is made is read, with all its bits: other random bytes make another key.
    #[test]
    fn keys_are_read_as_they_were_made(one in any::<[u8; 32]>(), other in any::<[u8; 32]>(), id in any::<[u8; 5]>()) {
        let id = KeyId::new(&id);
        let (text, changed) = (mint(id, &one), mint(id, &other));
        let presented = PresentedKey::parse(&text).unwrap();
        prop_assert_eq!(presented.id(), id);
        prop_assert_eq!(KeyId::parse(id.as_str()), Some(id));
        prop_assert_eq!(text == changed, one == other);
        let hash = presented.hash();
        let again = SecretHash::from_hex(&hash.to_hex()).unwrap();
        prop_assert_eq!(again.as_bytes(), hash.as_bytes());
    }
}
