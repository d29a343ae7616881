//! First use of an address: who has a VIP already is asked before this node answers for it (RFC 5227, section 2.1.1; RFC 4862,
//! section 5.4).
//!
//! ```text
//!             ┌─ three probes, nobody answered ───┐
//! waiting ─► probing ─── a director answers ──────┴─► free: the core has the VIP answered for, and drops it from the plan's new ones
//!              ▲  └──── a stranger answers ───► in use
//!              └──────── ten seconds later ───────┘
//! ```
//!
//! Every director that may hold a VIP's group asks for itself, whoever holds it. So all of them know the answer before any of them
//! has to take over, and a takeover waits for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use sluice_election::Time;

/// Probes before an address counts as free (RFC 5227, section 1.1: `PROBE_NUM`).
const PROBES: u8 = 3;
/// Time after each probe in which it may be answered.
const PAUSE: Duration = Duration::from_millis(200);
/// Time until an address that is in use, or could not be asked for, is asked for again.
const AGAIN: Duration = Duration::from_secs(10);
const NO_LINK_AGAIN: Duration = Duration::from_secs(1);
/// The most addresses that are asked for at a time.
const AT_ONCE: usize = 256;

/// Who says that an address is its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum By {
    /// A director: the VIP is in service.
    Director,
    /// Another host.
    Stranger,
}

/// The VIPs that this node does not answer for yet.
#[derive(Debug, Default)]
pub(super) struct FirstUse {
    vips: BTreeMap<IpAddr, Vip>,
    due: BTreeSet<(Time, IpAddr)>,
    waiting: BTreeSet<IpAddr>,
    free: BTreeSet<IpAddr>,
}

#[derive(Debug)]
struct Vip {
    group: String,
    stage: Stage,
    /// A stranger answered, and was not found to be gone since.
    is_in_use: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Others are asked for first.
    Waiting,
    /// So many probes were sent; something is due then.
    Probing(u8, Time),
    /// A stranger has it; it is asked for again then.
    InUse(Time),
    /// Nobody has it, or a director announces it.
    Free,
}

impl Stage {
    fn due(self) -> Option<Time> {
        match self {
            Self::Probing(_, due) | Self::InUse(due) => Some(due),
            Self::Waiting | Self::Free => None,
        }
    }
}

impl FirstUse {
    /// The VIPs that are new, with their groups, are these from now on.
    pub(super) fn set(&mut self, new: BTreeMap<IpAddr, String>, now: Time) {
        let gone: Vec<IpAddr> = self.vips.keys().copied().collect();
        for vip in gone.into_iter().filter(|vip| !new.contains_key(vip)) {
            self.put(vip, Stage::Free);
            self.vips.remove(&vip);
            self.free.remove(&vip);
        }
        for (vip, group) in new {
            let known = self.vips.entry(vip).or_insert_with(|| {
                self.waiting.insert(vip);
                Vip {
                    group: String::new(),
                    stage: Stage::Waiting,
                    is_in_use: false,
                }
            });
            known.group = group;
        }
        self.admit(now);
    }

    /// Takes in that somebody says that an address is its own.
    pub(super) fn answered(&mut self, address: IpAddr, by: By, now: Time) {
        let Some(vip) = self.vips.get_mut(&address) else {
            return;
        };
        match (by, vip.stage) {
            (_, Stage::Free) | (By::Stranger, Stage::InUse(_)) => return,
            (By::Director, _) => {
                vip.is_in_use = false;
                self.put(address, Stage::Free);
            }
            (By::Stranger, _) => {
                vip.is_in_use = true;
                self.put(address, Stage::InUse(now + AGAIN));
            }
        }
        self.admit(now);
    }

    /// An address that is to be asked for now, with its group. Call again until there is none.
    pub(super) fn take_due(&mut self, now: Time) -> Option<(IpAddr, String)> {
        while let Some((_, address)) = self.due.first().filter(|(due, _)| *due <= now) {
            let address = *address;
            let vip = self.vips.get_mut(&address)?;
            let sent = match vip.stage {
                Stage::Probing(sent, _) => sent,
                _ => 0,
            };
            if sent < PROBES {
                let group = vip.group.clone();
                self.put(address, Stage::Probing(sent + 1, now + PAUSE));
                return Some((address, group));
            }
            vip.is_in_use = false;
            self.put(address, Stage::Free);
            self.admit(now);
        }
        None
    }

    /// An address could not be asked for: no link of it is up.
    pub(super) fn postpone(&mut self, address: IpAddr, now: Time) {
        if self.is_new(address) {
            self.put(address, Stage::Probing(0, now + NO_LINK_AGAIN));
        }
    }

    /// When something is due.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Whether this node does not answer for a VIP yet.
    pub(super) fn is_new(&self, address: IpAddr) -> bool {
        self.vips.contains_key(&address)
    }

    /// Whether a VIP is not announced since a stranger has it.
    pub(super) fn is_in_use(&self, address: IpAddr) -> bool {
        self.vips.get(&address).is_some_and(|vip| vip.is_in_use)
    }

    /// The VIPs that may be answered for from now on.
    pub(super) fn free(&self) -> &BTreeSet<IpAddr> {
        &self.free
    }

    /// Begins with those that wait, as far as there is room.
    fn admit(&mut self, now: Time) {
        while self.due.len() < AT_ONCE
            && let Some(address) = self.waiting.pop_first()
        {
            self.put(address, Stage::Probing(0, now));
        }
    }

    fn put(&mut self, address: IpAddr, stage: Stage) {
        let Some(vip) = self.vips.get_mut(&address) else {
            return;
        };
        if let Some(due) = vip.stage.due() {
            self.due.remove(&(due, address));
        }
        vip.stage = stage;
        self.waiting.remove(&address);
        if let Some(due) = stage.due() {
            self.due.insert((due, address));
        }
        if stage == Stage::Free {
            self.free.insert(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Time {
        Time::default() + Duration::from_millis(ms)
    }

    fn vip(number: u16) -> IpAddr {
        let [high, low] = number.to_be_bytes();
        [198, 18, high, low].into()
    }

    fn new(numbers: impl IntoIterator<Item = u16>) -> BTreeMap<IpAddr, String> {
        let vips = numbers.into_iter().map(vip);
        vips.map(|vip| (vip, "edge-0".to_owned())).collect()
    }

    /// Times of the probes until then, in milliseconds.
    fn run(first: &mut FirstUse, end: u64) -> Vec<u64> {
        let mut sent = Vec::new();
        while let Some(due) = first.deadline().filter(|due| *due <= at(end)) {
            while first.take_due(due).is_some() {
                sent.push(u64::try_from(due.since(at(0)).as_millis()).unwrap());
            }
        }
        sent
    }

    #[test]
    fn an_address_that_nobody_has_is_free_after_three_probes() {
        let mut first = FirstUse::default();
        first.set(new([1]), at(0));
        assert_eq!(run(&mut first, 599), [0, 200, 400]);
        assert!(first.free().is_empty() && first.is_new(vip(1)));
        assert!(run(&mut first, 60_000).is_empty());
        assert_eq!(first.free(), &[vip(1)].into());
        first.set(new([]), at(700));
        assert!(first.free().is_empty() && !first.is_new(vip(1)));
    }

    #[test]
    fn one_that_a_stranger_has_is_asked_for_every_ten_seconds() {
        let mut first = FirstUse::default();
        first.set(new([1]), at(0));
        assert_eq!(run(&mut first, 100), [0]);
        first.answered(vip(1), By::Stranger, at(100));
        first.answered(vip(1), By::Stranger, at(5_000));
        assert_eq!(run(&mut first, 10_100), [10_100]);
        assert!(first.is_in_use(vip(1)), "until it is known to be gone");
        first.answered(vip(1), By::Stranger, at(10_101));
        assert_eq!(run(&mut first, 30_000), [20_101, 20_301, 20_501]);
        assert!(!first.is_in_use(vip(1)));
        assert_eq!(first.free(), &[vip(1)].into());
    }

    #[test]
    fn one_that_a_director_announces_is_free_at_once() {
        let mut first = FirstUse::default();
        first.set(new([1, 2]), at(0));
        run(&mut first, 0);
        first.answered(vip(1), By::Director, at(1));
        first.answered(vip(2), By::Stranger, at(1));
        assert_eq!(first.free(), &[vip(1)].into());
        first.answered(vip(2), By::Director, at(2));
        assert_eq!(first.free(), &[vip(1), vip(2)].into());
        assert_eq!(first.deadline(), None);
    }

    #[test]
    fn without_a_link_nothing_counts_as_free() {
        let mut first = FirstUse::default();
        first.set(new([1]), at(0));
        for second in 0..5 {
            let (address, _) = first.take_due(at(second * 1000)).unwrap();
            first.postpone(address, at(second * 1000));
        }
        assert_eq!(run(&mut first, 5_599), [5_000, 5_200, 5_400]);
        assert!(first.free().is_empty());
    }

    #[test]
    fn many_are_asked_for_in_turn() {
        let mut first = FirstUse::default();
        first.set(new(0..1_000), at(0));
        assert_eq!(run(&mut first, 0).len(), AT_ONCE);
        run(&mut first, 2_399);
        assert!(first.free().len() < 1_000);
        run(&mut first, 2_400);
        assert_eq!(first.free().len(), 1_000);
    }

    /// What happens to one of four addresses.
    #[derive(Clone, Copy, Debug)]
    enum Happens {
        Answered(u16, By),
        Given(u16),
        Taken(u16),
    }

    fn happens() -> impl Strategy<Value = (u64, Happens)> {
        let what = prop_oneof![
            (0..4_u16).prop_map(|n| Happens::Answered(n, By::Stranger)),
            (0..4_u16).prop_map(|n| Happens::Answered(n, By::Director)),
            (0..4_u16).prop_map(Happens::Given),
            (0..4_u16).prop_map(Happens::Taken),
        ];
        (0..3_000_u64, what)
    }

    proptest! {
        /// An address becomes free by a director's answer, or when the last three probes went unanswered for 200 ms each; and
        /// once nobody answers any more, every address becomes free.
        #[test]
        fn an_address_is_free_only_if_nobody_else_answers(story in prop::collection::vec(happens(), 1..60)) {
            let mut first = FirstUse::default();
            let mut given = BTreeSet::new();
            // When each address was given, or a stranger last answered for it.
            let mut doubted: BTreeMap<IpAddr, u64> = BTreeMap::new();
            let mut announced = BTreeSet::new();
            let mut now = 0;
            for (pause, what) in story {
                for ms in now..now + pause {
                    run(&mut first, ms);
                    for vip in first.free() {
                        prop_assert!(announced.contains(vip) || ms >= doubted[vip] + 600, "{vip} at {ms}");
                    }
                }
                now += pause;
                match what {
                    Happens::Answered(number, by) => {
                        let is_open = !first.free().contains(&vip(number));
                        first.answered(vip(number), by, at(now));
                        if given.contains(&number) && is_open {
                            match by {
                                By::Director => drop(announced.insert(vip(number))),
                                By::Stranger => drop(doubted.insert(vip(number), now)),
                            }
                        }
                    }
                    Happens::Given(number) => {
                        if given.insert(number) {
                            doubted.insert(vip(number), now);
                            announced.remove(&vip(number));
                        }
                    }
                    Happens::Taken(number) => drop(given.remove(&number)),
                }
                first.set(new(given.iter().copied()), at(now));
            }
            run(&mut first, now + 10_600);
            prop_assert_eq!(first.free().len(), given.len());
        }
    }
}
