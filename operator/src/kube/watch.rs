//! Watches: one task for each kind, which reconnects for ever and tells what it sees through one bounded queue.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::DeserializeGuard;
use kube::runtime::watcher as watch;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use sluice_api::{
    LoadBalancerNode, NODE_LABEL, ObjectKey, RealServerPool, RolloutPolicy, VirtualServer, parse_ip,
};
use sluice_kube::error::text;
use sluice_kube::lease::LeaseFacts;
use tokio::sync::mpsc::Sender;
use tokio::time::sleep;

use super::facts::{PodFacts, SliceFacts};
use super::store::Delta;
use sluice_kube::{Item, Stamp};

/// A watch is begun anew after this time at the latest; the connection is given up a little later. So a connection that died
/// in silence is noticed.
const WATCH_SECONDS: u32 = 60;
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(3);
/// The same where lists are taken and watches are not: a list of all pods is dear.
const LONGEST_LIST_DELAY: Duration = Duration::from_secs(30);
/// A watch that has lived for so long works.
const STEADY: Duration = Duration::from_secs(5);

/// What is watched.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Watched {
    VirtualServer,
    RealServerPool,
    RolloutPolicy,
    LoadBalancerNode,
    Lease,
    Pod,
    Service,
    EndpointSlice,
}

impl Watched {
    pub(super) const ALL: [Self; 8] = [
        Self::VirtualServer,
        Self::RealServerPool,
        Self::RolloutPolicy,
        Self::LoadBalancerNode,
        Self::Lease,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::VirtualServer => "VirtualServer",
            Self::RealServerPool => "RealServerPool",
            Self::RolloutPolicy => "RolloutPolicy",
            Self::LoadBalancerNode => "LoadBalancerNode",
            Self::Lease => "Lease",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
        }
    }
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Message {
    VirtualServer(Delta<VirtualServer>),
    RealServerPool(Delta<RealServerPool>),
    RolloutPolicy(Delta<RolloutPolicy>),
    LoadBalancerNode(Delta<LoadBalancerNode>),
    Lease(Delta<LeaseFacts>),
    Pod(Delta<PodFacts>),
    Service(Delta<BTreeSet<IpAddr>>),
    EndpointSlice(Delta<SliceFacts>),
    /// A watch was lost; it is tried again.
    Lost(Watched, String),
}

/// Starts all watches. They end when the receiver is gone.
pub(super) fn start(client: &Client, namespace: &str, queue: &Sender<Message>) {
    let all = watcher::Config::default().timeout(WATCH_SECONDS);
    let task = Task { client, queue };
    task.own(Watched::VirtualServer, &all, Message::VirtualServer);
    task.own(Watched::RealServerPool, &all, Message::RealServerPool);
    task.own(Watched::RolloutPolicy, &all, Message::RolloutPolicy);
    task.own(Watched::LoadBalancerNode, &all, Message::LoadBalancerNode);
    let pods = Api::<DeserializeGuard<Pod>>::all(client.clone());
    task.foreign(Watched::Pod, again(pods, &all), PodFacts::of, Message::Pod);
    let slices = Api::<DeserializeGuard<EndpointSlice>>::all(client.clone());
    task.foreign(
        Watched::EndpointSlice,
        again(slices, &all),
        SliceFacts::of,
        Message::EndpointSlice,
    );
    let leases = Api::<DeserializeGuard<Lease>>::namespaced(client.clone(), namespace);
    task.foreign(
        Watched::Lease,
        again(leases, &all.clone().labels(NODE_LABEL)),
        LeaseFacts::of,
        Message::Lease,
    );
    let services = Api::<DeserializeGuard<Service>>::all(client.clone());
    task.foreign(
        Watched::Service,
        again(services, &all),
        cluster_addresses,
        Message::Service,
    );
}

struct Task<'a> {
    client: &'a Client,
    queue: &'a Sender<Message>,
}

impl Task<'_> {
    /// Watches one of our kinds.
    fn own<K>(&self, kind: Watched, config: &watcher::Config, message: fn(Delta<K>) -> Message)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let api = Api::<DeserializeGuard<K>>::all(self.client.clone());
        let strip = |mut object: K| {
            object.meta_mut().managed_fields = None;
            object
        };
        self.foreign(kind, again(api, config), strip, message);
    }

    /// Watches another kind, of which `keep` says what to keep.
    fn foreign<K, T, S>(
        &self,
        kind: Watched,
        events: impl Fn() -> S + Send + 'static,
        keep: fn(K) -> T,
        message: fn(Delta<T>) -> Message,
    ) where
        K: Resource + Send + 'static,
        T: Send + 'static,
        S: Stream<Item = watcher::Result<Event<DeserializeGuard<K>>>> + Send + 'static,
    {
        let deltas = move || {
            events().map(move |event| event.map(|event| map(event, |guard| guarded(guard, keep))))
        };
        tokio::spawn(follow(kind, deltas, self.queue.clone(), message));
    }
}

/// Makes the same watch anew, which begins with a list.
fn again<K>(
    api: Api<K>,
    config: &watcher::Config,
) -> impl Fn() -> futures::stream::BoxStream<'static, watcher::Result<Event<K>>> + Send + 'static + use<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let config = config.clone();
    move || watch(api.clone(), config.clone()).boxed()
}

async fn follow<T, S>(
    kind: Watched,
    deltas: impl Fn() -> S + Send,
    queue: Sender<Message>,
    message: fn(Delta<T>) -> Message,
) where
    S: Stream<Item = watcher::Result<Delta<T>>> + Send,
{
    let mut delays = Delays::default();
    loop {
        // A watch that broke off begins with a list again, though it could go on from the last version: behind the address there
        // may be a server that was restored or wiped, whose versions are lower, and which would stay silent.
        let mut events = std::pin::pin!(deltas());
        let mut listed: Option<Instant> = None;
        let error = loop {
            match events.next().await {
                Some(Ok(delta)) => {
                    // A list alone is no success: the watch that follows may be refused, and lists are dear.
                    match delta {
                        Delta::InitDone => listed = Some(Instant::now()),
                        Delta::Apply(_) | Delta::Delete(..) => delays.reset(),
                        Delta::Init | Delta::InitApply(_) => {}
                    }
                    if queue.send(message(delta)).await.is_err() {
                        return;
                    }
                }
                Some(Err(error)) => break error,
                None => return,
            }
        };
        if listed.is_some_and(|at| at.elapsed() >= STEADY) {
            delays.reset();
        }
        let longest = if listed.is_some() {
            LONGEST_LIST_DELAY
        } else {
            LONGEST_DELAY
        };
        if queue.send(Message::Lost(kind, text(&error))).await.is_err() {
            return;
        }
        sleep(delays.next(longest)).await;
    }
}

fn map<K, T>(event: Event<K>, item: impl Fn(K) -> Item<T>) -> Delta<T> {
    match event {
        Event::Init => Delta::Init,
        Event::InitApply(object) => Delta::InitApply(item(object)),
        Event::InitDone => Delta::InitDone,
        Event::Apply(object) => Delta::Apply(item(object)),
        Event::Delete(object) => {
            let Item { key, stamp, .. } = item(object);
            Delta::Delete(key, stamp)
        }
    }
}

/// One object that cannot be decoded does not end the watch.
fn guarded<K: Resource, T>(guard: DeserializeGuard<K>, keep: fn(K) -> T) -> Item<T> {
    Item::of(guard, |guard| {
        guard.0.map(keep).map_err(|invalid| invalid.error)
    })
}

/// The addresses that a Service has in the cluster; none if it is headless.
fn cluster_addresses(service: Service) -> BTreeSet<IpAddr> {
    let spec = service.spec.unwrap_or_default();
    let addresses = spec.cluster_ips.unwrap_or_default();
    addresses
        .iter()
        .filter_map(|address| parse_ip(address))
        .collect()
}

/// Delays between attempts: they double up to a limit, with up to a quarter more by the clock, so that not all come at once.
#[derive(Debug, Default)]
struct Delays {
    last: Option<Duration>,
}

impl Delays {
    fn next(&mut self, longest: Duration) -> Duration {
        let delay = self.last.map_or(FIRST_DELAY, |last| last * 2).min(longest);
        self.last = Some(delay);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let jitter = now.map_or(0, |now| now.subsec_nanos()) % 256;
        delay + delay * jitter / 1024
    }

    fn reset(&mut self) {
        self.last = None;
    }
}
