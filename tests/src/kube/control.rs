//! etcd, the API server and, where wanted, controllers and scheduler.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::account::Account;
use super::flags;
use super::kubeconfig::{Credentials, Kubeconfig};
use super::pki::Pki;
use super::programs::program;
use crate::net::{Dual, Family, Namespace, Process, Run, until};

/// Where the API server listens.
pub const API_PORT: u16 = 6443;

/// The group that may do everything.
const MASTERS: &str = "system:masters";

/// How long a program may take to come up: much longer than it takes, since test machines share disks and processors.
const START_LIMIT: Duration = Duration::from_secs(90);

/// The address of the API server of a cluster that has its namespace to itself.
const OWN_ADDRESS: Dual = Dual {
    v4: Ipv4Addr::new(10, 1, 0, 10),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 0x10),
};

/// A program of the control plane, in the order in which they are started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// The data.
    Etcd,
    /// The API server.
    ApiServer,
    /// Deployments, EndpointSlices, garbage collection, default ServiceAccounts.
    Controllers,
    /// Places pods on nodes.
    Scheduler,
}

impl Part {
    /// Enough for tests of objects: they can be made, watched and authorised, but nothing acts on them. Namespaces that are
    /// deleted stay, objects that have lost their owner stay, and of the roles that come with Kubernetes `admin`, `edit` and
    /// `view` are empty.
    pub const API: [Self; 2] = [Self::Etcd, Self::ApiServer];

    /// With controllers besides: owned objects follow their owners, but no pod runs.
    pub const API_AND_CONTROLLERS: [Self; 3] = [Self::Etcd, Self::ApiServer, Self::Controllers];

    /// Everything that pods on nodes need.
    pub const ALL: [Self; 4] = [
        Self::Etcd,
        Self::ApiServer,
        Self::Controllers,
        Self::Scheduler,
    ];

    /// Its program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::Controllers => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
        }
    }

    /// Who it is for the API server, if a client of it.
    const fn user(self) -> Option<&'static str> {
        match self {
            Self::Etcd | Self::ApiServer => None,
            Self::Controllers => Some("system:kube-controller-manager"),
            Self::Scheduler => Some("system:kube-scheduler"),
        }
    }
}

/// A control plane in one namespace. Everything it writes is in the run's directory; dropping it ends it.
#[derive(Debug)]
pub struct ControlPlane {
    processes: BTreeMap<Part, Process>,
    namespace: Namespace,
    address: Dual,
    pki: Pki,
    directory: PathBuf,
    admin: Account,
}

impl ControlPlane {
    /// Starts etcd and the API server in a namespace of their own, called `label`.
    pub fn api(run: &Run, label: &str) -> Result<Self> {
        Self::alone(run, label, &Part::API)
    }

    /// The same, and the audit log has the requests of everybody.
    pub fn audited(run: &Run, label: &str) -> Result<Self> {
        let namespace = Self::home(run, label)?;
        let policy = flags::AUDIT_POLICY_OF_ALL;
        Self::start_with(run, &namespace, OWN_ADDRESS, &Part::API, policy)
    }

    /// Starts `parts` in a namespace of their own, called `label`.
    pub fn alone(run: &Run, label: &str, parts: &[Part]) -> Result<Self> {
        Self::start(run, &Self::home(run, label)?, OWN_ADDRESS, parts)
    }

    fn home(run: &Run, label: &str) -> Result<Namespace> {
        let namespace = run.namespace(label)?;
        namespace
            .port("lo")
            .addresses(OWN_ADDRESS.prefixes(32, 128))?;
        Ok(namespace)
    }

    /// Starts `parts` in `namespace`, which has `address`, and waits until they are usable.
    pub fn start(run: &Run, namespace: &Namespace, address: Dual, parts: &[Part]) -> Result<Self> {
        Self::start_with(run, namespace, address, parts, flags::AUDIT_POLICY)
    }

    fn start_with(
        run: &Run,
        namespace: &Namespace,
        address: Dual,
        parts: &[Part],
        audit_policy: &str,
    ) -> Result<Self> {
        let directory = run
            .directory()
            .join(format!("{}-control", namespace.label()));
        fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        let addresses = [
            IpAddr::V4(address.v4),
            IpAddr::V6(address.v6),
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
            flags::API_SERVICE.of(Family::V4),
        ];
        let pki = Pki::create(&directory.join("pki"), &addresses)?;
        fs::write(directory.join(flags::AUDIT_POLICY_FILE), audit_policy)?;
        let server = address.socket(Family::V4, API_PORT);
        let credentials = Credentials::Certificate(pki.client("admin", Some(MASTERS))?);
        let path = directory.join("admin.kubeconfig");
        let kubeconfig = Kubeconfig::write(path, server, &pki.authority(), &credentials)?;
        let admin = Account::new(namespace.clone(), kubeconfig, directory.join("admin"));
        let mut control = Self {
            processes: BTreeMap::new(),
            namespace: namespace.clone(),
            address,
            pki,
            directory,
            admin,
        };
        for &part in parts {
            control.start_part(part)?;
        }
        if parts.contains(&Part::Controllers) {
            // Pods cannot be made without it.
            let account = ["get", "serviceaccount", "default", "--namespace", "default"];
            control.admin.until(&account, START_LIMIT, |_| true)?;
        }
        Ok(control)
    }

    /// Audit events (`audit.k8s.io/v1`, level Metadata) of the requests so far by ServiceAccounts of the namespace
    /// `sluice-system`, or by everybody where [`Self::audited`] started it.
    pub fn audit_events(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.directory.join(flags::AUDIT_LOG))?;
        let events = text.lines().map(serde_json::from_str);
        Ok(events.collect::<Result<_, _>>()?)
    }

    /// Where it runs.
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Where the API server listens, by the name by which others reach it.
    pub const fn server(&self, family: Family) -> SocketAddr {
        self.address.socket(family, API_PORT)
    }

    /// Who may do everything.
    pub const fn admin(&self) -> &Account {
        &self.admin
    }

    /// The cluster's authorities.
    pub const fn pki(&self) -> &Pki {
        &self.pki
    }

    /// A user of this name, in at most one group, who may do what roles bound to them allow.
    pub fn user(&self, user: &str, group: Option<&str>) -> Result<Account> {
        let credentials = Credentials::Certificate(self.pki.client(user, group)?);
        self.account(user, &credentials)
    }

    /// A ServiceAccount that exists, with a token for an hour.
    pub fn service_account(&self, namespace: &str, name: &str) -> Result<Account> {
        let arguments = ["create", "token", name, "--namespace", namespace];
        let token = self.admin.kubectl(arguments)?;
        let user = format!("system:serviceaccount:{namespace}:{name}");
        self.account(&user, &Credentials::Token(token.trim().to_owned()))
    }

    /// Whoever has these credentials; `name` is for the file's name.
    pub fn account(&self, name: &str, credentials: &Credentials) -> Result<Account> {
        let home = self.directory.join(name.replace([':', '/'], "-"));
        let server = self.server(Family::V4);
        let path = home.with_extension("kubeconfig");
        let kubeconfig = Kubeconfig::write(path, server, &self.pki.authority(), credentials)?;
        Ok(Account::new(self.namespace.clone(), kubeconfig, home))
    }

    /// Ends a part at once, as a crash would.
    pub fn kill(&mut self, part: Part) -> Result<()> {
        self.running(part)?.kill()?;
        self.processes.remove(&part);
        Ok(())
    }

    /// Asks a part to end and waits until it has. The API server takes its time to let watches go.
    pub fn stop(&mut self, part: Part, limit: Duration) -> Result<()> {
        self.running(part)?.stop(limit)?;
        self.processes.remove(&part);
        Ok(())
    }

    /// Starts a part that does not run and waits until it is ready. It continues its log and its data.
    pub fn start_part(&mut self, part: Part) -> Result<()> {
        if self.processes.contains_key(&part) {
            bail!("{} runs already", part.program());
        }
        let mut command = self.command(part)?;
        command.current_dir(&self.directory);
        let mut process = Process::start(&self.namespace, part.program(), command)?;
        if let Some(health) = self.health(part) {
            let mut state = Ok(());
            until(
                &format!("{} to be ready", part.program()),
                START_LIMIT,
                || {
                    state = process.expect_running();
                    state.is_err() || self.is_healthy(&health)
                },
            )
            .with_context(|| format!("the end of its log:\n{}", process.log_tail()))?;
            state?;
        }
        self.processes.insert(part, process);
        Ok(())
    }

    /// Kills a part and starts it again.
    pub fn restart(&mut self, part: Part) -> Result<()> {
        self.kill(part)?;
        self.start_part(part)
    }

    /// Loses all data: etcd and API server are killed, and come back at the same address, with the same credentials, and
    /// without one object.
    pub fn lose_everything(&mut self) -> Result<()> {
        self.kill(Part::ApiServer)?;
        self.kill(Part::Etcd)?;
        fs::remove_dir_all(self.directory.join("etcd")).context("remove etcd's data")?;
        self.start_part(Part::Etcd)?;
        self.start_part(Part::ApiServer)
    }

    /// Sends a part a signal, such as SIGSTOP.
    pub fn signal(&mut self, part: Part, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.running(part)?.id())?;
        Ok(kill(Pid::from_raw(id), signal)?)
    }

    /// The ends of all logs, for failures.
    pub fn evidence(&self) -> String {
        self.processes.values().map(Process::evidence).collect()
    }

    fn running(&mut self, part: Part) -> Result<&mut Process> {
        self.processes
            .get_mut(&part)
            .with_context(|| format!("{} does not run", part.program()))
    }

    fn command(&self, part: Part) -> Result<Command> {
        let mut command = self.namespace.command(program(part.program())?);
        match part {
            Part::Etcd => command.args(flags::etcd(&self.directory.join("etcd"))),
            Part::ApiServer => command.args(flags::api_server(
                &self.pki,
                &self.directory,
                self.address,
                API_PORT,
            )),
            Part::Controllers => command.args(flags::controllers(&self.pki)),
            Part::Scheduler => command.args(flags::scheduler()),
        };
        if let Some(user) = part.user() {
            let account = self.user(user, None)?;
            command.args(flags::client(account.kubeconfig().path(), &self.directory));
        }
        Ok(command)
    }

    /// Where a part says that it is ready, if others wait for that.
    fn health(&self, part: Part) -> Option<String> {
        match part {
            Part::Etcd => Some(format!("{}/readyz", flags::ETCD)),
            Part::ApiServer => Some(format!("https://{}/readyz", self.server(Family::V4))),
            Part::Controllers | Part::Scheduler => None,
        }
    }

    fn is_healthy(&self, url: &str) -> bool {
        let mut command = self.namespace.command("curl");
        command
            .args(["--silent", "--fail", "--max-time", "5", "--cacert"])
            .arg(self.pki.file("ca.crt"))
            .arg(url);
        command.output().is_ok_and(|output| output.status.success())
    }
}
