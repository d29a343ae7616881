//! What goes wrong, and when.

use super::rng::Rng;
use super::segment::Loss;
use super::server::Reach;
use super::world::{Happening, World};
use super::{MS, SECOND};
use crate::{Event, Health};

/// A change of the world.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// A port dies or comes back though the link stays; on one path, or on all.
    Port {
        node: usize,
        path: Option<usize>,
        works: bool,
    },
    /// A link, and the node knows.
    Link {
        node: usize,
        works: bool,
    },
    Parts {
        path: Option<usize>,
        parts: Vec<u8>,
    },
    Lose(Loss),
    Gateway(bool),
    Reach {
        node: Option<usize>,
        reach: Reach,
    },
    Freeze(usize),
    Thaw(usize),
    Kill(usize),
    /// Kills the agent if it was told to end.
    KillEnding(usize),
    Start(usize),
    Shutdown(usize),
    Crash(usize),
    Boot(usize),
    Pause(usize),
    Resume(usize),
    Drain {
        node: usize,
        is_drained: bool,
    },
}

impl Fault {
    pub(crate) fn happen(self, world: &mut World) {
        world.note(|| format!("** {self:?}"));
        world.check.changed_ns = world.now_ns;
        match self {
            Self::Port { node, path, works } => {
                for (index, segment) in world.segments.iter_mut().enumerate() {
                    if path.is_none_or(|path| path == index) {
                        segment.ports[node] = works;
                    }
                }
                world.nodes[node].whole_ns = world.now_ns;
                let mut segments = world.segments.iter();
                let is_deaf = segments.any(|segment| !segment.ports[node]);
                world.nodes[node].deaf_ns = is_deaf.then_some(world.now_ns);
            }
            Self::Link { node, works } => {
                for segment in &mut world.segments {
                    segment.ports[node] = works;
                }
                world.nodes[node].deaf_ns = None;
                world.nodes[node].whole_ns = world.now_ns;
                set_health(world, node, works);
            }
            Self::Parts { path, parts } => {
                for (index, segment) in world.segments.iter_mut().enumerate() {
                    if path.is_none_or(|path| path == index) {
                        segment.parts.clone_from(&parts);
                    }
                }
                for (node, part) in parts.iter().enumerate() {
                    if *part != 0 {
                        world.nodes[node].whole_ns = world.now_ns;
                    }
                }
            }
            Self::Lose(loss) => {
                for segment in &mut world.segments {
                    segment.loss = loss;
                }
            }
            Self::Gateway(works) => {
                for segment in &mut world.segments {
                    segment.has_gateway = works;
                }
            }
            Self::Reach { node, reach } => set_reach(world, node, reach),
            other => other.befall(world),
        }
    }

    /// What concerns one machine.
    fn befall(self, world: &mut World) {
        match self {
            Self::Freeze(node) => world.nodes[node].is_frozen = world.elector(node).is_some(),
            Self::Thaw(node) => {
                world.nodes[node].is_frozen = false;
                rise(world, node);
            }
            Self::Kill(node) => world.end_agent(node),
            Self::Start(node) => start(world, node),
            Self::KillEnding(node) => kill_ending(world, node),
            Self::Shutdown(node) => {
                world.tell(node, Event::Shutdown);
                let time_ns = world.now_ns + 2 * SECOND;
                world.at(time_ns, Happening::Fault(Self::KillEnding(node)));
            }
            Self::Crash(node) => world.crash(node),
            Self::Boot(node) => {
                world.nodes[node].is_up = true;
                start(world, node);
            }
            Self::Pause(node) => world.nodes[node].paused_ns = Some(world.now_ns),
            Self::Resume(node) => {
                if let Some(paused_ns) = world.nodes[node].paused_ns.take() {
                    world.nodes[node].clock.stood_ns += world.now_ns - paused_ns;
                    world.nodes[node].resumed_ns = Some(world.now_ns);
                    rise(world, node);
                }
            }
            Self::Drain { node, is_drained } => {
                world.nodes[node].is_drained = is_drained;
                world.tell(node, Event::Drain(is_drained));
            }
            _ => {}
        }
    }
}

fn kill_ending(world: &mut World, node: usize) {
    if world.elector(node).is_some_and(|elector| elector.is_ending) {
        world.end_agent(node);
    }
}

fn start(world: &mut World, node: usize) {
    if world.nodes[node].is_up && world.elector(node).is_none_or(|elector| elector.is_ending) {
        world.nodes[node].whole_ns = world.now_ns;
        world.start_agent(node);
    }
}

fn rise(world: &mut World, node: usize) {
    world.nodes[node].whole_ns = world.now_ns;
    world.wake(node);
}

fn set_health(world: &mut World, node: usize, works: bool) {
    let health = if works { Health::Whole } else { Health::Broken };
    world.nodes[node].health = health;
    world.tell(node, Event::Health(health));
}

fn set_reach(world: &mut World, node: Option<usize>, reach: Reach) {
    for index in 0..world.nodes.len() {
        if node.is_none_or(|node| node == index) {
            world.nodes[index].reach = reach;
            if reach == Reach::Ok && world.setup.has_watch {
                world.news(index, 1000 * MS);
            }
        }
    }
}

/// Draws faults until then. Each ends by then too.
pub(crate) fn plan(world: &mut World, end_ns: u64, is_without_pauses: bool) {
    let mut rng = Rng::new(world.rng.next());
    let count = rng.range(1, 8);
    for _ in 0..count {
        let start_ns = rng.range(SECOND, end_ns - 2 * SECOND);
        let most_ns = if rng.chance(400) {
            3 * SECOND
        } else {
            20 * SECOND
        };
        let length_ns = rng.range(50 * MS, most_ns);
        let stop_ns = (start_ns + length_ns).min(end_ns);
        let (fault, end) = draw(world, &mut rng, is_without_pauses);
        world.at(start_ns, Happening::Fault(fault));
        world.at(stop_ns, Happening::Fault(end));
    }
    if rng.chance(200) {
        let node = rng.index(world.nodes.len());
        let at_ns = rng.range(5 * SECOND, end_ns - 10 * SECOND);
        let (slow, whole) = (Reach::SlowReply, Reach::Ok);
        let node_ns = [
            (
                at_ns - 4 * SECOND,
                Fault::Reach {
                    node: Some(node),
                    reach: slow,
                },
            ),
            (at_ns, Fault::Freeze(node)),
            (at_ns + 9 * SECOND, Fault::Thaw(node)),
            (
                at_ns + 9 * SECOND,
                Fault::Reach {
                    node: Some(node),
                    reach: whole,
                },
            ),
        ];
        for (time_ns, fault) in node_ns {
            world.at(time_ns, Happening::Fault(fault));
        }
    }
    for fault in healed(world) {
        world.at(end_ns, Happening::Fault(fault));
    }
}

/// All that ends faults of whichever kind.
fn healed(world: &World) -> Vec<Fault> {
    let nodes = world.nodes.len();
    let mut healed = vec![
        Fault::Parts {
            path: None,
            parts: vec![0; nodes],
        },
        Fault::Lose(Loss::None),
        Fault::Gateway(true),
        Fault::Reach {
            node: None,
            reach: Reach::Ok,
        },
    ];
    for node in 0..nodes {
        healed.extend([
            Fault::Link { node, works: true },
            Fault::Resume(node),
            Fault::Thaw(node),
            Fault::Drain {
                node,
                is_drained: false,
            },
            Fault::Boot(node),
        ]);
    }
    healed
}

/// A fault and what ends it.
fn draw(world: &World, rng: &mut Rng, is_without_pauses: bool) -> (Fault, Fault) {
    let nodes = world.nodes.len();
    let node = rng.index(nodes);
    let paths = world.segments.len();
    let path = rng.chance(400).then(|| rng.index(paths));
    match rng.below(16) {
        0 | 1 => (
            Fault::Port {
                node,
                path,
                works: false,
            },
            Fault::Port {
                node,
                path,
                works: true,
            },
        ),
        2 => (
            Fault::Link { node, works: false },
            Fault::Link { node, works: true },
        ),
        3 | 4 => {
            let parts = (0..nodes).map(|_| u8::from(rng.chance(400))).collect();
            let whole = vec![0; world.nodes.len()];
            (
                Fault::Parts { path, parts },
                Fault::Parts { path, parts: whole },
            )
        }
        5 => (Fault::Lose(draw_loss(rng, node)), Fault::Lose(Loss::None)),
        6 => (Fault::Gateway(false), Fault::Gateway(true)),
        7..=9 => {
            let node = rng.chance(500).then_some(node);
            let kinds = [
                Reach::Slow,
                Reach::Hung,
                Reach::Hung,
                Reach::Refused,
                Reach::ReadOnly,
            ];
            let reach = kinds[rng.index(5)];
            let whole = Reach::Ok;
            (
                Fault::Reach { node, reach },
                Fault::Reach { node, reach: whole },
            )
        }
        10 => (Fault::Freeze(node), Fault::Thaw(node)),
        11 => (Fault::Kill(node), Fault::Start(node)),
        12 => (Fault::Crash(node), Fault::Boot(node)),
        13 if is_without_pauses => (Fault::Freeze(node), Fault::Thaw(node)),
        13 => (Fault::Pause(node), Fault::Resume(node)),
        14 => (
            Fault::Drain {
                node,
                is_drained: true,
            },
            Fault::Drain {
                node,
                is_drained: false,
            },
        ),
        _ => (Fault::Shutdown(node), Fault::Start(node)),
    }
}

fn draw_loss(rng: &mut Rng, node: usize) -> Loss {
    if rng.chance(500) {
        return Loss::Random(rng.range(50, 400));
    }
    Loss::Bursts {
        per_mille: rng.range(50, 300),
        node,
        spares_gateway: rng.chance(500),
    }
}
