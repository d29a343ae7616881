//! Metrics of how servers meet connections.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use sluice_signals::Outcome;

use super::{Labels, counter, pairs};
use crate::signals::{PoolSignals, Signals};
use crate::state::Histogram;

/// One of the histograms of a pool.
type Read = fn(&PoolSignals) -> &Histogram;

/// Of all pools that are sampled.
pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, signals: &Signals) -> fmt::Result {
    let pools = signals.read();
    let mut outcomes: Vec<(Labels, u64)> = Vec::new();
    for (pool, signals) in &pools {
        for outcome in Outcome::ALL {
            let outcome_label = ("outcome", outcome.name().to_owned());
            let labels = vec![("pool", pool.to_string()), outcome_label];
            outcomes.push((labels, signals.count(outcome)));
        }
    }
    let help =
        "TCP connections that were sampled as they began, by how the pool's servers met them";
    counter(
        encoder,
        "sluice_pool_sampled_connections",
        help,
        None,
        pairs(&outcomes),
    )?;
    let histograms: [(&str, &str, Read); 2] = [
        (
            "sluice_pool_handshake",
            "Time from the client's SYN to the server's answer, of sampled connections",
            |signals| &signals.handshake,
        ),
        (
            "sluice_pool_first_byte",
            "Time from the client's first data to the server's, of sampled connections",
            |signals| &signals.first_byte,
        ),
    ];
    for (name, help, read) in histograms {
        let unit = Some(&Unit::Seconds);
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (pool, signals) in &pools {
            let labels: Labels = vec![("pool", pool.to_string())];
            let (seconds, count, buckets) = read(signals).read();
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)?;
        }
    }
    Ok(())
}
