//! Reading manifests while users write them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use sluice_api::FieldError;

use super::{Directory, DirectoryError, Stamp, entries, read_to_string};
use crate::manifest::{self, ManifestError, Object};

/// Follows the manifests of a directory.
///
/// Editors and scripts write in pieces, and a piece of a manifest may be a manifest. So a change counts when two
/// successive calls of [`ManifestReader::poll`] have seen the same file, and a file is gone when two have missed it.
#[derive(Debug)]
pub struct ManifestReader {
    directory: Directory,
    files: BTreeMap<String, Follow>,
    polled: bool,
}

#[derive(Debug, Default)]
struct Follow {
    /// As seen by the last poll; `None` when it was missing.
    seen: Option<Stamp>,
    /// The version that `state` was read from.
    read: Option<Stamp>,
    state: Option<ManifestState>,
}

/// One manifest.
#[derive(Clone, PartialEq, Debug)]
pub struct ManifestState {
    /// The objects in force.
    pub objects: Vec<Object>,
    /// Why the file itself is not in force; empty if it is.
    pub errors: Vec<ManifestError>,
    /// Where `objects` come from.
    pub source: Source,
    /// The file's text, if it parsed.
    pub text: Option<String>,
}

/// Where the objects in force come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The manifest.
    File,
    /// Its last-good copy.
    LastGood,
    /// The manifest is broken and there is no last-good copy.
    Nothing,
}

/// The objects in force of all manifests.
#[derive(Debug, Default)]
pub struct InForce<'a> {
    /// Each once: of an object that is given twice, that of the first manifest by name, and the first there, counts.
    pub objects: Vec<&'a Object>,
    /// By manifest, what it gives that is given already, and what to do.
    pub duplicates: BTreeMap<&'a str, Vec<String>>,
}

impl ManifestReader {
    /// Reads nothing yet.
    pub fn new(directory: Directory) -> Self {
        Self {
            directory,
            files: BTreeMap::new(),
            polled: false,
        }
    }

    /// Looks at the directory once. Returns whether what [`Self::manifests`] gives has changed.
    pub fn poll(&mut self) -> Result<bool, DirectoryError> {
        let names: Vec<String> = entries(self.directory.root())?
            .into_iter()
            .filter(|name| {
                let extension = Path::new(name).extension();
                extension.is_some_and(|extension| extension == "yaml" || extension == "yml")
            })
            .collect();
        for name in &names {
            self.files.entry(name.clone()).or_default();
        }
        let mut changed = false;
        let mut gone = Vec::new();
        for (name, follow) in &mut self.files {
            let stamp = Stamp::of(&self.directory.root().join(name))?;
            let settled = self.polled && follow.seen == stamp;
            follow.seen = stamp;
            match stamp {
                Some(_) if settled && follow.read != stamp => {
                    follow.state = Some(read(&self.directory, name, follow.state.take()));
                    follow.read = stamp;
                    changed = true;
                }
                None if settled => gone.push(name.clone()),
                _ => {}
            }
        }
        for name in gone {
            changed |= self.files.remove(&name).is_some_and(|f| f.state.is_some());
        }
        self.polled = true;
        Ok(changed)
    }

    /// Whether every file that is there has been read: what is missing before is not to be taken for removed.
    pub fn is_complete(&self) -> bool {
        self.polled && self.files.values().all(|follow| follow.state.is_some())
    }

    /// The objects in force of all manifests.
    pub fn in_force(&self) -> InForce<'_> {
        let mut in_force = InForce::default();
        let mut owners = BTreeMap::new();
        for (name, manifest) in self.manifests() {
            for object in &manifest.objects {
                match owners.entry((object.kind(), object.key())) {
                    Entry::Vacant(entry) => {
                        entry.insert(name);
                        in_force.objects.push(object);
                    }
                    Entry::Occupied(entry) => {
                        let (kind, key) = entry.key();
                        let owner = entry.get();
                        let error = format!(
                            "{kind} {key} is already given in {owner}: remove it from one of the two"
                        );
                        in_force.duplicates.entry(name).or_default().push(error);
                    }
                }
            }
        }
        in_force
    }

    /// The manifests by name.
    pub fn manifests(&self) -> impl Iterator<Item = (&str, &ManifestState)> {
        self.files
            .iter()
            .filter_map(|(name, follow)| Some((name.as_str(), follow.state.as_ref()?)))
    }
}

fn read(directory: &Directory, name: &str, before: Option<ManifestState>) -> ManifestState {
    let failure = match read_to_string(&directory.root().join(name)) {
        Ok(text) => {
            let text = text.unwrap_or_default();
            match manifest::parse(&text) {
                Ok(objects) => {
                    return ManifestState {
                        objects,
                        errors: Vec::new(),
                        source: Source::File,
                        text: Some(text),
                    };
                }
                Err(errors) => errors,
            }
        }
        Err(error) => vec![ManifestError {
            line: None,
            document: 0,
            object: None,
            error: FieldError::new("", error.to_string()),
        }],
    };
    let last_good = before
        .filter(|state| state.source != Source::Nothing)
        .map(|state| state.objects)
        .or_else(|| {
            let text = read_to_string(&directory.last_good_path(name)).ok()??;
            manifest::parse(&text).ok()
        });
    ManifestState {
        source: if last_good.is_some() {
            Source::LastGood
        } else {
            Source::Nothing
        },
        objects: last_good.unwrap_or_default(),
        errors: failure,
        text: None,
    }
}
