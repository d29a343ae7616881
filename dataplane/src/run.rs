//! Running the agent: what is started in which order, and how it ends.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::{fs, io, panic, process, thread};

use anyhow::{Context, Result, bail};
use prometheus_client::registry::Registry;
use sluice_agent::admin::Listeners;
use sluice_agent::announce::{self, Announcer, Place, Plan, Told};
use sluice_agent::core::{AnnounceOptions, Core, Input};
use sluice_agent::health::{self, Checker};
use sluice_agent::maps::{Attacher, Maps, Opened, PinLock, Programs, kernel_release, open};
use sluice_agent::netlink::{Monitor, Requests};
use sluice_agent::report::Mailbox;
use sluice_agent::shell::{Shell, Tools};
use sluice_agent::signals;
use sluice_agent::source::SourceState;
use sluice_agent::state::State;
use sluice_agent::sweeper;
use sluice_election::Coordination;
use sluice_planner::Image;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

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
    let around = (
        source.state(),
        source.leases(options.election().request_timeout),
    );
    let prepare = |memory| prepare(options, &object, &pins, &around, memory);
    // What was announced is announced again before anybody waits for the API server.
    let memory = announce::Memory::read(&options.place.memory());
    let early = memory.map(|memory| prepare(Some(memory))).transpose()?;
    let source = source.open(&options.node).await?;
    let (state, core_ended, announcer) = if let Some(generation) = source.detach() {
        if let Some(announcer) = early.and_then(|early| early.announcer.ok()) {
            announcer.shut_down();
        }
        let (state, ended) = stay_detached(options, &pins, source, generation)?;
        (state, ended, None)
    } else {
        let prepared = early.map_or_else(|| prepare(None), Ok)?;
        start(options, prepared, pins, source)?
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

/// What there is before the source is asked for anything.
struct Prepared {
    maps: Arc<Maps>,
    programs: Programs,
    image: Image,
    /// Whether maps of an earlier agent were taken over.
    adopted: bool,
    state: Arc<State>,
    inbox: (SyncSender<Input>, Receiver<Input>),
    /// It announces already if something was remembered.
    announcer: Result<Announcer>,
    is_remembered: bool,
}

/// Opens programs and maps, and starts the announcer: by what an earlier agent remembered, if there is that.
fn prepare(
    options: &RunOptions,
    object: &Path,
    pins: &PinLock,
    (source, leases): &(Arc<SourceState>, Option<Place>),
    memory: Option<announce::Memory>,
) -> Result<Prepared> {
    let Opened {
        maps,
        programs,
        adopted,
    } = open(object, pins, &options.sizes())?;
    let maps = Arc::new(maps);
    let image = maps.image()?;
    if adopted {
        maps.free_abandoned_slots();
    }
    let memory = memory.filter(|_| adopted);
    let state = State::new(
        options.node.clone(),
        Some(Arc::clone(&maps)),
        Arc::clone(source),
    );
    let state = Arc::new(state);
    let inbox = sync_channel(INBOX);
    let mut settings = options.election();
    if leases.is_none() {
        settings.coordination = Coordination::Peers;
    }
    let tools = announce::Tools {
        node: options.node.clone(),
        maps: Arc::clone(&maps),
        settings,
        memory: leases.is_some().then(|| options.place.memory()),
        leases: leases.clone(),
        counts: Arc::clone(&state.announced),
        is_server_lost: memory.as_ref().is_some_and(|memory| memory.lacks_server),
    };
    // A core that is busy is told later: it may be waiting for the announcer.
    let sender = inbox.0.clone();
    let tell = move |told: Told| sender.try_send(Input::Announcer(Box::new(told))).is_ok();
    let announcer = Announcer::start(tools, tell)
        .context("cannot open raw sockets, which need CAP_NET_RAW")
        .inspect_err(|error| error!("VIPs are not announced: {error:#}"));
    let mut is_remembered = false;
    if let (Ok(announcer), Some(memory)) = (&announcer, &memory) {
        match remembered(memory, &image) {
            Ok(plan) => {
                is_remembered = true;
                announcer.plan(plan);
            }
            Err(error) => warn!("nothing is announced before the API server answers: {error:#}"),
        }
    }
    Ok(Prepared {
        maps,
        programs,
        image,
        adopted,
        state,
        inbox,
        announcer,
        is_remembered,
    })
}

/// What an earlier agent announced, in the network as it is now.
fn remembered(memory: &announce::Memory, image: &Image) -> Result<Plan> {
    let mut requests = Requests::open()?;
    let gateways = requests.default_gateways()?.into_iter().collect();
    Ok(memory.plan(image, &requests.table()?, &gateways))
}

/// Starts everything else: the core, and what it is told by.
fn start(
    options: &RunOptions,
    prepared: Prepared,
    pins: PinLock,
    source: OpenSource,
) -> Result<Started> {
    let Prepared {
        maps,
        programs,
        image,
        adopted,
        state,
        inbox: (inbox_sender, inbox),
        announcer,
        is_remembered,
    } = prepared;
    let served = adopted && !image.vips.is_empty();
    let attacher = Attacher::new(programs, pins, options.use_tcx());
    let monitor = Monitor::open()?;
    let requests = Requests::open()?;
    let mailbox = Mailbox::default();
    let mut before = source.status();
    if !adopted {
        before.acknowledged_revision = 0;
        before.acknowledged_pool_revision = 0;
    }
    let announce = AnnounceOptions {
        adopted: maps.groups(),
        answered: image.answered().collect(),
        stable_time: options.election().stable_time,
        is_remembered,
        unable: announcer.as_ref().err().map(|error| format!("{error:#}")),
    };
    let announcer = announcer.ok();
    let limits = maps.limits();
    let known = health::Memory::read(&options.place.known_servers());
    let known = if adopted {
        known
    } else {
        health::Memory::default()
    };
    let core = Core::new(
        &options.node,
        kernel_release(),
        limits,
        before,
        announce,
        known.clone(),
    );
    let tools = health::Tools {
        node: options.node.clone(),
        memory: known,
        file: options.place.known_servers(),
        counts: Arc::clone(&state.checked),
    };
    // A core that is busy is told later.
    let sender = inbox_sender.clone();
    let tell = move |told| sender.try_send(Input::Checker(Box::new(told))).is_ok();
    let checker = Checker::start(tools, tell)
        .inspect_err(|error| error!("servers are not checked, and all take flows: {error}"))
        .ok();
    let tools = Tools {
        maps,
        attacher,
        requests,
        announcer: announcer.clone(),
        checker,
    };
    let shell = Shell::new(Arc::clone(&state), mailbox.clone(), Some(tools));
    source.write_status(mailbox);
    signals::run(Arc::clone(&state), source.signals_writer());
    monitor.run(forward_netlink(inbox_sender.clone()));
    source.report_signals(&state, options.kubernetes.operator_token.as_deref());
    source.run(&state, adopted, served, inbox_sender);
    sweeper::run(Arc::clone(&state));
    let ended = in_thread(move || shell.run(core, &inbox))?;
    Ok((state, ended, announcer))
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
    for file in [options.place.memory(), options.place.known_servers()] {
        let _ = fs::remove_file(file);
    }
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
