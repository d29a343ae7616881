//! The specification of a cluster, and the addresses in it.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::net::{Dual, Namespace};

const NODE_NET: Dual = Dual {
    v4: Ipv4Addr::new(10, 1, 0, 0),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 0),
};

/// The gateway of nodes and control plane.
pub(super) const ROUTER: Dual = NODE_NET.host(1);

/// Where the API server is.
pub(super) const CONTROL: Dual = NODE_NET.host(10);

/// The pods of node `number`, counted from 1.
const fn pod_net(number: u8) -> Dual {
    Dual {
        v4: Ipv4Addr::new(10, 244, number, 0),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0x244, number as u16, 0, 0, 0, 0),
    }
}

/// The specification of a cluster: its nodes, the images on them, and whether they run kube-proxy.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    pub(super) nodes: u8,
    pub(super) images: Vec<&'static str>,
    pub(super) kube_proxy: bool,
}

impl ClusterSpec {
    /// A cluster of 1 to 9 nodes, called n1, n2 and so on. They have the images of pods' pause containers and of the web
    /// server `localhost/web:1`, and run kube-proxy.
    pub fn new(nodes: u8) -> Self {
        Self {
            nodes,
            images: vec!["pause", "web"],
            kube_proxy: true,
        }
    }

    /// With one more image on every node: `sluice` is `localhost/sluice:dev`.
    #[must_use]
    pub fn image(mut self, name: &'static str) -> Self {
        self.images.push(name);
        self
    }

    /// Without kube-proxy: nothing but the product handles the addresses of Services.
    #[must_use]
    pub const fn without_kube_proxy(mut self) -> Self {
        self.kube_proxy = false;
        self
    }
}

/// Where a node is in the network.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Its network, and its name.
    pub(super) namespace: Namespace,
    /// Its addresses.
    pub(super) address: Dual,
    /// The network of its pods.
    pub(super) pods: Dual,
}

impl Place {
    /// That of node `number`, counted from 1.
    pub(super) const fn new(namespace: Namespace, number: u8) -> Self {
        Self {
            namespace,
            address: NODE_NET.host(10 + number),
            pods: pod_net(number),
        }
    }
}
