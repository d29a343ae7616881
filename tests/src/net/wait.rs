//! Waiting for conditions, never for a guessed time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes every wait, present and future, end with an error: what Ctrl-C does.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Has Ctrl-C and SIGTERM call [`interrupt`], so that what was made is removed. Signals are handled, and not blocked: children would
/// inherit that.
pub fn listen_for_ctrl_c() -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handlers = runtime.block_on(async {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
        kinds.map(signal)
    });
    let [interrupted, terminated] = handlers;
    let (mut interrupted, mut terminated) = (interrupted?, terminated?);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupted.recv() => {}
                _ = terminated.recv() => {}
            }
        });
        eprintln!("interrupted: cleaning up");
        interrupt();
    });
    Ok(())
}

/// Whether [`interrupt`] was called.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Polls `condition` until it holds. The error names `what` was waited for.
pub fn until(what: &str, limit: Duration, condition: impl FnMut() -> bool) -> Result<()> {
    poll(what, limit, true, condition)
}

/// The same for clean-up, which goes on after [`interrupt`].
pub(super) fn until_even_if_interrupted(
    what: &str,
    limit: Duration,
    condition: impl FnMut() -> bool,
) -> Result<()> {
    poll(what, limit, false, condition)
}

fn poll(
    what: &str,
    limit: Duration,
    heeds_interrupt: bool,
    mut condition: impl FnMut() -> bool,
) -> Result<()> {
    let start = Instant::now();
    loop {
        if condition() {
            return Ok(());
        }
        if heeds_interrupt && interrupted() {
            bail!("interrupted while waiting for {what}");
        }
        if start.elapsed() > limit {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(10));
    }
}
