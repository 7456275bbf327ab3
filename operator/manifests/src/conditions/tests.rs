use jiff::Timestamp;

use super::{Wanted, bounded, merge};

#[test]
fn a_transition_time_changes_only_with_its_status() {
    let t1 = Timestamp::from_second(100).unwrap();
    let t2 = Timestamp::from_second(200).unwrap();
    let first = merge(&[], vec![Wanted::new("Ready", true, "A", "a")], Some(1), t1);
    let same = merge(&first, vec![Wanted::new("Ready", true, "B", "b")], Some(2), t2);
    assert_eq!(same[0].last_transition_time.0, t1);
    assert_eq!((same[0].reason.as_str(), same[0].observed_generation), ("B", Some(2)));
    let changed = merge(&same, vec![Wanted::new("Ready", false, "B", "b")], Some(2), t2);
    assert_eq!(changed[0].last_transition_time.0, t2);
}

#[test]
fn messages_are_cut_at_characters() {
    assert_eq!(bounded("häää", 4), "häää");
    assert_eq!(bounded("hääää", 4), "h...");
}
