//! What is known of a group's Lease, and whether the API server is in reach.

use std::time::Duration;

use crate::{LeaseView, Outcome, Settings, Time, WriteId};

/// How long beyond the request timeout the caller may take to say that a request timed out.
const CALLER_GRACE: Duration = Duration::from_secs(1);

/// A write under way.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) id: WriteId,
    pub(crate) sent: Time,
    pub(crate) holder: Option<String>,
}

/// What a new view changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Older than what is known, or the same.
    Nothing,
    /// Holder or renewal changed; the Lease as it was known before.
    Changed(Option<LeaseView>),
}

/// The Lease as last observed, by this host's clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lease {
    view: Option<LeaseView>,
    /// When its last change was observed here.
    changed: Time,
    /// Changes observed since the API server is in reach; the first may be from any time before.
    changes_in_reach: u32,
    /// Since when the API server is in reach.
    in_reach: Time,
    pending: Option<Pending>,
    writes: u64,
    reading: Option<Time>,
    /// The version may be outdated: read before the next write.
    is_doubtful: bool,
    next_read: Time,
    /// When the first of the requests was sent that failed since the last success.
    reads_fail: Option<Time>,
    writes_fail: Option<Time>,
}

impl Lease {
    pub(crate) fn view(&self) -> Option<&LeaseView> {
        self.view.as_ref()
    }

    /// Whom the Lease names.
    pub(crate) fn holder(&self) -> Option<&str> {
        self.view.as_ref()?.holder.as_deref()
    }

    pub(crate) fn changes_in_reach(&self) -> u32 {
        self.changes_in_reach
    }

    pub(crate) fn pending(&self) -> Option<&Pending> {
        self.pending.as_ref()
    }

    /// When the Lease expires unless another change is observed. Remote times play no part.
    pub(crate) fn expiry(&self, settings: &Settings) -> Option<Time> {
        let view = self.view.as_ref()?;
        if view.holder.is_none() {
            return Some(self.changed);
        }
        Some(self.changed + view.duration.max(settings.lease_duration))
    }

    /// Since when the Lease has been expired while the API server was in reach.
    pub(crate) fn overdue_from(&self, settings: &Settings) -> Option<Time> {
        Some(self.expiry(settings)?.max(self.in_reach))
    }

    /// Whether nothing may be written now: a write is under way, or the version is not known.
    pub(crate) fn is_busy(&self) -> bool {
        self.pending.is_some() || self.is_doubtful || self.view.is_none()
    }

    /// From when on the API server counts as out of reach, if no request succeeds before.
    pub(crate) fn unreachable_from(&self, settings: &Settings) -> Option<Time> {
        let first = self.reads_fail.into_iter().chain(self.writes_fail).min()?;
        Some(first + settings.request_timeout)
    }

    /// Takes the Lease as somebody read it.
    pub(crate) fn observe(
        &mut self,
        view: LeaseView,
        request_timeout: Duration,
        now: Time,
    ) -> News {
        if let Some(failed) = self.reads_fail.take() {
            self.changes_in_reach = 0;
            if now.since(failed) >= request_timeout {
                self.in_reach = now;
            }
        }
        let known = self.view.as_ref();
        if known.is_some_and(|known| is_older(&view.version, &known.version)) {
            return News::Nothing;
        }
        let is_same =
            known.is_some_and(|known| known.holder == view.holder && known.renewed == view.renewed);
        let before = self.view.replace(view);
        if is_same {
            return News::Nothing;
        }
        self.changed = now;
        self.changes_in_reach = self.changes_in_reach.saturating_add(1);
        News::Changed(before)
    }

    /// A read was answered, or a watch told something.
    pub(crate) fn was_read(&mut self, now: Time, settings: &Settings) {
        self.reading = None;
        self.is_doubtful = false;
        self.next_read = now + settings.renew_interval;
    }

    /// A holder reads by renewing: it need not ask before the next renewal had its time.
    pub(crate) fn was_renewed(&mut self, now: Time, settings: &Settings) {
        self.next_read = now + settings.renew_interval + settings.request_timeout;
    }

    /// A read failed.
    pub(crate) fn was_not_read(&mut self, now: Time, settings: &Settings) {
        let sent = self.reading.take().unwrap_or(now);
        self.reads_fail.get_or_insert(sent);
        self.next_read = now.max(sent + settings.request_timeout / 2);
    }

    /// A former process found the API server out of reach.
    pub(crate) fn was_lost(&mut self, now: Time, settings: &Settings) {
        let since = now - settings.request_timeout;
        self.reads_fail.get_or_insert(since);
    }

    /// Asks for a read at the next occasion; the version is outdated.
    pub(crate) fn doubt(&mut self, now: Time) {
        self.is_doubtful = true;
        self.read_by(now);
    }

    /// Asks for a read by then.
    pub(crate) fn read_by(&mut self, time: Time) {
        self.next_read = self.next_read.min(time);
    }

    /// When the next read is due; none while one is under way.
    pub(crate) fn next_read(&self) -> Option<Time> {
        self.reading.is_none().then_some(self.next_read)
    }

    pub(crate) fn start_read(&mut self, now: Time) {
        self.reading = Some(now);
    }

    /// Begins a write. Returns its number and the version that it replaces.
    pub(crate) fn start_write(&mut self, holder: Option<String>, now: Time) -> (WriteId, String) {
        self.writes += 1;
        let id = WriteId(self.writes);
        let sent = now;
        self.pending = Some(Pending { id, sent, holder });
        let version = self.view.as_ref().map(|view| view.version.clone());
        (id, version.unwrap_or_default())
    }

    /// Takes the answer to a write. The write is returned with what it wrote, if that is certain.
    pub(crate) fn was_written(
        &mut self,
        id: WriteId,
        outcome: Outcome,
        now: Time,
    ) -> Option<(Pending, Option<LeaseView>)> {
        if self.pending.as_ref().is_none_or(|pending| pending.id != id) {
            // Too late to rely on, but something may have been written.
            self.doubt(now);
            return None;
        }
        let pending = self.pending.take()?;
        match outcome {
            Outcome::Ok(view) => {
                self.writes_fail = None;
                return Some((pending, Some(view)));
            }
            Outcome::Conflict => self.writes_fail = None,
            Outcome::Failed | Outcome::TimedOut => {
                self.writes_fail.get_or_insert(pending.sent);
            }
        }
        self.doubt(now);
        Some((pending, None))
    }

    /// Who wrote in vain may try again after a while: without attempts nothing would tell that writes work again.
    pub(crate) fn forget_failed_writes(&mut self) {
        self.writes_fail = None;
    }

    pub(crate) fn writes_fail_since(&self) -> Option<Time> {
        self.writes_fail
    }

    /// When requests count as lost though the caller has not said so.
    pub(crate) fn read_deadline(&self, settings: &Settings) -> Option<Time> {
        let sent = self.reading?;
        Some(sent + settings.request_timeout + CALLER_GRACE)
    }

    /// As [`Lease::read_deadline`].
    pub(crate) fn write_deadline(&self, settings: &Settings) -> Option<Time> {
        let sent = self.pending.as_ref()?.sent;
        Some(sent + settings.request_timeout + CALLER_GRACE)
    }
}

/// Whether version `a` is before `b`. Versions that are no decimal numbers do not tell.
fn is_older(a: &str, b: &str) -> bool {
    let number = |text: &str| text.parse::<u128>().ok();
    number(a).zip(number(b)).is_some_and(|(a, b)| a < b)
}
