//! The kinds whose status is written to the API server.

use std::fmt::Debug;

use kube::Resource;
use kube::core::NamespaceResourceScope;
use serde::de::DeserializeOwned;
use sluice_api::{ObjectKey, RealServerPool, RolloutPolicy, VirtualServer};

use super::events::{self, About, News};
use super::index::Index;
use super::store::{Delta, Store};
use crate::managed::Managed;
use sluice_kube::Stamp;

/// A kind whose status is written here.
pub(super) trait Kept:
    Managed
    + Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + PartialEq
    + DeserializeOwned
{
    /// Where its objects are known.
    fn store(index: &mut Index) -> &mut Store<Self>;
    /// Takes in that an object is gone.
    fn gone(index: &mut Index, key: &ObjectKey, stamp: &Stamp);
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
    fn store(index: &mut Index) -> &mut Store<Self> {
        &mut index.virtual_servers
    }
    fn gone(index: &mut Index, key: &ObjectKey, stamp: &Stamp) {
        index.virtual_server(Delta::Delete(key.clone(), stamp.clone()));
    }
    fn wrote(index: &mut Index, key: &ObjectKey) {
        if let Some(object) = index.virtual_servers.objects.get(key) {
            index.wrote_servers.wrote(key, object);
        }
    }
}

impl Kept for RealServerPool {
    fn store(index: &mut Index) -> &mut Store<Self> {
        &mut index.pools
    }
    fn gone(index: &mut Index, key: &ObjectKey, stamp: &Stamp) {
        index.pool(Delta::Delete(key.clone(), stamp.clone()));
    }
    fn wrote(index: &mut Index, key: &ObjectKey) {
        if let Some(object) = index.pools.objects.get(key) {
            index.wrote_pools.wrote(key, object);
        }
    }
}

impl Kept for RolloutPolicy {
    fn store(index: &mut Index) -> &mut Store<Self> {
        &mut index.policies
    }
    fn gone(index: &mut Index, key: &ObjectKey, stamp: &Stamp) {
        index.policy(Delta::Delete(key.clone(), stamp.clone()));
    }
    fn wrote(_: &mut Index, _: &ObjectKey) {}
    fn news(about: &About, before: Option<&Self::Status>, after: &Self::Status) -> Vec<News> {
        let mut news = events::history(about, before, after);
        news.extend(events::standing::<Self>(about, before, after));
        news
    }
}
