//! The Lease by which this node says that it lives: renewed while the core's loop goes round, and not otherwise.
//!
//! Whoever lives is taken at its word: of a node without the maps of an earlier agent, which a reboot takes away, the first
//! renewal waits until a status was written that does not acknowledge what was in them.

use std::sync::Arc;
use std::time::Duration;

use sluice_kube::identity::Position;
use sluice_kube::lease;
use tokio::time::{MissedTickBehavior, interval};
use tracing::info;

use super::Kube;
use crate::source::SourceState;
use crate::state::State;

/// Time between two renewals.
const PERIOD: Duration = Duration::from_secs(5);
/// Time without a turn of the core's loop after which the node does not count as alive.
const STUCK: Duration = Duration::from_secs(10);
/// The name in metrics and messages.
const NAME: &str = "Lease";

/// Renews the Lease until the node is detached and says so.
pub(super) async fn run(server: Kube, state: Arc<State>) {
    server.source.expect(NAME);
    // The sender is the server's own.
    let _ = server
        .current
        .subscribe()
        .wait_for(|current| *current)
        .await;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut left = server.left.subscribe();
    let mut last: Option<Position> = None;
    loop {
        tokio::select! {
            biased;
            _ = left.wait_for(|left| *left) => {
                server.works(NAME);
                return;
            }
            _ = ticks.tick() => {}
        }
        if !state.turned_within(STUCK) {
            continue;
        }
        let renewed = lease::renew(&server.client, &server.namespace, &server.node).await;
        let source = &server.source;
        let (successes, failures) = (&source.lease_renewals, &source.lease_failures);
        SourceState::count(successes, failures, renewed.is_ok());
        match renewed {
            Ok(position) => {
                server.works(NAME);
                if last.as_ref().is_some_and(|last| last.is_another(&position)) {
                    info!("the API server has lost this node's Lease: reading everything anew");
                    server.world.raise();
                }
                last = Some(position);
            }
            Err(error) => {
                source.failed(NAME);
                let failed = "cannot renew this node's Lease";
                server.complaints.fail(NAME, failed, &error);
            }
        }
    }
}
