//! The benchmark: nanoseconds per packet of the data plane's XDP program.
//!
//! A [`wrapper::Wrapper`] program runs under BPF_PROG_TEST_RUN and calls the measured program once per packet; it puts the
//! frame back and chooses the next packet's flow. A [`case::Case`] is measured on an [`instance::Instance`]: a
//! load of the object for itself, with one virtual server and no pins. [`measure`] runs all cases in interleaved rounds and checks
//! of each run that it did what its case says; [`stats`] makes the figures, [`report`] the table and the JSON. [`compare`]
//! does the same for two builds at once, each a [`worker::Worker`] process of its own.

pub mod case;
pub mod compare;
pub mod frame;
pub mod instance;
pub mod measure;
pub mod report;
pub mod stats;
mod sys;
pub mod worker;
pub mod wrapper;
