//! Room for bodies: of all requests together, and of each key no more than a part of it, so that one key cannot take what all need.
//!
//! Nobody waits for room: whoever waited while holding some could wait for each other. What does not fit is refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::keys::KeyId;

/// Room for bodies.
#[derive(Debug)]
pub struct Budget {
    total: usize,
    of_key: usize,
    requests_of_key: u32,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    bytes: usize,
    keys: HashMap<KeyId, (usize, u32)>,
}

impl Budget {
    /// Of so many bytes, of which a key may have so many, in so many bodies.
    pub fn new(total: usize, of_key: usize, requests_of_key: u32) -> Arc<Self> {
        Arc::new(Self { total, of_key, requests_of_key, used: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a body, if its key has not too many of them.
    pub fn begin(self: &Arc<Self>, key: KeyId) -> Option<Share> {
        let mut used = self.lock();
        let of_key = used.keys.entry(key).or_default();
        if of_key.1 >= self.requests_of_key {
            return None;
        }
        of_key.1 += 1;
        Some(Share { budget: Arc::clone(self), key, bytes: 0 })
    }

    #[cfg(test)]
    fn is_unused(&self) -> bool {
        let used = self.lock();
        used.bytes == 0 && used.keys.is_empty()
    }
}

/// What one body takes, until it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    key: KeyId,
    bytes: usize,
}

impl Share {
    /// Takes more. Whether there was room for it.
    pub fn grow(&mut self, more: usize) -> bool {
        let mut used = self.budget.lock();
        let total = used.bytes.saturating_add(more);
        let Some(of_key) = used.keys.get_mut(&self.key) else { return false };
        if total > self.budget.total || of_key.0.saturating_add(more) > self.budget.of_key {
            return false;
        }
        of_key.0 += more;
        used.bytes = total;
        self.bytes += more;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.budget.lock();
        used.bytes = used.bytes.saturating_sub(self.bytes);
        let Some((bytes, requests)) = used.keys.get_mut(&self.key) else { return };
        (*bytes, *requests) = (bytes.saturating_sub(self.bytes), requests.saturating_sub(1));
        if *requests == 0 {
            used.keys.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_takes_no_more_than_its_part() {
        let budget = Budget::new(100, 60, 2);
        let (one, other) = (KeyId::new(&[1; 5]), KeyId::new(&[2; 5]));
        let mut first = budget.begin(one).unwrap();
        assert!(first.grow(50) && !first.grow(11) && first.grow(10));
        let second = budget.begin(one).unwrap();
        assert!(budget.begin(one).is_none(), "a third body");
        let mut third = budget.begin(other).unwrap();
        assert!(!third.grow(41) && third.grow(40));
        drop(first);
        assert!(third.grow(20) && !third.grow(1));
        drop((second, third));
        assert!(budget.is_unused());
    }
}
