//! The pods of a cluster, for those who send them packets.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::account::{has_condition, items};
use super::cluster::Cluster;
use crate::net::Dual;

/// A pod that has its addresses.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name, which is its host name too.
    pub name: String,
    /// The node on which it runs.
    pub node: String,
    /// Its addresses.
    pub address: Dual,
    /// Whether its status says that it is ready.
    pub ready: bool,
}

impl Cluster {
    /// The pods of `namespace` with these labels, such as `app=web`, that have addresses, in the order of their names.
    pub fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Pod>> {
        let arguments = ["get", "pods", "-n", namespace, "-l", selector];
        let list = self.admin().json(arguments)?;
        Ok(items(&list).filter_map(pod).collect())
    }

    /// Waits until as many pods with these labels are ready, and none is left that is not.
    pub fn await_pods(
        &self,
        namespace: &str,
        selector: &str,
        count: usize,
        limit: Duration,
    ) -> Result<Vec<Pod>> {
        let arguments = ["get", "pods", "-n", namespace, "-l", selector];
        let list = self.admin().until(&arguments, limit, |list| {
            let ready = items(list).filter_map(pod).filter(|pod| pod.ready).count();
            ready == count && items(list).count() == count
        })?;
        Ok(items(&list).filter_map(pod).collect())
    }
}

/// The pod of this object; `None` as long as it has not both addresses.
fn pod(object: &Value) -> Option<Pod> {
    let mut addresses = object["status"]["podIPs"].as_array()?.iter();
    let mut next = || addresses.next()?["ip"].as_str();
    Some(Pod {
        name: object["metadata"]["name"].as_str()?.to_owned(),
        node: object["spec"]["nodeName"].as_str()?.to_owned(),
        address: Dual {
            v4: next()?.parse().ok()?,
            v6: next()?.parse().ok()?,
        },
        ready: has_condition(object, "Ready"),
    })
}
