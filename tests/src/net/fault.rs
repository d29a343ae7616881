//! What goes wrong at a port of a switch: to the host behind it nothing else happens.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;

use super::counter::Counters;
use super::link::Port;

/// nftables' table of [`Port::isolate_but`].
const ISOLATED: &str = "isolated";
/// Its table of [`Port::lose_questions`] and [`Port::lose_bursts`].
const LOSSY: &str = "lossy";

/// Questions of who has an address, in expressions of nftables.
const QUESTIONS: [&str; 2] = ["arp operation request", "icmpv6 type nd-neighbor-solicit"];
/// Questions and answers while their protocols are in the set of a burst.
const IN_BURSTS: [&str; 2] = [
    "ether type @burst arp operation { request, reply }",
    "ether type @burst icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }",
];

impl Port<'_> {
    /// Takes the link down: the host loses its carrier.
    pub fn cut(self) -> Result<()> {
        self.namespace.ip(&format!("link set {} down", self.name))?;
        Ok(())
    }

    /// Ends [`Self::cut`].
    pub fn mend(self) -> Result<()> {
        self.namespace.ip(&format!("link set {} up", self.name))?;
        Ok(())
    }

    /// Neither takes from the host nor gives to it; the carrier stays.
    pub fn silence(self) -> Result<()> {
        self.set_bridge_state(0)
    }

    /// Ends [`Self::silence`].
    pub fn unsilence(self) -> Result<()> {
        self.set_bridge_state(3)
    }

    fn set_bridge_state(self, state: u8) -> Result<()> {
        let line = format!("bridge link set dev {} state {state}", self.name);
        self.namespace.run(&line)?;
        Ok(())
    }

    /// The same as [`Self::silence`], but that the host goes on speaking with this address.
    pub fn isolate_but(self, address: Ipv4Addr) -> Result<()> {
        let rules = ["saddr", "daddr"]
            .map(|end| format!("ip {end} {address} accept; arp {end} ip {address} accept;"));
        self.filter(ISOLATED, "", &format!("{} counter drop;", rules.concat()))
    }

    /// Ends [`Self::isolate_but`].
    pub fn unisolate(self) -> Result<()> {
        self.unfilter(ISOLATED)
    }

    /// Loses so many of 100 questions of who has an address, at random, that the host asks or is asked.
    pub fn lose_questions(self, percent: u8) -> Result<()> {
        let rules = QUESTIONS.map(|question| {
            format!("{question} numgen random mod 100 < {percent} counter name lost drop;")
        });
        self.filter(LOSSY, "counter lost { }", &rules.concat())
    }

    /// Is ready for [`Self::lose_burst`].
    pub fn lose_bursts(self) -> Result<()> {
        let rules = IN_BURSTS.map(|these| format!("{these} counter name lost drop;"));
        let parts = "counter lost { }\nset burst { type ether_type; flags timeout; }";
        self.filter(LOSSY, parts, &rules.concat())
    }

    /// Loses all questions and answers of who has an address for so long.
    pub fn lose_burst(self, time: Duration) -> Result<()> {
        let milliseconds = time.as_millis();
        let elements = ["arp", "ip6"].map(|kind| format!("{kind} timeout {milliseconds}ms"));
        let elements = elements.join(", ");
        let table = self.table(LOSSY);
        self.namespace.nft(&format!(
            "add element netdev {table} burst {{ {elements} }}\n"
        ))
    }

    /// How many questions and answers were lost.
    pub fn lost(self) -> Result<u64> {
        let table = self.table(LOSSY);
        Counters::of(self.namespace.port(&table)).packets("lost")
    }

    /// Ends [`Self::lose_questions`] and [`Self::lose_bursts`].
    pub fn lose_nothing(self) -> Result<()> {
        self.unfilter(LOSSY)
    }

    fn table(self, kind: &str) -> String {
        format!("{kind}-{}", self.name)
    }

    /// Has all frames meet these rules of nftables, which may refer to the parts of their table.
    fn filter(self, kind: &str, parts: &str, rules: &str) -> Result<()> {
        let (table, device) = (self.table(kind), self.name);
        let chain = |hook: &str| {
            format!(
                "chain {hook} {{ type filter hook {hook} device \"{device}\" priority 0; policy accept; {rules} }}\n"
            )
        };
        let chains = [chain("ingress"), chain("egress")].concat();
        self.namespace
            .nft(&format!("table netdev {table} {{\n{parts}\n{chains}}}\n"))
    }

    fn unfilter(self, kind: &str) -> Result<()> {
        let table = self.table(kind);
        self.namespace
            .run(&format!("nft delete table netdev {table}"))?;
        Ok(())
    }
}
