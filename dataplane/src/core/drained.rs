//! Servers that take no new flows: how long they keep those that they have.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_api::{Drain, DrainEnd, ObjectKey};
use sluice_planner::{Resets, Server, ServerPorts};

/// Servers of a pool that are kept after they were removed. Beyond it those go that have been kept longest.
const MAX_REMOVED: usize = 1_024;
/// For how long packets of flows whose time is over are answered by resets.
const RESETS: Duration = Duration::from_mins(10);

/// What tells a server of a pool from another one.
type Identity = (IpAddr, Arc<ServerPorts>);

/// Since when servers are drained, by pool.
#[derive(Debug, Default)]
pub(super) struct Drained {
    pools: BTreeMap<ObjectKey, Pool>,
    agenda: BTreeSet<(Instant, ObjectKey)>,
}

/// The servers of a pool that are drained.
#[derive(Debug, Default)]
pub(super) struct Pool {
    since: BTreeMap<Identity, Instant>,
    /// When the next server's time is over.
    next: Option<Instant>,
}

impl Drained {
    /// The servers that a pool has, by those that are decided and those that it had `before`: whoever was removed stays for the time of
    /// the pool's `drain`, and who is drained for longer has no flows any more. Without a `drain` all are as decided.
    pub(super) fn keep(
        &mut self,
        pool: &ObjectKey,
        drain: Option<Drain>,
        before: &[Server],
        decided: Vec<Server>,
        now: Instant,
    ) -> Vec<Server> {
        let known = self.forget(pool).unwrap_or_default();
        let Some(drain) = drain else {
            return decided;
        };
        let time = Duration::from_secs(drain.timeout_seconds.into());
        let kept = match drain.then {
            DrainEnd::Forget => time,
            DrainEnd::Reset => time + RESETS,
        };
        let since = |server: &Server| known.since.get(&identity(server)).copied().unwrap_or(now);
        let has_passed = |since: Instant, time| now.saturating_duration_since(since) >= time;
        let addresses: BTreeSet<IpAddr> = decided.iter().map(|server| server.address).collect();
        // An address that came back with other ports is another server's.
        let removed = before
            .iter()
            .filter(|server| !addresses.contains(&server.address));
        let removed = removed.map(|server| Server {
            weight: 0,
            is_meant: false,
            is_last_resort: false,
            ..server.clone()
        });
        let removed = removed.filter(|server| !has_passed(since(server), kept));
        let mut removed: Vec<Server> = removed.collect();
        removed.sort_by_key(|server| Reverse(since(server)));
        removed.truncate(MAX_REMOVED);
        let mut after = Pool::default();
        let mut servers = Vec::new();
        for mut server in decided.into_iter().chain(removed) {
            if server.weight > 0 {
                servers.push(server);
                continue;
            }
            let since = since(&server);
            after.since.insert(identity(&server), since);
            let ends = [time, kept];
            let Some(end) = ends.into_iter().find(|end| !has_passed(since, *end)) else {
                continue;
            };
            if has_passed(since, time) {
                server.resets = Resets::Now;
            }
            after.next = after.next.into_iter().chain([since + end]).min();
            servers.push(server);
        }
        self.agenda
            .extend(after.next.map(|next| (next, pool.clone())));
        self.pools.insert(pool.clone(), after);
        servers
    }

    /// Forgets a pool.
    pub(super) fn forget(&mut self, pool: &ObjectKey) -> Option<Pool> {
        let known = self.pools.remove(pool)?;
        if let Some(next) = known.next {
            self.agenda.remove(&(next, pool.clone()));
        }
        Some(known)
    }

    /// When a server's time is over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.agenda.first().map(|(at, _)| *at)
    }

    /// The pools of which a server's time is over.
    pub(super) fn due(&self, now: Instant) -> BTreeSet<ObjectKey> {
        let due = self.agenda.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, pool)| pool.clone()).collect()
    }
}

fn identity(server: &Server) -> Identity {
    (server.address, Arc::clone(&server.ports))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_mins(1);

    fn pool() -> ObjectKey {
        ObjectKey::new("shop", "web")
    }

    fn server(last: u8, weight: u32) -> Server {
        Server {
            name: format!("server-{last}"),
            address: IpAddr::from([10, 0, 0, last]),
            node: None,
            weight,
            is_meant: weight > 0,
            is_last_resort: false,
            resets: Resets::Never,
            is_sampled: false,
            ports: Arc::default(),
        }
    }

    fn drain(then: DrainEnd) -> Drain {
        let timeout_seconds = u32::try_from(TIME.as_secs()).expect("a minute");
        Drain {
            timeout_seconds,
            then,
        }
    }

    /// A pool that is told what is decided, and keeps what it had.
    struct Kept {
        then: DrainEnd,
        drained: Drained,
        servers: Vec<Server>,
        start: Instant,
    }

    impl Kept {
        fn new() -> Self {
            Self {
                then: DrainEnd::Forget,
                drained: Drained::default(),
                servers: Vec::new(),
                start: Instant::now(),
            }
        }

        /// The servers after so many seconds, by the last part of their addresses, with their weights.
        fn at(&mut self, seconds: u64, decided: &[Server]) -> Vec<(u8, u32)> {
            let now = self.start + Duration::from_secs(seconds);
            let before = std::mem::take(&mut self.servers);
            let decided = decided.to_vec();
            let drain = Some(drain(self.then));
            self.servers = self.drained.keep(&pool(), drain, &before, decided, now);
            let last = |address: IpAddr| match address {
                IpAddr::V4(v4) => v4.octets()[3],
                IpAddr::V6(_) => unreachable!("no server has one"),
            };
            self.servers
                .iter()
                .map(|it| (last(it.address), it.weight))
                .collect()
        }

        fn deadline(&self) -> Option<u64> {
            let at = self.drained.deadline()?;
            Some(at.duration_since(self.start).as_secs())
        }
    }

    #[test]
    fn who_was_removed_is_drained_for_a_time() {
        let mut kept = Kept::new();
        assert_eq!(kept.at(0, &[server(1, 1), server(2, 3)]), [(1, 1), (2, 3)]);
        assert_eq!(kept.deadline(), None);
        assert_eq!(kept.at(10, &[server(1, 1)]), [(1, 1), (2, 0)]);
        assert_eq!(kept.deadline(), Some(70));
        assert_eq!(
            kept.at(69, &[server(1, 1)]),
            [(1, 1), (2, 0)],
            "changes do not begin it anew"
        );
        let now = kept.start + Duration::from_secs(70);
        assert_eq!(kept.drained.due(now), [pool()].into());
        assert_eq!(kept.at(70, &[server(1, 1)]), [(1, 1)]);
        assert_eq!(kept.deadline(), None);
        assert_eq!(kept.at(80, &[server(1, 1), server(2, 1)]), [(1, 1), (2, 1)]);
    }

    #[test]
    fn who_has_no_weight_is_drained_for_a_time() {
        let mut kept = Kept::new();
        let both = |weight| [server(1, 1), server(2, weight)];
        kept.at(0, &both(1));
        assert_eq!(kept.at(10, &both(0)), [(1, 1), (2, 0)]);
        assert_eq!(kept.at(70, &both(0)), [(1, 1)]);
        assert_eq!(kept.at(90, &both(0)), [(1, 1)], "its time is over");
        assert_eq!(kept.at(95, &both(2)), [(1, 1), (2, 2)]);
        assert_eq!(kept.at(100, &both(0)), [(1, 1), (2, 0)], "it begins anew");
        assert_eq!(kept.deadline(), Some(160));
    }

    #[test]
    fn whose_time_is_over_may_be_reset_for_ten_minutes() {
        let mut kept = Kept::new();
        kept.then = DrainEnd::Reset;
        kept.at(0, &[server(1, 1), server(2, 1), server(3, 1)]);
        let resets = |kept: &Kept| {
            let all = kept.servers.iter();
            all.map(|it| it.resets == Resets::Now).collect::<Vec<_>>()
        };
        let decided = [server(1, 1), server(2, 0)];
        let drained = [(1, 1), (2, 0), (3, 0)];
        assert_eq!(kept.at(10, &decided), drained);
        assert_eq!((resets(&kept), kept.deadline()), (vec![false; 3], Some(70)));
        assert_eq!(kept.at(70, &decided), drained);
        assert_eq!(resets(&kept), [false, true, true]);
        assert_eq!(kept.deadline(), Some(670));
        assert_eq!(kept.at(669, &[server(1, 1), server(2, 0)]), drained);
        assert_eq!(
            kept.at(669, &[server(1, 1), server(2, 5)]),
            [(1, 1), (2, 5), (3, 0)]
        );
        assert_eq!(resets(&kept), [false, false, true], "it is back");
        assert_eq!(
            kept.at(670, &[server(1, 1), server(2, 5)]),
            [(1, 1), (2, 5)]
        );
        assert_eq!(kept.deadline(), None);
    }

    #[test]
    fn who_goes_while_it_is_drained_goes_in_its_time() {
        let mut kept = Kept::new();
        kept.at(0, &[server(1, 1), server(2, 1)]);
        kept.at(10, &[server(1, 1), server(2, 0)]);
        assert_eq!(kept.at(50, &[server(1, 1)]), [(1, 1), (2, 0)]);
        assert_eq!(kept.deadline(), Some(70));
    }

    #[test]
    fn an_address_with_other_ports_is_another_server() {
        let mut kept = Kept::new();
        kept.at(0, &[server(1, 1)]);
        let ports = ServerPorts {
            default: Some(8080),
            ..ServerPorts::default()
        };
        let other = Server {
            ports: Arc::new(ports),
            ..server(1, 1)
        };
        assert_eq!(kept.at(1, &[other]), [(1, 1)]);
        assert_eq!(kept.deadline(), None);
    }

    #[test]
    fn the_ones_removed_last_stay_where_there_are_too_many() {
        let mut kept = Kept::new();
        let many = |count: u16| {
            let numbers = 0..count;
            let servers = numbers.map(|number| {
                let [high, low] = number.to_be_bytes();
                let address = IpAddr::from([10, 1, high, low]);
                Server {
                    address,
                    ..server(0, 1)
                }
            });
            servers.collect::<Vec<Server>>()
        };
        kept.at(0, &many(1_500));
        kept.at(1, &many(1_000));
        let left = kept.at(2, &many(0));
        assert_eq!(left.len(), MAX_REMOVED);
        let early = kept
            .servers
            .iter()
            .filter(|server| server.address >= IpAddr::from([10, 1, 3, 232]));
        assert_eq!(early.count(), 24, "of those that were removed first");
    }

    #[test]
    fn without_a_time_nobody_is_kept() {
        let mut kept = Kept::new();
        kept.at(0, &[server(1, 1), server(2, 1)]);
        kept.at(1, &[server(1, 1)]);
        let before = kept.servers.clone();
        let decided = vec![server(1, 0)];
        let servers = kept
            .drained
            .keep(&pool(), None, &before, decided.clone(), kept.start);
        assert_eq!(servers, decided);
        assert_eq!(kept.deadline(), None);
    }
}
