//! The attack table: what was tried against held nodes, and what must come of it (every row concerns whole nodes).
//!
//! No operator runs here. What is sold must stay sold without one, so the test writes what the operator would have written,
//! as the operator's service account with the roles of the chart.

#![allow(clippy::indexing_slicing, reason = "a field that a JSON value lacks reads as null")]

mod landing;
mod objects;
mod ours;
mod pods;
mod row;
mod stage;

use anyhow::{Context as _, Result, ensure};

use crate::row::Row;
use crate::stage::Stage;

/// All in one test, because only one cluster fits on the machine at a time and it takes a while to come up.
#[tokio::test]
async fn nobody_gets_what_others_hold() -> Result<()> {
    let stage = Stage::build().await?;
    let mut wrong = compile_warnings(&stage).await?;

    wrong.extend(landing::pods_land_on_what_is_held(&stage).await?);
    wrong.extend(landing::daemonsets_follow_their_namespace(&stage).await?);
    check(&mut wrong, "a late bind", landing::a_late_bind_does_not_stay(&stage).await);
    check(&mut wrong, "a nomination", landing::a_nomination_makes_no_victim(&stage).await);
    check(&mut wrong, "own preemption", landing::a_holder_preempts_itself(&stage).await);
    stage.clear(&["acme", "own", "free", "gamma"]).await?;

    landing::prepare(&stage).await?;
    ours::prepare(&stage).await?;
    let mut table: Vec<Row> = Vec::new();
    table.extend(pods::tolerations(&stage));
    table.extend(pods::around_the_scheduler());
    table.extend(pods::changes(&stage));
    table.extend(pods::as_the_operator(&stage));
    table.extend(pods::priorities());
    table.extend(pods::grace());
    table.extend(objects::nodes(&stage));
    table.extend(objects::registrations(&stage));
    table.extend(objects::mirrors(&stage.node_uid));
    table.extend(objects::namespaces(&stage));
    table.extend(ours::rows());
    wrong.extend(row::run(&stage.lab, &table).await?);

    check(&mut wrong, "a real token", ours::a_real_token_names_its_node(&stage).await);
    check(&mut wrong, "an early end", ours::end_early(&stage).await);
    check(&mut wrong, "a closed node", landing::a_closed_node_is_left(&stage).await);
    check(&mut wrong, "a missing pin", landing::without_the_pin_nothing_starts(&stage).await);

    stage.lab.stop()?;
    ensure!(
        wrong.is_empty(),
        "{} of {} rows and stories came out otherwise:\n{}",
        wrong.len(),
        table.len(),
        wrong.join("\n")
    );
    Ok(())
}

fn check(wrong: &mut Vec<String>, story: &str, result: Result<()>) {
    if let Err(error) = result {
        wrong.push(format!("{story}: {error:#}"));
    }
}

/// What the API server's own type checker says about our policies.
async fn compile_warnings(stage: &Stage) -> Result<Vec<String>> {
    const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    stage
        .lab
        .wait_for("the policies to be type-checked", std::time::Duration::from_secs(30), || async {
            let list = stage.read(POLICIES).await?;
            let items = list["items"].as_array().context("a list of policies")?;
            Ok(!items.is_empty() && items.iter().all(|policy| policy["status"]["typeChecking"].is_object()))
        })
        .await?;
    let list = stage.read(POLICIES).await?;
    let mut wrong = Vec::new();
    for policy in list["items"].as_array().context("a list of policies")? {
        let warnings = &policy["status"]["typeChecking"]["expressionWarnings"];
        if !warnings.is_null() {
            wrong.push(format!("policy {} compiles with warnings: {warnings}", policy["metadata"]["name"]));
        }
    }
    Ok(wrong)
}
