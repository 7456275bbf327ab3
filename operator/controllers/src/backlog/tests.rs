use std::sync::Arc;

use spillway_planner::{ReservationRef, Tier};

use super::*;

fn booking(number: usize) -> Booking {
    Booking {
        id: format!("b{number}").into(),
        reservation: ReservationRef {
            uid: format!("r{number}").into(),
            namespace: Arc::from("acme"),
            name: format!("one-{number}").into(),
            generation: 1,
        },
        tenant: "acme".into(),
        pool: "a".into(),
        sku: "a".into(),
        region: "a".into(),
        tier: Tier::OnDemand,
        devices: 1,
        exclusive: false,
        require: None,
        duration_ms: None,
        booked_at: TimeMs(1_000),
        active_at: None,
        end: None,
        end_reason: None,
        segments: Vec::new(),
    }
}

#[test]
fn a_long_backlog_lets_young_bookings_wait() {
    let (backlog, mut orders) = Backlog::new();
    let (booked, now) = (TimeMs(1_000), 2_000);
    for number in 0..=MUCH {
        assert_eq!(backlog.pause(booked, now), None, "{number} are not much");
        backlog.booked(&booking(number));
        assert!(backlog.has(&format!("r{number}").into()));
        assert_eq!(orders.try_recv().unwrap().name, format!("one-{number}"));
    }
    assert_eq!(backlog.pause(booked, now), Some(PAUSE));
    assert_eq!(backlog.pause(booked, 1_000 + BOUND_MS), None, "nobody waits for ever");
    backlog.told(&"r3".into());
    backlog.told(&"r3".into());
    assert_eq!(backlog.pause(booked, now), None);
}
