//! Which programs are attached where, and keeping it so.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use sluice_api::{AttachMode, InterfaceStatus, LoadBalancerNodeSpec, XdpMode};
use tracing::{debug, info, warn};

use crate::maps::{Attached, Attacher, Error, Hook, Mode, XdpChoice};
use crate::netlink::{Link, Requests, Table};

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Time between two looks at whether what was attached still is: the kernel tells nobody when a link or filter goes.
const LOOK: Duration = Duration::from_secs(5);

/// The programs on this node's interfaces.
#[derive(Debug)]
pub(super) struct Attachments {
    attacher: Attacher,
    uplinks: BTreeMap<String, InterfaceStatus>,
    /// What is wrong with bridges, by name.
    bridges: BTreeMap<String, String>,
    retry_at: Option<Instant>,
    wanted_bridges: BTreeSet<u32>,
    looked_at: Option<Instant>,
}

impl Attachments {
    pub(super) fn new(attacher: Attacher) -> Self {
        Self {
            attacher,
            uplinks: BTreeMap::new(),
            bridges: BTreeMap::new(),
            retry_at: None,
            wanted_bridges: BTreeSet::new(),
            looked_at: None,
        }
    }

    /// The uplinks, in the order of their names.
    pub(super) fn uplinks(&self) -> impl Iterator<Item = &InterfaceStatus> {
        self.uplinks.values()
    }

    /// What is wrong with bridges.
    pub(super) fn bridge_problems(&self) -> impl Iterator<Item = &str> {
        self.bridges.values().map(String::as_str)
    }

    /// Whether tc programs are attached by links; `None` before the first one was.
    pub(super) fn uses_tcx(&self) -> Option<bool> {
        self.attacher.uses_tcx()
    }

    /// When a failed attachment is tried again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Looks at every uplink again, since another way of attaching is wanted.
    pub(super) fn reconsider(&mut self) {
        for name in self.uplinks.keys() {
            self.attacher.forget(name);
        }
        self.uplinks.clear();
    }

    /// Takes everything off this node. Returns what it removed, in words.
    pub(super) fn detach_all(&mut self, requests: &mut Requests) -> Result<Vec<String>, Error> {
        self.attacher.detach_all(|interface| {
            requests
                .remove_idle_clsact(interface)
                .map_err(io::Error::other)
        })
    }

    /// Whether somebody took off what was attached. It counts as attached no more, so [`Self::reconcile`] attaches it again.
    pub(super) fn look(&mut self, table: &Table, requests: &mut Requests, now: Instant) -> bool {
        if self.looked_at.is_some_and(|at| now < at + LOOK) {
            return false;
        }
        self.looked_at = Some(now);
        let mut gone = self.gone(table, requests);
        if gone.is_empty() {
            return false;
        }
        // What went with its interface is no news; the table may not have heard of that yet.
        match requests.table() {
            Ok(table) => gone.retain(|(_, name, ifindex)| {
                table.link_by_name(name).is_some_and(|(i, _)| i == *ifindex)
            }),
            Err(error) => {
                debug!(%error, "cannot look at the network");
                return false;
            }
        }
        for (hook, name, _) in &gone {
            warn!(
                interface = name,
                hook = hook.name(),
                "somebody has detached Sluice's program: attaching it again"
            );
            self.attacher.forget(name);
        }
        !gone.is_empty()
    }

    /// What counts as attached to an interface that is there, and is not.
    fn gone(&self, table: &Table, requests: &mut Requests) -> Vec<(Hook, String, u32)> {
        let uplinks = self.uplinks.keys().filter_map(|name| {
            let (ifindex, _) = table.link_by_name(name)?;
            Some((name, ifindex, &Hook::ALL[..]))
        });
        let bridges = self.wanted_bridges.iter().filter_map(|&ifindex| {
            let link = table.link_by_index(ifindex)?;
            Some((&link.name, ifindex, &[Hook::Ingress][..]))
        });
        let mut gone = Vec::new();
        for (name, ifindex, hooks) in uplinks.chain(bridges) {
            for &hook in hooks {
                if !self.attacher.is_attached(hook, name, ifindex) {
                    continue;
                }
                let has_filter = |filter| {
                    let found = requests.has_filter(ifindex, filter);
                    found.map_err(io::Error::other)
                };
                match self.attacher.is_in_place(hook, name, ifindex, has_filter) {
                    Ok(true) => {}
                    Ok(false) => gone.push((hook, name.clone(), ifindex)),
                    Err(error) => debug!("{error}"),
                }
            }
        }
        gone
    }

    /// Attaches what is missing and takes off what is not wanted any more. `changed`: interfaces or the spec did.
    pub(super) fn reconcile(
        &mut self,
        table: &Table,
        spec: &LoadBalancerNodeSpec,
        bridges: &BTreeSet<u32>,
        changed: bool,
        now: Instant,
    ) {
        let retry = self.retry_at.is_some_and(|at| now >= at);
        if !changed && !retry && *bridges == self.wanted_bridges {
            return;
        }
        self.wanted_bridges.clone_from(bridges);
        self.retry_at = None;
        let mut failed = false;
        self.uplinks
            .retain(|name, _| spec.interfaces.iter().any(|wanted| wanted == name));
        for name in &spec.interfaces {
            failed |= self.uplink(table, name, spec.xdp_mode);
        }
        self.bridges.clear();
        for &ifindex in bridges {
            failed |= self.bridge(table, ifindex);
        }
        if let Err(error) = self.take_off(table, spec, bridges) {
            warn!("cannot take programs off interfaces: {error}");
            failed = true;
        }
        if failed {
            self.retry_at = Some(now + RETRY);
        }
    }

    /// Returns whether something failed that trying again may mend. An interface that comes up later is told by the kernel.
    fn uplink(&mut self, table: &Table, name: &str, choice: XdpMode) -> bool {
        let Some((ifindex, link)) = table.link_by_name(name) else {
            self.attacher.forget(name);
            let reason =
                format!("there is no interface {name}: create it, or correct spec.interfaces");
            self.set_uplink(name, AttachMode::None, Some(reason));
            return false;
        };
        let mut all = Hook::ALL.iter();
        if all.all(|&hook| self.attacher.is_attached(hook, name, ifindex)) {
            return false;
        }
        match self.attach(name, ifindex, link, choice) {
            Ok(attached) => {
                let mode = match attached.mode {
                    Some(Mode::Native) => AttachMode::Native,
                    Some(Mode::Generic) => AttachMode::Generic,
                    // The link was adopted before the kernel said how it is attached.
                    None => {
                        self.attacher.forget(name);
                        return true;
                    }
                };
                match &attached.reason {
                    Some(reason) if choice != XdpMode::Auto => {
                        warn!(interface = name, ?mode, "attached otherwise: {reason}");
                    }
                    reason => info!(interface = name, ?mode, reason, "attached"),
                }
                self.set_uplink(name, mode, attached.reason);
                false
            }
            Err(error) => {
                self.set_uplink(name, AttachMode::None, Some(error.to_string()));
                true
            }
        }
    }

    fn attach(
        &mut self,
        name: &str,
        ifindex: u32,
        link: &Link,
        choice: XdpMode,
    ) -> Result<Attached, Error> {
        let choice = match choice {
            XdpMode::Auto => XdpChoice::Auto,
            XdpMode::Native => XdpChoice::Only(Mode::Native),
            XdpMode::Generic => XdpChoice::Only(Mode::Generic),
        };
        // Replies find their way back before the first packet goes out.
        self.attacher.attach_tc(Hook::Egress, name, ifindex)?;
        self.attacher.attach_tc(Hook::Ingress, name, ifindex)?;
        self.attacher.attach_xdp(name, ifindex, choice, link.xdp)
    }

    fn set_uplink(&mut self, name: &str, attach_mode: AttachMode, reason: Option<String>) {
        let status = InterfaceStatus {
            name: name.to_owned(),
            attach_mode,
            reason,
        };
        let before = self.uplinks.insert(name.to_owned(), status.clone());
        if attach_mode == AttachMode::None && before.as_ref() != Some(&status) {
            let reason = status.reason.unwrap_or_default();
            warn!(interface = name, "not attached: {reason}");
        }
    }

    fn bridge(&mut self, table: &Table, ifindex: u32) -> bool {
        let Some(link) = table.link_by_index(ifindex) else {
            return false;
        };
        if self
            .attacher
            .is_attached(Hook::Ingress, &link.name, ifindex)
        {
            return false;
        }
        match self.attacher.attach_tc(Hook::Ingress, &link.name, ifindex) {
            Ok(_) => {
                info!(
                    interface = link.name,
                    "attached, for replies of servers behind it"
                );
                false
            }
            Err(error) => {
                warn!("replies of servers behind {} are lost: {error}", link.name);
                self.bridges.insert(link.name.clone(), error.to_string());
                true
            }
        }
    }

    /// An interface that is an uplink no more loses its programs. One behind which servers were keeps passing their replies.
    fn take_off(
        &mut self,
        table: &Table,
        spec: &LoadBalancerNodeSpec,
        bridges: &BTreeSet<u32>,
    ) -> Result<(), Error> {
        let attached = self.attacher.attached()?;
        let carries_xdp: BTreeSet<String> = attached
            .iter()
            .filter(|(hook, _)| *hook == Hook::Xdp)
            .map(|(_, name)| name.clone())
            .collect();
        for (hook, name) in attached {
            if spec.interfaces.contains(&name) {
                continue;
            }
            let keep = match table.link_by_name(&name) {
                None => false,
                Some((ifindex, _)) => {
                    hook == Hook::Ingress
                        && (bridges.contains(&ifindex) || !carries_xdp.contains(&name))
                }
            };
            if !keep {
                info!(interface = name, hook = hook.name(), "detached");
                self.attacher.detach(hook, &name)?;
            }
        }
        Ok(())
    }
}
