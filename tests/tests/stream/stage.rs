//! An API server with the chart's rights, and an operator that takes signals.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::stream;
use kube::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_signals::{Outcome, PoolTally, Report, Second, Tally, Voice};
use sluice_stream::{AUDIENCE, Failure, Finder, Stream, open};
use sluice_tests::kube::chart::RELEASE_NAMESPACE;
use sluice_tests::kube::{CHANGE_TIMEOUT, ControlPlane, Kubeconfig};
use sluice_tests::net::sluice::binary;
use sluice_tests::net::suite::Stage as Suited;
use sluice_tests::net::{Complaints, Family, Namespace, Process, Run, until};
use tonic::Code;

pub(super) const NODES: [&str; 2] = ["n1", "n2"];
/// Sends too much.
pub(super) const LIAR: &str = "n3";
/// Answers nothing, not even pings.
pub(super) const HUNG: &str = "n5";
/// Its token comes to its end.
pub(super) const ENDING: &str = "n4";
const ADMIN: &str = "127.0.0.1:9201";
const OTHER_ADMIN: &str = "127.0.0.1:9211";
const PORT: u16 = 9202;
const OTHER_PORT: u16 = 9212;

/// Reads the operator's metrics.
#[derive(Clone)]
pub(super) struct Numbers(Namespace, &'static str);

impl Numbers {
    /// The sum of the series that begin so; 0 where there is none.
    pub(super) fn of(&self, series: &str) -> Result<f64> {
        let url = format!("http://{}/metrics", self.1);
        let text = self
            .0
            .run(&format!("curl --silent --fail --max-time 5 {url}"))?;
        let lines = text.lines().filter(|line| line.starts_with(series));
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.fold(0.0, |sum, value| sum + value))
    }

    pub(super) fn until(&self, series: &str, least: f64) -> Result<()> {
        let what = format!("{series} to be {least}");
        until(&what, CHANGE_TIMEOUT, || {
            self.of(series).is_ok_and(|value| value >= least)
        })
    }
}

pub(super) struct Stage {
    pub(super) numbers: Numbers,
    operator: Option<Process>,
    account: Kubeconfig,
    pub(super) complaints: Complaints,
    /// By node.
    pub(super) tokens: BTreeMap<&'static str, String>,
    pub(super) control: ControlPlane,
    pub(super) run: Run,
}

impl Stage {
    pub(super) fn build() -> Result<Self> {
        let run = Run::start()?;
        let control = ControlPlane::api(&run, "control")?;
        control.install_rights()?;
        let mut tokens = BTreeMap::new();
        for node in NODES.into_iter().chain([LIAR, ENDING, HUNG]) {
            control.agent_account(node)?;
            tokens.insert(node, control.agent_token(node, Some(AUDIENCE))?);
        }
        let operator = control.service_account(RELEASE_NAMESPACE, "sluice-operator")?;
        let mut stage = Self {
            numbers: Numbers(control.namespace().clone(), ADMIN),
            operator: None,
            account: operator.kubeconfig().clone(),
            complaints: Complaints::default(),
            tokens,
            control,
            run,
        };
        stage.start_operator()?;
        Ok(stage)
    }

    pub(super) fn start_operator(&mut self) -> Result<()> {
        self.operator = Some(self.start("operator", ADMIN, PORT)?);
        Ok(())
    }

    /// Starts one more, which lives for as long as it is held.
    pub(super) fn start_another(&self) -> Result<(Process, Numbers)> {
        let numbers = Numbers(self.control.namespace().clone(), OTHER_ADMIN);
        Ok((self.start("another", OTHER_ADMIN, OTHER_PORT)?, numbers))
    }

    fn start(&self, name: &str, admin: &str, port: u16) -> Result<Process> {
        let home = self.control.namespace();
        let mut command = home.command(binary("sluice-operator")?);
        let host = self.control.server(Family::V4).ip();
        command
            .arg("--kubeconfig")
            .arg(self.account.path())
            .args(["--namespace", RELEASE_NAMESPACE, "--admin", admin])
            .args(["--stream-port", &port.to_string()])
            .env("SLUICE_STREAM_HOST", host.to_string());
        Process::start(home, name, command)
    }

    /// Sends the operator a signal, such as SIGSTOP.
    pub(super) fn signal_operator(&mut self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.operator()?.id())?;
        Ok(kill(Pid::from_raw(id), signal)?)
    }

    pub(super) fn kill_operator(&mut self) -> Result<()> {
        self.operator().and_then(Process::kill)
    }

    fn operator(&mut self) -> Result<&mut Process> {
        self.operator.as_mut().context("no operator runs")
    }

    /// Resident memory of the operator, in kB.
    pub(super) fn memory(&mut self) -> Result<u64> {
        let id = self.operator()?.id();
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        Ok(kilobytes.context("no VmRSS")?.parse()?)
    }

    /// Runs `work` where the operator can be reached.
    pub(super) fn within<T: Send>(
        &self,
        work: impl AsyncFnOnce(Finder) -> Result<T> + Send,
    ) -> Result<T> {
        self.control
            .admin()
            .with_client(async |client| work(finder(client)).await)
    }

    /// The status with which a stream of n1 is refused that has this token.
    pub(super) fn refusal(&self, token: Option<&str>, node: &str) -> Result<Code> {
        self.within(async move |finder| {
            match open(&finder.find().await?, node, token, reports(1)).await {
                Err(Failure::Refused(status)) => Ok(status.code()),
                Err(other) => Err(other.into()),
                Ok(_) => anyhow::bail!("it was taken"),
            }
        })
    }
}

pub(super) fn finder(client: Client) -> Finder {
    Finder::new(client, RELEASE_NAMESPACE)
}

/// So many reports of a second each, and then nothing more while the stream is open.
pub(super) fn reports(count: u64) -> impl futures::Stream<Item = Report> + Send + 'static {
    let reports = (0..count).map(|number| report(number, 1));
    let rest = stream::pending();
    futures::StreamExt::chain(stream::iter(reports), rest)
}

pub(super) fn report(number: u64, pools: usize) -> Report {
    let mut tally = Tally::default();
    tally.add(Voice {
        outcome: Outcome::Replied,
        first_byte: Some(Duration::from_millis(7)),
    });
    let pool = |n| PoolTally {
        namespace: "shop".to_owned(),
        name: format!("pool-{n}"),
        tally: tally.clone(),
    };
    let second = Second {
        number,
        pools: (0..pools).map(pool).collect(),
    };
    Report {
        session: 7,
        seconds: vec![second],
    }
}

/// Waits for the end of a stream.
pub(super) async fn end(mut stream: Stream, limit: Duration) -> Result<Code> {
    let ended = tokio::time::timeout(limit, stream.ended()).await;
    Ok(ended.context("the stream goes on")?.code())
}

impl Suited for Stage {
    fn after_check(&mut self) -> Result<()> {
        self.operator()?.expect_running()?;
        self.complaints.expect_none(self.operator.iter())
    }

    fn evidence(&mut self) -> String {
        self.operator.iter().map(Process::evidence).collect()
    }

    fn run_name(&self) -> String {
        self.run.name().to_owned()
    }
}

/// Fails unless two codes are the same.
pub(super) fn expect(what: &str, found: Code, wanted: Code) -> Result<()> {
    ensure!(found == wanted, "{what}: {found:?} instead of {wanted:?}");
    Ok(())
}
