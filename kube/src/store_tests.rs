use super::*;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn item<T>(name: &str, uid: &str, version: u64, content: Result<T, &str>) -> Item<T> {
    Item {
        key: key(name),
        stamp: Stamp {
            uid: uid.to_owned(),
            version,
        },
        content: content.map_err(str::to_owned),
    }
}

fn stamp(uid: &str, version: u64) -> Stamp {
    item::<()>("", uid, version, Ok(())).stamp
}

fn listed(items: &[(&str, u64, i32)]) -> Store<i32> {
    let mut store = Store::default();
    let item = |(name, version, value): &(&str, u64, i32)| item(name, "u", *version, Ok(*value));
    store.list(items.iter().map(item).collect());
    store
}

fn values(store: &Store<i32>) -> BTreeMap<&str, i32> {
    store
        .objects
        .iter()
        .map(|(key, value)| (key.name.as_str(), *value))
        .collect()
}

#[test]
fn a_list_replaces_everything() {
    let mut store = listed(&[("a", 1, 1), ("b", 2, 2)]);
    store.begin();
    assert_eq!(values(&store), [("a", 1), ("b", 2)].into());
    let changes = store.list(vec![item("c", "u", 10, Ok(3))]);
    assert_eq!(values(&store), [("c", 3)].into());
    assert_eq!(changes.len(), 3);
}

#[test]
fn nothing_is_complete_before_the_first_list() {
    let mut store = Store::default();
    store.begin();
    store.apply(item("a", "u", 1, Ok(1)));
    assert!(!store.is_complete());
    store.list(Vec::new());
    assert!(store.is_complete());
    store.expect_list();
    assert!(!store.is_complete());
}

#[test]
fn what_there_is_no_room_for_is_left_out_and_told_once() {
    let mut store = Store::limited(1);
    let items = ["a", "b", "c"].map(|name| item(name, "u", 1, Ok(1)));
    store.list(items.into());
    assert_eq!(values(&store), [("a", 1)].into());
    assert_eq!(
        store.left_out().count(),
        1,
        "no more are remembered than kept"
    );
    let [missed] = &store.take_missed()[..] else {
        panic!("told once");
    };
    assert_eq!((&missed.key, &missed.why), (&key("b"), &Why::NoRoom(1)));
    store.delete(&key("a"), &stamp("u", 2));
    store.apply(item("b", "u", 3, Ok(2)));
    assert_eq!(values(&store), [("b", 2)].into());
    assert_eq!(store.left_out().count(), 0);
}

#[test]
fn what_is_older_is_ignored_and_versions_are_numbers() {
    let mut store = listed(&[("a", 9, 1)]);
    let change = store.written(item("a", "u", 10, Ok(2)));
    let expected = Change {
        key: key("a"),
        before: Some(1),
        replaced: false,
    };
    assert_eq!(change, Some(expected));
    assert!(store.apply(item("a", "u", 9, Ok(1))).is_none());
    assert!(store.apply(item("a", "u", 10, Ok(1))).is_none());
    assert_eq!(values(&store), [("a", 2)].into());
    store.apply(item("a", "u", 100, Ok(3)));
    assert!(store.delete(&key("a"), &stamp("u", 99)).is_none());
    assert_eq!(values(&store), [("a", 3)].into());
    assert!(store.delete(&key("a"), &stamp("u", 101)).is_some());
    assert!(
        store.written(item("a", "u", 102, Ok(4))).is_none(),
        "is gone"
    );
}

#[test]
fn a_list_does_not_undo_what_was_written_meanwhile() {
    let mut store = listed(&[("a", 5, 1)]);
    store.begin();
    store.written(item("a", "u", 6, Ok(2)));
    store.made(item("b", "u", 7, Ok(3)));
    store.list(vec![item("a", "u", 5, Ok(1))]);
    assert_eq!(values(&store), [("a", 2), ("b", 3)].into());
}

#[test]
fn what_was_made_is_ahead_until_the_watch_tells_of_it() {
    let mut store = listed(&[("c-1", 5, 1)]);
    assert!(!store.is_ahead("shop", "a-"));
    store.made(item("a-1", "u", 8, Ok(2)));
    store.made(item("b-1", "u", 9, Ok(3)));
    store.made(item("c-1", "u", 10, Ok(3)));
    assert!(store.is_ahead("shop", "a-") && store.is_ahead("shop", "b-"));
    assert!(!store.is_ahead("shop", "c-") && !store.is_ahead("other", "a-"));
    store.apply(item("a-1", "u", 7, Ok(1)));
    assert!(store.is_ahead("shop", "a-"), "that was an older one");
    store.apply(item("a-1", "u", 8, Ok(2)));
    assert!(!store.is_ahead("shop", "a-"));
    store.delete(&key("b-1"), &stamp("u", 11));
    assert!(!store.is_ahead("shop", "b-"));
    store.apply(item("d-1", "u", 12, Ok(2)));
    store.made(item("d-1", "u", 12, Ok(2)));
    assert!(!store.is_ahead("shop", "d-"), "the watch was faster");
}

/// A cluster restored from a backup counts from an earlier number.
#[test]
fn a_new_list_is_taken_even_if_it_is_older() {
    let mut store = listed(&[("a", 500, 1)]);
    store.begin();
    store.list(vec![item("a", "u", 30, Ok(7))]);
    assert_eq!(values(&store), [("a", 7)].into());
    store.apply(item("a", "u", 31, Ok(8)));
    assert_eq!(values(&store), [("a", 8)].into());
}

#[test]
fn what_cannot_be_read_keeps_its_last_good_state_and_is_told_once() {
    let mut store = listed(&[("a", 1, 1)]);
    store.apply(item("a", "u", 2, Err("bad")));
    store.apply(item("a", "u", 3, Err("bad")));
    store.apply(item("b", "u", 4, Err("bad")));
    assert_eq!(values(&store), [("a", 1)].into());
    assert_eq!(store.take_missed().len(), 2);
    store.begin();
    store.list(vec![item("a", "u", 5, Err("bad"))]);
    assert_eq!(values(&store), [("a", 1)].into());
    assert!(store.take_missed().is_empty());
    store.apply(item("a", "u", 6, Ok(2)));
    assert_eq!(values(&store), [("a", 2)].into());
    store.apply(item("a", "u", 7, Err("bad")));
    assert_eq!(store.take_missed().len(), 1, "broken anew");
}
