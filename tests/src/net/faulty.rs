//! HTTP servers whose faults are switched on and off, and clients that go on whatever these do.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use super::namespace::Namespace;

/// What a server does to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behaviour {
    /// It answers at once.
    Well,
    /// Nobody listens.
    Refuse,
    /// So many of a hundred requests are never answered.
    Hang(u64),
    /// So many of a hundred requests are answered with a reset.
    Reset(u64),
    /// Each answer comes so much later.
    Slow(Duration),
}

/// How long a request that is not answered is kept.
const HANG: Duration = Duration::from_secs(20);
/// How long a client waits for a connection and an answer.
const PATIENCE: Duration = Duration::from_secs(6);
/// Time between two tries to listen.
const RETRY: Duration = Duration::from_millis(20);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";

/// A thread in a namespace, which ends with this.
#[derive(Debug)]
struct Worker {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start<F: Future<Output = ()> + 'static>(
        namespace: &Namespace,
        name: &str,
        work: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let run = move |runtime: Runtime| {
            runtime.block_on(async {
                tokio::select! {
                    () = work() => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = namespace.spawn(name, move || run(runtime))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}

/// Servers at some ports of a namespace, which all behave alike.
#[derive(Debug)]
pub struct FaultyServers {
    behaviour: watch::Sender<Behaviour>,
    _worker: Worker,
}

impl FaultyServers {
    /// Starts them. They do well.
    pub fn start(namespace: &Namespace, ports: Range<u16>) -> Result<Self> {
        let (behaviour, told) = watch::channel(Behaviour::Well);
        let worker = Worker::start(namespace, "servers", move || async move {
            let mut servers = JoinSet::new();
            for port in ports {
                servers.spawn(serve(port, told.clone()));
            }
            servers.join_all().await;
        })?;
        Ok(Self {
            behaviour,
            _worker: worker,
        })
    }

    /// Changes what becomes of connections from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.behaviour.send_replace(behaviour);
    }
}

async fn serve(port: u16, mut told: watch::Receiver<Behaviour>) {
    let requests = Arc::new(AtomicU64::new(0));
    loop {
        if told
            .wait_for(|behaviour| *behaviour != Behaviour::Refuse)
            .await
            .is_err()
        {
            return;
        }
        let Ok(listener) = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await else {
            sleep(RETRY).await;
            continue;
        };
        let is_over = async {
            let refused = |behaviour: &Behaviour| *behaviour == Behaviour::Refuse;
            told.clone().wait_for(refused).await.is_err()
        };
        let accept = async {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    let behaviour = *told.borrow();
                    tokio::spawn(answer(stream, behaviour, Arc::clone(&requests)));
                }
            }
        };
        tokio::select! {
            is_over = is_over => if is_over {
                return;
            },
            () = accept => {}
        }
    }
}

async fn answer(mut stream: TcpStream, behaviour: Behaviour, requests: Arc<AtomicU64>) {
    let mut request = [0; 256];
    if !matches!(stream.read(&mut request).await, Ok(1..)) {
        return;
    }
    let number = requests.fetch_add(1, Ordering::Relaxed);
    // Evenly, whatever the part.
    let is_hit = |percent: u64| (number + 1) * percent / 100 > number * percent / 100;
    match behaviour {
        Behaviour::Hang(percent) if is_hit(percent) => return sleep(HANG).await,
        Behaviour::Reset(percent) if is_hit(percent) => {
            let _ = stream.set_zero_linger();
            return;
        }
        Behaviour::Slow(time) => sleep(time).await,
        _ => {}
    }
    let _ = stream.write_all(ANSWER).await;
    let _ = stream.shutdown().await;
}

/// Clients that connect at a fixed rate, each from another address, whatever becomes of their connections.
#[derive(Debug)]
pub struct Clients {
    _worker: Worker,
}

impl Clients {
    /// To each of these groups of targets so many connections a second go, by turns. `sources` has addresses of each family.
    pub fn start(
        namespace: &Namespace,
        groups: Vec<Vec<SocketAddr>>,
        per_second: u32,
        sources: [Vec<SocketAddr>; 2],
    ) -> Result<Self> {
        let sources = Arc::new(sources);
        let worker = Worker::start(namespace, "clients", move || async move {
            let mut all = JoinSet::new();
            for (number, targets) in groups.into_iter().enumerate() {
                let sources = Arc::clone(&sources);
                all.spawn(async move {
                    // Groups do not connect in the same instant.
                    sleep(Duration::from_millis(7) * u32::try_from(number).unwrap_or(0)).await;
                    let mut ticks = interval(Duration::from_secs(1) / per_second);
                    for count in number.. {
                        ticks.tick().await;
                        let target = targets[count % targets.len()];
                        let of_family = &sources[usize::from(target.is_ipv6())];
                        let source = of_family[count % of_family.len()];
                        tokio::spawn(timeout(PATIENCE, ask(source, target)));
                    }
                });
            }
            all.join_all().await;
        })?;
        Ok(Self { _worker: worker })
    }
}

async fn ask(source: SocketAddr, target: SocketAddr) -> io::Result<()> {
    let socket = if target.is_ipv6() {
        TcpSocket::new_v6()?
    } else {
        TcpSocket::new_v4()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(source)?;
    let mut stream = socket.connect(target).await?;
    stream.write_all(REQUEST).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn each_fault_is_met_as_often_as_it_should() -> Result<()> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime
            .block_on(async {
                let (behaviour, told) = watch::channel(Behaviour::Well);
                let probe = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await?;
                let target = probe.local_addr()?;
                drop(probe);
                let server = tokio::spawn(serve(target.port(), told));
                for (is, served) in [
                    (Behaviour::Well, 20),
                    (Behaviour::Reset(20), 16),
                    (Behaviour::Hang(25), 15),
                    (Behaviour::Slow(Duration::from_millis(5)), 20),
                    (Behaviour::Refuse, 0),
                    (Behaviour::Well, 20),
                ] {
                    behaviour.send_replace(is);
                    sleep(10 * RETRY).await;
                    let mut count = 0;
                    for _ in 0..20 {
                        let source = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 0);
                        let asked = timeout(Duration::from_millis(200), ask(source, target)).await;
                        count += u32::from(matches!(asked, Ok(Ok(()))));
                    }
                    assert_eq!(count, served, "{is:?}");
                }
                server.abort();
                Ok::<_, anyhow::Error>(())
            })
            .context("servers with faults")
    }
}
