//! A [`Fabric`] with [`Sluice`] in it and one virtual server per forwarding mode: where most network tests begin.

use std::fmt;
use std::net::SocketAddr;

use anyhow::Result;
use serde_json::Value;

use super::address::{Dual, Family};
use super::fabric::{
    BACK_LINK, DIRECTORS, Fabric, Place, ServerSpec, UPLINK, vip_of_both, vip_of_one,
};
use super::manifest;
use super::manifest::Role;
use super::sluice::{Daemons, Sluice};

/// The port on servers that NAT and FullNAT translate to; the VIPs' port is 80.
const TRANSLATED_PORT: u16 = 8080;

/// A forwarding mode with the virtual server that the lab has for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mode {
    /// At director 1; the servers' gateway is director 1.
    Nat,
    /// At director 1.
    FullNat,
    /// At both directors; an agent on each server.
    Dr,
    /// At both directors; an agent on each server.
    Tun,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 4] = [Self::Nat, Self::FullNat, Self::Dr, Self::Tun];

    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "NAT",
            Self::FullNat => "FullNAT",
            Self::Dr => "DR",
            Self::Tun => "TUN",
        }
    }

    /// The name of the virtual server.
    pub const fn virtual_server(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::FullNat => "fullnat",
            Self::Dr => "dr",
            Self::Tun => "tun",
        }
    }

    /// Its VIP.
    pub const fn vip(self) -> Dual {
        match self {
            Self::Nat => vip_of_one(10),
            Self::FullNat => vip_of_one(20),
            Self::Dr => vip_of_both(30),
            Self::Tun => vip_of_both(40),
        }
    }

    /// Where clients connect.
    pub const fn target(self, family: Family) -> SocketAddr {
        self.vip().socket(family, 80)
    }

    /// Its three servers. The stable pool has the first two, the candidate pool the third.
    pub const fn servers(self) -> [&'static str; 3] {
        match self {
            Self::Nat => ["nat-1", "nat-2", "nat-3"],
            Self::FullNat => ["fullnat-1", "fullnat-2", "fullnat-3"],
            Self::Dr => ["dr-1", "dr-2", "dr-3"],
            Self::Tun => ["tun-1", "tun-2", "tun-3"],
        }
    }

    /// The pool that has the whole weight at first.
    pub const fn stable(self) -> &'static str {
        match self {
            Self::Nat => "nat-stable",
            Self::FullNat => "fullnat-stable",
            Self::Dr => "dr-stable",
            Self::Tun => "tun-stable",
        }
    }

    /// The pool without weight at first.
    pub const fn candidate(self) -> &'static str {
        match self {
            Self::Nat => "nat-candidate",
            Self::FullNat => "fullnat-candidate",
            Self::Dr => "dr-candidate",
            Self::Tun => "tun-candidate",
        }
    }

    /// The port on its servers; `None`: the VIP's own.
    pub const fn target_port(self) -> Option<u16> {
        match self {
            Self::Nat | Self::FullNat => Some(TRANSLATED_PORT),
            Self::Dr | Self::Tun => None,
        }
    }

    /// Whether replies come back through the director.
    pub const fn replies_through_director(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }

    /// The virtual server's manifest with these weights.
    pub fn manifest(self, stable: u32, candidate: u32) -> Value {
        let pools = [(self.stable(), stable), (self.candidate(), candidate)];
        manifest::virtual_server(self.virtual_server(), self.name(), self.vip(), &pools)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The built lab.
#[derive(Debug)]
pub struct Lab {
    /// The daemons; they go first.
    pub sluice: Sluice,
    /// The network.
    pub fabric: Fabric,
}

impl Lab {
    /// Builds it with these modes' servers, and further servers and agents, and waits until all is served.
    pub fn build(modes: &[Mode], more: &[ServerSpec], agents: &[(&str, Role)]) -> Result<Self> {
        let mut servers = Vec::new();
        let mut nodes: Vec<(&str, Role)> = DIRECTORS.map(|name| (name, Role::Director)).to_vec();
        for mode in modes {
            for name in mode.servers() {
                let spec = ServerSpec::new(name);
                match mode {
                    Mode::Nat => servers.push(spec.behind_director()),
                    Mode::FullNat => servers.push(spec),
                    Mode::Dr | Mode::Tun => {
                        servers.push(spec);
                        nodes.push((name, Role::RealServer));
                    }
                }
            }
        }
        servers.extend_from_slice(more);
        nodes.extend_from_slice(agents);
        let fabric = Fabric::build(&servers)?;
        let back = servers.iter().any(|server| server.place == Place::Back);
        let names: Vec<&str> = nodes.iter().map(|(name, _)| *name).collect();
        let objects: Vec<Value> = nodes
            .iter()
            .map(|(name, role)| {
                let both = [UPLINK, BACK_LINK];
                let uplinks = if back && *name == DIRECTORS[0] {
                    &both[..]
                } else {
                    &both[..1]
                };
                manifest::node(name, *role, uplinks)
            })
            .collect();
        let sluice = Sluice::start(&fabric, &names, &manifest::documents(&objects))?;
        let mut lab = Self { sluice, fabric };
        for mode in modes {
            lab.serve(*mode)?;
        }
        for mode in modes {
            lab.await_shares(*mode, 100, 0)?;
        }
        Ok(lab)
    }

    /// Sets the weights of a mode's pools and waits until every node has them.
    pub fn set_shares(&mut self, mode: Mode, stable: u32, candidate: u32) -> Result<()> {
        self.sluice
            .apply(mode.virtual_server(), &[mode.manifest(stable, candidate)])?;
        self.await_shares(mode, stable, candidate)
    }

    /// Waits until every node has these weights.
    pub fn await_shares(&mut self, mode: Mode, stable: u32, candidate: u32) -> Result<()> {
        let pools = [(mode.stable(), stable), (mode.candidate(), candidate)];
        self.sluice.await_weights(mode.virtual_server(), &pools)
    }

    /// Servers of a manifest's pool: name, addresses, weight 1.
    pub fn members<'a>(&self, names: &[&'a str]) -> Result<Vec<(&'a str, Dual, u32)>> {
        names
            .iter()
            .map(|name| Ok((*name, self.fabric.address(name)?, 1)))
            .collect()
    }

    fn serve(&self, mode: Mode) -> Result<()> {
        let target_port = mode.target_port();
        let servers = self.members(&mode.servers())?;
        let (stable, candidate) = servers.split_at(2);
        let pools = [
            manifest::pool(mode.stable(), stable, target_port),
            manifest::pool(mode.candidate(), candidate, target_port),
        ];
        self.sluice
            .apply(&format!("{}-pools", mode.virtual_server()), &pools)?;
        self.sluice
            .apply(mode.virtual_server(), &[mode.manifest(100, 0)])
    }
}

impl Daemons for Lab {
    fn sluice(&mut self) -> &mut Sluice {
        &mut self.sluice
    }

    fn fabric(&self) -> &Fabric {
        &self.fabric
    }
}
