//! Packet counters on links, by nftables' netdev hooks.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::Value;

use super::link::Port;

/// Seen from the namespace that counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Frames that come in by the interface.
    In,
    /// Frames that leave by it.
    Out,
}

impl Direction {
    const fn hook(self) -> &'static str {
        match self {
            Self::In => "ingress",
            Self::Out => "egress",
        }
    }
}

/// A set of counters on one interface.
///
/// On an interface with a native XDP program they see nothing of what that program takes: count at the other end of the
/// link.
#[derive(Clone, Debug)]
pub struct Counters<'a> {
    port: Port<'a>,
}

impl<'a> Counters<'a> {
    /// Counts on `port` the packets for which an expression of nftables holds: (name, direction, expression).
    pub fn install(port: Port<'a>, rules: &[(&str, Direction, &str)]) -> Result<Self> {
        let device = port.name;
        let mut text = format!("table netdev {device} {{\n");
        for (name, direction, expression) in rules {
            let hook = direction.hook();
            writeln!(
                text,
                "  counter {name} {{ }}
  chain {name} {{
    type filter hook {hook} device \"{device}\" priority 0; policy accept;
    {expression} counter name {name}
  }}"
            )?;
        }
        text.push_str("}\n");
        port.namespace.nft(&text)?;
        Ok(Self { port })
    }

    /// What was installed on `port`.
    pub(super) const fn of(port: Port<'a>) -> Self {
        Self { port }
    }

    /// Packets counted so far, by name.
    pub(super) fn all(&self) -> Result<BTreeMap<String, u64>> {
        let table = self.port.name;
        let text = self
            .port
            .namespace
            .run(&format!("nft -j list counters table netdev {table}"))?;
        let answer: Value = serde_json::from_str(&text)?;
        let list = answer["nftables"].as_array().context("no list")?;
        let counters = list.iter().map(|item| &item["counter"]);
        let packets = counters.filter_map(|counter| {
            let name = counter["name"].as_str()?;
            Some((name.to_owned(), counter["packets"].as_u64()?))
        });
        Ok(packets.collect())
    }

    /// Packets counted under `name` so far.
    pub fn packets(&self, name: &str) -> Result<u64> {
        let table = self.port.name;
        let text = self
            .port
            .namespace
            .run(&format!("nft -j list counter netdev {table} {name}"))?;
        let answer: Value = serde_json::from_str(&text)?;
        answer["nftables"]
            .as_array()
            .and_then(|list| {
                list.iter()
                    .find_map(|item| item["counter"]["packets"].as_u64())
            })
            .with_context(|| format!("no counter in {text}"))
    }
}
