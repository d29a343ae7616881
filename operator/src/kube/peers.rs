//! The list of directors that agents read, so that none of them has to watch the others' LoadBalancerNodes.

use ipnet::IpNet;
use sluice_api::{
    EXCLUDE_LABEL, MAX_NODE_POD_CIDRS, NodeRole, ObjectKey, PEERS_CONFIG_MAP, Peer, Peers,
    is_usable_for_pods, write_peers,
};

use super::index::Index;
use super::silence::says_silent;

/// What cordoned Nodes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Cordoned {
    /// Candidates for VIP groups like the others.
    #[default]
    Candidates,
    /// None: they hand over what they hold.
    Drained,
}

/// The list of directors as it is to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    /// Where.
    pub(super) key: ObjectKey,
    /// The list.
    pub(super) text: String,
    /// Directors for which there is no room.
    pub(super) left_out: usize,
}

/// The list that is to be written; `None` if it stands already.
pub(super) fn news(index: &Index) -> Option<Wanted> {
    let (text, left_out) = write_peers(&directors(index));
    let key = ObjectKey::new(index.namespace.clone(), PEERS_CONFIG_MAP);
    let stands = index.peers.objects.get(&key);
    (stands != Some(&text)).then_some(Wanted {
        key,
        text,
        left_out,
    })
}

/// All directors that have said which addresses are theirs; one that is silent may forward all the same. The addresses of
/// their pods are those that the Nodes of the same names give. None is a candidate that is silent, or that somebody wants to hold no
/// VIP group.
fn directors(index: &Index) -> Peers {
    let directors = index.nodes.objects.iter().filter_map(|(key, object)| {
        let told = Peer::of(object.status.as_ref()?);
        let is_director = object.spec.role == NodeRole::Director && !told.addresses.is_empty();
        let node = index.kube_nodes.objects.get(key);
        let is_excluded = node.is_some_and(|node| {
            let is_cordoned = node.is_cordoned && index.cordoned == Cordoned::Drained;
            is_cordoned || node.labels.contains_key(EXCLUDE_LABEL)
        });
        let cidrs = node.into_iter().flat_map(|node| &node.pods);
        let cidrs = cidrs.map(IpNet::trunc);
        let cidrs = cidrs.filter(|cidr| is_usable_for_pods(*cidr));
        let peer = Peer {
            pod_cidrs: cidrs.take(MAX_NODE_POD_CIDRS).collect(),
            candidate: told.candidate && !says_silent(object) && !object.spec.drain && !is_excluded,
            ..told
        };
        is_director.then(|| (key.name.clone(), peer))
    });
    directors.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sluice_kube::{Item, Stamp};

    use super::*;
    use crate::kube::facts::NodeFacts;

    /// Stands for a label in the tests: the Node is cordoned.
    const CORDONED: &str = "cordoned";

    #[test]
    fn directors_that_have_reported_are_listed() {
        let mut index = Index::new("sluice-system");
        let item = |content| Item {
            key: ObjectKey::new("sluice-system", PEERS_CONFIG_MAP),
            stamp: Stamp {
                uid: "u".to_owned(),
                version: 1,
            },
            content: Ok(content),
        };
        for (name, role, addresses) in [
            ("d2", "Director", json!(["10.0.0.2", "2001:db8::2"])),
            ("d1", "Director", json!(["10.0.0.1"])),
            ("d3", "Director", json!([])),
            ("s1", "RealServer", json!(["10.0.0.9"])),
        ] {
            let object = json!({
                "metadata": {"name": name}, "spec": {"role": role, "interfaces": ["eth0"]},
                "status": {"addresses": addresses},
            });
            index.nodes.apply(Item {
                key: ObjectKey::new("", name),
                stamp: Stamp {
                    uid: name.to_owned(),
                    version: 1,
                },
                content: Ok(serde_json::from_value(object).expect("a node")),
            });
        }
        let wanted = news(&index).expect("nothing stands");
        let list =
            r#"{"d1":{"addresses":["10.0.0.1"]},"d2":{"addresses":["10.0.0.2","2001:db8::2"]}}"#;
        assert_eq!((wanted.text.as_str(), wanted.left_out), (list, 0));
        index.peers.made(item(wanted.text));
        assert_eq!(news(&index), None);
        index.peers.made(Item {
            stamp: Stamp {
                uid: "u".to_owned(),
                version: 2,
            },
            ..item("{}".to_owned())
        });
        assert!(news(&index).is_some(), "what others write is put right");
    }

    #[test]
    fn a_director_is_a_candidate_while_nothing_speaks_against_it() {
        let listed = |index: &mut Index, drain: bool, label: &str, conditions: &[(&str, &str)]| {
            let conditions: Vec<_> = conditions
                .iter()
                .map(|(type_, status)| {
                    json!({"type": type_, "status": status, "reason": "Because", "message": "",
                    "lastTransitionTime": "2026-03-01T10:00:00Z"})
                })
                .collect();
            let object = json!({
                "metadata": {"name": "d1"}, "spec": {"interfaces": ["eth0", "eth1"], "drain": drain},
                "status": {
                    "addresses": ["10.0.0.1"], "conditions": conditions,
                    "interfaces": [
                        {"name": "eth0", "attachMode": "Native", "macAddress": "02:00:00:00:00:01", "steady": true},
                        {"name": "eth1", "attachMode": "None"},
                    ],
                },
            });
            let key = || ObjectKey::new("", "d1");
            index.nodes.apply(Item {
                key: key(),
                stamp: Stamp::default(),
                content: Ok(serde_json::from_value(object).expect("a node")),
            });
            let facts = NodeFacts {
                labels: [(label.to_owned(), String::new())].into(),
                is_cordoned: label == CORDONED,
                ..NodeFacts::default()
            };
            index.kube_nodes.apply(Item {
                key: key(),
                stamp: Stamp::default(),
                content: Ok(facts),
            });
            let peers = directors(index);
            let peer = &peers["d1"];
            let mac = peer.interfaces["eth0"].mac.to_string();
            assert_eq!(
                (mac.as_str(), peer.interfaces["eth0"].steady),
                ("02:00:00:00:00:01", true)
            );
            assert_eq!(peer.interfaces.len(), 1, "no address is known of the other");
            peer.candidate
        };
        let directors = |drain: bool, label: &str, conditions: &[(&str, &str)]| {
            listed(&mut Index::new("sluice-system"), drain, label, conditions)
        };
        let ready = ("Ready", "True");
        assert!(directors(false, "zone", &[ready]));
        assert!(directors(false, "zone", &[ready, ("Silent", "False")]));
        assert!(!directors(false, "zone", &[ready, ("Silent", "True")]));
        assert!(!directors(false, "zone", &[("Ready", "False")]));
        assert!(!directors(false, "zone", &[]));
        assert!(!directors(true, "zone", &[ready]));
        assert!(!directors(false, EXCLUDE_LABEL, &[ready]));
        assert!(
            directors(false, CORDONED, &[ready]),
            "unless it was asked for"
        );
        for (label, is_candidate) in [(CORDONED, false), ("zone", true)] {
            let mut index = Index::new("sluice-system");
            index.cordoned = Cordoned::Drained;
            let listed = listed(&mut index, false, label, &[ready]);
            assert_eq!(listed, is_candidate, "{label}");
        }
    }

    /// They have their node's Ethernet address, so other directors could not tell their packets from balanced ones.
    #[test]
    fn a_director_is_listed_with_the_addresses_of_its_pods() {
        let mut index = Index::new("sluice-system");
        let item = |name: &str, content| Item {
            key: ObjectKey::new("", name),
            stamp: Stamp {
                uid: name.to_owned(),
                version: 1,
            },
            content: Ok(content),
        };
        let object = json!({
            "metadata": {"name": "d1"}, "spec": {"interfaces": ["eth0"]}, "status": {"addresses": ["10.0.0.1"]},
        });
        let object = serde_json::from_value(object).expect("a node");
        index.nodes.apply(item("d1", object));
        for (name, cidrs) in [
            ("d1", ["10.244.1.9/24", "fd00:1::/64", "0.0.0.0/0"]),
            ("s1", ["10.244.2.0/24", "fd00:2::/64", "10.245.2.0/24"]),
        ] {
            let pods = cidrs.map(|cidr| cidr.parse().expect("a range")).into();
            let facts = NodeFacts {
                pods,
                ..NodeFacts::default()
            };
            index.kube_nodes.apply(Item {
                key: ObjectKey::new("", name),
                stamp: Stamp::default(),
                content: Ok(facts),
            });
        }
        let list =
            r#"{"d1":{"addresses":["10.0.0.1"],"podCidrs":["10.244.1.0/24","fd00:1::/64"]}}"#;
        assert_eq!(news(&index).expect("nothing stands").text, list);
    }
}
