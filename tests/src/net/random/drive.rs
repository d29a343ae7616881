//! Carries a plan out.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::net::fabric::{DIRECTORS, ServerSpec};
use crate::net::lab::{Lab, Mode};
use crate::net::manifest::Role;
use crate::net::wait::interrupted;

use super::clients;
use super::history::{Disturbance, History};
use super::in_force::{self, Revisions};
use super::ledger::Ledger;
use super::plan::{Action, agents, plan};
use super::service::{Addresses, Edit, Service};
use super::strays::Strays;
use super::verdict::Verdict;

/// Without `MINUTES`: every kind of action happens in it.
const SHORT: Duration = Duration::from_secs(80);
const SHORT_SEED: u64 = 1;

/// How long it takes at most until all nodes have what is wanted, once nothing is done any more.
const SETTLED: Duration = Duration::from_mins(1);
/// How long a director may take that starts without maps.
const REBUILT: Duration = Duration::from_mins(1);
/// How long after that servers may miss in its rings: at most a second, until their next hops are known.
const IN_RINGS: Duration = Duration::from_secs(2);
/// How long a link that is up again loses packets: neighbours are asked for once a second, and followed within two more.
const LINK_RECOVERY: Duration = Duration::from_secs(10);
/// How long packets may be on the way that the old route led.
const ROUTE_RECOVERY: Duration = Duration::from_secs(2);
/// How long after a director's loss connections find out.
const LOSS_RECOVERY: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);
/// From one look at statuses to the next.
const STATUS_LOOK: Duration = Duration::from_millis(400);

/// Which run it is.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    seed: u64,
    length: Duration,
}

impl Settings {
    /// From the variables `SEED` and `MINUTES`. Without minutes it is short, and always the same; else without a seed it is
    /// another one each time.
    pub fn from_environment() -> Result<Self> {
        let number = |name: &str| -> Result<Option<u64>> {
            let Ok(text) = env::var(name) else {
                return Ok(None);
            };
            let number = text.parse();
            Ok(Some(
                number.with_context(|| format!("{name}={text} is no number"))?,
            ))
        };
        let minutes = number("MINUTES")?;
        let seed = match (number("SEED")?, minutes) {
            (Some(seed), _) => seed,
            (None, None) => SHORT_SEED,
            (None, Some(_)) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        };
        let length = minutes.map_or(SHORT, |minutes| Duration::from_secs(60 * minutes));
        Ok(Self { seed, length })
    }
}

/// The network of the run: servers for all modes, and Sluice's daemons without a virtual server.
pub fn build() -> Result<Lab> {
    let servers = Mode::ALL.iter().flat_map(|mode| {
        let servers = mode.servers().map(ServerSpec::new);
        servers.map(|server| match mode {
            Mode::Nat => server.behind_director(),
            Mode::FullNat | Mode::Dr | Mode::Tun => server,
        })
    });
    let servers: Vec<_> = servers.collect();
    let agents = agents();
    let agents: Vec<_> = agents[DIRECTORS.len()..]
        .iter()
        .map(|node| (*node, Role::RealServer))
        .collect();
    Lab::build(&[], &servers, &agents)
}

/// Runs it and prints what happened. Fails if a promise was broken.
pub fn run(lab: &mut Lab, settings: Settings) -> Result<()> {
    let Settings { seed, length } = settings;
    println!("seed {seed}, {} s", length.as_secs());
    // What is said of a manifest that is half written.
    lab.sluice
        .expect_complaint("the last version of this file that was not broken");
    let mut driver = Driver::new(lab)?;
    driver.settle()?;
    let namespace = driver.lab.fabric.client().clone();
    let threads = clients::start(&namespace, &driver.ledger, seed)?;
    let outcome = driver.carry_out(seed, length);
    driver.ledger.finish();
    for thread in threads {
        ensure!(thread.join().is_ok(), "a client's thread panicked");
    }
    driver.look()?;
    let mut verdict = driver.verdict;
    let account = driver.ledger.account().clone();
    verdict.judge(account, &driver.history);
    println!("{verdict}");
    outcome.with_context(|| format!("seed {seed}"))?;
    let broken = verdict.broken();
    ensure!(broken == 0, "{broken} promises broken by seed {seed}");
    Ok(())
}

struct Driver<'a> {
    lab: &'a mut Lab,
    addresses: Addresses,
    services: [Service; 4],
    /// Manifests as they are, by mode.
    files: BTreeMap<Mode, BTreeMap<String, String>>,
    ledger: Arc<Ledger>,
    history: History,
    strays: Strays,
    verdict: Verdict,
    /// When statuses were looked at.
    looked: Duration,
}

impl<'a> Driver<'a> {
    /// Gives the first manifests.
    fn new(lab: &'a mut Lab) -> Result<Self> {
        let mut addresses = Addresses::new();
        for name in Mode::ALL.into_iter().flat_map(Mode::servers) {
            addresses.insert(name, lab.fabric.address(name)?);
        }
        let strays = Strays::count(&lab.fabric, &addresses)?;
        let mut driver = Self {
            lab,
            addresses,
            services: Mode::ALL.map(Service::new),
            files: BTreeMap::new(),
            ledger: Arc::new(Ledger::new()),
            history: History::default(),
            strays,
            verdict: Verdict::default(),
            looked: Duration::ZERO,
        };
        for mode in Mode::ALL {
            driver.disturb(Disturbance::Edited(mode));
            driver.write(mode, None)?;
            driver.await_in_force(Disturbance::Edited(mode), mode);
        }
        Ok(driver)
    }

    fn carry_out(&mut self, seed: u64, length: Duration) -> Result<()> {
        let start = self.ledger.now();
        for step in plan(seed, length) {
            while self.ledger.now() < start + step.at {
                self.look()?;
                let left = (start + step.at).saturating_sub(self.ledger.now());
                thread::sleep(left.min(LOOK));
            }
            let now = self.ledger.now();
            self.history.tell(now, step.action.to_string());
            *self.verdict.actions.entry(step.action.kind()).or_default() += 1;
            self.perform(step.action)
                .with_context(|| format!("{} at {:.1} s", step.action, now.as_secs_f64()))?;
        }
        self.settle()
    }

    fn perform(&mut self, action: Action) -> Result<()> {
        match action {
            Action::Edit(mode, edit) => self.edit(mode, edit),
            Action::WriteHalf(mode) => self.write_in_place(mode, 2),
            Action::WriteWhole(mode) => self.write_in_place(mode, 1),
            Action::KillAgent(node) => self.lab.sluice.kill_agent(node),
            Action::StartAgent(node) => self.lab.sluice.restart_agent(node),
            Action::KillOperator => self.lab.sluice.kill_operator(),
            Action::StartOperator => self.lab.sluice.restart_operator(),
            Action::CutLink(node) => {
                self.disturb(Disturbance::Outage(node));
                self.lab.fabric.far_end(node).cut()
            }
            Action::MendLink(node) => {
                self.lab.fabric.far_end(node).mend()?;
                self.calm_after(LINK_RECOVERY, Disturbance::Outage(node));
                Ok(())
            }
            Action::Divert(director) => self.divert(director),
            Action::Return => self.spread_over_both(),
            Action::LoseDirector(director) => self.lose(director),
            Action::RebuildDirector(director) => self.rebuild(director),
        }
    }

    fn edit(&mut self, mode: Mode, edit: Edit) -> Result<()> {
        let before = self.services[mode as usize].clone();
        let after = before.edited(edit).context("this edit is not possible")?;
        self.services[mode as usize] = after.clone();
        self.disturb(Disturbance::Edited(mode));
        for (server, name) in mode.servers().into_iter().enumerate() {
            if before.keeps(server) && !after.keeps(server) {
                self.disturb(Disturbance::ServerOut(name));
            }
        }
        if !after.has_spare() && before.has_spare() {
            self.ledger.set_spare(mode, false);
            self.disturb(Disturbance::SpareAway(mode));
        }
        // A server that moves is for a moment in both pools, and never in none.
        let first = match edit {
            Edit::Move(server) => Some(after.pool_of(server)),
            _ => None,
        };
        self.write(mode, first)?;
        self.await_in_force(Disturbance::Edited(mode), mode);
        for (server, name) in mode.servers().into_iter().enumerate() {
            if !before.keeps(server) && after.keeps(server) {
                self.await_in_force(Disturbance::ServerOut(name), mode);
            }
        }
        if after.has_spare() && !before.has_spare() {
            self.await_in_force(Disturbance::SpareAway(mode), mode);
        }
        Ok(())
    }

    /// Replaces manifests of the mode that are not as they should be, that of the pool `first` before others, and removes
    /// those that should not be there.
    fn write(&mut self, mode: Mode, first: Option<usize>) -> Result<()> {
        let mut files = self.services[mode as usize].files(&self.addresses);
        if let Some(first) = first {
            files.swap(0, first);
        }
        let mut left = self.files.remove(&mode).unwrap_or_default();
        for (name, text) in &files {
            if left.remove(name).as_ref() != Some(text) {
                self.lab.sluice.apply_text(name, text)?;
            }
        }
        for name in left.keys() {
            self.lab.sluice.remove(name)?;
        }
        self.files.insert(mode, files.into_iter().collect());
        Ok(())
    }

    /// Truncates the manifest of the mode's virtual servers and writes one of so many `parts` of it.
    fn write_in_place(&mut self, mode: Mode, parts: usize) -> Result<()> {
        let name = self.services[mode as usize].file();
        let text = self.files.get(&mode).and_then(|files| files.get(name));
        let text = text.context("there is no such manifest")?;
        let path = self.lab.sluice.directory()?.join(format!("{name}.yaml"));
        fs::write(path, &text[..text.len() / parts])?;
        Ok(())
    }

    fn divert(&mut self, director: &str) -> Result<()> {
        self.disturb(Disturbance::Diverted);
        let others = DIRECTORS.into_iter().filter(|name| *name != director);
        self.lab.fabric.spread_over(&others.collect::<Vec<_>>())
    }

    fn spread_over_both(&mut self) -> Result<()> {
        self.lab.fabric.spread_over(&DIRECTORS)?;
        self.calm_after(ROUTE_RECOVERY, Disturbance::Diverted);
        Ok(())
    }

    fn lose(&mut self, director: &'static str) -> Result<()> {
        self.disturb(Disturbance::Lost(director));
        self.disturb(Disturbance::Outage(director));
        self.lab.fabric.far_end(director).cut()?;
        self.divert(director)?;
        self.lab.sluice.kill_agent(director)?;
        self.lab.sluice.lose_maps(director)
    }

    fn rebuild(&mut self, director: &'static str) -> Result<()> {
        self.lab.fabric.far_end(director).mend()?;
        self.lab.sluice.restart_agent(director)?;
        let start = self.ledger.now();
        let mut ready = None;
        while ready.is_none_or(|since| self.ledger.now() < since + IN_RINGS) {
            let now = self.ledger.now();
            ensure!(now < start + REBUILT, "{director} is not ready");
            ready = ready.or_else(|| self.lab.sluice.is_ready(director).then_some(now));
            self.look()?;
            thread::sleep(LOOK);
        }
        self.calm_after(LOSS_RECOVERY, Disturbance::Lost(director));
        self.calm_after(LINK_RECOVERY, Disturbance::Outage(director));
        self.spread_over_both()
    }

    /// Waits until all nodes have what is wanted.
    fn settle(&mut self) -> Result<()> {
        let start = self.ledger.now();
        while let Some(mode) = Mode::ALL
            .into_iter()
            .find(|mode| self.history.awaits(*mode))
        {
            if self.ledger.now() > start + SETTLED {
                let service = &self.services[mode as usize];
                bail!("{mode} does not settle: {service:#?}");
            }
            self.look()?;
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Notices what is in force by now, and answers that came from elsewhere.
    fn look(&mut self) -> Result<()> {
        ensure!(!interrupted(), "interrupted");
        let now = self.ledger.now();
        if now < self.looked + STATUS_LOOK {
            return Ok(());
        }
        self.looked = now;
        let sluice = &self.lab.sluice;
        let awaited = Mode::ALL
            .into_iter()
            .filter(|mode| self.history.awaits(*mode));
        let decided = awaited.filter_map(|mode| {
            let service = &self.services[mode as usize];
            Some((mode, in_force::decided(service, sluice, &self.addresses)?))
        });
        let decided: Vec<_> = decided.collect();
        if !decided.is_empty() {
            let acknowledged = in_force::acknowledged(sluice);
            let is_live =
                |decided: Revisions| decided.iter().zip(acknowledged).all(|(d, a)| *d <= a);
            for (mode, _) in decided.into_iter().filter(|(_, decided)| is_live(*decided)) {
                self.history.in_force(self.ledger.now(), mode);
                self.ledger
                    .set_spare(mode, self.services[mode as usize].has_spare());
            }
        }
        self.strays
            .look(now, &self.lab.fabric, &self.history, &mut self.verdict)
    }

    fn disturb(&mut self, what: Disturbance) {
        self.history.begin(self.ledger.now(), what);
    }

    fn calm_after(&mut self, recovery: Duration, what: Disturbance) {
        self.history.end(self.ledger.now() + recovery, what);
    }

    fn await_in_force(&mut self, what: Disturbance, mode: Mode) {
        self.history.end_in_force(what, mode);
    }
}
