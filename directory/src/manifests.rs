//! Reading manifests while users write them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Directory, DirectoryError};
use crate::files::{Stamp, entries, fnv, is_loop, names, read_text, read_to_string};
use crate::manifest::{self, MAX_MANIFEST_BYTES, ManifestError, Object};
use crate::settle::{Given, Hold, Ids, Look, Outcome, Place, Settle, Sight, Standing, WORD};

/// Follows the manifests of a directory.
///
/// Which versions of them count, and when, is decided by the rules of [`WORD`], [`SETTLE_MS`](crate::SETTLE_MS),
/// [`WRITTEN_MS`](crate::WRITTEN_MS) and [`STILL_MS`](crate::STILL_MS). The last-good copies say what counted before
/// this reader began. A file that cannot be read is broken, like one that cannot be parsed: it holds up no other.
#[derive(Debug)]
pub struct ManifestReader {
    directory: Directory,
    settle: Settle,
    files: BTreeMap<String, Follow>,
    held: BTreeMap<String, Hold>,
    has_begun: bool,
    has_moved: bool,
}

#[derive(Debug, Default)]
struct Follow {
    /// As read last.
    newest: Option<Newest>,
    /// The version that counts.
    state: Option<ManifestState>,
}

/// The newest version of a file.
#[derive(Debug)]
struct Newest {
    /// `None` for what has no stamp, such as a link to nothing.
    stamp: Option<Stamp>,
    /// When the stamp was first seen.
    stamp_ms: u64,
    version: u64,
    /// When the version was first seen.
    version_ms: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// The text, or why there is none.
    Read(Result<String, String>),
    /// Once it was seen twice.
    Parsed(ManifestState, Given),
    /// It counts.
    Taken,
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
            settle: Settle::default(),
            files: BTreeMap::new(),
            held: BTreeMap::new(),
            has_begun: false,
            has_moved: false,
        }
    }

    /// Looks at the directory once, at this time of a monotonic clock. Returns whether what [`Self::manifests`] or
    /// [`Self::held`] gives has changed.
    pub fn poll(&mut self, now_ms: u64) -> bool {
        let look = self.look(now_ms);
        let Outcome {
            take,
            drop,
            held,
            moved,
        } = self.settle.look(now_ms, look);
        self.has_moved |= moved;
        let changed = !take.is_empty() || !drop.is_empty() || held != self.held;
        for name in take {
            self.take(&name);
        }
        for name in drop {
            self.files.remove(&name);
        }
        self.held = held;
        changed
    }

    /// An error while the directory is not there, or another one is in its place: then nothing may be concluded, nor written.
    pub fn check(&self) -> Result<(), DirectoryError> {
        match self.settle.standing() {
            Standing::Present => Ok(()),
            Standing::Lost(reason) | Standing::Replaced(reason) => Err(DirectoryError::Lost {
                path: self.directory.root().to_owned(),
                reason: reason.clone(),
            }),
        }
    }

    /// Whether another directory counts since the last call: its status files are others too.
    pub fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.has_moved)
    }

    /// Whether every file that was there has been read: what is missing before is not to be taken for removed.
    pub fn is_complete(&self) -> bool {
        self.settle.is_complete()
    }

    /// The manifests whose newest versions do not count, or that are gone and count nevertheless, since objects would be
    /// removed.
    pub fn held(&self) -> &BTreeMap<String, Hold> {
        &self.held
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

    /// Takes the last-good copies for what counts.
    fn begin(&mut self) -> Result<(), DirectoryError> {
        let copies = self.directory.last_good_path("");
        for name in entries(&copies)? {
            // One that cannot be read is as good as none.
            let text = read_to_string(&copies.join(&name)).ok().flatten();
            let objects = text.as_ref().and_then(|text| manifest::parse(text).ok());
            if let (Some(text), Some(objects)) = (text, objects) {
                self.settle.seed(&name, version(&text), ids(&objects));
                let state = ManifestState::of_file(objects, Some(text));
                self.files.entry(name).or_default().state = Some(state);
            }
        }
        self.has_begun = true;
        Ok(())
    }

    fn look(&mut self, now_ms: u64) -> Look {
        self.sights(now_ms).unwrap_or_else(|error| {
            Look::Lost(format!(
                "cannot be read ({error}): mount or create it, or correct --dir"
            ))
        })
    }

    fn sights(&mut self, now_ms: u64) -> io::Result<Look> {
        let path = self.directory.root().to_owned();
        let root = Place::from(&fs::metadata(&path)?);
        if !self.has_begun {
            self.begin().map_err(io::Error::other)?;
        }
        let (mut word, mut files) = (false, BTreeMap::new());
        for name in names(&path)? {
            if name == WORD {
                word = true;
            } else if is_manifest(&name)
                && let Some(sight) = self.sight(now_ms, &path.join(&name), &name)
            {
                files.insert(name.to_string_lossy().into_owned(), sight);
            }
        }
        self.files
            .retain(|name, follow| follow.state.is_some() || files.contains_key(name));
        if Place::from(&fs::metadata(&path)?) != root {
            return Err(io::Error::other("it is being replaced"));
        }
        Ok(Look::Seen { root, word, files })
    }

    /// `None` if the file is gone meanwhile.
    fn sight(&mut self, now_ms: u64, path: &Path, name: &OsStr) -> Option<Sight> {
        let meta = fs::metadata(path);
        if let Err(error) = &meta
            && error.kind() == io::ErrorKind::NotFound
            && fs::symlink_metadata(path).is_err()
        {
            return None;
        }
        let stamp = meta.as_ref().ok().map(Stamp::from);
        let name = name.to_string_lossy();
        let follow = self.files.entry(name.clone().into_owned()).or_default();
        let newest = match follow.newest.take() {
            Some(newest) if newest.is_trusted(stamp, now_ms) => newest,
            before => Newest::read(before, stamp, text(path, &name, meta), now_ms),
        };
        let newest = follow.newest.insert(newest);
        if self.settle.counted(&name) == Some(newest.version) {
            newest.content = Content::Taken;
        } else if newest.version_ms < now_ms {
            newest.parse(&self.directory, &name, follow.state.as_ref());
        }
        let place = newest.stamp.map(|stamp| stamp.place);
        Some(Sight {
            place: place.unwrap_or(Place {
                device: 0,
                inode: 0,
            }),
            version: newest.version,
            given: match &newest.content {
                Content::Parsed(_, given) => given.clone(),
                Content::Read(_) | Content::Taken => Given::Unknown,
            },
        })
    }

    /// The newest version of a file counts.
    fn take(&mut self, name: &str) {
        let follow = self.files.get_mut(name);
        let Some(Follow {
            newest: Some(newest),
            state,
        }) = follow
        else {
            return;
        };
        if let Content::Parsed(newest, _) = std::mem::replace(&mut newest.content, Content::Taken) {
            *state = Some(newest);
        }
    }
}

impl Newest {
    /// Whether a stamp alone says that the content is this one.
    fn is_trusted(&self, stamp: Option<Stamp>, now_ms: u64) -> bool {
        let is_old = now_ms.saturating_sub(self.stamp_ms) >= Stamp::TRUSTED_MS;
        stamp.is_some() && stamp == self.stamp && is_old
    }

    /// The version that was just read, after another one or the same.
    fn read(
        before: Option<Self>,
        stamp: Option<Stamp>,
        text: Result<String, String>,
        now_ms: u64,
    ) -> Self {
        let version = match &text {
            Ok(text) => version(text),
            Err(reason) => !version(reason),
        };
        let stamp_ms = match &before {
            Some(before) if before.stamp == stamp => before.stamp_ms,
            _ => now_ms,
        };
        match before {
            Some(before) if before.version == version => Self {
                stamp,
                stamp_ms,
                ..before
            },
            _ => Self {
                stamp,
                stamp_ms,
                version,
                version_ms: now_ms,
                content: Content::Read(text),
            },
        }
    }

    /// Parses what was not parsed yet. `before` is the version that counts.
    fn parse(&mut self, directory: &Directory, name: &str, before: Option<&ManifestState>) {
        let Content::Read(text) = &mut self.content else {
            return;
        };
        let has_objects = before.is_some_and(|state| !state.objects.is_empty());
        let objects = match text {
            Ok(text) if has_objects && text.trim().is_empty() => {
                let message = "is empty, as while it is being written: to remove its objects remove the file, or leave a \
                               comment in it";
                Err(vec![ManifestError::of_file(message)])
            }
            Ok(text) => manifest::parse(text),
            Err(reason) => Err(vec![ManifestError::of_file(reason.clone())]),
        };
        let (state, given) = match objects {
            Ok(objects) => {
                let given = Given::Objects(ids(&objects));
                let text = std::mem::replace(text, Ok(String::new())).ok();
                (ManifestState::of_file(objects, text), given)
            }
            Err(errors) => {
                let state = ManifestState::broken(directory, name, errors, before);
                let given = Given::Broken(ids(&state.objects));
                (state, given)
            }
        };
        self.content = Content::Parsed(state, given);
    }
}

impl ManifestState {
    fn of_file(objects: Vec<Object>, text: Option<String>) -> Self {
        Self {
            objects,
            errors: Vec::new(),
            source: Source::File,
            text,
        }
    }

    /// The version before stands in for a broken one.
    fn broken(
        directory: &Directory,
        name: &str,
        errors: Vec<ManifestError>,
        before: Option<&Self>,
    ) -> Self {
        let last_good = before
            .filter(|state| state.source != Source::Nothing)
            .map(|state| state.objects.clone())
            .or_else(|| {
                let text = read_to_string(&directory.last_good_path(name)).ok()??;
                manifest::parse(&text).ok()
            });
        Self {
            source: if last_good.is_some() {
                Source::LastGood
            } else {
                Source::Nothing
            },
            objects: last_good.unwrap_or_default(),
            errors,
            text: None,
        }
    }
}

fn is_manifest(name: &OsStr) -> bool {
    let extension = Path::new(name).extension();
    extension.is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn version(text: &str) -> u64 {
    fnv(text.as_bytes())
}

fn ids(objects: &[Object]) -> Ids {
    let ids = objects.iter().map(|object| (object.kind(), object.key()));
    Arc::new(ids.collect())
}

/// The text of a manifest, or why there is none, with the remedy.
fn text(path: &Path, name: &str, meta: io::Result<fs::Metadata>) -> Result<String, String> {
    if path.file_name().and_then(OsStr::to_str) != Some(name) {
        return Err("its name is not UTF-8: rename it".to_owned());
    }
    let meta = meta.map_err(|error| unreadable(&error))?;
    if !meta.is_file() {
        return Err("is no file: give a file with manifests, or rename or remove it".to_owned());
    }
    let max = MAX_MANIFEST_BYTES as u64;
    if meta.len() > max {
        return Err(manifest::too_large());
    }
    // One byte more, so that a file which grows is refused and not cut.
    read_text(path, max + 1).map_err(|error| unreadable(&error))
}

fn unreadable(error: &io::Error) -> String {
    if is_loop(error) {
        return "is a link that leads in a circle: correct or remove it".to_owned();
    }
    match error.kind() {
        io::ErrorKind::NotADirectory => {
            "is a link that leads through a file: correct or remove it".to_owned()
        }
        io::ErrorKind::NotFound => {
            "is a link to a file that is not there: correct or remove it, or bring the file back"
                .to_owned()
        }
        io::ErrorKind::InvalidData => "is not UTF-8 text: convert it".to_owned(),
        _ => format!("cannot be read ({error}): correct or remove it"),
    }
}

#[cfg(test)]
#[path = "manifests_tests.rs"]
mod tests;
