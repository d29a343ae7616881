//! Rollouts that roll back by themselves when the candidate fails its clients.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use sluice_api::{RollbackReason, RolloutPhase};
use sluice_tests::net::lab::{Lab, Mode};
use sluice_tests::net::manifest;
use sluice_tests::net::{ConnectionMaker, Family, until};

use crate::pools::{restore, signal};
use crate::signals::{SYN, end_filters, filter, server};

/// The file of the policies.
const FILE: &str = "rollbacks";
/// The candidate's percentage while it fails.
const SHARE: u8 = 25;
/// Threads that connect to each virtual server, and how long each pauses: about 24 connections a second, 6 of them to the candidate.
const WORKERS: usize = 24;
const PAUSE: Duration = Duration::from_secs(1);
/// For how long all is well before.
const WELL: Duration = Duration::from_secs(10);
/// How long a candidate may fail its clients.
const BOUND: Duration = Duration::from_secs(30);

/// Each mode's candidate fails in another way.
pub(crate) fn roll_back(lab: &mut Lab) -> Result<()> {
    let policies: Vec<Value> = Mode::ALL.map(policy).into();
    lab.sluice.apply(FILE, &policies)?;
    let share = u32::from(SHARE);
    for mode in Mode::ALL {
        lab.await_shares(mode, 100 - share, share)?;
    }
    let makers = Mode::ALL.map(|mode| {
        let targets = Family::BOTH.map(|family| mode.target(family));
        let seed = mode as u64;
        ConnectionMaker::start_as_many(lab.fabric.client(), &targets, WORKERS, PAUSE, seed)
    });
    let makers = makers.into_iter().collect::<Result<Vec<_>>>()?;
    let judged = watch(lab, &makers);
    drop(makers);
    let restored = end(lab);
    lab.sluice
        .expect_complaint("everything was given back to the stable pool");
    judged.and(restored)
}

/// Puts everything right. The weights stay where the policies left them until the specs have others.
fn end(lab: &mut Lab) -> Result<()> {
    end_filters(lab)?;
    lab.sluice.remove(FILE)?;
    for mode in Mode::ALL {
        lab.sluice.await_no_rollout(mode.candidate())?;
        lab.set_shares(mode, 1, 99)?;
        restore(lab, mode)?;
    }
    Ok(())
}

fn policy(mode: Mode) -> Value {
    let (stable, candidate) = (mode.stable(), mode.candidate());
    let name = mode.virtual_server();
    manifest::rollout(candidate, name, stable, candidate, &[(SHARE, 3_000)])
}

fn watch(lab: &mut Lab, makers: &[ConnectionMaker]) -> Result<()> {
    std::thread::sleep(WELL);
    for maker in makers {
        maker.take_report().expect_none_failed()?;
    }
    for mode in Mode::ALL {
        let status = lab.sluice.rollout(mode.candidate()).context("a rollout")?;
        ensure!(
            status.phase == Some(RolloutPhase::Pausing),
            "{mode}: {status:?} while all is well"
        );
    }
    let began = Instant::now();
    filter(lab, &[Mode::Nat], SYN, "reject with tcp reset")?;
    signal(lab, server(Mode::FullNat), Signal::SIGSTOP)?;
    filter(lab, &[Mode::Dr], SYN, "drop")?;
    filter(lab, &[Mode::Tun], "tcp flags psh", "reject with tcp reset")?;
    for mode in Mode::ALL {
        let what = format!("{mode} to be rolled back");
        let mut last = None;
        let back = until(&what, BOUND.saturating_sub(began.elapsed()), || {
            last = lab.sluice.rollout(mode.candidate());
            let status = last.as_ref();
            status.is_some_and(|status| {
                let step = status.step.as_ref();
                status.phase == Some(RolloutPhase::RolledBack)
                    && step.is_some_and(|step| step.live_time.is_some())
            })
        });
        back.with_context(|| format!("{last:#?}"))?;
        lab.await_shares(mode, 100, 0)?;
        let rollback = last
            .and_then(|status| status.rollback)
            .context("a reason")?;
        println!(
            "  {mode}: in force everywhere after {:.1} s: {}",
            began.elapsed().as_secs_f64(),
            rollback.message
        );
        ensure!(rollback.reason == RollbackReason::ClientsFailed);
        ensure!(rollback.weight == SHARE);
    }
    // Who asks now is answered.
    for maker in makers {
        let failed = |maker: &ConnectionMaker| maker.take_report().failed;
        until("connections to fail no more", BOUND, || {
            let made = maker.made();
            failed(maker);
            until("connections", BOUND, || {
                maker.made() > made + 2 * WORKERS as u64
            })
            .is_ok()
                && failed(maker) == 0
        })?;
    }
    Ok(())
}
