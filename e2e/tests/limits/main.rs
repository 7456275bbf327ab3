//! A thousand requests at once against each limit: of one gateway, and of three that share it through the usage service, one of which is killed while it
//! holds leases, and whose log is then replayed. Real processes on loopback; the engine counts what it is asked for, and knows nothing of limits.

#![allow(clippy::indexing_slicing, reason = "a field that a JSON value lacks reads as null")]
#![expect(clippy::print_stderr, reason = "a test tells how many it let in")]

mod engine;
mod stage;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use engine::Engine;
use stage::{Stage, Told};

/// Requests at once.
const REQUESTS: usize = 1_000;
/// Tokens that one costs: the engine says so.
const TOKENS: u64 = 12;
/// How long the engine takes for one.
const TAKES: Duration = Duration::from_millis(150);

/// What may be let in of a limit in a minute, which fills continuously, in such a time, where all of it was left at its start (`full`) or none.
fn most(limit: u64, full: bool, time: Duration) -> u64 {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let filled = limit.saturating_mul(micros).div_ceil(60_000_000);
    if full { limit.saturating_add(filled) } else { filled }
}

/// That all were answered, those that were refused by a limit.
fn check_told(told: &Told) -> Result<()> {
    ensure!(told.served + told.refused == REQUESTS, "{told:?}");
    ensure!(told.served > 0 && told.refused > 0, "{told:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_gateway_lets_in_what_is_allowed_and_no_more() -> Result<()> {
    let engine = Engine::start(TAKES).await?;
    let stage = Stage::alone(&engine, "requestsPerMinute: 120").await?;
    let begun = Instant::now();
    let told = stage.ask(REQUESTS).await?;
    let most_requests = most(120, true, begun.elapsed());
    eprintln!("requests: {told:?} of at most {most_requests}");
    check_told(&told)?;
    ensure!(told.served >= 120 && told.served as u64 <= most_requests, "{told:?}, at most {most_requests}");
    ensure!(engine.asked() == told.served as u64, "the engine was asked {} times", engine.asked());
    drop(stage);

    let engine = Engine::start(TAKES).await?;
    let stage = Stage::alone(&engine, "tokensPerMinute: 6000").await?;
    let begun = Instant::now();
    let told = stage.ask(REQUESTS).await?;
    let most_tokens = most(6_000, true, begun.elapsed());
    let used = told.served as u64 * TOKENS;
    eprintln!("tokens: {told:?}, {used} used of at most {most_tokens}");
    check_told(&told)?;
    ensure!(used <= most_tokens, "{used} tokens were used, at most {most_tokens}");
    drop(stage);

    let engine = Engine::start(TAKES).await?;
    let stage = Stage::alone(&engine, "concurrency: 16").await?;
    let told = stage.ask(REQUESTS).await?;
    eprintln!("at once: {told:?}, {} at the engine at most", engine.most_at_once());
    check_told(&told)?;
    ensure!(engine.most_at_once() == 16, "{} were at the engine at once", engine.most_at_once());
    Ok(())
}

/// The service starts with every bucket empty, so that what it granted before is never granted again: all that is let in has come since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_gateways_let_in_what_is_allowed_and_no_more_though_one_dies() -> Result<()> {
    tokio::try_join!(three_share_requests(), three_share_slots()).map(drop)
}

/// How long what a dead gateway held is nobody's.
const LEASE: Duration = Duration::from_secs(11);

async fn three_share_requests() -> Result<()> {
    let begun = Instant::now();
    let engine = Engine::start(TAKES).await?;
    let mut stage = Stage::shared(&engine, "requestsPerMinute: 1200", 3).await?;
    tokio::time::sleep(LEASE.saturating_sub(begun.elapsed())).await;
    // One dies in the middle, with all that it holds.
    let told = stage.ask_and_kill(REQUESTS).await?;
    let mut served = told.served;
    let (asked, allowed) = (engine.asked(), most(1_200, false, begun.elapsed()));
    eprintln!("three share requests, and one dies: {told:?}, {asked} let in of at most {allowed}");
    ensure!(asked <= allowed, "{asked} were let in, at most {allowed}");
    ensure!(asked * 2 >= allowed, "{asked} were let in, of {allowed} that may be: the bound shows nothing");
    tokio::time::sleep(LEASE).await;
    let told = stage.ask(REQUESTS).await?;
    let (asked, allowed) = (engine.asked(), most(1_200, false, begun.elapsed()));
    eprintln!("the two that are left: {told:?}, {asked} let in of at most {allowed} all together");
    check_told(&told)?;
    ensure!(asked <= allowed, "{asked} were let in, at most {allowed}");
    ensure!(asked * 2 >= allowed, "{asked} were let in, of {allowed} that may be: the bound shows nothing");
    served += told.served;
    replayed(&mut stage, u64::try_from(served)?, asked).await?;
    stage.stop().await.context("ending what is left")
}

/// What gateways had in their logs when they died is stored by a replay of each, once, however often. Of what the killed one had let in, the engine need not
/// have seen all: so many records at most are more than it counted.
async fn replayed(stage: &mut Stage, served: u64, asked: u64) -> Result<()> {
    let (status, _) = stage.replay(0).await?;
    ensure!(status == Some(1), "the log of a gateway that runs was replayed: {status:?}");
    stage.kill_gateways().await?;
    let mut crashed = 0;
    for number in 0..3 {
        let (status, report) = stage.replay(number).await?;
        eprintln!("log {number}: {report}");
        ensure!(status == Some(0) && report["left"] == 0, "log {number}: {status:?} {report}");
        crashed += report["crashed"].as_u64().with_context(|| format!("log {number}: {report}"))?;
    }
    let stored = stage.stored().await?;
    let counted = format!(
        "{served} were answered, {asked} came to the engine, and {crashed} of {stored} that are stored were cut off"
    );
    ensure!(stored >= served + crashed && stored <= asked + crashed, "{counted}");
    eprintln!("{counted}");
    for number in 0..3 {
        let (status, report) = stage.replay(number).await?;
        ensure!(status == Some(0) && report["unshipped"] == 0, "log {number}, once more: {status:?} {report}");
    }
    let after = stage.stored().await?;
    ensure!(after == stored, "{stored} were stored, and {after} once they were replayed again");
    Ok(())
}

async fn three_share_slots() -> Result<()> {
    let begun = Instant::now();
    let engine = Engine::start(TAKES).await?;
    let mut stage = Stage::shared(&engine, "concurrency: 24", 3).await?;
    // Slots that a service before may have granted are over by then.
    tokio::time::sleep(LEASE.saturating_sub(begun.elapsed())).await;
    let told = stage.ask_and_kill(REQUESTS).await?;
    eprintln!("three share 24 places, and one dies: {told:?}, {} at the engine at most", engine.most_at_once());
    ensure!((12..=24).contains(&engine.most_at_once()), "{} were at the engine at once", engine.most_at_once());
    tokio::time::sleep(LEASE).await;
    engine.forget_most();
    let told = stage.ask(REQUESTS).await?;
    eprintln!("the two that are left: {told:?}, {} at the engine at most", engine.most_at_once());
    check_told(&told)?;
    ensure!((12..=24).contains(&engine.most_at_once()), "{} were at the engine at once", engine.most_at_once());
    stage.stop().await.context("ending what is left")
}
