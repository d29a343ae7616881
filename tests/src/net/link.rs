//! Links, addresses and routes.

use std::net::IpAddr;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};

use super::address::{Cidr, Family};
use super::command::{command, output};
use super::namespace::Namespace;

/// A network interface of a namespace.
#[derive(Clone, Copy, Debug)]
pub struct Port<'a> {
    /// Where it is.
    pub namespace: &'a Namespace,
    /// Its name there.
    pub name: &'a str,
}

impl Namespace {
    /// The interface called `name`, which need not exist yet.
    pub fn port<'a>(&'a self, name: &'a str) -> Port<'a> {
        Port {
            namespace: self,
            name,
        }
    }

    /// Makes a bridge.
    pub fn bridge<'a>(&'a self, name: &'a str, mtu: u16) -> Result<Port<'a>> {
        // Group filtering would need a querier; without it neighbour discovery floods like every other multicast.
        self.ip(&format!(
            "link add {name} mtu {mtu} type bridge stp_state 0 mcast_snooping 0 forward_delay 0"
        ))?;
        self.ip(&format!("link set {name} up"))?;
        Ok(self.port(name))
    }

    /// Lets the namespace forward packets in both families.
    pub fn enable_forwarding(&self) -> Result<()> {
        self.sysctl("net.ipv4.ip_forward", "1")?;
        self.sysctl("net.ipv6.conf.all.forwarding", "1")
    }

    /// Spreads the flows of routes with several next hops by address *and* port, as routers in front of directors must.
    pub fn hash_flows_by_port(&self) -> Result<()> {
        self.sysctl("net.ipv4.fib_multipath_hash_policy", "1")?;
        self.sysctl("net.ipv6.fib_multipath_hash_policy", "1")
    }

    /// Drops packets whose source would not be reached through the interface they came by. Interfaces made later have
    /// it too.
    pub fn filter_reverse_path(&self) -> Result<()> {
        for scope in ["all", "default"] {
            self.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "1")?;
        }
        // IPv6 has no such sysctl.
        self.nft(
            "table ip6 reverse_path {
                chain prerouting {
                    type filter hook prerouting priority raw; policy accept;
                    fib saddr . iif oif missing drop
                }
            }",
        )
    }

    /// Adds a route.
    pub fn route(&self, route: &Route) -> Result<()> {
        let family = route.family().option();
        self.ip(&format!("{family} route replace {}", route.arguments()))?;
        Ok(())
    }
}

impl Port<'_> {
    /// Adds addresses.
    pub fn addresses(&self, addresses: impl IntoIterator<Item = Cidr>) -> Result<&Self> {
        for address in addresses {
            self.namespace
                .ip(&format!("address add {address} dev {}", self.name))?;
        }
        Ok(self)
    }

    /// Makes it a port of `bridge`, in the same namespace.
    pub fn join(&self, bridge: Port<'_>) -> Result<&Self> {
        self.namespace
            .ip(&format!("link set {} master {}", self.name, bridge.name))?;
        Ok(self)
    }

    /// Lets it leave checksums to nobody: packets that an XDP program at the other end rewrites must come with complete
    /// ones.
    pub fn disable_transmit_checksums(&self) -> Result<&Self> {
        self.namespace
            .run(&format!("ethtool -K {} tx off", self.name))?;
        Ok(self)
    }

    /// Lets all packets of a flow be received on one processor, as network cards do. veth receives each on the processor
    /// that sent it: packets overtake each other, and Linux loses a FIN that it handles at the same time as the ACK before
    /// it (`tcp_rcv_state_process` says so), which a client would count as a retransmission.
    fn keep_flows_in_order(&self) -> Result<()> {
        let processors = thread::available_parallelism()?.get().min(32);
        let mask = u32::MAX >> (32 - processors);
        let script = format!(
            "for queue in /sys/class/net/{}/queues/rx-*; do echo {mask:x} > $queue/rps_cpus; done",
            self.name
        );
        // Unlike nsenter, this shows the namespace's own devices below /sys.
        let mut shell = Command::new("ip");
        shell.args(["netns", "exec", self.namespace.name(), "sh", "-c", &script]);
        output(&mut shell)?;
        Ok(())
    }

    /// Its MAC address.
    pub fn mac(&self) -> Result<String> {
        let text = self
            .namespace
            .ip(&format!("-br link show dev {}", self.name))?;
        let mac = text.split_whitespace().nth(2);
        Ok(mac.context("`ip -br link` shows no address")?.to_owned())
    }
}

/// A pair of virtual Ethernet interfaces.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    ends: [Port<'a>; 2],
    mtu: u16,
}

impl<'a> Veth<'a> {
    /// A cable between two interfaces that do not exist yet.
    pub const fn between(one: Port<'a>, other: Port<'a>) -> Self {
        Self {
            ends: [one, other],
            mtu: 1500,
        }
    }

    /// The largest IP packet, in bytes; 1500 unless set.
    #[must_use]
    pub const fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = mtu;
        self
    }

    /// Makes it and sets both ends up.
    pub fn create(self) -> Result<()> {
        let [one, other] = self.ends;
        let mtu = self.mtu;
        command(&format!(
            "ip link add {} netns {} mtu {mtu} type veth peer name {} netns {} mtu {mtu}",
            one.name,
            one.namespace.name(),
            other.name,
            other.namespace.name()
        ))?;
        for end in self.ends {
            end.namespace.ip(&format!("link set {} up", end.name))?;
            end.keep_flows_in_order()?;
        }
        Ok(())
    }
}

/// A route, by where it leads.
#[derive(Clone, Debug)]
pub struct Route {
    destination: Option<Cidr>,
    gateways: Vec<IpAddr>,
}

impl Route {
    /// The default route of the gateway's family.
    pub fn default_via(gateway: IpAddr) -> Self {
        Self {
            destination: None,
            gateways: vec![gateway],
        }
    }

    /// A route to `destination` by one or, in equal shares, several gateways.
    pub fn to(destination: Cidr, gateways: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            destination: Some(destination),
            gateways: gateways.into_iter().collect(),
        }
    }

    fn family(&self) -> Family {
        self.gateways
            .first()
            .map_or(Family::V4, |&gateway| Family::of(gateway))
    }

    fn arguments(&self) -> String {
        let destination = self
            .destination
            .map_or_else(|| "default".to_owned(), |cidr| cidr.to_string());
        match self.gateways.as_slice() {
            [gateway] => format!("{destination} via {gateway}"),
            gateways => gateways.iter().fold(destination, |text, gateway| {
                format!("{text} nexthop via {gateway} weight 1")
            }),
        }
    }
}
