//! Fixed-point numbers: an `i64` in units of 2^-40, so that a replay gives the same result on any machine.
//!
//! The range is +-8.4 million, the step 9.1e-13. What multiplies goes through `i128`. One is the value of a wholly free device.

/// The number 1.
pub(super) const ONE: i64 = 1 << FRACTION_BITS;
/// Bits behind the point.
const FRACTION_BITS: u32 = 40;
/// ln 2 = 0.693147180559945..., rounded.
const LN_2: i64 = 762_123_384_786;
/// Terms of the series of exp: the last is below 2^-40 for arguments below ln 2 (0.6931^15 / 15! = 3.1e-15).
const TERMS: i128 = 15;

/// `numerator / denominator`, rounded to nearest, halves up. A denominator of 0 gives 0; what does not fit is cut to the range.
pub(super) fn ratio(numerator: i128, denominator: i128) -> i64 {
    if denominator <= 0 {
        return 0;
    }
    let scaled = numerator.saturating_mul(i128::from(ONE));
    narrow(scaled.saturating_add(denominator / 2).div_euclid(denominator))
}

/// The product, rounded to nearest.
pub(super) fn multiply(one: i64, other: i64) -> i64 {
    let half = i128::from(ONE / 2);
    narrow((i128::from(one) * i128::from(other) + half) >> FRACTION_BITS)
}

/// e^x, exact to about 2^-38 of the result. Below the smallest step it is 0, above the range the largest number.
///
/// x = n ln 2 + r with r in [0, ln 2), and e^x = 2^n e^r, with the power series of e^r.
pub(super) fn exp(x: i64) -> i64 {
    let doublings = x.div_euclid(LN_2);
    let rest = i128::from(x.rem_euclid(LN_2));
    let (mut sum, mut term) = (i128::from(ONE), i128::from(ONE));
    for n in 1..=TERMS {
        term = ((term * rest) >> FRACTION_BITS) / n;
        sum += term;
    }
    match u32::try_from(doublings.unsigned_abs()).unwrap_or(u32::MAX) {
        shift if doublings >= 0 && shift < 23 => narrow(sum << shift),
        _ if doublings >= 0 => i64::MAX,
        // The sum is below 2^41.
        shift if shift > 42 => 0,
        shift => narrow((sum + (1 << shift >> 1)) >> shift),
    }
}

/// floor(100 / (1 + e^-x)): a score from 0 to 100.
pub(super) fn percent_sigmoid(x: i64) -> i64 {
    let one = i128::from(ONE);
    narrow(100 * one / (one + i128::from(exp(x.saturating_neg()))))
}

fn narrow(wide: i128) -> i64 {
    i64::try_from(wide).unwrap_or(if wide < 0 { i64::MIN } else { i64::MAX })
}
