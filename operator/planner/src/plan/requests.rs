//! An answer for every request, oldest first. Within a pool nobody passes an older request that waits for its capacity; one that waits for its
//! tenant's quota stands in nobody's way.

use std::collections::{HashMap, HashSet};

use super::{Book, NewBooking, Outcome, Reason, reasons, stocks::Stocks};
use crate::{
    placement::{Stock, Want},
    types::{BookingId, Pool, Region, Request, ReservationUid, Sku, Snapshot, Tenant, TenantName, Tier, TimeMs, Where},
};

/// Devices that tenants hold or get in this plan.
type Holdings<'a> = HashMap<(&'a TenantName, &'a Sku, Tier), u64>;

/// The requests without a live booking, one by one, oldest first.
pub(super) fn plan_requests<'a>(
    snapshot: &'a Snapshot,
    book: &Book<'a>,
    ending: &HashSet<&BookingId>,
    stocks: Stocks<'a>,
    now: TimeMs,
) -> (Vec<NewBooking>, Vec<(ReservationUid, Outcome)>, Option<TimeMs>) {
    let mut holdings = Holdings::new();
    for booking in book.live.iter().filter(|booking| !ending.contains(&booking.id)) {
        *holdings.entry((&booking.tenant, &booking.sku, booking.tier)).or_default() += u64::from(booking.devices);
    }
    let waiting = vec![0; stocks.pools.len()];
    let tenants = snapshot.tenants.iter().map(|tenant| (&tenant.name, tenant)).collect();
    let mut desk = Desk { stocks, tenants, holdings, waiting };
    let (mut bookings, mut outcomes, mut next) = (Vec::new(), Vec::new(), None);
    for &request in &book.waiting {
        let (reason, blocks) = match desk.decide(request) {
            Answer::Booked(booking) => {
                bookings.push(booking);
                continue;
            }
            Answer::Never(reason) => {
                outcomes.push((request.reservation.uid.clone(), Outcome::Rejected(reason)));
                continue;
            }
            Answer::Later { reason, blocks } => (reason, blocks),
        };
        let deadline = request.created.plus(request.wait_for_ms);
        let outcome = if request.wait_for_ms <= 0 {
            Outcome::Rejected(reasons::not_now(&reason))
        } else if now >= deadline {
            Outcome::Expired(reasons::waited_too_long(&reason, request.wait_for_ms))
        } else {
            // Only who goes on waiting stands in the way of others.
            for pool in blocks {
                if let Some(waiting) = desk.waiting.get_mut(pool) {
                    *waiting += 1;
                }
            }
            next = next.into_iter().chain([deadline]).min();
            Outcome::Waitlisted(reason)
        };
        outcomes.push((request.reservation.uid.clone(), outcome));
    }
    (bookings, outcomes, next)
}

/// What is known while requests are answered.
struct Desk<'a> {
    stocks: Stocks<'a>,
    tenants: HashMap<&'a TenantName, &'a Tenant>,
    holdings: Holdings<'a>,
    /// Requests that wait for each pool's capacity, by position of the pool.
    waiting: Vec<usize>,
}

enum Answer {
    Booked(NewBooking),
    /// No change of capacity would help.
    Never(Reason),
    /// `blocks`: the pools for whose capacity it waits.
    Later {
        reason: Reason,
        blocks: Vec<usize>,
    },
}

impl<'a> Desk<'a> {
    /// The rules, in order. What the tenant may is asked before what the pools have.
    fn decide(&mut self, request: &'a Request) -> Answer {
        // A Tenant may be applied after its reservations: tools that apply a folder keep no order.
        let Some(tenant) = request.tenant.as_ref().and_then(|name| self.tenants.get(name).copied()) else {
            let reason = reasons::no_tenant(&request.reservation.namespace);
            return Answer::Later { reason, blocks: Vec::new() };
        };
        if request.tier == Tier::Internal && !tenant.owner {
            return Answer::Never(reasons::tier_not_allowed(&tenant.name));
        }
        let Some(want) = Want::of(request.shape) else { return Answer::Never(reasons::not_sold_yet()) };
        let matching = self.stocks.matching(&request.place);
        let product = self.product(&request.place, &matching);
        if let Some((sku, region)) = product {
            let refusal =
                check_region(tenant, region).and_then(|()| check_quota(tenant, sku, request.tier, want.devices));
            if let Err(reason) = refusal {
                return Answer::Never(reason);
            }
        }
        let Some((sku, _)) = product.filter(|_| !matching.is_empty()) else {
            let pools: Vec<&Pool> = self.stocks.pools.iter().map(Stock::pool).collect();
            return Answer::Later { reason: reasons::no_matching_pool(&request.place, &pools), blocks: Vec::new() };
        };
        let usable = match self.usable(request, want, &matching) {
            Ok(usable) => usable,
            Err(reason) => return Answer::Never(reason),
        };
        let devices = u64::from(want.devices);
        let holding = (&tenant.name, sku, request.tier);
        let held = self.holdings.get(&holding).copied().unwrap_or(0);
        if let Some(limit) = limit(tenant, sku, request.tier)
            && held.saturating_add(devices) > u64::from(limit)
        {
            let reason = reasons::quota_in_use(tenant, sku, request.tier, want.devices, held, limit);
            return Answer::Later { reason, blocks: Vec::new() };
        }
        match self.place(request, &usable) {
            Some(booking) => {
                *self.holdings.entry(holding).or_default() += devices;
                Answer::Booked(booking)
            }
            None => Answer::Later {
                reason: self.why_not(request, want, &usable),
                blocks: usable.into_iter().map(|usable| usable.pool).collect(),
            },
        }
    }

    /// What is asked for and where; none when it is asked for by a pool that is not there.
    fn product(&self, place: &'a Where, matching: &[usize]) -> Option<(&'a Sku, &'a Region)> {
        match place {
            Where::Sku(sku, region) => Some((sku, region)),
            Where::Pool(_) => {
                let pool = self.stocks.pools.get(*matching.first()?)?.pool();
                Some((&pool.sku, &pool.region))
            }
        }
    }

    /// The pools that could ever hold it, with the number of nodes it takes there.
    fn usable(&self, request: &Request, want: Want, matching: &[usize]) -> Result<Vec<Usable>, Reason> {
        let mut usable = Vec::new();
        let mut misfits = Vec::new();
        for &pool in matching {
            let Some(stock) = self.stocks.pools.get(pool) else { continue };
            match stock.check(want, request.require.as_ref()) {
                Ok(nodes) => usable.push(Usable { pool, nodes }),
                Err(misfit) => misfits.push((stock.pool(), misfit)),
            }
        }
        if usable.is_empty() { Err(reasons::misfit(want, request.require.as_ref(), &misfits)) } else { Ok(usable) }
    }

    /// Books from the pool with the least free nodes that has enough, and in which nobody older waits.
    fn place(&mut self, request: &Request, usable: &[Usable]) -> Option<NewBooking> {
        let mut open: Vec<(usize, Usable)> = usable
            .iter()
            .filter(|usable| self.waiting_in(usable.pool) == 0)
            .filter_map(|&usable| {
                let stock = self.stocks.pools.get(usable.pool)?;
                let free = stock.tally().free;
                (stock.pool().not_selling.is_none() && free >= usable.nodes).then_some((free, usable))
            })
            .collect();
        open.sort_unstable_by_key(|&(free, usable)| (free, usable.pool));
        open.into_iter().find_map(|(_, usable)| {
            let stock = self.stocks.pools.get_mut(usable.pool)?;
            let slots = stock.find(usable.nodes, request.require.as_ref())?;
            Some(NewBooking {
                reservation: request.reservation.clone(),
                pool: stock.pool().name.clone(),
                segments: stock.take(&slots),
            })
        })
    }

    /// Why none of the pools that could hold it does so now: of those that sell, the one with the most free nodes speaks.
    fn why_not(&self, request: &Request, want: Want, usable: &[Usable]) -> Reason {
        let stocks = || usable.iter().filter_map(|usable| Some((usable, self.stocks.pools.get(usable.pool)?)));
        let selling = || stocks().filter(|(_, stock)| stock.pool().not_selling.is_none());
        let by_free = |(_, stock): &(&Usable, &Stock<'_>)| stock.tally().free;
        let others = usable.len().saturating_sub(1);
        let untaken = selling().filter(|(usable, _)| self.waiting_in(usable.pool) == 0).max_by_key(by_free);
        if let Some((usable, stock)) = untaken {
            return reasons::insufficient_capacity(want, usable.nodes, request.require.as_ref(), stock, others);
        }
        if let Some((usable, stock)) = selling().max_by_key(by_free) {
            return reasons::behind_older_request(want, stock, self.waiting_in(usable.pool), others);
        }
        reasons::pool_not_selling(stocks().map(|(_, stock)| stock.pool()).next(), others)
    }

    fn waiting_in(&self, pool: usize) -> usize {
        self.waiting.get(pool).copied().unwrap_or(0)
    }
}

/// A pool, by position, that could hold a request on so many of its nodes.
#[derive(Clone, Copy)]
struct Usable {
    pool: usize,
    nodes: usize,
}

fn check_region(tenant: &Tenant, region: &Region) -> Result<(), Reason> {
    if tenant.regions.is_empty() || tenant.regions.contains(region) {
        return Ok(());
    }
    Err(reasons::region_not_allowed(tenant, region))
}

fn check_quota(tenant: &Tenant, sku: &Sku, tier: Tier, devices: u32) -> Result<(), Reason> {
    match limit(tenant, sku, tier) {
        Some(limit) if devices > limit => Err(reasons::quota_exceeded(tenant, sku, tier, devices, limit)),
        _ => Ok(()),
    }
}

fn limit(tenant: &Tenant, sku: &Sku, tier: Tier) -> Option<u32> {
    let of_both = tenant.quotas.iter().filter(|quota| quota.sku == *sku && quota.tier == tier);
    of_both.map(|quota| quota.limit).min()
}
