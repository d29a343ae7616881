//! What nodes leave behind that are gone for good.

use super::server::{conflict, deleted, server};
use super::*;
use crate::kube::conflict::WriteError;
use crate::kube::departures::Departed;
use crate::kube::facts::NodeFacts;
use crate::kube::{peers, silence};
use crate::settings::Settings;

/// After how long a node without a Node is forgotten.
const FORGET_SECONDS: u64 = 3_600;
const SECOND: u64 = 1_000;
const SILENT_MS: u64 = sluice_api::NODE_SILENT_SECONDS * SECOND;

/// An operator over one node, with the clock in the test's hand.
struct Stage {
    index: Index,
    version: u64,
    now_ms: u64,
}

impl Stage {
    /// There is a LoadBalancerNode of this name whose agent has reported, and its Lease.
    fn new(forget_silent_seconds: Option<u64>) -> Self {
        let mut index = index(virtual_server("v1"), pool(&fixed()));
        index.set(&Settings {
            forget_silent_seconds,
            ..Settings::default()
        });
        let mut stage = Self {
            index,
            version: 100,
            now_ms: 0,
        };
        stage.report(&json!({"addresses": ["10.0.0.9"], "observedGeneration": 1}));
        stage.renew();
        stage
    }

    fn item<T>(&mut self, namespace: &str, name: &str, content: T) -> Item<T> {
        self.version += 1;
        Item {
            key: ObjectKey::new(namespace, name),
            ..item(name, name, self.version, Ok(content))
        }
    }

    fn report(&mut self, status: &Value) {
        let object =
            json!({"metadata": {"name": "n1"}, "spec": {"interfaces": ["eth0"]}, "status": status});
        let node: LoadBalancerNode = serde_json::from_value(object).expect("a node");
        let node = self.item("", "n1", node);
        apply::<Nodes>(&mut self.index, node);
    }

    fn renew(&mut self) {
        let second = i64::try_from(self.version).expect("small");
        let renewed = sluice_api::jiff::Timestamp::from_second(second).expect("a time");
        let facts = LeaseFacts {
            renewed: Some(Time(renewed)),
            written: None,
        };
        let lease = self.item("sluice-system", "sluice-node-n1", facts);
        apply::<Leases>(&mut self.index, lease);
    }

    fn node_comes(&mut self) {
        let node = self.item("", "n1", NodeFacts::default());
        apply::<KubeNodes>(&mut self.index, node);
    }

    fn node_goes(&mut self) {
        self.version += 1;
        let stamp = stamp("n1", self.version);
        delete::<KubeNodes>(&mut self.index, ObjectKey::new("", "n1"), stamp);
    }

    /// Looks every second, and tells who is silent as the loop does. Returns what is to go at the end.
    fn pass(&mut self, ms: u64) -> Vec<Departed> {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.now_ms += SECOND;
            if self.index.is_in_doubt(self.now_ms) {
                self.index.leases_read(Ok(Vec::new()));
            }
            self.index.look_at_nodes();
            self.index.look_at_departures();
            for silence in silence::news(&self.index) {
                let key = ObjectKey::new("", &silence.node);
                let status = self.index.nodes.objects[&key].status.clone();
                let mut status = json!(status);
                let now = Time(sluice_api::jiff::Timestamp::UNIX_EPOCH);
                status["conditions"] = json!(silence.condition(&now));
                self.report(&status);
            }
        }
        self.index.departed()
    }
}

fn names(departed: &[Departed]) -> Vec<(&str, bool, bool)> {
    let names = departed.iter().map(|departed| {
        let (lease, object) = (departed.lease.is_some(), departed.object.is_some());
        (departed.node.as_str(), lease, object)
    });
    names.collect()
}

#[test]
fn what_a_node_left_goes_when_its_node_is_gone_and_its_agent_silent() {
    let mut stage = Stage::new(None);
    stage.node_comes();
    assert_eq!(stage.pass(10_000 * SECOND), [], "there is a Node");
    stage.renew();
    stage.node_goes();
    for _ in 0..10 {
        assert_eq!(stage.pass(30 * SECOND), [], "the agent lives");
        stage.renew();
    }
    assert_eq!(stage.pass(SILENT_MS), []);
    let gone = stage.pass(5 * SECOND);
    assert_eq!(names(&gone), [("n1", true, true)]);
    assert!(stage.index.known_nodes.contains_key("n1"));
    let list = |stage: &Stage| peers::news(&stage.index).map(|wanted| wanted.text);
    assert!(list(&stage).is_some_and(|list| list.contains("10.0.0.9")));
    stage.index.forget(&gone[0]);
    assert_eq!(stage.pass(SECOND), []);
    assert!(
        stage.index.known_nodes.is_empty(),
        "nobody misses it any more"
    );
    assert_eq!(list(&stage).as_deref(), Some("{}"));
}

#[test]
fn a_node_that_never_was_a_node_is_forgotten_after_the_time_that_is_given() {
    let mut stage = Stage::new(None);
    assert_eq!(stage.pass(100 * FORGET_SECONDS * SECOND), []);
    let mut stage = Stage::new(Some(FORGET_SECONDS));
    assert_eq!(stage.pass(FORGET_SECONDS * SECOND), []);
    stage.renew();
    assert_eq!(stage.pass(FORGET_SECONDS * SECOND), []);
    let gone = stage.pass(2 * SECOND);
    assert_eq!(names(&gone), [("n1", true, true)]);
    // Another operator has not heard it being silent.
    let (nodes, leases) = (stage.index.nodes.clone(), stage.index.leases.clone());
    let mut next = Stage::new(Some(FORGET_SECONDS));
    next.version = stage.version;
    (next.index.nodes, next.index.leases) = (nodes, leases);
    assert_eq!(next.pass(FORGET_SECONDS * SECOND), []);
    assert_eq!(names(&next.pass(2 * SECOND)), [("n1", true, true)]);
}

fn lost<T>() -> Event<T, ()> {
    Event::Failed {
        verb: "watch",
        error: RequestError::Silent,
    }
}

/// Silence alone takes nothing away.
#[test]
fn nothing_goes_while_it_is_not_known_which_nodes_there_are() {
    let mut stage = Stage::new(Some(FORGET_SECONDS));
    let long = 10 * FORGET_SECONDS * SECOND;
    stage.node_comes();
    stage.version += 1;
    let unreadable = Item {
        content: Err("is none".to_owned()),
        ..stage.item("", "n1", NodeFacts::default())
    };
    delete::<KubeNodes>(
        &mut stage.index,
        ObjectKey::new("", "n1"),
        stamp("n1", stage.version),
    );
    apply::<KubeNodes>(&mut stage.index, unreadable);
    assert_eq!(stage.pass(long), [], "there is one that cannot be read");
    stage.node_comes();
    stage.node_goes();
    take::<KubeNodes>(&mut stage.index, lost());
    assert_eq!(stage.pass(long), []);
    take::<KubeNodes>(&mut stage.index, Event::Works);
    take::<Leases>(&mut stage.index, lost());
    assert_eq!(stage.pass(long), []);
    take::<Leases>(&mut stage.index, Event::Works);
    assert_eq!(names(&stage.pass(SECOND)), [("n1", true, true)]);
    stage.node_comes();
    assert_eq!(stage.pass(SECOND), [], "it is back");
}

#[test]
fn what_nobody_has_reported_for_stays_and_a_lease_alone_goes() {
    let mut stage = Stage::new(Some(FORGET_SECONDS));
    let long = 2 * FORGET_SECONDS * SECOND;
    let object = ObjectKey::new("", "n1");
    delete::<Nodes>(&mut stage.index, object, stamp("n1", 200));
    let gone = stage.pass(long);
    assert_eq!(names(&gone), [("n1", true, false)]);
    stage.index.forget(&gone[0]);
    stage.version = 300;
    stage.report(&json!(null));
    assert_eq!(stage.pass(long), [], "somebody has made it in advance");
    stage.node_comes();
    stage.node_goes();
    assert_eq!(names(&stage.pass(long)), [("n1", false, true)]);
}

fn departed() -> Departed {
    let version = |namespace: &str, name: &str, version| {
        Some((ObjectKey::new(namespace, name), stamp("u", version)))
    };
    Departed {
        node: "n1".to_owned(),
        lease: version("sluice-system", "sluice-node-n1", 7),
        object: version("", "n1", 8),
    }
}

#[tokio::test]
async fn only_the_versions_that_are_known_are_deleted_and_the_lease_first() {
    let forget = async |refused: &'static str| {
        let (client, requests) = server(move |_, path, _| {
            if path.contains(refused) {
                conflict()
            } else {
                deleted()
            }
        });
        let writer = Writer::new(client, Arc::new(Metrics::default()));
        let answer = writer.forget(&departed()).await;
        (answer, requests.lock().expect("no panic").clone())
    };
    let (answer, requests) = forget("nothing").await;
    assert_eq!(answer, Ok(()));
    let lease =
        "/apis/coordination.k8s.io/v1/namespaces/sluice-system/leases/sluice-node-n1".to_owned();
    let object = "/apis/sluice.dev/v1alpha1/loadbalancernodes/n1".to_owned();
    for ((method, path, body), (wanted, version)) in
        requests.iter().zip([(&lease, "7"), (&object, "8")])
    {
        assert_eq!((method.as_str(), path), ("DELETE", wanted));
        let preconditions = json!({"uid": "u", "resourceVersion": version});
        assert_eq!(body["preconditions"], preconditions);
    }
    assert_eq!(requests.len(), 2);
    // The agent has renewed it meanwhile.
    let (answer, requests) = forget("leases").await;
    assert_eq!((answer, requests.len()), (Err(WriteError::Stale), 1));
}

#[test]
fn a_node_whose_lease_was_renewed_meanwhile_is_listened_to_anew() {
    let mut stage = Stage::new(None);
    stage.node_comes();
    stage.node_goes();
    assert_eq!(stage.pass(SILENT_MS + 5 * SECOND).len(), 1);
    stage.index.departures.doubt("n1");
    assert_eq!(stage.pass(SILENT_MS), []);
    assert_eq!(stage.pass(2 * SECOND).len(), 1);
}
