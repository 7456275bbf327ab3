//! `spillway usage`: GPU-hours of tenants over a period, and tokens of hosted models where a usage service stores them.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use kube::Client;
use serde::Serialize;
use spillway_metering::{Period, Segment, UsageKey, gpu_hours, shipping::GpuRow, total, usage as sum_usage};
use spillway_planner::Booking;

use crate::{
    args::{By, UsageArgs},
    error::Error,
    ledger::Bookings,
    output::{Report, Table},
    time,
};

mod service;
mod stored;
mod tokens;

use stored::Stored;
use tokens::Tokens;

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Usage {
    /// First instant of the period.
    pub(crate) from: String,
    /// First instant after it.
    pub(crate) to: String,
    /// What the rows are.
    pub(crate) by: &'static str,
    /// The sums.
    pub(crate) rows: Vec<Row>,
    /// All of them together.
    pub(crate) total: Amount,
    /// Why GPU time of bookings that ended is missing, if it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gpu_time_missing: Option<String>,
    /// Tokens of hosted models, where there is a usage service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tokens: Option<Tokens>,
}

/// One sum.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    /// Who pays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tenant: Option<String>,
    /// Namespace of the reservation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    /// The reservation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reservation: Option<String>,
    /// Which devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sku: Option<String>,
    /// On which terms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tier: Option<String>,
    /// How much.
    #[serde(flatten)]
    pub(crate) amount: Amount,
}

/// How much was used: decimal strings, so that no program makes floating-point numbers of them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Amount {
    /// Exact.
    pub(crate) device_milliseconds: String,
    /// Rounded to six decimals.
    pub(crate) gpu_hours: String,
}

impl Amount {
    fn of(device_milliseconds: i128) -> Result<Self, Error> {
        let hours = gpu_hours(device_milliseconds).map_err(|source| Error::Usage { source })?;
        Ok(Self { device_milliseconds: device_milliseconds.to_string(), gpu_hours: hours })
    }
}

/// Reads and answers.
pub(crate) async fn run(client: &Client, args: &UsageArgs) -> Result<Usage, Error> {
    let now_ms = time::now_ms();
    let from_ms = args.from.map_or_else(|| time::start_of_month(now_ms), |from| from.resolve(now_ms));
    let to_ms = args.to.map_or(now_ms, |to| to.resolve(now_ms));
    let bookings = crate::ledger::read(client, Some(from_ms)).await?;
    // After the ledger: what it says to be stored is there by then.
    let stored = stored::read(client, args, &bookings, from_ms, to_ms).await;
    let tokens = tokens::read(client, args, from_ms, to_ms).await;
    Ok(Usage { tokens, ..usage(&bookings, &stored, args, from_ms, to_ms, now_ms)? })
}

/// Sums. What the usage service has is taken from it, and everything else from the ledger: each booking is counted once, by its place in the archive.
pub(crate) fn usage(
    bookings: &Bookings,
    stored: &Stored,
    args: &UsageArgs,
    from_ms: i64,
    to_ms: i64,
    now_ms: i64,
) -> Result<Usage, Error> {
    let failed = |source| Error::Usage { source };
    let period = Period::new(from_ms, to_ms).map_err(failed)?;
    let wanted = |booking: &&Booking| args.tenant.as_deref().is_none_or(|tenant| booking.tenant.as_str() == tenant);
    // A booking that ended is counted to its end, whatever this machine's clock says.
    let ended = bookings.ended.iter().map(AsRef::as_ref).filter(wanted);
    let ended = ended.flat_map(|booking| {
        let there = bookings.in_store.get(&booking.id);
        segments(booking)
            .filter(move |segment| !there.is_some_and(|(archive, place)| stored.counts(archive, *place, segment)))
    });
    let ended: Vec<Segment> = ended.collect();
    let live: Vec<Segment> = bookings.live.iter().map(AsRef::as_ref).filter(wanted).flat_map(segments).collect();
    let mut rows = sum_usage(&ended, period, i64::MAX).map_err(failed)?;
    rows.extend(sum_usage(&live, period, now_ms).map_err(failed)?);
    let mut all = total(&rows).map_err(failed)?;
    let mut sums: BTreeMap<[Option<String>; 5], i128> = BTreeMap::new();
    for row in rows {
        let sum = sums.entry(shown_key(&row.key, args.by)).or_default();
        *sum = sum.checked_add(row.device_milliseconds).ok_or_else(|| failed(spillway_metering::Error::Overflow))?;
    }
    for row in &stored.rows {
        let amount = i128::from(row.device_milliseconds);
        all = all.checked_add(amount).ok_or_else(|| failed(spillway_metering::Error::Overflow))?;
        if amount > 0 {
            let sum = sums.entry(stored_key(row)).or_default();
            *sum = sum.checked_add(amount).ok_or_else(|| failed(spillway_metering::Error::Overflow))?;
        }
    }
    let rows = sums
        .into_iter()
        .map(|([tenant, namespace, reservation, sku, tier], sum)| {
            Ok(Row { tenant, namespace, reservation, sku, tier, amount: Amount::of(sum)? })
        })
        .collect::<Result<_, Error>>()?;
    Ok(Usage {
        from: time::show(from_ms),
        to: time::show(to_ms),
        by: match args.by {
            By::Tenant => "tenant",
            By::Reservation => "reservation",
            By::Sku => "sku",
        },
        rows,
        total: Amount::of(all)?,
        gpu_time_missing: stored.missing.clone(),
        tokens: None,
    })
}

pub(crate) use spillway_manifests::archive::metered_segments as segments;

/// As [`shown_key`] has it: the usage service was asked for sums of just these names.
fn stored_key(row: &GpuRow) -> [Option<String>; 5] {
    let GpuRow { tenant, namespace, reservation, sku, tier, .. } = row.clone();
    [tenant, namespace, reservation, sku, tier]
}

/// Tenant, namespace, reservation, SKU, tier: those that a row is about.
fn shown_key(key: &UsageKey, by: By) -> [Option<String>; 5] {
    let text = |name: &str| Some(name.to_owned());
    match by {
        By::Tenant => [text(key.tenant.as_str()), None, None, None, None],
        By::Reservation => [
            text(key.tenant.as_str()),
            text(key.namespace.as_str()),
            text(key.reservation.as_str()),
            text(key.sku.as_str()),
            text(key.tier.as_str()),
        ],
        By::Sku => [None, None, None, text(key.sku.as_str()), text(key.tier.as_str())],
    }
}

/// One line of the CSV: of GPU time or of tokens. What it is not about is empty.
#[derive(Default, Serialize)]
struct Line<'a> {
    /// `gpu` or `tokens`.
    kind: &'static str,
    from: &'a str,
    to: &'a str,
    tenant: Option<&'a str>,
    namespace: Option<&'a str>,
    reservation: Option<&'a str>,
    sku: Option<&'a str>,
    tier: Option<&'a str>,
    device_milliseconds: Option<&'a str>,
    gpu_hours: Option<&'a str>,
    endpoint: Option<&'a str>,
    model: Option<&'a str>,
    requests: Option<u64>,
    partial: Option<u64>,
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

impl Report for Usage {
    fn write_csv(&self, out: &mut dyn Write) -> io::Result<()> {
        if let Some(missing) = &self.gpu_time_missing {
            return Err(io::Error::other(format!("GPU time may be missing: {missing}")));
        }
        if let Some(missing) = self.tokens.as_ref().and_then(|tokens| tokens.missing.as_ref()) {
            // Half of it would be taken for all of it.
            return Err(io::Error::other(format!("tokens are missing: {missing}")));
        }
        let mut writer = csv::Writer::from_writer(out);
        let line = |kind| Line { kind, from: &self.from, to: &self.to, ..Line::default() };
        for row in &self.rows {
            writer.serialize(Line {
                tenant: row.tenant.as_deref(),
                namespace: row.namespace.as_deref(),
                reservation: row.reservation.as_deref(),
                sku: row.sku.as_deref(),
                tier: row.tier.as_deref(),
                device_milliseconds: Some(&row.amount.device_milliseconds),
                gpu_hours: Some(&row.amount.gpu_hours),
                ..line("gpu")
            })?;
        }
        for row in self.tokens.iter().flat_map(|tokens| &tokens.rows) {
            writer.serialize(Line {
                tenant: row.tenant.as_deref(),
                namespace: row.namespace.as_deref(),
                endpoint: row.endpoint.as_deref(),
                model: row.model.as_deref(),
                requests: Some(row.requests),
                partial: Some(row.partial),
                prompt_tokens: Some(row.prompt_tokens),
                cached_tokens: Some(row.cached_tokens),
                completion_tokens: Some(row.completion_tokens),
                ..line("tokens")
            })?;
        }
        writer.flush()
    }

    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "From {} to {}", self.from, self.to)?;
        writeln!(out)?;
        let heads: &[&str] = match self.by {
            "tenant" => &["TENANT", "GPU-HOURS"],
            "sku" => &["SKU", "TIER", "GPU-HOURS"],
            _ => &["TENANT", "NAMESPACE", "RESERVATION", "SKU", "TIER", "GPU-HOURS"],
        };
        let mut table = Table::new(heads);
        for row in &self.rows {
            let cells = [&row.tenant, &row.namespace, &row.reservation, &row.sku, &row.tier];
            let mut cells: Vec<String> = cells.into_iter().flatten().cloned().collect();
            cells.push(row.amount.gpu_hours.clone());
            table.push(cells);
        }
        let mut last = vec!["total".to_owned()];
        last.resize(heads.len().saturating_sub(1), String::new());
        last.push(self.total.gpu_hours.clone());
        table.push(last);
        table.write(out, 0)?;
        if let Some(missing) = &self.gpu_time_missing {
            writeln!(out)?;
            writeln!(out, "Not all GPU time is shown: {missing}.")?;
        }
        self.tokens.as_ref().map_or(Ok(()), |tokens| tokens.write_table(out))
    }
}

#[cfg(test)]
mod tests;
