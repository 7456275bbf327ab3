//! Prompts as hashes of blocks: all that a strategy ever sees of a prompt.

use super::fixed::mix;

/// Blocks of a prompt that are hashed at most: 524,288 tokens in blocks of 512. What comes after counts for nothing.
pub const BLOCKS_MAX: usize = 1024;

/// Bytes of a word.
const WORD: usize = 8;

/// How prompts are cut into blocks. All gateways of an endpoint must use the same.
///
/// Each hash stands for everything from the start of the prompt to the end of its block, so that equal hashes mean equal prefixes. Only
/// full blocks have one. It is no cryptographic hash: prompts that were made to meet are sent to the same engine, and no more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlockShape {
    /// Where the chain starts: prompts with different salts have no block in common. For what must not share a cache, such as tenants.
    pub salt: u64,
    /// Bytes, or tokens, of a block. 0 gives no blocks.
    pub size: usize,
}

impl BlockShape {
    /// The blocks of a prompt whose tokens are not known: of the bytes of its parts, such as messages. Where one part ends and the next
    /// begins counts.
    pub fn of_bytes<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u64> {
        let mut blocks = Blocks::new(*self);
        for mut part in parts {
            while !part.is_empty() && !blocks.full() {
                let (word, rest) = part.split_at(WORD.min(blocks.left).min(part.len()));
                let number = word.iter().fold(0, |number, &byte| (number << 8) | u64::from(byte));
                blocks.push(number, word.len());
                part = rest;
            }
            blocks.part();
        }
        blocks.done
    }

    /// The blocks of a prompt whose tokens are known.
    pub fn of_tokens(&self, tokens: &[u32]) -> Vec<u64> {
        let mut blocks = Blocks::new(*self);
        for &token in tokens {
            if blocks.full() {
                break;
            }
            blocks.push(u64::from(token), 1);
        }
        blocks.done
    }
}

/// Hashes as they come.
struct Blocks {
    size: usize,
    state: u64,
    /// What is missing of the block.
    left: usize,
    done: Vec<u64>,
}

impl Blocks {
    fn new(shape: BlockShape) -> Self {
        Self { size: shape.size, state: mix(shape.salt), left: shape.size, done: Vec::new() }
    }

    fn full(&self) -> bool {
        self.size == 0 || self.done.len() >= BLOCKS_MAX
    }

    /// A number that stands for so many units of the block, at most as many as are left.
    fn push(&mut self, number: u64, units: usize) {
        // Twice, or the number of units could be made up for by the next number.
        self.state = mix(mix(self.state ^ number).wrapping_add(units as u64));
        self.left = self.left.saturating_sub(units);
        if self.left == 0 {
            self.done.push(self.state);
            self.left = self.size;
        }
    }

    /// The end of a part.
    fn part(&mut self) {
        self.state = mix(self.state.wrapping_add(1));
    }
}
