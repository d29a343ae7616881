//! Whatever is decided, lost, refused or late: no node is told to claim what it may not have, nothing is written before
//! what it needs, and nobody waits for ever for somebody else.

mod moves;
mod sim;

use proptest::prelude::*;
use sluice_api::Kind;

use super::*;
use sim::{Answer, Sim, key};

#[derive(Clone, Debug)]
enum Action {
    Server {
        name: usize,
        pools: [u32; 2],
    },
    Pool(usize),
    Policy(usize),
    Quiet(usize),
    Remove(usize),
    Decide,
    Start,
    Land {
        nth: usize,
        answer: Answer,
    },
    /// A write without an answer arrives after all.
    Late(usize),
    Pass(u64),
}

fn any_answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        8 => Just(Answer::Taken),
        1 => Just(Answer::Refused),
        1 => Just(Answer::Failed),
        1 => Just(Answer::Unavailable),
    ]
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..4_usize, prop::array::uniform2(0..2_u32))
            .prop_map(|(name, pools)| Action::Server { name, pools }),
        3 => (0..2_usize).prop_map(Action::Pool),
        1 => (0..4_usize).prop_map(Action::Policy),
        2 => (0..4_usize).prop_map(Action::Quiet),
        1 => (0..4_usize).prop_map(Action::Remove),
        5 => Just(Action::Decide),
        5 => Just(Action::Start),
        9 => (0..8_usize, any_answer()).prop_map(|(nth, answer)| Action::Land { nth, answer }),
        1 => (0..4_usize).prop_map(Action::Late),
        4 => (1..2_000_u64).prop_map(Action::Pass),
    ]
}

fn act(sim: &mut Sim, action: &Action) {
    match *action {
        Action::Server { name, pools } => sim.want_server(name, pools),
        Action::Pool(name) => sim.want_pool(name),
        Action::Policy(name) => sim.want_policy(name),
        Action::Quiet(name) => sim.want_quiet(name),
        Action::Remove(name) => sim.remove_server(name),
        Action::Decide => sim.decide(),
        Action::Start => sim.start(),
        Action::Land { nth, answer } => sim.land(nth, answer),
        Action::Late(nth) => sim.arrive_late(nth),
        Action::Pass(ms) => sim.now_ms += ms,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Orders and claims are checked with every write that is taken; see [`Sim`].
    #[test]
    fn no_claim_is_false_and_all_comes_to_rest(
        actions in prop::collection::vec(any_action(), 1..120),
    ) {
        let mut sim = Sim::new(3);
        for action in &actions {
            act(&mut sim, action);
            prop_assert_eq!(&sim.faults, &Vec::<String>::new(), "after {:?}", action);
        }
        sim.settle(|_| Answer::Taken);
        prop_assert_eq!(&sim.faults, &Vec::<String>::new());
        prop_assert_eq!(sim.unsettled(|_| true), Vec::<Object>::new());
        prop_assert_eq!(sim.doubtful(), Vec::<Object>::new());
        prop_assert!(sim.is_closed());
    }

    #[test]
    fn who_is_never_taken_holds_up_only_what_builds_on_it(
        actions in prop::collection::vec(any_action(), 1..60),
        cursed in 0..4_usize,
        pool in 0..2_usize,
        answer in prop_oneof![
            Just(Answer::Refused), Just(Answer::Failed), Just(Answer::Unavailable), Just(Answer::Hangs)
        ],
    ) {
        let mut sim = Sim::new(3);
        for action in &actions {
            act(&mut sim, action);
        }
        sim.want_pool(pool);
        sim.want_server(cursed, [1, 1]);
        sim.want_server((cursed + 1) % 4, [u32::from(pool == 1), u32::from(pool == 0)]);
        let server = (Kind::VirtualServer, key("s", cursed));
        let pool_object = (Kind::RealServerPool, key("p", pool));
        sim.settle(|object| {
            if *object == server || *object == pool_object { answer } else { Answer::Taken }
        });
        prop_assert_eq!(&sim.faults, &Vec::<String>::new());
        let builds_on = |object: &Object| {
            *object != server && *object != pool_object && !sim.needs(object, &pool_object.1)
        };
        prop_assert_eq!(sim.unsettled(builds_on), Vec::<Object>::new());
        prop_assert!(sim.is_closed(), "who is written is acknowledged");
    }
}

#[test]
fn a_single_decision_is_one_write() {
    let mut sim = Sim::new(8);
    sim.want_pool(0);
    sim.settle(|_| Answer::Taken);
    let before = sim.writes;
    sim.want_pool(0);
    sim.settle(|_| Answer::Taken);
    assert_eq!(sim.writes - before, 1);
}

#[test]
fn several_decisions_are_under_way_together_and_closed_once() {
    let mut sim = Sim::new(8);
    for name in 0..4 {
        sim.want_server(name, [0, 0]);
    }
    sim.decide();
    sim.start();
    assert_eq!(sim.under_way(), 4);
    sim.settle(|_| Answer::Taken);
    assert_eq!(sim.writes, 5);
    assert!(sim.is_closed());
}

#[test]
fn an_object_that_is_gone_leaves_no_claim_behind() {
    let mut sim = Sim::new(8);
    for name in 0..4 {
        sim.want_server(name, [0, 0]);
    }
    sim.settle(|_| Answer::Taken);
    sim.remove_server(3);
    sim.settle(|_| Answer::Taken);
    assert!(
        sim.is_closed(),
        "a node that starts anew can claim the others"
    );
}

#[test]
fn what_only_tells_comes_after_decisions_but_not_never() {
    let mut sim = Sim::new(1);
    sim.want_server(0, [0, 0]);
    sim.settle(|_| Answer::Taken);
    sim.want_quiet(0);
    let mut told_after = None;
    for round in 0..100 {
        sim.want_server(1, [0, 0]);
        sim.decide();
        sim.start();
        sim.land(0, Answer::Taken);
        sim.now_ms += 100;
        if sim.unsettled(|object| object.1 == key("s", 0)).is_empty() {
            told_after = Some(round * 100);
            break;
        }
    }
    let told_after = told_after.expect("is told while decisions go on");
    let limit = schedule::DECISIONS_FIRST_MS;
    assert!((limit..limit + 1_000).contains(&told_after), "{told_after}");
}

#[test]
fn what_only_tells_is_gathered() {
    let mut sim = Sim::new(8);
    sim.want_server(0, [0, 0]);
    sim.settle(|_| Answer::Taken);
    let before = sim.writes;
    for _ in 0..10 {
        sim.want_quiet(0);
        sim.decide();
        sim.start();
        sim.land(0, Answer::Taken);
        sim.now_ms += schedule::CALM_MS / 5;
    }
    let told = sim.writes - before;
    assert!((2..=3).contains(&told), "{told}");
}

#[test]
fn an_api_server_that_is_away_is_left_alone_for_ever_longer() {
    let mut sim = Sim::new(8);
    for name in 0..4 {
        sim.want_server(name, [0, 0]);
    }
    let tries = |sim: &mut Sim, ms: u64| {
        let before = sim.writes;
        for _ in 0..ms / 50 {
            sim.decide();
            sim.start();
            while sim.under_way() > 0 {
                sim.land(0, Answer::Unavailable);
            }
            sim.now_ms += 50;
        }
        sim.writes - before
    };
    let first = tries(&mut sim, 5_000);
    let later = tries(&mut sim, 20_000);
    assert!(first > 5 && later < 4 * first, "{first}, {later}");
    sim.settle(|_| Answer::Taken);
    assert_eq!(sim.unsettled(|_| true), Vec::<Object>::new());
}
