//! A holder that is silent on one path and answers on another, as when one of its links is cut.

use super::play::{Answers, Play, name, settings};
use crate::{Coordination, Event, GiveBack, Settings, Source};

/// A candidate of this rank without an API server, beside a holder that falls silent on the first of two paths at 2 s.
fn beside_half_a_holder(rank: usize, holder: usize) -> Play {
    let standalone = Settings {
        coordination: Coordination::Peers,
        give_back: GiveBack::Never,
        ..settings()
    };
    let mut play = Play::new(rank, standalone);
    play.on(0, Event::Paths(2));
    play.answers = Answers {
        holder: Some((name(holder), 60_000)),
        witness_until_ms: 60_000,
        silent: Some((0, 2000)),
    };
    play
}

fn armed(play: &Play) -> Option<&str> {
    let mut done = play.done.iter();
    let armed = done.find(|done| done.contains("arm until"))?;
    armed.split_once(':').map(|(ms, _)| ms)
}

fn on(path: usize, from: usize) -> Event {
    Event::Answer {
        path,
        from: Source::Peer(name(from)),
    }
}

#[test]
fn who_suspects_a_better_holder_does_not_yield_to_what_is_left_of_it() {
    let mut play = beside_half_a_holder(1, 0);
    play.run(2600);
    assert!(armed(&play).is_some(), "{:?}", play.done);
    play.answers.holder = None;
    for ms in (2700..6000).step_by(100) {
        play.on(ms, on(1, 0));
    }
    let stopped = play.done.iter().any(|done| done.ends_with("disarm"));
    assert!(!stopped, "{:?}", play.done);
    // Heard where it had been silent, it was suspected wrongly.
    play.on(6000, on(0, 0));
    assert!(
        play.done.iter().any(|done| done == "6000: disarm"),
        "{:?}",
        play.done
    );
}

#[test]
fn what_is_left_of_a_holder_stops_when_another_has_taken_over() {
    let mut play = Play::new(
        0,
        Settings {
            coordination: Coordination::Peers,
            ..settings()
        },
    );
    play.on(0, Event::Paths(2));
    play.answers.witness_until_ms = 60_000;
    play.run(1000);
    play.done.clear();
    for ms in (1000..2000).step_by(100) {
        play.on(ms, on(1, 1));
    }
    let stopped = play.done.iter().any(|done| done == "1800: disarm");
    assert!(stopped, "{:?}", play.done);
}

#[test]
fn who_hears_a_new_holder_on_the_silent_path_claims_nothing() {
    let mut play = beside_half_a_holder(2, 0);
    // The director of rank 1 takes over, and announces.
    play.on(2340, on(0, 1));
    play.run(2345);
    assert_eq!(play.elector.state().holder, Some(name(1)));
    play.answers.holder = Some((name(1), 60_000));
    play.answers.silent = None;
    for ms in (2400..4000).step_by(100) {
        play.on(ms, on(1, 0));
    }
    assert_eq!(armed(&play), None, "{:?}", play.done);
}
