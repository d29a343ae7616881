//! The pieces that all test networks have: a client behind a router, and a switch.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::address::{Dual, Family};
use super::link::{Port, Route, Veth};
use super::namespace::Namespace;
use super::sources::CLIENT_SOURCES;
use super::xdp::PassProgram;

/// The largest IP packet on the segment, in bytes: room for the outer headers of tunnels beside whole client packets.
pub const FABRIC_MTU: u16 = 1600;

/// The interface of a node towards its network.
pub const UPLINK: &str = "eth0";

/// The bridge of a switch.
pub(crate) const BRIDGE: &str = "fabric0";

const CLIENT_NET: Dual = Dual {
    v4: Ipv4Addr::new(192, 0, 2, 0),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x1, 0, 0, 0, 0, 0),
};

/// Connects the client to the router. Connections may come from any of the addresses that
/// [`super::fabric::client_sources`] names.
pub(crate) fn connect_client(client: &Namespace, router: &Namespace) -> Result<()> {
    let (near, far) = (client.port(UPLINK), router.port("client0"));
    Veth::between(near, far).create()?;
    near.addresses(CLIENT_NET.host(2).prefixes(24, 64))?;
    far.addresses(CLIENT_NET.host(1).prefixes(24, 64))?;
    use_gateway(client, CLIENT_NET.host(1))?;
    for (sources, family) in CLIENT_SOURCES
        .prefixes(16, 64)
        .into_iter()
        .zip(Family::BOTH)
    {
        let option = family.option();
        client.ip(&format!("{option} route add local {sources} dev lo"))?;
        router.route(&Route::to(sources, [CLIENT_NET.host(2).of(family)]))?;
    }
    // A router in the same machine takes over the hash of the client's socket, which is another one after each timeout: it
    // would choose another director then. Other routers know nothing but the packet.
    client.sysctl("net.core.txrehash", "0")?;
    // Any address of the range may be bound without being configured one by one.
    client.sysctl("net.ipv6.ip_nonlocal_bind", "1")
}

/// Connects a port to a switch's port `name`.
pub(crate) fn plug_in(near: Port<'_>, switch: &Namespace, name: &str, address: Dual) -> Result<()> {
    let far = switch.port(name);
    Veth::between(near, far).mtu(FABRIC_MTU).create()?;
    far.join(switch.port(BRIDGE))?;
    near.addresses(address.prefixes(24, 64))?;
    Ok(())
}

/// Makes the far end of a director's link receive what XDP transmits, and finish what it sends.
pub(crate) fn prepare_far_end(pass: &mut PassProgram, far: Port<'_>) -> Result<()> {
    far.disable_transmit_checksums()?;
    pass.attach(far)
}

/// Sends what is not on a connected network to this router.
pub(crate) fn use_gateway(namespace: &Namespace, gateway: Dual) -> Result<()> {
    Family::BOTH
        .iter()
        .try_for_each(|&family| namespace.route(&Route::default_via(gateway.of(family))))
}
