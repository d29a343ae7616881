//! Whether the API server still holds the state that was read from it.
//!
//! A server that was wiped, restored from a backup or exchanged for another cluster's counts its resource versions anew. A
//! watch that goes on from a version of before then stays silent for as long as the new count is lower, and misses what
//! happened until then when it is higher. Nothing in the watch tells. So whoever watches asks now and then for something that
//! cannot be the same in another state, and compares.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::sync::{Mutex, watch};
use tracing::{debug, info, warn};

use crate::error::{RequestError, within};

/// The namespace that every cluster has, and that nobody can delete.
const NAMESPACE: &str = "kube-system";
/// How long the answer is waited for.
const LIMIT: Duration = Duration::from_secs(5);

/// Time between two questions of a [`Guard`].
const PERIOD: Duration = Duration::from_secs(5);

/// Refusals are told after this time. A server that starts refuses for a moment what it grants.
const REFUSED: Duration = Duration::from_mins(1);

/// The identity of an API server's state at one moment, and how far it had come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Position {
    /// The uid of an object that stays as long as the cluster does; `None` where it is not there yet.
    pub uid: Option<String>,
    /// How far its resource versions had come; `None` where they are no numbers.
    pub version: Option<u64>,
}

impl Position {
    /// `version` as the API server gives it.
    pub fn new(uid: Option<String>, version: Option<&str>) -> Self {
        Self {
            uid,
            version: version.and_then(|version| version.parse().ok()),
        }
    }

    /// Of the cluster: the uid of the namespace kube-system, and the newest version of anything. One request, which needs the
    /// right to list the namespace of this name.
    pub async fn of_cluster(client: &Client) -> Result<Self, RequestError> {
        let api = Api::<Namespace>::all(client.clone());
        let parameters = ListParams::default().fields(&format!("metadata.name={NAMESPACE}"));
        let list = within(LIMIT, api.list(&parameters)).await?;
        let uid = list.items.into_iter().find_map(|found| found.metadata.uid);
        Ok(Self::new(uid, list.metadata.resource_version.as_deref()))
    }

    /// Whether the server holds another state `now`, not a later one of the same.
    pub fn is_another(&self, now: &Self) -> bool {
        let went_back =
            matches!((self.version, now.version), (Some(then), Some(now)) if now < then);
        let is_other = self.uid.is_some() && now.uid.is_some() && self.uid != now.uid;
        is_other || went_back
    }
}

/// Counts the states that were met, from 0. Watches list anew when it is raised.
#[derive(Clone, Debug, Default)]
pub struct World(Arc<watch::Sender<u64>>);

impl World {
    /// The server holds another state: everything is to be read anew.
    pub fn raise(&self) {
        self.0.send_modify(|world| *world += 1);
    }

    /// The newest.
    pub fn current(&self) -> u64 {
        *self.0.borrow()
    }

    /// Tells of changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// Asks an API server again and again which state it holds, and raises the world when it is another one.
pub struct Guard {
    client: Client,
    world: World,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    position: Option<Position>,
    /// Since when nothing but refusals have come, and whether that was told.
    refused: Option<(Instant, bool)>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("world", &self.world)
            .finish_non_exhaustive()
    }
}

impl Guard {
    /// Asks nothing yet.
    pub fn new(client: Client, world: World) -> Self {
        Self {
            client,
            world,
            last: Mutex::default(),
        }
    }

    /// Asks once. The answers are compared in the order of the questions. Without an answer nothing is known: that there is none
    /// the watches tell.
    pub async fn check(&self) {
        let mut last = self.last.lock().await;
        match Position::of_cluster(&self.client).await {
            Ok(mut now) => {
                let known = last.position.take();
                if known.as_ref().is_some_and(|last| last.is_another(&now)) {
                    info!(
                        "the API server holds another state than before: reading everything anew"
                    );
                    self.world.raise();
                }
                now.uid = now.uid.or(known.and_then(|last| last.uid));
                *last = Last {
                    position: Some(now),
                    refused: None,
                };
            }
            Err(error) if error.status().is_some() => {
                let (since, told) = last.refused.get_or_insert((Instant::now(), false));
                if !*told && since.elapsed() >= REFUSED {
                    *told = true;
                    warn!("cannot tell whether the API server was wiped or restored: {error}");
                }
            }
            Err(error) => debug!("cannot ask which state the API server holds: {error}"),
        }
    }

    /// Asks for as long as this is polled: a watch that went on may tell nothing of another state.
    pub async fn run(&self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            self.check().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scripted::{Answer, client, list, refusal};

    #[test]
    fn another_state_is_known_by_uid_or_version() {
        let at = |uid: &str, version: &str| Position::new(Some(uid.to_owned()), Some(version));
        assert!(!at("a", "5").is_another(&at("a", "6")));
        assert!(!at("a", "5").is_another(&at("a", "5")));
        assert!(at("a", "5").is_another(&at("b", "6")), "wiped");
        assert!(at("a", "5").is_another(&at("a", "4")), "restored");
        assert!(!at("a", "5").is_another(&at("a", "x")));
        assert!(!at("a", "5").is_another(&Position::new(None, Some("6"))));
    }

    fn kube_system(uid: &str, version: u32) -> Answer {
        let metadata = json!({"name": "kube-system", "uid": uid});
        list(version, &[json!({"metadata": metadata})], false)
    }

    #[tokio::test]
    async fn a_guard_raises_the_world_when_the_state_is_another() {
        let (client, requests) = client(&[
            kube_system("a", 5),
            kube_system("a", 9),
            refusal(403),
            list(10, &[], false),
            kube_system("b", 11),
            kube_system("b", 4),
        ]);
        let world = World::default();
        let guard = Guard::new(client, world.clone());
        let mut worlds = Vec::new();
        for _ in 0..6 {
            guard.check().await;
            worlds.push(world.current());
        }
        // Wiped, then restored; a refusal says nothing, nor does a server that has not made the namespace yet.
        assert_eq!(worlds, [0, 0, 0, 0, 1, 2]);
        let request = requests.lock().expect("no panic")[0].clone();
        assert!(request.contains("metadata.name%3Dkube-system"), "{request}");
    }
}
