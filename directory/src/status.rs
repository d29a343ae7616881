//! Status files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sluice_api::{API_VERSION, Kind, ObjectKey, SPEC_HASH_ANNOTATION};

use super::{
    Directory, DirectoryError, entries, io_error, read_to_string, remove, write_atomically,
};

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

impl Directory {
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
        write_yaml(&self.status_path(kind, &key), file)
    }

    /// Removes the status file of an object.
    pub fn remove_status(&self, kind: Kind, key: &ObjectKey) -> Result<(), DirectoryError> {
        remove(&self.status_path(kind, key))
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
            collect(&path.join(&namespace), &namespace, &mut keys)?;
        }
        Ok(keys)
    }

    /// The highest revision of decisions whose status files are gone; 0 if none was removed yet.
    pub fn read_revision_floor(&self) -> Result<u64, DirectoryError> {
        let floor: Option<RevisionFloor> = read_yaml(&self.revision_path())?;
        Ok(floor.map_or(0, |floor| floor.revision))
    }

    /// Replaces what [`Self::read_revision_floor`] gives. To be called before the status file is removed.
    pub fn write_revision_floor(&self, revision: u64) -> Result<(), DirectoryError> {
        write_yaml(&self.revision_path(), &RevisionFloor { revision })
    }

    fn revision_path(&self) -> PathBuf {
        self.root.join(".status/revision.yaml")
    }

    /// Replaces the report on a manifest.
    pub fn write_report(&self, report: &FileReport) -> Result<(), DirectoryError> {
        write_yaml(&self.report_path(&report.file), report)
    }

    /// Removes the reports on all manifests but the named ones.
    pub fn keep_reports(&self, keep: &[&str]) -> Result<(), DirectoryError> {
        keep_only(&self.report_path(""), keep)
    }

    /// Removes the last-good copies of all manifests but the named ones, lest a removed manifest come back.
    pub fn keep_last_good(&self, keep: &[&str]) -> Result<(), DirectoryError> {
        keep_only(&self.last_good_path(""), keep)
    }
}

fn keep_only(path: &Path, keep: &[&str]) -> Result<(), DirectoryError> {
    for name in entries(path)? {
        if !keep.contains(&name.as_str()) {
            remove(&path.join(&name))?;
        }
    }
    Ok(())
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
    let Some(text) = read_to_string(path)? else {
        return Ok(None);
    };
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&text, options)
        .map(Some)
        .map_err(|error| DirectoryError::Corrupt {
            path: path.to_owned(),
            message: error
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned(),
        })
}

fn write_yaml(path: &Path, value: &impl Serialize) -> Result<(), DirectoryError> {
    let text = serde_saphyr::to_string(value)
        .map_err(|error| io_error(path, "encode", std::io::Error::other(error.to_string())))?;
    write_atomically(path, text.as_bytes())
}

/// FNV-1a of the spec as JSON: tells an edited spec from an equal one.
fn spec_hash(spec: &impl Serialize) -> String {
    let bytes = serde_json::to_vec(spec).unwrap_or_default();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}
