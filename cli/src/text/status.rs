//! `kubectl sluice status` as text.

use sluice_api::{ExternalTrafficPolicy, GroupRole};

use crate::view::{
    AcknowledgedView, AnnouncementView, NodeView, PoolView, PortView, Presence, ServerState,
    ServerView, SourceView, StatusView, VirtualServerView, WeightView,
};

use super::state::{named_state, state};
use super::vips::announced;
use super::{Cell, Paint, Table, Tone, field, phase_line};

/// One part for each virtual server, then the nodes.
pub fn status(view: &StatusView, paint: Paint) -> String {
    let mut parts: Vec<String> = view
        .virtual_servers
        .iter()
        .map(|server| virtual_server(server, paint))
        .collect();
    match &view.nodes {
        Some(nodes) if nodes.is_empty() => {
            parts.push("No nodes: no agent has created a LoadBalancerNode.\n".to_owned());
        }
        Some(nodes) => parts.push(node_table(nodes, paint)),
        None => {}
    }
    parts.join("\n")
}

/// As many blocks as people read.
fn sources(blocks: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<&str> = blocks.iter().take(SHOWN).map(String::as_str).collect();
    let shown = shown.join(", ");
    match blocks.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn virtual_server(view: &VirtualServerView, paint: Paint) -> String {
    let name = format!("VirtualServer {}/{}", view.namespace, view.name);
    let mut out = format!("{}\n", paint.text(Tone::Heading, &name));
    let ports: Vec<String> = view.ports.iter().map(PortView::text).collect();
    out.push_str(&field("VIPs", &vips(view)));
    out.push_str(&field("Ports", &ports.join(", ")));
    let mode = format!(
        "{}, pool chosen by {}, server by {}",
        view.mode, view.pool_selection, view.server_selection
    );
    out.push_str(&field("Mode", &mode));
    if view.external_traffic_policy == ExternalTrafficPolicy::Local {
        out.push_str(&field(
            "Policy",
            "Local: each director for its own node's servers",
        ));
    }
    if let Some(blocks) = &view.sources {
        out.push_str(&field("Sources", &sources(blocks)));
    }
    out.push_str(&state("Ready", &view.state, paint));
    let decision = view.decision.map_or_else(
        || "none: not served".to_owned(),
        |decision| {
            let newer = if decision.generation == view.generation {
                String::new()
            } else {
                format!(", not of the newest, {}", view.generation)
            };
            format!(
                "revision {} of generation {}{newer}",
                decision.revision, decision.generation
            )
        },
    );
    out.push_str(&field("Decision", &decision));
    if let Some(acknowledged) = &view.acknowledged {
        out.push_str(&field("In force", &in_force(acknowledged)));
    }
    for warning in &view.warnings {
        // The exceptions that the condition sums up follow one by one where they are known.
        if warning.kind == "NodeExceptions" && !view.exceptions.is_empty() {
            continue;
        }
        let text = format!("{}: {}", warning.reason, warning.message);
        out.push_str(&paint_field("Warning", &text, Tone::Waiting, paint));
    }
    for exception in &view.exceptions {
        let text = format!(
            "{}: {} {}: {}: {}",
            exception.node, exception.kind, exception.name, exception.reason, exception.message
        );
        out.push_str(&paint_field("Exception", &text, Tone::Bad, paint));
    }
    if let Some(rollout) = &view.rollout {
        let text = format!("{}: {}", rollout.name, phase_line(rollout));
        out.push_str(&field("Rollout", &text));
        if rollout.state.stalled {
            out.push_str(&state("", &rollout.state, paint));
        }
    }
    out.push_str(&pool_table(&view.pools, paint));
    for pool in &view.pools {
        if !pool.state.is_ready() && pool.exists {
            out.push_str(&named_state("Pool", &pool.name, &pool.state, paint));
        }
    }
    out
}

fn vips(view: &VirtualServerView) -> String {
    let of = |address: &String| {
        let is_it = |vip: &&AnnouncementView| vip.address.to_string() == *address;
        let vip = view.vips.iter().find(is_it);
        vip.map_or_else(|| address.clone(), announced)
    };
    let vips: Vec<String> = view.addresses.iter().map(of).collect();
    vips.join(", ")
}

fn in_force(acknowledged: &AcknowledgedView) -> String {
    /// The most nodes that are named.
    const NAMED: usize = 5;
    let everywhere = match acknowledged.revision {
        0 => "no revision yet".to_owned(),
        revision => format!("revision {revision}"),
    };
    let (Some(nodes), Some(live_nodes)) = (acknowledged.nodes, acknowledged.live_nodes) else {
        return format!("on all live nodes {everywhere}");
    };
    let mut text =
        format!("the decision on {nodes}/{live_nodes} live nodes; on all of them {everywhere}");
    let awaited = acknowledged.awaited.as_deref().unwrap_or_default();
    if !awaited.is_empty() {
        let named = awaited[..awaited.len().min(NAMED)].join(", ");
        text = format!("{text}; awaits {named}");
        if awaited.len() > NAMED {
            text = format!("{text} and {} more", awaited.len() - NAMED);
        }
    }
    text
}

fn paint_field(label: &str, text: &str, tone: Tone, paint: Paint) -> String {
    let text = field(label, text);
    let (head, rest) = text.split_at(text.find(label).map_or(0, |at| at + label.len()));
    format!("{}{rest}", head.replace(label, &paint.text(tone, label)))
}

fn pool_table(pools: &[PoolView], paint: Paint) -> String {
    let mut table = Table::new(
        2,
        &["POOL, SERVERS", "WANTED", "IN FORCE", "ADDRESS", "STATE"],
    );
    for pool in pools {
        let wanted = pool.decided.map_or_else(|| "-".to_owned(), weight);
        let in_force = pool.acknowledged.map_or_else(|| "-".to_owned(), weight);
        let differs = wanted != in_force;
        let in_force_tone = if differs { Tone::Waiting } else { Tone::Plain };
        let source = pool.source.as_ref().map(SourceView::text);
        table.row([
            Cell::new(Tone::Heading, &pool.name),
            wanted.into(),
            Cell::new(in_force_tone, in_force),
            source.unwrap_or_default().into(),
            summary(pool),
        ]);
        let servers = pool.servers.as_deref().unwrap_or_default();
        for (i, server) in servers.iter().enumerate() {
            let branch = if i + 1 == servers.len() {
                "└─"
            } else {
                "├─"
            };
            table.row(server_row(branch, server));
        }
    }
    table.render(paint)
}

fn weight(view: WeightView) -> String {
    format!("{} ({} %)", view.weight, view.percent)
}

fn summary(pool: &PoolView) -> Cell {
    if !pool.exists {
        return Cell::new(Tone::Bad, "no such RealServerPool");
    }
    let text = format!(
        "{}/{} take flows",
        pool.ready_server_count, pool.server_count
    );
    let tone = match (pool.ready_server_count, pool.server_count) {
        (0, _) => Tone::Bad,
        (ready, all) if ready < all => Tone::Waiting,
        _ => Tone::Good,
    };
    Cell::new(tone, text)
}

fn server_row(branch: &str, server: &ServerView) -> [Cell; 5] {
    let takes = server.weight > 0;
    let state = match server.state {
        ServerState::Drained => Cell::new(Tone::Waiting, "drained"),
        ServerState::Static if takes => Cell::new(Tone::Good, "static"),
        ServerState::Static => Cell::new(Tone::Waiting, "static, takes no flows"),
        ServerState::Ready => Cell::new(Tone::Good, "ready"),
        ServerState::NotReady => Cell::new(Tone::Bad, "not ready"),
        ServerState::Terminating if takes => Cell::new(Tone::Waiting, "last resort"),
        ServerState::Terminating => Cell::new(Tone::Waiting, "terminating"),
    };
    let state = match server.complaint() {
        Some(complaint) => Cell::new(Tone::Bad, complaint),
        None => state,
    };
    let ports: Vec<String> = server.ports.iter().map(|p| p.port.to_string()).collect();
    let address = match (ports.is_empty(), server.address.is_ipv6()) {
        (true, _) => server.address.to_string(),
        (false, true) => format!("[{}]:{}", server.address, ports.join(",")),
        (false, false) => format!("{}:{}", server.address, ports.join(",")),
    };
    [
        format!("{branch} {}", server.name).into(),
        format!("{}", server.weight).into(),
        "".into(),
        address.into(),
        state,
    ]
}

fn node_table(nodes: &[NodeView], paint: Paint) -> String {
    let headings = [
        "NODE",
        "ROLE",
        "ATTACHED",
        "REVISION",
        "POOLS' REV",
        "EXCEPTIONS",
        "HOLDS",
        "STATE",
    ];
    let mut table = Table::new(0, &headings);
    for node in nodes {
        let attached: Vec<String> = node
            .interfaces
            .iter()
            .map(|interface| format!("{} {}", interface.name, interface.attach_mode))
            .collect();
        let exceptions = match node.exception_count {
            0 => Cell::from("0"),
            count => Cell::new(Tone::Bad, count.to_string()),
        };
        table.row([
            Cell::from(&node.name),
            Cell::from(&node.role),
            if attached.is_empty() {
                "-".to_owned()
            } else {
                attached.join(", ")
            }
            .into(),
            node.acknowledged_revision.to_string().into(),
            node.acknowledged_pool_revision.to_string().into(),
            exceptions,
            holds(node).into(),
            presence(node),
        ]);
    }
    let mut out = table.render(paint);
    for node in nodes {
        let amiss = node.interfaces.iter().filter(|i| i.attach_mode != "Native");
        for interface in amiss {
            if let Some(reason) = &interface.reason {
                let text = format!("{}, {}: {reason}", node.name, interface.name);
                out.push_str(&field(&interface.attach_mode, &text));
            }
        }
        if node.state.ready == "False" {
            let text = format!(
                "{}: {}: {}",
                node.name, node.state.reason, node.state.message
            );
            out.push_str(&field("Not ready", &text));
        }
    }
    out
}

/// How many VIP groups the node holds. What it said before it fell silent or was taken off does not count.
fn holds(node: &NodeView) -> String {
    match node.presence {
        Presence::Live | Presence::Unknown => {
            let held = node.groups.iter().filter(|it| it.role == GroupRole::Holder);
            held.count().to_string()
        }
        Presence::Silent | Presence::Detached | Presence::NeverReported => "-".to_owned(),
    }
}

fn presence(node: &NodeView) -> Cell {
    match node.presence {
        Presence::Silent => Cell::new(Tone::Bad, "silent"),
        Presence::Detached => Cell::new(Tone::Waiting, "detached"),
        Presence::NeverReported => Cell::new(Tone::Waiting, "no report yet"),
        Presence::Live | Presence::Unknown if node.state.ready == "False" => {
            Cell::new(Tone::Bad, &node.state.reason)
        }
        Presence::Live if node.drain => Cell::new(Tone::Waiting, "live, drained"),
        Presence::Live => Cell::new(Tone::Good, "live"),
        Presence::Unknown => Cell::new(Tone::Waiting, "unknown"),
    }
}
