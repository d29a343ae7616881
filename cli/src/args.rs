//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

const EXIT_CODES: &str = "\
Exit codes:
  0    done; with --watch: the run is completed
  1    error, or a command that was refused or not carried out
  2    wrong usage
  3    with --watch: the run was aborted or is stalled
  130  ended by Ctrl-C";

const STATUS_EXAMPLES: &str = "\
Examples:
  kubectl sluice status                    # all virtual servers of the namespace
  kubectl sluice status web -n shop        # one of them
  kubectl sluice status -A -o json         # all namespaces, for a program";

const VIPS_EXAMPLES: &str = "\
Examples:
  kubectl sluice vips                      # the addresses of the namespace's virtual servers
  kubectl sluice vips -A                   # of all namespaces
  kubectl sluice vips -A -o json           # for a program

States:
  armed          the holder says that it answers for the address
  renewed        the holder renews the group's Lease; you may not list nodes
  taking over    the Lease names a node that does not say yet that it answers
  contested      another node than the holder says that it answers
  expired        the Lease was not renewed in time
  no holder      nobody answers for the address
  not announced  the address is routed to the directors";

const DRAIN_EXAMPLES: &str = "\
Examples:
  kubectl sluice drain server web-7d4b9-x2x8k   # a pod
  kubectl sluice drain server 10.0.0.7 --pool web --for 1h
  kubectl sluice undrain server 10.0.0.7

A drained server keeps the flows that it has until they end, or for as long as the pool's
drain.timeoutSeconds says. Another pod that gets the address is not drained.

Exit codes:
  0    done
  1    error, or not in force on all live nodes after --timeout
  2    wrong usage
  130  ended by Ctrl-C";

const NODE_EXAMPLES: &str = "\
Examples:
  kubectl sluice node drain node-1         # hand over its VIP groups, and wait until it holds none
  kubectl sluice node drain node-1 --timeout 5m
  kubectl sluice node undrain node-1       # let it hold VIP groups again

A drained node goes on forwarding; it only announces nothing.

Exit codes:
  0    done
  1    error, or the node still holds a VIP group after --timeout
  2    wrong usage
  130  ended by Ctrl-C";

const ROLLOUT_EXAMPLES: &str = "\
Examples:
  kubectl sluice rollout get web --watch   # follow the run of a RolloutPolicy, or of a VirtualServer
  kubectl sluice rollout promote web       # end the step's pause and open its gate
  kubectl sluice rollout promote web --full
  kubectl sluice rollout abort web --watch # give everything back to the stable pool
  kubectl sluice rollout pause web
  kubectl sluice rollout resume web
  kubectl sluice rollout retry web         # after abort: begin a new run

Exit codes:
  0    done; with --watch: the run is completed (abort --watch: the stable pool has the whole share)
  1    error, or a command that was refused or not carried out
  2    wrong usage
  3    with --watch: the run was aborted or is stalled
  130  ended by Ctrl-C";

/// See and steer Sluice, the load balancer.
#[derive(Parser, Debug)]
#[command(name = "kubectl-sluice", bin_name = "kubectl sluice", version, after_help = EXIT_CODES)]
pub struct Args {
    /// How to reach the cluster.
    #[command(flatten)]
    pub connection: Connection,
    /// The subcommand.
    #[command(subcommand)]
    pub verb: Verb,
}

/// How to reach the cluster: the flags that kubectl has.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Connection {
    /// Path of the kubeconfig file [default: $KUBECONFIG, then ~/.kube/config, then the pod's service account]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of the kubeconfig's context
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// Namespace [default: the context's]
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// How long one request may take, such as 500ms, 30s or 1m; 0 means no limit
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub request_timeout: Duration,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Show virtual servers with their pools, servers, weights and rollouts, and the nodes
    Status(Status),
    /// Show the addresses of virtual servers, and which node announces each
    Vips(Vips),
    /// Have a server take no new flows
    #[command(subcommand, after_help = DRAIN_EXAMPLES)]
    Drain(DrainWhat),
    /// Let a drained server take new flows again
    #[command(subcommand, after_help = DRAIN_EXAMPLES)]
    Undrain(UndrainWhat),
    /// Take VIP groups off a node, or let it hold them again
    #[command(subcommand, after_help = NODE_EXAMPLES)]
    Node(Node),
    /// See and steer the run of a RolloutPolicy
    #[command(subcommand, after_help = ROLLOUT_EXAMPLES)]
    Rollout(Rollout),
    /// Print the completion script of a shell
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Print the version of this program
    Version,
}

/// Arguments of `status`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = STATUS_EXAMPLES)]
pub struct Status {
    /// Name of a VirtualServer [default: all of the namespace]
    pub name: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with_all = ["name", "namespace"])]
    pub all_namespaces: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Arguments of `vips`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = VIPS_EXAMPLES)]
pub struct Vips {
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// What is drained.
#[derive(Subcommand, Clone, Debug)]
pub enum DrainWhat {
    /// A server of pools: it keeps the flows that it has, and takes no new ones
    #[command(after_help = DRAIN_EXAMPLES)]
    Server(DrainServer),
}

/// What is drained no longer.
#[derive(Subcommand, Clone, Debug)]
pub enum UndrainWhat {
    /// A server of pools
    #[command(after_help = DRAIN_EXAMPLES)]
    Server(ServerTarget),
}

/// Which server.
#[derive(clap::Args, Clone, Debug)]
pub struct ServerTarget {
    /// Name of a pod or static server, or its address
    pub name: String,
    /// Name of a RealServerPool [default: all of the namespace that have the server]
    #[arg(long)]
    pub pool: Option<String>,
    /// How long to wait until all live nodes do so
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

/// Arguments of `drain server`.
#[derive(clap::Args, Clone, Debug)]
pub struct DrainServer {
    /// Which server.
    #[command(flatten)]
    pub target: ServerTarget,
    /// After which time, of 10s or more, it takes new flows again by itself [default: never]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub time: Option<Duration>,
    /// Even if no other server of the pool takes new flows
    #[arg(long)]
    pub force: bool,
}

/// The subcommands of `node`.
#[derive(Subcommand, Clone, Debug)]
pub enum Node {
    /// Have a node hand over its VIP groups and take none, and wait until it holds none
    #[command(after_help = NODE_EXAMPLES)]
    Drain(Drain),
    /// Let a drained node hold VIP groups again
    #[command(after_help = NODE_EXAMPLES)]
    Undrain {
        /// Name of a LoadBalancerNode
        name: String,
    },
}

/// Arguments of `node drain`.
#[derive(clap::Args, Clone, Debug)]
pub struct Drain {
    /// Name of a LoadBalancerNode
    pub name: String,
    /// How long to wait until the node holds no VIP group
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

/// Form of the output.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Output {
    /// Text that fits 100 columns.
    #[default]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// The subcommands of `rollout`.
#[derive(Subcommand, Clone, Debug)]
pub enum Rollout {
    /// Show where the run is, and how it goes on
    #[command(after_help = ROLLOUT_EXAMPLES)]
    Get {
        /// The policy.
        #[command(flatten)]
        target: Target,
        /// Form of the output; with --watch one document a change
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// End the step's pause and open its gate
    #[command(after_help = ROLLOUT_EXAMPLES)]
    Promote {
        /// Go to the last step at once
        #[arg(long)]
        full: bool,
        /// The policy and how long to wait.
        #[command(flatten)]
        order: Order,
    },
    /// Give everything back to the stable pool, also after completion
    #[command(after_help = ROLLOUT_EXAMPLES)]
    Abort {
        /// Even if the stable pool has no server that takes new flows
        #[arg(long)]
        force: bool,
        /// The policy and how long to wait.
        #[command(flatten)]
        order: Order,
    },
    /// Stop the run where it is
    #[command(after_help = ROLLOUT_EXAMPLES)]
    Pause(Order),
    /// Let a paused run go on
    #[command(after_help = ROLLOUT_EXAMPLES)]
    Resume(Order),
    /// After abort: begin a new run
    #[command(after_help = ROLLOUT_EXAMPLES)]
    Retry(Order),
}

/// Which run.
#[derive(clap::Args, Clone, Debug)]
pub struct Target {
    /// Name of a RolloutPolicy, or of the VirtualServer that it drives
    pub name: String,
    /// Print one line a change until the run is over
    #[arg(short, long)]
    pub watch: bool,
}

/// A command to a run.
#[derive(clap::Args, Clone, Debug)]
pub struct Order {
    /// The policy.
    #[command(flatten)]
    pub target: Target,
    /// How long to wait for the operator's answer
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

/// A whole number and `ms`, `s`, `m` or `h`; without a unit seconds are meant.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let wrong = || "must be a whole number with ms, s, m or h, such as 30s".to_owned();
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(ms)
        .map(Duration::from_millis)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("1h"), Ok(Duration::from_hours(1)));
        for wrong in [
            "",
            "s",
            "1d",
            "-1s",
            "1.5s",
            "99999999999999999999s",
            "9999999999999999h",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_namespace_and_all_of_them_exclude_each_other() {
        let parse = |args: &[&str]| Args::try_parse_from(args);
        assert!(parse(&["kubectl-sluice", "status", "-A"]).is_ok());
        assert!(parse(&["kubectl-sluice", "status", "web", "-A"]).is_err());
        assert!(parse(&["kubectl-sluice", "vips", "-A"]).is_ok());
        assert!(parse(&["kubectl-sluice", "vips", "-A", "-n", "shop"]).is_err());
        assert!(parse(&["kubectl-sluice", "node", "drain"]).is_err());
        assert!(
            parse(&[
                "kubectl-sluice",
                "rollout",
                "promote",
                "web",
                "--full",
                "--timeout",
                "5s"
            ])
            .is_ok()
        );
    }
}
