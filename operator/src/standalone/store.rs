//! Objects of one kind and their status files.

use std::collections::BTreeMap;

use sluice_api::ObjectKey;
use sluice_directory::{
    Directory, DirectoryError, Failures, Mirror, Names, StatusFile, parse_status, render_status,
};
use tracing::{info, warn};

use crate::managed::{Managed, tell};

/// Objects and status files of one kind.
#[derive(Debug)]
pub(super) struct Store<K: Managed> {
    /// With generation and status as in `files`.
    pub(super) objects: BTreeMap<ObjectKey, K>,
    /// As on disk, but for a generation that was just counted.
    files: BTreeMap<ObjectKey, StatusFile<K::Status>>,
}

impl<K: Managed> Store<K> {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self {
            objects: BTreeMap::new(),
            files: BTreeMap::new(),
        }
    }

    /// Reads the status files. One that cannot be read is as good as none: its object is decided anew. Of two statuses of an
    /// object, on disk and in memory, the one whose decision is newer counts.
    pub(super) fn load(
        &mut self,
        directory: &Directory,
        mirror: &mut Mirror,
    ) -> Result<(), DirectoryError> {
        for key in directory.list_status(K::KIND)? {
            let path = directory.status_path(K::KIND, &key);
            let file: Result<Option<StatusFile<K::Status>>, _> = mirror
                .adopt(&path)
                .and_then(|text| text.map(|text| parse_status(&path, text)).transpose());
            match file {
                Ok(Some(file)) => {
                    let known = self.files.get(&key);
                    let newest = known.map(|known| K::revision(&known.status));
                    if newest.is_none_or(|newest| newest < K::revision(&file.status)) {
                        self.files.insert(key, file);
                    }
                }
                Ok(None) => {}
                Err(error) => warn!(%error, "decides anew"),
            }
        }
        let mut failures = Failures::default();
        for (key, file) in &self.files {
            if file.status != K::Status::default() {
                failures.note(put::<K>(directory, mirror, key, file));
            }
        }
        failures.result()
    }

    /// Takes the objects that there are now and counts their generations.
    pub(super) fn replace(&mut self, objects: BTreeMap<ObjectKey, K>) {
        self.objects = objects;
        for (key, object) in &mut self.objects {
            let known = self.files.get(key);
            let mut file = known
                .cloned()
                .unwrap_or_else(|| StatusFile::new(K::KIND, key, K::Status::default()));
            let (meta, spec, status) = object.parts();
            file.metadata.count_spec(spec);
            meta.generation = Some(file.metadata.generation);
            *status = known.map(|file| file.status.clone());
            if let Some(known) = self.files.get_mut(key) {
                known.metadata = file.metadata;
            } else {
                self.files.insert(key.clone(), file);
            }
        }
    }

    /// The status on disk.
    pub(super) fn status(&self, key: &ObjectKey) -> Option<&K::Status> {
        self.files.get(key).map(|file| &file.status)
    }

    /// All statuses on disk.
    pub(super) fn statuses(&self) -> impl Iterator<Item = (&ObjectKey, &K::Status)> {
        self.files.iter().map(|(key, file)| (key, &file.status))
    }

    /// Whether anything is decided that nodes are to acknowledge.
    pub(super) fn has_decisions(&self) -> bool {
        let mut statuses = self.files.values().map(|file| &file.status);
        statuses.any(|status| K::revision(status) > 0)
    }

    /// The statuses of objects that are gone.
    pub(super) fn statuses_without(
        &self,
        objects: &BTreeMap<ObjectKey, K>,
    ) -> BTreeMap<ObjectKey, K::Status> {
        self.files
            .iter()
            .filter(|(key, _)| !objects.contains_key(key))
            .map(|(key, file)| (key.clone(), file.status.clone()))
            .collect()
    }

    /// The highest revision among all files; 0 if there is none.
    pub(super) fn highest_revision(&self) -> u64 {
        let statuses = self.files.values().map(|file| &file.status);
        statuses.map(K::revision).max().unwrap_or_default()
    }

    /// The highest revision among the files of objects that have no decision any more; 0 if there is none.
    pub(super) fn highest_gone(&self, keep: &BTreeMap<ObjectKey, K::Status>) -> u64 {
        let is_gone = |key| keep.get(key).is_none_or(|status| K::revision(status) == 0);
        let gone = self.files.iter().filter(|(key, _)| is_gone(key));
        gone.map(|(_, file)| K::revision(&file.status))
            .max()
            .unwrap_or_default()
    }

    /// Removes the files of all objects for which `keep` is false. Returns whether there were any.
    pub(super) fn keep(
        &mut self,
        directory: &Directory,
        mirror: &mut Mirror,
        keep: impl Fn(&ObjectKey) -> bool,
    ) -> Result<bool, DirectoryError> {
        let mut failures = Failures::default();
        let gone: Vec<ObjectKey> = self
            .files
            .keys()
            .filter(|key| !keep(key))
            .cloned()
            .collect();
        for key in &gone {
            let removed = mirror.remove(&directory.status_path(K::KIND, key));
            if failures.note(removed).is_some() {
                self.files.remove(key);
                info!(kind = %K::KIND, object = %key, "is gone");
            }
        }
        failures.result()?;
        Ok(!gone.is_empty())
    }

    /// Removes files of objects that the operator knows nothing of.
    pub(super) fn remove_strays(
        &self,
        directory: &Directory,
        mirror: &mut Mirror,
    ) -> Result<(), DirectoryError> {
        let mut failures = Failures::default();
        for key in directory.list_status(K::KIND)? {
            if !self.files.contains_key(&key) {
                let path = directory.status_path(K::KIND, &key);
                if failures.note(mirror.remove(&path)).is_some() {
                    warn!(file = %path.display(), "is no status of Sluice's: removed");
                }
            }
        }
        failures.result()
    }

    /// Writes a status.
    pub(super) fn write(
        &mut self,
        directory: &Directory,
        mirror: &mut Mirror,
        key: &ObjectKey,
        status: K::Status,
    ) -> Result<(), DirectoryError> {
        let Some(file) = self.files.get_mut(key) else {
            return Ok(());
        };
        let before = std::mem::replace(&mut file.status, status);
        if let Err(error) = put::<K>(directory, mirror, key, file) {
            file.status = before;
            return Err(error);
        }
        tell::<K>(key, &before, &file.status);
        if let Some(object) = self.objects.get_mut(key) {
            *object.parts().2 = Some(file.status.clone());
        }
        Ok(())
    }

    /// The objects with a decision, as they stand on disk.
    pub(super) fn decided(&self) -> Names {
        let decided = self.files.iter();
        let decided = decided.filter(|(_, file)| K::revision(&file.status) > 0);
        Names::of(decided.map(|(key, _)| key))
    }
}

fn put<K: Managed>(
    directory: &Directory,
    mirror: &mut Mirror,
    key: &ObjectKey,
    file: &StatusFile<K::Status>,
) -> Result<(), DirectoryError> {
    let path = directory.status_path(K::KIND, key);
    mirror.write(&path, &render_status(&path, file)?)
}
