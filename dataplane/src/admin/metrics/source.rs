//! Metrics of the source.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use sluice_stream::SenderState;

use super::{Labels, counter, gauge, pairs, single};
use crate::source::{KindState, SourceState};

/// One of the counters of a kind.
type Read = fn(&KindState) -> u64;

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, source: &SourceState) -> fmt::Result {
    let kinds = source.kinds();
    let counters: [(&str, &str, Read); 3] = [
        (
            "sluice_source_events",
            "Changes that the source read",
            |kind| kind.events,
        ),
        (
            "sluice_source_relists",
            "Times that the source read everything of a kind anew",
            |kind| kind.relists,
        ),
        (
            "sluice_source_errors",
            "Times that the source could not be read; it is tried again",
            |kind| kind.errors,
        ),
    ];
    for (name, help, read) in counters {
        let values: Vec<(Labels, u64)> = kinds
            .iter()
            .map(|(kind, state)| (vec![("kind", (*kind).to_owned())], read(state)))
            .collect();
        counter(encoder, name, help, None, pairs(&values))?;
    }
    let none = Labels::new();
    let held = u64::from(source.held().is_some());
    let gauges = [
        (
            "sluice_source_unsynced_seconds",
            "How long the source has not known the newest of everything; 0 while it does",
            source.unsynced().as_secs(),
        ),
        (
            "sluice_source_held",
            "1 while the source withholds decisions, and those in force stay",
            held,
        ),
    ];
    for (name, help, value) in gauges {
        gauge(encoder, name, help, [(&none, value)])?;
    }
    let counters = [
        (
            "sluice_lease_renewals",
            "Renewals of this node's Lease",
            &source.lease_renewals,
        ),
        (
            "sluice_lease_failures",
            "Renewals of this node's Lease that failed",
            &source.lease_failures,
        ),
        (
            "sluice_status_writes",
            "Times that this node's status was written",
            &source.status_writes,
        ),
        (
            "sluice_status_failures",
            "Times that this node's status could not be written",
            &source.status_failures,
        ),
    ];
    for (name, help, value) in counters {
        counter(encoder, name, help, None, single(value))?;
    }
    Ok(())
}

/// Of the stream by which signals go to the operator.
pub(super) fn encode_stream(
    encoder: &mut DescriptorEncoder<'_>,
    stream: &SenderState,
) -> fmt::Result {
    let none = Labels::new();
    let help = "1 while the operator takes this node's signals";
    let is_open = u64::from(stream.is_open());
    gauge(encoder, "sluice_stream_open", help, [(&none, is_open)])?;
    let counters = [
        (
            "sluice_stream_messages",
            "Messages with signals that were sent to the operator",
            stream.sent(),
        ),
        (
            "sluice_stream_failures",
            "Streams of signals that could not be opened, or have ended",
            stream.failures(),
        ),
    ];
    for (name, help, value) in counters {
        counter(encoder, name, help, None, [(&none, value)])?;
    }
    Ok(())
}
