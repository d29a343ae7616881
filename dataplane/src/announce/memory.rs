//! What an agent needs in order to go on announcing after a restart while the API server cannot be asked: the names of groups,
//! candidates and peers. VIPs, gateways and numbers of groups are in the pinned maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use serde::{Deserialize, Serialize};
use sluice_api::MacAddress;
use sluice_election::{Candidate, Health};
use sluice_planner::{Image, Mac};
use tracing::warn;

use super::plan::{Group, Peer, Plan, Uplink};
use crate::netlink::Table;

/// What is remembered of a plan, in a file beside the agent's socket.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Whether the API server was out of reach.
    pub lacks_server: bool,
    /// Names of the uplinks.
    uplinks: BTreeSet<String>,
    peers: BTreeMap<String, KnownPeer>,
    groups: BTreeMap<String, KnownGroup>,
}

/// Another director.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
struct KnownPeer {
    /// By the names of its uplinks.
    macs: BTreeMap<String, MacAddress>,
    addresses: BTreeSet<IpAddr>,
}

/// A VIP group.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
struct KnownGroup {
    /// Its index in the map of deadlines.
    index: u16,
    candidates: BTreeSet<String>,
}

impl Memory {
    /// What is to be remembered of a plan.
    pub(super) fn of(plan: &Plan, lacks_server: bool) -> Self {
        let peer = |peer: &Peer| KnownPeer {
            macs: peer
                .macs
                .iter()
                .map(|(uplink, mac)| (uplink.clone(), MacAddress(mac.0)))
                .collect(),
            addresses: peer.addresses.clone(),
        };
        let group = |group: &Group| KnownGroup {
            index: group.index,
            candidates: group.candidates.iter().map(|it| it.name.clone()).collect(),
        };
        Self {
            lacks_server,
            uplinks: plan.uplinks.values().map(|it| it.name.clone()).collect(),
            peers: plan
                .peers
                .iter()
                .map(|(name, it)| (name.clone(), peer(it)))
                .collect(),
            groups: plan
                .groups
                .iter()
                .map(|(name, it)| (name.clone(), group(it)))
                .collect(),
        }
    }

    /// What an earlier agent remembered; `None`: nothing, or nothing that can be read.
    pub fn read(path: &Path) -> Option<Self> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot read what was announced before");
                return None;
            }
        };
        let read = serde_json::from_slice(&text);
        read.inspect_err(|error| {
            warn!(path = %path.display(), %error, "what was announced before cannot be read: it waits for the API server");
        })
        .ok()
    }

    /// The plan that stood, as far as it can stand now: `maps` are the pinned ones, `table` and `gateways` the network as it is.
    /// Nobody counts as steady, so no group returns to its best candidate by it.
    pub fn plan(&self, maps: &Image, table: &Table, gateways: &BTreeSet<(u32, IpAddr)>) -> Plan {
        let uplinks = self.uplinks.iter();
        let uplinks = uplinks.filter_map(|name| Uplink::find(name, table, gateways));
        let uplinks: BTreeMap<u32, Uplink> = uplinks.collect();
        let peer = |peer: &KnownPeer| Peer {
            macs: peer
                .macs
                .iter()
                .map(|(uplink, mac)| (uplink.clone(), Mac(mac.0)))
                .collect(),
            addresses: peer.addresses.clone(),
        };
        let peers = self.peers.iter();
        let peers = peers.map(|(name, it)| (name.clone(), peer(it))).collect();
        let groups = self.groups.iter();
        let groups = groups.map(|(name, it)| (name.clone(), it.plan(maps, &uplinks)));
        let groups = groups.filter(|(_, group)| !group.vips.is_empty());
        Plan {
            groups: groups.collect(),
            uplinks,
            peers: Arc::new(peers),
        }
    }
}

impl KnownGroup {
    fn plan(&self, maps: &Image, there: &BTreeMap<u32, Uplink>) -> Group {
        let entries = maps.announced.iter();
        let entries = entries.filter(|(_, word)| word.group() == u32::from(self.index));
        let (mut vips, mut gateways) = (BTreeSet::new(), BTreeSet::new());
        let (mut uplinks, mut of_vips) = (BTreeSet::new(), BTreeSet::new());
        for (at, word) in entries {
            vips.insert(at.address);
            uplinks.insert(at.ifindex);
            if word.is_router() {
                gateways.insert(at.address);
            } else {
                of_vips.insert(at.ifindex);
            }
        }
        let is_whole = |it: &u32| there.get(it).is_some_and(|uplink| uplink.up);
        let candidates = self.candidates.iter().map(|name| Candidate {
            name: name.clone(),
            steady: false,
        });
        Group {
            index: self.index,
            health: if uplinks.iter().all(is_whole) {
                Health::Whole
            } else {
                Health::Broken
            },
            on_link: false,
            only_gateways: uplinks.difference(&of_vips).copied().collect(),
            uplinks,
            gateways,
            vips: Arc::new(vips),
            new: BTreeSet::new(),
            candidates: Arc::new(candidates.collect()),
        }
    }
}

/// Has written down what is to be remembered.
#[derive(Debug)]
pub(super) struct Keeper {
    file: crate::keeper::Keeper<Memory>,
    /// Whether the API server was out of reach when this was last written.
    lacked_server: bool,
    /// Whether the plan is another one since then.
    is_stale: bool,
}

impl Keeper {
    /// Starts the thread that writes the file.
    pub(super) fn start(path: PathBuf) -> io::Result<Self> {
        let file = crate::keeper::Keeper::start(
            path,
            "cannot write down what is announced: a restart without the API server would end it",
        )?;
        Ok(Self {
            file,
            lacked_server: false,
            is_stale: false,
        })
    }

    /// The plan is another one.
    pub(super) fn plan_changed(&mut self) {
        self.is_stale = true;
    }

    /// Has what is new written. While something else is being written it waits for the next call.
    pub(super) fn turn(&mut self, plan: &Plan, lacks_server: bool) {
        if !self.is_stale && self.lacked_server == lacks_server {
            return;
        }
        if self.file.write(Memory::of(plan, lacks_server)) {
            (self.is_stale, self.lacked_server) = (false, lacks_server);
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_abi::AnnouncedWord;
    use sluice_planner::AnnouncedAt;

    use super::super::frame::Sender;
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn plan() -> Plan {
        let uplink = Uplink {
            name: "eth0".to_owned(),
            sender: Sender {
                mac: Mac([2, 0, 0, 0, 0, 1]),
                ipv4: None,
                link_local: None,
            },
            up: true,
            gateways: BTreeSet::new(),
            subnets: Vec::new(),
        };
        let peer = Peer {
            macs: [("eth0".to_owned(), Mac([2, 0, 0, 0, 0, 2]))].into(),
            addresses: [ip("10.0.0.2")].into(),
        };
        let candidate = |name: &str| Candidate {
            name: name.to_owned(),
            steady: true,
        };
        let group = Group {
            index: 7,
            uplinks: [2].into(),
            on_link: false,
            gateways: BTreeSet::new(),
            only_gateways: BTreeSet::new(),
            vips: Arc::new([ip("203.0.113.1")].into()),
            new: BTreeSet::new(),
            candidates: Arc::new(vec![candidate("d2"), candidate("d1")]),
            health: Health::Whole,
        };
        Plan {
            uplinks: [(2, uplink)].into(),
            peers: Arc::new([("d2".to_owned(), peer)].into()),
            groups: [("edge-0".to_owned(), group)].into(),
        }
    }

    #[test]
    fn a_plan_is_found_again_with_what_is_in_the_maps() {
        let path = std::env::temp_dir().join(format!("sluice-memory-{}.json", std::process::id()));
        assert_eq!(Memory::read(&path), None);
        let memory = Memory::of(&plan(), true);
        fs::write(&path, serde_json::to_vec(&memory).unwrap()).unwrap();
        let read = Memory::read(&path);
        fs::write(&path, "{").unwrap();
        assert_eq!(Memory::read(&path), None, "it is cut off");
        fs::remove_file(&path).unwrap();
        assert_eq!(read.as_ref(), Some(&memory));

        let mut maps = Image::default();
        let at = |address, ifindex| AnnouncedAt { address, ifindex };
        let word = |group, router| AnnouncedWord::new([2, 0, 0, 0, 0, 1], group, router);
        maps.announced = [
            (at(ip("203.0.113.1"), 2), word(7, false)),
            (at(ip("203.0.113.2"), 2), word(8, false)),
            (
                at(ip("203.0.113.3"), 2),
                word(AnnouncedWord::NO_GROUP, false),
            ),
            (at(ip("10.4.0.254"), 3), word(7, true)),
        ]
        .into();
        let found = memory.plan(&maps, &Table::default(), &BTreeSet::new());
        assert_eq!(found.peers, plan().peers);
        let group = &found.groups["edge-0"];
        let addresses = [ip("203.0.113.1"), ip("10.4.0.254")];
        assert_eq!(*group.vips, addresses.into());
        assert_eq!(group.gateways, [ip("10.4.0.254")].into());
        assert_eq!(
            (&group.uplinks, &group.only_gateways),
            (&[2, 3].into(), &[3].into())
        );
        assert_eq!(group.health, Health::Broken, "the uplinks are gone");
        let names: Vec<&str> = group.candidates.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["d1", "d2"]);
        assert!(!group.candidates.iter().any(|it| it.steady));
        let nothing = memory.plan(&Image::default(), &Table::default(), &BTreeSet::new());
        assert!(nothing.groups.is_empty(), "the maps announce nothing");
    }
}
