//! One function for each answer: a word for machines, and a sentence for people that says what would change it.
//!
//! Tenants read these in the status of their reservations, so no message names another tenant or its reservations.

use std::{collections::BTreeSet, fmt::Write};

use super::Reason;
use crate::{
    placement::{Misfit, Stock, Want, share_of},
    types::{Pool, Profile, ProfileName, Region, Sku, Tenant, TenantName, Tier, TopologyKey, Where},
};

/// No message is longer, in bytes.
pub(super) const MAX_MESSAGE: usize = 600;
/// No list in a message has more entries.
const MAX_LISTED: usize = 5;
/// No text of others (a name, a sentence) takes more of a message, in bytes.
const MAX_QUOTED: usize = 200;

pub(super) fn no_tenant(namespace: &str) -> Reason {
    reason(
        "NoTenant",
        format!(
            "No Tenant lists namespace `{namespace}`: ask the operator of the cluster to add it to one. The reservation waits for that."
        ),
    )
}

pub(super) fn tier_not_allowed(tenant: &TenantName) -> Reason {
    reason(
        "TierNotAllowed",
        format!(
            "Tier Internal is for the owner of the fleet only, and tenant `{tenant}` is not: use Committed, OnDemand or Spot."
        ),
    )
}

pub(super) fn region_not_allowed(tenant: &Tenant, region: &Region) -> Reason {
    let allowed = list(tenant.regions.iter().map(Region::as_str));
    reason(
        "RegionNotAllowed",
        format!(
            "Tenant `{}` may not reserve in region `{region}`, only in {allowed}: use one of those, or ask for this region to be added to the Tenant.",
            tenant.name
        ),
    )
}

pub(super) fn quota_exceeded(tenant: &Tenant, sku: &Sku, tier: Tier, wanted: u32, limit: u32) -> Reason {
    reason(
        "QuotaExceeded",
        format!(
            "{} of `{sku}` wanted in tier {tier}, but the quota of tenant `{}` is {limit} in all: ask for at most {limit}, or for a higher quota.",
            devices(u64::from(wanted)),
            tenant.name
        ),
    )
}

pub(super) fn quota_in_use(tenant: &Tenant, sku: &Sku, tier: Tier, wanted: u32, held: u64, limit: u32) -> Reason {
    let left = u64::from(limit).saturating_sub(held);
    reason(
        "QuotaInUse",
        format!(
            "{} of `{sku}` wanted in tier {tier}, but tenant `{}` holds {held} of its quota of {limit}: {left} are left. It is tried again when a reservation of the tenant ends or the quota is raised.",
            devices(u64::from(wanted)),
            tenant.name
        ),
    )
}

pub(super) fn no_matching_pool(place: &Where, pools: &[&Pool]) -> Reason {
    let (missing, there) = match place {
        Where::Pool(name) => {
            (format!("There is no GpuPool `{name}`"), list(pools.iter().map(|pool| pool.name.as_str())))
        }
        Where::Sku(sku, region) => {
            let products: BTreeSet<String> =
                pools.iter().map(|pool| format!("{} in {}", pool.sku, pool.region)).collect();
            (format!("No GpuPool has `{sku}` in region `{region}`"), list(products.iter().map(String::as_str)))
        }
    };
    let there = if pools.is_empty() { "there is none at all".to_owned() } else { format!("there is {there}") };
    reason("NoMatchingPool", format!("{missing} ({there}). It is tried again when such a pool is created."))
}

/// Why it can never be: no pool that matches could hold it, empty or not.
pub(super) fn misfit(want: Want<'_>, require: Option<&TopologyKey>, misfits: &[(&Pool, Misfit)]) -> Reason {
    let unknown = misfits.iter().all(|(_, misfit)| *misfit == Misfit::UnknownLevel);
    let code = if unknown { "UnknownTopology" } else { "ShapeDoesNotFit" };
    let wanted = wanted(want);
    let level = require.map(TopologyKey::as_str).unwrap_or_default();
    let mut message = String::new();
    for (pool, misfit) in misfits.iter().take(MAX_LISTED.min(3)) {
        let name = &pool.name;
        let said = match misfit {
            Misfit::Nothing => format!("Nothing is wanted of pool `{name}`: ask for at least one device."),
            Misfit::OtherNodes { per_node } => {
                format!("Nodes of pool `{name}` have {}: ask for {per_node} per node.", devices(u64::from(*per_node)))
            }
            Misfit::NotWholeNodes { per_node } => {
                format!(
                    "{wanted} are not whole nodes of pool `{name}`: ask for a multiple of {per_node}, or set `exclusiveNodes: false`."
                )
            }
            Misfit::NotParts { per_node } => format!(
                "{} of each node do not add up to {wanted} or are more than a node of pool `{name}` has ({per_node}): ask for {per_node} or less, of which the whole is a multiple.",
                want.per_node.unwrap_or_default()
            ),
            Misfit::TooLarge { total } => {
                format!("{wanted} wanted, but pool `{name}` has {total} in all, free or not: ask for at most {total}.")
            }
            Misfit::UnknownLevel => format!(
                "`{level}` is no topology level of pool `{name}`: its levels are {}.",
                list(pool.topology.iter().map(TopologyKey::as_str))
            ),
            Misfit::DomainTooSmall { largest } => format!(
                "{wanted} wanted in one `{level}`, but the largest of pool `{name}` has {largest}, free or not: ask for at most {largest}, or require a wider level."
            ),
            Misfit::NoProfile => format!(
                "Pool `{name}` has no profile `{}`: it has {}.",
                want.profile.map(ProfileName::as_str).unwrap_or_default(),
                list(pool.profiles.iter().map(|Profile { name, .. }| name.as_str()))
            ),
            Misfit::NotHeld => format!(
                "Shares of a device are planned only so far, and pool `{name}` does not observe: ask for whole devices."
            ),
            Misfit::TooManyShares { most } => format!(
                "{wanted} wanted, but pool `{name}` can give {most} together, free or not: ask for at most {most}."
            ),
        };
        message.push_str(&bounded(&said, MAX_QUOTED));
        message.push(' ');
    }
    let more = misfits.len().saturating_sub(3);
    if more > 0 {
        let _ = write!(message, "{more} more pools cannot hold it either.");
    }
    reason(code, message.trim_end().to_owned())
}

pub(super) fn insufficient_capacity(
    want: Want<'_>,
    nodes: usize,
    require: Option<&TopologyKey>,
    stock: &Stock,
    others: usize,
) -> Reason {
    let mut message = format!("{} wanted, {}{}.", wanted(want), census(want, stock), elsewhere(others));
    let (free, most) = match require {
        _ if want.profile.is_some() => (false, 0),
        Some(level) if want.whole => (stock.tally().free >= nodes, stock.devices(stock.most_free(level))),
        Some(level) => (stock.part_free() >= u64::from(want.count), stock.most_part_free(level)),
        None => (false, 0),
    };
    if let Some(level) = require.filter(|_| free) {
        let _ = write!(
            message,
            " They must be in one `{}`, and none has more than {most} free.",
            bounded(level.as_str(), MAX_QUOTED)
        );
    }
    message
        .push_str(" It is booked when enough come free or nodes are added; nothing younger is booked there before it.");
    reason("InsufficientCapacity", message)
}

pub(super) fn behind_older_request(want: Want<'_>, stock: &Stock, older: usize, others: usize) -> Reason {
    let waits =
        if older == 1 { "1 older reservation waits".to_owned() } else { format!("{older} older reservations wait") };
    let wanted = wanted(want);
    reason(
        "BehindOlderRequest",
        format!(
            "{wanted} wanted, {}{}, but {waits} for that pool, and nobody is passed. It is tried again when those before it are booked or give up.",
            census(want, stock),
            elsewhere(others)
        ),
    )
}

pub(super) fn pool_not_selling(pool: Option<&Pool>, others: usize) -> Reason {
    let name = pool.map(|pool| pool.name.as_str()).unwrap_or_default();
    let why = pool.and_then(|pool| pool.not_selling.as_deref()).unwrap_or_default();
    let why = bounded(why.trim_end_matches('.'), MAX_QUOTED);
    reason(
        "PoolNotSelling",
        format!(
            "Pool `{name}` sells nothing new now: {why}{}. It is tried again when the pool sells again.",
            elsewhere(others)
        ),
    )
}

/// It was tried once.
pub(super) fn not_now(why: &Reason) -> Reason {
    reason(
        "NotNow",
        format!(
            "Not now, and waitFor is 0s ({}): {} Create it again with a longer waitFor to wait.",
            why.code, why.message
        ),
    )
}

pub(super) fn waited_too_long(why: &Reason, wait_for_ms: i64) -> Reason {
    reason(
        "WaitedTooLong",
        format!(
            "It waited {} (waitFor) in vain ({}): {} Create it again to wait anew.",
            span(wait_for_ms),
            why.code,
            why.message
        ),
    )
}

/// What is free in a pool for what is wanted, and where the rest is.
fn census(want: Want<'_>, stock: &Stock) -> String {
    if let Some(profile) = want.profile {
        let free = shares_free(stock, profile);
        return format!("{free} free in pool `{}`", stock.pool().name);
    }
    let tally = stock.tally();
    let total = stock.devices(stock.len());
    let whole = stock.devices(tally.free);
    let mut text = if want.whole {
        format!("{whole} free of {total} in pool `{}`", stock.pool().name)
    } else {
        format!("{} free of {total} in pool `{}`", stock.part_free(), stock.pool().name)
    };
    let shared = stock.devices(tally.shared);
    let rest = [
        (stock.devices(tally.sold).saturating_add(tally.part_sold), "sold"),
        (if want.whole { tally.part_free } else { 0 }, "free on nodes that are held in parts"),
        (stock.devices(tally.owner), "used by the owner"),
        (
            stock
                .devices(tally.not_now)
                .saturating_add(shared.saturating_sub(tally.part_sold.saturating_add(tally.part_free))),
            "in turnover or not ready",
        ),
        (stock.devices(tally.broken), "on broken or cordoned nodes"),
    ];
    let rest: Vec<String> = rest
        .into_iter()
        .filter(|&(devices, _)| devices > 0)
        .map(|(devices, what)| format!("{devices} {what}"))
        .collect();
    if !rest.is_empty() {
        let _ = write!(text, " ({})", rest.join(", "));
    }
    text
}

fn elsewhere(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => ", and 1 other pool cannot take it either".to_owned(),
        _ => format!(", and {others} other pools cannot take it either"),
    }
}

/// How many more shares of a name a pool could give.
pub(super) fn shares_free(stock: &Stock, profile: &ProfileName) -> u64 {
    share_of(stock.pool(), profile).map_or(0, |milli| stock.shares_free(milli))
}

fn wanted(want: Want<'_>) -> String {
    match (want.profile, want.count) {
        (None, count) => devices(u64::from(count)),
        (Some(profile), 1) => format!("1 share `{profile}`"),
        (Some(profile), count) => format!("{count} shares `{profile}`"),
    }
}

fn devices(count: u64) -> String {
    if count == 1 { "1 device".to_owned() } else { format!("{count} devices") }
}

/// The first few, quoted.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let first: Vec<String> = names.iter().take(MAX_LISTED).map(|name| format!("`{}`", bounded(name, 70))).collect();
    match names.len().saturating_sub(MAX_LISTED) {
        _ if names.is_empty() => "none".to_owned(),
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// A time as people write it: `24h`, `90m`, `30s`.
fn span(ms: i64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        _ if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        _ if seconds % 60 == 0 => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}

fn reason(code: &'static str, message: String) -> Reason {
    let message = if message.len() > MAX_MESSAGE { bounded(&message, MAX_MESSAGE) } else { message };
    Reason { code, message }
}

/// At most so many bytes, cut where a character ends.
fn bounded(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mark = '…';
    let room = most.saturating_sub(mark.len_utf8());
    let end = (0..=room).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let mut cut = text.get(..end).unwrap_or_default().to_owned();
    cut.push(mark);
    cut
}
