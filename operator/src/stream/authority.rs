//! Which authorities sign the operator's certificate, and when they take over from each other. Pure: time is an argument.
//!
//! ```text
//! made ──── LEAD ───► signs ──── until the next one has led ───► trusted for KEEP ───► gone
//!   (agents read it)         (at ROTATE_AFTER the next is made)
//! ```
//!
//! Agents read the bundle before each connection, so an authority that signs has been in it for [`LEAD`]; the first one signs at once.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Seconds of an hour.
const HOUR: i64 = 3600;
/// Seconds of a day.
const DAY: i64 = 24 * HOUR;
/// How long an authority is valid.
pub(super) const LIFETIME: i64 = 90 * DAY;
/// Age at which the next authority is made.
const ROTATE_AFTER: i64 = 60 * DAY;
/// How long an authority is in the bundle before it signs.
const LEAD: i64 = HOUR;
/// How long a certificate of the operator is valid. It is renewed at half of that.
pub(super) const SERVING: i64 = DAY;
/// How long an authority is trusted after the next one signs.
const KEEP: i64 = SERVING;
/// Authorities at a time. More are nobody's but the newest.
const MOST: usize = 4;

/// An authority with its key.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(super) struct Authority {
    /// When it was made, in seconds since 1970.
    pub(super) made_at: i64,
    /// Its certificate as PEM.
    pub(super) certificate: String,
    /// Its key as PEM.
    pub(super) key: String,
}

/// Keys are for no log.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("made_at", &self.made_at)
            .finish_non_exhaustive()
    }
}

/// All that are trusted, the oldest first.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(transparent)]
pub(super) struct Authorities(Vec<Authority>);

impl Authorities {
    /// Those that should be there now: without the ones that have had their time, and with a new one if it is time for that.
    pub(super) fn at<E>(
        &self,
        now: i64,
        make: impl FnOnce(i64) -> Result<Authority, E>,
    ) -> Result<Self, E> {
        let mut all = self.0.clone();
        all.sort_by_key(|authority| authority.made_at);
        all.retain(|authority| now < authority.made_at + LIFETIME);
        let superseded = all.iter().skip(1);
        let superseded = superseded.take_while(|next| next.made_at + LEAD + KEEP <= now);
        let mut gone = superseded.count();
        gone = gone.max(all.len().saturating_sub(MOST));
        all.drain(..gone);
        let newest = all.last();
        if newest.is_none_or(|newest| newest.made_at + ROTATE_AFTER <= now) {
            all.push(make(now)?);
        }
        Ok(Self(all))
    }

    /// The one that signs.
    pub(super) fn signer(&self, now: i64) -> Option<&Authority> {
        let has_led = |authority: &&Authority| authority.made_at + LEAD <= now;
        let newest = self.0.iter().rev().find(has_led);
        newest.or_else(|| self.0.first())
    }

    /// The certificates of all, as PEM.
    pub(super) fn bundle(&self) -> String {
        let certificates = self.0.iter();
        certificates
            .map(|authority| authority.certificate.as_str())
            .collect()
    }
}

/// Whether a certificate that this authority signed at `signed_at` is to be replaced by one of `signer`.
pub(super) fn is_due(signed_by: &str, signed_at: i64, signer: &Authority, now: i64) -> bool {
    let age = now - signed_at;
    signed_by != signer.certificate || !(0..SERVING / 2).contains(&age)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn named(made_at: i64) -> Authority {
        Authority {
            made_at,
            certificate: format!("[{made_at}]"),
            key: "secret".to_owned(),
        }
    }

    fn at(all: &Authorities, now: i64) -> Authorities {
        let made = all.at(now, |now| Ok::<_, Infallible>(named(now)));
        made.unwrap_or_else(|never| match never {})
    }

    fn signer(all: &Authorities, now: i64) -> i64 {
        all.signer(now).expect("one").made_at
    }

    #[test]
    fn the_first_signs_at_once() {
        let all = at(&Authorities::default(), 1000);
        assert_eq!(all.bundle(), "[1000]");
        assert_eq!(signer(&all, 1000), 1000);
        assert_eq!(at(&all, 1000 + LEAD), all);
    }

    #[test]
    fn old_and_new_overlap() {
        let first = at(&Authorities::default(), 0);
        assert_eq!(at(&first, ROTATE_AFTER - 1), first);
        let both = at(&first, ROTATE_AFTER);
        assert_eq!(both.bundle(), format!("[0][{ROTATE_AFTER}]"));
        // Nobody is shown a certificate of the new one before all can have read it.
        assert_eq!(signer(&both, ROTATE_AFTER + LEAD - 1), 0);
        assert_eq!(signer(&both, ROTATE_AFTER + LEAD), ROTATE_AFTER);
        let last = ROTATE_AFTER + LEAD + KEEP;
        assert_eq!(at(&both, last - 1), both);
        assert_eq!(at(&both, last).bundle(), format!("[{ROTATE_AFTER}]"));
    }

    /// At every hour of a year: who signs is trusted and valid, for longer than what it signs.
    #[test]
    fn whoever_signs_is_trusted_for_as_long_as_it_counts() {
        let mut all = Authorities::default();
        let mut signed: Vec<(i64, i64)> = Vec::new();
        for hour in 0..365 * 24 {
            let now = hour * HOUR;
            all = at(&all, now);
            assert!(all.0.len() <= 2);
            let by = signer(&all, now);
            assert!(by == 0 || now >= by + LEAD);
            signed.push((now, by));
            signed.retain(|(at, _)| now < at + SERVING);
            for (_, by) in &signed {
                let authority = all.0.iter().find(|authority| authority.made_at == *by);
                let authority = authority.expect("whose certificates count is trusted");
                assert!(now < authority.made_at + LIFETIME);
            }
        }
    }

    #[test]
    fn an_operator_that_was_away_for_long_begins_anew() {
        let all = at(&Authorities::default(), 0);
        let now = LIFETIME + DAY;
        let anew = at(&all, now);
        assert_eq!(anew.bundle(), format!("[{now}]"));
        assert_eq!(signer(&anew, now), now);
    }

    #[test]
    fn there_are_never_many() {
        let many = Authorities((0..100).map(named).collect());
        assert_eq!(at(&many, 200).0.len(), MOST);
    }

    #[test]
    fn certificates_are_renewed_in_time_and_by_the_right_one() {
        let signer = named(0);
        let due = |signed_by, at| is_due(signed_by, 0, &signer, at);
        assert!(!due("[0]", SERVING / 2 - 1));
        assert!(due("[0]", SERVING / 2));
        assert!(due("[1]", 0));
        assert!(due("[0]", -1), "a clock that was put back");
    }

    #[test]
    fn a_key_is_not_shown() {
        assert!(!format!("{:?}", named(1)).contains("secret"));
    }
}
