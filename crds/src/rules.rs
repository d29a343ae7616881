//! CEL rules as the schema carries them. [`crate::Validate`] holds the same rules for files; a test compares the two.

use serde_json::{Value, json};

use crate::limits::{MAX_LABEL_LENGTH, MAX_POOLS};

/// Pattern of an RFC 1123 label.
pub(crate) const LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// Pattern of an RFC 1123 subdomain.
pub(crate) const SUBDOMAIN: &str =
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

/// Pattern of a Linux interface name.
pub(crate) const INTERFACE: &str = r"^[^\s/:]+$";

/// Pattern of a path with a query, as a request has it (RFC 9112 section 3.2.1).
pub(crate) const PATH: &str = "^/[!-~]*$";
/// Pattern of text without spaces.
pub(crate) const VISIBLE: &str = "^[!-~]+$";
/// Pattern of a header's value.
pub(crate) const PRINTABLE: &str = "^[ -~]*$";
/// Pattern of a header's name (RFC 9110 section 5.6.2).
pub(crate) const HEADER_NAME: &str = "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$";

pub(crate) const ONE_PER_FAMILY: &str = "give at most one IPv4 and one IPv6 address: a further address needs a VirtualServer of its own";
pub(crate) const IP_ADDRESS: &str = "must be an IPv4 or IPv6 address such as 203.0.113.10 or 2001:db8::10, without prefix length or zone";
pub(crate) const UNIQUE_PORT: &str = "each protocol and port may appear once: remove the duplicate";
pub(crate) const SOME_WEIGHT: &str = "the weights of all pools are 0, so no pool could serve: give at least one pool a weight above 0";
pub(crate) const FALLBACK_FITS: &str = "a fallback pool that pools does not list is one pool more, and a virtual server has 8 at most: remove a pool";
pub(crate) const TWO_POOLS: &str =
    "stablePoolName and candidatePoolName must differ: name the pool that takes over as candidate";
pub(crate) const STEPS_RISE: &str = "weights of steps must not go down: order the steps by weight (the command abort takes the candidate back to 0)";
pub(crate) const ONE_SOURCE: &str = "give exactly one of selector, serviceName and static";
pub(crate) const SOME_CONDITION: &str =
    "would select everything: give matchLabels or matchExpressions";
pub(crate) const VALUES_FIT_OPERATOR: &str =
    "In and NotIn need values; Exists and DoesNotExist must have none";

pub(crate) const ONE_CHECK: &str = "give exactly one of tcp, http, grpc, udp and icmp";
pub(crate) const NO_PORT: &str = "icmp knows no ports: remove port";
pub(crate) const TIMEOUT_FITS: &str = "timeoutMilliseconds must not be longer than the interval: raise intervalSeconds or lower timeoutMilliseconds";
pub(crate) const ONE_TRUST: &str = "give either caCertificates or skipVerification: true";
pub(crate) const RANGE_RISES: &str = "min must not be above max";

pub(crate) const ONE_REQUEST: &str = "give either ip, or family with or without addressPoolName";
pub(crate) const SOME_ALLOWED: &str = "would allow nobody: give namespaces, namespaceSelector or serviceSelector, or remove allow to allow all";
pub(crate) const ONE_ANNOUNCEMENT: &str = "give exactly one of l2 and none";
pub(crate) const ONE_GATEWAY_GROUP: &str =
    "gateways need groups: 1, since all that is behind them must have one director";
pub(crate) const ADDRESS_RANGES: &str = "must be an address, a block such as 203.0.113.0/28 or 2001:db8::/64, or a range such as 203.0.113.10-203.0.113.20";

pub(crate) const SOURCE_BLOCKS: &str = "must be an IPv4 or IPv6 address, or a block such as 198.51.100.0/24 or 2001:db8::/32 whose lower bits are 0";

/// One rule.
pub(crate) fn rule(rule: &str, message: &str) -> Value {
    json!([{"rule": rule, "message": message}])
}

pub(crate) fn one_per_family() -> Value {
    rule(
        "self.filter(a, has(a.ip) ? isIP(a.ip) && ip(a.ip).family() == 4 : has(a.family) && a.family == 'IPv4').size() <= 1 \
         && self.filter(a, has(a.ip) ? isIP(a.ip) && ip(a.ip).family() == 6 : has(a.family) && a.family == 'IPv6').size() <= 1",
        ONE_PER_FAMILY,
    )
}

pub(crate) fn one_request() -> Value {
    rule(
        "has(self.ip) ? !has(self.family) && !has(self.addressPoolName) : has(self.family)",
        ONE_REQUEST,
    )
}

pub(crate) fn some_allowed() -> Value {
    rule(
        "has(self.namespaceSelector) || has(self.serviceSelector) || (has(self.namespaces) && self.namespaces.size() > 0)",
        SOME_ALLOWED,
    )
}

pub(crate) fn one_announcement() -> Value {
    rule("has(self.l2) != has(self.none)", ONE_ANNOUNCEMENT)
}

pub(crate) fn one_gateway_group() -> Value {
    rule(
        "!has(self.gateways) || self.gateways.size() == 0 || self.groups == 1",
        ONE_GATEWAY_GROUP,
    )
}

pub(crate) fn address_ranges() -> Value {
    rule(
        "self.all(a, isIP(a) || isCIDR(a) || (a.split('-').size() == 2 && a.split('-').all(b, isIP(b))))",
        ADDRESS_RANGES,
    )
}

pub(crate) fn source_blocks() -> Value {
    rule(
        "self.all(a, isIP(a) || (isCIDR(a) && cidr(a) == cidr(a).masked()))",
        SOURCE_BLOCKS,
    )
}

pub(crate) fn health_check() -> Value {
    json!([
        {"rule": "[has(self.tcp), has(self.http), has(self.grpc), has(self.udp), has(self.icmp)].filter(given, given).size() == 1", "message": ONE_CHECK},
        {"rule": "!has(self.icmp) || !has(self.port)", "message": NO_PORT},
        {"rule": "self.timeoutMilliseconds <= self.intervalSeconds * 1000", "message": TIMEOUT_FITS},
    ])
}

pub(crate) fn one_trust() -> Value {
    rule(
        "has(self.caCertificates) != self.skipVerification",
        ONE_TRUST,
    )
}

pub(crate) fn range_rises() -> Value {
    rule("self.min <= self.max", RANGE_RISES)
}

pub(crate) fn ip_address() -> Value {
    rule("isIP(self)", IP_ADDRESS)
}

pub(crate) fn ip_addresses() -> Value {
    rule("self.all(a, isIP(a))", IP_ADDRESS)
}

pub(crate) fn unique_port() -> Value {
    rule(
        "self.all(p, self.filter(q, q.protocol == p.protocol && q.port == p.port).size() == 1)",
        UNIQUE_PORT,
    )
}

pub(crate) fn some_weight() -> Value {
    rule("self.exists(p, p.weight > 0)", SOME_WEIGHT)
}

pub(crate) fn fallback_fits() -> Value {
    rule(
        &format!(
            "!has(self.fallbackPoolName) || self.pools.size() < {MAX_POOLS} || self.pools.exists(p, p.name == self.fallbackPoolName)"
        ),
        FALLBACK_FITS,
    )
}

pub(crate) fn two_pools() -> Value {
    rule("self.stablePoolName != self.candidatePoolName", TWO_POOLS)
}

pub(crate) fn steps_rise() -> Value {
    rule("self.map(s, s.weight).isSorted()", STEPS_RISE)
}

pub(crate) fn one_source() -> Value {
    rule(
        "[has(self.selector), has(self.serviceName), has(self.static)].filter(given, given).size() == 1",
        ONE_SOURCE,
    )
}

pub(crate) fn some_condition() -> Value {
    rule(
        "(has(self.matchLabels) && self.matchLabels.size() > 0) \
         || (has(self.matchExpressions) && self.matchExpressions.size() > 0)",
        SOME_CONDITION,
    )
}

pub(crate) fn values_fit_operator() -> Value {
    rule(
        "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
        VALUES_FIT_OPERATOR,
    )
}

/// Schema of a label's value.
pub(crate) fn label_value() -> Value {
    json!({"type": "string", "maxLength": MAX_LABEL_LENGTH})
}

/// Whether [`pattern_error`] knows a pattern.
#[cfg(test)]
pub(crate) fn is_known_pattern(pattern: &str) -> bool {
    let of_names = [LABEL, SUBDOMAIN, INTERFACE];
    let of_texts = [PATH, VISIBLE, PRINTABLE, HEADER_NAME];
    of_names.contains(&pattern) || of_texts.contains(&pattern)
}

/// The error for a text that does not match one of the patterns above.
pub(crate) fn pattern_error(pattern: &str, text: &str) -> Option<&'static str> {
    let (matches, message) = match pattern {
        LABEL => (
            is_label(text),
            "must consist of lower-case letters, digits and -, and begin and end with a letter or digit",
        ),
        SUBDOMAIN => (
            is_subdomain(text),
            "must consist of lower-case letters, digits, - and ., and each part must begin and end with a letter or digit",
        ),
        INTERFACE => (
            !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c == '/' || c == ':'),
            "must be the name of a network interface",
        ),
        PATH => (
            text.starts_with('/') && is_visible(text),
            "must begin with / and have no spaces: write others as %20",
        ),
        VISIBLE => (
            !text.is_empty() && is_visible(text),
            "must consist of visible ASCII characters without spaces",
        ),
        PRINTABLE => (
            text.bytes().all(|c| c == b' ' || c.is_ascii_graphic()),
            "must consist of visible ASCII characters and spaces",
        ),
        HEADER_NAME => (
            !text.is_empty() && text.bytes().all(is_token),
            "must be the name of a header, such as X-Request-Id",
        ),
        _ => (true, ""),
    };
    (!matches).then_some(message)
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_graphic())
}

const fn is_token(c: u8) -> bool {
    matches!(c, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
        || c.is_ascii_alphanumeric()
}

/// RFC 1123 label, without the limit of its length.
pub fn is_label(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// RFC 1123 subdomain, without the limit of its length.
pub fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}
