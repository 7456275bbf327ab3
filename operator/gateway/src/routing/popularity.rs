//! Which first blocks of prompts are everybody's: system prompts say nothing about where a conversation should go.

use std::collections::HashMap;

use super::fixed::Mixing;

/// Requests of a generation. What is counted is the last one that is complete and the one that is being counted.
const GENERATION: u32 = 2048;
/// Blocks of a prompt that are looked at.
const DEPTH: usize = 32;
/// A block that fewer requests than this have is nobody else's, however few requests there were.
const FEW: u64 = 8;

/// How many of the recent requests had a block. At most 131,072 counters.
#[derive(Clone, Debug)]
pub(super) struct Popularity {
    now: HashMap<u64, u32, Mixing>,
    before: HashMap<u64, u32, Mixing>,
    /// Requests that are counted in `now`, and in both.
    seen: u32,
    seen_before: u32,
}

/// What a prompt is known by: its first block that is not everybody's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Key {
    pub(super) block: u64,
    /// Blocks up to it, with it.
    pub(super) depth: usize,
}

impl Popularity {
    pub(super) fn new(seed: u64) -> Self {
        let empty = || HashMap::with_hasher(Mixing(seed));
        Self { now: empty(), before: empty(), seen: 0, seen_before: 0 }
    }

    pub(super) fn observe(&mut self, blocks: &[u64]) {
        if self.seen >= GENERATION {
            std::mem::swap(&mut self.now, &mut self.before);
            self.now.clear();
            (self.seen, self.seen_before) = (0, self.seen);
        }
        self.seen += 1;
        for &block in blocks.iter().take(DEPTH) {
            *self.now.entry(block).or_default() += 1;
        }
    }

    /// The first block that fewer than max(8, 1 / (4 `engines`)) of the recent requests had; where all are everybody's, the last one that
    /// is looked at.
    pub(super) fn key(&self, blocks: &[u64], engines: usize) -> Option<Key> {
        let recent = u64::from(self.seen + self.seen_before);
        let few = (recent / (4 * engines as u64).max(1)).max(FEW);
        let looked_at = blocks.get(..DEPTH).unwrap_or(blocks);
        let rare = looked_at.iter().position(|block| self.count(block) < few);
        let at = rare.or_else(|| looked_at.len().checked_sub(1))?;
        blocks.get(at).map(|&block| Key { block, depth: at + 1 })
    }

    fn count(&self, block: &u64) -> u64 {
        let of = |map: &HashMap<u64, u32, Mixing>| u64::from(map.get(block).copied().unwrap_or(0));
        of(&self.now) + of(&self.before)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.now.len() + self.before.len()
    }
}
