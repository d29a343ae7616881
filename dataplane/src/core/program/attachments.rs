//! Which programs are attached where, and keeping it so.
//!
//! Attaching is a round: everything that is missing is attached, then what is attached is listed, then what is not wanted
//! any more is taken off. A round whose interfaces, spec or bridges have changed, or in which something failed, is
//! followed by another. Between rounds there is a look at what was attached: the kernel tells nobody when it goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sluice_api::{AttachMode, InterfaceStatus, LoadBalancerNodeSpec, XdpMode};
use tracing::{info, warn};

use crate::core::io::{Attachment, Effect, Place, Wanted};
use crate::maps::{Attached, Error, Hook, Mode, XdpChoice};
use crate::netlink::{Medium, Table};

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Time between two looks at whether what was attached still is.
const LOOK: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Awaited {
    /// The programs that are gone from their interfaces.
    Look,
    /// The outcomes of a round.
    Round,
}

/// The programs on this node's interfaces.
#[derive(Debug, Default)]
pub(in crate::core) struct Attachments {
    uplinks: BTreeMap<String, InterfaceStatus>,
    /// Errors of attaching to bridges, by the interface's name.
    bridges: BTreeMap<String, String>,
    /// Programs that this process has attached: index of the interface by hook and name.
    done: BTreeMap<(Hook, String), u32>,
    /// Whether tc programs are attached by links; `None` before the first one was.
    uses_tcx: Option<bool>,
    /// Interfaces, the spec, or what is attached have changed since the last round.
    changed: bool,
    awaited: Option<Awaited>,
    /// Whether something in this round failed that trying again may mend.
    failed: bool,
    retry_at: Option<Instant>,
    looked_at: Option<Instant>,
    /// The spec of the last round.
    spec: Option<LoadBalancerNodeSpec>,
    wanted_bridges: BTreeSet<u32>,
}

impl Attachments {
    /// The uplinks, in the order of their names.
    pub(in crate::core) fn uplinks(&self) -> impl Iterator<Item = &InterfaceStatus> {
        self.uplinks.values()
    }

    /// The uplinks that the programs are not attached to, and why.
    pub(in crate::core) fn missed_uplinks(&self) -> Vec<String> {
        let uplinks = self.uplinks.values();
        let missed = uplinks.filter(|uplink| uplink.attach_mode == AttachMode::None);
        let text = |uplink: &InterfaceStatus| {
            let reason = uplink.reason.as_deref().unwrap_or("not attached");
            format!("{}: {reason}", uplink.name)
        };
        missed.map(text).collect()
    }

    /// The errors of attaching to bridges, by the interface's name.
    pub(in crate::core) fn bridge_problems(&self) -> &BTreeMap<String, String> {
        &self.bridges
    }

    /// Whether tc programs are attached by links; `None` before the first one was.
    pub(in crate::core) fn uses_tcx(&self) -> Option<bool> {
        self.uses_tcx
    }

    /// When something is due. A look comes with any turn.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Whether an outcome is awaited.
    pub(super) fn is_waiting(&self) -> bool {
        self.awaited.is_some()
    }

    /// Interfaces have changed.
    pub(in crate::core) fn interfaces_changed(&mut self) {
        self.changed = true;
    }

    /// Goes on with what is due: a look, or a round.
    pub(super) fn turn(
        &mut self,
        table: &Table,
        spec: &LoadBalancerNodeSpec,
        bridges: &BTreeSet<u32>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if self.awaited.is_some() {
            return;
        }
        if self.looked_at.is_none_or(|at| now >= at + LOOK) {
            self.looked_at = Some(now);
            let places = self.places(table);
            if !places.is_empty() {
                self.awaited = Some(Awaited::Look);
                return effects.push(Effect::LookForPrograms(places));
            }
        }
        let retry = self.retry_at.is_some_and(|at| now >= at);
        let same = self.spec.as_ref() == Some(spec) && *bridges == self.wanted_bridges;
        if self.changed || retry || !same {
            self.begin_round(table, spec, bridges, effects);
        }
    }

    /// Where programs are that this process attached, on interfaces that are there.
    fn places(&self, table: &Table) -> Vec<Place> {
        let done = self.done.iter().filter(|((hook, name), ifindex)| {
            let there = table.link_by_name(name).map(|(found, _)| found);
            let wanted = self.uplinks.contains_key(name)
                || *hook == Hook::Ingress && self.wanted_bridges.contains(ifindex);
            wanted && there == Some(**ifindex)
        });
        let place = |((hook, name), ifindex): (&(Hook, String), &u32)| Place {
            hook: *hook,
            interface: name.clone(),
            ifindex: *ifindex,
        };
        done.map(place).collect()
    }

    /// Takes in which programs somebody has taken off: they are attached again.
    pub(in crate::core) fn programs_gone(&mut self, gone: Vec<Place>) {
        self.awaited = None;
        for place in gone {
            warn!(
                interface = place.interface,
                hook = place.hook.name(),
                "somebody has detached Sluice's program: attaching it again"
            );
            self.forget(&place.interface);
            self.changed = true;
        }
    }

    fn begin_round(
        &mut self,
        table: &Table,
        spec: &LoadBalancerNodeSpec,
        bridges: &BTreeSet<u32>,
        effects: &mut Vec<Effect>,
    ) {
        let mode = |spec: &LoadBalancerNodeSpec| spec.xdp_mode;
        if self.spec.as_ref().map(mode) != Some(mode(spec)) {
            self.reconsider();
        }
        self.spec = Some(spec.clone());
        self.wanted_bridges.clone_from(bridges);
        self.changed = false;
        self.retry_at = None;
        self.failed = false;
        self.uplinks
            .retain(|name, _| spec.interfaces.iter().any(|wanted| wanted == name));
        for name in &spec.interfaces {
            let attachment = self.missing_uplink(table, name, spec.xdp_mode);
            effects.extend(attachment.map(Effect::Attach));
        }
        self.bridges.retain(|name, _| {
            let link = table.link_by_name(name);
            link.is_some_and(|(ifindex, _)| bridges.contains(&ifindex))
        });
        for &ifindex in bridges {
            let attachment = self.missing_bridge(table, ifindex);
            effects.extend(attachment.map(Effect::Attach));
        }
        effects.push(Effect::ListAttached);
        self.awaited = Some(Awaited::Round);
    }

    /// Looks at every uplink again, since another way of attaching is wanted.
    fn reconsider(&mut self) {
        let uplinks = std::mem::take(&mut self.uplinks);
        for name in uplinks.keys() {
            self.forget(name);
        }
    }

    fn forget(&mut self, interface: &str) {
        self.done.retain(|(_, name), _| name != interface);
    }

    fn is_attached(&self, hook: Hook, interface: &str, ifindex: u32) -> bool {
        self.done.get(&(hook, interface.to_owned())) == Some(&ifindex)
    }

    /// The attachment that an uplink lacks. The kernel tells of an uplink that comes up later.
    fn missing_uplink(&mut self, table: &Table, name: &str, mode: XdpMode) -> Option<Attachment> {
        let Some((ifindex, link)) = table.link_by_name(name) else {
            self.forget(name);
            let reason =
                format!("there is no interface {name}: create it, or correct spec.interfaces");
            self.set_uplink(name, AttachMode::None, Some(reason));
            return None;
        };
        if link.medium != Medium::Ethernet {
            self.forget(name);
            let reason = "it carries no Ethernet frames, so nothing that comes by it is served: name another interface in \
                          spec.interfaces";
            self.set_uplink(name, AttachMode::None, Some(reason.to_owned()));
            return None;
        }
        let mut hooks = Hook::ALL.iter();
        if hooks.all(|&hook| self.is_attached(hook, name, ifindex)) {
            return None;
        }
        let choice = match mode {
            XdpMode::Auto => XdpChoice::Auto,
            XdpMode::Native => XdpChoice::Only(Mode::Native),
            XdpMode::Generic => XdpChoice::Only(Mode::Generic),
        };
        Some(Attachment {
            interface: name.to_owned(),
            ifindex,
            programs: Wanted::Uplink {
                choice,
                found: link.xdp,
            },
        })
    }

    fn missing_bridge(&self, table: &Table, ifindex: u32) -> Option<Attachment> {
        let link = table.link_by_index(ifindex)?;
        let attached = self.is_attached(Hook::Ingress, &link.name, ifindex);
        (!attached).then(|| Attachment {
            interface: link.name.clone(),
            ifindex,
            programs: Wanted::Bridge,
        })
    }

    /// Takes in what came of attaching.
    pub(in crate::core) fn attached(
        &mut self,
        attachment: &Attachment,
        outcome: Result<Attached, Error>,
    ) {
        match (attachment.programs, outcome) {
            (Wanted::Uplink { choice, .. }, outcome) => {
                self.uplink_attached(attachment, choice, outcome);
            }
            (Wanted::Bridge, Ok(attached)) => {
                self.uses_tcx = Some(attached.tc_by_link);
                self.note(Hook::Ingress, attachment);
                self.bridges.remove(&attachment.interface);
                info!(
                    interface = attachment.interface,
                    "attached, for replies of servers behind it"
                );
            }
            (Wanted::Bridge, Err(error)) => {
                let name = &attachment.interface;
                let error = error.to_string();
                if self.bridges.get(name) != Some(&error) {
                    warn!("replies of servers behind {name} are lost: {error}");
                }
                self.bridges.insert(name.clone(), error);
                self.failed = true;
            }
        }
    }

    fn uplink_attached(
        &mut self,
        attachment: &Attachment,
        choice: XdpChoice,
        outcome: Result<Attached, Error>,
    ) {
        let name = &attachment.interface;
        let attached = match outcome {
            Ok(attached) => attached,
            Err(error) => {
                self.set_uplink(name, AttachMode::None, Some(error.to_string()));
                self.failed = true;
                return;
            }
        };
        self.uses_tcx = Some(attached.tc_by_link);
        let mode = match attached.mode {
            Some(Mode::Native) => AttachMode::Native,
            Some(Mode::Generic) => AttachMode::Generic,
            // The link was adopted before the kernel said how it is attached.
            None => {
                self.failed = true;
                return;
            }
        };
        for hook in Hook::ALL {
            self.note(hook, attachment);
        }
        match &attached.reason {
            Some(reason) if choice != XdpChoice::Auto => {
                warn!(interface = name, ?mode, "attached otherwise: {reason}");
            }
            reason => info!(interface = name, ?mode, reason, "attached"),
        }
        self.set_uplink(name, mode, attached.reason);
    }

    fn note(&mut self, hook: Hook, attachment: &Attachment) {
        let place = (hook, attachment.interface.clone());
        self.done.insert(place, attachment.ifindex);
    }

    fn set_uplink(&mut self, name: &str, attach_mode: AttachMode, reason: Option<String>) {
        let status = InterfaceStatus {
            name: name.to_owned(),
            attach_mode,
            reason,
            mac_address: None,
            steady: false,
            gateways: Vec::new(),
        };
        let before = self.uplinks.insert(name.to_owned(), status.clone());
        if attach_mode == AttachMode::None && before.as_ref() != Some(&status) {
            let reason = status.reason.unwrap_or_default();
            warn!(interface = name, "not attached: {reason}");
        }
    }

    /// Takes in what is attached, and has taken off what is not wanted any more.
    pub(in crate::core) fn listed(
        &mut self,
        listed: Result<Vec<(Hook, String)>, Error>,
        table: &Table,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let unwanted = match listed {
            Ok(attached) => self.unwanted(&attached, table),
            Err(error) => {
                warn!("cannot take programs off interfaces: {error}");
                self.failed = true;
                Vec::new()
            }
        };
        if unwanted.is_empty() {
            return self.end_round(now);
        }
        for (hook, interface) in &unwanted {
            info!(interface, hook = hook.name(), "detached");
            self.done.remove(&(*hook, interface.clone()));
        }
        effects.push(Effect::Detach(unwanted));
    }

    /// An interface that is an uplink no more loses its programs. One behind which servers were keeps passing their replies.
    fn unwanted(&self, attached: &[(Hook, String)], table: &Table) -> Vec<(Hook, String)> {
        let has_xdp = |name: &str| {
            attached
                .iter()
                .any(|(hook, n)| *hook == Hook::Xdp && n == name)
        };
        let is_wanted = |hook: Hook, name: &str| {
            let mut uplinks = self.spec.iter().flat_map(|spec| &spec.interfaces);
            let link = table.link_by_name(name);
            let takes_programs = link.is_none_or(|(_, link)| link.medium == Medium::Ethernet);
            if takes_programs && uplinks.any(|uplink| uplink == name) {
                return true;
            }
            link.is_some_and(|(ifindex, _)| {
                hook == Hook::Ingress && (self.wanted_bridges.contains(&ifindex) || !has_xdp(name))
            })
        };
        let attached = attached.iter();
        let unwanted = attached.filter(|(hook, name)| !is_wanted(*hook, name));
        unwanted.cloned().collect()
    }

    /// Takes in that programs were taken off.
    pub(in crate::core) fn detached(&mut self, outcome: Result<(), Error>, now: Instant) {
        if let Err(error) = outcome {
            warn!("cannot take programs off interfaces: {error}");
            self.failed = true;
        }
        self.end_round(now);
    }

    fn end_round(&mut self, now: Instant) {
        self.awaited = None;
        if self.failed {
            self.retry_at = Some(now + RETRY);
        }
    }
}
