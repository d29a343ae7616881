//! The kinds whose status the operator writes.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sluice_api::{
    AddressPool, AddressPoolSpec, AddressPoolStatus, Condition, ConditionType, Kind, ObjectKey,
    RealServerPool, RealServerPoolSpec, RealServerPoolStatus, RolloutPolicy, RolloutPolicySpec,
    RolloutPolicyStatus, VirtualServer, VirtualServerSpec, VirtualServerStatus, find_condition,
    is_true,
};
use tracing::{info, warn};

/// A kind whose status the operator writes.
pub(crate) trait Managed {
    /// Which one.
    const KIND: Kind;
    /// Its spec.
    type Spec: Serialize;
    /// Its status.
    type Status: Clone + PartialEq + Default + Debug + Serialize + DeserializeOwned;

    /// Metadata, spec and status.
    fn parts(&mut self) -> (&mut ObjectMeta, &Self::Spec, &mut Option<Self::Status>);
    /// The status.
    fn status(&self) -> Option<&Self::Status>;
    /// The conditions of a status.
    fn conditions(status: &Self::Status) -> &[Condition];
    /// Revision of the decision; 0 = none.
    fn revision(status: &Self::Status) -> u64;
}

/// How an object stands, as its conditions say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Standing<'a> {
    /// Whether somebody has to do something.
    pub(crate) stalled: bool,
    /// Whether all is in force.
    pub(crate) ready: bool,
    /// Reason of the condition `Ready`.
    pub(crate) reason: &'a str,
    /// Message of the condition `Ready`.
    pub(crate) message: &'a str,
}

impl<'a> Standing<'a> {
    /// Reads conditions; `None` if there is no condition `Ready`.
    pub(crate) fn of(conditions: &'a [Condition]) -> Option<Self> {
        let ready = find_condition(conditions, ConditionType::Ready)?;
        Some(Self {
            stalled: is_true(conditions, ConditionType::Stalled),
            ready: ready.status == "True",
            reason: &ready.reason,
            message: &ready.message,
        })
    }
}

/// Logs a new decision and a new reason.
pub(crate) fn tell<K: Managed>(key: &ObjectKey, before: &K::Status, after: &K::Status) {
    let (kind, revision) = (K::KIND, K::revision(after));
    if revision != K::revision(before) {
        info!(%kind, object = %key, revision, "decided");
    }
    let Some(now) = Standing::of(K::conditions(after)) else {
        return;
    };
    let was = Standing::of(K::conditions(before));
    if was.is_some_and(|was| was.reason == now.reason && was.message == now.message) {
        return;
    }
    let (reason, message) = (now.reason, now.message);
    if now.stalled {
        warn!(%kind, object = %key, reason, "{message}");
    } else {
        info!(%kind, object = %key, reason, "{message}");
    }
}

macro_rules! managed {
    ($kind:ident, $spec:ty, $status:ty, $revision:expr) => {
        impl Managed for $kind {
            const KIND: Kind = Kind::$kind;
            type Spec = $spec;
            type Status = $status;

            fn parts(&mut self) -> (&mut ObjectMeta, &Self::Spec, &mut Option<Self::Status>) {
                (&mut self.metadata, &self.spec, &mut self.status)
            }
            fn status(&self) -> Option<&Self::Status> {
                self.status.as_ref()
            }
            fn conditions(status: &Self::Status) -> &[Condition] {
                &status.conditions
            }
            fn revision(status: &Self::Status) -> u64 {
                let revision: fn(&Self::Status) -> Option<u64> = $revision;
                revision(status).unwrap_or_default()
            }
        }
    };
}

managed!(
    VirtualServer,
    VirtualServerSpec,
    VirtualServerStatus,
    |status| { Some(status.decision.as_ref()?.revision) }
);
managed!(
    RealServerPool,
    RealServerPoolSpec,
    RealServerPoolStatus,
    |status| { Some(status.decision.as_ref()?.revision) }
);
managed!(
    RolloutPolicy,
    RolloutPolicySpec,
    RolloutPolicyStatus,
    |_| None
);
managed!(AddressPool, AddressPoolSpec, AddressPoolStatus, |_| None);
