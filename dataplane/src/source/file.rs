//! The directory of standalone mode as a source, and as the place of this node's status.
//!
//! Losing the directory withdraws nothing. Unreadable and missing files, another directory in its place and a missing manifest
//! of this node are no news: the core goes on with what it knows. Only where the operator's inventory agrees with the files
//! is a decision that is missing withdrawn. An agent that starts tells nothing until then, so pinned maps stay as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sluice_api::{
    AddressPoolStatus, Decision, Kind, LoadBalancerNode, LoadBalancerNodeSpec,
    LoadBalancerNodeStatus, NodeRole, ObjectKey, Peer, Peers, PoolDecision, Validate,
};
use sluice_directory::manifest::Object;
use sluice_directory::{
    DecisionReader, Decisions, Directory, DirectoryError, Lock, ManifestReader, StatusFile,
};
use sluice_planner::{ObjectKind, Problem, Reason};
use sluice_signals::Report;
use tracing::{info, warn};

use super::{Announcing, Changes, Event, Mark, SourceState};

/// Time between two looks at the directory.
const POLL: Duration = Duration::from_millis(100);
/// Time between two looks at other nodes' status, which changes with every heartbeat.
const POLL_PEERS_MS: u64 = 1_000;
/// Time between two complaints of one kind while they last.
const COMPLAINT_MS: u64 = 60_000;
/// An agent that starts says why it knows no decisions after so long: the operator writes them one after the other.
const HELD_MS: u64 = 2_000;

/// Names of the kinds of files read, in metrics and messages.
const DECISIONS: &str = "decisions";
const MANIFESTS: &str = "manifests";
const NODES: &str = "peers";

/// This node's status file.
#[derive(Clone, Debug)]
pub struct NodeFile {
    directory: Directory,
    file: Arc<Mutex<StatusFile<LoadBalancerNodeStatus>>>,
    lock: Arc<Lock>,
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
            lock: Arc::new(lock),
        })
    }

    /// The status as written last.
    pub fn status(&self) -> LoadBalancerNodeStatus {
        self.file().status.clone()
    }

    /// Replaces the status, if no other process does so.
    pub fn write(&self, status: LoadBalancerNodeStatus) -> Result<(), DirectoryError> {
        self.lock.verify()?;
        let mut file = self.file();
        file.status = status;
        self.directory.write_status(Kind::LoadBalancerNode, &file)
    }

    /// Replaces the node's signals, if no other process does so.
    pub fn write_signals(&self, report: &Report) -> Result<(), DirectoryError> {
        self.lock.verify()?;
        let node = self.file().metadata.name.clone();
        self.directory.write_signals(&node, report)
    }

    /// The generation of a spec.
    fn count(&self, spec: &LoadBalancerNodeSpec) -> i64 {
        let mut file = self.file();
        file.metadata.count_spec(spec);
        file.metadata.generation
    }

    fn file(&self) -> std::sync::MutexGuard<'_, StatusFile<LoadBalancerNodeStatus>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A directory, and the node that reads it.
#[derive(Debug)]
pub struct Source {
    /// The directory.
    pub directory: Directory,
    /// The node's name.
    pub node: String,
    /// Its status file.
    pub file: NodeFile,
    /// How the source fares.
    pub state: Arc<SourceState>,
    /// Whether maps of an earlier agent serve something.
    pub served: bool,
}

/// Reads the directory for as long as the process lives, in a thread of its own. `tell` may wait.
pub fn run(source: Source, mut tell: impl FnMut(Event) + Send + 'static) {
    thread::spawn(move || {
        let mut reader = Reader::new(source);
        let start = Instant::now();
        loop {
            let now_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            for event in reader.poll(now_ms) {
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
    served: bool,
    decisions: DecisionReader,
    manifests: ManifestReader,
    told: Told,
    /// The other directors, and whether each is drained.
    directors: BTreeMap<String, bool>,
    /// The address pools.
    address_pools: BTreeSet<String>,
    peers_ms: Option<u64>,
    told_node: Option<LoadBalancerNodeSpec>,
    refused_node: Option<LoadBalancerNodeSpec>,
    told_peers: Option<Peers>,
    told_may_hold: bool,
    told_announcing: Announcing,
    node_is_missing: bool,
    complained: BTreeMap<&'static str, u64>,
}

/// The decisions that the core knows.
#[derive(Default)]
struct Told {
    virtual_servers: BTreeMap<ObjectKey, Arc<Decision>>,
    pools: BTreeMap<ObjectKey, Arc<PoolDecision>>,
    mark: Option<Mark>,
    /// Why nothing is told.
    doubt: Option<String>,
    /// The doubt that was told.
    held: Option<String>,
}

impl Reader {
    fn new(source: Source) -> Self {
        let Source {
            directory,
            node,
            file,
            state,
            served,
        } = source;
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
            served,
            told: Told::default(),
            directors: BTreeMap::new(),
            address_pools: BTreeSet::new(),
            peers_ms: None,
            told_node: None,
            refused_node: None,
            told_peers: None,
            told_may_hold: false,
            told_announcing: Announcing::default(),
            node_is_missing: false,
            complained: BTreeMap::new(),
        }
    }

    fn poll(&mut self, now_ms: u64) -> Vec<Event> {
        let changed = self.manifests.poll(now_ms);
        if let Err(error) = self.manifests.check() {
            for kind in [MANIFESTS, DECISIONS, NODES] {
                self.complain(kind, &error, now_ms);
            }
            return Vec::new();
        }
        let mut events = Vec::new();
        events.extend(self.node_news(changed, now_ms));
        events.extend(self.decision_news(now_ms));
        events.extend(self.peer_news(now_ms));
        events.extend(self.announcing_news(now_ms));
        events
    }

    fn decision_news(&mut self, now_ms: u64) -> Vec<Event> {
        match self.decisions.poll() {
            Ok(found) => {
                self.state.synced(DECISIONS);
                let mut events = Vec::new();
                if let Some(found) = found {
                    self.state.events(DECISIONS, 1);
                    for error in found.unreadable.values() {
                        self.complain(DECISIONS, error, now_ms);
                    }
                    events.extend(self.told.take(found, self.served));
                    self.state.hold(self.told.doubt.clone());
                }
                events.extend(self.told.held(now_ms));
                events
            }
            Err(error) => {
                self.complain(DECISIONS, &error, now_ms);
                Vec::new()
            }
        }
    }

    fn node_news(&mut self, changed: bool, now_ms: u64) -> Option<Event> {
        self.state.synced(MANIFESTS);
        self.state.events(MANIFESTS, u64::from(changed));
        if !changed && self.told_node.is_some() {
            return None;
        }
        if !self.manifests.is_complete() {
            if now_ms >= HELD_MS {
                self.report_missing();
            }
            return None;
        }
        let mut nodes: BTreeMap<String, LoadBalancerNodeSpec> = BTreeMap::new();
        self.address_pools.clear();
        for object in self.manifests.in_force().objects {
            match object {
                Object::LoadBalancerNode(node) => {
                    let name = node.metadata.name.clone();
                    nodes.extend(name.map(|name| (name, node.spec.clone())));
                }
                Object::AddressPool(pool) => self.address_pools.extend(pool.metadata.name.clone()),
                _ => {}
            }
        }
        self.directors = nodes
            .iter()
            .filter(|(name, spec)| spec.role == NodeRole::Director && **name != self.node)
            .map(|(name, spec)| (name.clone(), spec.drain))
            .collect();
        self.peers_ms = None;
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

    /// The addresses of a director whose report is gone or cannot be read stay: it may be silent, but not gone.
    fn peer_news(&mut self, now_ms: u64) -> Option<Event> {
        if !self.manifests.is_complete() {
            // Nobody has said which nodes there are.
            self.state.synced(NODES);
            return None;
        }
        if self.peers_ms.is_some_and(|at| now_ms < at + POLL_PEERS_MS) {
            return None;
        }
        self.peers_ms = Some(now_ms);
        let mut peers = Peers::new();
        let mut problem = None;
        for (name, drained) in &self.directors {
            let key = ObjectKey::new("", name);
            let file: Result<Option<StatusFile<LoadBalancerNodeStatus>>, _> =
                self.directory.read_status(Kind::LoadBalancerNode, &key);
            let before = self.told_peers.as_ref().and_then(|told| told.get(name));
            let peer = match file {
                Ok(Some(file)) => {
                    let told = Peer::of(&file.status);
                    Some(Peer {
                        candidate: told.candidate && !drained,
                        ..told
                    })
                }
                // Or it has not started yet, and sends nothing.
                Ok(None) => before.cloned(),
                Err(error) => {
                    problem = Some(error);
                    before.cloned()
                }
            };
            if let Some(peer) = peer {
                peers.insert(name.clone(), peer);
            }
        }
        match problem {
            Some(error) => self.complain(NODES, &error, now_ms),
            None => self.state.synced(NODES),
        }
        if self.told_peers.as_ref() == Some(&peers) {
            return None;
        }
        self.state.events(NODES, 1);
        self.told_peers = Some(peers.clone());
        Some(Event::Peers(peers))
    }

    /// How addresses are announced, and whether this node may hold VIP groups. A pool whose decision cannot be read stays as it was.
    fn announcing_news(&mut self, now_ms: u64) -> Vec<Event> {
        // The nodes were looked at just now, or it is not time yet.
        let Some(spec) = self.told_node.as_ref() else {
            return Vec::new();
        };
        if self.peers_ms != Some(now_ms) {
            return Vec::new();
        }
        let mut events = Vec::new();
        let may_hold = spec.role == NodeRole::Director;
        if self.told_may_hold != may_hold {
            self.told_may_hold = may_hold;
            events.push(Event::MayHold(may_hold));
        }
        let mut announcing = Announcing {
            all_on_link: self.address_pools.is_empty(),
            ..Announcing::default()
        };
        let mut problem = None;
        for name in &self.address_pools {
            let key = ObjectKey::new("", name);
            let file: Result<Option<StatusFile<AddressPoolStatus>>, _> =
                self.directory.read_status(Kind::AddressPool, &key);
            let l2 = match file {
                Ok(file) => file.and_then(|file| file.status.decision?.l2),
                Err(error) => {
                    problem = Some(error);
                    self.told_announcing.pools.get(name).cloned()
                }
            };
            announcing.pools.extend(l2.map(|l2| (name.clone(), l2)));
        }
        if let Some(error) = problem {
            self.complain(NODES, &error, now_ms);
        }
        if self.told_announcing != announcing {
            self.told_announcing.clone_from(&announcing);
            events.push(Event::Announcing(announcing));
        }
        events
    }

    fn complain(&mut self, what: &'static str, error: &impl fmt::Display, now_ms: u64) {
        self.state.failed(what);
        let last = self.complained.get(what);
        if last.is_none_or(|&at| now_ms >= at + COMPLAINT_MS) {
            self.complained.insert(what, now_ms);
            warn!("cannot read {what}, going on with what is known: {error}");
        }
    }
}

impl Told {
    /// Tells how what was found differs. `served`: maps of an earlier agent serve something.
    fn take(&mut self, found: Decisions, served: bool) -> Option<Event> {
        if self.mark.is_none() {
            // Maps would lose what is missing.
            self.doubt = doubt(&found).filter(|_| served);
            let is_empty = found.virtual_servers.is_empty() && found.pools.is_empty();
            if self.doubt.is_some() || is_empty && !found.is_whole {
                return None;
            }
        }
        let revision = if found.is_whole {
            found.revision
        } else {
            // What is missing may have changed since it was told.
            self.mark.as_ref().map_or(0, |mark| mark.revision)
        };
        let mark = Mark {
            revision,
            pool_revision: revision,
            missed: problems(&found),
        };
        let servers = withdrawn(&self.virtual_servers, |key| {
            found.withdraws(Kind::VirtualServer, key)
        });
        let pools = withdrawn(&self.pools, |key| {
            found.withdraws(Kind::RealServerPool, key)
        });
        let changes = Changes {
            virtual_servers: changes(&mut self.virtual_servers, servers, found.virtual_servers),
            pools: changes(&mut self.pools, pools, found.pools),
            slices: BTreeMap::new(),
            mark,
        };
        if changes.is_empty() && self.mark.as_ref() == Some(&changes.mark) {
            return None;
        }
        self.mark = Some(changes.mark.clone());
        Some(Event::Decided(changes))
    }

    /// Tells why nothing is told, if that lasts.
    fn held(&mut self, now_ms: u64) -> Option<Event> {
        if self.held == self.doubt || self.doubt.is_some() && now_ms < HELD_MS {
            return None;
        }
        self.held.clone_from(&self.doubt);
        Some(Event::Held(self.held.clone()))
    }
}

/// Why decisions must not be taken for all there are.
fn doubt(found: &Decisions) -> Option<String> {
    if let Some(((kind, key), error)) = found.unreadable.first_key_value() {
        return Some(format!(
            "{kind} {key} cannot be read, and the maps that were taken over may serve it: going on by what was decided before \
             until the operator has written it once more: {error}"
        ));
    }
    (!found.is_whole).then(|| {
        "the operator's status files are not complete, and the maps that were taken over may serve what is missing: going on \
         by what was decided before until the operator has written them; see that it is running"
            .to_owned()
    })
}

/// Exceptions for the decisions that cannot be read.
fn problems(found: &Decisions) -> Vec<Problem> {
    let problem = |((kind, key), error): (&(Kind, ObjectKey), &String)| Problem {
        kind: match kind {
            Kind::VirtualServer => ObjectKind::VirtualServer,
            _ => ObjectKind::RealServerPool,
        },
        object: key.clone(),
        reason: Reason::Unreadable,
        message: format!(
            "this node's agent cannot read it, what was known of it stays; the operator writes it once more: {error}"
        ),
        exception: true,
    };
    found.unreadable.iter().map(problem).collect()
}

fn withdrawn<T>(
    told: &BTreeMap<ObjectKey, Arc<T>>,
    is_withdrawn: impl Fn(&ObjectKey) -> bool,
) -> Vec<ObjectKey> {
    let keys = told.keys().filter(|key| is_withdrawn(key));
    keys.cloned().collect()
}

/// How what was found differs from what was `told`, which is then the same but for what is missing and not `gone`.
fn changes<T: PartialEq>(
    told: &mut BTreeMap<ObjectKey, Arc<T>>,
    gone: Vec<ObjectKey>,
    found: BTreeMap<ObjectKey, T>,
) -> BTreeMap<ObjectKey, Option<Arc<T>>> {
    let mut changes = BTreeMap::new();
    for key in gone {
        told.remove(&key);
        changes.insert(key, None);
    }
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
#[path = "file_tests.rs"]
mod tests;
