//! The bounds, by true time.

use super::server::Reach;
use super::world::World;
use super::{MS, SECOND};
use crate::{Authority, Health, Hindrance};

/// Timers come up to 20 ms late in the simulation, and packets take up to 1 ms.
const SLACK_NS: u64 = 50 * MS;
pub(crate) const SUSPICION_LIMIT_NS: u64 = 2 * SECOND;
pub(crate) const HANDOVER_LIMIT_NS: u64 = SECOND;
/// The longest that nobody holds while somebody could.
pub(crate) const GAP_LIMIT_NS: u64 = 9 * SECOND;
/// A deadline is never further away.
const DEADLINE_NS: u64 = 3_600 * MS;
const EXPIRY_NS: u64 = 4 * SECOND;

#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_field_names, reason = "units stand last in names")]
pub(crate) struct Worst {
    pub(crate) handover_ns: u64,
    pub(crate) suspicion_ns: u64,
    pub(crate) healed_ns: u64,
    /// With an API server that loses nothing.
    pub(crate) gap_ns: u64,
    /// With one that loses requests all the time.
    pub(crate) lossy_gap_ns: u64,
}

impl Worst {
    pub(crate) fn add(&mut self, other: Self) {
        self.handover_ns = self.handover_ns.max(other.handover_ns);
        self.suspicion_ns = self.suspicion_ns.max(other.suspicion_ns);
        self.healed_ns = self.healed_ns.max(other.healed_ns);
        self.gap_ns = self.gap_ns.max(other.gap_ns);
        self.lossy_gap_ns = self.lossy_gap_ns.max(other.lossy_gap_ns);
    }
}

#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) takeovers: u32,
    pub(crate) probes: u64,
    /// Probes of an armed director that were lost.
    pub(crate) lost: u64,
    pub(crate) worst: Worst,
    /// When the world last changed.
    pub(crate) changed_ns: u64,
    overlap_ns: Option<u64>,
    /// The last moment at which two holders could not hear each other.
    cut_ns: u64,
    /// The last moment at which one of two holders could not act.
    stuck_ns: u64,
    gap_ns: Option<u64>,
    /// Who last handed the Lease to whom, and when.
    handed: Option<([String; 2], u64)>,
    /// Who last took a Lease that had expired.
    expired: Option<usize>,
    /// By what right a kernel was armed, by node.
    pub(crate) rights: Vec<Option<Authority>>,
    fault: Option<String>,
}

impl Check {
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            takeovers: 0,
            probes: 0,
            lost: 0,
            worst: Worst::default(),
            changed_ns: 0,
            overlap_ns: None,
            cut_ns: 0,
            stuck_ns: 0,
            gap_ns: None,
            handed: None,
            expired: None,
            rights: vec![None; nodes],
            fault: None,
        }
    }

    /// A node asks for this holder. The admission policy allows its own name, and others' only to the holder.
    pub(crate) fn written(world: &mut World, node: usize, holder: Option<&str>) {
        let own = world.nodes[node].name.as_str();
        if holder == Some(own) {
            return;
        }
        let named = world
            .elector(node)
            .and_then(|elector| elector.lease.holder());
        if named != Some(own) {
            world.check.fault = Some(format!("{own} gives away what it has not"));
        }
        if let Some(to) = holder {
            world.check.handed = Some(([own.to_owned(), to.to_owned()], world.now_ns));
        }
    }

    /// A write of this node changed the Lease, which had stood for so long.
    pub(crate) fn swapped(world: &mut World, node: usize, before: Option<&str>, age_ns: u64) {
        let own = world.nodes[node].name.as_str();
        let takes = world.server.holder.as_deref() == Some(own) && before != Some(own);
        if takes || world.server.holder.as_deref() != before {
            world.check.expired = (takes && age_ns >= EXPIRY_NS).then_some(node);
        }
    }

    /// A node begins to hold. A candidate whose own port died silently takes nothing from a holder by Lease.
    pub(crate) fn took(world: &mut World, node: usize) {
        let deaf_ns = world.nodes[node].deaf_ns;
        let is_deaf = deaf_ns.is_some_and(|deaf_ns| world.now_ns > deaf_ns + SECOND);
        let mut others = (0..world.nodes.len()).filter(|other| *other != node);
        let is_served = others.any(|other| {
            let mut segments = world.segments.iter();
            world.is_armed(other)
                && world.is_running(other)
                && world.check.rights[other] == Some(Authority::Lease)
                && segments.all(|segment| segment.is_connected(other))
        });
        let probes = world.setup.settings.probes();
        let handed = world.check.handed.as_ref();
        let is_handed = handed.is_some_and(|(ends, _)| ends[1] == world.nodes[node].name);
        if probes && is_deaf && is_served && !is_handed {
            world.check.fault = Some(format!("d{node} takes though its port is dead"));
        }
    }

    /// Looks at the world as it is.
    pub(crate) fn look(world: &mut World) -> Result<(), String> {
        if let Some(fault) = world.check.fault.take() {
            return Err(fault);
        }
        let armed: Vec<usize> = (0..world.nodes.len())
            .filter(|node| world.is_armed(*node))
            .collect();
        Self::holders(world, &armed)?;
        Self::holder(world, &armed)
    }

    fn holders(world: &mut World, armed: &[usize]) -> Result<(), String> {
        if armed.len() < 2 {
            world.check.overlap_ns = None;
            return Ok(());
        }
        let now_ns = world.now_ns;
        let is_cut = armed.iter().any(|a| {
            let mut others = armed.iter().filter(|b| *b != a);
            let mut segments = world.segments.iter();
            others.any(|b| segments.any(|segment| !segment.are_connected(*a, *b)))
        });
        let is_resumed = |node: usize| {
            let resumed_ns = world.nodes[node].resumed_ns;
            resumed_ns.is_some_and(|resumed_ns| now_ns < resumed_ns + DEADLINE_NS)
        };
        let is_stuck = armed
            .iter()
            .any(|node| !world.is_running(*node) || is_resumed(*node));
        let names = || armed.iter().map(|node| world.nodes[*node].name.clone());
        if world.check.overlap_ns.is_none() {
            let by_lease = |node: &usize| world.check.rights[*node] == Some(Authority::Lease);
            let is_expiry = world
                .check
                .expired
                .is_some_and(|node| armed.contains(&node));
            if is_expiry && armed.iter().all(by_lease) && !armed.iter().any(|n| is_resumed(*n)) {
                return Err(format!(
                    "{:?} hold by expiry alone",
                    names().collect::<Vec<_>>()
                ));
            }
        }
        let handed = world.check.handed.as_ref();
        let handed = handed.filter(|(_, at_ns)| now_ns < at_ns + 2 * SECOND);
        let ends = handed.map_or(0, |(ends, _)| {
            names().filter(|name| ends.contains(name)).count()
        });
        let may_suspect = world.setup.settings.probes();
        if !may_suspect && ends == 0 && !armed.iter().any(|node| is_resumed(*node)) {
            return Err(format!(
                "{:?} hold without probes",
                names().collect::<Vec<_>>()
            ));
        }
        let check = &mut world.check;
        let since_ns = *check.overlap_ns.get_or_insert(now_ns);
        if is_cut {
            check.cut_ns = now_ns;
        }
        if is_stuck {
            check.stuck_ns = now_ns;
        }
        let excused_ns = check.cut_ns.max(check.stuck_ns);
        let length_ns = now_ns - since_ns.max(excused_ns);
        let (worst, limit_ns) = if excused_ns > since_ns {
            (&mut check.worst.healed_ns, SUSPICION_LIMIT_NS)
        } else if ends == 2 {
            (&mut check.worst.handover_ns, HANDOVER_LIMIT_NS)
        } else {
            (&mut check.worst.suspicion_ns, SUSPICION_LIMIT_NS)
        };
        *worst = length_ns.max(*worst);
        if length_ns > limit_ns + SLACK_NS {
            let ms = length_ns / MS;
            return Err(format!(
                "{:?} hold for {ms} ms",
                names().collect::<Vec<_>>()
            ));
        }
        Ok(())
    }

    fn holder(world: &mut World, armed: &[usize]) -> Result<(), String> {
        let is_held = armed.iter().any(|node| {
            world
                .segments
                .iter()
                .all(|segment| segment.is_connected(*node))
        });
        let is_able = (0..world.nodes.len()).any(|node| Self::is_able(world, node));
        let now_ns = world.now_ns;
        let check = &mut world.check;
        if is_held || !is_able {
            check.gap_ns = None;
            return Ok(());
        }
        let since_ns = *check.gap_ns.get_or_insert(now_ns);
        let length_ns = now_ns - since_ns.max(check.changed_ns);
        let worst = if world.server.faults > 0 {
            &mut check.worst.lossy_gap_ns
        } else {
            &mut check.worst.gap_ns
        };
        *worst = length_ns.max(*worst);
        if length_ns > GAP_LIMIT_NS {
            return Err(format!("nobody holds for {} ms", length_ns / MS));
        }
        Ok(())
    }

    /// Whether a director could hold: whole, connected, heard by the gateway, and trusted.
    fn is_able(world: &World, node: usize) -> bool {
        let Some(elector) = world.elector(node) else {
            return false;
        };
        let mut segments = world.segments.iter();
        let probes = world.setup.settings.probes();
        // Without probes a dead port is not noticed, and nobody holds without the API server.
        let is_blind = !probes
            && (world.nodes[node].reach != Reach::Ok
                || (0..world.nodes.len()).any(|node| world.is_armed(node)));
        !is_blind
            && world.is_running(node)
            && segments.all(|segment| segment.is_connected(node) && segment.has_gateway)
            && world.nodes[node].health == Health::Whole
            && elector.hindrance().is_none()
            && elector.state().hindrance != Some(Hindrance::Unknown)
    }

    /// What has to be true long after the last fault.
    pub(crate) fn at_rest(world: &World) -> Result<(), String> {
        let armed: Vec<usize> = (0..world.nodes.len())
            .filter(|node| world.is_armed(*node))
            .collect();
        let [holder] = armed[..] else {
            return Err(format!("{armed:?} hold in the end"));
        };
        let elector = world.elector(holder).ok_or("the holder has no agent")?;
        let gives_back = elector.settings.give_back == crate::GiveBack::AfterStableTime;
        if world.setup.server_faults == 0 && gives_back && elector.rank(&elector.node) != 0 {
            return Err(format!(
                "d{holder} holds in the end, and another ranks better"
            ));
        }
        let right = match elector.settings.coordination {
            crate::Coordination::Lease => Authority::Lease,
            crate::Coordination::Peers => Authority::Peers,
        };
        if world.setup.server_faults == 0 && elector.authority() != Some(right) {
            return Err(format!("d{holder} holds by {:?}", elector.authority()));
        }
        Ok(())
    }
}
