//! Access to the Kubernetes API server, for operator, agent and CLI alike.
//!
//! | module | does |
//! |---|---|
//! | [`connect`] | finds the API server |
//! | [`error`] | time limits of requests, and the words for what went wrong |
//! | [`watched`] | the kinds that a program watches, one line each |
//! | [`watch`] | reads a kind and its changes |
//! | [`store`] | keeps what is known of a kind |
//! | [`identity`] | tells whether the server still holds the state that was read from it |
//! | [`lease`] | the Leases by which nodes say that they live |
//! | [`clock`] | the API server's clock |
#![forbid(unsafe_code)]

pub mod back_off;
pub mod clock;
pub mod connect;
pub mod error;
pub mod identity;
mod kind;
pub mod lease;
mod object;
#[cfg(test)]
mod scripted;
pub mod store;
pub mod watch;
pub mod watched;

pub use kind::Kind;
pub use object::{Event, Item, Stamp};
