//! Metrics, read from the maps and the agent's state at each scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use sluice_abi::{DropReason, FlowState, ServerCounters, Stat};
use sluice_api::AttachMode;
use tracing::debug;

mod labels;
mod signals;
mod source;

use crate::maps::Usage;
use crate::state::{Capacity, Published, State};
use labels::ServerLabels;

/// Adds the agent's metrics to a registry.
pub(super) fn register(registry: &mut Registry, state: Arc<State>) {
    registry.register_collector(Box::new(Metrics { state }));
}

#[derive(Debug)]
struct Metrics {
    state: Arc<State>,
}

type Labels = Vec<(&'static str, String)>;
/// One of the counters of a server.
type Read = fn(&ServerCounters) -> u64;

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let published = self.state.published();
        self.servers(&mut encoder, &published)?;
        self.data_plane(&mut encoder)?;
        self.tables(&mut encoder, &published)?;
        Self::agent(&mut encoder, &published)?;
        self.announcement(&mut encoder, &published)?;
        self.checks(&mut encoder, &published)?;
        signals::encode(&mut encoder, &self.state.signals)?;
        self.work(&mut encoder)?;
        source::encode(&mut encoder, &self.state.source)?;
        source::encode_stream(&mut encoder, &self.state.source.stream)
    }
}

fn server_labels(labels: &ServerLabels) -> Labels {
    vec![
        ("virtual_server", labels.virtual_server.clone()),
        ("vip", labels.vip.to_string()),
        ("protocol", labels.protocol.to_string()),
        ("port", labels.port.to_string()),
        ("pool", labels.pool.clone()),
        ("server", labels.server.clone()),
        ("address", labels.address.to_string()),
        ("server_port", labels.server_port.to_string()),
    ]
}

fn counter<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    values: impl IntoIterator<Item = (&'a Labels, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
    for (labels, value) in values {
        if labels.is_empty() {
            family.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        } else {
            family
                .encode_family(labels)?
                .encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
    }
    Ok(())
}

fn gauge<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (&'a Labels, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        if labels.is_empty() {
            family.encode_gauge(&value)?;
        } else {
            family.encode_family(labels)?.encode_gauge(&value)?;
        }
    }
    Ok(())
}

fn single(counter: &AtomicU64) -> [(&'static Labels, u64); 1] {
    const NONE: &Labels = &Vec::new();
    [(NONE, counter.load(Ordering::Relaxed))]
}

fn pairs(values: &[(Labels, u64)]) -> impl Iterator<Item = (&Labels, u64)> {
    values.iter().map(|(labels, value)| (labels, *value))
}

impl Metrics {
    fn servers(&self, encoder: &mut DescriptorEncoder<'_>, published: &Published) -> fmt::Result {
        let flows = self.state.censuses().flows;
        let mut servers: BTreeMap<Labels, (ServerCounters, u64)> = BTreeMap::new();
        let planner = published.planner.as_ref();
        let labelled = planner.map(|planner| labels::of_servers(&planner.read()));
        let maps = self.state.maps();
        for (maps, (id, epoch, labels)) in maps
            .iter()
            .flat_map(|maps| labelled.iter().flatten().map(move |server| (maps, server)))
        {
            match maps.server_counters(*id) {
                Ok(found) => {
                    let live = flows.servers.get(&(*id, *epoch)).copied();
                    let live = live.unwrap_or_default();
                    let entry = servers.entry(server_labels(labels)).or_default();
                    entry.0 = sum(entry.0, found);
                    entry.1 += live;
                }
                Err(error) => debug!(%error, "counters were left out"),
            }
        }
        let counters: [(&str, &str, Option<Unit>, Read); 5] = [
            (
                "sluice_server_packets",
                "Packets from clients that were sent to the server",
                None,
                |c| c.packets,
            ),
            (
                "sluice_server",
                "IP bytes of the packets from clients as they came",
                Some(Unit::Bytes),
                |c| c.bytes,
            ),
            (
                "sluice_server_flows",
                "New flows that were given to the server",
                None,
                |c| c.flows,
            ),
            (
                "sluice_server_reply_packets",
                "Packets from the server whose source was restored to the VIP",
                None,
                |c| c.reply_packets,
            ),
            (
                "sluice_server_reply",
                "IP bytes of the packets from the server",
                Some(Unit::Bytes),
                |c| c.reply_bytes,
            ),
        ];
        for (name, help, unit, read) in counters {
            let values = servers.iter().map(|(labels, (c, _))| (labels, read(c)));
            counter(encoder, name, help, unit.as_ref(), values)?;
        }
        gauge(
            encoder,
            "sluice_server_live_flows",
            "Flows of the server, established and half-open, at the last sweep",
            servers.iter().map(|(labels, (_, live))| (labels, *live)),
        )
    }

    fn data_plane(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(maps) = self.state.maps() else {
            return Ok(());
        };
        let mut drops: Vec<(Labels, u64)> = Vec::new();
        for &reason in DropReason::ALL {
            if let Ok(count) = maps.drops(reason) {
                drops.push((vec![("reason", reason.name().to_owned())], count));
            }
        }
        let help = "Packets dropped, by reason";
        counter(encoder, "sluice_dropped_packets", help, None, pairs(&drops))?;
        let mut events: Vec<(Labels, u64)> = Vec::new();
        for &stat in Stat::ALL {
            if let Ok(count) = maps.stat(stat) {
                events.push((vec![("event", stat.name().to_owned())], count));
            }
        }
        let help = "What the data plane did, by event";
        counter(
            encoder,
            "sluice_data_plane_events",
            help,
            None,
            pairs(&events),
        )
    }

    fn tables(&self, encoder: &mut DescriptorEncoder<'_>, published: &Published) -> fmt::Result {
        let censuses = self.state.censuses();
        let states: Vec<(Labels, u64)> = censuses
            .flows
            .states
            .iter()
            .filter_map(|(&state, &count)| Some((FlowState::from_u8(state)?, count)))
            .map(|(state, count)| (vec![("state", state_name(state).to_owned())], count))
            .collect();
        let help = "Flows by state, at the last sweep";
        gauge(encoder, "sluice_flows", help, pairs(&states))?;

        let tables = censuses.flows.tables.iter().chain(&censuses.claims.tables);
        let tables: Vec<(Labels, Usage)> = tables
            .map(|(name, usage)| (vec![("map", (*name).to_owned())], *usage))
            .collect();
        let planner = published.planner.as_ref();
        let capacity = planner.map(|planner| Capacity::of(&planner.read()));
        let maps: Vec<(Labels, Usage)> = capacity
            .iter()
            .flatten()
            .map(|entry| {
                let (used, limit) = (entry.used, entry.limit);
                (vec![("map", snake_case(entry.name))], Usage { used, limit })
            })
            .collect();
        let all = || tables.iter().chain(&maps);
        gauge(
            encoder,
            "sluice_map_entries",
            "Entries in use; of a map in two families, of the fuller one",
            all().map(|(labels, usage)| (labels, usage.used)),
        )?;
        gauge(
            encoder,
            "sluice_map_entries_limit",
            "The most entries there can be",
            all().map(|(labels, usage)| (labels, usage.limit)),
        )?;
        let half_open = (Labels::new(), censuses.claims.half_open);
        gauge(
            encoder,
            "sluice_fullnat_half_open_claims",
            "FullNAT ports that half-open flows hold, at the last sweep",
            [(&half_open.0, half_open.1)],
        )
    }

    fn agent(encoder: &mut DescriptorEncoder<'_>, published: &Published) -> fmt::Result {
        let unlabelled = [
            (
                "sluice_ready",
                "1 when programs are attached and the last plan is in the maps",
                u64::from(published.not_ready.is_empty()),
            ),
            (
                "sluice_acknowledged_revision",
                "Every decision on a virtual server up to this revision is live, the exceptions aside",
                published.acknowledged_revision,
            ),
            (
                "sluice_acknowledged_pool_revision",
                "Every decision on a pool up to this revision is live, the exceptions aside",
                published.acknowledged_pool_revision,
            ),
            (
                "sluice_exceptions",
                "Virtual servers and pools that are not live as decided",
                published.exceptions.len() as u64,
            ),
        ];
        for (name, help, value) in unlabelled {
            gauge(encoder, name, help, [(&Labels::new(), value)])?;
        }
        let resolved = published.neighbours - published.neighbours_unresolved;
        let neighbours: [(Labels, u64); 2] = [
            (vec![("state", "resolved".to_owned())], resolved as u64),
            (
                vec![("state", "unresolved".to_owned())],
                published.neighbours_unresolved as u64,
            ),
        ];
        let help = "Next hops that are followed";
        gauge(encoder, "sluice_neighbours", help, pairs(&neighbours))?;
        let interfaces: Vec<(Labels, u64)> = published
            .interfaces
            .iter()
            .map(|(name, mode)| {
                let attached = u64::from(*mode != AttachMode::None);
                let mode = format!("{mode:?}").to_lowercase();
                (vec![("interface", name.clone()), ("mode", mode)], attached)
            })
            .collect();
        let help = "1 where XDP is attached";
        gauge(
            encoder,
            "sluice_interface_attached",
            help,
            pairs(&interfaces),
        )
    }

    fn announcement(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        published: &Published,
    ) -> fmt::Result {
        let groups = published.groups.iter();
        let groups: Vec<(Labels, u64)> = groups
            .map(|(name, held)| (vec![("group", name.clone())], u64::from(*held)))
            .collect();
        let help = "1 where this node announces the VIP group, 0 where it may take it over";
        gauge(encoder, "sluice_vip_group_held", help, pairs(&groups))?;
        let unheld = (Labels::new(), published.groups_without_holder as u64);
        gauge(
            encoder,
            "sluice_vip_groups_without_holder",
            "VIP groups for which nobody answers, among those of which this node is one of the first two candidates",
            [(&unheld.0, unheld.1)],
        )?;
        let counts = &self.state.announced;
        let counters = [
            (
                "sluice_vip_announcements",
                "VIPs that were announced, each time on all uplinks of its group",
                &counts.announcements,
            ),
            (
                "sluice_vip_probes",
                "Questions for VIPs, to holders and to everybody, and to witnesses",
                &counts.probes,
            ),
            (
                "sluice_vip_unsent_frames",
                "Announcements and questions that the kernel did not take",
                &counts.unsent,
            ),
            (
                "sluice_vip_stranger_claims",
                "Answers and announcements by which a host that is no director claimed a VIP",
                &counts.strangers,
            ),
            (
                "sluice_vip_defences",
                "Times that a VIP was announced against such a claim",
                &counts.defences,
            ),
            (
                "sluice_vip_lease_requests",
                "Reads and writes of the Leases of VIP groups",
                &counts.lease_requests,
            ),
        ];
        for (name, help, value) in counters {
            counter(encoder, name, help, None, single(value))?;
        }
        Ok(())
    }

    fn checks(&self, encoder: &mut DescriptorEncoder<'_>, published: &Published) -> fmt::Result {
        let servers = published.checked.map(|(verdict, servers)| {
            let label = vec![("verdict", verdict.to_owned())];
            (label, servers as u64)
        });
        let help = "Servers of pools with a health check, by what this node's checks say of them";
        gauge(encoder, "sluice_checked_servers", help, pairs(&servers))?;
        let counts = &self.state.checked;
        let outcomes = [("passed", &counts.passed), ("failed", &counts.failed)];
        let outcomes = outcomes.map(|(outcome, count)| {
            let label = vec![("outcome", outcome.to_owned())];
            (label, count.load(Ordering::Relaxed))
        });
        let help = "Health checks of servers";
        counter(encoder, "sluice_checks", help, None, pairs(&outcomes))
    }

    fn work(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counts = &self.state.counts;
        let counters = [
            ("sluice_applies", "Plans that were applied", &counts.applies),
            (
                "sluice_apply_failures",
                "Plans whose application failed; they are tried again",
                &counts.apply_failures,
            ),
            (
                "sluice_map_operations",
                "Map writes that plans asked for",
                &counts.operations,
            ),
            (
                "sluice_expired_flows",
                "Flow entries that were freed after they expired",
                &counts.flows_expired,
            ),
        ];
        for (name, help, value) in counters {
            counter(encoder, name, help, None, single(value))?;
        }
        let closed = self.state.closed_doors();
        let doors = ["admin", "socket"].map(|option| {
            let label = vec![("option", option.to_owned())];
            (label, u64::from(closed.contains_key(option)))
        });
        let help = "1 while the admin endpoint cannot listen at the address of this option; it is tried again";
        gauge(encoder, "sluice_admin_closed", help, pairs(&doors))?;
        let announced = &self.state.announced;
        let queues = [
            ("netlink", &counts.netlink_drops),
            ("claims", &announced.unheard),
            ("leases", &announced.lease_drops),
        ];
        let queues = queues.map(|(name, drops)| {
            let label = vec![("queue", name.to_owned())];
            (label, drops.load(Ordering::Relaxed))
        });
        let help =
            "News and questions that a bounded queue had no room for; they are asked for anew";
        counter(encoder, "sluice_queue_drops", help, None, pairs(&queues))?;
        let (seconds, count, buckets) = self.state.apply_seconds.read();
        encoder
            .encode_descriptor(
                "sluice_apply",
                "How long planning and applying took",
                Some(&Unit::Seconds),
                MetricType::Histogram,
            )?
            .encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
    }
}

fn sum(a: ServerCounters, b: ServerCounters) -> ServerCounters {
    ServerCounters {
        packets: a.packets + b.packets,
        bytes: a.bytes + b.bytes,
        flows: a.flows + b.flows,
        reply_packets: a.reply_packets + b.reply_packets,
        reply_bytes: a.reply_bytes + b.reply_bytes,
    }
}

const fn state_name(state: FlowState) -> &'static str {
    match state {
        FlowState::Syn => "syn",
        FlowState::Unconfirmed => "unconfirmed",
        FlowState::Established => "established",
        FlowState::Closing => "closing",
        FlowState::Closed => "closed",
        FlowState::Udp => "udp",
        FlowState::Young => "young",
    }
}

/// `RingSlots` → `RING_SLOTS`, as the maps are called.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for (i, c) in name.char_indices() {
        if i > 0 && c.is_uppercase() {
            snake.push('_');
        }
        snake.extend(c.to_uppercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_have_one_name_everywhere() {
        assert_eq!(snake_case("RingSlots"), "RING_SLOTS");
        assert_eq!(snake_case("Vips"), "VIPS");
    }
}
