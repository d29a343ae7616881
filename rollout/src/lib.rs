//! Rollouts: the engine that moves a run, the statistics that judge it, and the rules of the commands that people give to it. Pure.
//!
//! The operator calls [`advance`]; `kubectl sluice` asks [`check`] before it writes a command. Both know the same [`steps`]
//! and the same [`Command`], so that what one promises the other does.
#![forbid(unsafe_code)]

mod analysis;
mod command;
mod engine;
mod split;
mod steps;

pub use analysis::{Analysis, Metric, Verdict};
pub use command::{Command, CommandVerb, FormatError, Refusal, answered, check};
pub use engine::{
    Advanced, Fault, Observation, STEP_DEADLINE_SECONDS, Side, Sides, UNSERVED_SECONDS, advance,
    is_baking, judged_weight,
};
pub use split::split;
pub use steps::{paused_seconds, steps};
