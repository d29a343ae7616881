//! The real operator on a directory, with agents played by the test.
#![forbid(unsafe_code)]

mod address_pools;
mod bad_input;
mod harness;
mod lifecycle;
mod loss;
mod rollout;
mod silence;
