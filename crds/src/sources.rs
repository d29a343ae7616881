//! Whose connections a virtual server takes.

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::{parse_block, parse_ip};
use crate::limits::{MAX_BLOCK_LENGTH, MAX_SOURCES};
use crate::rules;

/// The clients that may begin flows. What is open goes on when the list changes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Sources {
    /// Blocks (`198.51.100.0/24`, `2001:db8::/32`) and addresses, of either family. A list without any of a family admits no
    /// client of that family.
    #[schemars(length(min = 1, max = MAX_SOURCES), inner(length(min = 2, max = MAX_BLOCK_LENGTH)))]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    #[schemars(extend("x-kubernetes-validations" = rules::source_blocks()))]
    pub allow: Vec<String>,
}

/// The clients that may begin flows, as decided.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct DecidedSources {
    /// Blocks of addresses in order, each once.
    #[schemars(with = "Vec<String>", length(max = MAX_SOURCES), inner(length(max = MAX_BLOCK_LENGTH)))]
    pub allow: Vec<IpNet>,
}

impl DecidedSources {
    /// The content that a spec asks for. Texts that are no block are left out: validate first.
    pub fn of_spec(spec: &Sources) -> Self {
        let blocks = spec.allow.iter();
        let mut allow: Vec<IpNet> = blocks.filter_map(|text| parse_source(text)).collect();
        allow.sort_unstable();
        allow.dedup();
        Self { allow }
    }
}

/// A block of clients' addresses, or one address: its lower bits are 0.
pub(crate) fn parse_source(text: &str) -> Option<IpNet> {
    if let Some(address) = parse_ip(text) {
        return Some(IpNet::from(address));
    }
    parse_block(text).filter(|block| block.trunc() == *block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_in_order_and_each_once() {
        let texts = [
            "2001:db8::/32",
            "198.51.100.7",
            "10.0.0.0/8",
            "198.51.100.7/32",
            "2001:DB8::/32",
            "0.0.0.0/0",
        ];
        let spec = Sources {
            allow: texts.map(str::to_owned).into(),
        };
        let blocks = DecidedSources::of_spec(&spec).allow;
        let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
        assert_eq!(
            blocks,
            [
                "0.0.0.0/0",
                "10.0.0.0/8",
                "198.51.100.7/32",
                "2001:db8::/32"
            ]
        );
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for text in [
            "",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0/8",
            "2001:db8::1/32",
            "::ffff:10.0.0.0/104",
            "fe80::1%eth0",
            "10.0.0.1-10.0.0.9",
        ] {
            assert_eq!(parse_source(text), None, "{text}");
        }
    }
}
