use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::settle::{RESTLESS_MS, SETTLE_MS, STILL_MS, WRITTEN_MS};
use crate::write_atomically;

/// A directory, its reader, and the time in the test's hand.
struct Watch {
    path: PathBuf,
    reader: ManifestReader,
    now_ms: u64,
}

impl Watch {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-manifests-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(path.join(".status/last-good")).expect("temporary directory");
        Self {
            reader: ManifestReader::new(Directory::new(&path)),
            path,
            now_ms: 0,
        }
    }

    /// A reader that starts now.
    fn restart(&mut self) {
        self.reader = ManifestReader::new(Directory::new(&self.path));
    }

    /// Replaces a file as a whole.
    fn put(&self, name: &str, text: &str) {
        write_atomically(&self.path.join(name), text.as_bytes()).expect("write");
    }

    /// As a shell's `>`.
    fn write_in_place(&self, name: &str, text: &str) {
        fs::write(self.path.join(name), text).expect("write");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path.join(name)).expect("remove");
    }

    /// Looks ten times a second.
    fn pass(&mut self, ms: u64) -> Vec<String> {
        for _ in 0..ms / 100 {
            self.now_ms += 100;
            self.reader.poll(self.now_ms);
        }
        self.names()
    }

    fn settle(&mut self) -> Vec<String> {
        self.pass(STILL_MS + 1_000)
    }

    /// The objects in force.
    fn names(&self) -> Vec<String> {
        let in_force = self.reader.in_force();
        in_force
            .objects
            .iter()
            .map(|object| object.key().name)
            .collect()
    }

    fn error(&self, file: &str) -> String {
        let mut manifests = self.reader.manifests();
        let (_, state) = manifests
            .find(|(name, _)| *name == file)
            .expect("is followed");
        state.errors.iter().map(ToString::to_string).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn pool(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: sluice.dev/v1alpha1\nkind: RealServerPool\nmetadata: {{name: {name}}}\n\
         spec: {{servers: {{static: [{{name: a, address: {address}}}]}}}}\n"
    )
}

fn two() -> Watch {
    let mut watch = Watch::new();
    watch.put("a.yaml", &pool("a", "10.0.0.1"));
    watch.put("b.yaml", &pool("b", "10.0.0.2"));
    assert_eq!(watch.pass(300), ["a", "b"]);
    watch
}

#[test]
fn a_new_or_replaced_file_counts_when_it_has_been_seen_twice() {
    let mut watch = Watch::new();
    watch.put("notes.txt", "x: [");
    watch.put("a.yaml", &pool("a", "10.0.0.1"));
    assert!(watch.pass(100).is_empty() && !watch.reader.is_complete());
    assert_eq!(watch.pass(100), ["a"]);
    assert!(watch.reader.is_complete());
    watch.put(
        "a.yaml",
        &format!("{}{}", pool("a", "10.0.0.1"), pool("b", "10.0.0.2")),
    );
    assert_eq!(watch.pass(100), ["a"]);
    assert_eq!(watch.pass(100), ["a", "b"]);
    const { assert!(SETTLE_MS < 100) };
}

#[test]
fn a_removal_counts_when_the_directory_has_been_still() {
    let mut watch = two();
    watch.remove("a.yaml");
    assert_eq!(watch.pass(STILL_MS - 100), ["a", "b"]);
    // Something else changes.
    watch.put("c.yaml", &pool("c", "10.0.0.3"));
    assert_eq!(watch.pass(STILL_MS - 100), ["a", "b", "c"]);
    assert_eq!(watch.pass(500), ["b", "c"]);
    // One of a file's objects.
    watch.put("b.yaml", &pool("d", "10.0.0.2"));
    assert_eq!(watch.pass(STILL_MS - 100), ["b", "c"]);
    assert_eq!(watch.pass(500), ["d", "c"]);
}

#[test]
fn a_removal_counts_though_another_file_changes_all_the_time() {
    let mut watch = two();
    watch.remove("a.yaml");
    for i in 0..(RESTLESS_MS - 1_000) / 1_000 {
        watch.put("b.yaml", &pool("b", &format!("10.0.1.{i}")));
        assert_eq!(watch.pass(1_000), ["a", "b"]);
    }
    for i in 0..4 {
        watch.put("b.yaml", &pool("b", &format!("10.0.2.{i}")));
        watch.pass(1_000);
    }
    assert_eq!(watch.names(), ["b"]);
}

#[test]
fn an_object_that_moves_to_another_file_is_not_removed() {
    let mut watch = two();
    watch.put("a.yaml", "# moved\n");
    watch.put("z.yaml", &pool("a", "10.0.0.9"));
    assert_eq!(watch.pass(300), ["b", "a"]);
    assert!(watch.reader.in_force().duplicates.is_empty());
}

#[test]
fn an_object_whose_new_file_is_held_stays_in_the_old_one() {
    let mut watch = two();
    watch.remove("a.yaml");
    watch.put("b.yaml", &pool("a", "10.0.0.9"));
    assert_eq!(watch.pass(STILL_MS - 100), ["a", "b"]);
    assert_eq!(watch.pass(500), ["a"]);
}

#[test]
fn a_file_that_is_truncated_and_filled_later_costs_nothing() {
    let mut watch = two();
    let long = format!("{}{}", pool("a", "10.0.0.1"), pool("c", "10.0.0.3"));
    watch.put("a.yaml", &long);
    assert_eq!(watch.pass(300), ["a", "c", "b"]);
    let new = long.replace("10.0.0.1", "10.0.0.11");
    // Also if the writer never goes on.
    for pause in [200, 2_000, WRITTEN_MS + STILL_MS] {
        watch.write_in_place("a.yaml", "");
        assert_eq!(watch.pass(pause), ["a", "c", "b"], "{pause} ms");
    }
    for end in [10, new.len() / 2, new.len() - 20] {
        watch.write_in_place("a.yaml", &new[..end]);
        assert_eq!(watch.pass(2_000), ["a", "c", "b"], "{end} bytes");
    }
    watch.write_in_place("a.yaml", &new);
    watch.pass(WRITTEN_MS + 300);
    let text = watch
        .reader
        .manifests()
        .find_map(|(_, state)| state.text.clone());
    assert_eq!(text, Some(new));
}

#[test]
fn a_part_of_a_file_that_is_written_in_place_does_not_count() {
    let mut watch = two();
    let text = |servers: &str| pool("a", "10.0.0.1").replace("}]}}", &format!("}}{servers}]}}}}"));
    watch.write_in_place("a.yaml", &pool("a", "10.0.0.7"));
    watch.pass(WRITTEN_MS - 200);
    watch.write_in_place("a.yaml", &text(", {name: b, address: 10.0.0.8}"));
    watch.pass(WRITTEN_MS - 200);
    let servers = |watch: &Watch| {
        let in_force = watch.reader.in_force();
        let Object::RealServerPool(pool) = in_force.objects[0] else {
            panic!("{in_force:?}");
        };
        pool.spec.servers.static_servers.len()
    };
    assert_eq!(servers(&watch), 1);
    watch.pass(500);
    assert_eq!(servers(&watch), 2);
}

#[test]
fn the_loss_of_everything_needs_the_users_word() {
    let mut watch = two();
    watch.remove("a.yaml");
    watch.remove("b.yaml");
    assert_eq!(watch.pass(2 * RESTLESS_MS), ["a", "b"]);
    let held: Vec<_> = watch.reader.held().iter().collect();
    let everything = &Hold::Everything;
    assert_eq!(
        held,
        [
            (&"a.yaml".to_owned(), everything),
            (&"b.yaml".to_owned(), everything)
        ]
    );
    watch.put("b.yaml", "# nothing\n");
    assert_eq!(watch.settle(), ["a", "b"]);
    watch.put("b.yaml", &pool("b", "10.0.0.2"));
    assert_eq!(watch.settle(), ["b"]);
    watch.remove("b.yaml");
    watch.put(WORD, "");
    assert_eq!(watch.pass(STILL_MS - 200), ["b"]);
    assert!(watch.settle().is_empty());
    assert!(watch.reader.is_complete());
    watch.remove(WORD);
    watch.put("a.yaml", &pool("a", "10.0.0.1"));
    assert_eq!(watch.settle(), ["a"]);
}

#[test]
fn another_directory_in_its_place_removes_nothing() {
    let mut watch = two();
    let (path, aside) = (watch.path.clone(), watch.path.with_extension("aside"));
    let _ = fs::remove_dir_all(&aside);
    fs::rename(&path, &aside).expect("rename");
    assert_eq!(watch.settle(), ["a", "b"]);
    let reason = watch.reader.check().expect_err("lost").to_string();
    assert!(reason.contains("mount or create it"), "{reason}");
    // Empty, as a mount point is; then with one object too few.
    fs::create_dir(&path).expect("create");
    assert_eq!(watch.settle(), ["a", "b"]);
    watch.put("a.yaml", &pool("a", "10.0.0.9"));
    assert_eq!(watch.settle(), ["a", "b"]);
    let reason = watch.reader.check().expect_err("replaced").to_string();
    assert!(
        reason.contains("1 objects are missing there, such as RealServerPool default/b"),
        "{reason}"
    );
    // Complete: it counts once it has been still.
    watch.put("b.yaml", &pool("b", "10.0.0.9"));
    assert_eq!(watch.pass(STILL_MS - 200), ["a", "b"]);
    assert!(watch.reader.check().is_err() && !watch.reader.take_moved());
    watch.pass(500);
    assert!(watch.reader.check().is_ok() && watch.reader.take_moved());
    watch.remove("b.yaml");
    assert_eq!(watch.settle(), ["a"]);
    // With the user's word it counts whatever is missing.
    fs::remove_dir_all(&path).expect("remove");
    fs::rename(&aside, &path).expect("rename");
    watch.remove("a.yaml");
    watch.put(WORD, "");
    assert_eq!(watch.settle(), ["b"]);
}

#[test]
fn what_counted_before_a_restart_counts_after_it() {
    let mut watch = two();
    for name in ["a.yaml", "b.yaml"] {
        let text = fs::read_to_string(watch.path.join(name)).expect("there");
        watch.put(&format!(".status/last-good/{name}"), &text);
    }
    watch.remove("a.yaml");
    watch.restart();
    assert_eq!(watch.pass(STILL_MS - 100), ["a", "b"]);
    assert!(watch.reader.is_complete());
    watch.remove("b.yaml");
    watch.restart();
    assert_eq!(watch.settle(), ["a", "b"]);
    watch.put("b.yaml", &pool("b", "10.0.0.2"));
    assert_eq!(watch.settle(), ["b"]);
}

#[test]
fn a_broken_manifest_is_replaced_by_its_last_good_copy() {
    let mut watch = Watch::new();
    watch.put("a.yaml", "kind: [");
    watch.put(".status/last-good/a.yaml", &pool("a", "10.0.0.1"));
    watch.put("b.yaml", "kind: [");
    assert_eq!(watch.pass(300), ["a"]);
    let states: Vec<_> = watch
        .reader
        .manifests()
        .map(|(_, s)| (s.source, s.errors.len()))
        .collect();
    assert_eq!(states, [(Source::LastGood, 1), (Source::Nothing, 1)]);
    watch.put("b.yaml", &pool("b", "10.0.0.2"));
    assert_eq!(watch.pass(300), ["a", "b"]);
    watch.put("b.yaml", "kind: [[");
    assert_eq!(watch.pass(300), ["a", "b"]);
}

#[test]
fn an_edit_of_the_same_size_and_time_is_an_edit() {
    let mut watch = two();
    let path = watch.path.join("a.yaml");
    for (i, pause) in [0, 100, Stamp::TRUSTED_MS + 1_000].into_iter().enumerate() {
        watch.settle();
        let modified = fs::metadata(&path)
            .and_then(|meta| meta.modified())
            .expect("time");
        watch.pass(pause);
        // Long enough for the clock of the file system to go on where the stamp is trusted.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let text = pool("a", &format!("10.0.0.{}", i + 3));
        watch.write_in_place("a.yaml", &text);
        let file = fs::File::options().write(true).open(&path).expect("open");
        file.set_modified(modified).expect("time");
        watch.pass(WRITTEN_MS + 300);
        let first = watch
            .reader
            .manifests()
            .find_map(|(_, state)| state.text.clone());
        assert_eq!(first, Some(text), "{pause} ms");
    }
}

#[test]
fn no_entry_holds_up_the_others() {
    let mut watch = two();
    let path = |name: &str| watch.path.join(name);
    symlink("loop.yaml", path("loop.yaml")).expect("link");
    symlink("a.yaml/x", path("through.yaml")).expect("link");
    symlink("nowhere", path("nothing.yaml")).expect("link");
    symlink("/dev/zero", path("zero.yaml")).expect("link");
    fs::create_dir(path("directory.yaml")).expect("directory");
    fs::write(path("binary.yaml"), [0xff, 0xfe]).expect("write");
    fs::write(path("large.yaml"), vec![b' '; MAX_MANIFEST_BYTES + 1]).expect("write");
    let long = format!("{}.yaml", "l".repeat(250));
    fs::write(path(&long), pool("long", "10.0.0.4")).expect("write");
    let odd = OsStr::from_bytes(b"odd\xff.yaml");
    fs::write(watch.path.join(odd), pool("odd", "10.0.0.5")).expect("write");
    let pipe = Command::new("mkfifo").arg(path("pipe.yaml")).status();
    assert!(pipe.expect("mkfifo").success());
    let documents: String = (0..1_100)
        .map(|i| pool(&format!("d{i}"), "10.0.0.6"))
        .collect();
    fs::write(path("many.yaml"), documents).expect("write");
    fs::write(
        path("values.yaml"),
        format!("a: [{}]", "1,".repeat(300_000)),
    )
    .expect("write");
    fs::write(
        path("deep.yaml"),
        format!("a: {}{}", "[".repeat(70), "]".repeat(70)),
    )
    .expect("write");
    fs::write(path("name.yaml"), pool(&"n".repeat(241), "10.0.0.7")).expect("write");
    assert_eq!(watch.pass(300), ["a", "b", "long"]);
    for (file, words) in [
        ("loop.yaml", "leads in a circle"),
        ("through.yaml", "leads through a file"),
        ("nothing.yaml", "a file that is not there"),
        ("zero.yaml", "is no file"),
        ("directory.yaml", "is no file"),
        ("pipe.yaml", "is no file"),
        ("binary.yaml", "is not UTF-8 text"),
        ("large.yaml", "larger than 4194304 bytes: split it"),
        ("odd\u{fffd}.yaml", "its name is not UTF-8: rename it"),
        ("many.yaml", "more than 1024 documents: split it"),
        ("values.yaml", "more than 250000 values: split it"),
        ("deep.yaml", "nested more than 64 deep"),
        ("name.yaml", "metadata.name: must be"),
    ] {
        let error = watch.error(file);
        assert!(error.contains(words), "{file}: {error}");
    }
    // What a link led to is gone, as with a file system that was unmounted.
    fs::rename(watch.path.join("b.yaml"), watch.path.join("b.txt")).expect("rename");
    symlink("b.txt", watch.path.join("b.yaml")).expect("link");
    assert_eq!(watch.settle(), ["a", "b", "long"]);
    watch.remove("b.txt");
    assert_eq!(watch.settle(), ["a", "b", "long"]);
    watch.remove("a.yaml");
    assert_eq!(watch.settle(), ["b", "long"]);
}
