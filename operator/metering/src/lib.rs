//! The arithmetic of the meter: device-milliseconds of booking segments over a period, and their sums. Integers only.
//!
//! Pure: no clock (now is an argument), no I/O, no types of the API. Times are Unix milliseconds, every interval is half
//! open, `[from, to)`, so that adjoining periods add up exactly. What does not fit into a number is an error, never a
//! wrong amount: this is what tenants are billed by.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Device-milliseconds in one GPU-hour.
pub const MILLISECONDS_PER_HOUR: i128 = 3_600_000;
/// Decimal places of [`gpu_hours`], as a power of ten: 6 places are 3.6 device-milliseconds.
const HOUR_FRACTIONS: i128 = 1_000_000;

/// Why an amount cannot be said.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// The period ends before it begins.
    #[error("the period ends at {to_ms} ms, before its start at {from_ms} ms")]
    PeriodReversed {
        /// Start of the period.
        from_ms: i64,
        /// End of the period.
        to_ms: i64,
    },
    /// A segment ends before it begins, which the ledger never writes.
    #[error("a segment ends at {to_ms} ms, before its start at {from_ms} ms")]
    SegmentReversed {
        /// Start of the segment.
        from_ms: i64,
        /// End of the segment.
        to_ms: i64,
    },
    /// The amount has no room in 128 bits.
    #[error("the sum of device-milliseconds does not fit into 128 bits")]
    Overflow,
}

/// Defines a name of one kind, so that a tenant cannot stand where a namespace is meant.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<Text: Into<String>> From<Text> for $name {
            fn from(text: Text) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

name!(
    /// Name of a `Tenant`.
    TenantName
);
name!(
    /// Name of the namespace of a reservation.
    NamespaceName
);
name!(
    /// Name of a `GpuReservation` in its namespace.
    ReservationName
);
name!(
    /// Name of a `GpuPool`.
    PoolName
);
name!(
    /// Name of a device model.
    SkuName
);
name!(
    /// Name of a tier.
    TierName
);

pub mod bucket;
pub mod lease;
pub mod load;
pub mod shipping;
pub mod tokens;

/// Devices of one node that one reservation held for one stretch of time.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Segment {
    /// Who pays.
    pub tenant: TenantName,
    /// Where the reservation stands.
    pub namespace: NamespaceName,
    /// What was sold.
    pub reservation: ReservationName,
    /// Whose node it is.
    pub pool: PoolName,
    /// Which devices they are.
    pub sku: SkuName,
    /// On which terms they were sold.
    pub tier: TierName,
    /// How many devices.
    pub devices: u32,
    /// When they were handed over.
    pub from_ms: i64,
    /// When they were or will be given back, or were lost; none while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_ms: Option<i64>,
}

/// The stretch of time that is asked about, `[from, to)`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Period {
    from_ms: i64,
    to_ms: i64,
}

impl Period {
    /// A period of no length or more.
    pub fn new(from_ms: i64, to_ms: i64) -> Result<Self, Error> {
        if to_ms < from_ms {
            return Err(Error::PeriodReversed { from_ms, to_ms });
        }
        Ok(Self { from_ms, to_ms })
    }

    /// All of time: for the whole meter of a reservation.
    pub const ALWAYS: Self = Self { from_ms: i64::MIN, to_ms: i64::MAX };

    /// First millisecond of the period.
    pub fn from_ms(self) -> i64 {
        self.from_ms
    }

    /// First millisecond after the period.
    pub fn to_ms(self) -> i64 {
        self.to_ms
    }
}

/// Device-milliseconds of `segment` within `period` and before `now_ms`: an open segment runs to now, and nothing is
/// used before it happened, so one whose end is known and still to come (a term) runs to now as well. Whoever closes the
/// books of a segment passes a `now_ms` that is not before its end.
pub fn device_milliseconds(segment: &Segment, period: Period, now_ms: i64) -> Result<i128, Error> {
    let end_ms = match segment.to_ms {
        Some(to_ms) if to_ms < segment.from_ms => {
            return Err(Error::SegmentReversed { from_ms: segment.from_ms, to_ms });
        }
        Some(to_ms) => to_ms.min(now_ms),
        None => now_ms,
    };
    let from_ms = i128::from(segment.from_ms.max(period.from_ms));
    let to_ms = i128::from(end_ms.min(period.to_ms));
    let length_ms = to_ms.checked_sub(from_ms).ok_or(Error::Overflow)?.max(0);
    length_ms.checked_mul(i128::from(segment.devices)).ok_or(Error::Overflow)
}

/// What sums are kept by. The order of the fields is the order of the rows.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageKey {
    /// Who pays.
    pub tenant: TenantName,
    /// Which devices.
    pub sku: SkuName,
    /// On which terms.
    pub tier: TierName,
    /// Namespace of the reservation.
    pub namespace: NamespaceName,
    /// The reservation.
    pub reservation: ReservationName,
}

/// What one reservation used of one SKU on one tier.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageRow {
    /// Whose usage it is.
    #[serde(flatten)]
    pub key: UsageKey,
    /// How much.
    pub device_milliseconds: i128,
}

/// Sums of the segments over a period, sorted by their keys. What used nothing in the period has no row.
pub fn usage<'a>(
    segments: impl IntoIterator<Item = &'a Segment>,
    period: Period,
    now_ms: i64,
) -> Result<Vec<UsageRow>, Error> {
    let mut sums: BTreeMap<UsageKey, i128> = BTreeMap::new();
    for segment in segments {
        let amount = device_milliseconds(segment, period, now_ms)?;
        if amount == 0 {
            continue;
        }
        let key = UsageKey {
            tenant: segment.tenant.clone(),
            sku: segment.sku.clone(),
            tier: segment.tier.clone(),
            namespace: segment.namespace.clone(),
            reservation: segment.reservation.clone(),
        };
        let sum = sums.entry(key).or_default();
        *sum = sum.checked_add(amount).ok_or(Error::Overflow)?;
    }
    Ok(sums.into_iter().map(|(key, device_milliseconds)| UsageRow { key, device_milliseconds }).collect())
}

/// The sum of rows, for a line of totals.
pub fn total<'a>(rows: impl IntoIterator<Item = &'a UsageRow>) -> Result<i128, Error> {
    rows.into_iter().try_fold(0_i128, |sum, row| sum.checked_add(row.device_milliseconds)).ok_or(Error::Overflow)
}

/// Device-milliseconds as GPU-hours with 6 decimals, rounded half up (half away from zero where an amount is negative,
/// as a correction may be). Rounded for people only: sums are made of device-milliseconds.
pub fn gpu_hours(device_milliseconds: i128) -> Result<String, Error> {
    let magnitude = device_milliseconds.checked_abs().ok_or(Error::Overflow)?;
    let scaled = magnitude.checked_mul(HOUR_FRACTIONS).ok_or(Error::Overflow)?;
    let half = MILLISECONDS_PER_HOUR / 2;
    let fractions = scaled.checked_add(half).ok_or(Error::Overflow)? / MILLISECONDS_PER_HOUR;
    let sign = if device_milliseconds < 0 && fractions > 0 { "-" } else { "" };
    Ok(format!("{sign}{}.{:06}", fractions / HOUR_FRACTIONS, fractions % HOUR_FRACTIONS))
}

#[cfg(test)]
mod tests;
