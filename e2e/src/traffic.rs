//! Clients that go on while something is done to the cluster.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_tests::net::{
    ConnectionMaker, Dual, Family, KeptConnections, MakerReport, Namespace, until,
};

/// Connections that stay open.
const KEPT: usize = 24;
/// Threads that make new connections.
const MAKERS: usize = 3;
/// New connections that are looked at to judge a share.
const SAMPLE: u64 = 1_500;
/// How long these connections may take.
const CONNECTIONS_TIMEOUT: Duration = Duration::from_mins(1);

/// Connections to a VIP, in both families.
#[derive(Debug)]
pub struct Traffic {
    maker: ConnectionMaker,
    kept: Option<KeptConnections>,
}

impl Traffic {
    /// New connections all the time; each is tried once.
    pub fn start(client: &Namespace, vip: Dual) -> Result<Self> {
        let pause = Duration::from_millis(2);
        Ok(Self {
            maker: ConnectionMaker::start(client, &targets(vip), MAKERS, pause)?,
            kept: None,
        })
    }

    /// The same beside connections that stay open and ask 20 times a second.
    pub fn start_with_kept(client: &Namespace, vip: Dual) -> Result<Self> {
        let pause = Duration::from_millis(50);
        let kept = KeptConnections::open(client, &targets(vip), KEPT, pause)?;
        let mut traffic = Self::start(client, vip)?;
        traffic.kept = Some(kept);
        Ok(traffic)
    }

    /// Waits for enough new connections to judge a share; those before are looked at for failures only.
    pub fn sample(&self) -> Result<MakerReport> {
        self.maker.take_report().expect_none_failed()?;
        let before = self.maker.made();
        until("new connections", CONNECTIONS_TIMEOUT, || {
            self.maker.made() >= before + SAMPLE
        })?;
        let report = self.maker.take_report();
        report.expect_none_failed()?;
        Ok(report)
    }

    /// Ends it. Fails if a connection was refused, lost, or moved to another server. Returns how many there were.
    pub fn finish(self) -> Result<u64> {
        let made = self.maker.made();
        self.maker.stop().expect_none_failed()?;
        ensure!(made > 0, "no connection was made");
        if let Some(kept) = self.kept {
            kept.close().context("connections that stay open")?;
        }
        Ok(made)
    }
}

/// Port 80 in both families.
pub fn targets(vip: Dual) -> [SocketAddr; 2] {
    Family::BOTH.map(|family| vip.socket(family, 80))
}

/// Fails unless the part of servers whose names begin with `prefix` is `percent`, within four standard deviations and what
/// the change itself blurs.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn expect_share(report: &MakerReport, prefix: &str, percent: u32) -> Result<()> {
    let total = report.spread.total() as f64;
    let found = report.spread.with_prefix(prefix) as f64;
    let part = f64::from(percent) / 100.0;
    let allowed = 4.0 * (total * part * (1.0 - part)).sqrt() + MAKERS as f64;
    ensure!(
        (found - total * part).abs() <= allowed,
        "{prefix} got {found} of {total} connections at {percent} %: {}",
        report.spread
    );
    Ok(())
}
