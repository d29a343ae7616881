//! Sweeps flow tables and counts FullNAT's claims every few seconds, in a thread of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use tracing::warn;

use crate::maps::{Error, Maps};
use crate::state::{Censuses, State};

/// Time between two sweeps.
const PAUSE: Duration = Duration::from_secs(2);

/// Sweeps for as long as the process lives and has maps.
pub fn run(state: Arc<State>) {
    thread::spawn(move || {
        let mut failing = false;
        loop {
            let Some(maps) = state.maps() else {
                state.count(Censuses::default());
                return;
            };
            match sweep(&state, &maps) {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    warn!("cannot sweep the flow tables: {error}");
                    failing = true;
                }
                Err(_) => {}
            }
            drop(maps);
            thread::sleep(PAUSE);
        }
    });
}

fn sweep(state: &State, maps: &Maps) -> Result<(), Error> {
    let flows = maps.sweep_flows()?;
    let claims = maps.count_claims()?;
    let counts = &state.counts;
    counts
        .flows_expired
        .fetch_add(flows.expired, Ordering::Relaxed);
    state.count(Censuses {
        flows: Arc::new(flows),
        claims: Arc::new(claims),
    });
    Ok(())
}
