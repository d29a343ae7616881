//! Sluice's operator: admits virtual servers, decides what nodes forward by, and steps rollouts.
//!
//! [`core`] is pure; [`standalone`] runs it over the files of a directory, [`kube`] over the Kubernetes
//! API. [`stream`] takes what agents tell of signals. [`admin`] tells of the process.
#![forbid(unsafe_code)]

pub mod admin;
pub mod core;
pub mod kube;
mod managed;
pub mod metrics;
mod order;
mod sets;
pub mod settings;
pub mod standalone;
pub mod stream;
