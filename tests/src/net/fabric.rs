//! The network of the tests and of the demo.
//!
//! ```text
//!                                              ┌─(bridge)── pods
//!  client ── router ── switch ──┬── director-1 ─┴─(second link)── back switch ── back servers
//!                               ├── director-2
//!                               ├── servers
//!                               └── far router ── far servers
//! ```
//!
//! Every box is a namespace; all of it speaks IPv4 and IPv6. The switch is one Ethernet segment. The router sends the
//! VIPs of the first block to director 1 and spreads those of the second over both directors by flow. Packets with
//! sources that do not belong where they come from are dropped on the router, the directors and the servers. What the namespaces get is what an
//! administrator gives hosts: addresses, routes, servers. The rest is Sluice's.
//!
//! Only veth asks for something that real networks do not: the far ends of the directors' links pass packets through an
//! XDP program, without which nothing that a director transmits from XDP arrives, and complete checksums before they
//! send, since an unfinished one exists only within one machine.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};

use super::address::{Dual, Family};
use super::counter::{Counters, Direction};
use super::link::{Port, Route, Veth};
use super::namespace::Namespace;
use super::run::Run;
use super::segment::{BRIDGE, connect_client, plug_in, prepare_far_end, use_gateway};
use super::udp::Echo;
use super::web::Web;
use super::xdp::PassProgram;

pub use super::segment::{FABRIC_MTU, UPLINK};
pub use super::sources::client_sources;

/// Ports on which every server serves, over TCP and UDP.
pub const SERVER_PORTS: [u16; 2] = [80, 8080];

/// The directors, in order.
pub const DIRECTORS: [&str; 2] = ["director-1", "director-2"];

/// The bridge on director 1 behind which pods are.
pub const POD_BRIDGE: &str = "pods0";

/// The second link of a director.
pub const BACK_LINK: &str = "eth1";

const CONTROL: &str = "control";
const GUEST: &str = "guest";
const ROUTER: &str = "router";
/// How long the switch remembers an address, in hundredths of a second: the kernel's default.
const SWITCH_AGEING: u32 = 30_000;
const FAR_ROUTER: &str = "far-router";
const FAR_LINK: &str = "far0";
/// Routing table of the far router for servers whose replies go to director 1.
const NAT_TABLE: u32 = 100;

const FABRIC_NET: Dual = dual([10, 1, 0], 0xf);
const FAR_NET: Dual = dual([10, 2, 0], 0xfa);
const POD_NET: Dual = dual([10, 3, 0], 0xb);
const BACK_NET: Dual = dual([10, 4, 0], 0xbac);
const VIPS_OF_ONE: Dual = dual([203, 0, 113], 0xcafe);
const VIPS_OF_BOTH: Dual = dual([203, 0, 114], 0xcaff);

const fn dual(v4: [u8; 3], v6: u16) -> Dual {
    Dual {
        v4: Ipv4Addr::new(v4[0], v4[1], v4[2], 0),
        v6: Ipv6Addr::new(0x2001, 0xdb8, v6, 0, 0, 0, 0, 0),
    }
}

/// A VIP that the router sends to director 1.
pub const fn vip_of_one(number: u8) -> Dual {
    VIPS_OF_ONE.host(number)
}

/// A VIP whose flows the router spreads over both directors.
pub const fn vip_of_both(number: u8) -> Dual {
    VIPS_OF_BOTH.host(number)
}

/// An address on the directors' segment that nothing routes anywhere: whoever answers for it has it.
pub const fn vip_on_link(number: u8) -> Dual {
    FABRIC_NET.host(number)
}

/// An address behind the directors that no host has.
pub const fn back_gateway() -> Dual {
    BACK_NET.host(254)
}

/// Where a server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// On the directors' segment.
    Fabric,
    /// Behind another router.
    Far,
    /// Behind the bridge of director 1.
    Pod,
    /// At the second link of directors.
    Back,
}

/// Where a server sends what is not on its own network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gateway {
    /// To the router, by whatever is in between: straight back to the clients.
    Router,
    /// To director 1, as NAT asks for.
    Director,
    /// To [`back_gateway`], which whoever announces it has.
    Announced,
}

/// A server to build.
#[derive(Clone, Copy, Debug)]
pub struct ServerSpec {
    /// Its name, by which it answers.
    pub name: &'static str,
    /// Where it is.
    pub place: Place,
    /// Where its replies go.
    pub gateway: Gateway,
}

impl ServerSpec {
    /// A server on the segment that replies by way of the router.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            place: Place::Fabric,
            gateway: Gateway::Router,
        }
    }

    /// The same elsewhere.
    #[must_use]
    pub const fn at(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    /// The same with replies by way of director 1.
    #[must_use]
    pub const fn behind_director(mut self) -> Self {
        self.gateway = Gateway::Director;
        self
    }

    /// The same at the second link of directors, with replies by way of the one that announces [`back_gateway`].
    #[must_use]
    pub const fn behind_gateway(mut self) -> Self {
        self.place = Place::Back;
        self.gateway = Gateway::Announced;
        self
    }
}

/// A node with an address on one network.
#[derive(Debug)]
pub struct Node {
    /// Where it lives.
    pub namespace: Namespace,
    /// Its addresses.
    pub address: Dual,
}

/// The built network with its servers. Daemons that run in it must be dropped first.
#[derive(Debug)]
pub struct Fabric {
    web: BTreeMap<String, Web>,
    echo: BTreeMap<String, Echo>,
    nodes: BTreeMap<String, Node>,
    client: Namespace,
    router: Namespace,
    switch: Namespace,
    back_switch: Option<Namespace>,
    pass: PassProgram,
    run: Run,
}

impl Fabric {
    /// Builds it with these servers; each serves HTTP and the UDP echo at [`SERVER_PORTS`].
    pub fn build(servers: &[ServerSpec]) -> Result<Self> {
        let run = Run::start()?;
        let mut fabric = Self {
            web: BTreeMap::new(),
            echo: BTreeMap::new(),
            nodes: BTreeMap::new(),
            client: run.namespace("client")?,
            router: run.namespace(ROUTER)?,
            switch: run.namespace("switch")?,
            back_switch: None,
            pass: PassProgram::load()?,
            run,
        };
        fabric.switch.bridge(BRIDGE, FABRIC_MTU)?;
        connect_client(&fabric.client, &fabric.router)?;
        fabric.connect_router()?;
        for (name, host) in DIRECTORS.into_iter().zip([11, 12]) {
            fabric.add_director(name, FABRIC_NET.host(host))?;
        }
        if servers.iter().any(|server| server.place == Place::Far) {
            fabric.add_far_router()?;
        }
        if servers.iter().any(|server| server.place == Place::Pod) {
            fabric.add_pod_bridge()?;
        }
        if servers.iter().any(|server| server.place == Place::Back) {
            fabric.add_back_link(DIRECTORS[0], 11)?;
        }
        for (server, host) in servers.iter().zip(21..) {
            fabric.add_server(server, host)?;
            fabric.serve(server.name, server.name)?;
        }
        Ok(fabric)
    }

    /// The owner of the namespaces.
    pub const fn run(&self) -> &Run {
        &self.run
    }

    /// Where the clients are.
    pub const fn client(&self) -> &Namespace {
        &self.client
    }

    /// The namespace between clients and directors.
    pub const fn router(&self) -> &Namespace {
        &self.router
    }

    /// A director or server.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .get(name)
            .with_context(|| format!("no node is called {name}"))
    }

    /// The addresses of a director or server.
    pub fn address(&self, name: &str) -> Result<Dual> {
        Ok(self.node(name)?.address)
    }

    /// The UDP echo of a server.
    pub fn echo(&self, server: &str) -> Result<&Echo> {
        self.echo
            .get(server)
            .with_context(|| format!("no echo is called {server}"))
    }

    /// Serves HTTP and the UDP echo as `name` at [`SERVER_PORTS`] of the node's own addresses.
    pub fn serve(&mut self, node: &str, name: &str) -> Result<()> {
        let Node { namespace, address } = self.node(node)?;
        let sockets: Vec<SocketAddr> = Family::BOTH
            .iter()
            .flat_map(|&family| SERVER_PORTS.map(|port| address.socket(family, port)))
            .collect();
        let web = Web::start(&self.run, namespace, name, &sockets)?;
        let echo = Echo::start(namespace, name, &sockets)?;
        self.web.insert(name.to_owned(), web);
        self.echo.insert(name.to_owned(), echo);
        Ok(())
    }

    /// The web server of this name.
    pub fn web(&mut self, server: &str) -> Result<&mut Web> {
        self.web
            .get_mut(server)
            .with_context(|| format!("no web server is called {server}"))
    }

    /// Counts on the far end of a node's link.
    pub fn count_beyond<'a>(
        &'a self,
        node: &'a str,
        rules: &[(&str, Direction, &str)],
    ) -> Result<Counters<'a>> {
        Counters::install(self.far_end(node), rules)
    }

    /// The switch's port to a node.
    pub fn far_end<'a>(&'a self, node: &'a str) -> Port<'a> {
        self.switch.port(node)
    }

    /// The back switch's port to a node.
    pub fn back_end<'a>(&'a self, node: &'a str) -> Result<Port<'a>> {
        let switch = self.back_switch.as_ref().context("no back switch")?;
        Ok(switch.port(node))
    }

    /// The address of a control plane on the segment.
    pub const fn control_address(&self) -> Dual {
        FABRIC_NET.host(10)
    }

    /// Connects a namespace for a control plane to the segment. Returns its address there, which is the one that a control
    /// plane has by itself too.
    pub fn connect_control(&self) -> Result<(Namespace, Dual)> {
        let namespace = self.run.namespace(CONTROL)?;
        let address = self.control_address();
        self.plug(&namespace, CONTROL, address)?;
        use_gateway(&namespace, FABRIC_NET.host(1))?;
        Ok((namespace, address))
    }

    /// Makes the switch a hub, which sends each frame to everybody, or a switch again.
    pub fn set_hub(&self, hub: bool) -> Result<()> {
        let ageing = if hub { 0 } else { SWITCH_AGEING };
        self.switch.ip(&format!(
            "link set {BRIDGE} type bridge ageing_time {ageing}"
        ))?;
        Ok(())
    }

    /// Has the switch send multicast frames only to those who joined their groups and to routers, as switches that snoop on MLD do,
    /// and ask for members all the time.
    pub fn snoop(&self, snoops: bool) -> Result<()> {
        let snoops = u8::from(snoops);
        self.switch.ip(&format!(
            "link set {BRIDGE} type bridge mcast_snooping {snoops} mcast_querier {snoops} mcast_query_interval 300 \
             mcast_query_response_interval 100 mcast_startup_query_interval 100"
        ))?;
        Ok(())
    }

    /// Whether the switch knows that a node has joined a group.
    pub fn joined(&self, node: &str, group: Ipv6Addr) -> Result<bool> {
        let known = self.switch.run("bridge mdb show")?;
        let entry = format!("port {node} grp {group} ");
        Ok(known.lines().any(|line| line.contains(&entry)))
    }

    /// Lets the router spread the flows of the second block's VIPs over these directors alone.
    pub fn spread_over(&self, directors: &[&str]) -> Result<()> {
        let blocks = VIPS_OF_BOTH.prefixes(24, 48);
        let directors = directors.iter().map(|name| self.address(name));
        let directors = directors.collect::<Result<Vec<_>>>()?;
        for (family, block) in Family::BOTH.into_iter().zip(blocks) {
            let gateways = directors.iter().map(|director| director.of(family));
            self.router.route(&Route::to(block, gateways))?;
        }
        Ok(())
    }

    /// Connects one more host to the segment. Returns its addresses there.
    pub fn guest(&self) -> Result<(Namespace, Dual)> {
        let namespace = self.run.namespace(GUEST)?;
        let address = FABRIC_NET.host(99);
        self.plug(&namespace, GUEST, address)?;
        Ok((namespace, address))
    }

    fn connect_router(&self) -> Result<()> {
        self.plug(&self.router, ROUTER, FABRIC_NET.host(1))?;
        self.router.enable_forwarding()?;
        self.router.hash_flows_by_port()?;
        self.router.filter_reverse_path()?;
        let one = VIPS_OF_ONE.prefixes(24, 48);
        let both = VIPS_OF_BOTH.prefixes(24, 48);
        for (family, (one, both)) in Family::BOTH.into_iter().zip(one.into_iter().zip(both)) {
            let directors = [11, 12].map(|host| FABRIC_NET.host(host).of(family));
            self.router.route(&Route::to(one, [directors[0]]))?;
            self.router.route(&Route::to(both, directors))?;
        }
        Ok(())
    }

    /// Connects a namespace to the segment.
    fn plug(&self, namespace: &Namespace, name: &str, address: Dual) -> Result<()> {
        plug_in(namespace.port(UPLINK), &self.switch, name, address)
    }

    /// Adds a director beyond [`DIRECTORS`], to which no VIP is routed, and gives all of them a second link.
    pub fn add_third_director(&mut self, name: &str) -> Result<()> {
        self.add_director(name, FABRIC_NET.host(13))?;
        self.add_back_link(DIRECTORS[1], 12)?;
        self.add_back_link(name, 13)
    }

    fn add_director(&mut self, name: &str, address: Dual) -> Result<()> {
        let namespace = self.run.namespace(name)?;
        self.plug(&namespace, name, address)?;
        prepare_far_end(&mut self.pass, self.switch.port(name))?;
        namespace.enable_forwarding()?;
        namespace.filter_reverse_path()?;
        use_gateway(&namespace, FABRIC_NET.host(1))?;
        self.insert(name, namespace, address);
        Ok(())
    }

    fn add_far_router(&mut self) -> Result<()> {
        let namespace = self.run.namespace(FAR_ROUTER)?;
        let address = FABRIC_NET.host(2);
        self.plug(&namespace, FAR_ROUTER, address)?;
        namespace.bridge(FAR_LINK, FABRIC_MTU)?;
        namespace
            .port(FAR_LINK)
            .addresses(FAR_NET.host(1).prefixes(24, 64))?;
        namespace.enable_forwarding()?;
        // No reverse-path filter: servers behind it answer from VIPs, which it would reach the other way.
        use_gateway(&namespace, FABRIC_NET.host(1))?;
        for family in Family::BOTH {
            let director = FABRIC_NET.host(11).of(family);
            let option = family.option();
            namespace.ip(&format!(
                "{option} route add default via {director} table {NAT_TABLE}"
            ))?;
        }
        for (family, net) in Family::BOTH.into_iter().zip(FAR_NET.prefixes(24, 64)) {
            let route = Route::to(net, [address.of(family)]);
            self.router.route(&route)?;
            for director in DIRECTORS {
                self.node(director)?.namespace.route(&route)?;
            }
        }
        self.insert(FAR_ROUTER, namespace, address);
        Ok(())
    }

    fn add_pod_bridge(&self) -> Result<()> {
        let director = &self.node(DIRECTORS[0])?.namespace;
        director
            .bridge(POD_BRIDGE, FABRIC_MTU)?
            .addresses(POD_NET.host(1).prefixes(24, 64))?;
        Ok(())
    }

    fn add_back_link(&mut self, director: &str, host: u8) -> Result<()> {
        if self.back_switch.is_none() {
            let switch = self.run.namespace("back-switch")?;
            switch.bridge(BRIDGE, FABRIC_MTU)?;
            self.back_switch = Some(switch);
        }
        let switch = self.back_switch.as_ref().context("no back switch")?;
        let node = self.nodes.get(director).context("no such director")?;
        let near = node.namespace.port(BACK_LINK);
        plug_in(near, switch, director, BACK_NET.host(host))?;
        prepare_far_end(&mut self.pass, switch.port(director))
    }

    fn add_server(&mut self, server: &ServerSpec, host: u8) -> Result<()> {
        let namespace = self.run.namespace(server.name)?;
        let (address, gateway) = match (server.place, server.gateway) {
            (Place::Fabric, Gateway::Router) => (FABRIC_NET.host(host), FABRIC_NET.host(1)),
            (Place::Fabric, _) => (FABRIC_NET.host(host), FABRIC_NET.host(11)),
            (Place::Far, _) => (FAR_NET.host(host), FAR_NET.host(1)),
            (Place::Pod, _) => (POD_NET.host(host), POD_NET.host(1)),
            (Place::Back, Gateway::Announced) => (BACK_NET.host(host), back_gateway()),
            (Place::Back, _) => (BACK_NET.host(host), BACK_NET.host(11)),
        };
        match server.place {
            Place::Fabric => self.plug(&namespace, server.name, address)?,
            Place::Far => self.plug_behind(FAR_ROUTER, FAR_LINK, &namespace, server, address)?,
            Place::Pod => {
                self.plug_behind(DIRECTORS[0], POD_BRIDGE, &namespace, server, address)?;
            }
            Place::Back => {
                let switch = self.back_switch.as_ref().context("no back switch")?;
                plug_in(namespace.port(UPLINK), switch, server.name, address)?;
            }
        }
        namespace.filter_reverse_path()?;
        use_gateway(&namespace, gateway)?;
        if (server.place, server.gateway) == (Place::Far, Gateway::Director) {
            let router = &self.node(FAR_ROUTER)?.namespace;
            for family in Family::BOTH {
                let (option, source) = (family.option(), address.of(family));
                router.ip(&format!(
                    "{option} rule add from {source} table {NAT_TABLE}"
                ))?;
            }
        }
        self.insert(server.name, namespace, address);
        Ok(())
    }

    /// Connects a namespace to a bridge on a node.
    fn plug_behind(
        &self,
        node: &str,
        bridge: &str,
        namespace: &Namespace,
        server: &ServerSpec,
        address: Dual,
    ) -> Result<()> {
        let host = &self.node(node)?.namespace;
        let (near, far) = (namespace.port(UPLINK), host.port(server.name));
        Veth::between(near, far).mtu(FABRIC_MTU).create()?;
        far.join(host.port(bridge))?;
        near.addresses(address.prefixes(24, 64))?;
        Ok(())
    }

    fn insert(&mut self, name: &str, namespace: Namespace, address: Dual) {
        self.nodes
            .insert(name.to_owned(), Node { namespace, address });
    }
}

/// Expression of nftables for packets whose source is any VIP: replies on their way to clients.
pub fn from_vips(family: Family) -> String {
    format!("{} saddr {{ {} }}", header(family), vip_blocks(family))
}

/// The same for packets whose source is none, over TCP or UDP.
pub(super) fn not_from_vips(family: Family) -> String {
    let (header, blocks) = (header(family), vip_blocks(family));
    format!("{header} saddr != {{ {blocks} }} meta l4proto {{ tcp, udp }}")
}

fn vip_blocks(family: Family) -> String {
    let blocks = [VIPS_OF_ONE, VIPS_OF_BOTH].map(|block| {
        let [v4, v6] = block.prefixes(24, 48);
        match family {
            Family::V4 => v4.to_string(),
            Family::V6 => v6.to_string(),
        }
    });
    blocks.join(", ")
}

/// Expression of nftables for packets from this address.
pub fn from_address(address: IpAddr) -> String {
    format!("{} saddr {address}", header(Family::of(address)))
}

pub(super) fn header(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}
