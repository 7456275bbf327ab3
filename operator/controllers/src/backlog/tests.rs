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
fn what_was_booked_is_untold_until_it_was_told() {
    let (backlog, mut orders) = Backlog::new();
    for number in 0..=MUCH {
        assert!(!backlog.hurries(), "{number} are not much");
        backlog.booked(&booking(number));
        assert!(backlog.has(&format!("r{number}").into()));
        assert_eq!(orders.try_recv().unwrap().name, format!("one-{number}"));
    }
    assert!(backlog.hurries());
    backlog.told(&"r3".into());
    backlog.told(&"r3".into());
    assert!(!backlog.hurries());
    assert!(!backlog.has(&"r3".into()));
    assert_eq!(backlog.state().queue.len(), MUCH + 1, "the first of all is untold");
    backlog.told(&"r0".into());
    assert_eq!(backlog.state().queue.front().unwrap().0, "r1".into());
}

#[test]
fn where_many_are_booked_none_waits() {
    let (backlog, _orders) = Backlog::new();
    for number in 0..MANY {
        assert!(!backlog.hurries());
        backlog.booked(&booking(number));
        backlog.told(&format!("r{number}").into());
    }
    assert!(backlog.hurries(), "all are told, and more will come");
    assert!(!backlog.state().hurries(Instant::now() + Duration::from_secs(2)));
}

#[test]
fn hand_overs_wait_for_a_late_backlog_and_not_for_ever() {
    let (backlog, _orders) = Backlog::new();
    for number in 0..=MUCH {
        backlog.booked(&booking(number));
    }
    let now = Instant::now();
    assert_eq!(backlog.state().room(now), AT_ONCE, "much, and it came just now");
    assert_eq!(backlog.state().room(now + LATE * 2), 0);
    backlog.told(&"r0".into());
    assert_eq!(backlog.state().room(now + LATE * 2), AT_ONCE, "late, and not much");

    let (booked, now_ms) = (TimeMs(1_000), 2_000);
    let leaves: Vec<_> = (0..AT_ONCE).map(|_| backlog.leave(booked, now_ms).unwrap()).collect();
    assert_eq!(backlog.leave(booked, now_ms).unwrap_err(), PAUSE);
    assert!(backlog.leave(booked, 1_000 + BOUND_MS).is_ok(), "nobody waits for ever");
    drop(leaves);
    assert!(backlog.leave(booked, now_ms).is_ok());
}

#[test]
fn a_busy_server_is_given_fewer_hand_overs() {
    let (backlog, _orders) = Backlog::new();
    backlog.took(BUSY * 5);
    let now = Instant::now();
    assert_eq!(backlog.state().room(now), 1, "one goes on, however busy it is, where few are booked");
    for number in 0..MANY {
        backlog.booked(&booking(number));
        backlog.told(&format!("r{number}").into());
    }
    assert_eq!(backlog.state().room(now), 0, "where many are, they go first");
    assert_eq!(backlog.state().room(now + REMEMBERED * 2), AT_ONCE, "that was long ago");
    for _ in 0..32 {
        backlog.took(BUSY / 3);
    }
    assert_eq!(backlog.state().room(Instant::now()), 2);
    for _ in 0..32 {
        backlog.took(Duration::ZERO);
    }
    assert_eq!(backlog.state().room(Instant::now()), AT_ONCE);
}
