//! Which seconds are still to be sent.

use sluice_signals::{Report, Second};

use crate::wire::{MAX_MESSAGE_BYTES, encoded_bytes};

/// What one stream has sent. A new stream begins anew: the operator counts each second of a session once.
#[derive(Debug, Default)]
pub(crate) struct Unsent {
    /// The session, and the first number that was not sent.
    next: Option<(u64, u64)>,
}

impl Unsent {
    /// The messages that bring the operator up to date, each small enough. Seconds in which no pool was looked at go without saying, but the
    /// last of a stream's first: by that the operator knows from where on to count.
    pub(crate) fn take(&mut self, report: Report) -> Vec<Report> {
        let Some(last) = report.seconds.last().map(|second| second.number) else {
            return Vec::new();
        };
        let session = report.session;
        let from = self.next.filter(|(known, _)| *known == session);
        let is_first = self.next.is_none();
        self.next = Some((session, last.saturating_add(1)));
        let seconds = report.seconds.into_iter().filter(|second| {
            let is_new = from.is_none_or(|(_, from)| second.number >= from);
            is_new && (!second.pools.is_empty() || is_first && second.number == last)
        });
        packed(session, seconds)
    }
}

/// Puts seconds into messages. A second alone always fits.
fn packed(session: u64, seconds: impl Iterator<Item = Second>) -> Vec<Report> {
    let mut messages: Vec<(usize, Report)> = Vec::new();
    for second in seconds {
        let alone = Report {
            session,
            seconds: vec![second],
        };
        let size = encoded_bytes(&alone);
        match messages.last_mut() {
            Some((bytes, message)) if *bytes + size <= MAX_MESSAGE_BYTES => {
                *bytes += size;
                message.seconds.extend(alone.seconds);
            }
            _ => messages.push((size, alone)),
        }
    }
    messages.into_iter().map(|(_, message)| message).collect()
}

#[cfg(test)]
mod tests {
    use sluice_signals::{MAX_POOLS, MAX_SECONDS, PoolTally};

    use super::*;

    fn second(number: u64, pools: usize) -> Second {
        let pool = |n| PoolTally {
            namespace: "shop".to_owned(),
            name: format!("{n:0>200}"),
            ..PoolTally::default()
        };
        Second {
            number,
            pools: (0..pools).map(pool).collect(),
        }
    }

    fn report(session: u64, seconds: Vec<Second>) -> Report {
        Report { session, seconds }
    }

    fn numbers(messages: &[Report]) -> Vec<u64> {
        let seconds = messages.iter().flat_map(|message| &message.seconds);
        seconds.map(|second| second.number).collect()
    }

    #[test]
    fn each_second_is_sent_once() {
        let mut unsent = Unsent::default();
        assert!(unsent.take(report(7, Vec::new())).is_empty());
        let mut seconds = vec![second(3, 1), second(4, 1)];
        assert_eq!(numbers(&unsent.take(report(7, seconds.clone()))), [3, 4]);
        assert!(unsent.take(report(7, seconds.clone())).is_empty());
        seconds.extend([second(5, 1), second(6, 2)]);
        assert_eq!(numbers(&unsent.take(report(7, seconds))), [5, 6]);
        let again = vec![second(0, 1)];
        assert_eq!(numbers(&unsent.take(report(8, again))), [0], "a session");
    }

    #[test]
    fn seconds_without_pools_are_told_of_at_the_beginning_only() {
        let mut unsent = Unsent::default();
        let mut seconds = vec![second(1, 0), second(2, 0)];
        assert_eq!(numbers(&unsent.take(report(7, seconds.clone()))), [2]);
        seconds.extend([second(3, 0), second(4, 1), second(5, 0)]);
        assert_eq!(numbers(&unsent.take(report(7, seconds))), [4]);
    }

    #[test]
    fn much_goes_in_several_messages_that_fit() {
        let most = u64::try_from(MAX_SECONDS).expect("a number");
        let seconds: Vec<Second> = (0..most).map(|n| second(n, MAX_POOLS)).collect();
        let messages = Unsent::default().take(report(7, seconds));
        assert!(messages.len() > 1);
        assert_eq!(numbers(&messages).len(), MAX_SECONDS);
        for message in messages {
            assert!(encoded_bytes(&message) <= MAX_MESSAGE_BYTES);
        }
    }
}
