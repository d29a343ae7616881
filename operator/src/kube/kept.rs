//! The kinds whose status is written to the API server.

use std::fmt::Debug;

use kube::Resource;
use kube::core::NamespaceResourceScope;
use serde::de::DeserializeOwned;
use sluice_api::{ObjectKey, RealServerPool, RolloutPolicy, VirtualServer};
use sluice_kube::store::Store;
use sluice_kube::watched::{Watched, take};
use sluice_kube::{Event, Stamp};

use super::events::{self, About, News};
use super::index::Index;
use super::watch::{Policies, Pools, VirtualServers};
use crate::managed::Managed;

/// A kind whose status is written here.
pub(super) trait Kept:
    Managed
    + Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + PartialEq
    + DeserializeOwned
    + Send
    + 'static
{
    /// The same kind, as it is watched.
    type Watched: Watched<Index = Index, Kept = Self>;

    /// Where its objects are known.
    fn store(index: &mut Index) -> &mut Store<Self> {
        Self::Watched::store(index)
    }
    /// Takes in that an object is gone.
    fn gone(index: &mut Index, key: &ObjectKey, stamp: &Stamp) {
        take::<Self::Watched>(index, Event::Delete(key.clone(), stamp.clone()));
    }
    /// Remembers what was written.
    fn wrote(index: &mut Index, key: &ObjectKey);
    /// The Events of a change.
    fn news(about: &About, before: Option<&Self::Status>, after: &Self::Status) -> Vec<News> {
        events::standing::<Self>(about, before, after)
            .into_iter()
            .collect()
    }
}

impl Kept for VirtualServer {
    type Watched = VirtualServers;

    fn wrote(index: &mut Index, key: &ObjectKey) {
        if let Some(object) = index.virtual_servers.objects.get(key) {
            index.wrote_servers.wrote(key, object);
        }
    }
}

impl Kept for RealServerPool {
    type Watched = Pools;

    fn wrote(index: &mut Index, key: &ObjectKey) {
        if let Some(object) = index.pools.objects.get(key) {
            index.wrote_pools.wrote(key, object);
        }
    }
}

impl Kept for RolloutPolicy {
    type Watched = Policies;

    fn wrote(_: &mut Index, _: &ObjectKey) {}
    fn news(about: &About, before: Option<&Self::Status>, after: &Self::Status) -> Vec<News> {
        let mut news = events::history(about, before, after);
        news.extend(events::standing::<Self>(about, before, after));
        news
    }
}
