//! Fixed-point factors: `u64` in units of 2^-20, so that a replay gives the same result on any machine.
//!
//! The step is 9.5e-7. What multiplies goes through `u128`, and what does not fit is cut to the range.

/// The number 1.
pub(super) const ONE: u64 = 1 << FRACTION_BITS;
/// Bits behind the point.
pub(super) const FRACTION_BITS: u32 = 20;

/// `numerator / denominator`, rounded down. A denominator of 0 gives 0.
pub(super) fn ratio(numerator: u64, denominator: u64) -> u64 {
    let scaled = u128::from(numerator) << FRACTION_BITS;
    scaled.checked_div(u128::from(denominator)).map_or(0, narrow)
}

/// The amount times the factor, rounded down.
pub(super) fn scale(amount: u64, factor: u64) -> u64 {
    narrow((u128::from(amount) * u128::from(factor)) >> FRACTION_BITS)
}

/// Moves a mean by `1 / divisor` of the way to a sample, rounded towards the mean.
pub(super) fn approach(mean: u64, sample: u64, divisor: u64) -> u64 {
    let step = mean.abs_diff(sample) / divisor.max(1);
    if sample >= mean { mean.saturating_add(step) } else { mean.saturating_sub(step) }
}

/// Cuts to the range.
pub(super) fn narrow(wide: u128) -> u64 {
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// A permutation of the 64-bit numbers in which every bit counts for every other: the last step of splitmix64 (Steele, Lea and Flood,
/// "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
pub(super) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Hashes numbers that are hashes already: one [`mix`] with a seed, so that nobody can choose blocks that meet in one bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mixing(pub(super) u64);

impl std::hash::BuildHasher for Mixing {
    type Hasher = Mixed;

    fn build_hasher(&self) -> Mixed {
        Mixed(self.0)
    }
}

/// The hasher of [`Mixing`].
pub(super) struct Mixed(u64);

impl std::hash::Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mix(self.0 ^ number);
    }
}
