use std::fs;

use sluice_api::{
    DecidedPool, DecidedPort, DecidedVirtualServer, Decision, ForwardingMode,
    LoadBalancerNodeStatus, PoolSelection, Protocol, VirtualServerStatus,
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

fn names(reader: &ManifestReader) -> Vec<String> {
    reader
        .manifests()
        .flat_map(|(_, state)| state.objects.iter().map(|object| object.key().to_string()))
        .collect()
}

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
                pools: vec![DecidedPool {
                    name: "1e3".to_owned(),
                    weight: 1,
                    spec_weight: 1,
                }],
            },
        }),
        ..VirtualServerStatus::default()
    }
}

#[test]
fn a_change_counts_when_it_has_been_seen_twice() {
    let temporary = Temporary::new("settle");
    let mut reader = ManifestReader::new(temporary.directory());
    temporary.write("a.yaml", POOL);
    temporary.write("notes.txt", "x: [");
    assert!(!reader.poll().expect("poll") && !reader.is_complete());
    assert!(reader.poll().expect("poll") && reader.is_complete());
    assert_eq!(names(&reader), ["default/web"]);
    assert!(!reader.poll().expect("poll"));

    temporary.write("a.yaml", "");
    assert!(!reader.poll().expect("poll"));
    temporary.write("a.yaml", &POOL.replace("web", "other"));
    assert!(!reader.poll().expect("poll"), "changed again");
    assert_eq!(names(&reader), ["default/web"]);
    assert!(reader.poll().expect("poll"));
    assert_eq!(names(&reader), ["default/other"]);

    fs::remove_file(temporary.0.join("a.yaml")).expect("remove");
    assert!(!reader.poll().expect("poll"));
    assert!(reader.poll().expect("poll"));
    assert!(names(&reader).is_empty());
}

#[test]
fn a_broken_manifest_is_replaced_by_its_last_good_copy() {
    let temporary = Temporary::new("broken");
    temporary.write("a.yaml", "kind: [");
    temporary.write(".status/last-good/a.yaml", POOL);
    temporary.write("b.yaml", "kind: [");
    let mut reader = ManifestReader::new(temporary.directory());
    reader.poll().expect("poll");
    reader.poll().expect("poll");
    let states: Vec<_> = reader
        .manifests()
        .map(|(_, s)| (s.source, s.errors.len()))
        .collect();
    assert_eq!(states, [(Source::LastGood, 1), (Source::Nothing, 1)]);
    assert_eq!(names(&reader), ["default/web"]);

    temporary.write("b.yaml", &POOL.replace("web", "b"));
    reader.poll().expect("poll");
    reader.poll().expect("poll");
    temporary.write("b.yaml", "kind: [[");
    reader.poll().expect("poll");
    reader.poll().expect("poll");
    assert_eq!(names(&reader), ["default/web", "default/b"]);
}

#[test]
fn of_an_object_that_is_given_twice_the_first_counts() {
    let temporary = Temporary::new("twice");
    temporary.write("a.yaml", POOL);
    temporary.write("b.yaml", &POOL.replace("10.0.0.1", "10.0.0.2"));
    let mut reader = ManifestReader::new(temporary.directory());
    reader.poll().expect("poll");
    reader.poll().expect("poll");
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
    assert!(reader.poll().is_err());
    assert!(reader.poll().is_err(), "told until it is put right");
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
