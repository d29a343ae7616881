//! Running the agent: what is started in which order, and how it ends.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::{fs, panic, process, thread};

use anyhow::{Context, Result, bail};
use prometheus_client::registry::Registry;
use sluice_agent::admin::Listeners;
use sluice_agent::core::{Core, Input};
use sluice_agent::maps::{Attacher, PinLock, open};
use sluice_agent::netlink::{Monitor, Requests};
use sluice_agent::report::Mailbox;
use sluice_agent::source::file::{self, NodeFile};
use sluice_agent::state::State;
use sluice_agent::sweeper;
use sluice_api::directory::Directory;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::info;

use crate::options::RunOptions;

/// News that may wait for the core.
const INBOX: usize = 4096;

/// Runs the agent until a signal ends it.
pub(crate) fn run(options: &RunOptions) -> Result<()> {
    end_on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(run_until_signal(options))
}

/// A thread that panics would leave an agent that does half of its work; one that ends is started again.
fn end_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |details| {
        report(details);
        process::abort();
    }));
}

async fn run_until_signal(options: &RunOptions) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let object = options.object()?;
    let pins = PinLock::acquire(&options.place.pin_dir)?;
    let listeners = Listeners::bind(options.admin.0, &options.place.socket()).await?;
    let socket = listeners.socket().to_owned();
    let opened = open(&object, &pins, &options.sizes())?;
    let directory = Directory::new(&options.dir);
    let node_file = NodeFile::open(&directory, &options.node)
        .with_context(|| format!("node {} in {}", options.node, options.dir.display()))?;

    let state = Arc::new(State::new(options.node.clone(), Arc::new(opened.maps)));
    if opened.adopted {
        state.maps.free_abandoned_slots();
    }
    let attacher = Attacher::new(opened.programs, pins, options.use_tcx());
    let (inbox_sender, inbox) = sync_channel(INBOX);

    let monitor = Monitor::open()?;
    let requests = Requests::open()?;
    let mailbox = Mailbox::default();
    let mut before = node_file.status();
    if !opened.adopted {
        before.acknowledged_revision = 0;
        before.acknowledged_pool_revision = 0;
    }
    let core = Core::new(
        Arc::clone(&state),
        requests,
        attacher,
        mailbox.clone(),
        before,
    );
    let writer = node_file.clone();
    mailbox.run(move |status| writer.write(status));
    monitor.run(forward_netlink(inbox_sender.clone()));
    file::run(directory, options.node.clone(), node_file, move |event| {
        // The core ends only with the process.
        let _ = inbox_sender.send(Input::Source(event));
    });
    let (ended, core_ended) = oneshot::channel();
    thread::Builder::new()
        .name("core".to_owned())
        .spawn(move || {
            core.run(&inbox);
            let _ = ended.send(());
        })?;
    sweeper::run(Arc::clone(&state));
    info!(node = options.node, socket = %socket.display(), "running");

    let served = listeners.serve(state, Registry::default());
    tokio::select! {
        _ = terminate.recv() => info!("terminated; forwarding goes on"),
        _ = interrupt.recv() => info!("interrupted; forwarding goes on"),
        result = served => {
            result.context("the admin endpoint")?;
            bail!("the admin endpoint ended");
        }
        _ = core_ended => bail!("the agent's loop ended"),
    }
    // Whoever asks now gets a clear refusal.
    let _ = fs::remove_file(socket);
    Ok(())
}

/// Hands news of the network on. When there is no room, the core is told that something was lost instead, and until it has
/// taken that the kernel keeps further news.
fn forward_netlink(
    inbox: SyncSender<Input>,
) -> impl FnMut(Option<netlink_packet_route::RouteNetlinkMessage>) + Send + 'static {
    move |message| {
        let input = match message {
            Some(message) => Input::Netlink(Box::new(message)),
            None => Input::NetlinkLost,
        };
        if let Err(TrySendError::Full(_)) = inbox.try_send(input) {
            // The core ends only with the process.
            let _ = inbox.send(Input::NetlinkLost);
        }
    }
}
