//! Requests to the API server beside the watches, each with a deadline.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sluice_api::{
    API_VERSION, AddressPool, AddressPoolStatus, Kind, LEDGER_CONFIG_MAP, LEDGER_KEY,
    LoadBalancerNode, OPERATOR_MANAGER, ObjectKey, PEERS_KEY, Time,
};
use sluice_kube::lease::{self, LeaseFacts};
use sluice_kube::{Item, Stamp};
use tokio::time::timeout;

use super::conflict::WriteError;
use super::departures::Departed;
use super::facts::ServiceFacts;
use super::index::answered;
use super::kept::Kept;
use super::peers::Wanted;
use super::silence::Silence;
use super::vip_groups::{self, GroupLeaseFacts};
use super::watch::peers_text;
use crate::core::SHARDS;
use crate::managed::Managed;
use crate::metrics::{Metrics, WriteLabels};

/// How long an answer is waited for.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(super) struct Writer {
    client: Client,
    metrics: Arc<Metrics>,
}

impl Writer {
    pub(super) fn new(client: Client, metrics: Arc<Metrics>) -> Self {
        Self { client, metrics }
    }

    /// Writes a status over the version that it was computed from, and never against another field manager.
    pub(super) async fn status<K: Kept>(
        &self,
        key: &ObjectKey,
        stamp: &Stamp,
        status: &K::Status,
    ) -> Result<Item<K>, WriteError> {
        let api = Api::<K>::namespaced(self.client.clone(), &key.namespace);
        self.status_by(&api, key, stamp, status).await
    }

    async fn status_by<K>(
        &self,
        api: &Api<K>,
        key: &ObjectKey,
        stamp: &Stamp,
        status: &K::Status,
    ) -> Result<Item<K>, WriteError>
    where
        K: Managed + Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let mut body = json!({
            "apiVersion": API_VERSION,
            "kind": K::KIND.name(),
            "metadata": {
                "name": key.name,
                "uid": stamp.uid,
                "resourceVersion": stamp.version.to_string(),
            },
            "status": status,
        });
        if K::KIND.namespaced() {
            body["metadata"]["namespace"] = json!(key.namespace);
        }
        let parameters = PatchParams::apply(OPERATOR_MANAGER);
        let patch = Patch::Apply(&body);
        let request = api.patch_status(&key.name, &parameters, &patch);
        self.finish(K::KIND.name(), request).await.map(answered)
    }

    /// Writes whether a node is silent, beside what its agent reports.
    pub(super) async fn silence(
        &self,
        silence: &Silence,
        uid: &str,
        now: &Time,
    ) -> Result<Item<LoadBalancerNode>, WriteError> {
        let kind = Kind::LoadBalancerNode.name();
        let body = json!({
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": {"name": silence.node, "uid": uid},
            "status": {"conditions": silence.condition(now)},
        });
        let api = Api::<LoadBalancerNode>::all(self.client.clone());
        let parameters = PatchParams::apply(OPERATOR_MANAGER).force();
        let patch = Patch::Apply(&body);
        let request = api.patch_status(&silence.node, &parameters, &patch);
        self.finish(kind, request).await.map(answered)
    }

    /// Writes the status of an address pool over the version that it was computed from, and never against another field manager.
    pub(super) async fn address_pool(
        &self,
        key: &ObjectKey,
        stamp: &Stamp,
        status: &AddressPoolStatus,
    ) -> Result<Item<AddressPool>, WriteError> {
        let api = Api::<AddressPool>::all(self.client.clone());
        self.status_by(&api, key, stamp, status).await
    }

    /// Reads the shards of the ledger of addresses.
    pub(super) async fn ledger(&self, namespace: &str) -> Result<Vec<(u8, String)>, WriteError> {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        let read = async |shard: u8| {
            let name = shard_name(shard);
            let object = self.finish("ConfigMap", api.get_opt(&name)).await?;
            let data = object.and_then(|object| object.data);
            let text = data.and_then(|mut data| data.remove(LEDGER_KEY));
            Ok(text.map(|text| (shard, text)))
        };
        let texts = try_join_all((0..SHARDS).map(read)).await?;
        Ok(texts.into_iter().flatten().collect())
    }

    /// Writes a shard of the ledger of addresses, which is ours alone.
    pub(super) async fn shard(
        &self,
        namespace: &str,
        shard: u8,
        text: &str,
    ) -> Result<(), WriteError> {
        let name = shard_name(shard);
        let body = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": namespace},
            "data": {LEDGER_KEY: text},
        });
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        let parameters = PatchParams::apply(OPERATOR_MANAGER).force();
        let patch = Patch::Apply(&body);
        let request = api.patch(&name, &parameters, &patch);
        self.finish("ConfigMap", request).await.map(drop)
    }

    /// Writes the list of directors, which is ours alone, over the version that it was compared with.
    pub(super) async fn peers(
        &self,
        wanted: &Wanted,
        stamp: Option<&Stamp>,
    ) -> Result<Item<String>, WriteError> {
        let key = &wanted.key;
        let mut body = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": key.name, "namespace": key.namespace},
            "data": {PEERS_KEY: wanted.text},
        });
        if let Some(stamp) = stamp {
            body["metadata"]["uid"] = json!(stamp.uid);
            body["metadata"]["resourceVersion"] = json!(stamp.version.to_string());
        }
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &key.namespace);
        let parameters = PatchParams::apply(OPERATOR_MANAGER).force();
        let patch = Patch::Apply(&body);
        let request = api.patch(&key.name, &parameters, &patch);
        let object = self.finish("ConfigMap", request).await?;
        Ok(Item::of(object, |object| Ok(peers_text(object))))
    }

    /// Writes a slice, which is ours alone, over the version that it was computed from. Without one it is new: should there be
    /// a slice of this name meanwhile, it stays.
    pub(super) async fn slice(
        &self,
        slice: &EndpointSlice,
        stamp: Option<&Stamp>,
    ) -> Result<EndpointSlice, WriteError> {
        let key = ObjectKey::of(slice);
        let api = self.slices(&key.namespace);
        let Some(stamp) = stamp else {
            let parameters = as_operator();
            let request = api.create(&parameters, slice);
            return self.finish("EndpointSlice", request).await;
        };
        let mut slice = slice.clone();
        slice.metadata.uid = Some(stamp.uid.clone());
        slice.metadata.resource_version = Some(stamp.version.to_string());
        let parameters = PatchParams::apply(OPERATOR_MANAGER).force();
        let patch = Patch::Apply(&slice);
        let request = api.patch(&key.name, &parameters, &patch);
        self.finish("EndpointSlice", request).await
    }

    /// Deletes a slice of ours, if it is still the one that was looked at. One that is gone already is as good.
    pub(super) async fn delete_slice(
        &self,
        key: &ObjectKey,
        stamp: &Stamp,
    ) -> Result<(), WriteError> {
        let api = self.slices(&key.namespace);
        self.delete("EndpointSlice", &api, key, stamp).await
    }

    /// Makes an object of ours, or with a stamp puts this in its place.
    pub(super) async fn put<K: Kept + Serialize>(
        &self,
        mut object: K,
        stamp: Option<&Stamp>,
    ) -> Result<Item<K>, WriteError> {
        let key = ObjectKey::of(&object);
        let api = Api::<K>::namespaced(self.client.clone(), &key.namespace);
        let parameters = as_operator();
        let kind = K::KIND.name();
        let Some(stamp) = stamp else {
            let request = api.create(&parameters, &object);
            return self.finish(kind, request).await.map(answered);
        };
        let meta = object.meta_mut();
        meta.uid = Some(stamp.uid.clone());
        meta.resource_version = Some(stamp.version.to_string());
        let request = api.replace(&key.name, &parameters, &object);
        self.finish(kind, request).await.map(answered)
    }

    /// Deletes an object of ours, if it is still the one that was looked at. One that is gone already is as good.
    pub(super) async fn delete_ours<K: Kept>(
        &self,
        key: &ObjectKey,
        stamp: &Stamp,
    ) -> Result<(), WriteError> {
        let api = Api::<K>::namespaced(self.client.clone(), &key.namespace);
        self.delete(K::KIND.name(), &api, key, stamp).await
    }

    /// Writes the parts of a Service's status that are given, over the version that they were worked out from.
    pub(super) async fn service_status(
        &self,
        key: &ObjectKey,
        stamp: &Stamp,
        status: &Value,
    ) -> Result<Item<ServiceFacts>, WriteError> {
        let body = json!({
            "metadata": {"uid": stamp.uid, "resourceVersion": stamp.version.to_string()},
            "status": status,
        });
        let api = Api::<Service>::namespaced(self.client.clone(), &key.namespace);
        let parameters = PatchParams {
            field_manager: Some(OPERATOR_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(&body);
        let request = api.patch_status(&key.name, &parameters, &patch);
        let service = self.finish("Service", request).await?;
        Ok(Item::of(service, |service| Ok(ServiceFacts::of(service))))
    }

    /// Makes the Lease of a VIP group. Should there be one of this name meanwhile, it stays.
    pub(super) async fn group_lease(
        &self,
        namespace: &str,
        group: &str,
    ) -> Result<Item<GroupLeaseFacts>, WriteError> {
        let api = Api::<Lease>::namespaced(self.client.clone(), namespace);
        let lease = serde_json::from_value(vip_groups::lease(group))
            .map_err(|error| WriteError::Refused(error.to_string()))?;
        let parameters = as_operator();
        let lease = self
            .finish("Lease", api.create(&parameters, &lease))
            .await?;
        Ok(Item::of(lease, |lease| Ok(GroupLeaseFacts::of(&lease))))
    }

    /// Deletes the Lease of a VIP group, whoever has renewed it meanwhile.
    pub(super) async fn delete_group_lease(
        &self,
        key: &ObjectKey,
        stamp: &Stamp,
    ) -> Result<(), WriteError> {
        let api = Api::<Lease>::namespaced(self.client.clone(), &key.namespace);
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(stamp.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        self.delete_by("Lease", &api, key, &parameters).await
    }

    /// Deletes what a node has left behind. An agent that lives renews its Lease, so that goes first.
    pub(super) async fn forget(&self, departed: &Departed) -> Result<(), WriteError> {
        if let Some((key, stamp)) = &departed.lease {
            let api = Api::<Lease>::namespaced(self.client.clone(), &key.namespace);
            self.delete("Lease", &api, key, stamp).await?;
        }
        if let Some((key, stamp)) = &departed.object {
            let api = Api::<LoadBalancerNode>::all(self.client.clone());
            let kind = Kind::LoadBalancerNode.name();
            self.delete(kind, &api, key, stamp).await?;
        }
        Ok(())
    }

    async fn delete<K: Clone + Debug + DeserializeOwned>(
        &self,
        kind: &'static str,
        api: &Api<K>,
        key: &ObjectKey,
        stamp: &Stamp,
    ) -> Result<(), WriteError> {
        self.delete_by(kind, api, key, &only(stamp)).await
    }

    async fn delete_by<K: Clone + Debug + DeserializeOwned>(
        &self,
        kind: &'static str,
        api: &Api<K>,
        key: &ObjectKey,
        parameters: &DeleteParams,
    ) -> Result<(), WriteError> {
        let request = async {
            match api.delete(&key.name, parameters).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                answer => answer.map(drop),
            }
        };
        self.finish(kind, request).await
    }

    /// Reads the Leases of the nodes' agents past the watch.
    pub(super) async fn leases(&self, namespace: &str) -> Result<Vec<Item<LeaseFacts>>, String> {
        let leases = lease::list(&self.client, namespace).await;
        let leases = leases.map_err(|error| error.to_string())?;
        let item = |lease| Item::of(lease, |lease| Ok(LeaseFacts::of(lease)));
        Ok(leases.into_iter().map(item).collect())
    }

    fn slices(&self, namespace: &str) -> Api<EndpointSlice> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn finish<T>(
        &self,
        kind: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, WriteError> {
        let began = Instant::now();
        let result = match timeout(DEADLINE, request).await {
            Ok(answer) => answer.map_err(|error| WriteError::of(&error)),
            Err(_) => Err(WriteError::Unavailable(format!(
                "no answer within {} s",
                DEADLINE.as_secs()
            ))),
        };
        // Who waits for one answer after the other, each with a deadline, does not stand still.
        self.metrics.turn();
        let took = began.elapsed().as_secs_f64();
        self.metrics.write_seconds.observe(took);
        let name = result.as_ref().map_or_else(WriteError::name, |_| "ok");
        let labels = WriteLabels { kind, result: name };
        self.metrics.writes.get_or_create(&labels).inc();
        result
    }
}

/// The ConfigMap of a shard of the ledger.
fn shard_name(shard: u8) -> String {
    format!("{LEDGER_CONFIG_MAP}-{shard:02}")
}

/// A write by the operator as a field manager, other than server-side apply.
fn as_operator() -> PostParams {
    PostParams {
        field_manager: Some(OPERATOR_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Deletes this version of an object and no other.
pub(super) fn only(stamp: &Stamp) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(stamp.uid.clone()),
            resource_version: Some(stamp.version.to_string()),
        }),
        ..DeleteParams::default()
    }
}

#[cfg(test)]
mod tests {
    use kube::Config;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// An API server that takes its time, and then fails.
    async fn slow(answer_after: Duration) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    let _ = stream.read(&mut request).await;
                    tokio::time::sleep(answer_after).await;
                    let answer =
                        b"HTTP/1.1 503 Slow\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    let _ = stream.write_all(answer).await;
                });
            }
        });
        let url = format!("http://{address}").parse().expect("a URL");
        Client::try_from(Config::new(url)).expect("a client")
    }

    #[tokio::test]
    async fn a_loop_that_waits_for_slow_answers_does_not_stand_still() {
        let answer_after = Duration::from_millis(300);
        let metrics = Arc::new(Metrics::default());
        let writer = Writer::new(slow(answer_after).await, Arc::clone(&metrics));
        let began = Instant::now();
        for name in ["a", "b", "c"] {
            let key = ObjectKey::new("shop", name);
            let answer = writer.delete_slice(&key, &Stamp::default()).await;
            assert!(matches!(answer, Err(WriteError::Unavailable(_))));
            assert!(metrics.stands_still() < answer_after);
        }
        assert!(began.elapsed() >= 3 * answer_after);
    }
}
