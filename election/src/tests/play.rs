//! An elector in a play: news at a time, and who answers its probes. Times are milliseconds since it began.

use std::time::Duration;

use crate::{
    Action, Candidate, Elector, Event, Health, LeaseView, Outcome, Settings, Source, Target, Time,
    WriteId, ranked,
};

pub(super) const GROUP: &str = "pool-0";

pub(super) fn time(ms: u64) -> Time {
    Time::from_nanos(1_000_000_000_000 + ms * 1_000_000)
}

/// Directors by rank: `name(0)` is the best.
pub(super) fn name(rank: usize) -> String {
    ranked(GROUP, ["d0", "d1", "d2"])[rank].to_owned()
}

pub(super) fn view(version: u64, holder: Option<&str>) -> LeaseView {
    LeaseView {
        version: version.to_string(),
        holder: holder.map(str::to_owned),
        renewed: version.to_string(),
        duration: Duration::from_secs(4),
    }
}

pub(super) fn read(version: u64, holder: &str) -> Event {
    Event::LeaseRead(view(version, Some(holder)))
}

pub(super) fn written(id: u64, version: u64, holder: &str) -> Event {
    Event::Written {
        id: WriteId(id),
        outcome: Outcome::Ok(view(version, Some(holder))),
    }
}

pub(super) fn failed(id: u64, outcome: Outcome) -> Event {
    Event::Written {
        id: WriteId(id),
        outcome,
    }
}

pub(super) fn heard(from: &str) -> Event {
    Event::Answer {
        path: 0,
        from: Source::Peer(from.to_owned()),
    }
}

/// Who answers probes, and until when.
#[derive(Clone, Default)]
pub(super) struct Answers {
    pub(super) holder: Option<(String, u64)>,
    pub(super) witness_until_ms: u64,
    /// A path on which the holder is silent from then on.
    pub(super) silent: Option<(usize, u64)>,
}

pub(super) struct Play {
    pub(super) elector: Elector,
    pub(super) answers: Answers,
    pub(super) now_ms: u64,
    pub(super) done: Vec<String>,
}

impl Play {
    /// Of three candidates the one with this rank.
    pub(super) fn new(rank: usize, settings: Settings) -> Self {
        let elector = Elector::new(GROUP, &name(rank), settings, time(0));
        let mut play = Self {
            elector,
            answers: Answers::default(),
            now_ms: 0,
            done: Vec::new(),
        };
        play.on(0, Event::Candidates(candidates([false; 3])));
        play.on(0, Event::Paths(1));
        play.on(0, Event::Health(Health::Whole));
        play
    }

    /// A holder by a Lease that it took before 0 ms and renewed at 0 ms; the write was number 1 or 2.
    pub(super) fn holder(rank: usize, settings: Settings) -> Self {
        let mut play = Self::new(
            rank,
            Settings {
                probing: crate::Probing::Off,
                ..settings.clone()
            },
        );
        play.on(0, Event::LeaseRead(view(1, None)));
        play.run(100);
        play.on(100, written(1, 2, &name(rank)));
        play.elector.settings = settings;
        play.done.clear();
        play
    }

    pub(super) fn on(&mut self, ms: u64, event: Event) {
        self.run(ms);
        self.elector.on(event, time(ms));
        self.tick();
    }

    pub(super) fn run(&mut self, until_ms: u64) {
        while let Some(next) = self.elector.next_deadline() {
            let nanos = next.as_nanos().saturating_sub(time(0).as_nanos());
            let next_ms = nanos.div_ceil(1_000_000);
            if next_ms > until_ms {
                break;
            }
            self.now_ms = next_ms.max(self.now_ms);
            self.tick();
        }
        self.now_ms = until_ms;
    }

    pub(super) fn tick(&mut self) {
        let now_ms = self.now_ms;
        for action in self.elector.tick(time(now_ms)) {
            let line = match action {
                Action::ReadLease => continue,
                Action::Probe { path, target } => {
                    self.answer(path, &target);
                    continue;
                }
                Action::WriteLease {
                    id,
                    version,
                    holder,
                } => {
                    let holder = holder.unwrap_or_default();
                    format!("write {}: {version} -> {holder:?}", id.0)
                }
                Action::Arm { until } => {
                    let ms = until.since(time(0)).as_millis();
                    format!("arm until {ms}")
                }
                Action::Disarm => "disarm".to_owned(),
                Action::Announce => "announce".to_owned(),
            };
            self.done.push(format!("{now_ms}: {line}"));
        }
    }

    fn answer(&mut self, path: usize, target: &Target) {
        let silent = self.answers.silent;
        let is_silent = silent.is_some_and(|(on, from_ms)| on == path && self.now_ms >= from_ms);
        let holder = self.answers.holder.as_ref().filter(|_| !is_silent);
        let from = match (target, holder) {
            (Target::Witness, _) if self.now_ms < self.answers.witness_until_ms => Source::Witness,
            (Target::Peer(asked), Some((holder, until_ms)))
                if asked == holder && self.now_ms < *until_ms =>
            {
                Source::Peer(holder.clone())
            }
            (Target::Broadcast, Some((holder, until_ms))) if self.now_ms < *until_ms => {
                Source::Peer(holder.clone())
            }
            _ => return,
        };
        let event = Event::Answer { path, from };
        self.elector.on(event, time(self.now_ms));
        let actions = self.elector.tick(time(self.now_ms));
        assert!(
            actions
                .iter()
                .all(|action| matches!(action, Action::ReadLease | Action::Probe { .. })),
            "{actions:?}"
        );
    }

    #[track_caller]
    pub(super) fn did(&mut self, expected: &[&str]) {
        assert_eq!(std::mem::take(&mut self.done), expected);
    }
}

pub(super) fn candidates(steady: [bool; 3]) -> Vec<Candidate> {
    let all = steady.into_iter().enumerate();
    all.map(|(rank, steady)| Candidate {
        name: name(rank),
        steady,
    })
    .collect()
}

pub(super) fn settings() -> Settings {
    Settings::default()
}
