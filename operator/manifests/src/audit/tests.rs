use rstest::rstest;

use super::*;

const SINCE: i64 = 1_000_000;
const EARLY: i64 = SINCE - 1;
const LATE: i64 = SINCE + LATE_MS + 1;

fn hold<'a>(no_schedule: Option<&'a str>, no_execute: Option<&'a str>) -> NodeHold<'a> {
    NodeHold { no_schedule, no_execute, since_ms: Some(SINCE) }
}

fn pod(whose: Whose, devices: bool, bound_ms: i64) -> Resident<'static> {
    let holder = matches!(whose, Whose::Tenant | Whose::Owner).then_some("acme-uid");
    Resident { whose, holder, devices, mirror: false, leaving: false, assigned: None, bound_ms: Some(bound_ms) }
}

const UNSOLD: (Option<&str>, Option<&str>) = (Some("unsold"), None);
const CLOSING: (Option<&str>, Option<&str>) = (Some("closed"), None);
const CLOSED: (Option<&str>, Option<&str>) = (Some("closed"), Some("closed"));
const OWN: (Option<&str>, Option<&str>) = (Some("acme-uid"), Some("acme-uid"));
const FOREIGN: (Option<&str>, Option<&str>) = (Some("beta-uid"), Some("beta-uid"));
const SHARED: (Option<&str>, Option<&str>) = (Some("node.n1"), Some("node.n1"));

type Taints = (Option<&'static str>, Option<&'static str>);

#[rstest]
#[case::the_owner_on_unsold(UNSOLD, pod(Whose::Owner, true, LATE), true)]
#[case::the_owner_from_before_the_policies(UNSOLD, pod(Whose::Owner, true, EARLY), true)]
#[case::the_owners_cpu_pod(UNSOLD, pod(Whose::Owner, false, LATE), true)]
#[case::a_tenant_on_unsold(UNSOLD, pod(Whose::Tenant, true, LATE), false)]
#[case::a_tenants_cpu_pod_on_unsold(UNSOLD, pod(Whose::Tenant, false, EARLY), false)]
#[case::nobodys_from_before(UNSOLD, pod(Whose::Nobody, true, EARLY), true)]
#[case::nobodys_devices_after(UNSOLD, pod(Whose::Nobody, true, LATE), false)]
#[case::nobodys_cpu_pod_after(UNSOLD, pod(Whose::Nobody, false, LATE), true)]
#[case::the_holder(OWN, pod(Whose::Tenant, true, LATE), true)]
#[case::the_owner_holds(OWN, pod(Whose::Owner, true, LATE), true)]
#[case::the_holders_cpu_pod(OWN, pod(Whose::Tenant, false, EARLY), true)]
#[case::another_tenant(FOREIGN, pod(Whose::Tenant, true, LATE), false)]
#[case::another_tenants_cpu_pod(FOREIGN, pod(Whose::Tenant, false, LATE), false)]
#[case::the_owner_on_a_sold_node(FOREIGN, pod(Whose::Owner, true, EARLY), false)]
#[case::nobody_on_a_sold_node(FOREIGN, pod(Whose::Nobody, false, EARLY), false)]
#[case::being_prepared(CLOSING, pod(Whose::Tenant, true, LATE), true)]
#[case::being_emptied(CLOSED, pod(Whose::Tenant, true, EARLY), true)]
#[case::a_late_bind(CLOSED, pod(Whose::Tenant, true, SINCE + LATE_MS), true)]
#[case::came_to_a_closed_node(CLOSED, pod(Whose::Tenant, true, LATE), false)]
#[case::the_owner_came_to_a_closed_node(CLOSED, pod(Whose::Owner, true, LATE), false)]
#[case::not_ours_yet((None, None), pod(Whose::Tenant, true, LATE), true)]
#[case::a_mixture((Some("acme-uid"), Some("beta-uid")), pod(Whose::Tenant, true, LATE), true)]
#[case::half_a_hold((Some("beta-uid"), None), pod(Whose::Tenant, true, LATE), true)]
#[case::a_shared_node_of_which_nothing_is_known(SHARED, pod(Whose::Tenant, true, LATE), true)]
#[case::not_assigned(SHARED, Resident { assigned: Some(false), ..pod(Whose::Tenant, true, LATE) }, false)]
#[case::assigned(SHARED, Resident { assigned: Some(true), ..pod(Whose::Tenant, true, LATE) }, true)]
#[case::a_namespace_without_holder_id(FOREIGN, Resident { holder: None, ..pod(Whose::Tenant, true, LATE) }, false)]
#[case::no_known_time(UNSOLD, Resident { bound_ms: None, ..pod(Whose::Nobody, true, LATE) }, true)]
fn who_may_be_where(#[case] taints: Taints, #[case] pod: Resident<'static>, #[case] legal: bool) {
    let found = judge(&pod, &hold(taints.0, taints.1));
    assert_eq!(found.is_none(), legal, "{found:?}");
}

#[rstest]
fn some_are_legal_everywhere(
    #[values(UNSOLD, CLOSING, CLOSED, OWN, FOREIGN, SHARED, (None, None))] taints: Taints,
    #[values("infrastructure", "unknown", "mirror", "leaving")] why: &str,
) {
    let mut pod = Resident { assigned: Some(false), ..pod(Whose::Tenant, true, LATE) };
    pod.holder = Some("gamma-uid");
    match why {
        "infrastructure" => pod.whose = Whose::Infrastructure,
        "unknown" => pod.whose = Whose::Unknown,
        "mirror" => pod.mirror = true,
        _ => pod.leaving = true,
    }
    assert_eq!(judge(&pod, &hold(taints.0, taints.1)), None);
}

#[rstest]
#[case::five_at_once(&[], 5, true)]
#[case::six_at_once(&[], 6, false)]
#[case::five_and_one(&[10_000, 10_000, 10_000, 10_000, 10_000], 1, false)]
#[case::five_a_minute_ago(&[0, 0, 0, 0, 0], 5, true)]
#[case::nothing_new(&[10_000; 5], 0, true)]
fn more_than_five_in_a_minute_are_too_many(#[case] deleted: &[i64], #[case] new: usize, #[case] may: bool) {
    assert_eq!(may_delete(deleted, new, WINDOW_MS), may);
}
