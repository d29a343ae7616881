//! Servers that move from one pool to another.

use std::collections::BTreeMap;

use sluice_api::{DecidedRealServerPool, DecidedServer};

use super::super::*;
use crate::core::Outcome;

/// Pools as they stand written.
#[derive(Default)]
struct Pools(BTreeMap<ObjectKey, RealServerPoolStatus>);

impl Written for Pools {
    fn virtual_server(&self, _: &ObjectKey) -> Stands<'_, VirtualServerStatus> {
        Stands::Nowhere
    }
    fn pool(&self, key: &ObjectKey) -> Stands<'_, RealServerPoolStatus> {
        Stands::of(self.0.get(key))
    }
    fn policy(&self, _: &ObjectKey) -> Stands<'_, RolloutPolicyStatus> {
        Stands::Nowhere
    }
    fn version(&self, _: &Object) -> u64 {
        0
    }
    fn decided(&self, _: Kind) -> Vec<(&ObjectKey, Numbers)> {
        Vec::new()
    }
    fn slices_are_ahead(&self, _: &ObjectKey, _: &RealServerPoolStatus) -> bool {
        false
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn status(revision: u64, servers: &[u8]) -> RealServerPoolStatus {
    let servers = servers.iter().map(|&host| DecidedServer {
        name: format!("s{host}"),
        address: [192, 0, 2, host].into(),
        weight: 1,
        target_ports: Vec::new(),
    });
    let content = DecidedRealServerPool {
        servers: servers.collect(),
        ..DecidedRealServerPool::default()
    };
    RealServerPoolStatus {
        decision: Some(PoolDecision {
            revision,
            complete_revision: revision,
            generation: 1,
            content,
        }),
        ..RealServerPoolStatus::default()
    }
}

/// A schedule of two writes at once in which server 2 moves from one pool to another, by the names of the pools. The other
/// one has these servers then.
fn moving(from: &str, to: &str, after: &[u8]) -> (Schedule, Pools) {
    let stands = [(key(from), status(1, &[1, 2])), (key(to), status(2, &[3]))];
    let pools = Pools(stands.into());
    let mut schedule = Schedule::new(2);
    schedule.raise(2);
    let outcome = Outcome {
        pools: [(key(from), status(3, &[1])), (key(to), status(4, after))].into(),
        ..Outcome::default()
    };
    schedule.decide(&pools, outcome);
    (schedule, pools)
}

fn written(next: Next) -> Option<String> {
    match next {
        Next::Write(write) => Some(write.object.1.name),
        Next::At(_) | Next::Idle => None,
    }
}

#[test]
fn a_server_that_moves_is_never_in_no_pool() {
    let gaining: [&[u8]; 2] = [&[2, 3], &[2]];
    for ([from, to], after) in [["a", "b"], ["b", "a"]]
        .into_iter()
        .flat_map(|names| gaining.map(|after| (names, after)))
    {
        let (mut schedule, pools) = moving(from, to, after);
        assert_eq!(written(schedule.next(&pools, 0)).as_deref(), Some(to));
        assert_eq!(schedule.next(&pools, 0), Next::Idle, "until {to} is taken");
        schedule.answered(&(Kind::RealServerPool, key(to)), Ok(()), 1);
        assert_eq!(written(schedule.next(&pools, 1)).as_deref(), Some(from));
    }
}

#[test]
fn a_pool_that_is_not_taken_holds_up_no_other() {
    let (mut schedule, pools) = moving("a", "b", &[2, 3]);
    assert_eq!(written(schedule.next(&pools, 0)).as_deref(), Some("b"));
    let refused = Failure::Refused(String::new());
    schedule.answered(&(Kind::RealServerPool, key("b")), Err(&refused), 1);
    assert_eq!(written(schedule.next(&pools, 1)).as_deref(), Some("a"));
}
