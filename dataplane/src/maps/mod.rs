//! The maps and programs of this node: the only place that calls bpf(2).
//!
//! Maps are pinned by name under the pin directory and links under its `links` directory, so both outlive the agent.
//! [`open`] loads the object, adopts what is pinned, and creates what is missing; it drops no flow: a live link gets the
//! new program by replacement, and maps are adopted only when they are what the object declares.
//!
//! One thread writes ([`Maps::apply`]), and one arms VIP groups ([`Maps::arm`]), each maps of its own; sweeps, counts and dumps read
//! beside them. Slots that no word refers to are written
//! through shared memory, words by system call, which orders the one before the other.

mod attach;
mod btf;
mod clock;
mod families;
mod groups;
mod hook;
mod image;
mod load;
mod pins;
mod samples;
mod spec;
mod sweep;
mod sys;
mod table;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use sluice_abi::{
    AnnouncedKey, AnnouncedWord, ConfigWord, DropReason, GROUP_WORDS, Head, LocalKey, MAC_WORDS,
    MacKey, MapName, PortKey, PrefixKey, RingWord, SAMPLE_WORDS, ServerCounters, ServerRecord,
    ServerWord, SourceKey, Stat, VipWord, claim_words,
};
use sluice_planner::Limits;

pub use attach::{Attached, Attacher, Filter, Mode, XdpChoice};
pub use clock::Tick;
pub use groups::Group;
pub use hook::Hook;
pub use load::{Opened, Programs, open};
pub use pins::{PinLock, detach};
pub use samples::Sample;
pub use sweep::{FlowCensus, FullNatCensus, Usage};

use families::Families;
use sys::RawMap;
use table::{Array, Hash, PerCpu, Shared};

/// Errors of maps and programs.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The object file cannot be used.
    #[error("{}: {message}: build it with `cargo xtask build-bpf`, or name another with --object", path.display())]
    Object {
        /// The file.
        path: PathBuf,
        /// Why not.
        message: String,
    },
    /// The kernel refused the object.
    #[error("the kernel does not load the programs: {message}")]
    Load {
        /// With the verifier's last words where there are any.
        message: String,
    },
    /// The pin directory is not on a BPF file system.
    #[error("{} is not on a BPF file system: run `mount -t bpf bpf /sys/fs/bpf`, or mount the host's into the container", path.display())]
    NoBpfFs {
        /// The pin directory.
        path: PathBuf,
    },
    /// Another agent uses the pin directory.
    #[error("{} is in use by another agent: stop that one, or give this one a --pin-dir of its own", path.display())]
    PinsInUse {
        /// The pin directory.
        path: PathBuf,
    },
    /// A pinned map is not what the object declares.
    #[error("the pinned map {name} ({}) is not the expected one: expected {expected}; found {found}: {remedy}", pin.display())]
    PinnedMapDiffers {
        /// Its name.
        name: String,
        /// Where it is pinned.
        pin: PathBuf,
        /// The properties that it must have, in words.
        expected: String,
        /// The properties that it has, in words.
        found: String,
        /// Advice to the user.
        remedy: &'static str,
    },
    /// The pinned maps are of another layout version.
    #[error(
        "the pinned map CONFIG ({}) says ABI version {found}; expected {expected}: run the agent's other version, or run \
         `sluice-agent detach`, which ends established flows, and start this one again", pin.display()
    )]
    AbiDiffers {
        /// Where it is pinned.
        pin: PathBuf,
        /// [`sluice_abi::ABI_VERSION`].
        expected: u64,
        /// The version in the map.
        found: u64,
    },
    /// A map operation failed.
    #[error("map {map}: cannot {action}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// The action that was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Anything else that the system refused.
    #[error("cannot {action}: {source}")]
    System {
        /// The action that was tried.
        action: String,
        /// Why not.
        source: io::Error,
    },
}

/// Attaches the map's name and what was tried.
fn map_error(map: MapName, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Map {
        map: map.as_str(),
        action,
        source,
    }
}

fn system_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let action = action.into();
    move |source| Error::System { action, source }
}

/// Sizes that options choose. What is not named here has the size that the object declares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Buckets of `FLOWS4` and of `FLOWS6`, a power of two.
    pub flow_buckets: u32,
    /// Buckets of `HALF4` and of `HALF6`, a power of two.
    pub half_open_buckets: u32,
    /// Slots of `FULLNAT4` and of `FULLNAT6`, a power of two.
    pub fullnat_slots: u32,
    /// Entries of `VIPS4`, `VIPS6`, `ANNOUNCED4` and `ANNOUNCED6`; there is room for two rings and four heads for each.
    pub vip_ports: u32,
    /// Words of `SERVERS`; there is room for two records for each, and for one in four in `REPLIES*` and `LOCALS*`, which
    /// only some modes use.
    pub servers: u32,
    /// Slots of `RING_SLOTS`, an even number.
    pub ring_slots: u32,
    /// Entries of `SOURCES4` and of `SOURCES6`.
    pub sources: u32,
}

impl Sizes {
    fn max_entries(&self, map: MapName) -> Option<u32> {
        match map {
            MapName::Flows4 | MapName::Flows6 => Some(self.flow_buckets),
            MapName::Half4 | MapName::Half6 => Some(self.half_open_buckets),
            MapName::FullNat4 | MapName::FullNat6 => Some(self.fullnat_slots),
            MapName::Vips4 | MapName::Vips6 | MapName::Announced4 | MapName::Announced6 => {
                Some(self.vip_ports)
            }
            MapName::Rings => Some(self.vip_ports * 2),
            MapName::Heads => Some(self.vip_ports * 4),
            MapName::Servers | MapName::Counters => Some(self.servers),
            MapName::Records => Some(self.servers * 2),
            // All servers may be of one family and need an entry.
            MapName::Replies4 | MapName::Replies6 | MapName::Locals4 | MapName::Locals6 => {
                Some(self.servers)
            }
            MapName::RingSlots => Some(self.ring_slots / 2),
            MapName::Sources4 | MapName::Sources6 => Some(self.sources),
            MapName::Config
            | MapName::Peers
            | MapName::Macs
            | MapName::PeerNets4
            | MapName::PeerNets6
            | MapName::NextHops
            | MapName::NewFlows
            | MapName::Groups
            | MapName::Samples
            | MapName::Drops
            | MapName::Stats => None,
        }
    }
}

/// Marker for maps whose values are buckets of flow entries, or slots of claims.
#[derive(Debug)]
struct Bucket;

/// Every map of the data plane.
#[derive(Debug)]
pub struct Maps {
    config: Array<u64>,
    vips: Families<PortKey<4>, PortKey<16>, VipWord>,
    replies: Families<PortKey<4>, PortKey<16>, u32>,
    locals: Families<LocalKey<4>, LocalKey<16>, u32>,
    peers: Hash<MacKey, u32>,
    macs: Shared<[u64; MAC_WORDS as usize]>,
    peer_nets: Families<PrefixKey<4>, PrefixKey<16>, u32>,
    sources: Families<SourceKey<4>, SourceKey<16>, u32>,
    announced: Families<AnnouncedKey<4>, AnnouncedKey<16>, AnnouncedWord>,
    groups: Shared<[u64; GROUP_WORDS]>,
    samples: Shared<[u64; SAMPLE_WORDS]>,
    heads: Shared<Head>,
    rings: Array<RingWord>,
    ring_slots: Shared<[u32; 2]>,
    servers: Array<ServerWord>,
    records: Shared<ServerRecord>,
    flows4: Shared<Bucket>,
    flows6: Shared<Bucket>,
    half4: Shared<Bucket>,
    half6: Shared<Bucket>,
    fullnat4: Shared<Bucket>,
    fullnat6: Shared<Bucket>,
    counters: PerCpu<ServerCounters>,
    drops: PerCpu<u64>,
    stats: PerCpu<u64>,
}

impl Maps {
    /// Opens all pinned maps.
    fn open(directory: &Path) -> Result<Self, Error> {
        let raw = |map: MapName| -> Result<RawMap, Error> {
            let pin = directory.join(map.as_str());
            sys::open_pin(&pin)
                .and_then(|fd| fd.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)))
                .and_then(RawMap::new)
                .map_err(map_error(map, "open its pin"))
        };
        macro_rules! typed {
            ($map:expr, $new:expr) => {
                $new(raw($map)?).map_err(map_error($map, "use it"))?
            };
        }
        macro_rules! families {
            ($v4:expr, $v6:expr) => {
                Families::new(($v4, raw($v4)?), ($v6, raw($v6)?))?
            };
        }
        macro_rules! shared {
            ($map:expr, $size:expr) => {
                Shared::new(&raw($map)?, $size).map_err(map_error($map, "share its memory"))?
            };
        }
        Ok(Self {
            config: typed!(MapName::Config, Array::new),
            vips: families!(MapName::Vips4, MapName::Vips6),
            replies: families!(MapName::Replies4, MapName::Replies6),
            locals: families!(MapName::Locals4, MapName::Locals6),
            peers: typed!(MapName::Peers, Hash::new),
            macs: shared!(MapName::Macs, size_of::<[u64; MAC_WORDS as usize]>()),
            peer_nets: families!(MapName::PeerNets4, MapName::PeerNets6),
            sources: families!(MapName::Sources4, MapName::Sources6),
            announced: families!(MapName::Announced4, MapName::Announced6),
            groups: shared!(MapName::Groups, size_of::<[u64; GROUP_WORDS]>()),
            samples: shared!(MapName::Samples, size_of::<[u64; SAMPLE_WORDS]>()),
            heads: shared!(MapName::Heads, size_of::<Head>()),
            rings: typed!(MapName::Rings, Array::new),
            ring_slots: shared!(MapName::RingSlots, size_of::<[u32; 2]>()),
            servers: typed!(MapName::Servers, Array::new),
            records: shared!(MapName::Records, size_of::<ServerRecord>()),
            flows4: shared!(MapName::Flows4, spec::BUCKET4_SIZE),
            flows6: shared!(MapName::Flows6, spec::BUCKET6_SIZE),
            half4: shared!(MapName::Half4, spec::BUCKET4_SIZE),
            half6: shared!(MapName::Half6, spec::BUCKET6_SIZE),
            fullnat4: shared!(MapName::FullNat4, claim_words::<4>() * 8),
            fullnat6: shared!(MapName::FullNat6, claim_words::<16>() * 8),
            counters: typed!(MapName::Counters, PerCpu::new),
            drops: typed!(MapName::Drops, PerCpu::new),
            stats: typed!(MapName::Stats, PerCpu::new),
        })
    }

    /// How much the planner's maps hold.
    pub fn limits(&self) -> Limits {
        let servers = self.servers.max_entries();
        let servers = servers.min(self.counters.max_entries());
        let ring_slots = 2 * self.ring_slots.max_entries();
        let sources = self.sources.max_entries();
        Limits {
            vips: self.vips.max_entries(),
            replies: self.replies.max_entries(),
            locals: self.locals.max_entries(),
            peers: self.peers.max_entries(),
            peer_nets: self.peer_nets.max_entries(),
            sources,
            announced: self.announced.max_entries(),
            heads: self.heads.max_entries(),
            rings: self.rings.max_entries(),
            ring_slots,
            servers,
            records: self.records.max_entries(),
            servers_each: Limits::quota(servers),
            ring_slots_each: Limits::quota(ring_slots),
            sources_each: Limits::quota(sources),
        }
    }

    /// A word of `CONFIG`.
    pub fn config(&self, word: ConfigWord) -> Result<u64, Error> {
        self.config
            .get(word as u32)
            .map_err(map_error(MapName::Config, "read it"))
    }

    /// Sets a word of `CONFIG`.
    pub fn set_config(&self, word: ConfigWord, value: u64) -> Result<(), Error> {
        self.config
            .set(word as u32, &value)
            .map_err(map_error(MapName::Config, "write it"))
    }

    /// The counters of a server, summed over the CPUs.
    pub fn server_counters(&self, id: u32) -> Result<ServerCounters, Error> {
        let values = self
            .counters
            .get(id)
            .map_err(map_error(MapName::Counters, "read it"))?;
        let add = |sum: ServerCounters, cpu: ServerCounters| ServerCounters {
            packets: sum.packets.wrapping_add(cpu.packets),
            bytes: sum.bytes.wrapping_add(cpu.bytes),
            flows: sum.flows.wrapping_add(cpu.flows),
            reply_packets: sum.reply_packets.wrapping_add(cpu.reply_packets),
            reply_bytes: sum.reply_bytes.wrapping_add(cpu.reply_bytes),
        };
        Ok(values.into_iter().fold(ServerCounters::default(), add))
    }

    /// Packets dropped for a reason.
    pub fn drops(&self, reason: DropReason) -> Result<u64, Error> {
        let values = self.drops.get(reason as u32);
        Ok(values
            .map_err(map_error(MapName::Drops, "read it"))?
            .into_iter()
            .fold(0, u64::wrapping_add))
    }

    /// Times that something was counted.
    pub fn stat(&self, stat: Stat) -> Result<u64, Error> {
        let values = self.stats.get(stat as u32);
        Ok(values
            .map_err(map_error(MapName::Stats, "read it"))?
            .into_iter()
            .fold(0, u64::wrapping_add))
    }

    /// Waits until no packet that is in a program now is in it any more.
    pub fn grace(&self) {
        if let Err(error) = sys::membarrier() {
            // Kernels with nohz_full CPUs refuse. A program run takes microseconds, and softirqs are not preempted.
            tracing::debug!(%error, "membarrier is not possible, waiting instead");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// `uname -r`.
pub fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}
