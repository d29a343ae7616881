//! Sluice's operator: admits virtual servers, decides what nodes forward by, and steps rollouts.
//!
//! [`core`] and [`rollout`] are pure; [`standalone`] runs them over the files of a directory.
#![forbid(unsafe_code)]

pub mod core;
pub mod rollout;
pub mod standalone;
