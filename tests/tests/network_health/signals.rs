//! Signals: nodes count how a pool's servers meet connections, in every mode.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use sluice_tests::net::fabric::DIRECTORS;
use sluice_tests::net::lab::{Lab, Mode};
use sluice_tests::net::manifest;
use sluice_tests::net::{CLOSING, Family, RESETTING, until};

use crate::pools::{restore, signal};

/// The file of the policies.
const FILE: &str = "policies";
/// Connections of each kind to each mode in each family.
const EACH: usize = 10;
/// How long samples take at most until they are counted: five seconds of waiting, and what a busy machine needs.
const COUNTED: Duration = Duration::from_secs(20);

/// How many connections of each mode ended in which way.
type Outcomes = BTreeMap<(Mode, String), u64>;

/// Policies have the candidate pools, of which each has one server and all flows of its mode, sampled.
pub(crate) fn tell(lab: &mut Lab) -> Result<()> {
    let policies: Vec<Value> = Mode::ALL.map(policy).into();
    lab.sluice.apply(FILE, &policies)?;
    for mode in Mode::ALL {
        lab.await_shares(mode, 0, 100)?;
    }
    until("all pools to be sampled", COUNTED, || {
        let counted = counted(lab).unwrap_or_default();
        let sampled = |mode| counted.keys().any(|(of, _)| *of == mode);
        Mode::ALL.into_iter().all(sampled)
    })?;
    let told = tell_all(lab);
    lab.sluice.remove(FILE)?;
    for mode in Mode::ALL {
        lab.sluice.await_no_rollout(mode.candidate())?;
    }
    // The weights stay where the policies left them until the specs have others.
    for mode in Mode::ALL {
        lab.set_shares(mode, 1, 99)?;
        restore(lab, mode)?;
    }
    told
}

fn policy(mode: Mode) -> Value {
    let (stable, candidate) = (mode.stable(), mode.candidate());
    let name = mode.virtual_server();
    let mut policy = manifest::rollout(candidate, name, stable, candidate, &[(100, 0)]);
    policy["spec"]["signalAnalysis"] = "Observe".into();
    policy
}

fn tell_all(lab: &mut Lab) -> Result<()> {
    expect(lab, "replied", |lab| {
        each(lab, |stream| ask(stream, "/").map(drop))
    })?;
    expect(lab, "closed", |lab| {
        each(lab, |stream| ask(stream, CLOSING).map(drop))
    })?;
    expect(lab, "reset", |lab| {
        each(lab, |stream| {
            let answer = ask(stream, RESETTING);
            ensure!(answer.is_err(), "it was answered");
            Ok(())
        })
    })?;
    expect(lab, "unasked", |lab| each(lab, |_| Ok(())))?;

    filter(lab, &Mode::ALL, SYN, "reject with tcp reset")?;
    let refused = expect(lab, "refused", |lab| fail(lab, Duration::from_secs(2)));
    filter(lab, &Mode::ALL, SYN, "drop")?;
    let unanswered = refused.and_then(|()| {
        expect(lab, "unanswered", |lab| {
            fail(lab, Duration::from_millis(50))
        })
    });
    end_filters(lab)?;
    unanswered?;

    // The kernel goes on to accept connections.
    for mode in Mode::ALL {
        signal(lab, server(mode), Signal::SIGSTOP)?;
    }
    let mut waiting = Vec::new();
    let silent = expect(lab, "silent", |lab| {
        each(lab, |mut stream| {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
            waiting.push(stream);
            Ok(())
        })
    });
    for mode in Mode::ALL {
        signal(lab, server(mode), Signal::SIGCONT)?;
    }
    silent
}

/// The one server of a mode's candidate pool.
pub(crate) const fn server(mode: Mode) -> &'static str {
    mode.servers()[2]
}

/// Segments that open a connection, as nft matches them.
pub(crate) const SYN: &str = "tcp flags syn";

/// Has this become of these segments that reach the servers of some modes.
pub(crate) fn filter(lab: &Lab, modes: &[Mode], segments: &str, what: &str) -> Result<()> {
    for &mode in modes {
        let port = mode.target_port().unwrap_or(80);
        let namespace = &lab.fabric.node(server(mode))?.namespace;
        namespace.nft(&format!(
            "add table inet faults\nflush table inet faults\n\
             add chain inet faults input {{ type filter hook input priority 0; }}\n\
             add rule inet faults input tcp dport {port} {segments} {what}\n"
        ))?;
    }
    Ok(())
}

/// Has all segments reach the servers again, where they did not.
pub(crate) fn end_filters(lab: &Lab) -> Result<()> {
    for mode in Mode::ALL {
        let namespace = &lab.fabric.node(server(mode))?.namespace;
        namespace.nft("add table inet faults\ndelete table inet faults\n")?;
    }
    Ok(())
}

fn targets() -> impl Iterator<Item = SocketAddr> {
    let modes = Mode::ALL.into_iter();
    let all = modes.flat_map(|mode| Family::BOTH.map(|family| mode.target(family)));
    all.flat_map(|target| std::iter::repeat_n(target, EACH))
}

fn open(lab: &Lab, to: SocketAddr, patience: Duration) -> Result<std::io::Result<TcpStream>> {
    let client = lab.fabric.client();
    client.within(|| TcpStream::connect_timeout(&to, patience))
}

/// Does this on connections of all modes and both families.
fn each(lab: &Lab, mut act: impl FnMut(TcpStream) -> Result<()>) -> Result<()> {
    for to in targets() {
        let stream = open(lab, to, COUNTED)??;
        stream.set_read_timeout(Some(COUNTED))?;
        act(stream).with_context(|| to.to_string())?;
    }
    Ok(())
}

/// Tries to connect as often, in vain.
fn fail(lab: &Lab, patience: Duration) -> Result<()> {
    for to in targets() {
        ensure!(open(lab, to, patience)?.is_err(), "{to} is connected");
    }
    Ok(())
}

/// Asks for a path. Returns what came until the end.
fn ask(mut stream: TcpStream, path: &str) -> Result<Vec<u8>> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Fails unless all of these connections are counted as having ended so, and no others are.
fn expect(lab: &Lab, outcome: &str, connect: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let mut wanted = counted(lab)?;
    connect(lab).with_context(|| outcome.to_owned())?;
    for mode in Mode::ALL {
        *wanted.entry((mode, outcome.to_owned())).or_default() += 2 * EACH as u64;
    }
    let mut last = Outcomes::new();
    let done = until(&format!("{outcome} to be counted"), COUNTED, || {
        last = counted(lab).unwrap_or_default();
        last == wanted
    });
    done.with_context(|| format!("{outcome}: wanted {wanted:?}, counted {last:?}"))
}

/// The counts of all nodes that see what the servers answer.
fn counted(lab: &Lab) -> Result<Outcomes> {
    let mut outcomes = Outcomes::new();
    let servers = [Mode::Dr, Mode::Tun].map(server);
    for node in DIRECTORS.into_iter().chain(servers) {
        for (series, value) in lab.sluice.metrics(node)? {
            let counted = Mode::ALL.into_iter().find_map(|mode| {
                let prefix = format!(
                    "sluice_pool_sampled_connections_total{{pool=\"default/{}\",outcome=\"",
                    mode.candidate()
                );
                let outcome = series.strip_prefix(&prefix)?.strip_suffix("\"}")?;
                Some((mode, outcome.to_owned()))
            });
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count of a few connections"
            )]
            if let Some(counted) = counted {
                *outcomes.entry(counted).or_default() += value as u64;
            }
        }
    }
    Ok(outcomes)
}
