use std::fs;

use std::path::PathBuf;

use sluice_api::{
    DecidedPool, DecidedPort, DecidedVirtualServer, Decision, ExternalTrafficPolicy,
    ForwardingMode, Kind, LoadBalancerNodeStatus, ObjectKey, PoolSelection, Protocol,
    ServerSelection, VirtualServerStatus, WhenAllDown,
};

use super::*;
use crate::manifest::Object;

struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("sluice-directory-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("temporary directory");
        Self(path)
    }

    fn directory(&self) -> Directory {
        Directory::new(&self.0)
    }

    fn write(&self, name: &str, text: &str) {
        write_atomically(&self.0.join(name), text.as_bytes()).expect("write");
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const POOL: &str = "\
apiVersion: sluice.dev/v1alpha1
kind: RealServerPool
metadata: {name: web}
spec: {servers: {static: [{name: a, address: 10.0.0.1}]}}
";

fn status(revision: u64, name: &str) -> VirtualServerStatus {
    VirtualServerStatus {
        decision: Some(Decision {
            revision,
            complete_revision: revision,
            generation: 1,
            content: DecidedVirtualServer {
                addresses: vec!["2001:db8::1".parse().expect("address")],
                ports: vec![DecidedPort {
                    name: name.to_owned(),
                    protocol: Protocol::Tcp,
                    port: 80,
                }],
                mode: ForwardingMode::FullNat,
                pool_selection: PoolSelection::Flow,
                server_selection: ServerSelection::Flow,
                external_traffic_policy: ExternalTrafficPolicy::Cluster,
                when_all_down: WhenAllDown::LastKnown,
                fallback: None,
                sources: None,
                pools: vec![DecidedPool {
                    name: "1e3".to_owned(),
                    weight: 1,
                    spec_weight: 1,
                }],
                groups: Vec::new(),
            },
        }),
        ..VirtualServerStatus::default()
    }
}

#[test]
fn of_an_object_that_is_given_twice_the_first_counts() {
    let temporary = Temporary::new("twice");
    temporary.write("a.yaml", POOL);
    temporary.write("b.yaml", &POOL.replace("10.0.0.1", "10.0.0.2"));
    let mut reader = ManifestReader::new(temporary.directory());
    reader.poll(0);
    reader.poll(200);
    let in_force = reader.in_force();
    let [Object::RealServerPool(pool)] = in_force.objects[..] else {
        panic!("{in_force:?}");
    };
    assert_eq!(pool.spec.servers.static_servers[0].address, "10.0.0.1");
    let duplicates: Vec<_> = in_force.duplicates.into_iter().collect();
    let why =
        "RealServerPool default/web is already given in a.yaml: remove it from one of the two";
    assert_eq!(duplicates, [("b.yaml", vec![why.to_owned()])]);
}

#[test]
fn status_files_come_back_as_they_were_written() {
    let temporary = Temporary::new("status");
    let directory = temporary.directory();
    for name in ["http", "on", "0x1f", "null", "1e3", "12:30", "-"] {
        let key = ObjectKey::new("shop", name);
        let file = StatusFile::new(Kind::VirtualServer, &key, status(7, name));
        directory
            .write_status(Kind::VirtualServer, &file)
            .expect("write");
        let back = directory
            .read_status(Kind::VirtualServer, &key)
            .expect("read");
        assert_eq!(back, Some(file));
    }
    let key = ObjectKey::new("", "d1");
    let file = StatusFile::new(
        Kind::LoadBalancerNode,
        &key,
        LoadBalancerNodeStatus::default(),
    );
    directory
        .write_status(Kind::LoadBalancerNode, &file)
        .expect("write");
    assert_eq!(
        directory.list_status(Kind::LoadBalancerNode).expect("list"),
        [key]
    );
}

#[test]
fn decisions_are_read_when_a_file_changed() {
    let temporary = Temporary::new("decisions");
    let directory = temporary.directory();
    let mut reader = DecisionReader::new(directory.clone());
    assert_eq!(reader.poll().expect("poll"), Some(Decisions::default()));
    assert_eq!(reader.poll().expect("poll"), None);
    for (revision, name) in [(4, "a"), (5, "b")] {
        let file = StatusFile::new(
            Kind::VirtualServer,
            &ObjectKey::new("shop", name),
            status(revision, name),
        );
        directory
            .write_status(Kind::VirtualServer, &file)
            .expect("write");
    }
    let refused = StatusFile::new(
        Kind::VirtualServer,
        &ObjectKey::new("shop", "c"),
        VirtualServerStatus::default(),
    );
    directory
        .write_status(Kind::VirtualServer, &refused)
        .expect("write");
    let decisions = reader.poll().expect("poll").expect("changed");
    assert_eq!(decisions.revision, 5);
    assert_eq!(decisions.virtual_servers.len(), 2);

    temporary.write(".status/VirtualServer/shop/a.yaml", "status: [");
    let decisions = reader.poll().expect("poll").expect("changed");
    assert_eq!(decisions.virtual_servers.len(), 1);
    let unreadable: Vec<_> = decisions
        .unreadable
        .keys()
        .map(|id| id.1.to_string())
        .collect();
    assert_eq!(unreadable, ["shop/a"]);
}

#[test]
fn decisions_are_whole_when_they_are_those_of_the_inventory() {
    let temporary = Temporary::new("inventory");
    let directory = temporary.directory();
    let keys = ["a", "b"].map(|name| ObjectKey::new("shop", name));
    for (key, revision) in keys.iter().zip(4..) {
        let file = StatusFile::new(Kind::VirtualServer, key, status(revision, "http"));
        directory
            .write_status(Kind::VirtualServer, &file)
            .expect("write");
    }
    let read = || {
        let decisions = DecisionReader::new(directory.clone()).poll();
        decisions.expect("poll").expect("the first")
    };
    assert!(!read().is_whole, "the operator has said nothing");
    let inventory = Inventory {
        virtual_servers: Names::of(keys.iter().rev()),
        pools: Names::of([].into_iter()),
    };
    directory.write_inventory(&inventory).expect("write");
    assert!(read().is_whole);
    let path = directory.status_path(Kind::VirtualServer, &keys[0]);
    temporary.write(".status/VirtualServer/shop/a.yaml", "status: [");
    let unreadable = read();
    assert!(unreadable.is_whole && !unreadable.withdraws(Kind::VirtualServer, &keys[0]));
    fs::remove_file(&path).expect("remove");
    let lost = read();
    assert!(!lost.is_whole && !lost.withdraws(Kind::VirtualServer, &keys[0]));
    let inventory = Inventory {
        virtual_servers: Names::of(keys[1..].iter()),
        ..inventory
    };
    directory.write_inventory(&inventory).expect("write");
    let withdrawn = read();
    assert!(withdrawn.withdraws(Kind::VirtualServer, &keys[0]));
    assert!(!withdrawn.withdraws(Kind::VirtualServer, &keys[1]));
}

#[test]
fn a_mirror_puts_right_what_others_do_to_its_files() {
    let temporary = Temporary::new("mirror");
    let mut mirror = Mirror::default();
    let paths = ["a", "b", "c", "d"].map(|name| temporary.0.join(".status/files").join(name));
    for path in &paths {
        mirror
            .write(path, &path.display().to_string())
            .expect("write");
    }
    assert!(mirror.heal().0.is_empty());
    let content = fs::read_to_string(&paths[0]).expect("there");
    fs::remove_file(&paths[0]).expect("remove");
    fs::write(&paths[1], content.replace(".status", ".stauts")).expect("write");
    // As it was, though written anew.
    fs::write(&paths[2], paths[2].display().to_string()).expect("write");
    let (healed, result) = mirror.heal();
    assert_eq!(healed, [&paths[0], &paths[1]]);
    result.expect("healed");
    assert_eq!(fs::read_to_string(&paths[0]).expect("there"), content);
    assert!(mirror.heal().0.is_empty());
    // All are gone, and something is in the way of one.
    fs::remove_dir_all(temporary.0.join(".status")).expect("remove");
    fs::create_dir_all(paths[3].join("in the way")).expect("directory");
    let (healed, result) = mirror.heal();
    assert_eq!(healed.len(), 4);
    result.expect("healed");
    mirror.remove(&paths[0]).expect("removed");
    assert!(!paths[0].exists() && mirror.heal().0.is_empty());
}

#[test]
fn generations_count_specs() {
    let mut meta = StatusMeta::default();
    meta.count_spec(&"a");
    meta.count_spec(&"a");
    assert_eq!(meta.generation, 1);
    meta.count_spec(&"b");
    assert_eq!(meta.generation, 2);
}

#[test]
fn a_lock_has_one_holder() {
    let temporary = Temporary::new("lock");
    let held = temporary.directory().lock("operator").expect("free");
    let error = temporary.directory().lock("operator").expect_err("held");
    assert!(
        error.to_string().contains("is held by another process"),
        "{error}"
    );
    drop(held);
    temporary.directory().lock("operator").expect("free again");
}

#[test]
fn a_lock_outlives_the_status_files_and_is_missed_when_it_is_gone() {
    let temporary = Temporary::new("lock-lost");
    temporary.write(".status/files/a.yaml", "file");
    let held = temporary.directory().lock("operator").expect("free");
    fs::remove_dir_all(temporary.0.join(".status")).expect("remove");
    temporary.directory().lock("operator").expect_err("held");
    held.verify().expect("held");
    // Without its file it locks nobody out: it is taken anew, unless somebody was faster.
    fs::remove_file(temporary.0.join(".operator.lock")).expect("remove");
    held.verify().expect("taken anew");
    temporary.directory().lock("operator").expect_err("held");
    fs::remove_file(temporary.0.join(".operator.lock")).expect("remove");
    let second = temporary.directory().lock("operator").expect("free");
    held.verify().expect_err("held by the second");
    drop(second);
    held.verify().expect("taken anew");
}

#[test]
fn status_is_not_written_where_the_directory_is_gone() {
    let temporary = Temporary::new("gone");
    let path = temporary.directory().report_path("a.yaml");
    fs::remove_dir_all(&temporary.0).expect("remove");
    write_atomically(&path, b"x").expect_err("no directory");
    assert!(!temporary.0.exists());
}
