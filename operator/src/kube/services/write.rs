//! Writes what Services lead to: their virtual servers and pools, and their own status.

use std::net::IpAddr;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use serde_json::json;
use sluice_api::{ObjectKey, RealServerPool, Time, VirtualServer};
use sluice_kube::store::Store;
use sluice_kube::{Item, Stamp};
use tracing::{info, warn};

use super::facts::Balanced;
use super::status::{Standing, Told};
use super::wanted::{Objection, Wanted, wanted};
use super::{OffersTo, decided, made_for};
use crate::kube::conflict::WriteError;
use crate::kube::events::{About, Events, News};
use crate::kube::facts::ServiceFacts;
use crate::kube::index::Index;
use crate::kube::kept::Kept;
use crate::kube::writer::Writer;
use crate::order::Waits;

/// Services that are written at once.
const AT_ONCE: usize = 8;
/// Services that are looked at before the loop has its turn again.
const PER_TURN: usize = 64;

const SERVICE: &str = "Service";

/// Writes for Services, and their waits after writes that were not taken.
#[derive(Debug, Default)]
pub(in crate::kube) struct Services {
    waits: Waits<ObjectKey>,
}

/// A write. Each goes over the version that it was worked out from.
#[derive(Debug)]
pub(super) enum Job {
    /// Without a stamp the object is new.
    Pool(Box<RealServerPool>, Option<Stamp>),
    Server(Box<VirtualServer>, Option<Stamp>),
    Status(Told, Stamp),
    DeleteServer(ObjectKey, Stamp),
    DeletePool(ObjectKey, Stamp),
}

enum Done {
    Pool(Item<RealServerPool>),
    Server(Item<VirtualServer>),
    Status(Item<ServiceFacts>),
    ServerGone(ObjectKey, Stamp),
    PoolGone(ObjectKey, Stamp),
}

/// What is to be written for a Service, in this order, and what is told of it once all is.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) jobs: Vec<Job>,
    pub(super) news: Vec<News>,
    /// Whether it has an address that no director answers for yet.
    pub(super) is_unheld: bool,
}

impl Services {
    /// How many were not taken and are to be tried again.
    pub(in crate::kube) fn waiting(&self) -> usize {
        self.waits.len()
    }

    /// Brings some of the Services that changed to what they should be. Returns whether there are more.
    pub(in crate::kube) async fn write(
        &mut self,
        index: &mut Index,
        writer: &Writer,
        events: &Events,
        now: &Time,
        now_ms: u64,
    ) -> bool {
        let dirty = index.concerns.dirty.iter();
        let due: Vec<ObjectKey> = dirty
            .filter(|key| self.waits.due_ms(key, 0) <= now_ms)
            .take(PER_TURN)
            .cloned()
            .collect();
        let has_more = due.len() == PER_TURN;
        let mut plans = Vec::new();
        for key in due {
            index.concerns.dirty.remove(&key);
            let plan = plan(index, &key, now);
            if plan.is_unheld {
                index.concerns.unheld.insert(key.clone());
            }
            if plan.jobs.is_empty() {
                self.waits.end(&key);
            } else {
                plans.push((key, plan));
            }
        }
        let requests = plans
            .into_iter()
            .map(|(key, plan)| carry_out(writer, key, plan));
        let mut answers = futures::stream::iter(requests).buffer_unordered(AT_ONCE);
        while let Some((key, done, result)) = answers.next().await {
            for done in done {
                take_in(index, done);
            }
            match result {
                Ok(news) => {
                    for news in news {
                        events.tell(news);
                    }
                }
                Err(error) => self.fail(index, events, &key, &error, now_ms),
            }
            // What stands is looked at once more, and then found as it should be.
            index.concerns.dirty.insert(key);
        }
        has_more
    }

    fn fail(
        &mut self,
        index: &Index,
        events: &Events,
        key: &ObjectKey,
        error: &WriteError,
        now_ms: u64,
    ) {
        let is_news = self.waits.failed(key, 0, &error.failure(), now_ms);
        if !is_news || matches!(error, WriteError::Stale | WriteError::Gone) {
            return;
        }
        warn!(service = %key, "what serves it cannot be written: {error}");
        if let Some(stamp) = index.services.stamp(key) {
            events.tell(news(key, stamp, true, "NotWritten", error.to_string()));
        }
    }
}

fn news(key: &ObjectKey, stamp: &Stamp, warning: bool, reason: &str, note: String) -> News {
    News {
        about: About {
            kind: SERVICE,
            key: key.clone(),
            uid: stamp.uid.clone(),
        },
        warning,
        reason: reason.to_owned(),
        action: "Serve",
        note,
    }
}

/// What is to be written for a Service now.
pub(super) fn plan(index: &Index, key: &ObjectKey, now: &Time) -> Plan {
    let facts = index.services.objects.get(key);
    let service = facts.and_then(|facts| facts.balanced.as_deref());
    match service {
        Some(service) if service.is_ours(index.concerns.without_class) => {
            serve(index, key, service, now)
        }
        service => let_go(index, key, service, now),
    }
}

fn serve(index: &Index, key: &ObjectKey, service: &Balanced, now: &Time) -> Plan {
    let offers = OffersTo {
        index,
        service: key,
    };
    let objects = wanted(&key.name, service, &offers);
    let objects = objects.and_then(|wanted| objects_of(index, key, service, wanted));
    let (mut jobs, objection) = match objects {
        Ok(jobs) => (jobs, None),
        Err(objection) => (Vec::new(), Some(objection)),
    };
    let object = index.virtual_server_of(key);
    let decided = decided(object);
    let held = object.map_or_else(Vec::new, |object| index.held(object));
    let published: Vec<IpAddr> = service.published().collect();
    let stays = |address: &&IpAddr| held.contains(address) || published.contains(address);
    let addresses: Vec<IpAddr> = decided.iter().filter(stays).copied().collect();
    let standing = Standing::of(object, &addresses, index.unheld(object), objection);
    let is_own = |address| index.is_own(decided, address);
    let told = Told::of(service, &addresses, is_own, Some(&standing), now);
    let mut plan = Plan {
        is_unheld: addresses.len() < decided.len(),
        ..Plan::default()
    };
    if let Some(stamp) = index.services.stamp(key)
        && told != Told::before(service)
    {
        plan.news = changes(key, stamp, service, &addresses, &standing);
        jobs.push(Job::Status(told, stamp.clone()));
    }
    plan.jobs = jobs;
    plan
}

/// The Events of a change of a Service's status.
fn changes(
    key: &ObjectKey,
    stamp: &Stamp,
    service: &Balanced,
    addresses: &[IpAddr],
    standing: &Standing,
) -> Vec<News> {
    let mut told = Vec::new();
    let before = service.condition();
    let is_known = before.is_some_and(|before| {
        (before.reason.as_str(), before.message.as_str())
            == (standing.reason.as_str(), standing.message.as_str())
    });
    if standing.is_stalled && !is_known {
        let note = standing.message.clone();
        told.push(news(key, stamp, true, &standing.reason, note));
    }
    let is_new = |address: &&IpAddr| service.published().all(|known| known != **address);
    let new: Vec<String> = addresses
        .iter()
        .filter(is_new)
        .map(ToString::to_string)
        .collect();
    if !new.is_empty() {
        let note = format!("is served at {}", new.join(", "));
        told.push(news(key, stamp, false, "Served", note));
    }
    told
}

/// The writes that bring pool and virtual server to what a Service asks for.
fn objects_of(
    index: &Index,
    service: &ObjectKey,
    balanced: &Balanced,
    wanted: Wanted,
) -> Result<Vec<Job>, Objection> {
    let owner = Owner::new(service, &balanced.uid);
    let name = &owner.object.name;
    let pool = RealServerPool::new(name, wanted.pool);
    let pool = owner.put(&index.pools, pool, |object| &mut object.spec)?;
    let server = VirtualServer::new(name, wanted.virtual_server);
    let server = owner.put(&index.virtual_servers, server, |object| &mut object.spec)?;
    let pool = pool.map(|(object, stamp)| Job::Pool(Box::new(object), stamp));
    let server = server.map(|(object, stamp)| Job::Server(Box::new(object), stamp));
    // A virtual server is admitted with its pool.
    Ok(pool.into_iter().chain(server).collect())
}

/// The reference to the Service of this name for which an object was made, be it the one that there is now or one before.
pub(super) fn maker<'a>(meta: &'a ObjectMeta, service: &ObjectKey) -> Option<&'a OwnerReference> {
    let mut owners = meta.owner_references.iter().flatten();
    owners.find(|owner| {
        let is_service = owner.api_version == "v1" && owner.kind == SERVICE;
        is_service && owner.controller == Some(true) && owner.name == service.name
    })
}

/// The owner of a virtual server and a pool.
struct Owner<'a> {
    service: &'a ObjectKey,
    uid: &'a str,
    /// What they are called.
    object: ObjectKey,
}

impl<'a> Owner<'a> {
    fn new(service: &'a ObjectKey, uid: &'a str) -> Self {
        Self {
            service,
            uid,
            object: made_for(service),
        }
    }

    /// The object to be written; `None`: it stands as it should.
    fn put<K: Resource + Clone + PartialEq, S: PartialEq + Clone>(
        &self,
        store: &Store<K>,
        mut wanted: K,
        spec: fn(&mut K) -> &mut S,
    ) -> Result<Option<(K, Option<Stamp>)>, Objection> {
        let spec_wanted = spec(&mut wanted).clone();
        let known = store.objects.get(&self.object);
        let mut object = known.cloned().unwrap_or(wanted);
        if let Some(known) = known {
            let Some(reference) = maker(known.meta(), self.service) else {
                return Err(self.taken());
            };
            if reference.uid == self.uid && *spec(&mut object) == spec_wanted {
                return Ok(None);
            }
        }
        *spec(&mut object) = spec_wanted;
        let meta = object.meta_mut();
        meta.namespace = Some(self.object.namespace.clone());
        meta.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: SERVICE.to_owned(),
            name: self.service.name.clone(),
            uid: self.uid.to_owned(),
            controller: Some(true),
            block_owner_deletion: None,
        }]);
        Ok(Some((object, store.stamp(&self.object).cloned())))
    }

    fn taken(&self) -> Objection {
        let message = format!(
            "there is an object {} that was not made for this Service: delete it",
            self.object.name
        );
        Objection::new("NameTaken", message)
    }
}

/// What was made for a Service goes once its status says nothing of it any more.
fn let_go(index: &Index, key: &ObjectKey, service: Option<&Balanced>, now: &Time) -> Plan {
    let object = &made_for(key);
    let server = index.virtual_server_of(key);
    let pool = index.pools.objects.get(object);
    let pool = pool.filter(|pool| maker(&pool.metadata, key).is_some());
    let mut jobs = Vec::new();
    let decided = decided(server);
    let was_served = service.filter(|service| service.condition().is_some());
    if let (Some(service), Some(stamp)) = (was_served, index.services.stamp(key)) {
        let is_own = |address| index.is_own(decided, address);
        let told = Told::of(service, &[], is_own, None, now);
        jobs.push(Job::Status(told, stamp.clone()));
    }
    let stamp = server.and_then(|_| index.virtual_servers.stamp(object));
    jobs.extend(stamp.map(|stamp| Job::DeleteServer(object.clone(), stamp.clone())));
    let stamp = pool.and_then(|_| index.pools.stamp(object));
    jobs.extend(stamp.map(|stamp| Job::DeletePool(object.clone(), stamp.clone())));
    Plan {
        jobs,
        ..Plan::default()
    }
}

/// Carries out the jobs of a Service, one after the other. Returns those that are done, and, if all are, what is told of it.
async fn carry_out(
    writer: &Writer,
    key: ObjectKey,
    plan: Plan,
) -> (ObjectKey, Vec<Done>, Result<Vec<News>, WriteError>) {
    let mut done = Vec::new();
    for job in plan.jobs {
        match run(writer, &key, job).await {
            Ok(one) => done.push(one),
            Err(error) => return (key, done, Err(error)),
        }
    }
    (key, done, Ok(plan.news))
}

async fn run(writer: &Writer, service: &ObjectKey, job: Job) -> Result<Done, WriteError> {
    match job {
        Job::Pool(pool, stamp) => {
            let item = writer.put(*pool, stamp.as_ref()).await?;
            Ok(Done::Pool(item))
        }
        Job::Server(server, stamp) => {
            let item = writer.put(*server, stamp.as_ref()).await?;
            Ok(Done::Server(item))
        }
        Job::Status(told, stamp) => {
            let status = json!({
                "loadBalancer": {"ingress": told.ingress},
                "conditions": told.conditions,
            });
            let item = writer.service_status(service, &stamp, &status).await?;
            Ok(Done::Status(item))
        }
        Job::DeleteServer(key, stamp) => {
            writer.delete_ours::<VirtualServer>(&key, &stamp).await?;
            Ok(Done::ServerGone(key, stamp))
        }
        Job::DeletePool(key, stamp) => {
            writer.delete_ours::<RealServerPool>(&key, &stamp).await?;
            Ok(Done::PoolGone(key, stamp))
        }
    }
}

fn take_in(index: &mut Index, done: Done) {
    match done {
        Done::Pool(item) => {
            let changes = index.pools.made(item).into_iter().collect();
            index.pools_changed(changes);
        }
        Done::Server(item) => {
            let changes = index.virtual_servers.made(item).into_iter().collect();
            index.virtual_servers_changed(changes);
        }
        Done::Status(item) => {
            let changes: Vec<_> = index.services.written(item).into_iter().collect();
            index.services_changed(&changes);
        }
        Done::ServerGone(key, stamp) => {
            info!(object = %key, "is deleted with its Service, or since that is not ours any more");
            VirtualServer::gone(index, &key, &stamp);
        }
        Done::PoolGone(key, stamp) => RealServerPool::gone(index, &key, &stamp),
    }
}
