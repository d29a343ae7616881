//! Status files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sluice_api::{API_VERSION, Kind, ObjectKey, SPEC_HASH_ANNOTATION};

use super::{Directory, DirectoryError, write_atomically};
use crate::files::{
    MAX_FILE_NAME, entries, fnv, io_error, is_absent, is_loop, read_text, read_to_string, remove,
};

/// Longest file of signals that is read.
const MAX_SIGNALS_BYTES: u64 = 16 << 20;

/// An object without its spec.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct StatusFile<S> {
    /// [`API_VERSION`].
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// Name and generation.
    pub metadata: StatusMeta,
    /// The status.
    pub status: S,
}

/// The metadata of an object in its status file.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct StatusMeta {
    /// The object's name.
    pub name: String,
    /// Its namespace; empty for cluster-scoped objects.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Counts the specs that the writer has seen, from 1.
    #[serde(default)]
    pub generation: i64,
    /// Holds [`SPEC_HASH_ANNOTATION`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl StatusMeta {
    /// Hash of the spec that `generation` counts.
    pub fn spec_hash(&self) -> Option<&str> {
        self.annotations
            .get(SPEC_HASH_ANNOTATION)
            .map(String::as_str)
    }

    /// Counts a spec: the generation rises when its hash is another one.
    pub fn count_spec(&mut self, spec: &impl Serialize) {
        let hash = spec_hash(spec);
        if self.spec_hash() != Some(hash.as_str()) {
            self.generation += 1;
            self.annotations
                .insert(SPEC_HASH_ANNOTATION.to_owned(), hash);
        }
    }
}

impl<S> StatusFile<S> {
    /// A file for an object that has none yet.
    pub fn new(kind: Kind, key: &ObjectKey, status: S) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: kind.name().to_owned(),
            metadata: StatusMeta {
                name: key.name.clone(),
                namespace: key.namespace.clone(),
                ..StatusMeta::default()
            },
            status,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct RevisionFloor {
    revision: u64,
}

/// Why a manifest is broken.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct FileReport {
    /// The manifest's name.
    pub file: String,
    /// Each names line, document, object and field as far as they are known, and the remedy.
    pub errors: Vec<String>,
    /// The part or version of the manifest that is in force.
    pub serving: String,
}

/// The decisions that the operator has written, told apart from those that others have removed.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// Virtual servers with a decision.
    pub virtual_servers: Names,
    /// Pools with a decision.
    pub pools: Names,
}

/// How many objects there are, and a digest of their names.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    count: u64,
    digest: String,
}

impl Names {
    /// Of these objects, in any order.
    pub fn of<'a>(keys: impl Iterator<Item = &'a ObjectKey>) -> Self {
        let (mut count, mut sum) = (0, 0_u64);
        for key in keys {
            count += 1;
            sum = sum.wrapping_add(fnv(key.to_string().as_bytes()));
        }
        Self {
            count,
            digest: format!("{sum:016x}"),
        }
    }
}

impl Directory {
    /// The status file of an object.
    pub fn status_path(&self, kind: Kind, key: &ObjectKey) -> PathBuf {
        let mut path = self.kind_path(kind);
        if kind.namespaced() {
            path.push(&key.namespace);
        }
        path.push(format!("{}.yaml", key.name));
        path
    }

    /// The last version of a manifest that parsed.
    pub fn last_good_path(&self, manifest: &str) -> PathBuf {
        self.status_root().join("last-good").join(manifest)
    }

    /// The report on a manifest that does not count as it is.
    pub fn report_path(&self, manifest: &str) -> PathBuf {
        let mut name = manifest.to_owned();
        // A name that is not UTF-8 grows when it is written as such.
        if name.len() > MAX_FILE_NAME {
            name = format!("{:016x}", fnv(manifest.as_bytes()));
        }
        self.status_root().join("files").join(name)
    }

    /// The highest revision of decisions whose status files are gone.
    pub fn revision_path(&self) -> PathBuf {
        self.status_root().join("revision.yaml")
    }

    /// Which virtual server has which addresses, as the operator writes it for itself.
    pub fn ledger_path(&self) -> PathBuf {
        self.status_root().join("addresses.json")
    }

    /// The operator's [`Inventory`].
    pub fn inventory_path(&self) -> PathBuf {
        self.status_root().join("inventory.yaml")
    }

    /// What a node saw of pools' servers lately, written by its agent.
    pub fn signals_path(&self, node: &str) -> PathBuf {
        self.status_root()
            .join("signals")
            .join(format!("{node}.json"))
    }

    /// What a node's agent wrote there; `None`: nothing yet.
    pub fn read_signals<T: DeserializeOwned>(
        &self,
        node: &str,
    ) -> Result<Option<T>, DirectoryError> {
        let path = self.signals_path(node);
        let text = match read_text(&path, MAX_SIGNALS_BYTES) {
            Ok(text) => text,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(source) => return Err(io_error(&path, "read", source)),
        };
        let parsed = serde_json::from_str(&text).map_err(|error| DirectoryError::Corrupt {
            path,
            message: error.to_string(),
        })?;
        Ok(Some(parsed))
    }

    /// Removes it; it may be gone already.
    pub fn remove_signals(&self, node: &str) -> Result<(), DirectoryError> {
        remove(&self.signals_path(node))
    }

    /// Replaces it.
    pub fn write_signals(&self, node: &str, report: &impl Serialize) -> Result<(), DirectoryError> {
        let path = self.signals_path(node);
        let text = serde_json::to_vec(report);
        let text = text.map_err(|error| io_error(&path, "encode", error.into()))?;
        write_atomically(&path, &text)
    }

    /// The status file of an object; `None` if there is none.
    pub fn read_status<S: DeserializeOwned>(
        &self,
        kind: Kind,
        key: &ObjectKey,
    ) -> Result<Option<StatusFile<S>>, DirectoryError> {
        read_yaml(&self.status_path(kind, key))
    }

    /// Replaces the status file of an object.
    pub fn write_status<S: Serialize>(
        &self,
        kind: Kind,
        file: &StatusFile<S>,
    ) -> Result<(), DirectoryError> {
        let key = ObjectKey::new(&file.metadata.namespace, &file.metadata.name);
        let path = self.status_path(kind, &key);
        write_atomically(&path, render_status(&path, file)?.as_bytes())
    }

    /// The objects of a kind that have a status file.
    pub fn list_status(&self, kind: Kind) -> Result<Vec<ObjectKey>, DirectoryError> {
        let path = self.kind_path(kind);
        let mut keys = Vec::new();
        if !kind.namespaced() {
            collect(&path, "", &mut keys)?;
            return Ok(keys);
        }
        for namespace in entries(&path)? {
            match collect(&path.join(&namespace), &namespace, &mut keys) {
                // Nothing of Sluice's; it must not hide the rest.
                Err(DirectoryError::Io { source, .. }) if is_loop(&source) => {}
                result => result?,
            }
        }
        Ok(keys)
    }

    /// The highest revision of decisions whose status files are gone; 0 if none was removed yet.
    pub fn read_revision_floor(&self) -> Result<u64, DirectoryError> {
        let floor: Option<RevisionFloor> = read_yaml(&self.revision_path())?;
        Ok(floor.map_or(0, |floor| floor.revision))
    }

    /// What [`Self::read_revision_floor`] reads. To be written before the status file is removed.
    pub fn revision_floor(&self, revision: u64) -> Result<String, DirectoryError> {
        render_status(&self.revision_path(), &RevisionFloor { revision })
    }

    /// The operator's inventory; `None` if there is none.
    pub fn read_inventory(&self) -> Result<Option<Inventory>, DirectoryError> {
        read_yaml(&self.inventory_path())
    }

    /// Replaces the inventory.
    pub fn write_inventory(&self, inventory: &Inventory) -> Result<(), DirectoryError> {
        let path = self.inventory_path();
        write_atomically(&path, render_status(&path, inventory)?.as_bytes())
    }

    fn kind_path(&self, kind: Kind) -> PathBuf {
        self.status_root().join(kind.name())
    }
}

fn collect(path: &Path, namespace: &str, keys: &mut Vec<ObjectKey>) -> Result<(), DirectoryError> {
    let names = entries(path)?;
    keys.extend(
        names
            .iter()
            .filter_map(|name| name.strip_suffix(".yaml"))
            .map(|name| ObjectKey::new(namespace, name)),
    );
    Ok(())
}

pub(super) fn read_yaml<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DirectoryError> {
    match read_to_string(path)? {
        Some(text) => parse_status(path, &text).map(Some),
        None => Ok(None),
    }
}

/// Reads the text of the status file at `path`.
pub fn parse_status<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, DirectoryError> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| DirectoryError::Corrupt {
        path: path.to_owned(),
        message: error
            .to_string()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned(),
    })
}

/// The text of the status file at `path`.
pub fn render_status(path: &Path, value: &impl Serialize) -> Result<String, DirectoryError> {
    serde_saphyr::to_string(value)
        .map_err(|error| io_error(path, "encode", std::io::Error::other(error.to_string())))
}

/// A hash of the spec as JSON: tells an edited spec from an equal one.
fn spec_hash(spec: &impl Serialize) -> String {
    let bytes = serde_json::to_vec(spec).unwrap_or_default();
    format!("{:016x}", fnv(&bytes))
}
