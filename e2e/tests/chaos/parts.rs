//! Room on a shared node while the operator dies between what it records and what it tells a pod.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde_json::json;
use spillway_crds::Phase;
use spillway_lab::spillway::{Spillway, holds};
use spillway_lab::{Lab, LabOptions, Size, wait_for, wait_for_value};

use crate::stand_in::waiting_pod;
use crate::{BOUND, furnish};

/// Devices that acme has of the node.
const HELD: i32 = 3;

#[tokio::test]
async fn a_kill_between_record_and_toleration_gives_nobody_more() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let mut operator = spillway.start_operator("operator-a")?;
    furnish(&spillway, "plain", 1, &["acme", "beta"]).await?;
    for (tenant, devices) in [("acme", HELD), ("beta", 4)] {
        let part = json!({"devices": {"count": devices}, "exclusiveNodes": false});
        spillway.reserve(tenant, "part", part).await?;
        spillway.wait_phase(tenant, "part", Phase::Active, BOUND).await?;
    }
    let node = spillway.nodes().await?.pop().context("no node")?;
    let hold = format!("node.{}", node.uid().unwrap_or_default());
    ensure!(holds(&node) == (Some(hold.clone()), Some(hold.clone())), "its hold is {:?}", holds(&node));
    operator.stop().await?;

    for point in ["assign.before-record", "assign.after-record", "assign.after-toleration"] {
        for number in 0..5 {
            waiting_pod(&spillway, "acme", &format!("p-{number}"), 1).await?;
        }
        operator = spillway.start_operator_to_die("operator-a", point)?;
        let status = operator.wait_exit(BOUND).await.with_context(|| format!("it never came to {point}"))?;
        ensure!(status.code() == Some(137), "at {point} it ended with {status}");
        let (recorded, told) = state(&spillway, &hold).await?;
        let expected = match point {
            "assign.before-record" => (0, 0),
            "assign.after-record" => (3, 0),
            _ => (3, 1),
        };
        ensure!((recorded.len(), told.len()) == expected, "at {point}: recorded {recorded:?}, told {told:?}");
        ensure!(told.is_subset(&recorded), "at {point} a pod was told what is not recorded");

        operator = spillway.start_operator("operator-a")?;
        wait_for("three pods to be told", BOUND, || async {
            let (recorded, told) = state(&spillway, &hold).await?;
            ensure!(told.len() <= 3 && recorded.len() <= 3, "recorded {recorded:?}, told {told:?}");
            Ok(told.len() == 3 && recorded == told)
        })
        .await?;
        // Who goes makes room for who waits.
        let (_, told) = state(&spillway, &hold).await?;
        let first = told.iter().next().context("nobody was told")?.clone();
        spillway.lab().kubectl(&["delete", "pod", &first, "-n", "acme"]).await?;
        wait_for("the next to be told", BOUND, || async {
            let (recorded, told) = state(&spillway, &hold).await?;
            Ok(told.len() == 3 && recorded == told && !told.contains(&first))
        })
        .await?;
        spillway.lab().kubectl(&["delete", "pods", "--all", "-n", "acme"]).await?;
        wait_for("nothing to be recorded", BOUND, || async { Ok(state(&spillway, &hold).await?.0.is_empty()) }).await?;
        operator.stop().await?;
    }
    operator = spillway.start_operator("operator-a")?;
    spillway.verify_settled("0s").await?.ensure_clean()?;
    drop(operator);
    lab.stop()
}

/// A pod may be let in and not land for as long as its maker likes, by a scheduling gate for one. The toleration cannot be taken back, so it must not
/// outlive the part for which it was given: on a node of which its namespace has another part it would use what nobody pays for.
#[tokio::test]
async fn a_pod_that_waits_when_its_part_ends_uses_nothing() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let operator = spillway.start_operator("operator-a")?;
    furnish(&spillway, "plain", 1, &["acme", "beta"]).await?;
    for (tenant, name, devices) in [("acme", "part", HELD), ("acme", "rest", 1), ("beta", "part", 1)] {
        let part = json!({"devices": {"count": devices}, "exclusiveNodes": false});
        spillway.reserve(tenant, name, part).await?;
        spillway.wait_phase(tenant, name, Phase::Active, BOUND).await?;
    }
    let node = spillway.nodes().await?.pop().context("no node")?;
    let hold = format!("node.{}", node.uid().unwrap_or_default());
    waiting_pod(&spillway, "acme", "late", 3).await?;
    waiting_pod(&spillway, "acme", "stays", 1).await?;
    waiting_pod(&spillway, "beta", "alone", 1).await?;
    let admitted = || async {
        let (_, acme) = state(&spillway, &hold).await?;
        anyhow::Ok((acme, told(&spillway, "beta", &hold).await?))
    };
    let names = |all: &[&str]| all.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let all = (names(&["late", "stays"]), names(&["alone"]));
    wait_for("all pods to be told", BOUND, || async { Ok(admitted().await? == all) }).await?;

    for (tenant, name) in [("acme", "part"), ("beta", "part")] {
        spillway.lab().kubectl(&["delete", "gpures", name, "-n", tenant, "--wait=false"]).await?;
    }
    wait_for("acme's part to be gone", BOUND, || async { Ok(spillway.reservation("acme", "part").await?.is_none()) })
        .await?;
    let (acme, _) = admitted().await?;
    ensure!(acme == names(&["stays"]), "the part is gone, and let in are {acme:?}");
    // A namespace that has nothing there any more has nobody who may land, either.
    wait_for("beta's pod to be gone", BOUND, || async { Ok(admitted().await?.1.is_empty()) }).await?;
    let rest = spillway.reservation("acme", "rest").await?.and_then(|object| object.status).unwrap_or_default();
    let places: Vec<&str> = rest.assignments.iter().map(|place| place.pod.as_str()).collect();
    ensure!(places == ["stays"], "the part that is left has {places:?}");
    operator.stop().await?;
    lab.stop()
}

/// Where a node is lost, or its last part ends, nobody has a part there any more; and it may be sold in parts again.
#[tokio::test]
async fn a_pod_that_waits_where_no_part_is_left_does_not_wait_on() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let operator = spillway.start_operator("operator-a")?;
    furnish(&spillway, "plain", 2, &["acme"]).await?;
    let part = json!({"devices": {"count": HELD}, "exclusiveNodes": false});
    spillway.reserve("acme", "part", part).await?;
    let active = spillway.wait_phase("acme", "part", Phase::Active, BOUND).await?.status.unwrap_or_default();
    let first = active.nodes.first().context("no node")?.name.clone();
    let hold_of = |node: &Node| format!("node.{}", node.uid().unwrap_or_default());
    let first_hold = hold_of(&spillway.node(&first).await?);
    waiting_pod(&spillway, "acme", "late", 2).await?;
    let is_told = async |name: &str, hold: &str| Ok(told(&spillway, "acme", hold).await?.contains(name));
    wait_for("the pod to be told", BOUND, || is_told("late", &first_hold)).await?;

    // The node is lost: its part is another's place now, and who had room in it is known until the node itself has given it back.
    spillway.patch_pool("plain", json!({"sale": {"repairAfter": "2s"}})).await?;
    spillway.set_ready(&first, "False").await?;
    let second = wait_for_value("another node", BOUND, async || {
        let status = spillway.reservation("acme", "part").await?.and_then(|object| object.status).unwrap_or_default();
        let other = status.nodes.into_iter().map(|node| node.name).find(|name| *name != first);
        Ok(other.filter(|_| status.assignments.iter().any(|place| place.node == first && place.ending)))
    });
    let second = second.await?;
    wait_for("the pod to be gone", BOUND, async || Ok(told(&spillway, "acme", &first_hold).await?.is_empty())).await?;
    waiting_pod(&spillway, "acme", "next", 3).await?;
    let second_hold = hold_of(&spillway.node(&second).await?);
    wait_for("the next to be told", BOUND, || is_told("next", &second_hold)).await?;
    spillway.set_ready(&first, "True").await?;
    wait_for("the first node to have given it back", BOUND, async || {
        let status = spillway.reservation("acme", "part").await?.and_then(|object| object.status).unwrap_or_default();
        let places: Vec<_> = status.assignments.iter().map(|one| (one.pod.as_str(), one.ending)).collect();
        Ok(places == [("next", false)])
    })
    .await?;

    // The last part of the node ends, and the node is closed.
    spillway.delete_reservation("acme", "part").await?;
    spillway.wait_gone("acme", "part", BOUND).await?;
    let left = told(&spillway, "acme", &second_hold).await?;
    ensure!(left.is_empty(), "the part is gone, and let in are {left:?}");
    spillway.wait_unsold("plain", 2, BOUND).await?;
    spillway.verify_settled("0s").await?.ensure_clean()?;
    drop(operator);
    lab.stop()
}

/// Names of the pods that have room by the reservation's status, and of those that were told so.
async fn state(spillway: &Spillway<'_>, hold: &str) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let status = spillway.reservation("acme", "part").await?.and_then(|object| object.status).unwrap_or_default();
    let devices: i32 = status.assignments.iter().map(|one| one.devices).sum();
    ensure!(devices <= HELD, "{devices} devices are recorded and {HELD} held: {:?}", status.assignments);
    let recorded = status.assignments.into_iter().map(|one| one.pod).collect();
    Ok((recorded, told(spillway, "acme", hold).await?))
}

/// Names of the pods of a namespace that were given the toleration.
async fn told(spillway: &Spillway<'_>, namespace: &str, hold: &str) -> Result<BTreeSet<String>> {
    let pods = Api::<Pod>::namespaced(spillway.client(), namespace).list(&ListParams::default()).await?;
    let tolerates = |pod: &&Pod| {
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        tolerations.iter().any(|toleration| toleration.value.as_deref() == Some(hold))
    };
    Ok(pods.items.iter().filter(tolerates).map(ResourceExt::name_any).collect())
}
