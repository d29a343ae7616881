//! Single rules as tables, and the simulation.

mod flaws;
mod rules;
mod sim;

pub(crate) use flaws::Flaw;
