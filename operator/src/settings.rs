//! Settings that count under Kubernetes and over a directory alike.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::core::RefusedServers;

/// What the operator's options say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// No VIP may newly be in these blocks.
    pub reserved: BTreeSet<IpNet>,
    /// Whose addresses pools may not newly name as static servers.
    pub refused_servers: BTreeSet<RefusedServers>,
    /// After how many seconds of silence whatever a node has left behind goes, if nothing says that there is such a node;
    /// `None`: never.
    pub forget_silent_seconds: Option<u64>,
    /// Whether Services of type LoadBalancer without a class are served.
    pub services_without_class: bool,
    /// Whether cordoned Nodes are no candidates for VIP groups.
    pub drains_cordoned: bool,
}
