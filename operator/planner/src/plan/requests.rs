//! An answer for every request, oldest first. Within a pool nobody passes an older request that waits for its capacity; one that waits for its
//! tenant's quota stands in nobody's way.

use std::collections::{HashMap, HashSet};

use super::{
    NewBooking, Outcome, Planner, Reason,
    book::{Book, Holding},
    reasons,
    stocks::Stocks,
};
use crate::{
    packing::WHOLE,
    placement::{Stock, Want, share_of},
    types::{BookingId, Pool, Region, Request, ReservationUid, Sku, Tenant, TenantName, Tier, TimeMs, Where},
};

/// The requests without a live booking, one by one, oldest first. What is booked is taken from the stocks, for the caller to put back.
pub(super) fn plan_requests(
    planner: &mut Planner,
    ending: &HashSet<BookingId>,
    now: TimeMs,
) -> (Vec<NewBooking>, Vec<(ReservationUid, Outcome)>, Option<TimeMs>) {
    let mut freed: HashMap<Holding, i64> = HashMap::new();
    for booking in ending.iter().filter_map(|id| planner.book.get(id)) {
        let key = (booking.tenant.clone(), booking.sku.clone(), booking.tier);
        *freed.entry(key).or_default() -= i64::from(booking.devices);
    }
    let waiting = vec![0; planner.stocks.pools.len()];
    let Planner { stocks, tenants, book, queue, .. } = planner;
    let mut desk = Desk { stocks, tenants, book, changed: freed, waiting };
    let (mut bookings, mut outcomes, mut next) = (Vec::new(), Vec::new(), None);
    for request in queue.waiting() {
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
    stocks: &'a mut Stocks,
    tenants: &'a HashMap<TenantName, Tenant>,
    book: &'a Book,
    /// Devices by which this plan changes what tenants hold.
    changed: HashMap<Holding, i64>,
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

impl Desk<'_> {
    /// The rules, in order. What the tenant may is asked before what the pools have.
    fn decide(&mut self, request: &Request) -> Answer {
        // A Tenant may be applied after its reservations: tools that apply a folder keep no order.
        let Some(tenant) = request.tenant.as_ref().and_then(|name| self.tenants.get(name)) else {
            let reason = reasons::no_tenant(&request.reservation.namespace);
            return Answer::Later { reason, blocks: Vec::new() };
        };
        if request.tier == Tier::Internal && !tenant.owner {
            return Answer::Never(reasons::tier_not_allowed(&tenant.name));
        }
        let want = Want::of(&request.shape);
        let matching = self.stocks.matching(&request.place);
        let product = self.product(&request.place, &matching);
        let devices = self.devices(want, &matching);
        if let Some((sku, region)) = &product {
            let refusal = check_region(tenant, region).and_then(|()| check_quota(tenant, sku, request.tier, devices));
            if let Err(reason) = refusal {
                return Answer::Never(reason);
            }
        }
        let Some((sku, _)) = product.filter(|_| !matching.is_empty()) else {
            let pools: Vec<&Pool> = self.stocks.pools.iter().map(|stock| &**stock.pool()).collect();
            return Answer::Later { reason: reasons::no_matching_pool(&request.place, &pools), blocks: Vec::new() };
        };
        let usable = match self.usable(request, want, &matching) {
            Ok(usable) => usable,
            Err(reason) => return Answer::Never(reason),
        };
        let limit = limit(tenant, &sku, request.tier);
        let holding: Holding = (tenant.name.clone(), sku, request.tier);
        if let Some(limit) = limit {
            let changed = self.changed.get(&holding).copied().unwrap_or(0);
            let held = self.book.holding(&holding).saturating_add_signed(changed);
            if held.saturating_add(u64::from(devices)) > u64::from(limit) {
                let reason = reasons::quota_in_use(tenant, &holding.1, request.tier, devices, held, limit);
                return Answer::Later { reason, blocks: Vec::new() };
            }
        }
        match self.place(request, want, &usable) {
            Some(booking) => {
                if limit.is_some() {
                    *self.changed.entry(holding).or_default() += i64::from(devices);
                }
                Answer::Booked(booking)
            }
            None => Answer::Later {
                reason: self.why_not(request, want, &usable),
                blocks: usable.into_iter().map(|usable| usable.pool).collect(),
            },
        }
    }

    /// What counts for quotas: whole devices, or as many as the shares add up to.
    fn devices(&self, want: Want<'_>, matching: &[usize]) -> u32 {
        let Some(profile) = want.profile else { return want.count };
        let pools = matching.iter().filter_map(|&pool| self.stocks.pools.get(pool));
        let milli = pools.filter_map(|stock| share_of(stock.pool(), profile)).max().unwrap_or(0);
        let devices = (u64::from(want.count) * u64::from(milli)).div_ceil(u64::from(WHOLE));
        u32::try_from(devices).unwrap_or(u32::MAX)
    }

    /// What is asked for and where; none when it is asked for by a pool that is not there.
    fn product(&self, place: &Where, matching: &[usize]) -> Option<(Sku, Region)> {
        match place {
            Where::Sku(sku, region) => Some((sku.clone(), region.clone())),
            Where::Pool(_) => {
                let pool = self.stocks.pools.get(*matching.first()?)?.pool();
                Some((pool.sku.clone(), pool.region.clone()))
            }
        }
    }

    /// The pools that could ever hold it, with the number of nodes it takes there.
    fn usable(&self, request: &Request, want: Want<'_>, matching: &[usize]) -> Result<Vec<Usable>, Reason> {
        let mut usable = Vec::new();
        let mut misfits = Vec::new();
        for &pool in matching {
            let Some(stock) = self.stocks.pools.get(pool) else { continue };
            match stock.check(want, request.require.as_ref()) {
                Ok(nodes) => usable.push(Usable { pool, nodes }),
                Err(misfit) => misfits.push((&**stock.pool(), misfit)),
            }
        }
        if usable.is_empty() { Err(reasons::misfit(want, request.require.as_ref(), &misfits)) } else { Ok(usable) }
    }

    /// Books from the pool with the least free capacity that has enough, and in which nobody older waits.
    fn place(&mut self, request: &Request, want: Want<'_>, usable: &[Usable]) -> Option<NewBooking> {
        let mut open: Vec<(u64, Usable)> = usable
            .iter()
            .filter(|usable| self.waiting_in(usable.pool) == 0)
            .filter_map(|&usable| {
                let stock = self.stocks.pools.get(usable.pool)?;
                let (free, wanted) = match want.profile {
                    _ if want.whole => (stock.tally().free as u64, usable.nodes as u64),
                    Some(profile) => (reasons::shares_free(stock, profile), u64::from(want.count)),
                    None => (stock.part_free(), u64::from(want.count)),
                };
                (stock.pool().not_selling.is_none() && free >= wanted).then_some((free, usable))
            })
            .collect();
        open.sort_unstable_by_key(|&(free, usable)| (free, usable.pool));
        let require = request.require.as_ref();
        open.into_iter().find_map(|(_, Usable { pool: at, nodes })| {
            let stock = self.stocks.pools.get_mut(at)?;
            let pool = stock.pool().name.clone();
            if let Some(profile) = want.profile {
                let milli = share_of(stock.pool(), profile)?;
                let shares = stock.find_shares(want.count, milli, require)?;
                let slots: Vec<_> = shares.iter().map(|&(slot, _)| slot).collect();
                let shares = self.stocks.take(at, &slots, |stock| stock.take_shares(&shares, milli))?;
                let reservation = request.reservation.clone();
                return Some(NewBooking { reservation, pool, segments: Vec::new(), shares });
            }
            let segments = if want.whole {
                let slots = stock.find(nodes, require)?;
                self.stocks.take(at, &slots, |stock| stock.take(&slots))?
            } else {
                let parts = stock.find_parts(want.count, want.per_node, require)?;
                let slots: Vec<_> = parts.iter().map(|&(slot, _)| slot).collect();
                self.stocks.take(at, &slots, |stock| stock.take_parts(&parts))?
            };
            Some(NewBooking { reservation: request.reservation.clone(), pool, segments, shares: Vec::new() })
        })
    }

    /// Why none of the pools that could hold it does so now: of those that sell, the one with the most free capacity speaks.
    fn why_not(&self, request: &Request, want: Want<'_>, usable: &[Usable]) -> Reason {
        let stocks = || usable.iter().filter_map(|usable| Some((usable, self.stocks.pools.get(usable.pool)?)));
        let selling = || stocks().filter(|(_, stock)| stock.pool().not_selling.is_none());
        let by_free = |(_, stock): &(&Usable, &Stock)| match want.profile {
            _ if want.whole => stock.tally().free as u64,
            Some(profile) => reasons::shares_free(stock, profile),
            None => stock.part_free(),
        };
        let others = usable.len().saturating_sub(1);
        let untaken = selling().filter(|(usable, _)| self.waiting_in(usable.pool) == 0).max_by_key(by_free);
        if let Some((usable, stock)) = untaken {
            return reasons::insufficient_capacity(want, usable.nodes, request.require.as_ref(), stock, others);
        }
        if let Some((usable, stock)) = selling().max_by_key(by_free) {
            return reasons::behind_older_request(want, stock, self.waiting_in(usable.pool), others);
        }
        reasons::pool_not_selling(stocks().map(|(_, stock)| &**stock.pool()).next(), others)
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
