//! Sweeps flow tables and FullNAT's claims every few seconds, in a thread of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use tracing::warn;

use crate::maps::Error;
use crate::state::{Censuses, State};

/// Time between two sweeps.
const PAUSE: Duration = Duration::from_secs(2);

/// Sweeps for as long as the process lives.
pub fn run(state: Arc<State>) {
    thread::spawn(move || {
        let mut failing = false;
        loop {
            match sweep(&state) {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    warn!("cannot sweep the flow tables: {error}");
                    failing = true;
                }
                Err(_) => {}
            }
            thread::sleep(PAUSE);
        }
    });
}

fn sweep(state: &State) -> Result<(), Error> {
    let servers: BTreeMap<_, _> = state.published().actual.servers.clone();
    let flows = state.maps.sweep_flows(&servers)?;
    let claims = state.maps.sweep_claims()?;
    let counts = &state.counts;
    counts
        .flows_expired
        .fetch_add(flows.expired, Ordering::Relaxed);
    counts
        .claims_expired
        .fetch_add(claims.expired, Ordering::Relaxed);
    state.count(Censuses {
        flows: Arc::new(flows),
        claims: Arc::new(claims),
    });
    Ok(())
}
