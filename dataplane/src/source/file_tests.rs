use std::fs;
use std::path::{Path, PathBuf};

use sluice_directory::{Inventory, Names, STILL_MS};

use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluice-agent-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::write(path, text).unwrap();
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    fn reader(&self) -> Watch {
        self.reader_of("d1", false)
    }

    /// `served`: maps of an earlier agent serve something.
    fn reader_of(&self, node: &str, served: bool) -> Watch {
        let directory = Directory::new(&self.0);
        let reader = Reader::new(Source {
            file: NodeFile::open(&directory, node).unwrap(),
            directory,
            node: node.to_owned(),
            state: Arc::default(),
            served,
        });
        Watch { reader, now_ms: 0 }
    }

    /// The operator's word on which virtual servers and pools are decided.
    fn inventory(&self, virtual_servers: &[&str], pools: &[&str]) {
        let names = |names: &[&str]| {
            let keys: Vec<_> = names
                .iter()
                .map(|name| ObjectKey::new("shop", *name))
                .collect();
            Names::of(keys.iter())
        };
        let inventory = Inventory {
            virtual_servers: names(virtual_servers),
            pools: names(pools),
        };
        Directory::new(&self.0).write_inventory(&inventory).unwrap();
    }

    fn decide(&self, name: &str, revision: u64) {
        self.write(
            &format!(".status/VirtualServer/shop/{name}.yaml"),
            &format!(
                "apiVersion: sluice.dev/v1alpha1\nkind: VirtualServer\nmetadata: {{name: {name}, namespace: shop}}\n\
                 status: {{decision: {{revision: {revision}, generation: 1, addresses: [203.0.113.1], \
                 ports: [{{name: http, protocol: TCP, port: 80}}], mode: NAT, poolSelection: Flow, \
                 pools: [{{name: a, weight: 1, specWeight: 1}}]}}}}\n"
            ),
        );
    }
}

/// A reader, and the time in the test's hand.
struct Watch {
    reader: Reader,
    now_ms: u64,
}

impl Watch {
    /// Lets time pass.
    fn pass(&mut self, ms: u64) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..ms / 100 {
            self.now_ms += 100;
            events.extend(self.reader.poll(self.now_ms));
        }
        events
    }

    /// Until everything counts that may count without the user's word.
    fn settle(&mut self) -> Vec<Event> {
        self.pass(STILL_MS + 1_000)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn node(name: &str, interface: &str) -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: LoadBalancerNode\nmetadata: {{name: {name}}}\n\
         spec: {{role: Director, interfaces: [{interface}]}}\n"
    )
}

fn interfaces(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .find_map(|event| match event {
            Event::Node(node) => Some(node.spec.interfaces.clone()),
            _ => None,
        })
        .unwrap_or_default()
}

#[test]
fn an_empty_directory_says_nothing_of_decisions_and_node() {
    let scratch = Scratch::new("empty");
    let events = scratch.reader().settle();
    assert_eq!(events, []);
}

#[test]
fn the_node_is_told_once_and_again_when_it_changes() {
    let scratch = Scratch::new("node");
    scratch.write("node.yaml", &node("d1", "eth0"));
    let mut reader = scratch.reader();
    assert_eq!(interfaces(&reader.settle()), ["eth0"]);
    assert!(interfaces(&reader.settle()).is_empty());
    scratch.write("node.yaml", &node("d1", "eth1"));
    let events = reader.settle();
    assert_eq!(interfaces(&events), ["eth1"]);
    let generation = events.iter().find_map(|event| match event {
        Event::Node(node) => node.metadata.generation,
        _ => None,
    });
    assert_eq!(generation, Some(2));
}

#[test]
fn a_node_that_vanishes_is_no_news() {
    let scratch = Scratch::new("gone");
    scratch.write("node.yaml", &node("d1", "eth0"));
    let mut reader = scratch.reader();
    reader.settle();
    fs::remove_file(scratch.0.join("node.yaml")).unwrap();
    assert!(reader.settle().is_empty());
}

#[test]
fn a_spec_that_breaks_a_rule_leaves_the_one_before() {
    let scratch = Scratch::new("refused");
    scratch.write("node.yaml", &node("d1", "eth0"));
    let mut reader = scratch.reader();
    reader.settle();
    scratch.write("node.yaml", &node("d1", "a-name-that-is-too-long"));
    let events = reader.settle();
    let [Event::NodeRefused(message)] = &events[..] else {
        unreachable!("{events:?}")
    };
    assert!(message.contains("spec.interfaces"), "{message}");
    assert!(reader.settle().is_empty());
    scratch.write("node.yaml", &node("d1", "eth0"));
    assert_eq!(interfaces(&reader.settle()), ["eth0"]);
}

#[test]
fn peers_are_the_other_directors() {
    let scratch = Scratch::new("peers");
    for name in ["d1", "d2"] {
        scratch.write(&format!("{name}.yaml"), &node(name, "eth0"));
        scratch.write(
            &format!(".status/LoadBalancerNode/{name}.yaml"),
            &format!(
                "apiVersion: sluice.dev/v1alpha1\nkind: LoadBalancerNode\nmetadata: {{name: {name}}}\n\
                 status: {{addresses: [10.0.0.1]}}\n"
            ),
        );
    }
    let events = scratch.reader().settle();
    let peers: Vec<&BTreeMap<_, _>> = events
        .iter()
        .filter_map(|event| match event {
            Event::Peers(peers) if !peers.is_empty() => Some(peers),
            _ => None,
        })
        .collect();
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0].keys().collect::<Vec<_>>(), ["d2"]);
}

fn revisions(events: &[Event]) -> Vec<u64> {
    let revision = |event: &Event| match event {
        Event::Decided(changes) => Some(changes.mark.revision),
        _ => None,
    };
    events.iter().filter_map(revision).collect()
}

/// Names of the virtual servers that an event withdraws.
fn withdrawn(events: &[Event]) -> Vec<&str> {
    let gone = events.iter().filter_map(|event| match event {
        Event::Decided(changes) => Some(&changes.virtual_servers),
        _ => None,
    });
    let gone = gone.flatten().filter(|(_, decision)| decision.is_none());
    gone.map(|(key, _)| key.name.as_str()).collect()
}

#[test]
fn only_the_operators_inventory_withdraws_a_decision() {
    let scratch = Scratch::new("decisions");
    let mut reader = scratch.reader();
    scratch.decide("web", 7);
    scratch.decide("other", 8);
    scratch.inventory(&["web", "other"], &[]);
    assert_eq!(revisions(&reader.pass(300)), [8]);
    let status = scratch.path(".status");
    let aside = scratch.path("aside");
    let lose: [&dyn Fn(); 4] = [
        &|| fs::remove_file(scratch.path(".status/VirtualServer/shop/web.yaml")).unwrap(),
        &|| fs::remove_dir_all(scratch.path(".status/VirtualServer")).unwrap(),
        &|| fs::remove_file(scratch.path(".status/inventory.yaml")).unwrap(),
        &|| fs::rename(&status, &aside).unwrap(),
    ];
    for lose in lose {
        lose();
        assert_eq!(reader.pass(20_000), []);
    }
    fs::rename(&aside, &status).unwrap();
    // Until all is there what may have been missed is not acknowledged.
    scratch.decide("other", 9);
    assert_eq!(revisions(&reader.pass(300)), [8]);
    scratch.inventory(&["other"], &[]);
    let events = reader.pass(300);
    assert_eq!(
        (revisions(&events), withdrawn(&events)),
        (vec![9], vec!["web"])
    );
    // The last one, too.
    fs::remove_file(scratch.path(".status/VirtualServer/shop/other.yaml")).unwrap();
    assert_eq!(reader.pass(20_000), []);
    scratch.inventory(&[], &[]);
    assert_eq!(withdrawn(&reader.pass(300)), ["other"]);
}

#[test]
fn a_decision_that_cannot_be_read_holds_up_no_other() {
    let scratch = Scratch::new("unreadable");
    let mut reader = scratch.reader();
    scratch.decide("web", 7);
    scratch.inventory(&["web"], &[]);
    reader.pass(300);
    scratch.write(".status/VirtualServer/shop/web.yaml", "status: [");
    scratch.decide("other", 8);
    scratch.inventory(&["web", "other"], &[]);
    let events = reader.pass(300);
    assert_eq!((revisions(&events), withdrawn(&events)), (vec![8], vec![]));
    let Some(Event::Decided(changes)) = events.last() else {
        unreachable!("{events:?}")
    };
    let [missed] = &changes.mark.missed[..] else {
        unreachable!("{events:?}")
    };
    assert!(missed.reason == Reason::Unreadable && missed.exception && missed.object.name == "web");
}

#[test]
fn an_agent_that_starts_over_maps_waits_for_all_decisions() {
    let scratch = Scratch::new("start");
    scratch.decide("web", 7);
    scratch.decide("other", 8);
    scratch.inventory(&["web", "other"], &[]);
    let lost = scratch.path(".status/VirtualServer/shop/web.yaml");
    fs::remove_file(&lost).unwrap();
    let mut reader = scratch.reader_of("d1", true);
    let events = reader.pass(20_000);
    let [Event::Held(Some(reason))] = &events[..] else {
        unreachable!("{events:?}")
    };
    assert!(reason.contains("not complete"), "{reason}");
    scratch.write(".status/VirtualServer/shop/web.yaml", "status: [");
    let events = reader.pass(1_000);
    let [Event::Held(Some(reason))] = &events[..] else {
        unreachable!("{events:?}")
    };
    assert!(
        reason.contains("VirtualServer shop/web cannot be read"),
        "{reason}"
    );
    scratch.decide("web", 7);
    let events = reader.pass(1_000);
    assert!(events.contains(&Event::Held(None)));
    assert_eq!(revisions(&events), [8]);
}

#[test]
fn losing_the_directory_changes_nothing() {
    let scratch = Scratch::new("lost");
    let aside = scratch.0.with_extension("aside");
    let _ = fs::remove_dir_all(&aside);
    scratch.write("d1.yaml", &node("d1", "eth0"));
    scratch.write("d2.yaml", &node("d2", "eth0"));
    scratch.decide("web", 7);
    scratch.inventory(&["web"], &[]);
    let mut reader = scratch.reader();
    assert_eq!(interfaces(&reader.settle()), ["eth0"]);
    // It is gone; another one is mounted there, with a state of its own; it is empty.
    fs::rename(&scratch.0, &aside).unwrap();
    assert_eq!(reader.pass(20_000), []);
    scratch.write("d1.yaml", &node("d1", "eth1"));
    scratch.inventory(&[], &[]);
    assert_eq!(reader.pass(20_000), []);
    fs::remove_dir_all(&scratch.0).unwrap();
    fs::create_dir(&scratch.0).unwrap();
    assert_eq!(reader.pass(20_000), []);
    fs::remove_dir_all(&scratch.0).unwrap();
    fs::rename(&aside, &scratch.0).unwrap();
    assert_eq!(reader.pass(20_000), []);
    scratch.write("new.yaml", &node("d1", "eth0").replace("d1", "d3"));
    scratch.inventory(&[], &[]);
    fs::remove_file(scratch.path(".status/VirtualServer/shop/web.yaml")).unwrap();
    assert_eq!(withdrawn(&reader.settle()), ["web"]);
}

#[test]
fn peers_outlive_their_reports() {
    let scratch = Scratch::new("reports");
    for name in ["d1", "d2"] {
        scratch.write(&format!("{name}.yaml"), &node(name, "eth0"));
        let path = format!(".status/LoadBalancerNode/{name}.yaml");
        let status = "apiVersion: sluice.dev/v1alpha1\nkind: LoadBalancerNode\nmetadata: {name: n}\n\
                      status: {addresses: [10.0.0.1]}\n";
        scratch.write(&path, status);
    }
    let mut reader = scratch.reader();
    reader.settle();
    fs::remove_dir_all(scratch.path(".status")).unwrap();
    assert_eq!(reader.pass(20_000), []);
    scratch.write(".status/LoadBalancerNode/d2.yaml", "status: [");
    assert_eq!(reader.pass(20_000), []);
}

#[test]
fn a_lock_that_was_removed_lets_no_second_agent_write() {
    let scratch = Scratch::new("lock");
    let directory = Directory::new(&scratch.0);
    let first = NodeFile::open(&directory, "d1").unwrap();
    fs::remove_dir_all(scratch.path(".status")).unwrap_or_default();
    assert!(matches!(
        NodeFile::open(&directory, "d1"),
        Err(DirectoryError::Locked { .. })
    ));
    fs::remove_file(scratch.path(".agent-d1.lock")).unwrap();
    let second = NodeFile::open(&directory, "d1").unwrap();
    let status = LoadBalancerNodeStatus::default();
    assert!(matches!(
        first.write(status.clone()),
        Err(DirectoryError::Locked { .. })
    ));
    second.write(status.clone()).unwrap();
    drop(second);
    first.write(status).unwrap();
}
