//! A map that is cheap to copy and to change a little: snapshots of a large ledger share what did not change.

use std::{collections::BTreeMap, sync::Arc};

use crate::types::{BookingId, NodeUid, ReservationUid};

const SHARDS: u32 = 1024;

/// A key that is a text.
pub(super) trait Text: Clone + Ord {
    /// The text.
    fn text(&self) -> &str;
}

macro_rules! text_keys {
    ($($name:ty),*) => {$(
        impl Text for $name {
            fn text(&self) -> &str {
                self.as_str()
            }
        }
    )*};
}

text_keys!(BookingId, NodeUid, ReservationUid);

/// A map in parts, each shared until it changes. Its order is that of a hash: the same in each run, but no order to rely on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Shards<K, V> {
    parts: BTreeMap<u32, Arc<BTreeMap<K, V>>>,
    len: usize,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self { parts: BTreeMap::new(), len: 0 }
    }
}

/// FNV-1a: stable over versions and machines, unlike the hash of the standard library.
fn shard(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)) % SHARDS
}

impl<K: Text, V: Clone> Shards<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.parts.get(&shard(key.text()))?.get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let part = self.parts.entry(shard(key.text())).or_default();
        let old = Arc::make_mut(part).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let shard = shard(key.text());
        let part = self.parts.get_mut(&shard)?;
        if !part.contains_key(key) {
            return None;
        }
        let old = Arc::make_mut(part).remove(key);
        if part.is_empty() {
            self.parts.remove(&shard);
        }
        self.len -= usize::from(old.is_some());
        old
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.parts.values().flat_map(|part| part.values())
    }
}
