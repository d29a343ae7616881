//! Manifests: objects in force, last-good copies and reports on broken files.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use sluice_api::{AddressPool, ObjectKey, RealServerPool, RolloutPolicy, VirtualServer};
use sluice_directory::manifest::Object;
use sluice_directory::{
    Directory, DirectoryError, Failures, FileReport, Hold, InForce, ManifestReader, ManifestState,
    Mirror, Source, WORD, render_status,
};
use tracing::{info, warn};

use super::nodes::Labels;

/// The objects of all manifests.
#[derive(Default)]
pub(super) struct Inputs {
    pub(super) virtual_servers: BTreeMap<ObjectKey, VirtualServer>,
    pub(super) pools: BTreeMap<ObjectKey, RealServerPool>,
    pub(super) policies: BTreeMap<ObjectKey, RolloutPolicy>,
    pub(super) address_pools: BTreeMap<ObjectKey, AddressPool>,
    /// The labels of nodes.
    pub(super) nodes: BTreeMap<String, Labels>,
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
    pub(super) fn poll(&mut self, monotonic_ms: u64) -> bool {
        self.reader.poll(monotonic_ms)
    }

    /// An error while the directory is not there, or another one is in its place.
    pub(super) fn check(&self) -> Result<(), DirectoryError> {
        self.reader.check()
    }

    /// Whether another directory counts since the last call.
    pub(super) fn take_moved(&mut self) -> bool {
        self.reader.take_moved()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.reader.is_complete()
    }

    /// The objects in force. Writes last-good copies of what parsed and reports on what is broken.
    pub(super) fn inputs(&mut self, mirror: &mut Mirror, failures: &mut Failures) -> Inputs {
        let mut inputs = Inputs::default();
        let in_force = self.reader.in_force();
        for object in &in_force.objects {
            inputs.add((*object).clone());
        }
        let mut reports = BTreeMap::new();
        for (name, state) in self.reader.manifests() {
            if let Some(text) = &state.text {
                let path = self.directory.last_good_path(name);
                failures.note(mirror.write(&path, text));
            }
            if let Some(report) = self.report(name, state, &in_force) {
                reports.insert(name.to_owned(), report);
            }
        }
        // Lest a manifest that was removed come back when a broken one takes its name.
        let names: Vec<&str> = self.reader.manifests().map(|(name, _)| name).collect();
        let copies = self.directory.last_good_path("");
        failures.note(mirror.keep_only(&copies, |name| names.contains(&name)));
        self.write(reports, mirror, failures);
        inputs
    }

    /// Why a manifest does not count as it is; `None` if it does.
    fn report(
        &self,
        name: &str,
        state: &ManifestState,
        in_force: &InForce<'_>,
    ) -> Option<FileReport> {
        let mut errors: Vec<String> = state.errors.iter().map(ToString::to_string).collect();
        let duplicates = in_force.duplicates.get(name);
        let mut serving = match state.source {
            Source::File if duplicates.is_some() => "the other objects of this file",
            Source::File => "this file",
            Source::LastGood => "the last version of this file that was not broken",
            Source::Nothing => "nothing of this file",
        };
        errors.extend(duplicates.into_iter().flatten().cloned());
        if self.reader.held().get(name) == Some(&Hold::Everything) {
            errors.push(format!(
                "no object is left in the directory, as when it was emptied by mistake, so nothing is removed: bring the \
                 manifests back, or create the file {WORD} in the directory if everything is to be removed"
            ));
            serving = "the version of this file before";
        }
        (!errors.is_empty()).then(|| FileReport {
            file: name.to_owned(),
            errors,
            serving: serving.to_owned(),
        })
    }

    fn write(
        &mut self,
        reports: BTreeMap<String, FileReport>,
        mirror: &mut Mirror,
        failures: &mut Failures,
    ) {
        let mut kept = Vec::new();
        for (name, report) in &reports {
            let path = self.directory.report_path(name);
            let text = render_status(&path, report);
            failures.note(text.and_then(|text| mirror.write(&path, &text)));
            kept.extend(path.file_name().map(OsStr::to_os_string));
            if self.reports.get(name) != Some(report) {
                for error in &report.errors {
                    warn!(file = name, serving = report.serving, "{error}");
                }
            }
        }
        let directory = self.directory.report_path("");
        failures.note(mirror.keep_only(&directory, |name| kept.iter().any(|kept| kept == name)));
        for name in self
            .reports
            .keys()
            .filter(|name| !reports.contains_key(*name))
        {
            info!(file = name, "is in order again or gone");
        }
        self.reports = reports;
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
            Object::LoadBalancerNode(object) => {
                let labels = object.metadata.labels.unwrap_or_default();
                self.nodes.insert(key.name, labels);
            }
            Object::AddressPool(object) => {
                self.address_pools.insert(key, object);
            }
        }
    }
}
