//! An image as text: one line per entry, in a fixed order.

use std::fmt;

use sluice_abi::{
    EVERYBODY, ForwardingMode, Head, MAX_GROUPS, NET_SENDS, NET_TUNNELS, NOBODY,
    POOL_BY_CLIENT_ADDRESS, Path, REFUSES, SERVER_BY_CLIENT_ADDRESS, ServerRecord, ServerWord,
};

use crate::{Image, Mac, Ring, head, ids};

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (socket, word) in &self.vips {
            if socket.is_marker() {
                writeln!(f, "vip {socket}")?;
                continue;
            }
            let (index, head, rs_head) = (word.index(), word.head(), word.rs_head());
            writeln!(
                f,
                "vip {socket}: index {index}, head {head}, rs head {rs_head}"
            )?;
        }
        for (slot, head) in &self.heads {
            write_head(f, *slot, head)?;
        }
        for (id, ring) in &self.rings {
            writeln!(f, "ring {id}: {ring}")?;
        }
        for (id, word) in &self.servers {
            write_server(f, *id, *word)?;
        }
        for (slot, record) in &self.records {
            write!(f, "record {slot}: ")?;
            write_record(f, record)?;
        }
        for (socket, index) in &self.replies {
            writeln!(f, "reply {socket}: index {index}")?;
        }
        for (local, server) in &self.locals {
            writeln!(
                f,
                "local {}, index {}: server {server}",
                local.address, local.index
            )?;
        }
        for (set, blocks) in &self.sources {
            for block in &**blocks {
                writeln!(f, "source set {set}: {block}")?;
            }
        }
        write_surroundings(f, self)
    }
}

fn write_surroundings(f: &mut fmt::Formatter<'_>, image: &Image) -> fmt::Result {
    for (at, word) in &image.announced {
        let mac = Mac(word.mac());
        let group = match word.group() {
            group if group < MAX_GROUPS => format!("group {group}"),
            _ => "not answered yet".to_owned(),
        };
        let router = if word.is_router() { ", router" } else { "" };
        writeln!(f, "announced {at}: {mac}, {group}{router}")?;
    }
    for mac in &image.peers {
        writeln!(f, "peer {mac}")?;
    }
    for (prefix, flags) in &image.peer_nets {
        let whose = if flags & NET_SENDS == 0 {
            "anybody's"
        } else {
            "of a peer"
        };
        let tunnels = if flags & NET_TUNNELS == 0 {
            ""
        } else {
            ", tunnels"
        };
        writeln!(f, "{whose} {prefix}{tunnels}")?;
    }
    let own = image.macs.range(..sluice_abi::OWN_MAC_WORDS);
    for (_, word) in own {
        let (address, ifindex) = sluice_abi::own_mac_parts(*word);
        writeln!(f, "own {} by interface {ifindex}", Mac(address))?;
    }
    Ok(())
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "offset {}, {} slots:",
            self.word.offset(),
            self.word.slots()
        )?;
        for (i, (id, slots)) in self.content.parts().iter().enumerate() {
            let separator = if i == 0 { "" } else { "," };
            write!(f, "{separator} server {id} × {slots}")?;
        }
        Ok(())
    }
}

fn write_head(f: &mut fmt::Formatter<'_>, slot: u32, entry: &Head) -> fmt::Result {
    let by = |flag| match entry.flags & flag {
        0 => "flow",
        _ => "client address",
    };
    write!(
        f,
        "head {slot}: index {}, seed {:08x}, pool by {}, server by {}",
        entry.index,
        entry.seed,
        by(POOL_BY_CLIENT_ADDRESS),
        by(SERVER_BY_CLIENT_ADDRESS)
    )?;
    if entry.flags & REFUSES != 0 {
        write!(f, ", refuses")?;
    }
    match entry.source_set {
        EVERYBODY => writeln!(f)?,
        NOBODY => writeln!(f, ", from nobody")?,
        set => writeln!(f, ", from source set {set}")?,
    }
    for pool in head::pools(entry) {
        let (tag, threshold, ring) = (pool.tag, pool.threshold, pool.ring);
        writeln!(f, "  pool {tag:08x}: below {threshold}, ring {ring}")?;
    }
    Ok(())
}

fn write_server(f: &mut fmt::Formatter<'_>, id: u32, word: ServerWord) -> fmt::Result {
    let epoch = word.epoch();
    if !word.present() {
        return writeln!(f, "server {id}: absent, epoch {epoch}");
    }
    let (slot, path) = (word.slot(), path_name(word.path()));
    let draining = if word.draining() { ", draining" } else { "" };
    let resets = if word.resets() { ", resets" } else { "" };
    let sampled = if word.is_sampled() { ", sampled" } else { "" };
    writeln!(
        f,
        "server {id}: record {slot}, epoch {epoch}, {path}{draining}{resets}{sampled}"
    )
}

fn write_record(f: &mut fmt::Formatter<'_>, record: &ServerRecord) -> fmt::Result {
    let address = ids::address_of(record);
    let (port, vip_port) = (
        u16::from_be_bytes(record.port),
        u16::from_be_bytes(record.vip_port),
    );
    let (index, tag) = (record.facts.index(), record.tag);
    let mode = mode_name(record.facts.mode());
    write!(
        f,
        "{mode} {address} port {port} for port {vip_port}, index {index}, pool {tag:08x}"
    )?;
    if record.facts.reply_index() != 0 {
        write!(f, ", reply {}", record.facts.reply_index())?;
    }
    if record.alt != [0; 16] {
        let alt = ids::address_from(record.alt, record.facts.is_ipv6());
        write!(f, ", alt {alt}")?;
    }
    if record.ifindex != 0 {
        write!(f, ", interface {}", record.ifindex)?;
    }
    if record.next_hop_mac != [0; 6] {
        write!(
            f,
            ", {} to {}",
            Mac(record.source_mac),
            Mac(record.next_hop_mac)
        )?;
    }
    writeln!(f, ", mtu {}", record.facts.mtu())
}

fn path_name(path: Path) -> &'static str {
    match path {
        Path::Xdp => "xdp",
        Path::Tc => "tc",
        Path::Local => "local",
        Path::Unresolved => "unresolved",
    }
}

fn mode_name(mode: Option<ForwardingMode>) -> &'static str {
    match mode {
        Some(ForwardingMode::Nat) => "NAT",
        Some(ForwardingMode::FullNat) => "FullNAT",
        Some(ForwardingMode::Dr) => "DR",
        Some(ForwardingMode::Tun) => "TUN",
        None => "unknown mode",
    }
}
