//! Attaching the programs, so that no packet is lost when an agent is replaced by another.
//!
//! XDP and tcx links are pinned, and a pinned link gets a new program by replacement. Kernels before 6.6 have no tcx:
//! there a filter on the clsact qdisc stays by itself, under a priority and handle by which the next agent replaces it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions};
use aya::programs::{ProgramError, TcError, tc};
use tracing::info;

use super::hook::{FILTER_HANDLE, FILTER_PRIORITY, Hook, remove_filter};
use super::load::Programs;
use super::pins::{PinLock, mark, remove_directory, remove_link};
use super::sys::{self, create_link, link_info, open_pin, update_link};
use super::{Error, system_error};

const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Where an XDP program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the stack.
    Generic,
}

/// Where an XDP program shall run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpChoice {
    /// In the driver if it can, else in the stack.
    Auto,
    /// Only there.
    Only(Mode),
}

/// How programs are attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    /// Where XDP runs; `None` without XDP, or while the kernel does not say it of a link that was taken over.
    pub mode: Option<Mode>,
    /// Why XDP runs there, where another place was preferred.
    pub reason: Option<String>,
    /// Whether tc programs are attached by links rather than filters.
    pub tc_by_link: bool,
}

/// How a clsact filter is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filter {
    /// Among those of its qdisc.
    pub priority: u16,
    /// Among those of its priority.
    pub handle: u32,
    /// On the way out rather than in.
    pub egress: bool,
}

/// Attaches and detaches the programs.
#[derive(Debug)]
pub struct Attacher {
    programs: Programs,
    pins: PinLock,
    /// Whether tc programs are attached by links; unknown until the first one was.
    tcx: Option<bool>,
    /// How XDP is attached by this process, by interface index: the kernel announces no change that a link makes.
    modes: BTreeMap<u32, Mode>,
}

impl Attacher {
    /// `use_tcx`: try links for tc; if not, only clsact filters.
    pub fn new(programs: Programs, pins: PinLock, use_tcx: bool) -> Self {
        Self {
            programs,
            pins,
            tcx: if use_tcx { None } else { Some(false) },
            modes: BTreeMap::new(),
        }
    }

    /// Whether what this process attached to `hook` is there still, and not taken off by somebody else. `has_filter` asks
    /// for a filter on the clsact qdisc of the interface.
    pub fn is_in_place(
        &self,
        hook: Hook,
        interface: &str,
        ifindex: u32,
        has_filter: impl FnOnce(Filter) -> io::Result<bool>,
    ) -> Result<bool, Error> {
        let failed = || system_error(format!("look for {} of {interface}", hook.name()));
        if hook != Hook::Xdp && self.tcx == Some(false) {
            let filter = Filter {
                priority: FILTER_PRIORITY,
                handle: FILTER_HANDLE.into(),
                egress: hook == Hook::Egress,
            };
            return has_filter(filter).map_err(failed());
        }
        let Some(link) = open_pin(&self.pins.link(hook, interface)).map_err(failed())? else {
            return Ok(false);
        };
        // A link that is detached has no interface.
        let info = link_info(link.as_fd()).map_err(failed())?;
        Ok(info.ifindex == ifindex)
    }

    /// Hooks and interfaces of the programs that this process or an earlier one attached.
    pub fn attached(&self) -> Result<Vec<(Hook, String)>, Error> {
        self.pins.attached()
    }

    /// Attaches every program to an uplink. `found` is where XDP ran there before this process attached it.
    pub fn attach_uplink(
        &mut self,
        interface: &str,
        ifindex: u32,
        choice: XdpChoice,
        found: Option<Mode>,
    ) -> Result<Attached, Error> {
        // Replies find their way back before the first packet goes out.
        self.attach_tc(Hook::Egress, interface, ifindex)?;
        self.attach_tc(Hook::Ingress, interface, ifindex)?;
        let (mode, reason) = self.attach_xdp(interface, ifindex, choice, found)?;
        if let Some(mode) = mode {
            self.modes.insert(ifindex, mode);
        }
        Ok(self.attached_so(mode, reason))
    }

    /// Attaches what takes the replies of servers behind an interface.
    pub fn attach_bridge(&mut self, interface: &str, ifindex: u32) -> Result<Attached, Error> {
        self.attach_tc(Hook::Ingress, interface, ifindex)?;
        Ok(self.attached_so(None, None))
    }

    fn attached_so(&self, mode: Option<Mode>, reason: Option<String>) -> Attached {
        Attached {
            mode,
            reason,
            tc_by_link: self.tcx == Some(true),
        }
    }

    /// Attaches XDP to an interface, or replaces the program of its pinned link. `found` is how a program was attached
    /// there before this process attached one.
    fn attach_xdp(
        &mut self,
        interface: &str,
        ifindex: u32,
        choice: XdpChoice,
        found: Option<Mode>,
    ) -> Result<(Option<Mode>, Option<String>), Error> {
        let now = self.modes.get(&ifindex).copied().or(found);
        let adopt = match (choice, now) {
            (XdpChoice::Only(wanted), Some(mode)) => wanted == mode,
            _ => true,
        };
        if adopt && self.replace_program(Hook::Xdp, interface, ifindex)? {
            let reason = (choice == XdpChoice::Auto && now == Some(Mode::Generic))
                .then(|| "attached in the stack by an earlier agent".to_owned());
            return Ok((now, reason));
        }
        remove_link(&self.pins.link(Hook::Xdp, interface))?;
        let failed = |error| system_error(format!("attach XDP to {interface}"))(named(error));
        let (mode, reason) = match choice {
            XdpChoice::Only(mode) => {
                let create = |mode| self.create(Hook::Xdp, interface, ifindex, flags(mode));
                match (create(mode), now) {
                    (Ok(()), _) => (mode, None),
                    // Better as it was than not at all.
                    (Err(error), Some(before)) if before != mode && create(before).is_ok() => {
                        let reason = format!("stays as it was: {mode:?} is refused: {error}");
                        (before, Some(reason))
                    }
                    (Err(error), _) => return Err(failed(error)),
                }
            }
            XdpChoice::Auto => {
                match self.create(Hook::Xdp, interface, ifindex, XDP_FLAGS_DRV_MODE) {
                    Ok(()) => (Mode::Native, None),
                    Err(native) => {
                        self.create(Hook::Xdp, interface, ifindex, XDP_FLAGS_SKB_MODE)
                            .map_err(failed)?;
                        (Mode::Generic, Some(format!("the driver refuses: {native}")))
                    }
                }
            }
        };
        Ok((Some(mode), reason))
    }

    /// Attaches a tc program to an interface, or replaces the one there.
    fn attach_tc(&mut self, hook: Hook, interface: &str, ifindex: u32) -> Result<(), Error> {
        if self.tcx != Some(false) {
            if self.replace_program(hook, interface, ifindex)? {
                self.tcx = Some(true);
                return Ok(());
            }
            match self.create(hook, interface, ifindex, 0) {
                Ok(()) => {
                    self.tcx = Some(true);
                    self.drop_filter(hook, interface)?;
                    return Ok(());
                }
                // Kernels before 6.6 do not know the attach type.
                Err(error)
                    if self.tcx.is_none()
                        && matches!(
                            error.raw_os_error(),
                            Some(libc::EINVAL | libc::EOPNOTSUPP)
                        ) =>
                {
                    info!(%error, "no tcx links, using clsact filters");
                    self.tcx = Some(false);
                }
                Err(error) => {
                    let action = format!("attach tc {} to {interface}", hook.name());
                    return Err(system_error(action)(error));
                }
            }
        }
        self.set_filter(hook, interface)?;
        remove_link(&self.pins.link(hook, interface))
    }

    /// Takes a program off an interface.
    pub fn detach(&mut self, hook: Hook, interface: &str) -> Result<(), Error> {
        self.drop_filter(hook, interface)?;
        remove_link(&self.pins.link(hook, interface))
    }

    /// Takes everything off this node, see [`PinLock::remove_all`].
    pub fn detach_all(
        &mut self,
        remove_idle_qdisc: impl FnMut(&str) -> io::Result<bool>,
    ) -> Result<Vec<String>, Error> {
        self.pins.remove_all(remove_idle_qdisc)
    }

    /// Puts the program on the pinned link; `false` if there is no link that is alive on this interface.
    fn replace_program(&self, hook: Hook, interface: &str, ifindex: u32) -> Result<bool, Error> {
        let pin = self.pins.link(hook, interface);
        let action = || format!("replace the program of {}", pin.display());
        let Some(link) = open_pin(&pin).map_err(|error| system_error(action())(error))? else {
            return Ok(false);
        };
        let info = link_info(link.as_fd()).map_err(|error| system_error(action())(error))?;
        if info.ifindex != ifindex {
            // The interface it was made for is gone, or has another name now.
            remove_link(&pin)?;
            return Ok(false);
        }
        let program = self.programs.fd(hook)?;
        match update_link(link.as_fd(), program.as_fd()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                remove_link(&pin)?;
                Ok(false)
            }
            Err(error) => Err(system_error(action())(error)),
        }
    }

    fn create(&self, hook: Hook, interface: &str, ifindex: u32, flags: u32) -> io::Result<()> {
        let program = self.programs.fd(hook).map_err(io::Error::other)?;
        let link: OwnedFd = create_link(program.as_fd(), ifindex, hook.link(), flags)?;
        sys::pin(link.as_fd(), &self.pins.link(hook, interface))
    }

    /// Replaces our filter on the clsact qdisc, or adds it, and the qdisc, when they are not there.
    fn set_filter(&mut self, hook: Hook, interface: &str) -> Result<(), Error> {
        let failed = |error: ProgramError| Error::System {
            action: format!("attach tc {} to {interface}", hook.name()),
            source: io::Error::other(error),
        };
        mark(&self.pins.filter(hook, interface))?;
        let existing = SchedClassifierLink::attached(
            interface,
            hook.filter(),
            FILTER_PRIORITY,
            FILTER_HANDLE,
            None,
        )
        .map_err(system_error(format!("find interface {interface}")))?;
        let program = self.programs.classifier(hook)?;
        if let Ok(id) = program.attach_to_link(existing) {
            // Dropping a link would remove the filter.
            std::mem::forget(program.take_link(id).map_err(failed)?);
            return Ok(());
        }
        match tc::qdisc_add_clsact(interface) {
            Ok(()) => mark(&self.pins.qdisc(interface))?,
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(failed(error.into())),
        }
        let options = TcAttachOptions::Netlink(NlOptions {
            priority: FILTER_PRIORITY,
            handle: FILTER_HANDLE,
            classid: None,
        });
        let program = self.programs.classifier(hook)?;
        let id = program
            .attach_with_options(interface, hook.filter(), options)
            .map_err(failed)?;
        std::mem::forget(program.take_link(id).map_err(failed)?);
        Ok(())
    }

    fn drop_filter(&self, hook: Hook, interface: &str) -> Result<(), Error> {
        let mark = self.pins.filter(hook, interface);
        if mark.exists() {
            remove_filter(hook, interface);
            remove_directory(&mark)?;
        }
        Ok(())
    }
}

/// Says what to do where the kernel says only that XDP is in use.
fn named(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => io::Error::other(format!(
            "{error}: another XDP program is there: take it off, or name another interface in spec.interfaces"
        )),
        _ => error,
    }
}

const fn flags(mode: Mode) -> u32 {
    match mode {
        Mode::Native => XDP_FLAGS_DRV_MODE,
        Mode::Generic => XDP_FLAGS_SKB_MODE,
    }
}
