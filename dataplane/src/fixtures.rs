//! Values that tests share.

use sluice_api::{
    DecidedPool, DecidedPort, DecidedVirtualServer, ExternalTrafficPolicy, ForwardingMode,
    PoolSelection, Protocol, ServerSelection, WhenAllDown,
};
use sluice_planner::Limits;

/// Maps of a few entries.
pub(crate) const LIMITS: Limits = Limits {
    vips: 64,
    replies: 64,
    locals: 64,
    peers: 64,
    peer_nets: 64,
    sources: 1024,
    announced: 64,
    heads: 64,
    rings: 64,
    ring_slots: 65_536,
    servers: 64,
    records: 64,
    servers_each: 64,
    ring_slots_each: 65_536,
    sources_each: 512,
};

/// A virtual server over the pool v1.
pub(crate) fn virtual_server() -> DecidedVirtualServer {
    DecidedVirtualServer {
        addresses: vec!["203.0.113.1".parse().unwrap()],
        ports: vec![DecidedPort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: 80,
        }],
        mode: ForwardingMode::Nat,
        pool_selection: PoolSelection::Flow,
        server_selection: ServerSelection::Flow,
        external_traffic_policy: ExternalTrafficPolicy::Cluster,
        when_all_down: WhenAllDown::LastKnown,
        fallback: None,
        sources: None,
        pools: vec![DecidedPool {
            name: "v1".to_owned(),
            weight: 1,
            spec_weight: 1,
        }],
        groups: Vec::new(),
    }
}
