//! Random numbers that a seed determines for ever: xoshiro256** seeded by splitmix64, by Blackman and Vigna (public domain,
//! "Scrambled linear pseudorandom number generators", 2021).

/// A generator of random numbers. The sequence of a seed is part of what is promised: experiments name their seeds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rng([u64; 4]);

impl Rng {
    /// The generator of this seed: four numbers of splitmix64 are its first state.
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        }))
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.0;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// A number below the bound, each as likely as the other; 0 if the bound is 0.
    ///
    /// The high half of a product of 128 bits, drawn again where it would favour some (Lemire, "Fast random integer generation in an
    /// interval", 2019).
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = bound as u64;
        if bound == 0 {
            return 0;
        }
        let unfair = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            // The low 64 bits.
            if product as u64 >= unfair {
                return (product >> 64) as usize;
            }
        }
    }

    /// Puts the items into a random order, each order as likely as the other (Fisher and Yates, from the end).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last + 1);
            items.swap(last, other);
        }
    }
}
