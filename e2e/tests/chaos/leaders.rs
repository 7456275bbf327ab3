//! Two operators, one frozen in the middle of its work and woken when the other leads.

use anyhow::{Result, ensure};
use spillway_crds::Phase;
use spillway_lab::{Lab, LabOptions, Signal, Size, spillway::Spillway};

use crate::audit::{Witness, audit, settle};
use crate::churn::Churn;
use crate::{BOUND, furnish};

#[tokio::test]
async fn a_leader_that_is_frozen_and_wakes_sells_nothing_twice() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let mut first = spillway.start_operator("operator-a")?;
    first.wait_leading(BOUND).await?;
    let mut second = spillway.start_operator("operator-b")?;
    furnish(&spillway, "h200", 12, &["acme", "beta", "gamma"]).await?;
    let witness = Witness::start(&spillway);
    let churn = Churn {
        seed: 11,
        namespaces: ["acme", "beta", "gamma"].map(str::to_owned).to_vec(),
        longest: 3,
        widest: 2,
        every_ms: (50, 400),
    };
    for round in 0..2_usize {
        let arrivals = churn.run(&spillway, round * 1000, 45);
        let chaos = async {
            let before = witness.count(Phase::Active);
            spillway
                .wait_for("sales under the first leader", BOUND, || async {
                    Ok(witness.count(Phase::Active) > before + 3)
                })
                .await?;
            first.signal(Signal::SIGSTOP)?;
            second.wait_leading(BOUND).await?;
            let before = witness.count(Phase::Active);
            spillway
                .wait_for("sales under the second leader", BOUND, || async {
                    Ok(witness.count(Phase::Active) > before + 3)
                })
                .await?;
            first.signal(Signal::SIGCONT)?;
            // It finds that it does not lead and ends; a kubelet would start it again.
            let status = first.wait_exit(BOUND).await?;
            ensure!(status.success(), "the woken operator ended with {status}");
            anyhow::Ok(())
        };
        let (arrivals, chaos) = tokio::join!(arrivals, chaos);
        chaos?;
        arrivals?;
        first = std::mem::replace(&mut second, spillway.start_operator(["operator-a", "operator-b"][round % 2])?);
    }
    settle(&spillway, &witness).await?;
    let account = audit(&spillway, &witness).await?;
    eprintln!("two leaders: {account:?}");
    ensure!(account.booked > 40, "hardly anything was sold: {account:?}");
    drop((first, second));
    lab.stop()
}
