//! Starting, stopping, being killed, and files that change while they are read.

use std::fs;
use std::time::Duration;

use sluice_api::jiff::{SignedDuration, Timestamp};
use sluice_api::{DRAINED_SERVERS_ANNOTATION, Kind};
use sluice_directory::{DecisionReader, WRITTEN_MS};

use crate::harness::{OTHER, POOLS, Standalone, WEB, assert_parts, key};

#[test]
fn a_drained_server_takes_flows_again_when_its_time_is_over() {
    let mut s = Standalone::started(&[("web.yaml", WEB), ("pools.yaml", POOLS)]);
    s.agent("d1", &["10.0.0.250"]);
    s.wait_live("web");
    let taking = |s: &Standalone| s.pool("v1").map(|pool| pool.status.ready_servers);
    assert_eq!(taking(&s), Some(1));
    let until = Timestamp::now() + SignedDuration::from_secs(3);
    let text = format!("[{{\"address\": \"10.0.0.1\", \"until\": \"{until}\"}}]");
    let drained =
        format!("metadata: {{name: v1, annotations: {{{DRAINED_SERVERS_ANNOTATION}: '{text}'}}}}");
    s.write(
        "pools.yaml",
        &POOLS.replace("metadata: {name: v1}", &drained),
    );
    s.wait("the drain", |s| (taking(s)? == 0).then_some(()));
    s.wait("its end", |s| (taking(s)? == 1).then_some(()));
    assert!(Timestamp::now() >= until);
}

#[test]
fn from_manifests_to_what_nodes_acknowledge() {
    let mut s = Standalone::started(&[("web.yaml", WEB), ("pools.yaml", POOLS)]);
    s.wait("decision", |s| s.virtual_server("web")?.status.decision);
    s.agent("d1", &["10.0.0.250"]);
    s.wait_live("web");
    let file = s.virtual_server("web").expect("status");
    let decision = file.status.decision.expect("decision");
    assert_eq!(
        (
            file.metadata.generation,
            decision.generation,
            decision.revision
        ),
        (1, 1, 3)
    );
    let acknowledged = file.status.acknowledged.expect("acknowledged");
    assert_eq!(acknowledged.revision, 3);
    assert_eq!(acknowledged.pools, decision.content.pools);
    s.write("web.yaml", &WEB.replace("weight: 0", "weight: 300"));
    s.wait("new weights", |s| {
        (s.weights("web")? == [100, 300]).then_some(())
    });
    s.wait_live("web");
    let file = s.virtual_server("web").expect("status");
    assert_eq!(
        (file.metadata.generation, file.status.observed_generation),
        (2, 2)
    );
    s.assert_quiet_log();
    assert!(s.stop().success());
    s.assert_quiet_log();
}

#[test]
fn an_unchanged_spec_keeps_generation_and_revision_over_restarts() {
    let mut s = Standalone::started(&[("web.yaml", WEB), ("pools.yaml", POOLS)]);
    s.agent("d1", &[]);
    s.wait_live("web");
    let before = s.virtual_server("web");
    for round in 0..2 {
        if round == 0 {
            assert!(s.stop().success());
        } else {
            s.kill();
        }
        s.write("web.yaml", &format!("# comment {round}\n{WEB}"));
        s.start();
        // Longer than a file that may have been written in place waits to count.
        s.pass(Duration::from_millis(WRITTEN_MS + 1_000));
        assert_eq!(s.virtual_server("web"), before);
    }
    s.assert_quiet_log();
}

#[test]
fn a_removed_manifest_is_served_no_more() {
    let mut s = Standalone::started(&[
        ("web.yaml", WEB),
        ("pools.yaml", POOLS),
        ("other.yaml", OTHER),
    ]);
    s.agent("d1", &[]);
    s.wait_live("web");
    s.wait_live("other");
    let other = s.virtual_server("other");
    fs::remove_file(s.path.join("web.yaml")).expect("remove");
    s.wait("removal", |s| {
        s.virtual_server("web").is_none().then_some(())
    });
    assert_eq!(s.virtual_server("other"), other);
    // A pool in use outlives its manifest.
    fs::remove_file(s.path.join("pools.yaml")).expect("remove");
    s.wait_refused("other", "PoolNotFound");
    s.wait("v1 gone", |s| s.pool("v1").is_none().then_some(()));
    assert!(s.pool("v2").expect("kept").status.decision.is_some());
    assert_eq!(
        s.virtual_server("other").expect("kept").status.decision,
        other.expect("there").status.decision
    );
}

#[test]
fn a_revision_is_not_given_again_when_its_decision_is_gone() {
    let mut s = Standalone::started(&[("web.yaml", WEB), ("pools.yaml", POOLS)]);
    let decision = s.wait("decision", |s| s.virtual_server("web")?.status.decision);
    fs::remove_file(s.path.join("web.yaml")).expect("remove");
    s.wait("removal", |s| {
        s.virtual_server("web").is_none().then_some(())
    });
    s.kill();
    s.start();
    s.write("other.yaml", OTHER);
    let other = s.wait("decision", |s| s.virtual_server("other")?.status.decision);
    assert!(other.revision > decision.revision);
}

#[test]
fn a_removed_manifest_does_not_come_back_when_a_broken_one_takes_its_name() {
    let mut s = Standalone::started(&[("web.yaml", WEB), ("pools.yaml", POOLS)]);
    s.agent("d1", &[]);
    s.wait_live("web");
    fs::remove_file(s.path.join("web.yaml")).expect("remove");
    s.wait("removal", |s| {
        s.virtual_server("web").is_none().then_some(())
    });
    s.write("web.yaml", "kind: [");
    let report = s.wait("report", |s| s.report("web.yaml"));
    assert_parts(&report.serving, &["nothing"]);
    assert!(s.virtual_server("web").is_none());
}

#[test]
fn a_manifest_written_in_pieces_is_taken_as_a_whole() {
    let mut s = Standalone::started(&[("web.yaml", WEB), ("pools.yaml", POOLS)]);
    s.agent("d1", &[]);
    s.wait_live("web");
    let path = s.path.join("all.yaml");
    fs::write(&path, format!("{WEB}---\n{POOLS}")).expect("write");
    fs::remove_file(s.path.join("web.yaml")).expect("remove");
    fs::remove_file(s.path.join("pools.yaml")).expect("remove");
    s.pass(Duration::from_millis(800));
    let mut reader = DecisionReader::new(s.directory.clone());
    for round in 0..20 {
        // A shell's `>`: truncated first, then written piece by piece.
        let text = format!("# {round}\n{WEB}---\n{POOLS}");
        for end in [0, text.len() / 3, text.find("---").unwrap_or(0), text.len()] {
            fs::write(&path, &text[..end]).expect("write");
            std::thread::sleep(Duration::from_millis(7));
            if let Some(decisions) = reader.poll().expect("no torn file") {
                assert_eq!(
                    (decisions.virtual_servers.len(), decisions.pools.len()),
                    (1, 2)
                );
            }
        }
    }
    s.pass(Duration::from_millis(600));
    s.wait_live("web");
}

#[test]
fn a_second_operator_refuses_to_start() {
    let mut s = Standalone::started(&[("web.yaml", WEB), ("pools.yaml", POOLS)]);
    s.wait("decision", |s| s.virtual_server("web")?.status.decision);
    let second = Standalone::command(&s.path).output().expect("runs");
    assert!(!second.status.success());
    let log = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_parts(
        &log,
        &[
            "operator.lock",
            "held by another process",
            "stop that one first",
        ],
    );
    assert!(s.stop().success());
    s.start();
    s.write("web.yaml", &WEB.replace("weight: 100", "weight: 9"));
    s.wait("new weights", |s| {
        (s.weights("web")? == [9, 0]).then_some(())
    });
}

#[test]
fn a_directory_that_does_not_exist_is_told() {
    let s = Standalone::new();
    let output = Standalone::command(&s.path.join("nowhere"))
        .output()
        .expect("runs");
    assert!(!output.status.success());
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_parts(&log, &["nowhere is no directory", "create it"]);
}

#[test]
fn a_torn_or_lost_status_file_is_written_anew_with_a_higher_revision() {
    let mut s = Standalone::started(&[("web.yaml", WEB), ("pools.yaml", POOLS)]);
    s.agent("d1", &[]);
    s.wait_live("web");
    let before = s
        .virtual_server("web")
        .expect("there")
        .status
        .decision
        .expect("decision");
    s.kill();
    fs::write(
        s.directory.status_path(Kind::VirtualServer, &key("web")),
        "status: {",
    )
    .expect("write");
    s.freeze("d1");
    s.start();
    let after = s.wait("decision", |s| {
        let path = s.directory.status_path(Kind::VirtualServer, &key("web"));
        let whole = fs::read_to_string(path).ok()?.contains("decision");
        if whole {
            s.virtual_server("web")?.status.decision
        } else {
            None
        }
    });
    assert!(after.content == before.content && after.revision > before.revision);
}

/// Many virtual servers, the `round`-th edit of them.
fn many(round: u32) -> String {
    let mut text = POOLS.to_owned();
    for i in 0..40 {
        text.push_str("---\n");
        text.push_str(
            &WEB.replace("name: web", &format!("name: web-{i}"))
                .replace("port: 80}", &format!("port: {}}}", 1000 + i))
                .replace("weight: 100", &format!("weight: {}", 100 + round)),
        );
    }
    text
}

#[test]
fn sigkill_while_writing_leaves_whole_files_and_rising_revisions() {
    let mut s = Standalone::new();
    let mut highest = 0;
    for round in 1..=12 {
        s.start();
        s.wait("start", |s| {
            let starts = s.log().matches("started").count();
            (starts >= usize::try_from(round).expect("small")).then_some(())
        });
        // It has looked once: what replaces a file that it has seen counts at once.
        s.pass(Duration::from_millis(100));
        s.write("many.yaml", &many(round));
        // From before the first write to after the last one.
        std::thread::sleep(Duration::from_millis(180 + u64::from(round) * 25));
        s.kill();
        let decisions = s.decisions();
        assert!(decisions.revision >= highest, "round {round}");
        highest = decisions.revision;
        let mut revisions: Vec<u64> = decisions
            .virtual_servers
            .values()
            .map(|d| d.revision)
            .collect();
        revisions.sort_unstable();
        revisions.dedup();
        assert_eq!(
            revisions.len(),
            decisions.virtual_servers.len(),
            "a revision was given twice"
        );
    }
    s.start();
    s.wait("all decided", |s| {
        let decisions = s.decisions();
        let done = decisions
            .virtual_servers
            .values()
            .filter(|d| d.content.pools[0].weight == 112)
            .count();
        (done == 40).then_some(())
    });
    assert!(s.decisions().revision > highest || highest > 40);
}
