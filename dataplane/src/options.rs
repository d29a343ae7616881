//! The command line.

use std::env;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::de::DeserializeOwned;
use serde::de::value::{Error as ValueError, StrDeserializer};
use sluice_agent::maps::Sizes;
use sluice_agent::source::kube::NewNode;
use sluice_api::{NodeRole, XdpMode};
use sluice_election::{GiveBack, Probing, Settings};

/// Flows of a bucket of the flow tables.
const BUCKET_ENTRIES: u32 = 4;
const _: () = assert!(sluice_abi::BUCKET_ENTRIES == 4);

/// Sluice's agent: brings what the operator decided into the data plane of this node.
///
/// Ending the agent, by whatever signal, leaves programs and maps in place: packets flow on, and an agent that starts again
/// takes over where the last one was. `sluice-agent detach` ends forwarding.
#[derive(Parser, Debug)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Reads a command line; without a subcommand its options are those of `run`.
    pub(crate) fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut arguments: Vec<OsString> = arguments.into_iter().collect();
        let first = arguments.get(1).and_then(|argument| argument.to_str());
        let own = ["--help", "--version"];
        if first.is_some_and(|first| first.starts_with("--") && !own.contains(&first)) {
            arguments.insert(1, "run".into());
        }
        Self::try_parse_from(arguments)
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Runs the agent. The word `run` may be left out.
    Run(Box<RunOptions>),
    /// Ends forwarding on this node: removes links, filters, maps and pins. The agent must not be running.
    Detach(Place),
    /// Shows the maps that a running agent intends and those in the kernel, as JSON.
    Dump(Place),
    /// Asks a running agent whether its loop goes round; ends with an error if not, or if none answers.
    Health(Place),
}

/// Where an agent keeps what outlives it, and how it is asked.
#[derive(Args, Clone, Debug)]
pub(crate) struct Place {
    /// Directory in the BPF file system for maps and links; each agent of a host needs its own.
    #[arg(long, default_value = "/sys/fs/bpf/sluice", env = "SLUICE_PIN_DIR")]
    pub(crate) pin_dir: PathBuf,
    /// Unix socket of the admin endpoint [default: /run/sluice/<last part of the pin directory>.sock].
    #[arg(long, env = "SLUICE_SOCKET")]
    socket: Option<PathBuf>,
}

impl Place {
    /// Where it is written down what a restarted agent needs in order to go on announcing without the API server.
    pub(crate) fn memory(&self) -> PathBuf {
        self.socket().with_extension("announced.json")
    }

    /// The file of what is known of servers.
    pub(crate) fn known_servers(&self) -> PathBuf {
        self.socket().with_extension("health.json")
    }

    /// The Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| {
            let name = self.pin_dir.file_name().unwrap_or("agent".as_ref());
            let mut file = name.to_owned();
            file.push(".sock");
            PathBuf::from("/run/sluice").join(file)
        })
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RunOptions {
    /// Name of this node's LoadBalancerNode.
    #[arg(long, env = "SLUICE_NODE")]
    pub(crate) node: String,
    /// Directory with manifests and decisions (standalone mode). Without it the agent works for Kubernetes.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) kubernetes: KubernetesOptions,
    /// The programs [default: sluice.o beside this executable, or ../lib/sluice/sluice.o from there].
    #[arg(long, env = "SLUICE_OBJECT")]
    object: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) place: Place,
    /// Address for health and metrics over HTTP, or `none`.
    #[arg(long, default_value = "127.0.0.1:9200", env = "SLUICE_ADMIN", value_parser = admin_address)]
    pub(crate) admin: Admin,
    /// Established flows that fit, per address family; rounded up to a power of two. Other sizes than those of pinned maps are
    /// refused.
    #[arg(long, default_value_t = 262_144, value_parser = table_size())]
    flow_table_size: u32,
    /// Half-open flows that fit, per address family; rounded up to a power of two.
    #[arg(long, default_value_t = 65_536, value_parser = table_size())]
    half_open_table_size: u32,
    /// Slots for FullNAT's claims of ports, per address family: twice the flows that need a port at one time; rounded up.
    #[arg(long, default_value_t = 131_072, value_parser = table_size())]
    fullnat_table_size: u32,
    /// Virtual servers' endpoints (address, protocol and port) and addresses that fit, per address family.
    #[arg(long, default_value_t = 16_384, value_parser = RangedU64ValueParser::<u32>::new().range(64..=32_768))]
    max_endpoints: u32,
    /// Real servers that fit: each counts once per endpoint and pool that it serves. One virtual server gets a quarter of them.
    #[arg(long, default_value_t = 131_072, value_parser = RangedU64ValueParser::<u32>::new().range(64..=1 << 20))]
    max_servers: u32,
    /// Slots for the rings of all pools: 4,096 to 65,536 for each pool of an endpoint, by its number of servers. Four bytes each.
    /// One virtual server gets a quarter of them.
    #[arg(long, default_value_t = 41_943_040, value_parser = RangedU64ValueParser::<u32>::new().range(65_536..=1 << 28))]
    ring_slots: u32,
    /// Blocks of clients' addresses that fit, of all virtual servers with `sources`, per address family. Equal lists count once. One
    /// virtual server gets a quarter of them.
    #[arg(long, default_value_t = 65_536, value_parser = RangedU64ValueParser::<u32>::new().range(64..=1 << 20))]
    max_sources: u32,
    /// How tc programs are attached.
    #[arg(long, value_enum, default_value_t = Tc::Auto)]
    tc: Tc,
    /// After how many seconds without a fault VIP groups return to this node from one that is further down their order, or `never`.
    #[arg(long, default_value = "60", env = "SLUICE_FAILBACK_SECONDS", value_parser = failback)]
    failback_seconds: Failback,
    /// Whether the holder of a VIP group is asked for its VIPs all the time, so that a silent one is replaced within a second. Without,
    /// it is replaced when its Lease has expired. Directors without an API server ask all the same.
    #[arg(long, value_enum, default_value_t = Probes::On, env = "SLUICE_PROBES")]
    probes: Probes,
    /// How the log is written, to standard error. RUST_LOG sets the level.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

/// Whether holders of VIP groups are asked for their VIPs.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Probes {
    On,
    Off,
}

/// When VIP groups return to a node.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failback {
    /// When it was without a fault for so long.
    After(Duration),
    Never,
}

/// Options that matter only without `--dir`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Kubernetes (without --dir)")]
pub(crate) struct KubernetesOptions {
    /// How the API server is reached [default: KUBECONFIG or ~/.kube/config, else the pod's service account].
    #[arg(long, conflicts_with = "dir")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Namespace of the node's Lease [default: the pod's, else sluice-system].
    #[arg(long, env = "SLUICE_NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// File with the token by which the operator knows this node: of the agent's ServiceAccount, for the audience `sluice-operator`, and of
    /// a pod on this node. It may be renewed. Without it signals stay on the node.
    #[arg(
        long,
        env = "SLUICE_OPERATOR_TOKEN",
        value_name = "FILE",
        conflicts_with = "dir"
    )]
    pub(crate) operator_token: Option<PathBuf>,
    /// Uplinks of the LoadBalancerNode that is created if there is none [default: the interfaces of the default routes].
    #[arg(long, value_delimiter = ',', conflicts_with = "dir")]
    interfaces: Vec<String>,
    /// Role of the LoadBalancerNode that is created if there is none.
    #[arg(long, value_parser = by_name::<NodeRole>, default_value = "Director")]
    role: NodeRole,
    /// XDP mode of the LoadBalancerNode that is created if there is none.
    #[arg(long, value_parser = by_name::<XdpMode>, default_value = "Auto")]
    xdp_mode: XdpMode,
}

impl KubernetesOptions {
    pub(crate) fn new_node(&self) -> NewNode {
        NewNode {
            interfaces: self.interfaces.clone(),
            role: self.role,
            xdp_mode: self.xdp_mode,
        }
    }
}

/// Reads a value of the API by its name there.
fn by_name<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    T::deserialize(StrDeserializer::<ValueError>::new(name)).map_err(|error| error.to_string())
}

/// Where health and metrics are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Admin(pub(crate) Option<SocketAddr>);

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Tc {
    /// By links where the kernel has them (6.6), else by clsact filters.
    Auto,
    /// By clsact filters.
    Clsact,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl RunOptions {
    /// Times and choices of who announces VIPs.
    pub(crate) fn election(&self) -> Settings {
        let settings = Settings {
            probing: match self.probes {
                Probes::On => Probing::On,
                Probes::Off => Probing::Off,
            },
            ..Settings::default()
        };
        match self.failback_seconds {
            Failback::After(stable_time) => Settings {
                stable_time,
                ..settings
            },
            Failback::Never => Settings {
                give_back: GiveBack::Never,
                ..settings
            },
        }
    }

    pub(crate) fn sizes(&self) -> Sizes {
        let buckets = |flows: u32| flows.div_ceil(BUCKET_ENTRIES).next_power_of_two();
        Sizes {
            flow_buckets: buckets(self.flow_table_size),
            half_open_buckets: buckets(self.half_open_table_size),
            fullnat_slots: self.fullnat_table_size.next_power_of_two(),
            vip_ports: self.max_endpoints,
            servers: self.max_servers,
            ring_slots: self.ring_slots.next_multiple_of(2),
            sources: self.max_sources,
        }
    }

    pub(crate) fn use_tcx(&self) -> bool {
        self.tc == Tc::Auto
    }

    /// The object file.
    pub(crate) fn object(&self) -> Result<PathBuf> {
        if let Some(path) = &self.object {
            return Ok(path.clone());
        }
        let executable = env::current_exe()?;
        let directory = executable.parent().map(PathBuf::from).unwrap_or_default();
        let candidates = [
            directory.join("sluice.o"),
            directory.join("../lib/sluice/sluice.o"),
        ];
        match candidates.iter().find(|path| path.exists()) {
            Some(path) => Ok(path.clone()),
            None => bail!(
                "there is no {} and no {}: install the programs there, or name them with --object",
                candidates[0].display(),
                candidates[1].display()
            ),
        }
    }
}

/// Sizes from a few flows to what a large machine holds.
fn table_size() -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(64..=1 << 26)
}

/// Reads when VIP groups return.
fn failback(text: &str) -> Result<Failback, String> {
    const MOST: u64 = 86_400;
    if text == "never" {
        return Ok(Failback::Never);
    }
    let seconds = text.parse().ok().filter(|seconds| *seconds <= MOST);
    let after = seconds.map(|seconds| Failback::After(Duration::from_secs(seconds)));
    after.ok_or_else(|| format!("must be `never` or a number of seconds up to {MOST}"))
}

fn admin_address(text: &str) -> Result<Admin, String> {
    if text == "none" {
        return Ok(Admin(None));
    }
    text.parse()
        .map(|address| Admin(Some(address)))
        .map_err(|_| "give an address with a port, such as 127.0.0.1:9200, or `none`".to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;
    use sluice_planner::ring::log2_slots;

    use super::*;

    fn read(arguments: &[&str]) -> Result<Cli, clap::Error> {
        let all = ["sluice-agent"].iter().chain(arguments);
        Cli::read(all.map(OsString::from))
    }

    fn run(arguments: &[&str]) -> RunOptions {
        match read(arguments).unwrap().command {
            Command::Run(options) => *options,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_may_be_left_out() {
        for arguments in [
            &["run", "--node", "d1", "--dir", "/d"][..],
            &["--node", "d1", "--dir", "/d"],
        ] {
            let options = run(arguments);
            assert_eq!(
                (options.node.as_str(), options.dir.as_deref()),
                ("d1", Some(Path::new("/d")))
            );
        }
        assert!(run(&["--node", "d1"]).dir.is_none());
        assert!(read(&["detach"]).is_ok());
    }

    #[test]
    fn a_node_is_created_as_options_say() {
        let node = run(&["--node", "d1"]).kubernetes.new_node();
        assert_eq!(
            (node.role, node.xdp_mode),
            (NodeRole::Director, XdpMode::Auto)
        );
        assert!(node.interfaces.is_empty());
        let options = [
            "--interfaces",
            "a,b",
            "--role",
            "RealServer",
            "--xdp-mode",
            "Generic",
        ];
        let node = run(&[&["--node", "d1"], &options[..]].concat())
            .kubernetes
            .new_node();
        assert_eq!(node.interfaces, ["a", "b"]);
        assert_eq!(
            (node.role, node.xdp_mode),
            (NodeRole::RealServer, XdpMode::Generic)
        );
        let error = read(&["--node", "d1", "--role", "Teapot"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("`RealServer`"), "{error}");
    }

    #[test]
    fn a_directory_and_an_api_server_exclude_each_other() {
        assert!(read(&["--node", "d1", "--dir", "/d", "--kubeconfig", "/k"]).is_err());
    }

    #[test]
    fn tables_are_rounded_up() {
        let options = run(&["--node", "n", "--dir", "/d", "--flow-table-size", "1000"]);
        assert_eq!(options.sizes().flow_buckets, 256);
        let options = run(&["--node", "n", "--dir", "/d"]);
        assert_eq!(options.sizes().flow_buckets, 65_536);
        assert_eq!(options.sizes().half_open_buckets, 16_384);
    }

    /// 5,000 virtual servers with one port and an address of each family, whose pools share 50,000 servers of each family.
    #[test]
    fn the_defaults_hold_what_the_docs_say() {
        const VIP_PORTS: u32 = 5_000;
        const SERVERS: u32 = 50_000;
        let sizes = run(&["--node", "n", "--dir", "/d"]).sizes();
        // Of each family: a VIP port and the marker of its address.
        assert!(2 * VIP_PORTS <= sizes.vip_ports);
        // Of each family: `REPLIES*` under NAT, `LOCALS*` of a node that has all servers of TUN.
        assert!(SERVERS <= sizes.servers);
        // Of both families, and a director that has servers of DR has a second head and ring of each pool.
        let pools = 2 * VIP_PORTS;
        assert!(2 * SERVERS <= sizes.servers);
        assert!(2 * pools <= 2 * sizes.vip_ports, "rings");
        assert!(2 * pools <= 4 * sizes.vip_ports, "heads");
        let weights = std::iter::repeat_n(1, (SERVERS / VIP_PORTS) as usize);
        assert!(pools << log2_slots(weights) <= sizes.ring_slots);
    }

    #[test]
    fn the_socket_is_named_after_the_pins() {
        let options = run(&["--node", "n", "--dir", "/d", "--pin-dir", "/sys/fs/bpf/x"]);
        let socket = options.place.socket();
        assert_eq!(socket.to_str(), Some("/run/sluice/x.sock"));
    }

    #[test]
    fn metrics_can_be_switched_off() {
        let options = run(&["--node", "n", "--dir", "/d", "--admin", "none"]);
        assert_eq!(options.admin, Admin(None));
        assert!(read(&["--node", "n", "--dir", "/d", "--admin", "x"]).is_err());
    }
}
