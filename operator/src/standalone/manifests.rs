//! Manifests: objects in force, last-good copies and reports on broken files.

use std::collections::BTreeMap;

use sluice_api::{ObjectKey, RealServerPool, RolloutPolicy, VirtualServer};
use sluice_directory::manifest::Object;
use sluice_directory::{
    Directory, DirectoryError, FileReport, ManifestReader, Source, write_atomically,
};
use tracing::{info, warn};

/// The objects of all manifests.
#[derive(Default)]
pub(super) struct Inputs {
    pub(super) virtual_servers: BTreeMap<ObjectKey, VirtualServer>,
    pub(super) pools: BTreeMap<ObjectKey, RealServerPool>,
    pub(super) policies: BTreeMap<ObjectKey, RolloutPolicy>,
    /// Names of nodes.
    pub(super) nodes: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Manifests {
    directory: Directory,
    reader: ManifestReader,
    reports: BTreeMap<String, FileReport>,
}

impl Manifests {
    pub(super) fn new(directory: Directory) -> Self {
        Self {
            reader: ManifestReader::new(directory.clone()),
            reports: BTreeMap::new(),
            directory,
        }
    }

    /// Looks at the directory. Returns whether [`Self::inputs`] may give something else now.
    pub(super) fn poll(&mut self) -> Result<bool, DirectoryError> {
        self.reader.poll()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.reader.is_complete()
    }

    /// The objects in force. Writes last-good copies of what parsed and reports on what is broken.
    pub(super) fn inputs(&mut self) -> Result<Inputs, DirectoryError> {
        let mut inputs = Inputs::default();
        let in_force = self.reader.in_force();
        for object in in_force.objects {
            inputs.add(object.clone());
        }
        let mut reports = BTreeMap::new();
        for (name, state) in self.reader.manifests() {
            let mut errors: Vec<String> = state.errors.iter().map(ToString::to_string).collect();
            let duplicates = in_force.duplicates.get(name);
            let serving = match state.source {
                Source::File if duplicates.is_some() => "the other objects of this file",
                Source::File => "this file",
                Source::LastGood => "the last version of this file that was not broken",
                Source::Nothing => "nothing of this file",
            };
            errors.extend(duplicates.into_iter().flatten().cloned());
            if let Some(text) = &state.text {
                self.keep_copy(name, text)?;
            }
            if !errors.is_empty() {
                let report = FileReport {
                    file: name.to_owned(),
                    errors,
                    serving: serving.to_owned(),
                };
                reports.insert(name.to_owned(), report);
            }
        }
        let names: Vec<&str> = self.reader.manifests().map(|(name, _)| name).collect();
        self.directory.keep_last_good(&names)?;
        self.report(reports)?;
        Ok(inputs)
    }

    fn keep_copy(&self, name: &str, text: &str) -> Result<(), DirectoryError> {
        let path = self.directory.last_good_path(name);
        if std::fs::read_to_string(&path).is_ok_and(|copy| copy == text) {
            return Ok(());
        }
        write_atomically(&path, text.as_bytes())
    }

    fn report(&mut self, reports: BTreeMap<String, FileReport>) -> Result<(), DirectoryError> {
        let names: Vec<&str> = reports.keys().map(String::as_str).collect();
        self.directory.keep_reports(&names)?;
        for (name, report) in &reports {
            if self.reports.get(name) != Some(report) {
                self.directory.write_report(report)?;
                for error in &report.errors {
                    warn!(file = name, serving = report.serving, "{error}");
                }
            }
        }
        for name in self
            .reports
            .keys()
            .filter(|name| !reports.contains_key(*name))
        {
            info!(file = name, "is in order again or gone");
        }
        self.reports = reports;
        Ok(())
    }
}

impl Inputs {
    fn add(&mut self, object: Object) {
        let key = object.key();
        match object {
            Object::VirtualServer(object) => {
                self.virtual_servers.insert(key, object);
            }
            Object::RealServerPool(object) => {
                self.pools.insert(key, object);
            }
            Object::RolloutPolicy(object) => {
                self.policies.insert(key, object);
            }
            Object::LoadBalancerNode(_) => self.nodes.push(key.name),
        }
    }
}
