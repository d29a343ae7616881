//! Numbers of the stream.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Labels with the reason of a refusal.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct ReasonLabel {
    /// Such as `not_authenticated` or `flood`.
    pub reason: &'static str,
}

/// Numbers of the stream.
#[derive(Debug, Default)]
pub struct StreamMetrics {
    /// Streams that are open.
    pub open: Gauge<i64, AtomicI64>,
    /// Reports that were taken.
    pub reports: Counter,
    /// Streams that were refused or ended by the operator, by reason.
    pub refused: Family<ReasonLabel, Counter>,
    /// Connections that were not let in.
    pub turned_away: Counter,
    /// Questions to the API server about tokens.
    pub reviews: Counter,
}

impl StreamMetrics {
    /// Adds everything to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("streams", "Nodes that report signals", self.open.clone());
        registry.register(
            "reports",
            "Messages with signals that were taken",
            self.reports.clone(),
        );
        registry.register(
            "refused_streams",
            "Streams that were refused, or ended by the operator, by reason",
            self.refused.clone(),
        );
        registry.register(
            "turned_away_connections",
            "Connections for streams that were not let in: too many that prove nothing",
            self.turned_away.clone(),
        );
        registry.register(
            "token_reviews",
            "Questions to the API server about tokens of agents",
            self.reviews.clone(),
        );
    }
}
