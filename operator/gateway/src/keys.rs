//! API keys as a gateway knows them: whether one that was presented is good. Their format is [`spillway_crds::key`]'s.
//!
//! [`Keyring::authenticate`] takes the same steps for every well-formed key, known or not: one hash, one look-up by id, comparisons in constant
//! time. Must not: keep, show or log a key.

use std::collections::{BTreeSet, HashMap};

pub use spillway_crds::key::{KEY_LENGTH, KeyId, PREFIX, PresentedKey, SecretHash, mint};
use spillway_metering::{NamespaceName, TenantName};
use subtle::{Choice, ConstantTimeEq};

use crate::admission::Limits;

/// Stands where a key is unknown, or has one hash only. No key that hashes to it is known, and it is never taken.
const NO_HASH: [u8; 32] = [0; 32];

/// The key in an `Authorization` header's value: after `Bearer`, in any case, and spaces (RFC 6750, RFC 9110).
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, key) = authorization.trim_ascii().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim_ascii_start())
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
    /// Its secrets: one, or several while a rotation goes on. All of them are good.
    pub secrets: Vec<Secret>,
    /// Unix milliseconds from which it is no longer good. None for ever.
    pub expires_at_ms: Option<u64>,
    /// Whether it was taken back.
    pub revoked: bool,
    /// Which models it may use.
    pub models: AllowedModels,
    /// Its own limits, within those of its tenant.
    pub limits: Limits,
    /// Regions in which its requests may be processed, within those of its tenant. Empty: all of these.
    pub residency: BTreeSet<String>,
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

    /// The key with this id.
    pub fn get(&self, id: KeyId) -> Option<&Key> {
        self.keys.get(&id)
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

    /// Whether a key that was good still is, at `now_ms`, Unix milliseconds.
    ///
    /// # Errors
    ///
    /// Why it is not.
    pub fn recheck(&self, id: KeyId, now_ms: u64) -> Result<&Key, KeyError> {
        let key = self.keys.get(&id).ok_or(KeyError::Unknown)?;
        match key {
            key if key.revoked => Err(KeyError::Revoked),
            key if key.expires_at_ms.is_some_and(|end| end <= now_ms) => Err(KeyError::Expired),
            key => Ok(key),
        }
    }

    /// The key that was presented, at `now_ms`, Unix milliseconds.
    ///
    /// # Errors
    ///
    /// As [`Keyring::authenticate`].
    pub fn check(&self, presented: &PresentedKey<'_>, now_ms: u64) -> Result<&Key, KeyError> {
        let key = self.keys.get(&presented.id());
        let hash = presented.hash();
        let known = key.map(|key| key.secrets.as_slice()).unwrap_or_default();
        // At least one comparison is made, so that it takes no less time where there is nothing to compare with.
        let nothing = Choice::from(0) & hash.as_bytes().ct_eq(&NO_HASH);
        let over = |end: Option<u64>| end.is_some_and(|end| end <= now_ms);
        let (mut matches, mut good) = (nothing, nothing);
        for secret in known {
            let same = hash.as_bytes().ct_eq(secret.hash.as_bytes());
            matches |= same;
            good |= same & Choice::from(u8::from(!over(secret.expires_at_ms)));
        }
        let (Some(key), true) = (key, bool::from(matches)) else { return Err(KeyError::Unknown) };
        // From here on whoever asks has shown that they know a secret of this key.
        if key.revoked {
            return Err(KeyError::Revoked);
        }
        if over(key.expires_at_ms) || !bool::from(good) {
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
