//! Nodes that fall silent, with the clock in the test's hand.

use std::fs;

use sluice_api::jiff::Timestamp;
use sluice_api::{
    Condition, ConditionType, Kind, LoadBalancerNodeStatus, ObjectKey, Time, find_condition,
};
use sluice_directory::{DecisionReader, Directory, StatusFile};
use sluice_operator::settings::Settings;
use sluice_operator::standalone;

use crate::harness::{POLICY, POOLS, Standalone, WEB};

const NODES: &str = "\
apiVersion: sluice.dev/v1alpha1
kind: LoadBalancerNode
metadata: {name: d1}
spec: {interfaces: [eth0]}
---
apiVersion: sluice.dev/v1alpha1
kind: LoadBalancerNode
metadata: {name: d2}
spec: {interfaces: [eth0]}
";

struct Clock {
    operator: standalone::Standalone,
    directory: Directory,
    ms: u64,
}

impl Clock {
    fn new(s: &Standalone) -> Self {
        Self {
            operator: standalone::Standalone::open(s.directory.clone()).expect("free"),
            directory: s.directory.clone(),
            ms: 0,
        }
    }

    /// Lets time pass while the directory is not there.
    fn lose(&mut self, ms: u64) {
        let elsewhere = self.directory.root().with_extension("lost");
        fs::rename(self.directory.root(), &elsewhere).expect("renamed");
        let now = Time(Timestamp::UNIX_EPOCH);
        for _ in 0..2 {
            self.ms += ms / 2;
            self.operator.tick(&now, self.ms).expect_err("is lost");
        }
        fs::rename(&elsewhere, self.directory.root()).expect("renamed back");
    }

    /// Names of the nodes that have a report.
    fn reported(&self) -> Vec<String> {
        let reports = self.directory.list_status(Kind::LoadBalancerNode);
        let reports = reports.expect("no error").into_iter();
        reports.map(|key| key.name).collect()
    }

    /// Lets time pass in steps of the operator's poll.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 200 {
            self.ms += 200;
            let seconds = i64::try_from(self.ms / 1000).expect("small");
            let now = Time(Timestamp::from_second(1_700_000_000 + seconds).expect("time"));
            self.operator.tick(&now, self.ms).expect("no error");
        }
    }

    /// A node acknowledges what there is; its clock is far off.
    fn report(&self, node: &str) {
        let mut reader = DecisionReader::new(self.directory.clone());
        let decisions = reader
            .poll()
            .expect("no torn file")
            .expect("nobody else writes");
        let heartbeat =
            Timestamp::from_second(i64::try_from(self.ms).expect("small")).expect("time");
        let status = LoadBalancerNodeStatus {
            acknowledged_revision: decisions.revision,
            acknowledged_pool_revision: decisions.revision,
            heartbeat_time: Some(Time(heartbeat)),
            ..LoadBalancerNodeStatus::default()
        };
        let file = StatusFile::new(Kind::LoadBalancerNode, &ObjectKey::new("", node), status);
        self.directory
            .write_status(Kind::LoadBalancerNode, &file)
            .expect("report");
    }
}

fn silent(s: &Standalone) -> Condition {
    let conditions = s.virtual_server("web").expect("status").status.conditions;
    find_condition(&conditions, ConditionType::NodesSilent)
        .expect("told")
        .clone()
}

#[test]
fn a_node_silent_for_forty_seconds_is_named_and_not_waited_for() {
    let s = Standalone::new();
    for (name, text) in [
        ("nodes.yaml", NODES),
        ("web.yaml", WEB),
        ("pools.yaml", POOLS),
        ("policy.yaml", POLICY),
    ] {
        s.write(name, text);
    }
    let mut clock = Clock::new(&s);
    clock.pass(400);
    clock.report("d1");
    clock.report("d2");
    clock.pass(2_000);
    assert_eq!(s.weights("web"), Some(vec![90, 10]));
    assert_eq!(silent(&s).status, "False");
    // d2 has not acknowledged the step; d1 goes on.
    for _ in 0..9 {
        clock.report("d1");
        clock.pass(4_000);
    }
    assert_eq!(silent(&s).status, "False");
    let live = |s: &Standalone| {
        s.policy("roll")
            .expect("there")
            .status
            .step
            .expect("step")
            .live_time
    };
    assert_eq!(live(&s), None, "d2 is waited for");
    clock.report("d1");
    clock.pass(4_000);
    assert_eq!(silent(&s).status, "True");
    assert!(
        silent(&s).message.contains("40 s from d2,"),
        "{}",
        silent(&s).message
    );
    assert!(live(&s).is_some(), "d2 is no longer waited for");
    clock.report("d2");
    clock.pass(2_000);
    assert_eq!(silent(&s).status, "False");
}

#[test]
fn the_report_of_a_silent_node_goes_if_no_manifest_asks_for_it() {
    let s = Standalone::new();
    s.write("nodes.yaml", NODES);
    let mut clock = Clock::new(&s);
    clock.operator.set(&Settings {
        forget_silent_seconds: Some(60),
        ..Settings::default()
    });
    clock.pass(400);
    clock.report("d1");
    for _ in 0..20 {
        clock.report("guest");
        clock.pass(5_000);
    }
    // Nobody can say that it lives while the directory is lost.
    clock.lose(3_600_000);
    clock.pass(50_000);
    assert_eq!(clock.reported(), ["d1", "guest"]);
    clock.pass(10_000);
    assert_eq!(clock.reported(), ["d1"], "there is a manifest for it");
}
