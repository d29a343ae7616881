use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Time between two looks.
const LOOK_MS: u64 = 200;

/// A directory as it stands for a while; `None`: it cannot be read.
type Scene = Option<Scenery>;

#[derive(Clone, PartialEq, Debug)]
struct Scenery {
    root: u64,
    word: bool,
    /// Content of each file; `None`: there is no such file.
    files: Vec<Option<u64>>,
    /// Whether files are replaced as a whole.
    replaced: bool,
}

/// The objects of a content; `None`: it is broken.
fn objects(content: u64) -> Option<BTreeSet<Id>> {
    let names: &[&str] = match content {
        0 => &[],
        1 => &["a"],
        2 => &["b"],
        3 => &["a", "b"],
        4 => &["c"],
        _ => return None,
    };
    let ids = names
        .iter()
        .map(|name| (Kind::VirtualServer, ObjectKey::new("n", *name)));
    Some(ids.collect())
}

impl Scenery {
    fn given(&self) -> BTreeSet<Id> {
        let contents = self.files.iter().flatten();
        contents
            .filter_map(|content| objects(*content))
            .flatten()
            .collect()
    }

    fn look(&self) -> Look {
        let files = self.files.iter().enumerate().filter_map(|(i, content)| {
            let content = (*content)?;
            let inode = if self.replaced { content } else { 100 };
            let sight = Sight {
                place: Place { device: 1, inode },
                version: content,
                given: objects(content).map_or(Given::Broken(Ids::default()), |ids| {
                    Given::Objects(Arc::new(ids))
                }),
            };
            Some((format!("{i}.yaml"), sight))
        });
        Look::Seen {
            root: Place {
                device: self.root,
                inode: 1,
            },
            word: self.word,
            files: files.collect(),
        }
    }
}

fn look(scene: &Scene) -> Look {
    let lost = || Look::Lost("gone".to_owned());
    scene.as_ref().map_or_else(lost, Scenery::look)
}

fn in_force(settle: &Settle) -> BTreeSet<Id> {
    settle.counted_ids().cloned().collect()
}

fn scenery() -> impl Strategy<Value = Scenery> {
    let file = prop_oneof![1 => Just(None), 3 => (0_u64..6).prop_map(Some)];
    let root = prop_oneof![6 => Just(1_u64), 1 => Just(2)];
    let word = prop_oneof![6 => Just(false), 1 => Just(true)];
    (root, word, prop::collection::vec(file, 3), any::<bool>()).prop_map(
        |(root, word, files, replaced)| Scenery {
            root,
            word,
            files,
            replaced,
        },
    )
}

/// Scenes, and how many looks each lasts.
fn scenes() -> impl Strategy<Value = Vec<(Scene, u64)>> {
    let scene = prop_oneof![5 => scenery().prop_map(Some), 1 => Just(None)];
    prop::collection::vec(
        (scene, select(vec![1, 2, 5, 14, 16, 24, 26, 40, 330])),
        1..24,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_is_removed_but_by_a_directory_that_is_still_and_says_so(scenes in scenes()) {
        let mut settle = Settle::default();
        let mut now_ms = 0;
        // When the scene began, and when each object was last given, or could not be looked for.
        let mut began_ms = 0;
        let mut given_ms: BTreeMap<Id, u64> = BTreeMap::new();
        let mut last = None;
        for (scene, looks) in scenes {
            let seen = scene.as_ref().map(|scenery| (scenery.root, scenery.word, scenery.files.clone()));
            if last.as_ref() != Some(&seen) {
                began_ms = now_ms + LOOK_MS;
            }
            last = Some(seen);
            for _ in 0..looks {
                now_ms += LOOK_MS;
                let before = in_force(&settle);
                settle.look(now_ms, look(&scene));
                let after = in_force(&settle);
                let mut removed = before.difference(&after);
                let Some(scenery) = &scene else {
                    prop_assert!(removed.next().is_none());
                    for last_ms in given_ms.values_mut() {
                        *last_ms = now_ms;
                    }
                    continue;
                };
                for id in scenery.given() {
                    given_ms.insert(id, now_ms);
                }
                for id in removed {
                    let missing_ms = now_ms - given_ms.get(id).copied().unwrap_or(0);
                    prop_assert!(now_ms - began_ms >= STILL_MS || missing_ms >= RESTLESS_MS, "{id:?} at {now_ms}");
                    prop_assert!(!scenery.given().contains(id), "{id:?} at {now_ms}");
                    prop_assert!(!after.is_empty() || scenery.word, "everything at {now_ms}");
                }
            }
        }
    }

    #[test]
    fn a_directory_that_stays_counts_as_it_is(scenes in scenes(), files in prop::collection::vec(prop::option::of(0_u64..5), 3)) {
        let mut settle = Settle::default();
        let mut now_ms = 0;
        let scenery = Scenery { root: 3, word: true, files, replaced: true };
        for (scene, looks) in scenes.into_iter().chain([(Some(scenery.clone()), STILL_MS / LOOK_MS + 2)]) {
            for _ in 0..looks {
                now_ms += LOOK_MS;
                settle.look(now_ms, look(&scene));
            }
        }
        prop_assert_eq!(in_force(&settle), scenery.given());
        prop_assert_eq!(settle.standing(), &Standing::Present);
    }

    #[test]
    fn what_is_added_counts_at_the_second_look(scenes in scenes(), content in 1_u64..5) {
        let mut settle = Settle::default();
        let mut now_ms = 0;
        let scenery = Scenery { root: 1, word: false, files: vec![Some(1); 3], replaced: true };
        let begin = [(Some(scenery.clone()), 3)];
        // Whatever has happened in the directory itself.
        let here = scenes.into_iter().filter(|(scene, _)| scene.as_ref().is_some_and(|scene| scene.root == 1));
        let mut last = scenery;
        for (scene, looks) in begin.into_iter().chain(here) {
            for _ in 0..looks {
                now_ms += LOOK_MS;
                settle.look(now_ms, look(&scene));
            }
            last = scene.unwrap_or(last);
        }
        last.files.push(Some(content));
        for _ in 0..2 {
            now_ms += LOOK_MS;
            settle.look(now_ms, last.look());
        }
        let added = objects(content).unwrap_or_default();
        prop_assert!(in_force(&settle).is_superset(&added));
    }
}
