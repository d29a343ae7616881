//! Random tables and random packets, all from one seed.

mod asks;
mod rng;
mod traffic;
mod world;

pub use rng::Rng;
pub use traffic::{Shot, Traffic};
pub use world::{Family, Target, World};
