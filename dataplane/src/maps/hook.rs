//! Where programs are attached to an interface.

use aya::programs::tc::{SchedClassifierLink, TcAttachType, TcHandle};

use super::sys::LinkHook;

/// Priority and handle of the clsact filters: how the next agent finds them.
pub(super) const FILTER_PRIORITY: u16 = 50;
pub(super) const FILTER_HANDLE: TcHandle = TcHandle::new(0, 1);

/// Where a program is attached to an interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hook {
    /// `sluice_xdp`.
    Xdp,
    /// `sluice_ingress` on tc.
    Ingress,
    /// `sluice_egress` on tc.
    Egress,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 3] = [Self::Xdp, Self::Ingress, Self::Egress];

    /// The name in pins and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.name() == name)
    }

    /// The name of its program in the object.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Xdp => "sluice_xdp",
            Self::Ingress => "sluice_ingress",
            Self::Egress => "sluice_egress",
        }
    }

    pub(super) const fn link(self) -> LinkHook {
        match self {
            Self::Xdp => LinkHook::Xdp,
            Self::Ingress => LinkHook::TcxIngress,
            Self::Egress => LinkHook::TcxEgress,
        }
    }

    pub(super) const fn filter(self) -> TcAttachType {
        match self {
            Self::Egress => TcAttachType::Egress,
            _ => TcAttachType::Ingress,
        }
    }
}

/// Removes our filter from the clsact qdisc of an interface. One that is gone, or an interface that is, is no error.
pub(super) fn remove_filter(hook: Hook, interface: &str) {
    let Ok(filter) = SchedClassifierLink::attached(
        interface,
        hook.filter(),
        FILTER_PRIORITY,
        FILTER_HANDLE,
        None,
    ) else {
        return;
    };
    // Dropping the link removes the filter; the kernel's refusal can only mean that there is none.
    drop(filter);
}
