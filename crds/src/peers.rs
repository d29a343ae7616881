//! The list of directors that the operator writes for agents: one small object that they read, so that none has to read the
//! status of other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use crate::condition::{ConditionType, is_true};
use crate::limits::{
    MAX_INTERFACE_NAME_LENGTH, MAX_INTERFACES, MAX_NAME_LENGTH, MAX_NODE_ADDRESSES,
    MAX_NODE_POD_CIDRS,
};
use crate::load_balancer_node::LoadBalancerNodeStatus;
use crate::mac::MacAddress;

/// Name of the ConfigMap, in Sluice's own namespace.
pub const PEERS_CONFIG_MAP: &str = "sluice-peers";
/// The key under which the list stands there: JSON, an object of directors by node name.
pub const PEERS_KEY: &str = "peers.json";
/// The longest list in bytes: the API server takes 1 MiB of a ConfigMap, its metadata included. A director with a name of 20
/// characters, an address and a range of pods of each family, and an interface, takes about 230.
pub const MAX_PEERS_BYTES: usize = 900_000;

/// Directors by node name.
pub type Peers = BTreeMap<String, Peer>;

/// The addresses from which a director sends packets on its own behalf, and whether it may hold VIP groups.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its own.
    pub addresses: BTreeSet<IpAddr>,
    /// Those of its pods, which have its Ethernet address.
    #[serde(default)]
    pub pod_cidrs: BTreeSet<IpNet>,
    /// Its uplinks by name, as far as their MAC addresses are known: whoever answers for a VIP is known by it.
    #[serde(default)]
    pub interfaces: BTreeMap<String, PeerInterface>,
    /// Whether it may hold VIP groups: it reports, its programs are attached, and nobody wants it to hold none.
    #[serde(default)]
    pub candidate: bool,
}

impl Peer {
    /// A director by its own report: a candidate if what was decided is in force on all of its uplinks.
    pub fn of(status: &LoadBalancerNodeStatus) -> Self {
        let uplinks = status.interfaces.iter().filter_map(|uplink| {
            let interface = PeerInterface {
                mac: uplink.mac_address?,
                steady: uplink.steady,
            };
            Some((uplink.name.clone(), interface))
        });
        Self {
            addresses: status.addresses.iter().copied().collect(),
            pod_cidrs: BTreeSet::new(),
            interfaces: uplinks.collect(),
            candidate: is_true(&status.conditions, ConditionType::Ready),
        }
    }
}

/// An uplink of a director.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct PeerInterface {
    /// Its MAC address.
    pub mac: MacAddress,
    /// Whether its path was whole for the stable time without a pause.
    #[serde(default)]
    pub steady: bool,
}

/// Writes the list. Nodes for which there is no room are left out, the last by name; the second value says how many.
pub fn write_peers(peers: &Peers) -> (String, usize) {
    let mut text = String::from("{");
    let mut written = 0;
    for (node, peer) in peers {
        let separator = if written == 0 { "" } else { "," };
        let addresses = listed(peer.addresses.iter());
        let pods = listed(peer.pod_cidrs.iter());
        let pods = match pods.as_str() {
            "" => pods,
            _ => format!(",\"podCidrs\":[{pods}]"),
        };
        let interfaces = interfaces_text(&peer.interfaces);
        let candidate = if peer.candidate {
            ",\"candidate\":true"
        } else {
            ""
        };
        let entry = format!(
            "{separator}\"{node}\":{{\"addresses\":[{addresses}]{pods}{interfaces}{candidate}}}"
        );
        if text.len() + entry.len() + 1 > MAX_PEERS_BYTES {
            break;
        }
        text.push_str(&entry);
        written += 1;
    }
    text.push('}');
    (text, peers.len() - written)
}

fn interfaces_text(interfaces: &BTreeMap<String, PeerInterface>) -> String {
    if interfaces.is_empty() {
        return String::new();
    }
    let entries = interfaces.iter().map(|(name, interface)| {
        let PeerInterface { mac, steady } = interface;
        // A name may have a quote in it.
        let name = serde_json::Value::from(name.as_str());
        format!("{name}:{{\"mac\":\"{mac}\",\"steady\":{steady}}}")
    });
    let entries: Vec<String> = entries.collect();
    format!(",\"interfaces\":{{{}}}", entries.join(","))
}

fn listed(items: impl Iterator<Item = impl Display>) -> String {
    let items: Vec<String> = items.map(|item| format!("\"{item}\"")).collect();
    items.join(",")
}

/// Reads the list. The error says what is wrong with it.
pub fn read_peers(text: &str) -> Result<Peers, String> {
    if text.len() > MAX_PEERS_BYTES {
        let length = text.len();
        return Err(format!("{length} bytes, more than {MAX_PEERS_BYTES}"));
    }
    let peers: Peers = serde_json::from_str(text).map_err(|error| error.to_string())?;
    for (node, peer) in &peers {
        if node.is_empty() || node.len() > MAX_NAME_LENGTH {
            return Err(format!("{node:?} is no name of a node"));
        }
        for (what, count, most) in [
            ("addresses", peer.addresses.len(), MAX_NODE_ADDRESSES),
            ("podCidrs", peer.pod_cidrs.len(), MAX_NODE_POD_CIDRS),
            ("interfaces", peer.interfaces.len(), MAX_INTERFACES),
        ] {
            if count > most {
                return Err(format!("{node} has {count} {what}, more than {most}"));
            }
        }
        let mut addresses = peer.addresses.iter();
        if let Some(address) = addresses.find(|address| !is_usable(**address)) {
            return Err(format!("{address} of {node} is no address of a node"));
        }
        let mut names = peer.interfaces.keys();
        if let Some(name) = names.find(|name| !is_interface_name(name)) {
            return Err(format!("{name:?} of {node} is no name of an interface"));
        }
        let mut cidrs = peer.pod_cidrs.iter();
        if let Some(cidr) = cidrs.find(|cidr| !is_usable_for_pods(**cidr)) {
            return Err(format!("{cidr} of {node} is no range of pods"));
        }
    }
    Ok(peers)
}

/// Whether a node's pods may have their addresses from this range, and it is written as its first address.
pub fn is_usable_for_pods(cidr: IpNet) -> bool {
    is_usable(cidr.network()) && cidr == cidr.trunc()
}

fn is_interface_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_INTERFACE_NAME_LENGTH
}

/// Whether this may be a node's own address that others see.
fn is_usable(address: IpAddr) -> bool {
    !address.is_loopback() && !address.is_multicast() && !address.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(count: usize) -> Peers {
        let node = |number: usize| {
            let addresses = ["192.0.2.7", "2001:db8::7"];
            let addresses = addresses.map(|address| address.parse().expect("an address"));
            let cidrs = ["10.244.7.0/24", "fd00:7::/64"];
            let cidrs = cidrs.map(|cidr| cidr.parse().expect("a range"));
            let peer = Peer {
                addresses: addresses.into(),
                pod_cidrs: cidrs.into(),
                ..Peer::default()
            };
            (format!("director-{number:06}"), peer)
        };
        (0..count).map(node).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        for count in [0, 1, 3, 5_000] {
            let peers = peers(count);
            let (text, left_out) = write_peers(&peers);
            assert_eq!((read_peers(&text), left_out), (Ok(peers), 0));
        }
        assert_eq!(
            write_peers(&peers(1)).0,
            r#"{"director-000000":{"addresses":["192.0.2.7","2001:db8::7"],"podCidrs":["10.244.7.0/24","fd00:7::/64"]}}"#
        );
        let alone = Peer {
            addresses: ["192.0.2.7".parse().expect("an address")].into(),
            ..Peer::default()
        };
        let peers = Peers::from([("d1".to_owned(), alone.clone())]);
        let (text, _) = write_peers(&peers);
        assert_eq!(text, r#"{"d1":{"addresses":["192.0.2.7"]}}"#);
        assert_eq!(read_peers(&text), Ok(peers));
        let interface = |last, steady| PeerInterface {
            mac: MacAddress([2, 0, 0, 0, 0, last]),
            steady,
        };
        let interfaces = [("eth0", interface(1, true)), ("e\"1", interface(10, false))];
        let interfaces = interfaces.map(|(name, interface)| (name.to_owned(), interface));
        let candidate = Peer {
            interfaces: interfaces.into(),
            candidate: true,
            ..alone
        };
        let peers = Peers::from([("d1".to_owned(), candidate)]);
        let (text, _) = write_peers(&peers);
        assert_eq!(
            text,
            r#"{"d1":{"addresses":["192.0.2.7"],"interfaces":{"e\"1":{"mac":"02:00:00:00:00:0a","steady":false},"eth0":{"mac":"02:00:00:00:00:01","steady":true}},"candidate":true}}"#
        );
        assert_eq!(read_peers(&text), Ok(peers));
    }

    #[test]
    fn what_has_no_room_is_left_out() {
        let all = peers(20_000);
        let (text, left_out) = write_peers(&all);
        let read = read_peers(&text).expect("a list");
        assert!(text.len() <= MAX_PEERS_BYTES && left_out > 0);
        assert_eq!(read.len() + left_out, all.len());
        assert!(read.iter().eq(all.iter().take(read.len())));
    }

    fn with_pods(cidrs: &str) -> String {
        format!(r#"{{"d1": {{"addresses": [], "podCidrs": ["{cidrs}"]}}}}"#)
    }

    fn with_interface(name: &str, mac: &str) -> String {
        format!(r#"{{"d1": {{"addresses": [], "interfaces": {{"{name}": {{"mac": "{mac}"}}}}}}}}"#)
    }

    #[test]
    fn a_bad_list_is_refused() {
        for (text, part) in [
            ("", "EOF"),
            ("[]", "expected a map"),
            (r#"{"d1": {}}"#, "missing field `addresses`"),
            (
                r#"{"d1": {"addresses": ["10.0.0.300"]}}"#,
                "invalid IP address",
            ),
            (
                r#"{"d1": {"addresses": "10.0.0.3"}}"#,
                "expected a sequence",
            ),
            (r#"{"d1": {"addresses": ["127.0.0.1"]}}"#, "127.0.0.1 of d1"),
            (r#"{"d1": {"addresses": ["::"]}}"#, ":: of d1"),
            (r#"{"": {"addresses": ["10.0.0.3"]}}"#, "no name"),
            (&with_pods("10.244.0.0/33"), "invalid IP address"),
            (&with_pods("10.244.0.7/24"), "10.244.0.7/24 of d1"),
            (&with_pods("0.0.0.0/0"), "0.0.0.0/0 of d1"),
            (&with_interface("eth0", "02:00:00:00:01"), "must be a MAC"),
            (
                &with_interface("an-interface-of-16", "02:00:00:00:00:01"),
                "no name of an interface",
            ),
            (&" ".repeat(MAX_PEERS_BYTES + 1), "more than 900000"),
        ] {
            let error = read_peers(text).expect_err("refused");
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
        let addresses: Vec<String> = (1..=MAX_NODE_ADDRESSES + 1)
            .map(|last| format!("\"2001:db8::{last:x}\""))
            .collect();
        let text = format!("{{\"d1\": {{\"addresses\": [{}]}}}}", addresses.join(","));
        let error = read_peers(&text).expect_err("refused");
        assert!(error.contains("257 addresses"), "{error}");
        let cidrs: Vec<String> = (0..=MAX_NODE_POD_CIDRS)
            .map(|number| format!("10.244.{number}.0/24"))
            .collect();
        let error = read_peers(&with_pods(&cidrs.join("\", \""))).expect_err("refused");
        assert!(error.contains("17 podCidrs, more than 16"), "{error}");
    }
}
