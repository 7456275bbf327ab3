//! Which blocks an engine has likely cached: the most recently touched ones, as many as it has room for.

use std::collections::HashMap;

use super::fixed::Mixing;

/// No node.
const END: u32 = u32::MAX;

/// A set of block hashes that forgets the least recently touched. About 50 bytes a block.
///
/// Prompts are touched deepest block first. A block is then never older than those behind it, so that of every prompt the blocks that are
/// left are its first ones, and a search by halves finds how many.
#[derive(Clone, Debug)]
pub struct BlockIndex {
    places: HashMap<u64, u32, Mixing>,
    nodes: Vec<Node>,
    /// Nodes that no block has.
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
    capacity: u32,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    block: u64,
    newer: u32,
    older: u32,
}

impl BlockIndex {
    /// An empty one with room for so many blocks. The seed is of the table only; it changes no answer.
    pub fn new(capacity: u32, seed: u64) -> Self {
        let places = HashMap::with_hasher(Mixing(seed));
        Self { places, nodes: Vec::new(), free: Vec::new(), newest: END, oldest: END, capacity }
    }

    /// How many blocks are in it.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether no block is in it.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether the block is in it.
    pub fn contains(&self, block: u64) -> bool {
        self.places.contains_key(&block)
    }

    /// How many of the first blocks are in it.
    pub fn leading(&self, blocks: &[u64]) -> usize {
        blocks.partition_point(|&block| self.contains(block))
    }

    /// These blocks were used now, deepest first.
    pub fn touch(&mut self, blocks: &[u64]) {
        for &block in blocks.iter().rev() {
            self.touch_one(block);
        }
    }

    /// Room for so many from now on.
    pub fn set_capacity(&mut self, capacity: u32) {
        self.capacity = capacity;
        while self.places.len() > capacity as usize {
            self.forget_oldest();
        }
    }

    fn touch_one(&mut self, block: u64) {
        if let Some(&place) = self.places.get(&block) {
            if place != self.newest {
                self.unlink(place);
                self.link(place);
            }
            return;
        }
        if self.capacity == 0 {
            return;
        }
        if self.places.len() >= self.capacity as usize {
            self.forget_oldest();
        }
        let node = Node { block, newer: END, older: END };
        // Never more nodes than the largest capacity so far, which is a `u32`.
        let place = self.free.pop().unwrap_or(self.nodes.len() as u32);
        match self.nodes.get_mut(place as usize) {
            Some(slot) => *slot = node,
            None => self.nodes.push(node),
        }
        self.places.insert(block, place);
        self.link(place);
    }

    /// Makes it the newest. It must not be linked.
    fn link(&mut self, place: u32) {
        let older = self.newest;
        if let Some(node) = self.nodes.get_mut(place as usize) {
            (node.newer, node.older) = (END, older);
        }
        match self.nodes.get_mut(older as usize) {
            Some(node) => node.newer = place,
            None => self.oldest = place,
        }
        self.newest = place;
    }

    fn unlink(&mut self, place: u32) {
        let Some(&Node { newer, older, .. }) = self.nodes.get(place as usize) else { return };
        match self.nodes.get_mut(newer as usize) {
            Some(node) => node.older = older,
            None => self.newest = older,
        }
        match self.nodes.get_mut(older as usize) {
            Some(node) => node.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn forget_oldest(&mut self) {
        let place = self.oldest;
        let Some(&Node { block, .. }) = self.nodes.get(place as usize) else { return };
        self.unlink(place);
        self.places.remove(&block);
        self.free.push(place);
    }
}
