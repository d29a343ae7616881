//! The operator's executable.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use sluice_api::Time;
use sluice_api::jiff::Timestamp;
use sluice_directory::Directory;
use sluice_operator::core::RefusedServers;
use sluice_operator::metrics::Metrics;
use sluice_operator::settings::Settings;
use sluice_operator::standalone::Standalone;
use sluice_operator::{admin, kube, stream};
use sluice_signals::Intake;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// How often the directory is looked at.
const POLL: Duration = Duration::from_millis(200);
/// Where health and metrics are under Kubernetes.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9201);

/// Admits virtual servers, decides what nodes forward by, and steps rollouts.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    run: RunOptions,
    /// How to reach the API server; absent: KUBECONFIG, ~/.kube/config, or the pod's own account.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Log lines as JSON.
    #[arg(long, env = "SLUICE_LOG_JSON", global = true)]
    log_json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args, Debug)]
struct RunOptions {
    /// Standalone mode: directory with manifests; status is written to .status in it. Absent: Kubernetes.
    #[arg(
        long,
        env = "SLUICE_DIR",
        value_name = "DIRECTORY",
        conflicts_with = "kubeconfig"
    )]
    dir: Option<PathBuf>,
    /// Namespace of the Leases of the nodes' agents; absent: that of this pod, else sluice-system.
    #[arg(long, env = "SLUICE_NAMESPACE")]
    namespace: Option<String>,
    /// Address of health and metrics, or "none"; absent: 127.0.0.1:9201, and none in standalone mode.
    #[arg(long, env = "SLUICE_ADMIN", value_name = "ADDRESS")]
    admin: Option<Admin>,
    /// Blocks of addresses that no virtual server may newly have as a VIP, such as 10.0.0.0/8 or 203.0.113.1.
    #[arg(
        long,
        env = "SLUICE_RESERVED_ADDRESSES",
        value_name = "BLOCK",
        value_delimiter = ','
    )]
    reserved_addresses: Vec<Reserved>,
    /// Whose addresses no RealServerPool may newly name in spec.servers.static; absent: any that directors reach may be named.
    #[arg(
        long,
        env = "SLUICE_REFUSED_SERVERS",
        value_enum,
        value_name = "WHOSE",
        value_delimiter = ','
    )]
    refused_servers: Vec<RefusedServers>,
    /// After how many seconds of silence a LoadBalancerNode without a Node of its name is deleted, with its Lease (standalone
    /// mode: a node's report without a manifest); 0 = never. One whose Node the operator saw go is deleted after 40.
    #[arg(
        long,
        env = "SLUICE_FORGET_SILENT_SECONDS",
        value_name = "SECONDS",
        default_value_t = 86_400
    )]
    forget_silent_seconds: u64,
    /// Serve Services of type LoadBalancer that have no spec.loadBalancerClass, too. Those of class sluice.dev/sluice always are.
    #[arg(long, env = "SLUICE_SERVICES_WITHOUT_CLASS", conflicts_with = "dir")]
    services_without_class: bool,
    /// Have cordoned Nodes hand over their VIP groups, and hold none until they are uncordoned.
    #[arg(long, env = "SLUICE_DRAIN_CORDONED", conflicts_with = "dir")]
    drain_cordoned: bool,
    #[command(flatten)]
    stream: StreamOptions,
}

/// Where agents report signals.
#[derive(Args, Debug)]
struct StreamOptions {
    /// The address at which agents reach this operator to report signals: its pod's. Absent: no reports are taken.
    #[arg(
        long,
        env = "SLUICE_STREAM_HOST",
        value_name = "ADDRESS",
        conflicts_with = "dir"
    )]
    stream_host: Option<IpAddr>,
    /// The port of it.
    #[arg(long, env = "SLUICE_STREAM_PORT", value_name = "PORT", default_value_t = stream::DEFAULT_PORT)]
    stream_port: u16,
    /// Name of the agents' ServiceAccount. It is in the namespace of their Leases.
    #[arg(long, env = "SLUICE_AGENT_ACCOUNT", value_name = "NAME", default_value = stream::DEFAULT_ACCOUNT)]
    agent_account: String,
}

impl StreamOptions {
    fn settings(&self) -> Option<stream::Settings> {
        self.stream_host.map(|host| stream::Settings {
            host,
            port: self.stream_port,
            account: self.agent_account.clone(),
        })
    }
}

impl RunOptions {
    fn settings(&self) -> Settings {
        let reserved = self.reserved_addresses.iter().map(|block| block.0);
        let forget = Some(self.forget_silent_seconds);
        Settings {
            reserved: reserved.collect(),
            refused_servers: self.refused_servers.iter().copied().collect(),
            forget_silent_seconds: forget.filter(|seconds| *seconds > 0),
            services_without_class: self.services_without_class,
            drains_cordoned: self.drain_cordoned,
        }
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Runs the operator, as without a command.
    Run(RunOptions),
    /// Asks all nodes' agents to take everything off their nodes, waits, and deletes the LoadBalancerNodes.
    DetachNodes {
        /// How long the agents are waited for.
        #[arg(long, default_value_t = 60)]
        timeout_seconds: u64,
    },
    /// Applies the AddressPools that the chart's value addressPools names.
    ApplyPools {
        /// JSON: a list of pools, each with its name beside the fields of its spec.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// How long the API server is given to take them.
        #[arg(long, default_value_t = 60)]
        timeout_seconds: u64,
    },
}

/// Where health and metrics are, if anywhere.
#[derive(Clone, Copy, Debug)]
struct Admin(Option<SocketAddr>);

impl std::str::FromStr for Admin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let address = text.parse();
        let address = address.map_err(|_| "must be an address and port, or none".to_owned())?;
        Ok(Self(Some(address)))
    }
}

/// A block of addresses, or one.
#[derive(Clone, Copy, Debug)]
struct Reserved(IpNet);

impl std::str::FromStr for Reserved {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let single = || text.parse().map(|address: IpAddr| IpNet::from(address));
        let block = text.parse().or_else(|_| single());
        let block =
            block.map_err(|_| "must be an address, or a block such as 10.0.0.0/8".to_owned())?;
        Ok(Self(block.trunc()))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log(arguments.log_json);
    match execute(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The level is `RUST_LOG`, by default `info`.
fn start_log(json: bool) {
    let wanted = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| "info".to_owned());
    let mut filter = EnvFilter::try_new(&wanted).unwrap_or_else(|_| EnvFilter::new("info"));
    // The client calls every failed request an error; the loop says what matters.
    if !wanted.contains("kube_client")
        && let Ok(quiet) = "kube_client=off".parse()
    {
        filter = filter.add_directive(quiet);
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if json {
        builder.json().init();
    } else {
        builder.init();
    }
}

async fn execute(arguments: &Arguments) -> Result<()> {
    let kubeconfig = arguments.kubeconfig.as_deref();
    match &arguments.command {
        None => run(&arguments.run, kubeconfig).await,
        Some(Command::Run(options)) => run(options, kubeconfig).await,
        Some(Command::DetachNodes { timeout_seconds }) => {
            detach(kubeconfig, Duration::from_secs(*timeout_seconds)).await
        }
        Some(Command::ApplyPools {
            file,
            timeout_seconds,
        }) => apply_pools(kubeconfig, file, Duration::from_secs(*timeout_seconds)).await,
    }
}

async fn detach(kubeconfig: Option<&Path>, wait: Duration) -> Result<()> {
    let (client, _) = kube::connect(kubeconfig, None).await?;
    let silent = kube::detach::detach_all(client, wait).await?;
    if silent.is_empty() {
        info!("all nodes have detached");
    } else {
        error!("not detached: {}", silent.join(", "));
    }
    Ok(())
}

async fn apply_pools(kubeconfig: Option<&Path>, file: &Path, wait: Duration) -> Result<()> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    let pools = kube::apply_pools::read(&text);
    let pools = pools.with_context(|| file.display().to_string())?;
    let (client, _) = kube::connect(kubeconfig, None).await?;
    kube::apply_pools::apply_all(client, pools, wait).await?;
    info!("all address pools are applied");
    Ok(())
}

async fn run(options: &RunOptions, kubeconfig: Option<&Path>) -> Result<()> {
    let metrics = Arc::new(Metrics::default());
    let stop = Stop::new()?;
    let work = work(options, kubeconfig, &metrics, stop);
    let usual = Admin(options.dir.is_none().then_some(ADMIN));
    let Some(address) = options.admin.unwrap_or(usual).0 else {
        return work.await;
    };
    tokio::select! {
        result = work => result,
        () = admin::serve(address, Arc::clone(&metrics)) => bail!("the admin endpoint has ended"),
    }
}

async fn work(
    options: &RunOptions,
    kubeconfig: Option<&Path>,
    metrics: &Arc<Metrics>,
    mut stop: Stop,
) -> Result<()> {
    if let Some(path) = &options.dir {
        return standalone(path, &options.settings(), metrics, stop).await;
    }
    let (client, namespace) = kube::connect(kubeconfig, options.namespace.as_deref()).await?;
    info!(namespace, "started");
    let settings = options.settings();
    // What agents report. It is there too where none can.
    let intake = Arc::new(Mutex::new(Intake::default()));
    let reports = take_reports(
        client.clone(),
        &namespace,
        &options.stream,
        &intake,
        metrics,
    );
    let shared = kube::Shared {
        metrics: Arc::clone(metrics),
        intake: Arc::clone(&intake),
    };
    let run = kube::run(client, &namespace, &settings, shared, stop.wait());
    // It holds everything that is known, which is too much for the stack of whoever waits for it.
    tokio::select! {
        result = Box::pin(run) => result?,
        () = reports => bail!("reports are taken no more"),
    }
    info!("stopped");
    Ok(())
}

/// Takes agents' reports of signals, where there is an address for that.
async fn take_reports(
    client: ::kube::Client,
    namespace: &str,
    options: &StreamOptions,
    intake: &Arc<Mutex<Intake>>,
    metrics: &Arc<Metrics>,
) {
    match options.settings() {
        Some(settings) => {
            let (intake, metrics) = (Arc::clone(intake), Arc::clone(metrics));
            stream::run(client, namespace, settings, intake, metrics).await;
        }
        None => std::future::pending().await,
    }
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot handle SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot handle SIGINT")?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn standalone(
    path: &Path,
    settings: &Settings,
    metrics: &Metrics,
    mut stop: Stop,
) -> Result<()> {
    ensure!(
        path.is_dir(),
        "{} is no directory: create it and put manifests there",
        path.display()
    );
    let mut operator = Standalone::open(Directory::new(path))?;
    operator.set(settings);
    info!(directory = %path.display(), "started");
    let start = Instant::now();
    let mut interval = tokio::time::interval(POLL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = String::new();
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = stop.wait() => break,
        }
        metrics.turn();
        let monotonic_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let result = operator.tick(&now(), monotonic_ms);
        let message = result
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        metrics.set_not_ready(
            Some(message.clone())
                .filter(|m| !m.is_empty())
                .into_iter()
                .collect(),
        );
        if message != failing {
            if message.is_empty() {
                info!("goes on");
            } else {
                error!("{message}; tries again");
            }
            failing = message;
        }
    }
    info!("stopped");
    Ok(())
}

/// Status keeps whole seconds.
fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}
