//! The Leases of VIP groups: watched, read and written with connections, a thread and time limits of their own, so that nothing
//! else that the agent asks of the API server delays a renewal.

use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams};
use kube::core::Status;
use kube::{Api, Client};
use serde_json::{Value, json};
use sluice_api::jiff::Timestamp;
use sluice_api::{AGENT_MANAGER, GROUP_LABEL, group_lease, group_of_lease};
use sluice_election::{LeaseView, Outcome, WriteId};
use sluice_kube::Kind;
use sluice_kube::connect::{ConnectError, Connection};
use sluice_kube::error::{RequestError, within};
use sluice_kube::identity::World;
use sluice_kube::store::{Change, Missed, Store};
use sluice_kube::watch::Server;
use sluice_kube::watched::{self, Watched};
use tokio::sync::mpsc;
use tracing::{debug, error, warn};

/// Questions that wait: each group has one read and one write under way at most.
const QUEUE: usize = 4096;
/// Messages of the watch that wait.
const MESSAGES: usize = 1024;
/// Leases that are kept; there are as many as groups.
const MAX_LEASES: usize = sluice_abi::MAX_GROUPS as usize;

/// Something that is asked of the API server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Request {
    /// Read the Lease of a group.
    Read {
        /// The group.
        group: String,
    },
    /// Write the holder, if the Lease is still the one of this version.
    Write {
        /// The group.
        group: String,
        /// By which the outcome is told.
        id: WriteId,
        /// The Lease as it was read.
        version: String,
        /// The holder from now on; `None`: nobody.
        holder: Option<String>,
    },
}

impl Request {
    fn group(&self) -> &str {
        match self {
            Self::Read { group } | Self::Write { group, .. } => group,
        }
    }
}

/// What the API server says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum News {
    /// The Lease of a group as it is.
    Seen {
        /// The group.
        group: String,
        /// Its Lease.
        lease: LeaseView,
    },
    /// The Lease of a group cannot be read.
    Unreadable {
        /// The group.
        group: String,
    },
    /// The outcome of a write.
    Written {
        /// The group.
        group: String,
        /// Of the request.
        id: WriteId,
        /// What came of it.
        outcome: Outcome,
    },
}

/// Where news go; called from the Leases' thread, which waits for it.
pub(super) type Sink = Box<dyn Fn(News) + Send + Sync>;

/// The way to the Leases.
#[derive(Clone, Debug)]
pub(super) struct Leases(mpsc::Sender<Request>);

/// Where the Leases are.
#[derive(Clone, Debug)]
pub struct Place {
    /// The API server. A client of its own is made, so that no request waits for another part of the agent.
    pub connection: Connection,
    /// Sluice's own namespace.
    pub namespace: String,
    /// Raised by whoever finds that the API server has lost its state.
    pub world: World,
    /// How long an answer is waited for.
    pub limit: Duration,
}

impl Leases {
    /// Starts the thread.
    pub(super) fn start(place: Place, sink: Sink) -> io::Result<Self> {
        let (sender, requests) = mpsc::channel(QUEUE);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let run = move || match runtime.block_on(run(place, requests, Arc::new(sink))) {
            Ok(()) => {}
            Err(error) => error!("VIP groups are held without their Leases: {error}"),
        };
        thread::Builder::new()
            .name("leases".to_owned())
            .spawn(run)?;
        Ok(Self(sender))
    }

    /// Asks. Returns whether there was room for the question; without, nobody answers it.
    pub(super) fn ask(&self, request: Request) -> bool {
        self.0.try_send(request).is_ok()
    }
}

async fn run(
    place: Place,
    mut requests: mpsc::Receiver<Request>,
    sink: Arc<Sink>,
) -> Result<(), ConnectError> {
    // A client needs the runtime that it is used in.
    let client = place.connection.client()?;
    let server = Server {
        client: client.clone(),
        namespace: place.namespace.clone(),
        name: None,
        world: place.world,
        ask: Arc::new(|| Box::pin(async { Ok(()) })),
    };
    let (sender, mut messages) = mpsc::channel(MESSAGES);
    tokio::spawn(Kind::of::<GroupLeases>().watch(server, sender));
    let mut index = Index {
        store: Store::limited(MAX_LEASES),
        sink: Arc::clone(&sink),
    };
    let api = Api::namespaced(client, &place.namespace);
    loop {
        tokio::select! {
            Some(message) = messages.recv() => message.take(&mut index),
            request = requests.recv() => {
                let Some(request) = request else {
                    return Ok(());
                };
                let known = index.known(request.group());
                let (api, sink) = (api.clone(), Arc::clone(&sink));
                tokio::spawn(async move {
                    sink(answer(&api, request, known, place.limit).await);
                });
            }
        }
    }
}

/// Carries out a request. `known` is the Lease as the watch told of it last.
async fn answer(api: &Api<Lease>, request: Request, known: Option<Kept>, limit: Duration) -> News {
    match request {
        Request::Read { group } => match within(limit, api.get(&group_lease(&group))).await {
            Ok(lease) => News::Seen {
                lease: Kept::of(&lease).view,
                group,
            },
            Err(error) => {
                debug!(group, "cannot read the Lease: {error}");
                News::Unreadable { group }
            }
        },
        Request::Write {
            group,
            id,
            version,
            holder,
        } => {
            let patch = Patch::Merge(patch(&version, holder.as_deref(), known.as_ref()));
            let parameters = PatchParams {
                field_manager: Some(AGENT_MANAGER.to_owned()),
                ..PatchParams::default()
            };
            let name = group_lease(&group);
            let written = within(limit, api.patch(&name, &parameters, &patch)).await;
            let outcome = outcome(&group, written);
            News::Written { group, id, outcome }
        }
    }
}

fn outcome(group: &str, written: Result<Lease, RequestError>) -> Outcome {
    match written {
        Ok(lease) => Outcome::Ok(Kept::of(&lease).view),
        Err(error) if error.status().is_some_and(Status::is_conflict) => Outcome::Conflict,
        Err(error @ RequestError::Slow(_)) => {
            debug!(group, "the Lease was perhaps written: {error}");
            Outcome::TimedOut
        }
        Err(error) => {
            debug!(group, "cannot write the Lease: {error}");
            Outcome::Failed
        }
    }
}

/// What is written: the API server refuses it when the Lease is of another version by now.
fn patch(version: &str, holder: Option<&str>, known: Option<&Kept>) -> Value {
    let now = format!("{:.6}", Timestamp::now());
    let before = known.filter(|known| known.view.version == version);
    let mut spec = json!({"holderIdentity": holder, "renewTime": now});
    let same = before.is_some_and(|known| known.view.holder.as_deref() == holder);
    if !same && holder.is_some() {
        let transitions = before.map_or(0, |known| known.transitions);
        spec["acquireTime"] = json!(now);
        spec["leaseTransitions"] = json!(transitions.saturating_add(1));
    }
    json!({"metadata": {"resourceVersion": version}, "spec": spec})
}

/// The Leases as they are known.
struct Index {
    store: Store<Kept>,
    sink: Arc<Sink>,
}

impl Index {
    fn known(&self, group: &str) -> Option<Kept> {
        let mut known = self.store.objects.values();
        known.find(|kept| kept.group == group).cloned()
    }
}

impl watched::Index for Index {
    type Answer = ();

    fn believes(&mut self, (): ()) -> bool {
        true
    }

    fn works(&mut self, _: &'static str) {}

    /// Electors read a Lease of which they hear nothing.
    fn failed(&mut self, _: &'static str, verb: &'static str, error: RequestError) {
        debug!("cannot {verb} Leases of VIP groups: {error}");
    }

    fn missed(&mut self, _: &'static str, object: Missed) {
        warn!("the Lease {} {}", object.key.name, object.why);
    }
}

/// The Leases of VIP groups.
struct GroupLeases;

impl Watched for GroupLeases {
    type Index = Index;
    type Object = Lease;
    type Kept = Kept;
    const NAME: &'static str = "Lease";
    const LABELS: Option<&'static str> = Some(GROUP_LABEL);
    const MAX_OBJECTS: usize = MAX_LEASES;

    fn api(client: &Client, namespace: &str) -> Api<Lease> {
        Api::namespaced(client.clone(), namespace)
    }

    fn keep(lease: Lease) -> Result<Kept, String> {
        let kept = Kept::of(&lease);
        if kept.group.is_empty() {
            return Err("its name is of no VIP group".to_owned());
        }
        Ok(kept)
    }

    fn store(index: &mut Index) -> &mut Store<Kept> {
        &mut index.store
    }

    fn changed(index: &mut Index, changes: Vec<Change<Kept>>) {
        for change in changes {
            if let Some(kept) = index.store.objects.get(&change.key) {
                (index.sink)(News::Seen {
                    group: kept.group.clone(),
                    lease: kept.view.clone(),
                });
            }
        }
    }
}

/// A Lease, as far as it matters.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Kept {
    /// Empty: it is of no group.
    group: String,
    view: LeaseView,
    transitions: i32,
}

impl Kept {
    fn of(lease: &Lease) -> Self {
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.clone());
        let renewed = spec.and_then(|spec| spec.renew_time.as_ref());
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds);
        let name = lease.metadata.name.as_deref().unwrap_or_default();
        Self {
            group: group_of_lease(name).unwrap_or_default().to_owned(),
            view: LeaseView {
                version: lease.metadata.resource_version.clone().unwrap_or_default(),
                holder: holder.filter(|holder| !holder.is_empty()),
                renewed: renewed.map(|time| time.0.to_string()).unwrap_or_default(),
                duration: Duration::from_secs(
                    seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0),
                ),
            },
            transitions: spec.and_then(|spec| spec.lease_transitions).unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(value: Value) -> Kept {
        Kept::of(&serde_json::from_value(value).unwrap())
    }

    fn held() -> Kept {
        kept(json!({
            "metadata": {"name": "sluice-vip-edge-0", "resourceVersion": "7"},
            "spec": {"holderIdentity": "d1", "renewTime": "2026-01-01T00:00:01.000000Z", "leaseDurationSeconds": 4,
                     "leaseTransitions": 3},
        }))
    }

    #[test]
    fn a_renewal_changes_the_time_only() {
        let patch = patch("7", Some("d1"), Some(&held()));
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(patch["spec"]["holderIdentity"], "d1");
        assert!(patch["spec"]["renewTime"].is_string());
        assert_eq!(patch["spec"]["leaseTransitions"], Value::Null);
        assert_eq!(patch["spec"]["acquireTime"], Value::Null);
    }

    #[test]
    fn another_holder_counts_as_a_transition() {
        let patch = patch("7", Some("d2"), Some(&held()));
        assert_eq!(patch["spec"]["leaseTransitions"], 4);
        assert!(patch["spec"]["acquireTime"].is_string());
    }

    #[test]
    fn who_lets_go_leaves_no_holder() {
        let patch = patch("7", None, Some(&held()));
        let spec = patch["spec"].as_object().unwrap();
        assert_eq!(spec.get("holderIdentity"), Some(&Value::Null));
        assert!(!spec.contains_key("acquireTime"));
    }

    #[test]
    fn a_lease_without_a_holder_is_free() {
        assert_eq!(held().view.holder.as_deref(), Some("d1"));
        assert_eq!(held().group, "edge-0");
        for holder in [json!(null), json!("")] {
            let free = kept(json!({
                "metadata": {"name": "sluice-vip-edge-0", "resourceVersion": "8"},
                "spec": {"holderIdentity": holder},
            }));
            assert_eq!(free.view.holder, None);
        }
        let other = kept(json!({"metadata": {"name": "sluice-node-d1"}}));
        assert_eq!(other.group, "");
    }
}
