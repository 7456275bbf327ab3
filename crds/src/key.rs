//! The text of an API key, and what is kept of it.
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
//! Must not: keep, show or log a key.

use std::fmt;

use sha2::{Digest, Sha256};

/// What every key begins with.
pub const PREFIX: &str = "sk-spw-";
/// Characters of an id.
pub const ID_LENGTH: usize = 8;
/// Characters of a secret.
pub const SECRET_LENGTH: usize = 43;
/// Characters of a key.
pub const KEY_LENGTH: usize = PREFIX.len() + ID_LENGTH + 1 + SECRET_LENGTH;
/// Random bytes that an id is made of.
pub const ID_BYTES: usize = 5;
/// Random bytes that a secret is made of.
pub const SECRET_BYTES: usize = 32;

const ID_ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const SECRET_ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// The readable part of a key. May be shown.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId([u8; ID_LENGTH]);

impl KeyId {
    /// The id that `text` is, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        let id: [u8; ID_LENGTH] = text.as_bytes().try_into().ok()?;
        id.iter().all(|character| ID_ALPHABET.contains(character)).then_some(Self(id))
    }

    /// An id of random bytes.
    pub fn new(random: &[u8; ID_BYTES]) -> Self {
        let mut text = String::with_capacity(ID_LENGTH);
        push_base(&mut text, random, ID_ALPHABET, 5);
        // 40 bits are 8 characters of 5.
        Self(text.as_bytes().try_into().unwrap_or([b'0'; ID_LENGTH]))
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

/// Writes a new key of a random secret, which the caller gets from the system's generator and forgets. The key is shown once, to whom it is for.
pub fn mint(id: KeyId, secret: &[u8; SECRET_BYTES]) -> String {
    let mut key = String::with_capacity(KEY_LENGTH);
    key.push_str(PREFIX);
    key.push_str(id.as_str());
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

    /// As 64 lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            // Into a string: there is no way for it to fail.
            let _ = fmt::Write::write_fmt(&mut text, format_args!("{byte:02x}"));
            text
        })
    }

    /// The hash that [`SecretHash::to_hex`] writes so.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'))?;
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretHash(...)")
    }
}

#[cfg(test)]
mod tests;
