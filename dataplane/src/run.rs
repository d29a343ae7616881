//! Running the agent: what is started in which order, and how it ends.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::{fs, io, panic, process, thread};

use anyhow::{Context, Result, bail};
use prometheus_client::registry::Registry;
use sluice_agent::admin::Listeners;
use sluice_agent::announce::{self, Announcer, Told};
use sluice_agent::core::{AnnounceOptions, Core, Input};
use sluice_agent::maps::{Attacher, Maps, PinLock, kernel_release, open};
use sluice_agent::netlink::{Monitor, Requests};
use sluice_agent::report::Mailbox;
use sluice_agent::shell::{Shell, Tools};
use sluice_agent::state::State;
use sluice_agent::sweeper;
use sluice_election::Coordination;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{error, info};

use crate::options::RunOptions;
use crate::sources::{OpenSource, Source};

/// What runs, what says when the core's loop has ended, and what lets VIP groups go; none on a node that is detached.
type Started = (Arc<State>, oneshot::Receiver<()>, Option<Announcer>);

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
    let source = Source::configure(options).await?;
    let pins = PinLock::acquire(&options.place.pin_dir)?;
    let listeners = Listeners::bind(options.admin.0, &options.place.socket()).await;
    let socket = listeners.socket().to_owned();
    let source = source.open(&options.node).await?;
    let (state, core_ended, announcer) = match source.detach() {
        Some(generation) => {
            let (state, ended) = stay_detached(options, &pins, source, generation)?;
            (state, ended, None)
        }
        None => start(options, &object, pins, source)?,
    };
    info!(node = options.node, socket = %socket.display(), "running");

    let served = listeners.serve(state, Registry::default());
    tokio::select! {
        _ = terminate.recv() => info!("terminated; forwarding goes on"),
        _ = interrupt.recv() => info!("interrupted; forwarding goes on"),
        () = served => bail!("the admin endpoint ended"),
        _ = core_ended => bail!("the agent's loop ended"),
    }
    if let Some(announcer) = announcer {
        announcer.shut_down();
    }
    // Whoever asks now gets a clear refusal.
    let _ = fs::remove_file(socket);
    Ok(())
}

/// Starts everything: programs and maps, the core, and what it is told by.
fn start(
    options: &RunOptions,
    object: &Path,
    pins: PinLock,
    source: OpenSource,
) -> Result<Started> {
    let opened = open(object, &pins, &options.sizes())?;
    let maps = Arc::new(opened.maps);
    let image = maps.image()?;
    let served = opened.adopted && !image.vips.is_empty();
    if opened.adopted {
        maps.free_abandoned_slots();
    }
    let state = Arc::new(State::new(
        options.node.clone(),
        Some(Arc::clone(&maps)),
        source.state(),
    ));
    let attacher = Attacher::new(opened.programs, pins, options.use_tcx());
    let (inbox_sender, inbox) = sync_channel(INBOX);

    let monitor = Monitor::open()?;
    let requests = Requests::open()?;
    let mailbox = Mailbox::default();
    let mut before = source.status();
    if !opened.adopted {
        before.acknowledged_revision = 0;
        before.acknowledged_pool_revision = 0;
    }
    let announcer = start_announcer(options, &maps, &source, (&state, inbox_sender.clone()));
    let announcer = announcer.inspect_err(|error| error!("VIPs are not announced: {error:#}"));
    let announce = AnnounceOptions {
        adopted: maps.groups(),
        answered: image.answered().collect(),
        stable_time: options.election().stable_time,
        unable: announcer.as_ref().err().map(|error| format!("{error:#}")),
    };
    let announcer = announcer.ok();
    let limits = maps.limits();
    let core = Core::new(&options.node, kernel_release(), limits, before, announce);
    let tools = Tools {
        maps,
        attacher,
        requests,
        announcer: announcer.clone(),
    };
    let shell = Shell::new(Arc::clone(&state), mailbox.clone(), Some(tools));
    source.write_status(mailbox);
    monitor.run(forward_netlink(inbox_sender.clone()));
    source.run(&state, opened.adopted, served, inbox_sender);
    sweeper::run(Arc::clone(&state));
    let ended = in_thread(move || shell.run(core, &inbox))?;
    Ok((state, ended, announcer))
}

/// Starts the announcer's threads.
fn start_announcer(
    options: &RunOptions,
    maps: &Arc<Maps>,
    source: &OpenSource,
    (state, inbox): (&Arc<State>, SyncSender<Input>),
) -> Result<Announcer> {
    let mut settings = options.election();
    let leases = source.leases(settings.request_timeout);
    if leases.is_none() {
        settings.coordination = Coordination::Peers;
    }
    let tools = announce::Tools {
        node: options.node.clone(),
        maps: Arc::clone(maps),
        settings,
        leases,
        counts: Arc::clone(&state.announced),
    };
    // A core that is busy is told later: it may be waiting for the announcer.
    let tell = move |told: Told| inbox.try_send(Input::Announcer(Box::new(told))).is_ok();
    Announcer::start(tools, tell).context("cannot open raw sockets, which need CAP_NET_RAW")
}

/// Starts only what says that this node is detached. What an earlier agent did not take off any more is taken off now.
fn stay_detached(
    options: &RunOptions,
    pins: &PinLock,
    source: OpenSource,
    generation: i64,
) -> Result<(Arc<State>, oneshot::Receiver<()>)> {
    info!("the LoadBalancerNode asks for this node to be detached: nothing is attached");
    let mut requests = Requests::open()?;
    let removed = pins.remove_all(|interface| {
        requests
            .remove_idle_clsact(interface)
            .map_err(io::Error::other)
    })?;
    requests.release_registered()?;
    requests.leave_groups()?;
    for what in removed {
        info!("removed {what}");
    }
    let state = Arc::new(State::new(options.node.clone(), None, source.state()));
    let mailbox = Mailbox::default();
    let core = Core::detached(source.status(), generation);
    let shell = Shell::new(Arc::clone(&state), mailbox.clone(), None);
    source.write_status(mailbox);
    source.run_detached(&state);
    let ended = in_thread(move || {
        let (sender, inbox) = sync_channel(1);
        shell.run(core, &inbox);
        drop(sender);
    })?;
    Ok((state, ended))
}

/// Runs the core's loop. What is returned says when it has ended.
fn in_thread(run: impl FnOnce() + Send + 'static) -> Result<oneshot::Receiver<()>> {
    let (ended, core_ended) = oneshot::channel();
    thread::Builder::new()
        .name("core".to_owned())
        .spawn(move || {
            run();
            let _ = ended.send(());
        })?;
    Ok(core_ended)
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
