//! The list of directors that the operator writes for agents: one small object that they read, so that none has to read the
//! status of other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::limits::{MAX_NAME_LENGTH, MAX_NODE_ADDRESSES};

/// Name of the ConfigMap, in Sluice's own namespace.
pub const PEERS_CONFIG_MAP: &str = "sluice-peers";
/// The key under which the list stands there: JSON, an object of lists of addresses by node name.
pub const PEERS_KEY: &str = "peers.json";
/// The longest list in bytes: the API server takes 1 MiB of a ConfigMap, its metadata included. A director with a name of 20
/// characters and an address of each family takes about 70.
pub const MAX_PEERS_BYTES: usize = 900_000;

/// The own addresses of directors by node name.
pub type Peers = BTreeMap<String, BTreeSet<IpAddr>>;

/// Writes the list. Nodes for which there is no room are left out, the last by name; the second value says how many.
pub fn write_peers(peers: &Peers) -> (String, usize) {
    let mut text = String::from("{");
    let mut written = 0;
    for (node, addresses) in peers {
        let addresses: Vec<String> = addresses.iter().map(|a| format!("\"{a}\"")).collect();
        let separator = if written == 0 { "" } else { "," };
        let entry = format!("{separator}\"{node}\":[{}]", addresses.join(","));
        if text.len() + entry.len() + 1 > MAX_PEERS_BYTES {
            break;
        }
        text.push_str(&entry);
        written += 1;
    }
    text.push('}');
    (text, peers.len() - written)
}

/// Reads the list. The error says what is wrong with it.
pub fn read_peers(text: &str) -> Result<Peers, String> {
    if text.len() > MAX_PEERS_BYTES {
        let length = text.len();
        return Err(format!("{length} bytes, more than {MAX_PEERS_BYTES}"));
    }
    let peers: Peers = serde_json::from_str(text).map_err(|error| error.to_string())?;
    for (node, addresses) in &peers {
        if node.is_empty() || node.len() > MAX_NAME_LENGTH {
            return Err(format!("{node:?} is no name of a node"));
        }
        if addresses.len() > MAX_NODE_ADDRESSES {
            let count = addresses.len();
            return Err(format!(
                "{node} has {count} addresses, more than {MAX_NODE_ADDRESSES}"
            ));
        }
        let unusable = addresses.iter().find(|address| !is_usable(**address));
        if let Some(address) = unusable {
            return Err(format!("{address} of {node} is no address of a node"));
        }
    }
    Ok(peers)
}

/// Whether this may be a node's own address that others see.
fn is_usable(address: IpAddr) -> bool {
    !address.is_loopback() && !address.is_multicast() && !address.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(count: usize) -> Peers {
        let node = |number: usize| {
            let addresses = ["192.0.2.7", "2001:db8::7"];
            let addresses = addresses.map(|address| address.parse().expect("an address"));
            (format!("director-{number:06}"), addresses.into())
        };
        (0..count).map(node).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        for count in [0, 1, 3, 5_000] {
            let peers = peers(count);
            let (text, left_out) = write_peers(&peers);
            assert_eq!((read_peers(&text), left_out), (Ok(peers), 0));
        }
        assert_eq!(
            write_peers(&peers(1)).0,
            r#"{"director-000000":["192.0.2.7","2001:db8::7"]}"#
        );
    }

    #[test]
    fn what_has_no_room_is_left_out() {
        let all = peers(20_000);
        let (text, left_out) = write_peers(&all);
        let read = read_peers(&text).expect("a list");
        assert!(text.len() <= MAX_PEERS_BYTES && left_out > 0);
        assert_eq!(read.len() + left_out, all.len());
        assert!(read.iter().eq(all.iter().take(read.len())));
    }

    #[test]
    fn a_bad_list_is_refused() {
        for (text, part) in [
            ("", "EOF"),
            ("[]", "expected a map"),
            (r#"{"d1": ["10.0.0.300"]}"#, "invalid IP address"),
            (r#"{"d1": "10.0.0.3"}"#, "expected a sequence"),
            (r#"{"d1": ["127.0.0.1"]}"#, "127.0.0.1 of d1"),
            (r#"{"d1": ["::"]}"#, ":: of d1"),
            (r#"{"": ["10.0.0.3"]}"#, "no name"),
            (&" ".repeat(MAX_PEERS_BYTES + 1), "more than 900000"),
        ] {
            let error = read_peers(text).expect_err("refused");
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
        let addresses: Vec<String> = (1..=MAX_NODE_ADDRESSES + 1)
            .map(|last| format!("\"2001:db8::{last:x}\""))
            .collect();
        let text = format!("{{\"d1\": [{}]}}", addresses.join(","));
        assert!(
            read_peers(&text)
                .expect_err("refused")
                .contains("addresses")
        );
    }
}
