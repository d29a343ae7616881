//! Settings of an interface that rtnetlink does not tell of.

use std::fs;

const IPV4: &str = "/proc/sys/net/ipv4/conf";
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// Settings of an interface. `None`: the kernel has no such setting, as without IPv6, or does not show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// IPv4 packets that come by it are forwarded.
    pub forwards_v4: Option<bool>,
    /// IPv6 packets that come by it are forwarded.
    pub forwards_v6: Option<bool>,
    /// Hosts are told by ICMP redirects of shorter ways than through this node. IPv4 only.
    pub sends_redirects: Option<bool>,
    /// Packets whose source would be reached by another interface are dropped (RFC 3704, strict). IPv4 only.
    pub filters_strictly: Option<bool>,
}

impl Settings {
    /// Of the interface of this name.
    pub fn read(interface: &str) -> Self {
        let number = |family: &str, of: &str, name: &str| {
            let text = fs::read_to_string(format!("{family}/{of}/{name}")).ok()?;
            text.trim().parse::<i64>().ok()
        };
        let own = |family, name| number(family, interface, name);
        let all = |name| number(IPV4, "all", name);
        // The kernel takes the stricter of the two filters, and redirects if either says so.
        let redirects = own(IPV4, "send_redirects").zip(all("send_redirects"));
        let filters = own(IPV4, "rp_filter").zip(all("rp_filter"));
        Self {
            forwards_v4: own(IPV4, "forwarding").map(|value| value != 0),
            forwards_v6: own(IPV6, "forwarding").map(|value| value != 0),
            sends_redirects: redirects.map(|(own, all)| own != 0 || all != 0),
            filters_strictly: filters.map(|(own, all)| own.max(all) == 1),
        }
    }
}
