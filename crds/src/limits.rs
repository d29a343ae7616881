//! Limits of the API. The generated schemas and the validation of files use the same constants.

/// Addresses of a virtual server: one per family.
pub const MAX_ADDRESSES: usize = 2;
/// Blocks, ranges and addresses of an address pool.
pub const MAX_POOL_RANGES: usize = 64;
/// Characters of a range of addresses as text: two addresses and a dash.
pub const MAX_RANGE_LENGTH: usize = 2 * MAX_ADDRESS_LENGTH + 1;
/// Namespaces that an address pool names.
pub const MAX_POOL_NAMESPACES: usize = 256;
/// Largest priority of an address pool.
pub const MAX_POOL_PRIORITY: u32 = 1_000;
/// VIP groups of an address pool.
pub const MAX_POOL_GROUPS: u8 = 16;
/// Number of the first VIP group of an address pool that is one virtual server's alone, since its traffic policy is `Local`.
pub const FIRST_LOCAL_GROUP: u8 = 128;
/// VIP groups of an address pool that are one virtual server's alone.
pub const MAX_LOCAL_GROUPS: u8 = 64;
/// VIP groups of an address pool that says nothing about them.
pub const DEFAULT_POOL_GROUPS: u8 = 4;
/// Gateways of NAT servers that an address pool names.
pub const MAX_POOL_GATEWAYS: usize = 16;
/// Nodes that a pool's decision names as those that may announce its addresses.
pub const MAX_ANNOUNCING_NODES: usize = 1_000;
/// VIP groups that a node takes part in.
pub const MAX_NODE_GROUPS: usize = 1_024;
/// VIP groups without a holder that a node reports.
pub const MAX_UNHELD_GROUPS: usize = 64;
/// VIPs that a node reports as not answered for yet.
pub const MAX_NEW_ADDRESSES: usize = 256;
/// Claims of VIPs by other hosts that a node reports.
pub const MAX_ADDRESS_CLAIMS: usize = 16;
/// Characters of the name of an address pool: names of its VIP groups are made of it.
pub const MAX_ADDRESS_POOL_NAME_LENGTH: usize = 63;
/// Characters of a VIP group's name: the pool's, a dash and three digits.
pub const MAX_GROUP_NAME_LENGTH: usize = MAX_ADDRESS_POOL_NAME_LENGTH + 4;
/// Characters of a MAC address as text.
pub const MAX_MAC_LENGTH: usize = 17;
/// Blocks of clients' addresses of a virtual server.
pub const MAX_SOURCES: usize = 256;
/// Characters of a block of addresses as text: an address, a slash and a number.
pub const MAX_BLOCK_LENGTH: usize = MAX_ADDRESS_LENGTH + 4;
/// Ports of a virtual server, and target ports of a pool or server.
pub const MAX_PORTS: usize = 32;
/// Pools of a virtual server.
pub const MAX_POOLS: usize = 8;
/// Percent of a pool's servers that must take flows before a fallback pool does, where a virtual server does not say: the last one.
pub const DEFAULT_MIN_READY_PERCENT: u8 = 1;
/// Largest weight of a pool in a spec.
pub const MAX_POOL_WEIGHT: u32 = 10_000;
/// A decided weight is a weight of a spec times 1 or this, so that a percentage of it is a whole number.
pub const WEIGHT_SCALE: u32 = 100;
/// Static servers of a pool.
pub const MAX_STATIC_SERVERS: usize = 512;
/// Longest time for which servers keep flows once they take no new ones: a day.
pub const MAX_DRAIN_SECONDS: u32 = 86_400;
/// Longest time in which a server gets its share of new flows: an hour.
pub const MAX_WARMUP_SECONDS: u32 = 3_600;
/// Longest time between two checks of a server: an hour.
pub const MAX_CHECK_INTERVAL_SECONDS: u32 = 3_600;
/// Percent of the interval by which a check may be put off.
pub const MAX_CHECK_JITTER_PERCENT: u8 = 50;
/// Longest time that a check of a server may take.
pub const MAX_CHECK_TIMEOUT_MILLISECONDS: u32 = 60_000;
/// Checks in a row that may be asked for before a server is up or down.
pub const MAX_CHECK_RESULTS: u8 = 10;
/// Characters of the path of a check by HTTP.
pub const MAX_CHECK_PATH_LENGTH: usize = 1_024;
/// Headers of a check by HTTP.
pub const MAX_CHECK_HEADERS: usize = 16;
/// Characters of a header's name.
pub const MAX_HEADER_NAME_LENGTH: usize = 128;
/// Characters of a header's value.
pub const MAX_HEADER_VALUE_LENGTH: usize = 1_024;
/// Ranges of statuses that a check by HTTP expects.
pub const MAX_CHECK_STATUSES: usize = 8;
/// Characters of the text that the answer to a check contains.
pub const MAX_CHECK_BODY_LENGTH: usize = 256;
/// Characters of a check's datagram.
pub const MAX_CHECK_DATAGRAM_LENGTH: usize = 512;
/// Characters of why a check failed.
pub const MAX_CHECK_FAILURE_LENGTH: usize = 160;
/// Servers that fail their checks in the status of a node.
pub const MAX_DOWN_SERVERS: usize = 32;
/// Characters of the certificates that a check trusts, as PEM.
pub const MAX_CERTIFICATES_LENGTH: usize = 16_384;
/// Conditions of a pod selector, of each form.
pub const MAX_SELECTOR_CONDITIONS: usize = 32;
/// Values of one condition of a pod selector.
pub const MAX_SELECTOR_VALUES: usize = 32;
/// Characters of a label's name: prefix, slash and name.
pub const MAX_LABEL_KEY_LENGTH: usize = 317;
/// Characters of a port's name (IANA service name, RFC 6335 section 5.1).
pub const MAX_PORT_NAME_LENGTH: usize = 15;
/// Servers of a pool that are drained by hand.
pub const MAX_DRAINED_SERVERS: usize = 64;
/// Characters of an object's uid.
pub const MAX_UID_LENGTH: usize = 64;
/// Largest weight of a real server.
pub const MAX_SERVER_WEIGHT: u32 = 1_000;
/// Weight of a real server that gives none.
pub const DEFAULT_SERVER_WEIGHT: u32 = 1;
/// Steps of a canary.
pub const MAX_STEPS: usize = 32;
/// Longest pause of a step: thirty days.
pub const MAX_PAUSE_SECONDS: u32 = 30 * 24 * 3600;
/// Entries of a rollout's history; the oldest go first.
pub const MAX_HISTORY: usize = 50;
/// Interfaces of a node.
pub const MAX_INTERFACES: usize = 16;
/// Gateways of one interface that a node reports.
pub const MAX_GATEWAYS: usize = 16;
/// Own addresses that a node reports.
pub const MAX_NODE_ADDRESSES: usize = 256;
/// Ranges of one director's pods of which agents are told; Kubernetes gives a Node one of each family.
pub const MAX_NODE_POD_CIDRS: usize = 16;
/// Exceptions that a node reports one by one.
pub const MAX_EXCEPTIONS: usize = 256;
/// Exceptions that a node reports beside those by a number each.
pub const MAX_UNLISTED_EXCEPTIONS: usize = 16_384;
/// Conditions of an object.
pub const MAX_CONDITIONS: usize = 16;
/// Characters of an object's name (RFC 1123 subdomain).
pub const MAX_NAME_LENGTH: usize = 253;
/// Characters of a port's or server's name (RFC 1123 label).
pub const MAX_LABEL_LENGTH: usize = 63;
/// Characters of an IP address as text.
pub const MAX_ADDRESS_LENGTH: usize = 45;
/// Characters of an interface's name (Linux IFNAMSIZ without the final zero).
pub const MAX_INTERFACE_NAME_LENGTH: usize = 15;
/// Characters of a message in status.
pub const MAX_MESSAGE_LENGTH: usize = 1024;
/// Characters of a rollout command.
pub const MAX_COMMAND_LENGTH: usize = 128;
/// The highest revision. It is a whole number for every reader of JSON, and at a million decisions a second it lasts for thirty
/// years.
pub const MAX_REVISION: u64 = 1_000_000_000_000_000;
/// Seconds after which a node that did not renew its heartbeat no longer counts.
pub const NODE_SILENT_SECONDS: u64 = 40;
