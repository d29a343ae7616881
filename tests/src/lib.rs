//! What the tests of Sluice are made of.
#![forbid(unsafe_code)]

pub mod net;
