//! How flows spread over servers, and whether that is what the weights ask for.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, bail};

/// A server's name with its part of the flows, relative to the sum of all parts.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    /// The name by which the server answers.
    pub server: &'a str,
    /// Any unit.
    pub weight: f64,
}

impl<'a> Share<'a> {
    /// `weight` parts for `server`.
    pub const fn new(server: &'a str, weight: f64) -> Self {
        Self { server, weight }
    }

    /// Equal parts.
    pub fn equal(servers: &[&'a str]) -> Vec<Self> {
        servers
            .iter()
            .map(|server| Self::new(server, 1.0))
            .collect()
    }
}

/// Flows per server.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Spread {
    flows: BTreeMap<String, u64>,
}

impl Spread {
    /// Counts a flow that `server` answered.
    pub fn add(&mut self, server: &str) {
        *self.flows.entry(server.to_owned()).or_default() += 1;
    }

    /// Adds all flows of `other`.
    pub fn merge(&mut self, other: Self) {
        for (server, flows) in other.flows {
            *self.flows.entry(server).or_default() += flows;
        }
    }

    /// All flows.
    pub fn total(&self) -> u64 {
        self.flows.values().sum()
    }

    /// Flows of one server.
    pub fn of(&self, server: &str) -> u64 {
        self.flows.get(server).copied().unwrap_or(0)
    }

    /// Flows of all servers whose names begin like this.
    pub fn with_prefix(&self, prefix: &str) -> u64 {
        let flows = self.flows.iter();
        flows
            .filter(|(server, _)| server.starts_with(prefix))
            .map(|(_, flows)| flows)
            .sum()
    }

    /// Servers that answered, in the order of their names.
    pub fn servers(&self) -> Vec<&str> {
        self.flows.keys().map(String::as_str).collect()
    }

    /// Fails unless every server's flows are within `deviations` standard deviations of its share (each flow an
    /// independent draw), and no other server answered.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn expect(&self, shares: &[Share<'_>], deviations: f64) -> Result<()> {
        let whole: f64 = shares.iter().map(|share| share.weight).sum();
        let total = self.total() as f64;
        if let Some(stranger) = self
            .flows
            .keys()
            .find(|name| shares.iter().all(|share| share.server != **name))
        {
            bail!("{stranger} answered but has no share: {self}");
        }
        for share in shares {
            let part = share.weight / whole;
            let (expected, found) = (total * part, self.of(share.server) as f64);
            let deviation = (total * part * (1.0 - part)).sqrt();
            if (found - expected).abs() > deviations * deviation {
                bail!(
                    "{} got {found} flows, expected {expected:.0} ± {:.0}: {self}",
                    share.server,
                    deviations * deviation
                );
            }
        }
        Ok(())
    }
}

impl fmt::Display for Spread {
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total().max(1) as f64;
        for (index, (server, flows)) in self.flows.iter().enumerate() {
            let gap = if index == 0 { "" } else { "  " };
            write!(
                f,
                "{gap}{server} {flows} ({:.1} %)",
                *flows as f64 * 100.0 / total
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(a: u64, b: u64) -> Spread {
        Spread {
            flows: [("a".to_owned(), a), ("b".to_owned(), b)].into(),
        }
    }

    #[test]
    fn a_share_five_points_off_is_noticed_and_chance_is_not() {
        let half = Share::equal(&["a", "b"]);
        spread(5100, 4900).expect(&half, 3.0).unwrap();
        spread(5500, 4500).expect(&half, 3.0).unwrap_err();
        spread(9500, 500)
            .expect(&[Share::new("a", 90.0), Share::new("b", 10.0)], 3.0)
            .unwrap_err();
    }

    #[test]
    fn strangers_and_servers_without_flows_are_noticed() {
        spread(5000, 5000)
            .expect(&[Share::new("a", 1.0)], 3.0)
            .unwrap_err();
        let three = Share::equal(&["a", "b", "c"]);
        spread(5000, 5000).expect(&three, 3.0).unwrap_err();
    }
}
