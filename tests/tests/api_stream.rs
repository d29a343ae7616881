//! The stream of signals, before a real API server: who is taken, who is refused and with what, and what a flood, a rotation of authorities and
//! a restart of the operator do. The operator is a process with the chart's rights; agents are the library that agents use.

#[path = "stream/stage.rs"]
mod stage;
#[path = "stream/token.rs"]
mod token;

use std::cell::RefCell;
use std::fs;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::stream;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sluice_signals::MAX_POOLS;
use sluice_stream::{AUDIENCE, Failure, Sender, SenderState, open};
use sluice_tests::kube::chart::RELEASE_NAMESPACE;
use sluice_tests::kube::{CHANGE_TIMEOUT, Part};
use sluice_tests::net::suite::Suite;
use sluice_tests::net::until;
use tokio::net::{TcpSocket, TcpStream};
use tonic::Code;

use stage::{ENDING, HUNG, LIAR, NODES, Stage, end, expect, finder, report, reports};

const STREAMS: &str = "sluice_operator_streams";
const REPORTS: &str = "sluice_operator_reports_total";
const SECRET: [&str; 5] = [
    "secret",
    "sluice-stream-authorities",
    "--namespace",
    RELEASE_NAMESPACE,
    "--output=json",
];
/// A token's end is looked for after at most 15 s, and API servers take one for a minute longer.
const TOKEN_END: Duration = Duration::from_secs(25);

/// Either side notices within this time that the other one is gone.
const DEAD: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    let mut suite = Suite::new();
    let ending = Rc::new(RefCell::new(None));
    let begun = Rc::clone(&ending);
    suite.check("an agent is taken", taken);
    suite.check("who proves nothing is refused", refused);
    suite.check(
        "a token comes to its end (begins)",
        move |stage: &mut Stage| {
            *begun.borrow_mut() = Some(begin_ending(stage)?);
            Ok(())
        },
    );
    let hanging = Rc::new(RefCell::new(None));
    let hung = Rc::clone(&hanging);
    suite.check("an agent hangs (begins)", move |stage: &mut Stage| {
        *hanging.borrow_mut() = Some(hang(stage)?);
        Ok(())
    });
    suite.check("a node has one stream", replaced);
    suite.check("reports are small and few", limited);
    suite.check("a flood is bounded", flood);
    suite.check("strangers do not keep agents out", strangers);
    suite.check("authorities rotate under an open stream", rotation);
    suite.check(
        "a token comes to its end (is over)",
        move |_: &mut Stage| {
            let begun = ending.borrow_mut().take();
            let code = begun.context("it has not begun")?.join();
            let code = code.ok().context("a panic")??;
            expect("after the token's end", code, Code::Unauthenticated)
        },
    );
    suite.check("an agent hangs (is noticed)", move |stage: &mut Stage| {
        let hung = hung.borrow_mut().take();
        hung.context("it has not begun")?.noticed(stage)
    });
    suite.check(
        "without an API server streams go on, an operator that hangs is noticed",
        outage,
    );
    suite.check("an agent reconnects to an operator that restarts", restart);
    suite.check("another operator takes over", another);
    suite.main(Stage::build)
}

fn taken(stage: &mut Stage) -> Result<()> {
    stage.await_map()?;
    let token = stage.tokens[NODES[0]].clone();
    let numbers = stage.numbers.clone();
    let took = stage.within(async |finder| {
        let began = Instant::now();
        let place = finder.find().await?;
        let stream = open(&place, NODES[0], Some(&token), reports(3)).await?;
        let took = began.elapsed();
        numbers.until(REPORTS, 3.0)?;
        ensure!(numbers.of(STREAMS)? > 0.0, "no stream");
        drop(stream);
        Ok(took)
    })?;
    println!("a stream was open after {took:?}");
    until("the stream to be closed", CHANGE_TIMEOUT, || {
        stage.numbers.of(STREAMS).is_ok_and(|open| open < 1.0)
    })
}

impl Stage {
    /// Waits until the operator has said where it is.
    fn await_map(&self) -> Result<()> {
        until("the operator's address", CHANGE_TIMEOUT, || {
            self.within(async |finder| Ok(finder.find().await?)).is_ok()
        })
    }

    /// Waits until somebody can open a stream again.
    fn await_taken(&self, node: &'static str) -> Result<()> {
        let token = self.tokens[node].clone();
        let mut last = String::new();
        until("a stream", CHANGE_TIMEOUT, || {
            let opened = self.within(async |finder| {
                let place = finder.find().await?;
                let stream = open(&place, node, Some(&token), reports(1)).await;
                Ok(stream.map(drop)?)
            });
            last = opened
                .as_ref()
                .err()
                .map(|error| format!("{error:#}"))
                .unwrap_or_default();
            opened.is_ok()
        })
        .with_context(|| last)
    }
}

fn refused(stage: &mut Stage) -> Result<()> {
    stage.complaints.expect("refuses a stream of signals");
    let own = stage.tokens[NODES[0]].clone();
    let of = |arguments: &[&str]| -> Result<String> {
        let arguments = [
            &["create", "token", "--namespace", RELEASE_NAMESPACE][..],
            arguments,
        ];
        let token = stage.control.admin().kubectl(arguments.concat())?;
        Ok(token.trim().to_owned())
    };
    let audience = format!("--audience={AUDIENCE}");
    let expired = token::ending_in(-3600, &own, &stage.control)?;
    let (claims, signature) = own.rsplit_once('.').context("no token")?;
    let reversed: String = signature.chars().rev().collect();
    let forged = format!("{claims}.{reversed}");
    let cases = [
        ("without a token", None, Code::Unauthenticated),
        (
            "no token",
            Some("no.to.ken".to_owned()),
            Code::Unauthenticated,
        ),
        ("a forged token", Some(forged), Code::Unauthenticated),
        ("an expired token", Some(expired), Code::Unauthenticated),
        (
            "a token for the API server",
            Some(stage.control.agent_token(NODES[0], None)?),
            Code::Unauthenticated,
        ),
        (
            "the token of another node",
            Some(stage.tokens[NODES[1]].clone()),
            Code::PermissionDenied,
        ),
        (
            "another account's token",
            Some(of(&["sluice-operator", &audience])?),
            Code::PermissionDenied,
        ),
        (
            "a token of no pod",
            Some(of(&["sluice-agent", &audience])?),
            Code::PermissionDenied,
        ),
    ];
    for (what, token, wanted) in cases {
        let code = stage.refusal(token.as_deref(), NODES[0]);
        expect(what, code.with_context(|| what)?, wanted)?;
    }
    let code = stage.refusal(Some(&own), "N1")?;
    expect("no node's name", code, Code::InvalidArgument)?;
    // The test's own signature is as good as the API server's.
    let signed = token::ending_in(600, &own, &stage.control)?;
    stage.within(async |finder| {
        open(&finder.find().await?, NODES[0], Some(&signed), reports(1)).await?;
        Ok(())
    })?;
    stage
        .numbers
        .until("sluice_operator_refused_streams_total", 9.0)
}

/// Opens a stream whose token ends soon, in a thread of its own.
fn begin_ending(stage: &mut Stage) -> Result<JoinHandle<Result<Code>>> {
    let token = token::ending_in(-52, &stage.tokens[ENDING], &stage.control)?;
    let admin = stage.control.admin();
    admin.spawn_client("ending", async move |client| {
        let place = finder(client).find().await?;
        let began = Instant::now();
        let stream = open(&place, ENDING, Some(&token), reports(1)).await?;
        let code = end(stream, TOKEN_END).await?;
        println!(
            "a stream has ended {:?} after a token that had 8 s",
            began.elapsed()
        );
        Ok(code)
    })
}

fn replaced(stage: &mut Stage) -> Result<()> {
    let token = stage.tokens[NODES[0]].clone();
    let other = stage.tokens[NODES[1]].clone();
    let code = stage.within(async |finder| {
        let place = finder.find().await?;
        let first = open(&place, NODES[0], Some(&token), reports(1)).await?;
        let _other = open(&place, NODES[1], Some(&other), reports(1)).await?;
        let mut second = open(&place, NODES[0], Some(&token), reports(1)).await?;
        let code = end(first, CHANGE_TIMEOUT).await?;
        let goes_on = tokio::time::timeout(Duration::from_millis(300), second.ended()).await;
        ensure!(goes_on.is_err(), "the new stream ended too: {goes_on:?}");
        Ok(code)
    })?;
    expect("the first stream", code, Code::Aborted)
}

/// Sends what no agent would.
fn limited(stage: &mut Stage) -> Result<()> {
    let token = stage.tokens[NODES[1]].clone();
    let code = stage.within(async |finder| {
        let place = finder.find().await?;
        let most = stream::iter([report(0, MAX_POOLS), report(1, MAX_POOLS + 1)]);
        let stream = open(&place, NODES[1], Some(&token), most).await?;
        end(stream, CHANGE_TIMEOUT).await
    })?;
    expect("too many pools", code, Code::InvalidArgument)
}

fn flood(stage: &mut Stage) -> Result<()> {
    let (honest, liar) = (NODES[0], LIAR);
    let tokens = [honest, liar].map(|node| stage.tokens[node].clone());
    let before = (stage.memory()?, stage.numbers.of(REPORTS)?);
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let began = Instant::now();
    stage.within(async move |finder| {
        let place = finder.find().await?;
        let mut quiet = open(&place, honest, Some(&tokens[0]), reports(1)).await?;
        while began.elapsed() < Duration::from_secs(2) {
            let count = Arc::clone(&counted);
            let reports = stream::repeat_with(move || {
                report(count.fetch_add(1, Ordering::Relaxed), MAX_POOLS)
            });
            match open(&place, liar, Some(&tokens[1]), reports).await {
                Ok(stream) => {
                    expect(
                        "a flood",
                        end(stream, CHANGE_TIMEOUT).await?,
                        Code::ResourceExhausted,
                    )?;
                }
                Err(Failure::Refused(status)) => {
                    expect("again", status.code(), Code::ResourceExhausted)?;
                }
                Err(other) => bail!(other),
            }
        }
        let goes_on = tokio::time::timeout(Duration::from_millis(1), quiet.ended()).await;
        ensure!(
            goes_on.is_err(),
            "the other node's stream has ended: {goes_on:?}"
        );
        Ok(())
    })?;
    let taken = stage.numbers.of(REPORTS)? - before.1;
    let grown = stage.memory()?.saturating_sub(before.0);
    let sent = sent.load(Ordering::Relaxed);
    println!("of {sent} messages {taken} were taken; memory grew by {grown} kB");
    ensure!(taken <= 80.0, "{taken} were taken");
    ensure!(grown <= 96 * 1024, "{grown} kB more");
    Ok(())
}

fn strangers(stage: &mut Stage) -> Result<()> {
    let numbers = stage.numbers.clone();
    let held = stage.within(async |finder| {
        let address = finder.find().await?.address;
        let mut held: Vec<TcpStream> = Vec::new();
        for _ in 0..64 {
            let socket = TcpSocket::new_v4()?;
            socket.bind("127.0.0.5:0".parse()?)?;
            held.push(socket.connect(address).await?);
        }
        numbers.until("sluice_operator_turned_away_connections_total", 48.0)?;
        Ok(held
            .into_iter()
            .map(TcpStream::into_std)
            .collect::<Result<Vec<_>, _>>()?)
    })?;
    stage.await_taken(NODES[0])?;
    drop(held);
    Ok(())
}

/// The authorities, with their times moved into the past by so many seconds each, the oldest first.
fn age(stage: &Stage, seconds: &[i64]) -> Result<()> {
    let admin = stage.control.admin();
    let secret = admin.kubectl([&["get"][..], &SECRET].concat())?;
    let mut secret: Value = serde_json::from_str(&secret)?;
    let data = secret["data"]["authorities.json"].as_str();
    let data = STANDARD.decode(data.context("no authorities")?)?;
    let mut all: Vec<Value> = serde_json::from_slice(&data)?;
    ensure!(all.len() == seconds.len(), "{} authorities", all.len());
    for (authority, seconds) in all.iter_mut().zip(seconds) {
        let made = authority["madeAt"].as_i64().context("no time")?;
        authority["madeAt"] = json!(made - seconds);
    }
    secret["data"]["authorities.json"] = json!(STANDARD.encode(json!(all).to_string()));
    admin.kubectl_with(["replace", "-f", "-"], &secret.to_string())?;
    Ok(())
}

/// Waits until the bundle has so many certificates.
fn await_bundle(stage: &Stage, count: usize) -> Result<String> {
    let question = [
        "get",
        "configmap",
        "sluice-stream",
        "--namespace",
        RELEASE_NAMESPACE,
    ];
    let map = stage
        .control
        .admin()
        .until(&question, CHANGE_TIMEOUT, |map| {
            let bundle = map["data"]["ca.crt"].as_str().unwrap_or_default();
            bundle.matches("BEGIN").count() == count
        })?;
    let bundle = map["data"]["ca.crt"].as_str().unwrap_or_default();
    Ok(bundle.to_owned())
}

fn rotation(stage: &mut Stage) -> Result<()> {
    const DAY: i64 = 86_400;
    let first = await_bundle(stage, 1)?;
    let (stop, token) = (
        Arc::new(AtomicBool::new(false)),
        stage.tokens[NODES[1]].clone(),
    );
    let stopped = Arc::clone(&stop);
    let admin = stage.control.admin().clone();
    let held = admin.spawn_client("held", async move |client| {
        let place = finder(client).find().await?;
        let mut stream = open(&place, NODES[1], Some(&token), reports(1)).await?;
        while !stopped.load(Ordering::Relaxed) {
            let look = Duration::from_millis(100);
            if let Ok(status) = tokio::time::timeout(look, stream.ended()).await {
                bail!("the open stream has ended: {status}");
            }
        }
        Ok(())
    })?;
    age(stage, &[61 * DAY])?;
    let both = await_bundle(stage, 2)?;
    ensure!(both.starts_with(&first), "the old one is trusted still");
    stage.await_taken(NODES[0])?;
    // Its lead is over: it signs, and who trusts both connects.
    age(stage, &[0, 2 * 3600])?;
    let new = both[first.len()..].to_owned();
    await_signer(stage, &new)?;
    stage.await_taken(NODES[0])?;
    age(stage, &[0, 2 * DAY])?;
    ensure!(await_bundle(stage, 1)? == new, "another one is trusted");
    stage.await_taken(NODES[0])?;
    stop.store(true, Ordering::Relaxed);
    held.join().ok().context("a panic")?
}

/// Waits until the operator shows a certificate of this authority.
fn await_signer(stage: &Stage, authority: &str) -> Result<()> {
    let token = stage.tokens[NODES[0]].clone();
    until("the new authority to sign", CHANGE_TIMEOUT, || {
        // Whoever fails more often is refused for a while.
        std::thread::sleep(Duration::from_millis(1200));
        let opened = stage.within(async |finder| {
            let address = finder.find().await?.address.to_string();
            let place = sluice_stream::Place::read(&address, authority);
            let place = place.map_err(anyhow::Error::msg)?;
            Ok(open(&place, NODES[0], Some(&token), reports(1))
                .await
                .map(drop)?)
        });
        opened.is_ok()
    })
}

/// An agent whose thread stands still until it is told to end.
struct Hung {
    began: Instant,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Hung {
    fn noticed(self, stage: &Stage) -> Result<()> {
        let limit = DEAD.saturating_sub(self.began.elapsed());
        let limit = limit.max(Duration::from_secs(1));
        until("the operator to close its stream", limit, || {
            stage.numbers.of(STREAMS).is_ok_and(|open| open < 1.0)
        })?;
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("a panic")?
    }
}

fn hang(stage: &mut Stage) -> Result<Hung> {
    let (stop, token) = (Arc::new(AtomicBool::new(false)), stage.tokens[HUNG].clone());
    let (stopped, opened) = (Arc::clone(&stop), Arc::new(AtomicBool::new(false)));
    let open_now = Arc::clone(&opened);
    let admin = stage.control.admin();
    let thread = admin.spawn_client("hung", async move |client| {
        let place = finder(client).find().await?;
        let stream = open(&place, HUNG, Some(&token), reports(1)).await?;
        open_now.store(true, Ordering::Relaxed);
        while !stopped.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(stream);
        Ok(())
    })?;
    until("its stream", CHANGE_TIMEOUT, || {
        opened.load(Ordering::Relaxed)
    })?;
    let began = Instant::now();
    Ok(Hung {
        began,
        stop,
        thread,
    })
}

/// The library that agents use, as an agent runs it.
struct Agent {
    state: Arc<SenderState>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Agent {
    fn start(stage: &Stage) -> Result<Self> {
        let token = stage.run.directory().join("token");
        fs::write(&token, &stage.tokens[NODES[0]])?;
        let (known, stop) = <(Arc<SenderState>, Arc<AtomicBool>)>::default();
        let (shared, stopped) = (Arc::clone(&known), Arc::clone(&stop));
        let began = Instant::now();
        let admin = stage.control.admin().clone();
        let thread = admin.spawn_client("agent", async move |client| {
            let sender = Sender {
                node: NODES[0].to_owned(),
                token,
                finder: finder(client),
                state: shared,
            };
            let sending = sender.run(move || report(began.elapsed().as_secs(), 1));
            let stopping = async {
                while !stopped.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::select! {
                () = sending => bail!("the agent has ended"),
                () = stopping => Ok(()),
            }
        })?;
        let agent = Self {
            state: known,
            stop,
            thread,
        };
        agent.await_open(true)?;
        Ok(agent)
    }

    fn await_open(&self, is_open: bool) -> Result<()> {
        let what = if is_open { "a stream" } else { "its end" };
        until(what, DEAD, || self.state.is_open() == is_open)
    }

    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("a panic")?
    }
}

/// First the API server goes, then the operator hangs while that comes back.
fn outage(stage: &mut Stage) -> Result<()> {
    let agent = Agent::start(stage)?;
    let place = stage.within(async |finder| Ok(finder.find().await?))?;
    for text in ["agents may not find the operator", "the watch is lost"] {
        stage.complaints.expect(text);
    }
    stage.control.kill(Part::ApiServer)?;
    let token = stage.tokens[NODES[1]].clone();
    let code =
        stage.within(
            async |_| match open(&place, NODES[1], Some(&token), reports(1)).await {
                Err(Failure::Refused(status)) => Ok(status.code()),
                other => bail!("{other:?}"),
            },
        )?;
    expect("without an API server", code, Code::Unavailable)?;
    ensure!(agent.state.is_open(), "the open stream has ended");
    stage.signal_operator(Signal::SIGSTOP)?;
    let stopped = Instant::now();
    let restarted = stage.control.start_part(Part::ApiServer);
    let noticed = agent.await_open(false);
    stage.signal_operator(Signal::SIGCONT)?;
    restarted?;
    noticed?;
    println!("the agent noticed after {:?}", stopped.elapsed());
    agent.await_open(true)?;
    agent.end()
}

/// Whoever starts last has the agents, and the other one lets them go.
fn another(stage: &mut Stage) -> Result<()> {
    let agent = Agent::start(stage)?;
    let (other, numbers) = stage.start_another()?;
    numbers
        .until(STREAMS, 1.0)
        .with_context(|| other.log_tail())?;
    until("the first to let go", CHANGE_TIMEOUT, || {
        stage.numbers.of(STREAMS).is_ok_and(|open| open < 1.0)
    })?;
    agent.await_open(true)?;
    agent.end()?;
    stage.complaints.expect_none([&other])
}

fn restart(stage: &mut Stage) -> Result<()> {
    let agent = Agent::start(stage)?;
    stage.kill_operator()?;
    agent.await_open(false)?;
    stage.start_operator()?;
    let started = Instant::now();
    agent.await_open(true)?;
    println!(
        "the agent was back {:?} after the operator's start",
        started.elapsed()
    );
    stage.numbers.until(REPORTS, 2.0)?;
    agent.end()
}
