//! Manifests in the form that users write them, as JSON values (which YAML contains).

use std::net::IpAddr;

use serde_json::{Value, json};

use super::address::{Dual, Family};
use super::ask::Protocol;

const API_VERSION: &str = "sluice.dev/v1alpha1";

/// An agent's task on its node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Forwards packets for VIPs.
    Director,
    /// Serves the node's own servers in the modes that answer clients directly.
    RealServer,
}

/// A port of a virtual server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtualServerPort {
    /// Name by which target ports refer to it.
    pub name: &'static str,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port number.
    pub port: u16,
}

/// The TCP port of the virtual servers in the tests.
pub const WEB: VirtualServerPort = VirtualServerPort {
    name: "web",
    protocol: Protocol::Tcp,
    port: 80,
};

/// Their two ports: the same number over TCP and UDP.
pub const PORTS: [VirtualServerPort; 2] = [
    WEB,
    VirtualServerPort {
        name: "echo",
        protocol: Protocol::Udp,
        port: 80,
    },
];

/// A virtual server at both addresses of `vip` with [`PORTS`].
pub fn virtual_server(name: &str, mode: &str, vip: Dual, pools: &[(&str, u32)]) -> Value {
    let addresses = Family::BOTH.map(|family| vip.of(family));
    virtual_server_at(name, mode, &addresses, &PORTS, pools)
}

/// A virtual server in FullNAT at the address `vip` with [`WEB`] alone, over one pool. Panics if `vip` is none.
pub fn web_server(name: &str, vip: &str, pool: &str) -> Value {
    let vip = vip.parse().expect("an address");
    virtual_server_at(name, "FullNAT", &[vip], &[WEB], &[(pool, 1)])
}

/// A virtual server; `mode` is a forwarding mode's name in the API.
pub fn virtual_server_at(
    name: &str,
    mode: &str,
    addresses: &[IpAddr],
    ports: &[VirtualServerPort],
    pools: &[(&str, u32)],
) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| {
            let protocol = port.protocol.to_string();
            json!({"name": port.name, "protocol": protocol, "port": port.port})
        })
        .collect();
    let pools: Vec<Value> = pools
        .iter()
        .map(|(name, weight)| json!({"name": name, "weight": weight}))
        .collect();
    let spec = json!({
        "addresses": addresses,
        "ports": ports,
        "forwarding": {"mode": mode},
        "pools": pools,
    });
    object("VirtualServer", name, &spec)
}

/// A pool of servers, each with both its addresses, its name and its weight; `target_port` is for both of [`PORTS`].
pub fn pool(name: &str, servers: &[(&str, Dual, u32)], target_port: Option<u16>) -> Value {
    let servers: Vec<Value> = servers
        .iter()
        .flat_map(|(name, address, weight)| {
            [("v4", Family::V4), ("v6", Family::V6)].map(|(suffix, family)| {
                json!({
                    "name": format!("{name}-{suffix}"),
                    "address": address.of(family),
                    "weight": weight,
                })
            })
        })
        .collect();
    let mut spec = json!({"servers": {"static": servers}});
    if let Some(port) = target_port {
        spec["targetPorts"] = PORTS
            .map(|listed| json!({"name": listed.name, "port": port}))
            .into();
    }
    object("RealServerPool", name, &spec)
}

/// A policy that moves `virtual_server` from `stable` to `candidate` by steps of (weight, pause in seconds).
pub fn rollout(
    name: &str,
    virtual_server: &str,
    stable: &str,
    candidate: &str,
    steps: &[(u8, u32)],
) -> Value {
    let steps: Vec<Value> = steps
        .iter()
        .map(|(weight, pause)| json!({"weight": weight, "pauseSeconds": pause}))
        .collect();
    let spec = json!({
        "virtualServerName": virtual_server,
        "stablePoolName": stable,
        "candidatePoolName": candidate,
        "strategy": {"canary": {"steps": steps}},
    });
    object("RolloutPolicy", name, &spec)
}

/// A node with its uplinks. Only native XDP will do.
pub fn node(name: &str, role: Role, uplinks: &[&str]) -> Value {
    let role = match role {
        Role::Director => "Director",
        Role::RealServer => "RealServer",
    };
    json!({
        "apiVersion": API_VERSION,
        "kind": "LoadBalancerNode",
        "metadata": {"name": name},
        "spec": {"role": role, "interfaces": uplinks, "xdpMode": "Native"},
    })
}

/// The text of a manifest with these objects.
pub fn documents(objects: &[Value]) -> String {
    let documents: Vec<String> = objects.iter().map(|value| format!("{value:#}")).collect();
    documents.join("\n---\n")
}

/// An object of the namespace `default` with this spec.
pub fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    })
}
