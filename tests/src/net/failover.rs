//! Three directors that announce VIPs on their segment, and clients that connect all the time while directors come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sluice_api::jiff::{SignedDuration, Timestamp};
use sluice_api::{DEFAULT_POOL_GROUPS, GroupRole, group_lease, group_of_lease};

use super::address::Dual;
use super::fabric::{BACK_LINK, DIRECTORS, Fabric, ServerSpec, UPLINK, back_gateway, vip_on_link};
use super::manifest::{self, Role};
use super::sluice::{Daemons, Sluice};
use super::{Family, Namespace, Outage, OutageReport, Protocol, until};
use crate::kube::chart;

/// All directors.
pub const NODES: [&str; 3] = [DIRECTORS[0], DIRECTORS[1], "director-3"];

/// The uplinks of each: VIPs are announced on the first, and the servers of NAT are at the second.
const UPLINKS: [&str; 2] = [UPLINK, BACK_LINK];

/// Name of the address pool that the VIPs are from.
pub const POOL: &str = "segment";

/// Name of the address pool of NAT's VIPs, unless all VIPs are in one group.
const NAT_POOL: &str = "nat";

/// The virtual servers: name, mode, number of the VIP on the segment, and servers.
pub const SERVED: [(&str, &str, u8, [&str; 2]); 4] = [
    ("dr", "DR", 201, ["dr-1", "dr-2"]),
    ("tun", "TUN", 202, ["tun-1", "tun-2"]),
    ("fullnat", "FullNAT", 203, ["fullnat-1", "fullnat-2"]),
    ("nat", "NAT", 205, ["nat-1", "nat-2"]),
];

/// Number of a VIP that the address pool has and no virtual server yet.
pub const SPARE: u8 = 204;

/// How long it may take until every group has its holder.
const SETTLE: Duration = Duration::from_mins(1);

/// Time before something is done to a director, in which clients connect.
const BEFORE: Duration = Duration::from_secs(1);

/// Agents in tests take groups back after three seconds without a fault; a group that stays for so long is where it belongs.
const RETURN: Duration = Duration::from_secs(6);

/// A group that stayed for so long is not on its way between directors.
const STAYS: SignedDuration = SignedDuration::from_millis(500);

/// How long clients go on after something was done to a director.
pub const AFTER: Duration = Duration::from_secs(3);

/// An outage up to this is a takeover by suspicion or handover, and beyond it one that waited for a Lease to expire. What takeovers
/// take is measured elsewhere: this machine may be busy.
const BY_SUSPICION: Duration = Duration::from_secs(3);

/// Between the daemons and the user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Between {
    /// A directory: directors agree by asking each other.
    Directory,
    /// A real API server with the accounts and roles of the chart: directors agree by Leases.
    Kubernetes,
}

/// The directors, the clients and the servers.
#[derive(Debug)]
pub struct Failover {
    /// The daemons; they go first.
    pub sluice: Sluice,
    /// The network.
    pub fabric: Fabric,
    /// A client on the segment.
    pub neighbour: Namespace,
    between: Between,
}

impl Daemons for Failover {
    fn sluice(&mut self) -> &mut Sluice {
        &mut self.sluice
    }

    fn fabric(&self) -> &Fabric {
        &self.fabric
    }
}

impl Failover {
    /// Builds it, and waits until every VIP has a holder. No route leads to a VIP.
    pub fn build(between: Between) -> Result<Self> {
        Self::build_with(between, DEFAULT_POOL_GROUPS)
    }

    /// The same with VIPs in so many groups.
    pub fn build_with(between: Between, groups: u8) -> Result<Self> {
        let specs = SERVED.iter().flat_map(|(_, mode, _, servers)| {
            servers.map(|name| match *mode {
                "NAT" => ServerSpec::new(name).behind_gateway(),
                _ => ServerSpec::new(name),
            })
        });
        let specs: Vec<ServerSpec> = specs.collect();
        let mut fabric = Fabric::build(&specs)?;
        fabric.add_third_director(NODES[2])?;
        let (neighbour, _) = fabric.guest()?;
        let mut nodes: Vec<(&str, Role)> = NODES.map(|name| (name, Role::Director)).to_vec();
        for (_, mode, _, servers) in SERVED {
            if has_agents(mode) {
                nodes.extend(servers.map(|name| (name, Role::RealServer)));
            }
        }
        let names: Vec<&str> = nodes.iter().map(|(name, _)| *name).collect();
        let objects = nodes.iter().map(|(name, role)| object(name, *role));
        let manifest = manifest::documents(&objects.collect::<Vec<_>>());
        let sluice = match between {
            Between::Directory => Sluice::start(&fabric, &names, &manifest)?,
            Between::Kubernetes => Sluice::start_by_chart(&fabric, &names, &manifest)?,
        };
        let mut stage = Self {
            sluice,
            fabric,
            neighbour,
            between,
        };
        // Whoever is cut off from the API server says what it cannot do.
        // Kinds are watched apart: a pool may be gone before the virtual server that names it.
        for text in [
            "cannot ",
            "starting without it",
            "the watch is lost",
            "reason=\"PoolNotFound\"",
        ] {
            stage.sluice.expect_complaint(text);
        }
        stage.serve(groups)?;
        stage.settle()?;
        Ok(stage)
    }

    fn serve(&mut self, groups: u8) -> Result<()> {
        let (nat, others): (Vec<_>, Vec<_>) =
            SERVED.iter().partition(|(_, mode, ..)| *mode == "NAT");
        let [nat, others] = [nat, others].map(|served| {
            served
                .iter()
                .map(|(_, _, number, _)| *number)
                .collect::<Vec<u8>>()
        });
        let others = [others, vec![SPARE]].concat();
        let pools = if groups == 1 {
            vec![address_pool(POOL, &[others, nat].concat(), 1)]
        } else {
            vec![
                address_pool(POOL, &others, groups),
                address_pool(NAT_POOL, &nat, 1),
            ]
        };
        self.sluice.apply("pool", &pools)?;
        for (name, mode, number, servers) in SERVED {
            let members = servers
                .iter()
                .map(|server| Ok((*server, self.fabric.address(server)?, 1)));
            let members = members.collect::<Result<Vec<_>>>()?;
            let pool = manifest::pool(name, &members, None);
            let server = manifest::virtual_server(name, mode, vip_on_link(number), &[(name, 1)]);
            self.sluice.apply(name, &[pool, server])?;
        }
        for (name, ..) in SERVED {
            self.sluice.await_weights(name, &[(name, 1)])?;
        }
        Ok(())
    }

    /// The VIP group of a virtual server.
    pub fn group_of(&self, server: &str) -> Result<String> {
        let status = self.sluice.virtual_server(server).context("a status")?;
        let decision = status.decision.context("a decision")?;
        let group = decision.content.groups.first().context("a group")?;
        Ok(group.group.clone())
    }

    /// Who holds the group of a virtual server, by what the directors say. Only one may.
    pub fn holder_of(&self, server: &str) -> Result<String> {
        let group = self.group_of(server)?;
        let held = self.held();
        let holders: Vec<&String> = held
            .iter()
            .filter(|(name, _)| *name == group)
            .map(|(_, node)| node)
            .collect();
        ensure!(holders.len() == 1, "{group} is held by {holders:?}");
        Ok(holders[0].clone())
    }

    /// Groups and the directors that say that they hold them.
    pub fn held(&self) -> Vec<(String, String)> {
        let held = NODES.iter().flat_map(|node| {
            let groups = self.sluice.node(node).unwrap_or_default().groups;
            let held = groups
                .into_iter()
                .filter(|group| group.role == GroupRole::Holder);
            held.map(|group| (group.name, (*node).to_owned()))
        });
        held.collect()
    }

    /// Holders by group, as the Leases say; without an API server there are none.
    fn leases(&self) -> Result<BTreeMap<String, String>> {
        let leases = self.group_leases()?;
        let holders = leases.iter().filter_map(|lease| {
            let name = lease["metadata"]["name"].as_str()?;
            let holder = lease["spec"]["holderIdentity"].as_str()?;
            Some((group_of_lease(name)?.to_owned(), holder.to_owned()))
        });
        Ok(holders.collect())
    }

    /// How often groups have got another holder, as the Leases say.
    pub fn takeovers(&self) -> Result<u64> {
        let leases = self.group_leases()?;
        let counts = leases
            .iter()
            .map(|lease| &lease["spec"]["leaseTransitions"]);
        Ok(counts.filter_map(Value::as_u64).sum())
    }

    fn group_leases(&self) -> Result<Vec<Value>> {
        let admin = self.sluice.control_plane()?.admin();
        let leases = admin.json([
            "--namespace",
            chart::RELEASE_NAMESPACE,
            "get",
            "leases",
            "--selector=sluice.dev/vip-group",
            "--output=json",
        ])?;
        let leases = leases["items"].as_array().context("a list of Leases")?;
        Ok(leases.clone())
    }

    /// Who holds the group of a virtual server, as its Lease says, once nobody has got it for a while and all other directors may take it.
    pub fn holder_at_rest(&self, server: &str) -> Result<String> {
        let group = self.group_of(server)?;
        let name = group_lease(&group);
        let mut holder = None;
        let mut seen = String::new();
        let rests = until("the group to stay where it is", SETTLE, || {
            let found = self.leases_and_nodes().unwrap_or_default();
            let of = |kind: &'static str| found.iter().filter(move |it| it["kind"] == kind);
            let lease = of("Lease").find(|lease| lease["metadata"]["name"] == *name);
            let Some(spec) = lease.map(|lease| &lease["spec"]) else {
                return false;
            };
            holder = spec["holderIdentity"].as_str().map(str::to_owned);
            let acquired = spec["acquireTime"].as_str();
            let acquired = acquired.and_then(|text| text.parse::<Timestamp>().ok());
            let has_stayed =
                |acquired: Timestamp| Timestamp::now().duration_since(acquired) > STAYS;
            let roles = of("LoadBalancerNode").filter_map(|node| {
                let groups = node["status"]["groups"].as_array()?;
                let part = groups.iter().find(|part| part["name"] == *group)?;
                Some((node["metadata"]["name"].as_str()?, part["role"].as_str()?))
            });
            let roles: BTreeMap<&str, &str> = roles.collect();
            seen = format!("{spec}, {roles:?}");
            let is_as_told = |node: &&str| {
                let is_holder = holder.as_deref() == Some(*node);
                let role = if is_holder { "Holder" } else { "Candidate" };
                roles.get(node) == Some(&role)
            };
            acquired.is_some_and(has_stayed) && NODES.iter().all(is_as_told)
        });
        rests.with_context(|| seen)?;
        holder.with_context(|| format!("nobody holds {group}"))
    }

    fn leases_and_nodes(&self) -> Result<Vec<Value>> {
        let admin = self.sluice.control_plane()?.admin();
        let kinds = "leases.coordination.k8s.io,loadbalancernodes.sluice.dev";
        let mut found = admin.json(["--namespace", chart::RELEASE_NAMESPACE, "get", kinds])?;
        match found["items"].take() {
            Value::Array(items) => Ok(items),
            other => bail!("no list: {other}"),
        }
    }

    /// Waits until each group that has VIPs is held by one director, and its Lease says so.
    pub fn settle(&mut self) -> Result<()> {
        let mut seen = String::new();
        let settled = until("every group to have its holder", SETTLE, || {
            let held = self.held();
            let groups = SERVED.iter().map(|(name, ..)| self.group_of(name));
            let groups = groups.collect::<Result<BTreeSet<_>>>().unwrap_or_default();
            let mut same = true;
            seen = format!("held {held:?}, groups {groups:?}");
            if self.between == Between::Kubernetes {
                let leases = self.leases().unwrap_or_default();
                seen = format!("{seen}, Leases {leases:?}");
                same = held
                    .iter()
                    .all(|(group, node)| leases.get(group) == Some(node));
            }
            let held: Vec<&String> = held.iter().map(|(group, _)| group).collect();
            same && !groups.is_empty()
                && held.len() == groups.len()
                && groups.iter().all(|group| held.contains(&group))
        });
        settled.with_context(|| seen)?;
        self.sluice.expect_running()
    }

    /// Waits until no group has moved for so long that none is on its way back to a director that returned.
    pub fn rest(&self) -> Result<()> {
        let mut last = (self.held(), Instant::now());
        until("groups to stay where they are", SETTLE, || {
            let held = self.held();
            if held != last.0 {
                last = (held, Instant::now());
            }
            last.1.elapsed() > RETURN
        })
    }

    /// Does something to the holder of a virtual server's group while clients connect to its VIP, and waits. Returns who held the
    /// group, and what the clients met.
    pub fn disturb(
        &mut self,
        server: &str,
        disturb: impl FnOnce(&mut Self, &str) -> Result<()>,
        wait: Duration,
    ) -> Result<(String, Vec<OutageReport>)> {
        let holder = self.holder_of(server)?;
        let outages = self.clients(server)?;
        thread::sleep(BEFORE);
        let done = disturb(self, &holder);
        thread::sleep(wait);
        let reports: Vec<OutageReport> = outages.into_iter().map(Outage::stop).collect();
        done?;
        for report in &reports {
            let OutageReport {
                longest,
                begun,
                failed,
                ..
            } = report;
            println!("  {server} at {holder}: {failed} of {begun} failed, nobody for {longest:?}");
        }
        Ok((holder, reports))
    }

    /// Ends the agent of the holder of a virtual server's group by `end`, and starts it again. Returns what clients met.
    pub fn end_agent(
        &mut self,
        server: &str,
        end: impl FnOnce(&mut Sluice, &str) -> Result<()>,
        wait: Duration,
    ) -> Result<Vec<OutageReport>> {
        let end = |stage: &mut Self, holder: &str| end(&mut stage.sluice, holder);
        let (holder, reports) = self.disturb(server, end, wait)?;
        self.sluice.restart_agent(&holder)?;
        self.sluice.await_ready()?;
        Ok(reports)
    }

    /// Gives the directors' agents these settings: they end and start again.
    pub fn set_agents(&mut self, settings: &[(&'static str, &'static str)]) -> Result<()> {
        for (name, value) in settings {
            self.sluice.set_agents(name, value);
        }
        for node in NODES {
            self.sluice.stop_agent(node)?;
            self.sluice.restart_agent(node)?;
            self.sluice.await_ready()?;
        }
        self.settle()
    }

    /// Has the port of the holder of a virtual server's group pass nothing for [`AFTER`]. Returns what clients met.
    pub fn silence(&mut self, server: &str) -> Result<Vec<OutageReport>> {
        let silence = |stage: &mut Self, holder: &str| stage.fabric.far_end(holder).silence();
        let (holder, reports) = self.disturb(server, silence, AFTER)?;
        self.fabric.far_end(&holder).unsilence()?;
        Ok(reports)
    }

    /// Asks a virtual server for an answer by TCP and by UDP, in both families, on the segment and from behind the router.
    pub fn ask(&self, server: &str) -> Result<()> {
        for family in Family::BOTH {
            let target = target(server, family);
            for client in [&self.neighbour, self.fabric.client()] {
                client.within(|| Protocol::Tcp.ask(None, target))??;
                client.within(|| Protocol::Udp.ask(None, target))??;
            }
        }
        Ok(())
    }

    /// A client on the segment and one behind the router, in both families.
    pub fn clients(&self, server: &str) -> Result<Vec<Outage>> {
        let clients = [&self.neighbour, self.fabric.client()];
        let outages = clients.into_iter().flat_map(|client| {
            Family::BOTH.map(|family| Outage::start(client, target(server, family)))
        });
        outages.collect()
    }

    /// Stops a director's agent, or lets it go on.
    pub fn signal_agent(&self, node: &str, signal: Signal) -> Result<()> {
        let id = self.sluice.agent_process(node)?.id();
        Ok(kill(Pid::from_raw(i32::try_from(id)?), signal)?)
    }

    /// Drains these directors and no others.
    pub fn drain(&self, drained: &[&str]) -> Result<()> {
        let mut nodes: Vec<Value> = Vec::new();
        for node in NODES {
            let mut object = object(node, Role::Director);
            object["spec"]["drain"] = Value::Bool(drained.contains(&node));
            nodes.push(object);
        }
        for (_, mode, _, servers) in SERVED {
            if has_agents(mode) {
                nodes.extend(servers.map(|name| object(name, Role::RealServer)));
            }
        }
        self.sluice.apply("nodes", &nodes)
    }
}

/// Whether servers of a mode run agents.
fn has_agents(mode: &str) -> bool {
    ["DR", "TUN"].contains(&mode)
}

/// The LoadBalancerNode of a director or server.
fn object(name: &str, role: Role) -> Value {
    match role {
        Role::Director => manifest::node(name, role, &UPLINKS),
        Role::RealServer => manifest::node(name, role, &UPLINKS[..1]),
    }
}

/// An address pool of VIPs with these numbers. If they are in one group the gateway of NAT's servers moves with them.
fn address_pool(name: &str, numbers: &[u8], groups: u8) -> Value {
    let texts = |address: Dual| Family::BOTH.map(|family| address.of(family).to_string());
    let vips = numbers
        .iter()
        .flat_map(|number| texts(vip_on_link(*number)));
    let mut l2 = json!({"groups": groups, "interfaces": [UPLINK]});
    if groups == 1 {
        l2["gateways"] = json!(texts(back_gateway()));
    }
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "AddressPool",
        "metadata": {"name": name},
        "spec": {"addresses": vips.collect::<Vec<_>>(), "announce": {"l2": l2}},
    })
}

/// Where clients of a virtual server connect.
pub fn target(server: &str, family: Family) -> SocketAddr {
    let found = SERVED.iter().find(|(name, ..)| *name == server);
    let number = found.map_or(0, |(_, _, number, _)| *number);
    vip_on_link(number).socket(family, 80)
}

/// No outage was longer than a takeover takes that waits for no Lease to expire.
pub fn expect_short(reports: &[OutageReport]) -> Result<()> {
    let longest = reports.iter().map(|report| report.longest).max();
    ensure!(
        longest <= Some(BY_SUSPICION),
        "nobody answered for too long: {reports:?}"
    );
    Ok(())
}
