//! The ledger as it stands written: JSON in shards by the last bits of the address, so that a change costs a small write.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use sluice_api::ObjectKey;

use super::groups::Group;
use super::{Entry, Ledger, REST_MS};

/// Shards of the ledger.
pub const SHARDS: u8 = 32;

/// A text that is no shard of a ledger.
#[derive(Debug, thiserror::Error)]
#[error("no ledger of addresses: {0}")]
pub struct BadText(#[from] serde_json::Error);

/// An address as it stands written.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pool: String,
    /// The name of its VIP group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    /// `namespace/name` of the virtual servers that have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    owners: Vec<String>,
    /// The last one that had it. How long it has rested is not written: it rests anew after a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_owner: Option<String>,
}

/// The shard of an address.
pub(super) fn shard(address: IpAddr) -> u8 {
    let last = match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    // Neighbours are in different shards.
    last % SHARDS
}

fn written(key: &ObjectKey) -> String {
    format!("{}/{}", key.namespace, key.name)
}

fn read(text: &str) -> Option<ObjectKey> {
    let (namespace, name) = text.split_once('/')?;
    Some(ObjectKey::new(namespace, name))
}

impl Ledger {
    /// The shards that have changed since the last call.
    pub fn take_changed(&mut self) -> impl Iterator<Item = u8> + use<> {
        std::mem::take(&mut self.changed).into_iter()
    }

    /// The text of a shard, or of all of them.
    pub fn text(&self, number: Option<u8>) -> String {
        let entries = self.entries.iter();
        let entries = entries.filter(|(address, _)| number.is_none_or(|it| it == shard(**address)));
        let lines = entries.map(|(address, entry)| {
            let line = Line {
                pool: entry.pool.clone(),
                group: entry.group.as_ref().map(Group::name),
                owners: entry.owners.iter().map(written).collect(),
                last_owner: entry.rest.as_ref().map(|(last, _)| written(last)),
            };
            (address, line)
        });
        let lines: BTreeMap<_, _> = lines.collect();
        serde_json::to_string(&lines).unwrap_or_default()
    }

    /// Takes a text as it stands written. What rests rests anew; of an address that is known already what is known counts.
    pub fn load(&mut self, text: &str) -> Result<(), BadText> {
        let lines: BTreeMap<IpAddr, Line> = serde_json::from_str(text)?;
        for (address, line) in lines {
            let owners = line.owners.iter().filter_map(|owner| read(owner));
            let owners: BTreeSet<ObjectKey> = owners.collect();
            let last = line.last_owner.as_deref().and_then(read);
            let last = last.filter(|_| owners.is_empty());
            let rest = last.map(|last| (last, self.now_ms + REST_MS));
            let is_nobodys = owners.is_empty() && rest.is_none();
            if is_nobodys || self.entries.contains_key(&address) {
                continue;
            }
            for owner in owners.iter().chain(rest.iter().map(|(last, _)| last)) {
                let known = self.of_owner.entry(owner.clone()).or_default();
                known.insert(address);
            }
            self.resting
                .extend(rest.iter().map(|(_, until_ms)| (*until_ms, address)));
            let group = line.group.as_deref().and_then(Group::of);
            self.pools.count(&line.pool, address);
            if let Some(group) = &group {
                self.pools.join(group);
            }
            let entry = Entry {
                pool: line.pool,
                group,
                is_placed: false,
                owners,
                rest,
            };
            self.entries.insert(address, entry);
        }
        Ok(())
    }
}
