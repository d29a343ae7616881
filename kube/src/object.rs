//! Objects as lists, watches and the answers to writes give them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use sluice_api::ObjectKey;

use crate::error::RequestError;

/// An object as it came.
#[derive(Clone, PartialEq, Debug)]
pub struct Item<T> {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// Which object of this name it is, and which version of it.
    pub stamp: Stamp,
    /// Its content, or why it cannot be read.
    pub content: Result<T, String>,
}

impl<T> Item<T> {
    /// An item with the content that `keep` takes from an object.
    pub fn of<K: Resource>(object: K, keep: impl FnOnce(K) -> Result<T, String>) -> Self {
        Self {
            key: ObjectKey::of(&object),
            stamp: Stamp::of(object.meta()),
            content: keep(object),
        }
    }
}

/// Which object it is, and which version of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stamp {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`, a whole number (Kubernetes API concepts, "resource versions"); 0 where it is none.
    pub version: u64,
}

impl Stamp {
    /// Reads it.
    pub fn of(meta: &ObjectMeta) -> Self {
        let version = meta.resource_version.as_deref().unwrap_or_default();
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            version: version.parse().unwrap_or_default(),
        }
    }
}

/// An event of one kind's watch.
#[derive(Debug)]
pub enum Event<T, A> {
    /// A list begins. What is written from now on may be newer than it.
    Begin,
    /// All there is, and the answer to the question that was asked after it.
    List(Vec<Item<T>>, A),
    /// The watch runs: what changes from now on will be told.
    Works,
    /// An object is new or has changed.
    Apply(Item<T>),
    /// An object is gone.
    Delete(ObjectKey, Stamp),
    /// It does not work; it is tried again after a pause.
    Failed {
        /// What: `list` or `watch`.
        verb: &'static str,
        /// Why not.
        error: RequestError,
    },
}
