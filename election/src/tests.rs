//! Single rules as tables, and the simulation.

mod flaws;
mod play;
mod rules;
mod sim;
mod two_paths;

pub(crate) use flaws::Flaw;
