//! Objects of one kind and their status files.

use std::collections::BTreeMap;

use sluice_api::ObjectKey;
use sluice_directory::{Directory, DirectoryError, StatusFile};
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
    /// Reads the status files. One that cannot be read is as good as none: its object is decided anew.
    pub(super) fn load(directory: &Directory) -> Result<Self, DirectoryError> {
        let mut files = BTreeMap::new();
        for key in directory.list_status(K::KIND)? {
            match directory.read_status(K::KIND, &key) {
                Ok(Some(file)) => {
                    files.insert(key, file);
                }
                Ok(None) => {}
                Err(error @ DirectoryError::Corrupt { .. }) => {
                    warn!(%error, "decides anew");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            objects: BTreeMap::new(),
            files,
        })
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

    /// The highest revision among the files of all objects but these; 0 if there is none.
    pub(super) fn highest_gone<T>(&self, keep: &BTreeMap<ObjectKey, T>) -> u64 {
        let gone = self.files.iter().filter(|(key, _)| !keep.contains_key(key));
        gone.map(|(_, file)| K::revision(&file.status))
            .max()
            .unwrap_or_default()
    }

    /// Removes the files of all objects for which `keep` is false. Returns whether there were any.
    pub(super) fn keep(
        &mut self,
        directory: &Directory,
        keep: impl Fn(&ObjectKey) -> bool,
    ) -> Result<bool, DirectoryError> {
        let gone: Vec<ObjectKey> = self
            .files
            .keys()
            .filter(|key| !keep(key))
            .cloned()
            .collect();
        for key in &gone {
            directory.remove_status(K::KIND, key)?;
            self.files.remove(key);
            info!(kind = %K::KIND, object = %key, "is gone");
        }
        Ok(!gone.is_empty())
    }

    /// Writes a status.
    pub(super) fn write(
        &mut self,
        directory: &Directory,
        key: &ObjectKey,
        status: K::Status,
    ) -> Result<(), DirectoryError> {
        let Some(file) = self.files.get_mut(key) else {
            return Ok(());
        };
        let before = std::mem::replace(&mut file.status, status);
        if let Err(error) = directory.write_status(K::KIND, file) {
            file.status = before;
            return Err(error);
        }
        tell::<K>(key, &before, &file.status);
        if let Some(object) = self.objects.get_mut(key) {
            *object.parts().2 = Some(file.status.clone());
        }
        Ok(())
    }
}
