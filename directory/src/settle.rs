//! Decides which versions of manifests count. Pure: time is an argument, and a look says all that was seen.
//!
//! ```text
//! look ─► which files are new, changed, gone ─► are they settled? ─► do objects get lost? ─► they count, or are held
//! ```
//!
//! A look may meet a directory at any moment: while an editor writes, while somebody copies file by file, or after it was
//! unmounted. Losing the directory must not look like a wish to remove all that was in it. So:
//!
//! 1. A file's new version counts once it has stayed the same for [`SETTLE_MS`], or for [`WRITTEN_MS`] if it was written in
//!    place: there, a version may be a part of the one to come.
//! 2. A version without an object that is in force, or a file that is gone, is a *removal*, unless another file gives the
//!    object. It counts once nothing in the directory has changed for [`STILL_MS`]. Where something else changes all the
//!    time, it counts once the object has been missing for [`RESTLESS_MS`].
//! 3. A removal after which no object would be left needs the user's word: the file [`WORD`].
//! 4. Another directory at the same path (a file system that was mounted or unmounted, a directory that was renamed) counts
//!    as a whole: once it has been still, and lacks no object that is in force, or has the user's word.
//! 5. While the directory cannot be read nothing counts.
//!
//! A broken version takes no object away: those of the version before stay.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluice_api::{Kind, ObjectKey};

/// A version of a file that replaced another one as a whole counts when it has been seen for so long.
pub const SETTLE_MS: u64 = 90;
/// A version of a file that was written in place counts when it has been seen for so long.
pub const WRITTEN_MS: u64 = 3_000;
/// A removal counts when nothing in the directory has changed for so long.
pub const STILL_MS: u64 = 5_000;
/// A removal counts after this time though other files change all the time.
pub const RESTLESS_MS: u64 = 60_000;
/// Name of the file in the directory that says: what is missing is to be removed, even if nothing is left.
pub const WORD: &str = "remove-everything";

/// An object.
pub(crate) type Id = (Kind, ObjectKey);
/// The objects that a file gives.
pub(crate) type Ids = Arc<BTreeSet<Id>>;

/// Tells a file or directory from another one at the same path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Place {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// The result of one look at the directory.
#[derive(Clone, Debug)]
pub(crate) enum Look {
    /// It could not be read; the reason.
    Lost(String),
    /// It was read.
    Seen {
        /// The directory.
        root: Place,
        /// Whether [`WORD`] is there.
        word: bool,
        /// All manifests.
        files: BTreeMap<String, Sight>,
    },
}

/// A file as it was seen.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Sight {
    pub(crate) place: Place,
    /// Tells its content from another one.
    pub(crate) version: u64,
    pub(crate) given: Given,
}

/// The objects of a version.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Given {
    /// It has not been parsed: it was seen for the first time, or counts already.
    Unknown,
    /// It cannot be read or parsed. Where no version of the file counts yet, its last-good copy gives these.
    Broken(Ids),
    /// These.
    Objects(Ids),
}

/// Whether the directory is the one whose files count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// It is.
    Present,
    /// It is not there, or cannot be read; the reason and the remedy.
    Lost(String),
    /// Another one is in its place; what it waits for.
    Replaced(String),
}

/// Why a version of a file does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// It takes objects away, and the directory has not been still for long enough.
    Still,
    /// No object would be left.
    Everything,
}

/// The conclusions from a look.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Outcome {
    /// The newest versions of these files count from now on.
    pub(crate) take: Vec<String>,
    /// These files are gone, and so are their objects.
    pub(crate) drop: Vec<String>,
    /// The newest versions of these files, or that they are gone, do not count, since they take objects away.
    pub(crate) held: BTreeMap<String, Hold>,
    /// Another directory counts from now on.
    pub(crate) moved: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Settle {
    files: BTreeMap<String, File>,
    /// The directory whose files count.
    root: Option<Place>,
    /// The directory that was seen last; `None` before the first look and while it is lost.
    seen: Option<Place>,
    word: bool,
    standing: Standing,
    began_ms: Option<u64>,
    is_complete: bool,
    /// When anything last differed from the look before.
    changed_ms: u64,
    /// Since when objects in force have been missing from the newest versions.
    missing: BTreeMap<Id, u64>,
}

#[derive(Debug, Default)]
struct File {
    counted: Option<Version>,
    /// `None` when the last look missed it.
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Version {
    version: u64,
    ids: Ids,
}

#[derive(Debug)]
struct Seen {
    sight: Sight,
    since_ms: u64,
    in_place: bool,
}

/// A change of the version that counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Take,
    Drop,
}

impl Default for Settle {
    fn default() -> Self {
        Self {
            files: BTreeMap::new(),
            root: None,
            seen: None,
            word: false,
            standing: Standing::Present,
            began_ms: None,
            is_complete: false,
            changed_ms: 0,
            missing: BTreeMap::new(),
        }
    }
}

impl Settle {
    /// A file's version that counted before this process began.
    pub(crate) fn seed(&mut self, name: &str, version: u64, ids: Ids) {
        let file = self.files.entry(name.to_owned()).or_default();
        file.counted = Some(Version { version, ids });
    }

    /// Draws the conclusions from a look.
    pub(crate) fn look(&mut self, now_ms: u64, look: Look) -> Outcome {
        let began_ms = *self.began_ms.get_or_insert(now_ms);
        let (root, word, files) = match look {
            Look::Seen { root, word, files } => (root, word, files),
            Look::Lost(reason) => {
                self.standing = Standing::Lost(reason);
                self.seen = None;
                self.missing.clear();
                return Outcome::default();
            }
        };
        self.note(now_ms, root, word, files);
        let outcome = if *self.root.get_or_insert(root) == root {
            self.standing = Standing::Present;
            self.judge(now_ms)
        } else {
            self.missing.clear();
            self.judge_replaced(now_ms, root)
        };
        self.apply(&outcome);
        // A directory that never gave an object says nothing: it may be the mount point of one that does.
        let says_something = self.word || self.counted_ids().next().is_some();
        let is_late = now_ms.saturating_sub(began_ms) >= STILL_MS;
        let is_read = is_late || self.files.values().all(|file| file.counted.is_some());
        self.is_complete |= self.standing == Standing::Present && says_something && is_read;
        outcome
    }

    /// Whether the directory can be read, and is the one whose files count.
    pub(crate) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// The version of a file that counts.
    pub(crate) fn counted(&self, name: &str) -> Option<u64> {
        let counted = self.files.get(name)?.counted.as_ref()?;
        Some(counted.version)
    }

    /// Whether all that was there has been read once, so that what is missing is not there.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    fn counted_ids(&self) -> impl Iterator<Item = &Id> {
        let counted = self.files.values().filter_map(|file| file.counted.as_ref());
        counted.flat_map(|version| version.ids.iter())
    }

    /// Notes how this look differs from the one before.
    fn note(&mut self, now_ms: u64, root: Place, word: bool, mut sights: BTreeMap<String, Sight>) {
        let is_back = self.seen != Some(root);
        let mut changed = is_back || self.word != word;
        self.seen = Some(root);
        self.word = word;
        for name in sights.keys() {
            if !self.files.contains_key(name) {
                self.files.insert(name.clone(), File::default());
            }
        }
        for (name, file) in &mut self.files {
            changed |= file.note(now_ms, sights.remove(name));
            // The time during which nobody could look does not count.
            if let (Some(seen), true) = (&mut file.seen, is_back) {
                seen.since_ms = now_ms;
            }
        }
        self.files
            .retain(|_, file| file.counted.is_some() || file.seen.is_some());
        if changed {
            self.changed_ms = now_ms;
        }
    }

    fn is_still(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.changed_ms) >= STILL_MS
    }

    /// Another directory is where the one was whose files count.
    fn judge_replaced(&mut self, now_ms: u64, root: Place) -> Outcome {
        if !self.is_still(now_ms) {
            self.standing = Standing::Replaced(format!(
                "another directory is in its place: it counts once nothing in it has changed for {} s",
                STILL_MS / 1000
            ));
            return Outcome::default();
        }
        let steps = self.steps(now_ms);
        let lost = self.lost(&steps);
        if let Some((kind, key)) = lost.first()
            && !self.word
        {
            let count = lost.len();
            self.standing = Standing::Replaced(format!(
                "another directory is in its place, and {count} objects are missing there, such as {kind} {key}: nothing in it \
                 counts; bring the directory back, or add what is missing, or create the file {WORD} in it if that is to be removed"
            ));
            return Outcome::default();
        }
        self.root = Some(root);
        self.standing = Standing::Present;
        Outcome {
            moved: true,
            ..Outcome::of(&steps, BTreeMap::new())
        }
    }

    fn judge(&mut self, now_ms: u64) -> Outcome {
        let steps = self.steps(now_ms);
        let lost = self.lost(&steps);
        if lost.is_empty() {
            self.missing.clear();
            return Outcome::of(&steps, BTreeMap::new());
        }
        if !self.word && self.ids_after(&steps).next().is_none() {
            // What looked like this for a while and then less so has not been missing for long.
            self.missing.clear();
            return self.hold(steps, Hold::Everything);
        }
        self.missing.retain(|id, _| lost.contains(id));
        for id in lost {
            self.missing.entry(id).or_insert(now_ms);
        }
        let is_old = |since_ms: &u64| now_ms.saturating_sub(*since_ms) >= RESTLESS_MS;
        if self.is_still(now_ms) || self.missing.values().all(is_old) {
            return Outcome::of(&steps, BTreeMap::new());
        }
        self.hold(steps, Hold::Still)
    }

    /// All changes but those that take objects away, and those that are needed for others to take none away.
    fn hold(&self, mut steps: BTreeMap<String, Step>, why: Hold) -> Outcome {
        let mut held = BTreeMap::new();
        loop {
            let lost = self.lost(&steps);
            let is_loser = |name: &String| {
                let counted = self.files.get(name).and_then(|file| file.counted.as_ref());
                counted.is_some_and(|version| !version.ids.is_disjoint(&lost))
            };
            let losers: Vec<String> = steps
                .keys()
                .filter(|name| is_loser(name))
                .cloned()
                .collect();
            if losers.is_empty() {
                return Outcome::of(&steps, held);
            }
            for name in losers {
                steps.remove(&name);
                held.insert(name, why);
            }
        }
    }

    /// The settled changes.
    fn steps(&self, now_ms: u64) -> BTreeMap<String, Step> {
        let steps = self.files.iter();
        let steps = steps.filter_map(|(name, file)| Some((name.clone(), file.step(now_ms)?)));
        steps.collect()
    }

    /// The objects that would be in force after these changes.
    fn ids_after(&self, steps: &BTreeMap<String, Step>) -> impl Iterator<Item = &Id> {
        let files = self.files.iter();
        files
            .filter_map(|(name, file)| file.ids_after(steps.get(name).copied()))
            .flat_map(|ids| ids.iter())
    }

    /// The objects in force that would not be after these changes.
    fn lost(&self, steps: &BTreeMap<String, Step>) -> BTreeSet<Id> {
        if steps.is_empty() {
            return BTreeSet::new();
        }
        let after: BTreeSet<&Id> = self.ids_after(steps).collect();
        let lost = self.counted_ids().filter(|id| !after.contains(id));
        lost.cloned().collect()
    }

    fn apply(&mut self, outcome: &Outcome) {
        for name in &outcome.take {
            if let Some(file) = self.files.get_mut(name) {
                file.take();
            }
        }
        for name in &outcome.drop {
            self.files.remove(name);
        }
    }
}

impl File {
    /// Returns whether it differs from the look before.
    fn note(&mut self, now_ms: u64, sight: Option<Sight>) -> bool {
        let Some(sight) = sight else {
            return self.seen.take().is_some();
        };
        if let Some(seen) = &mut self.seen
            && seen.sight.version == sight.version
        {
            seen.sight = sight;
            return false;
        }
        let before = self.seen.as_ref().map(|seen| seen.sight.place);
        // One that was missing in between may have been made anew and be written piece by piece.
        let is_same = before.is_none_or(|before| before == sight.place);
        self.seen = Some(Seen {
            in_place: self.counted.is_some() && is_same,
            sight,
            since_ms: now_ms,
        });
        true
    }

    fn step(&self, now_ms: u64) -> Option<Step> {
        let Some(seen) = &self.seen else {
            return self.counted.is_some().then_some(Step::Drop);
        };
        let counted = self.counted.as_ref();
        if counted.is_some_and(|counted| counted.version == seen.sight.version) {
            return None;
        }
        let settle_ms = match seen.sight.given {
            Given::Unknown => return None,
            Given::Objects(_) if seen.in_place => WRITTEN_MS,
            Given::Objects(_) | Given::Broken(_) => SETTLE_MS,
        };
        let is_settled = now_ms.saturating_sub(seen.since_ms) >= settle_ms;
        is_settled.then_some(Step::Take)
    }

    fn ids_after(&self, step: Option<Step>) -> Option<&Ids> {
        let counted = self.counted.as_ref().map(|version| &version.ids);
        match (step, self.seen.as_ref().map(|seen| &seen.sight.given)) {
            (Some(Step::Drop), _) => None,
            (Some(Step::Take), Some(Given::Objects(ids))) => Some(ids),
            (Some(Step::Take), Some(Given::Broken(ids))) => counted.or(Some(ids)),
            (Some(Step::Take) | None, _) => counted,
        }
    }

    fn take(&mut self) {
        let ids = self.ids_after(Some(Step::Take)).cloned();
        if let Some(seen) = &self.seen {
            self.counted = Some(Version {
                version: seen.sight.version,
                ids: ids.unwrap_or_default(),
            });
        }
    }
}

impl Outcome {
    fn of(steps: &BTreeMap<String, Step>, held: BTreeMap<String, Hold>) -> Self {
        let due = |wanted: Step| -> Vec<String> {
            let due = steps.iter().filter(|(_, step)| **step == wanted);
            due.map(|(name, _)| name.clone()).collect()
        };
        Self {
            take: due(Step::Take),
            drop: due(Step::Drop),
            held,
            moved: false,
        }
    }
}

#[cfg(test)]
#[path = "settle_tests.rs"]
mod tests;
