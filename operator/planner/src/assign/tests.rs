use proptest::prelude::*;
use rstest::rstest;

use super::*;

const GPU: &str = "nvidia.com/gpu";

/// `reservation@node=devices`; four cores and 8 GiB go with each device.
fn room(text: &str) -> Room {
    let (reservation, rest) = text.split_once('@').unwrap();
    let (node, devices) = rest.split_once('=').unwrap();
    let devices: u32 = devices.parse().unwrap();
    Room {
        reservation: reservation.into(),
        node: node.into(),
        uid: format!("uid-{node}").into(),
        set_up: true,
        resource: GPU.into(),
        devices,
        cpu_milli: i64::from(devices) * 4_000,
        memory_mib: i64::from(devices) * 8_192,
    }
}

fn rooms(text: &str) -> Vec<Room> {
    text.split_whitespace().map(room).collect()
}

/// `name=devices`, with `/node` where it is bound.
fn guest(text: &str) -> Guest {
    let (text, node) = text.split_once('/').map_or((text, None), |(text, node)| (text, Some(node.into())));
    let (name, devices) = text.split_once('=').unwrap();
    Guest {
        uid: format!("uid-{name}").into(),
        name: name.into(),
        created: TimeMs(0),
        node,
        reservation: None,
        admitted: Vec::new(),
        devices: [(GPU.into(), devices.parse().unwrap())].into(),
        cpu_milli: 1_000,
        memory_mib: 1_024,
        limited: true,
        priority: 0,
        deleting: false,
    }
}

fn guests(text: &str) -> Vec<Guest> {
    text.split_whitespace().map(guest).collect()
}

/// `pod:reservation@node=devices`.
fn record(text: &str) -> Record {
    let (pod, text) = text.split_once(':').unwrap();
    let Room { reservation, node, devices, .. } = room(text);
    Record { pod_uid: format!("uid-{pod}").into(), pod: pod.into(), reservation, node, devices }
}

fn records(text: &str) -> Vec<Record> {
    text.split_whitespace().map(record).collect()
}

fn said(found: &Assignment) -> String {
    let records = found.records.iter().map(|r| format!("{}:{}@{}={}", r.pod, r.reservation, r.node, r.devices));
    let admit = found.admit.iter().map(|(pod, node)| format!("{pod}>{node}").replace("uid-", ""));
    let waiting = found.waiting.iter().map(|(pod, reason)| format!("{pod}?{}", reason.code).replace("uid-", ""));
    let expel = found.expel.iter().map(|pod| format!("{pod}!").replace("uid-", ""));
    records.chain(admit).chain(waiting).chain(expel).collect::<Vec<_>>().join(" ")
}

#[rstest]
#[case::lands("r@n1=3", "a=1", "", "a:r@n1=1 a>n1")]
#[case::as_many_as_are_held("r@n1=3", "a=1 b=1 c=1 d=1", "", "a:r@n1=1 b:r@n1=1 c:r@n1=1 a>n1 b>n1 c>n1 d?OverHold")]
#[case::fullest_room_that_suffices("r@n1=4 s@n2=2", "a=2", "", "a:s@n2=2 a>n2")]
#[case::never_in_pieces("r@n1=2 r@n2=2", "a=3", "", "a?OverHold")]
#[case::recorded_and_not_known("r@n1=3", "a=1", "a:r@n1=1", "a:r@n1=1 a>n1")]
#[case::running("r@n1=3", "a=1/n1", "a:r@n1=1", "a:r@n1=1")]
#[case::landed_on_a_node_of_its_own("r@n1=3", "a=1/n9 b=3", "a:r@n1=1", "b:r@n1=3 b>n1")]
#[case::gone_but_not_seen_to_be("r@n1=3", "b=3", "a:r@n1=1", "a:r@n1=1 b?OverHold")]
#[case::gone_and_seen_to_be("r@n1=3", "b=3", "gone:r@n1=1", "b:r@n1=3 b>n1")]
#[case::gone_from_one_of_two_nodes("r@n1=1 r@n2=1", "b=1", "gone:r@n1=1 gone:r@n2=1", "b:r@n1=1 gone:r@n2=1 b>n1")]
#[case::two_places_of_one_node("r@n1=1 s@n1=1", "a=1", "a:r@n1=1 a:s@n1=1", "a:r@n1=1 a>n1")]
#[case::two_places_and_not_known("r@n1=1 r@n2=1", "a=1", "a:r@n1=1 a:r@n2=1", "a:r@n1=1 a:r@n2=1 a>n1")]
#[case::two_places_and_one_of_them("r@n1=1 r@n2=1", "a=1/n2", "a:r@n1=1 a:r@n2=1", "a:r@n2=1")]
#[case::a_place_that_is_over_does_not_take_one_that_is_held("s@n1=1", "a=1/n1", "a:r@n1=1 a:s@n1=1", "a:s@n1=1")]
#[case::nothing_is_held("", "a=1", "", "")]
fn places(#[case] held: &str, #[case] pods: &str, #[case] before: &str, #[case] expected: &str) {
    let gone = [("n1".into(), "uid-gone".into())].into();
    assert_eq!(said(&assign(&rooms(held), &guests(pods), &records(before), &gone)), expected);
}

#[rstest]
#[case::another_reservation(|g: &mut Guest| g.reservation = Some("s".into()), "")]
#[case::this_reservation(|g: &mut Guest| g.reservation = Some("r".into()), "a:r@n1=1 a>n1")]
#[case::important(|g: &mut Guest| g.priority = 1, "a?PriorityTooHigh")]
#[case::unlimited(|g: &mut Guest| g.limited = false, "a?LimitsMissing")]
#[case::all_the_cpu(|g: &mut Guest| g.cpu_milli = 12_000, "a:r@n1=1 a>n1")]
#[case::more_cpu(|g: &mut Guest| g.cpu_milli = 12_001, "a?ShareExceeded")]
#[case::more_memory(|g: &mut Guest| g.memory_mib = 24_577, "a?ShareExceeded")]
#[case::being_deleted(|g: &mut Guest| g.deleting = true, "")]
#[case::other_devices(|g: &mut Guest| g.devices = [("amd.com/gpu".into(), 1)].into(), "")]
#[case::other_devices_as_well(|g: &mut Guest| { g.devices.insert("amd.com/gpu".into(), 1); }, "")]
#[case::its_record_was_lost(|g: &mut Guest| (g.admitted, g.node) = (vec!["uid-n1".into()], Some("n1".into())), "a:r@n1=1")]
#[case::lost_before_it_landed(|g: &mut Guest| g.admitted = vec!["uid-n1".into()], "a:r@n1=1")]
#[case::known_where_it_has_no_room(|g: &mut Guest| g.admitted = vec!["uid-n0".into()], "a!")]
#[case::too_large_where_it_is_known(|g: &mut Guest| { g.admitted = vec!["uid-n1".into()]; g.devices = [(GPU.into(), 4)].into() }, "a!")]
#[case::being_deleted_where_it_is_known(|g: &mut Guest| (g.admitted, g.deleting) = (vec!["uid-n0".into()], true), "")]
#[case::on_a_node_of_its_own_and_known_elsewhere(|g: &mut Guest| (g.admitted, g.node) = (vec!["uid-n1".into()], Some("n9".into())), "")]
fn one_pod(#[case] change: fn(&mut Guest), #[case] expected: &str) {
    let mut one = guest("a=1");
    change(&mut one);
    assert_eq!(said(&assign(&rooms("r@n1=3"), &[one], &[], &BTreeSet::new())), expected);
}

/// A pod was given the toleration of n1 by reservation r, has waited since (by a scheduling gate, say), and r ended: its namespace has nothing there any
/// more, or less than it takes, or room that is not set up yet.
#[rstest]
#[case::waits_with_nothing_there("", None, "a!")]
#[case::waits_with_less_there("s@n1=1", None, "a!")]
#[case::waits_with_enough_there("s@n1=3", None, "a:s@n1=3")]
#[case::landed_with_less_there("s@n1=1", Some("n1"), "a!")]
#[case::landed_with_nothing_there_is_the_node_machines("", Some("n1"), "")]
fn a_pod_whose_part_ended(#[case] held: &str, #[case] node: Option<&str>, #[case] expected: &str) {
    let mut one = guest("a=3");
    one.admitted = vec!["uid-n1".into()];
    one.node = node.map(Into::into);
    assert_eq!(said(&assign(&rooms(held), &[one], &[], &BTreeSet::new())), expected);
}

#[test]
fn a_part_that_is_not_set_up_gives_no_room_and_keeps_what_was_given() {
    let mut held = rooms("r@n1=3");
    held[0].set_up = false;
    let mut known = guest("a=1");
    known.admitted = vec!["uid-n1".into()];
    let all = [known, guest("b=1"), guest("c=1/n1"), guest("d=1")];
    let found = assign(&held, &all, &records("a:r@n1=1 b:r@n1=1"), &BTreeSet::new());
    assert_eq!(said(&found), "a:r@n1=1 b:r@n1=1");
}

#[test]
fn who_waits_has_no_place_in_a_part_that_moved() {
    // The node was lost, or registered again under another UID: the pod may land nowhere, and what makes it makes another.
    let mut known = guest("a=1");
    known.admitted = vec!["uid-old".into()];
    let found = assign(&rooms("r@n1=1"), &[known, guest("b=1")], &records("a:r@n1=1"), &BTreeSet::new());
    assert_eq!(said(&found), "b:r@n1=1 b>n1 a!");
    // One that was not told yet gets room where there is some.
    let found = assign(&rooms("r@n2=1"), &guests("a=1"), &records("a:r@n1=1"), &BTreeSet::new());
    assert_eq!(said(&found), "a:r@n2=1 a>n2");
}

#[test]
fn older_pods_come_first() {
    let mut all = guests("a=2 b=2");
    all[0].created = TimeMs(5);
    assert_eq!(said(&assign(&rooms("r@n1=3"), &all, &[], &BTreeSet::new())), "b:r@n1=2 b>n1 a?OverHold");
}

#[test]
fn a_terminating_pod_keeps_its_place() {
    let mut leaving = guest("a=3/n1");
    leaving.deleting = true;
    let found = assign(&rooms("r@n1=3"), &[leaving, guest("b=1")], &records("a:r@n1=3"), &BTreeSet::new());
    assert_eq!(said(&found), "a:r@n1=3 b?OverHold");
    assert_eq!(
        found.waiting[0].1.message,
        "Pod b wants 1 of the 3 devices that are held in parts of nodes, together on one node, and 3 are in use. It lands when pods of this namespace end, or when more is reserved."
    );
}

proptest! {
    /// Whatever came before: nobody has more places than are held, nobody has two, and what was decided needs no more deciding.
    #[test]
    fn never_more_than_is_held(
        held in prop::collection::vec((0..3usize, 0..3usize, 1..5u32), 0..5),
        pods in prop::collection::vec((0..4u32, prop::option::of(0..4usize), any::<bool>(), any::<bool>()), 0..10),
    ) {
        let mut held: Vec<Room> = held.into_iter().map(|(r, n, d)| room(&format!("r{r}@n{n}={d}"))).collect();
        held.sort_by(|one, other| (&one.reservation, &one.node).cmp(&(&other.reservation, &other.node)));
        held.dedup_by(|one, other| (&one.reservation, &one.node) == (&other.reservation, &other.node));
        let pods: Vec<Guest> = pods.into_iter().enumerate().map(|(i, (devices, node, admitted, deleting))| {
            let mut one = guest(&format!("p{i}={devices}"));
            one.node = node.map(|node| format!("n{node}").into());
            if admitted {
                one.admitted = vec![format!("uid-n{}", node.unwrap_or(1)).into()];
            }
            one.deleting = deleting;
            one
        }).collect();
        let found = assign(&held, &pods, &[], &BTreeSet::new());
        for room in &held {
            let of = |one: &&Record| one.reservation == room.reservation && one.node == room.node;
            prop_assert!(found.records.iter().filter(of).map(|one| one.devices).sum::<u32>() <= room.devices);
        }
        let distinct: BTreeSet<&str> = found.records.iter().map(|one| &*one.pod_uid).collect();
        prop_assert_eq!(distinct.len(), found.records.len());
        // The pods are told, and all is looked at again.
        let mut told = pods.clone();
        for (pod, node) in &found.admit {
            told.iter_mut().find(|one| one.uid == *pod).unwrap().admitted.push(node.clone());
        }
        let again = assign(&held, &told, &found.records, &BTreeSet::new());
        prop_assert_eq!(&again.records, &found.records);
        prop_assert_eq!(&again.admit, &vec![]);
        prop_assert_eq!(&again.expel, &found.expel);
        // Who may land, or is there, has a place or must go.
        let on_ours = |one: &Guest| match &one.node {
            None => true,
            Some(node) => held.iter().any(|room| room.node == *node && one.admitted.contains(&room.uid)),
        };
        for one in told.iter().filter(|one| !one.admitted.is_empty() && !one.deleting && on_ours(one)) {
            let placed = again.records.iter().any(|record| record.pod_uid == one.uid);
            prop_assert_eq!(placed, !again.expel.contains(&one.uid), "{}", one.name);
        }
    }
}
