//! Single rules: news at a time, and what follows when. Times are milliseconds since the elector began.

use super::play::{
    Answers, Play, candidates, failed, heard, name, read, settings, time, view, written,
};
use crate::{
    Action, Coordination, Event, GiveBack, Hindrance, Obstacle, Outcome, Role, Settings, Source,
    Witness, WriteId,
};

#[test]
fn a_deadline_counts_from_when_the_renewal_was_sent() {
    let own = name(0);
    let mut play = Play::holder(0, settings());
    play.run(1000);
    play.did(&[&format!("1000: write 2: 2 -> {own:?}")]);
    play.on(1900, written(2, 3, &own));
    // Sent at 1000, valid for 4 s less half a second of margin.
    play.did(&["1900: arm until 4500"]);
}

#[test]
fn a_write_without_answer_gives_no_right() {
    let own = name(0);
    let mut play = Play::holder(
        0,
        Settings {
            probing: crate::Probing::Off,
            ..settings()
        },
    );
    play.run(1000);
    play.on(2000, failed(2, Outcome::TimedOut));
    play.did(&[&format!("1000: write 2: 2 -> {own:?}")]);
    // It was written after all: only the next renewal extends the deadline.
    play.on(2010, read(3, &own));
    play.did(&[&format!("2010: write 3: 3 -> {own:?}")]);
    play.on(2020, written(3, 4, &own));
    play.did(&["2020: arm until 5510"]);
    // The late answer to the first says nothing.
    play.on(2030, written(2, 3, &own));
    play.did(&[]);
}

#[test]
fn a_lease_expires_by_the_own_clock_and_ranks_wait() {
    for (rank, swapped_ms) in [(0, 4500), (1, 4520)] {
        let mut play = Play::new(
            rank,
            Settings {
                probing: crate::Probing::Off,
                ..settings()
            },
        );
        play.on(500, read(7, &name(2)));
        // A former process of this node may have held.
        play.did(&["500: disarm"]);
        for ms in [1500, 2500, 3500, 4400] {
            play.on(ms, read(7, &name(2)));
        }
        play.run(5000);
        let own = name(rank);
        play.did(&[&format!("{swapped_ms}: write 1: 7 -> {own:?}")]);
        play.on(5010, failed(1, Outcome::Conflict));
        // Somebody was faster.
        play.on(5020, read(8, &name(1 - rank)));
        play.run(6000);
        play.did(&[]);
    }
}

/// Of two directors without a gateway neither can tell a dead holder from an own dead port: the Lease decides.
#[test]
fn where_nobody_else_can_be_asked_an_expired_lease_is_taken() {
    let own = name(0);
    let write = format!("write 1: 7 -> {own:?}");
    for (witness, done) in [
        (Witness::Absent, vec![format!("4500: {write}")]),
        (Witness::Asked, Vec::new()),
    ] {
        let mut play = Play::new(0, settings());
        play.answers.holder = Some((name(2), 1000));
        play.on(0, Event::Witness(witness));
        play.on(500, read(7, &name(2)));
        play.done.clear();
        for ms in [1500, 2500, 3500, 4400] {
            play.on(ms, read(7, &name(2)));
        }
        play.run(5000);
        play.did(&done.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// A candidate next to a holder with the third rank, which answers until 2000 ms.
fn beside_a_dying_holder(rank: usize, answers: impl FnOnce(&mut Answers)) -> Play {
    let mut play = Play::new(rank, settings());
    play.answers = Answers {
        holder: Some((name(2), 2000)),
        witness_until_ms: 60_000,
        ..Answers::default()
    };
    answers(&mut play.answers);
    play.on(10, read(7, &name(2)));
    play.done.clear();
    play.on(1000, read(8, &name(2)));
    play.on(1900, read(9, &name(2)));
    play.run(2700);
    play
}

#[test]
fn a_silent_holder_is_suspected_if_others_are_heard() {
    type Case = (&'static str, usize, fn(&mut Answers), Option<u64>);
    let cases: [Case; 4] = [
        ("the best rank swaps at once", 0, |_| {}, Some(300)),
        ("the next waits for it", 1, |_| {}, Some(320)),
        (
            "a dead port of its own",
            0,
            |answers| answers.witness_until_ms = 2000,
            None,
        ),
        ("never heard here", 0, |answers| answers.holder = None, None),
    ];
    for (case, rank, answers, swaps_ms) in cases {
        let play = beside_a_dying_holder(rank, answers);
        let write = play.done.first().cloned();
        match swaps_ms {
            None => assert_eq!(write, None, "{case}"),
            Some(after_ms) => {
                let write = write.expect(case);
                let at_ms: u64 = write.split(':').next().unwrap().parse().unwrap();
                // The first unanswered probe is up to 60 ms after the last answered one.
                assert!(
                    (2000 + after_ms..2061 + after_ms).contains(&at_ms),
                    "{case}: {write}"
                );
                assert!(
                    write.ends_with(&format!("write 1: 9 -> {:?}", name(rank))),
                    "{case}"
                );
            }
        }
    }
}

#[test]
fn who_finds_another_name_stops_and_is_not_trusted() {
    let mut play = Play::holder(0, settings());
    play.on(500, read(3, &name(1)));
    play.did(&["500: disarm"]);
    let state = play.elector.state();
    assert_eq!(state.hindrance, Some(Hindrance::Suspected));
    assert_eq!(state.holder, Some(name(1)));
    // Its paths work from now on: trusted after the stable time.
    play.answers = Answers {
        holder: Some((name(1), 200_000)),
        witness_until_ms: 200_000,
        ..Answers::default()
    };
    for second in 1..60 {
        play.on(second * 1000, read(second + 3, &name(1)));
        assert_eq!(
            play.elector.state().role,
            Role::Bystander,
            "after {second} s"
        );
    }
    play.on(61_000, read(70, &name(1)));
    assert_eq!(play.elector.state().role, Role::Candidate);
}

#[test]
fn a_holder_hands_over_and_stops_after_the_successor_renewed() {
    let to = name(0);
    let mut play = Play::holder(1, settings());
    play.on(500, Event::Drain(true));
    // At most one second more, whatever comes of the write.
    play.did(&[&format!("500: write 2: 2 -> {to:?}"), "500: arm until 1500"]);
    play.on(510, written(2, 3, &to));
    play.did(&[]);
    play.on(600, read(4, &to));
    // The successor arms when it has its answer.
    play.did(&["600: arm until 700"]);
    play.on(610, heard(&to));
    play.did(&["610: disarm"]);
    assert_eq!(play.elector.state().hindrance, Some(Hindrance::Drained));
}

#[test]
fn a_successor_renews_before_it_arms() {
    let own = name(0);
    let mut play = Play::new(0, settings());
    play.answers = Answers {
        holder: Some((name(1), 2000)),
        witness_until_ms: 60_000,
        ..Answers::default()
    };
    play.on(10, read(7, &name(1)));
    play.done.clear();
    play.on(500, read(8, &own));
    play.did(&[&format!("500: write 1: 8 -> {own:?}")]);
    play.on(520, written(1, 9, &own));
    play.did(&["520: arm until 4000", "520: announce"]);
}

#[test]
fn a_successor_that_does_not_renew_loses_the_lease_again() {
    let (own, to) = (name(1), name(0));
    let mut play = Play::holder(1, settings());
    play.on(200, Event::Candidates(candidates([true, true, true])));
    let mut version = 2;
    // Not before this node has held for the stable time.
    for second in 1..=60 {
        play.on(second * 1000 + 30, written(second + 1, version + 1, &own));
        version += 1;
    }
    play.done.clear();
    play.run(60_200);
    play.did(&[
        &format!("60100: write 62: {version} -> {to:?}"),
        "60100: arm until 61100",
    ]);
    play.on(60_110, written(62, version + 1, &to));
    play.run(60_700);
    play.did(&[&format!("60700: write 63: {} -> {own:?}", version + 1)]);
    play.on(60_710, written(63, version + 2, &own));
    play.did(&["60710: arm until 64200"]);
}

#[test]
fn a_holder_that_hears_a_peer_reads_the_lease_at_once() {
    let mut play = Play::holder(0, settings());
    play.run(300);
    for (from, reads) in [
        (Source::Stranger, false),
        (Source::Witness, false),
        (Source::Peer(name(1)), true),
    ] {
        let event = Event::Answer { path: 0, from };
        play.elector.on(event, time(300));
        let actions = play.elector.tick(time(300));
        assert_eq!(actions.contains(&Action::ReadLease), reads, "{actions:?}");
    }
}

#[test]
fn what_keeps_a_group_without_a_holder_is_known() {
    let mut play = Play::new(1, settings());
    assert_eq!(play.elector.state().rank, Some(1));
    play.on(0, Event::LeaseRead(view(7, None)));
    play.run(2_000);
    let obstacle = play.elector.obstacle(time(2_000));
    assert_eq!(obstacle, Some(Obstacle::NoWitness));
    play.answers.witness_until_ms = 60_000;
    play.on(2_000, Event::LeaseRead(view(8, None)));
    play.run(3_500);
    assert_eq!(play.elector.obstacle(time(3_500)), None);
    play.on(3_500, failed(1, Outcome::Failed));
    let obstacle = play.elector.obstacle(time(3_500));
    assert_eq!(obstacle, Some(Obstacle::LeaseRefused));
    play.on(3_600, Event::Candidates(Vec::new()));
    let obstacle = play.elector.obstacle(time(3_600));
    assert_eq!(obstacle, Some(Obstacle::NoCandidate));
    assert_eq!(play.elector.state().rank, None);
}

#[test]
fn who_shuts_down_alone_releases() {
    let mut play = Play::holder(0, settings());
    let alone = vec![candidates([true; 3]).remove(0)];
    play.on(200, Event::Candidates(alone));
    play.on(300, Event::Shutdown);
    play.did(&["300: write 2: 2 -> \"\"", "300: disarm"]);
    assert!(!play.elector.state().is_finished);
    play.on(
        310,
        Event::Written {
            id: WriteId(2),
            outcome: Outcome::Ok(view(3, None)),
        },
    );
    assert!(play.elector.state().is_finished);
}

#[test]
fn who_starts_without_the_api_server_as_before_claims_at_once() {
    for (lost, first) in [
        (true, "300: arm until 1300"),
        (false, "1000: arm until 2000"),
    ] {
        let mut play = Play::new(0, settings());
        play.answers.witness_until_ms = 60_000;
        if lost {
            play.on(0, Event::ServerLost);
        }
        play.on(1, Event::LeaseUnreachable);
        play.run(1500);
        assert!(play.elector.state().lacks_server);
        let mut done = play.done.iter();
        let armed = done.find(|done| done.contains("arm until"));
        assert_eq!(armed.map(String::as_str), Some(first));
        play.on(1600, read(1, &name(0)));
        assert!(!play.elector.state().lacks_server);
    }
}

#[test]
fn without_the_api_server_the_deadline_moves_a_second_at_a_time() {
    let own = name(0);
    let mut play = Play::holder(0, settings());
    play.run(1000);
    play.on(2000, failed(2, Outcome::TimedOut));
    play.done.clear();
    for second in 3..6 {
        play.on(second * 1000, Event::LeaseUnreachable);
    }
    // The Lease's own deadline was 3500.
    let extensions = [
        "3000: arm until 4000",
        "3500: arm until 4500",
        "4000: arm until 5000",
    ];
    play.did(
        &[
            &extensions[..],
            &["4500: arm until 5500", "5000: arm until 6000"],
        ]
        .concat(),
    );
    // The API server is back: the Lease is taken at once.
    play.on(5100, read(2, &own));
    play.did(&[&format!("5100: write 3: 2 -> {own:?}")]);
    play.on(5110, written(3, 3, &own));
    play.did(&["5110: arm until 8600"]);
}

#[test]
fn of_two_without_a_lease_the_worse_yields_at_once() {
    let standalone = Settings {
        coordination: Coordination::Peers,
        give_back: GiveBack::Never,
        ..settings()
    };
    for (rank, rival, yields) in [(1, 0, true), (0, 1, false)] {
        let mut play = Play::new(rank, standalone.clone());
        play.answers.witness_until_ms = 60_000;
        play.run(1000);
        let claimed = play.done.remove(0);
        let at_ms = 300 + 100 * rank as u64;
        assert_eq!(claimed, format!("{at_ms}: arm until {}", at_ms + 1000));
        play.done.clear();
        play.on(1050, heard(&name(rival)));
        let done = std::mem::take(&mut play.done);
        assert_eq!(
            done.contains(&"1050: disarm".to_owned()),
            yields,
            "{done:?}"
        );
        // A worse one that goes on holds by a Lease.
        for ms in [1250, 1450, 1650, 1850] {
            play.on(ms, heard(&name(rival)));
        }
        assert_eq!(
            play.done.contains(&"1850: disarm".to_owned()),
            !yields,
            "{:?}",
            play.done
        );
    }
}

#[test]
fn who_goes_on_announces_when_its_rival_has_stopped() {
    let standalone = Settings {
        coordination: Coordination::Peers,
        give_back: GiveBack::Never,
        ..settings()
    };
    let mut play = Play::new(0, standalone);
    play.answers.witness_until_ms = 60_000;
    play.run(1000);
    play.done.clear();
    play.on(1050, heard(&name(1)));
    play.run(2500);
    let announced = |play: &Play| play.done.iter().any(|done| done.ends_with(": announce"));
    assert!(!announced(&play), "{:?}", play.done);
    play.run(2600);
    assert!(announced(&play), "{:?}", play.done);
    play.done.clear();
    play.run(9000);
    assert!(!announced(&play), "{:?}", play.done);
}

#[test]
fn an_elector_that_stood_does_not_go_on_where_it_was() {
    let standalone = Settings {
        coordination: Coordination::Peers,
        ..settings()
    };
    let mut play = Play::new(0, standalone);
    play.answers.witness_until_ms = 60_000;
    play.run(1000);
    play.done.clear();
    // Three seconds later somebody else may hold: nothing is armed before probes went unanswered.
    play.now_ms = 4000;
    play.tick();
    play.did(&[]);
    play.run(4500);
    play.did(&["4300: arm until 5300", "4300: announce"]);
}
