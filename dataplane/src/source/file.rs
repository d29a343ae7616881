//! The directory of standalone mode as a source, and as the place of this node's status.
//!
//! Unreadable files, a missing directory of decisions and a missing manifest of this node are no news: the core goes on with
//! what it knows, and an agent that starts over pinned maps leaves the maps as they are until the decisions can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sluice_api::{
    Decision, Kind, LoadBalancerNode, LoadBalancerNodeSpec, LoadBalancerNodeStatus, NodeRole,
    ObjectKey, PoolDecision, Validate,
};
use sluice_directory::manifest::Object;
use sluice_directory::{
    DecisionReader, Directory, DirectoryError, Lock, ManifestReader, StatusFile,
};
use tracing::{info, warn};

use super::{Changes, Event, Mark, SourceState};

/// Time between two looks at the directory.
const POLL: Duration = Duration::from_millis(100);
/// Time between two looks at other nodes' status, which changes with every heartbeat.
const POLL_PEERS: Duration = Duration::from_secs(1);
/// Time between two complaints of one kind while they last.
const COMPLAINT: Duration = Duration::from_mins(1);

/// Names of the kinds of files read, in metrics and messages.
const DECISIONS: &str = "decisions";
const MANIFESTS: &str = "manifests";
const NODES: &str = "peers";

/// This node's status file.
#[derive(Clone, Debug)]
pub struct NodeFile {
    directory: Directory,
    file: Arc<Mutex<StatusFile<LoadBalancerNodeStatus>>>,
    _lock: Arc<Lock>,
}

impl NodeFile {
    /// Takes over the status file of a node, or begins one. A process holds it alone.
    pub fn open(directory: &Directory, node: &str) -> Result<Self, DirectoryError> {
        let lock = directory.lock(&format!("agent-{node}"))?;
        let key = ObjectKey::new("", node);
        let file = match directory.read_status(Kind::LoadBalancerNode, &key) {
            Ok(Some(file)) => file,
            // The file is nobody else's, and only this agent's past is in it.
            Ok(None) | Err(DirectoryError::Corrupt { .. }) => StatusFile::new(
                Kind::LoadBalancerNode,
                &key,
                LoadBalancerNodeStatus::default(),
            ),
            Err(error) => return Err(error),
        };
        Ok(Self {
            directory: directory.clone(),
            file: Arc::new(Mutex::new(file)),
            _lock: Arc::new(lock),
        })
    }

    /// The status as written last.
    pub fn status(&self) -> LoadBalancerNodeStatus {
        self.lock().status.clone()
    }

    /// Replaces the status.
    pub fn write(&self, status: LoadBalancerNodeStatus) -> Result<(), DirectoryError> {
        let mut file = self.lock();
        file.status = status;
        self.directory.write_status(Kind::LoadBalancerNode, &file)
    }

    /// The generation of a spec.
    fn count(&self, spec: &LoadBalancerNodeSpec) -> i64 {
        let mut file = self.lock();
        file.metadata.count_spec(spec);
        file.metadata.generation
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, StatusFile<LoadBalancerNodeStatus>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the directory for as long as the process lives, in a thread of its own. `tell` may wait.
pub fn run(
    directory: Directory,
    node: String,
    file: NodeFile,
    state: Arc<SourceState>,
    mut tell: impl FnMut(Event) + Send + 'static,
) {
    thread::spawn(move || {
        let mut reader = Reader::new(directory, node, file, state);
        loop {
            for event in reader.poll() {
                tell(event);
            }
            thread::sleep(POLL);
        }
    });
}

struct Reader {
    directory: Directory,
    node: String,
    file: NodeFile,
    state: Arc<SourceState>,
    decisions: DecisionReader,
    manifests: ManifestReader,
    told_virtual_servers: BTreeMap<ObjectKey, Arc<Decision>>,
    told_pools: BTreeMap<ObjectKey, Arc<PoolDecision>>,
    directors: BTreeSet<String>,
    peers_polled: Option<Instant>,
    told_node: Option<LoadBalancerNodeSpec>,
    refused_node: Option<LoadBalancerNodeSpec>,
    told_peers: Option<BTreeMap<String, BTreeSet<IpAddr>>>,
    node_is_missing: bool,
    complained: BTreeMap<&'static str, Instant>,
}

impl Reader {
    fn new(directory: Directory, node: String, file: NodeFile, state: Arc<SourceState>) -> Self {
        for kind in [DECISIONS, MANIFESTS, NODES] {
            state.expect(kind);
        }
        Self {
            decisions: DecisionReader::new(directory.clone()),
            manifests: ManifestReader::new(directory.clone()),
            directory,
            node,
            file,
            state,
            told_virtual_servers: BTreeMap::new(),
            told_pools: BTreeMap::new(),
            directors: BTreeSet::new(),
            peers_polled: None,
            told_node: None,
            refused_node: None,
            told_peers: None,
            node_is_missing: false,
            complained: BTreeMap::new(),
        }
    }

    fn poll(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        events.extend(self.poll_decisions());
        events.extend(self.poll_manifests());
        events.extend(self.poll_peers());
        events
    }

    fn poll_decisions(&mut self) -> Option<Event> {
        // The operator makes this directory with the first decision and never removes it. Without it nothing is known.
        let decided = self.directory.root().join(".status/VirtualServer");
        if !decided.is_dir() {
            return None;
        }
        match self.decisions.poll() {
            Ok(found) => {
                self.state.synced(DECISIONS);
                let found = found?;
                self.state.events(DECISIONS, 1);
                Some(Event::Decided(Changes {
                    virtual_servers: changes(&mut self.told_virtual_servers, found.virtual_servers),
                    pools: changes(&mut self.told_pools, found.pools),
                    slices: BTreeMap::new(),
                    mark: Mark {
                        revision: found.revision,
                        pool_revision: found.revision,
                        // One that cannot be read withholds all.
                        missed: Vec::new(),
                    },
                }))
            }
            Err(error) => {
                self.complain(DECISIONS, &error);
                None
            }
        }
    }

    fn poll_manifests(&mut self) -> Option<Event> {
        match self.manifests.poll() {
            Ok(changed) => {
                self.state.synced(MANIFESTS);
                self.state.events(MANIFESTS, u64::from(changed));
                if !self.manifests.is_complete() {
                    return None;
                }
                if !changed && self.told_node.is_some() {
                    return None;
                }
            }
            Err(error) => {
                self.complain(MANIFESTS, &error);
                return None;
            }
        }
        let in_force = self.manifests.in_force().objects.into_iter();
        let nodes = in_force.filter_map(|object| match object {
            Object::LoadBalancerNode(node) => {
                Some((node.metadata.name.clone()?, node.spec.clone()))
            }
            _ => None,
        });
        let mut nodes: BTreeMap<String, LoadBalancerNodeSpec> = nodes.collect();
        self.directors = nodes
            .iter()
            .filter(|(name, spec)| spec.role == NodeRole::Director && **name != self.node)
            .map(|(name, _)| name.clone())
            .collect();
        self.peers_polled = None;
        let Some(spec) = nodes.remove(&self.node) else {
            self.report_missing();
            return None;
        };
        self.node_is_missing = false;
        let errors: Vec<String> = spec.validate().iter().map(ToString::to_string).collect();
        if !errors.is_empty() {
            if self.refused_node.as_ref() == Some(&spec) {
                return None;
            }
            let message = format!("LoadBalancerNode {}: {}", self.node, errors.join("; "));
            warn!("not taken over, the spec before stays in force: {message}");
            self.refused_node = Some(spec);
            return Some(Event::NodeRefused(message));
        }
        // A valid spec ends an earlier refusal, so it is told then even if it is the one told last.
        let was_refused = self.refused_node.take().is_some();
        if self.told_node.as_ref() == Some(&spec) && !was_refused {
            return None;
        }
        self.told_node = Some(spec.clone());
        let mut node = Box::new(LoadBalancerNode::new(&self.node, spec));
        node.metadata.generation = Some(self.file.count(&node.spec));
        Some(Event::Node(node))
    }

    fn report_missing(&mut self) {
        if self.node_is_missing {
            return;
        }
        self.node_is_missing = true;
        let (node, directory) = (&self.node, self.directory.root().display());
        if self.told_node.is_some() {
            warn!("the LoadBalancerNode {node} is gone from {directory}: going on as it last was");
        } else {
            info!("waiting for a LoadBalancerNode {node} in {directory}");
        }
    }

    fn poll_peers(&mut self) -> Option<Event> {
        let now = Instant::now();
        if self.peers_polled.is_some_and(|at| now < at + POLL_PEERS) {
            return None;
        }
        self.peers_polled = Some(now);
        let mut peers = BTreeMap::new();
        for name in &self.directors {
            let key = ObjectKey::new("", name);
            match self
                .directory
                .read_status::<LoadBalancerNodeStatus>(Kind::LoadBalancerNode, &key)
            {
                Ok(Some(file)) => {
                    peers.insert(name.clone(), file.status.addresses.into_iter().collect());
                }
                // A director that has not started yet sends nothing.
                Ok(None) => {}
                Err(error) => {
                    self.complain(NODES, &error);
                    return None;
                }
            }
        }
        self.state.synced(NODES);
        if self.told_peers.as_ref() == Some(&peers) {
            return None;
        }
        self.state.events(NODES, 1);
        self.told_peers = Some(peers.clone());
        Some(Event::Peers(peers))
    }

    fn complain(&mut self, what: &'static str, error: &DirectoryError) {
        self.state.failed(what);
        let now = Instant::now();
        let quiet = self
            .complained
            .get(what)
            .is_some_and(|&at| now < at + COMPLAINT);
        if !quiet {
            self.complained.insert(what, now);
            warn!("cannot read {what}, going on with what is known: {error}");
        }
    }
}

/// How `found` differs from what was `told`, which is then the same.
fn changes<T: PartialEq>(
    told: &mut BTreeMap<ObjectKey, Arc<T>>,
    found: BTreeMap<ObjectKey, T>,
) -> BTreeMap<ObjectKey, Option<Arc<T>>> {
    let mut changes = BTreeMap::new();
    told.retain(|key, _| {
        let keep = found.contains_key(key);
        if !keep {
            changes.insert(key.clone(), None);
        }
        keep
    });
    for (key, content) in found {
        if told.get(&key).is_none_or(|told| **told != content) {
            let content = Arc::new(content);
            told.insert(key.clone(), Arc::clone(&content));
            changes.insert(key, Some(content));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("sluice-agent-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
            fs::write(path, text).unwrap();
        }

        fn reader(&self) -> Reader {
            let directory = Directory::new(&self.0);
            let file = NodeFile::open(&directory, "d1").unwrap();
            Reader::new(directory, "d1".to_owned(), file, Arc::default())
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

    /// Manifests count when two polls have seen them alike.
    fn settle(reader: &mut Reader) -> Vec<Event> {
        (0..3).flat_map(|_| reader.poll()).collect()
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
        let events = settle(&mut scratch.reader());
        assert_eq!(events, [Event::Peers(BTreeMap::new())]);
    }

    #[test]
    fn the_node_is_told_once_and_again_when_it_changes() {
        let scratch = Scratch::new("node");
        scratch.write("node.yaml", &node("d1", "eth0"));
        let mut reader = scratch.reader();
        assert_eq!(interfaces(&settle(&mut reader)), ["eth0"]);
        assert!(interfaces(&settle(&mut reader)).is_empty());
        scratch.write("node.yaml", &node("d1", "eth1"));
        let events = settle(&mut reader);
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
        settle(&mut reader);
        fs::remove_file(scratch.0.join("node.yaml")).unwrap();
        assert!(settle(&mut reader).is_empty());
    }

    #[test]
    fn a_spec_that_breaks_a_rule_leaves_the_one_before() {
        let scratch = Scratch::new("refused");
        scratch.write("node.yaml", &node("d1", "eth0"));
        let mut reader = scratch.reader();
        settle(&mut reader);
        scratch.write("node.yaml", &node("d1", "a-name-that-is-too-long"));
        let events = settle(&mut reader);
        let [Event::NodeRefused(message)] = &events[..] else {
            unreachable!("{events:?}")
        };
        assert!(message.contains("spec.interfaces"), "{message}");
        assert!(settle(&mut reader).is_empty());
        scratch.write("node.yaml", &node("d1", "eth0"));
        assert_eq!(interfaces(&settle(&mut reader)), ["eth0"]);
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
        let events = settle(&mut scratch.reader());
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

    #[test]
    fn decisions_are_told_and_survive_a_lost_status_directory() {
        let scratch = Scratch::new("decisions");
        let mut reader = scratch.reader();
        scratch.write(
            ".status/VirtualServer/shop/web.yaml",
            "apiVersion: sluice.dev/v1alpha1\nkind: VirtualServer\nmetadata: {name: web, namespace: shop}\n\
             status: {decision: {revision: 7, generation: 1, addresses: [203.0.113.1], \
             ports: [{name: http, protocol: TCP, port: 80}], mode: NAT, poolSelection: Flow, \
             pools: [{name: a, weight: 1, specWeight: 1}]}}\n",
        );
        let revisions = |events: &[Event]| -> Vec<u64> {
            events
                .iter()
                .filter_map(|event| match event {
                    Event::Decided(changes) => Some(changes.mark.revision),
                    _ => None,
                })
                .collect()
        };
        assert_eq!(revisions(&settle(&mut reader)), [7]);
        fs::remove_dir_all(scratch.0.join(".status/VirtualServer")).unwrap();
        assert!(revisions(&settle(&mut reader)).is_empty());
    }
}
