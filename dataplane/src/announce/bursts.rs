//! When VIPs are announced: often while neighbours may still know another holder, and every half a minute after that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use sluice_election::Time;

/// Times since a takeover, in milliseconds. A single frame may be lost, and neighbours that are busy may heed one in a second only
/// (Linux: `locktime`).
const BURST_MS: [u64; 6] = [0, 100, 500, 1_000, 2_000, 5_000];
/// Time between two announcements after the burst.
const PERIOD: Duration = Duration::from_secs(30);

/// The VIPs that are announced here, by VIP group, and when each is due.
#[derive(Debug, Default)]
pub(super) struct Bursts {
    groups: BTreeMap<String, BTreeMap<IpAddr, Turn>>,
    due: BTreeSet<(Time, String, IpAddr)>,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    began: Time,
    next: Time,
}

impl Bursts {
    /// A burst begins now for these VIPs of a group, and for no others of it.
    pub(super) fn begin(&mut self, group: &str, vips: &BTreeSet<IpAddr>, now: Time) {
        self.end(group);
        // All of its VIPs may be new: those that are announced later find the group here.
        self.groups.insert(group.to_owned(), BTreeMap::new());
        for &vip in vips {
            self.put(group, vip, now);
        }
    }

    /// The VIPs of a group that is announced are these from now on. Those that are new begin with a burst.
    pub(super) fn keep(&mut self, group: &str, vips: &BTreeSet<IpAddr>, now: Time) {
        let Some(known) = self.groups.get_mut(group) else {
            return;
        };
        let gone: Vec<(IpAddr, Turn)> =
            known.extract_if(.., |vip, _| !vips.contains(vip)).collect();
        let new: Vec<IpAddr> = vips
            .iter()
            .filter(|vip| !known.contains_key(vip))
            .copied()
            .collect();
        for (vip, turn) in gone {
            self.due.remove(&(turn.next, group.to_owned(), vip));
        }
        for vip in new {
            self.put(group, vip, now);
        }
    }

    /// The burst of every group begins anew, as when a link has come back.
    pub(super) fn begin_again(&mut self, now: Time) {
        let groups = std::mem::take(&mut self.groups);
        self.due.clear();
        for (group, vips) in groups {
            self.begin(&group, &vips.into_keys().collect(), now);
        }
    }

    /// A group is not announced any more.
    pub(super) fn end(&mut self, group: &str) {
        for (vip, turn) in self.groups.remove(group).into_iter().flatten() {
            self.due.remove(&(turn.next, group.to_owned(), vip));
        }
    }

    /// When the next announcement is due.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.due.first().map(|(time, ..)| *time)
    }

    /// An announcement that is due. Call again until there is none.
    pub(super) fn take_due(&mut self, now: Time) -> Option<(String, IpAddr)> {
        let first = self.due.first()?;
        if first.0 > now {
            return None;
        }
        let (_, group, vip) = self.due.pop_first()?;
        let turn = self.groups.get_mut(&group)?.get_mut(&vip)?;
        // What was missed in a pause is not made up for.
        let mut later = BURST_MS
            .iter()
            .map(|&ms| turn.began + Duration::from_millis(ms));
        turn.next = later.find(|time| *time > now).unwrap_or(now + PERIOD);
        self.due.insert((turn.next, group.clone(), vip));
        Some((group, vip))
    }

    fn put(&mut self, group: &str, vip: IpAddr, now: Time) {
        let turn = Turn {
            began: now,
            next: now,
        };
        let vips = self.groups.entry(group.to_owned()).or_default();
        vips.insert(vip, turn);
        self.due.insert((now, group.to_owned(), vip));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::default() + Duration::from_millis(ms)
    }

    fn vips(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Times in milliseconds at which VIPs are announced, until `end`.
    fn run(bursts: &mut Bursts, end: u64) -> Vec<(u64, String)> {
        let mut sent = Vec::new();
        while let Some(next) = bursts.deadline().filter(|next| *next <= at(end)) {
            while let Some((_, vip)) = bursts.take_due(next) {
                let ms = u64::try_from(next.since(at(0)).as_millis()).unwrap();
                sent.push((ms, vip.to_string()));
            }
        }
        sent
    }

    #[test]
    fn a_takeover_is_told_six_times_and_then_every_half_a_minute() {
        let mut bursts = Bursts::default();
        bursts.begin("edge-0", &vips(&["203.0.113.7"]), at(0));
        let times: Vec<u64> = run(&mut bursts, 70_000)
            .into_iter()
            .map(|(ms, _)| ms)
            .collect();
        assert_eq!(times, [0, 100, 500, 1_000, 2_000, 5_000, 35_000, 65_000]);
    }

    #[test]
    fn a_new_vip_of_a_held_group_begins_by_itself() {
        let mut bursts = Bursts::default();
        bursts.begin("edge-0", &vips(&["203.0.113.7", "203.0.113.9"]), at(0));
        run(&mut bursts, 9_000);
        bursts.keep("edge-0", &vips(&["203.0.113.7", "203.0.113.8"]), at(10_000));
        let sent = run(&mut bursts, 11_000);
        let expected = [10_000, 10_100, 10_500, 11_000].map(|ms| (ms, "203.0.113.8".to_owned()));
        assert_eq!(sent, expected);
        bursts.keep("edge-1", &vips(&["203.0.113.1"]), at(11_000));
        assert_eq!(bursts.groups.len(), 1, "the group is not announced here");
        bursts.begin("edge-1", &vips(&[]), at(12_000));
        bursts.keep("edge-1", &vips(&["203.0.113.1"]), at(13_000));
        let first = run(&mut bursts, 13_000);
        assert_eq!(first.last(), Some(&(13_000, "203.0.113.1".to_owned())));
    }

    #[test]
    fn nothing_is_sent_of_a_group_that_ended() {
        let mut bursts = Bursts::default();
        bursts.begin("edge-0", &vips(&["203.0.113.7"]), at(0));
        bursts.begin("edge-1", &vips(&["203.0.113.8"]), at(0));
        bursts.end("edge-0");
        let sent = run(&mut bursts, 1_000);
        assert!(sent.iter().all(|(_, vip)| vip == "203.0.113.8"), "{sent:?}");
        bursts.end("edge-1");
        assert_eq!(bursts.deadline(), None);
    }

    #[test]
    fn a_link_that_is_back_is_told_everything() {
        let mut bursts = Bursts::default();
        bursts.begin("edge-0", &vips(&["203.0.113.7"]), at(0));
        run(&mut bursts, 20_000);
        bursts.begin_again(at(20_000));
        assert_eq!(run(&mut bursts, 20_500).len(), 3);
    }

    #[test]
    fn what_was_missed_in_a_pause_is_not_sent_at_once() {
        let mut bursts = Bursts::default();
        bursts.begin("edge-0", &vips(&["203.0.113.7"]), at(0));
        assert!(bursts.take_due(at(60_000)).is_some());
        assert_eq!(bursts.take_due(at(60_000)), None);
    }
}
