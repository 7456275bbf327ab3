//! API keys: their format, what is kept of them, and whether one that was presented is good.
//!
//! A key is `sk-spw-<id>-<secret>`, 59 characters:
//!
//! - `id`: 8 characters of `0-9 a-z` without `i`, `l`, `o` and `u` (Crockford's base 32, 40 bits). It names the key, is shown in lists, logs and
//!   bills, and is no secret.
//! - `secret`: 43 characters of base64url (RFC 4648, section 5, no padding) of 256 random bits. The two bits over are zero, so that a secret has
//!   one spelling.
//!
//! The prefix is what scanners for leaked secrets look for; no character must be escaped in a shell, a header, YAML or a URL. What is kept is
//! SHA-256 of the whole key. One plain hash is enough: the secret is 256 random bits, not a password that could be guessed.
//!
//! [`Keyring::authenticate`] takes the same steps for every well-formed key, known or not: one hash, one look-up by id, two comparisons in
//! constant time. Must not: keep, show or log a key.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use sha2::{Digest, Sha256};
use spillway_metering::{NamespaceName, TenantName};
use subtle::{Choice, ConstantTimeEq};

use crate::admission::Limits;

/// What every key begins with.
pub const PREFIX: &str = "sk-spw-";
/// Characters of an id.
pub const ID_LENGTH: usize = 8;
/// Characters of a secret.
pub const SECRET_LENGTH: usize = 43;
/// Characters of a key.
pub const KEY_LENGTH: usize = PREFIX.len() + ID_LENGTH + 1 + SECRET_LENGTH;
/// Random bytes that a key is made of: 5 of its id, 32 of its secret.
pub const RANDOM_BYTES: usize = 37;

const ID_ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const SECRET_ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// Stands where a key is unknown, or has one hash only. No key that hashes to it is known, and it is never taken.
const NO_HASH: SecretHash = SecretHash([0; 32]);

/// The readable part of a key. May be shown.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId([u8; ID_LENGTH]);

impl KeyId {
    /// The id that `text` is, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        let id: [u8; ID_LENGTH] = text.as_bytes().try_into().ok()?;
        id.iter().all(|character| ID_ALPHABET.contains(character)).then_some(Self(id))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        // Characters of the alphabet are ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A key as it was presented. Shows its id only.
#[derive(Clone, Copy)]
pub struct PresentedKey<'a> {
    id: KeyId,
    text: &'a str,
}

impl<'a> PresentedKey<'a> {
    /// The key that `text` is, if it has the format of one.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_at_checked(ID_LENGTH)?;
        let id = KeyId::parse(id)?;
        let secret: &[u8; SECRET_LENGTH] = secret.strip_prefix('-')?.as_bytes().try_into().ok()?;
        let (last, others) = secret.split_last()?;
        let within = others.iter().all(|character| SECRET_ALPHABET.contains(character));
        // 43 characters are 258 bits: those of the last one whose lowest two are zero.
        let whole = SECRET_ALPHABET.iter().step_by(4).any(|character| character == last);
        (within && whole).then_some(Self { id, text })
    }

    /// Its readable part.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// What is kept of it.
    pub fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.text.as_bytes()).into())
    }
}

impl fmt::Debug for PresentedKey<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}{}-...", self.id)
    }
}

/// Writes a new key of random bytes, which the caller gets from the system's generator and forgets. The key is shown once, to whom it is for.
pub fn mint(random: &[u8; RANDOM_BYTES]) -> String {
    let mut key = String::with_capacity(KEY_LENGTH);
    key.push_str(PREFIX);
    let (id, secret) = random.split_at(5);
    push_base(&mut key, id, ID_ALPHABET, 5);
    key.push('-');
    push_base(&mut key, secret, SECRET_ALPHABET, 6);
    key
}

/// Appends `bytes` as characters of `width` bits each, the highest first; the last is filled with zeros.
fn push_base(text: &mut String, bytes: &[u8], alphabet: &[u8], width: u32) {
    let (mut bits, mut held) = (0_u32, 0);
    let mut push = |value: u32| {
        let index = (value & ((1 << width) - 1)) as usize;
        text.extend(alphabet.get(index).map(|&character| char::from(character)));
    };
    for &byte in bytes {
        // Fewer than `width` bits are left over, and 8 come: no more than 14.
        bits = ((bits << 8) | u32::from(byte)) & 0xffff;
        held += 8;
        while held >= width {
            held -= width;
            push(bits >> held);
        }
    }
    if held > 0 {
        push(bits << (width - held));
    }
}

/// The key in an `Authorization` header's value: after `Bearer`, in any case, and spaces (RFC 6750, RFC 9110).
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, key) = authorization.trim_ascii().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim_ascii_start())
}

/// SHA-256 of a key. Compared in constant time only, and not shown.
#[derive(Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// The hash of these bytes, as it was stored.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes, to be stored.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretHash(...)")
    }
}

/// One secret of a key.
#[derive(Clone, Copy, Debug)]
pub struct Secret {
    /// What is kept of it.
    pub hash: SecretHash,
    /// Unix milliseconds from which it is no longer good, as after a rotation. None for as long as the key is.
    pub expires_at_ms: Option<u64>,
}

/// Which models a key may use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AllowedModels {
    /// All that its tenant may.
    All,
    /// These of them, as a request names them.
    Only(BTreeSet<String>),
}

/// A key as it is known.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its readable part.
    pub id: KeyId,
    /// Who pays.
    pub tenant: TenantName,
    /// Where names of models without a namespace are looked up.
    pub namespace: NamespaceName,
    /// Its secret.
    pub secret: Secret,
    /// The other one, while a rotation goes on: both are good.
    pub rotated: Option<Secret>,
    /// Unix milliseconds from which it is no longer good. None for ever.
    pub expires_at_ms: Option<u64>,
    /// Whether it was taken back.
    pub revoked: bool,
    /// Which models it may use.
    pub models: AllowedModels,
    /// Its own limits, within those of its tenant.
    pub limits: Limits,
}

impl Key {
    /// Whether it may use `model`. Whether that exists, or is shared, is asked elsewhere.
    pub fn allows(&self, model: &str) -> bool {
        match &self.models {
            AllowedModels::All => true,
            AllowedModels::Only(models) => models.contains(model),
        }
    }
}

/// Why a key is not good. Whoever does not know a secret learns only [`KeyError::Unknown`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// There is none.
    #[error("No API key was given: send it as `Authorization: Bearer {PREFIX}...`.")]
    Missing,
    /// It has not the format of one.
    #[error(
        "The API key is not one of this service (`{PREFIX}`, 8 characters, `-`, 43 characters): check that it was copied whole."
    )]
    Malformed,
    /// Its id is unknown, or its secret is another.
    #[error(
        "The API key is not known here: check that it belongs to this service and was not deleted, or make a new one."
    )]
    Unknown,
    /// It, or this secret of it, is past its end.
    #[error("The API key has expired: use its successor, or make a new one.")]
    Expired,
    /// It was taken back.
    #[error("The API key was revoked: ask its owner for another one.")]
    Revoked,
}

/// All keys, by their ids. A snapshot: it is made anew for every change.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    keys: HashMap<KeyId, Key>,
}

impl FromIterator<Key> for Keyring {
    /// Of keys with the same id the last one stays: ids are unique, as their objects' names are.
    fn from_iter<Keys: IntoIterator<Item = Key>>(keys: Keys) -> Self {
        Self { keys: keys.into_iter().map(|key| (key.id, key)).collect() }
    }
}

impl Keyring {
    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is a key with this id.
    pub fn contains(&self, id: KeyId) -> bool {
        self.keys.contains_key(&id)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key in an `Authorization` header at `now_ms`, Unix milliseconds.
    ///
    /// # Errors
    ///
    /// [`KeyError`]. [`KeyError::Expired`] and [`KeyError::Revoked`] are told only to those who know the secret.
    pub fn authenticate(&self, authorization: Option<&str>, now_ms: u64) -> Result<&Key, KeyError> {
        let text = bearer(authorization.ok_or(KeyError::Missing)?).ok_or(KeyError::Missing)?;
        self.check(&PresentedKey::parse(text).ok_or(KeyError::Malformed)?, now_ms)
    }

    /// The key that was presented, at `now_ms`, Unix milliseconds.
    ///
    /// # Errors
    ///
    /// As [`Keyring::authenticate`].
    pub fn check(&self, presented: &PresentedKey<'_>, now_ms: u64) -> Result<&Key, KeyError> {
        let key = self.keys.get(&presented.id());
        let hash = presented.hash();
        let matches = |secret: Option<Secret>| {
            let kept = secret.map_or(NO_HASH, |secret| secret.hash);
            // `&` of both, so that the comparison is made where there is nothing to compare with, too.
            hash.0.ct_eq(&kept.0) & Choice::from(u8::from(secret.is_some()))
        };
        let secrets = [key.map(|key| key.secret), key.and_then(|key| key.rotated)];
        let [current, other] = secrets.map(matches);
        let (Some(key), true) = (key, bool::from(current | other)) else { return Err(KeyError::Unknown) };
        // From here on whoever asks has shown that they know a secret of this key.
        if key.revoked {
            return Err(KeyError::Revoked);
        }
        let over = |end: Option<u64>| end.is_some_and(|end| end <= now_ms);
        let good = |secret: Option<Secret>, matches: Choice| {
            bool::from(matches) && secret.is_some_and(|secret| !over(secret.expires_at_ms))
        };
        let [first, second] = secrets;
        if over(key.expires_at_ms) || !(good(first, current) || good(second, other)) {
            return Err(KeyError::Expired);
        }
        Ok(key)
    }
}

/// Feeds one input of a fuzzer to the parsers of this module.
#[doc(hidden)]
pub fn fuzz_keys(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = Keyring::default().authenticate(Some(text), 0);
    if let Some(key) = PresentedKey::parse(text) {
        assert!(text.len() == KEY_LENGTH && text.is_ascii());
        assert!(KeyId::parse(key.id().as_str()) == Some(key.id()));
    }
}

#[cfg(test)]
mod tests;
