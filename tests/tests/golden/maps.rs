//! A node's maps as packets walk through them: each VIP port with its pools, their rings and servers. Numbers that mean
//! nothing outside of the maps, such as ids and offsets, are resolved and not shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use sluice_abi::{
    EVERYBODY, ForwardingMode, Head, NET_SENDS, NOBODY, POOL_BY_CLIENT_ADDRESS, Path,
    SERVER_BY_CLIENT_ADDRESS, SHARE_WHOLE, ServerRecord, ServerWord, VipWord,
};
use sluice_planner::{Image, Mac, MapOp, Ring, Socket};

use crate::node::Node;
use crate::text::address;

/// Sections of the dump: headings and their lines.
pub(crate) fn sections(node: &Node) -> Vec<(String, String)> {
    let dump = Dump::new(node);
    let image = dump.image;
    let mut sections = Vec::new();
    for (vip_port, word) in &image.vips {
        if vip_port.is_marker() {
            sections.push((format!("VIP {}", vip_port.address), String::new()));
        } else {
            sections.push((vip_port.to_string(), dump.vip_port(*word)));
        }
    }
    for (heading, text) in [
        ("servers out of rings", dump.out_of_rings()),
        ("replies", dump.replies()),
        ("servers at its own addresses", dump.own_servers()),
        ("other directors", dump.peers()),
    ] {
        if !text.is_empty() {
            sections.push((heading.to_owned(), text));
        }
    }
    sections
}

/// The kinds of writes in their order.
pub(crate) fn writes(writes: &[MapOp]) -> String {
    let mut kinds: Vec<(&str, u32)> = Vec::new();
    for write in writes {
        let kind = kind(write);
        match kinds.last_mut() {
            Some((last, count)) if *last == kind => *count += 1,
            _ => kinds.push((kind, 1)),
        }
    }
    let kinds: Vec<String> = kinds
        .iter()
        .map(|(kind, count)| match count {
            1 => (*kind).to_owned(),
            count => format!("{kind} × {count}"),
        })
        .collect();
    kinds.join(", ")
}

fn kind(write: &MapOp) -> &'static str {
    match write {
        MapOp::WriteRecord { .. } => "record",
        MapOp::WriteRingSlots { .. } => "ring slots",
        MapOp::WriteHead { .. } => "head",
        MapOp::WriteSources { .. } => "source set",
        MapOp::RemoveSources { .. } => "source set removed",
        MapOp::SetServer { .. } => "server word",
        MapOp::SetRing { .. } => "ring word",
        MapOp::SetVip { .. } => "VIP word",
        MapOp::RemoveVip { .. } => "VIP removed",
        MapOp::SetReply { .. } => "reply entry",
        MapOp::RemoveReply { .. } => "reply entry removed",
        MapOp::SetLocal { .. } => "own server",
        MapOp::RemoveLocal { .. } => "own server removed",
        MapOp::AddPeer { .. } => "director",
        MapOp::RemovePeer { .. } => "director removed",
        MapOp::SetMac { .. } => "MAC word",
        MapOp::SetPeerNet { .. } => "addresses of directors",
        MapOp::RemovePeerNet { .. } => "address of a director removed",
        MapOp::SetAnnounced { .. } => "announced address",
        MapOp::RemoveAnnounced { .. } => "announced address removed",
        MapOp::Grace => "grace",
    }
}

struct Dump<'a> {
    node: &'a Node,
    image: &'a Image,
    /// VIP ports by the index that records and entries name them by.
    vip_ports: BTreeMap<u32, &'a Socket>,
}

impl<'a> Dump<'a> {
    fn new(node: &'a Node) -> Self {
        let image = node.image();
        let vip_ports = image.vips.iter().filter(|(key, _)| !key.is_marker());
        Self {
            node,
            image,
            vip_ports: vip_ports.map(|(key, word)| (word.index(), key)).collect(),
        }
    }

    fn vip_port_of(&self, index: u32) -> String {
        let vip_port = self.vip_ports.get(&index);
        vip_port.map_or_else(|| "no VIP port".to_owned(), ToString::to_string)
    }

    fn vip_port(&self, word: VipWord) -> String {
        let mut text = String::new();
        if let Some(head) = self.image.heads.get(&word.head()) {
            self.head(&mut text, "director", head);
        }
        if let Some(head) = self.image.heads.get(&word.rs_head()) {
            self.head(&mut text, "RS side", head);
        }
        text
    }

    fn head(&self, text: &mut String, side: &str, head: &Head) {
        let by = |flag| match head.flags & flag {
            0 => "flow",
            _ => "client address",
        };
        let pool = by(POOL_BY_CLIENT_ADDRESS);
        let server = by(SERVER_BY_CLIENT_ADDRESS);
        line(
            text,
            format!(
                "{side}: pool by {pool}, server by {server}, seed {:08x}",
                head.seed
            ),
        );
        match head.source_set {
            EVERYBODY => {}
            NOBODY => line(text, "  from nobody"),
            set => {
                let blocks = self.image.sources.get(&set).into_iter();
                let blocks = blocks.flat_map(|blocks| blocks.iter());
                let blocks: Vec<String> = blocks.map(ToString::to_string).collect();
                line(text, format!("  from {}", blocks.join(", ")));
            }
        }
        for pool in head.pools.iter().take(head.pool_count.into()) {
            let share = f64::from(pool.threshold) * 100.0 / f64::from(SHARE_WHOLE);
            let below = format!("  pool below {share:.6} %");
            match self.image.rings.get(&pool.ring) {
                None => line(text, format!("{below}: no ring")),
                Some(ring) => self.ring(text, &below, ring),
            }
        }
    }

    fn ring(&self, text: &mut String, below: &str, ring: &Ring) {
        let mut layout = 0x811c_9dc5_u32;
        for &id in self.node.slots(ring) {
            for byte in self.target(id) {
                layout = (layout ^ u32::from(byte)).wrapping_mul(0x0100_0193);
            }
        }
        let slots = ring.word.slots();
        line(
            text,
            format!("{below}: ring of {slots} in layout {layout:08x}"),
        );
        let parts = ring.content.parts().iter();
        let mut servers: Vec<String> = parts
            .map(|(id, slots)| format!("    {slots} × {}", self.server(*id)))
            .collect();
        servers.sort();
        text.push_str(&lines(servers));
    }

    /// A server's address and port, in bytes: unlike its id they are the same on every node.
    fn target(&self, id: u32) -> Vec<u8> {
        let word = self.image.servers.get(&id);
        let record = word.and_then(|word| self.image.records.get(&word.slot()));
        let parts = record.map(|record| [&record.addr[..], &record.port[..]].concat());
        parts.unwrap_or_default()
    }

    fn server(&self, id: u32) -> String {
        let word = self.image.servers.get(&id).filter(|word| word.present());
        let Some(word) = word else {
            return "no server".to_owned();
        };
        match self.image.records.get(&word.slot()) {
            Some(record) => server(*word, record),
            None => "a server without record".to_owned(),
        }
    }

    fn out_of_rings(&self) -> String {
        let rings = self.image.rings.values();
        let parts = rings.flat_map(|ring| ring.content.parts());
        let in_rings: BTreeSet<u32> = parts.map(|&(id, _)| id).collect();
        let present = self.image.servers.iter().filter(|(_, word)| word.present());
        let out = present.filter(|(id, _)| !in_rings.contains(id));
        let mut servers: Vec<String> = out
            .map(|(id, word)| {
                let record = self.image.records.get(&word.slot());
                let vip_port = record.map_or(0, |record| record.facts.index());
                format!("{}: {}", self.vip_port_of(vip_port), self.server(*id))
            })
            .collect();
        servers.sort();
        lines(servers)
    }

    fn replies(&self) -> String {
        let entries = self.image.replies.iter();
        lines(entries.map(|(from, index)| {
            let told = self
                .image
                .records
                .values()
                .find(|r| r.facts.reply_index() == *index);
            let vip_port = told.map_or(0, |record| record.facts.index());
            format!("from {from}: as from {}", self.vip_port_of(vip_port))
        }))
    }

    fn own_servers(&self) -> String {
        lines(self.image.locals.iter().map(|(local, id)| {
            let vip_port = self.vip_port_of(local.index);
            format!("to {} for {vip_port}: {}", local.address, self.server(*id))
        }))
    }

    fn peers(&self) -> String {
        let own = self.image.peer_nets.iter();
        let own = own.filter(|(_, flags)| **flags & NET_SENDS != 0);
        let own = own.map(|(net, _)| format!("own {net}"));
        lines(self.image.peers.iter().map(ToString::to_string).chain(own))
    }
}

fn server(word: ServerWord, record: &ServerRecord) -> String {
    let mode = match record.facts.mode() {
        Some(ForwardingMode::Nat) => "NAT",
        Some(ForwardingMode::FullNat) => "FullNAT",
        Some(ForwardingMode::Dr) => "DR",
        Some(ForwardingMode::Tun) => "TUN",
        None => "unknown mode",
    };
    let path = match word.path() {
        Path::Xdp => "xdp",
        Path::Tc => "tc",
        Path::Local => "local",
        Path::Unresolved => "unresolved",
    };
    let ipv6 = record.facts.is_ipv6();
    let (to, port) = (address(record.addr, ipv6), u16::from_be_bytes(record.port));
    let vip_port = u16::from_be_bytes(record.vip_port);
    let mut text = format!("{to} port {port} for {vip_port} by {mode}, {path}");
    if record.alt != [0; 16] {
        let alt = address(record.alt, ipv6);
        write!(text, ", other address {alt}").expect("a String takes all");
    }
    if record.next_hop_mac != [0; 6] {
        let (from, to) = (Mac(record.source_mac), Mac(record.next_hop_mac));
        write!(text, ", {from} to {to}").expect("a String takes all");
    }
    if record.ifindex != 0 {
        write!(text, ", interface {}", record.ifindex).expect("a String takes all");
    }
    write!(text, ", mtu {}", record.facts.mtu()).expect("a String takes all");
    if record.facts.reply_index() != 0 {
        text.push_str(", replies are rewritten");
    }
    if word.draining() {
        text.push_str(", draining");
    }
    text
}

fn line(text: &mut String, line: impl AsRef<str>) {
    text.push_str(line.as_ref());
    text.push('\n');
}

fn lines(items: impl IntoIterator<Item = String>) -> String {
    items.into_iter().map(|item| item + "\n").collect()
}
