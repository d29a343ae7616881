//! VIP groups in `GROUPS`: until when the programs answer for their addresses.
//!
//! Deadlines outlive the agent. Whoever adopts the maps finds a group's index by the hash of its name, and the node goes on
//! answering meanwhile, until the deadline.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_abi::{GROUP_DEADLINE, GROUP_NAME, GROUP_WORDS, MapName};

use super::{Error, Maps, map_error};

/// A VIP group that has an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    /// Index in `GROUPS`, below [`sluice_abi::MAX_GROUPS`].
    pub index: u32,
    /// [`sluice_abi::group_hash`] of its name.
    pub hash: u64,
    /// Until when the programs answer, in nanoseconds of `CLOCK_MONOTONIC`; 0 = they do not. It may be past.
    pub until_ns: u64,
}

impl Maps {
    /// Has the programs answer for the group at an index until `until_ns` of `CLOCK_MONOTONIC`. `hash` is
    /// [`sluice_abi::group_hash`] of its name. An index that another group had answers for nobody in between. One thread
    /// arms and disarms.
    ///
    /// # Errors
    /// There is no such index.
    pub fn arm(&self, index: u32, hash: u64, until_ns: u64) -> Result<(), Error> {
        let group = self.group(index)?;
        if group[GROUP_NAME].load(Ordering::Relaxed) != hash {
            group[GROUP_DEADLINE].store(0, Ordering::SeqCst);
            group[GROUP_NAME].store(hash, Ordering::SeqCst);
        }
        group[GROUP_DEADLINE].store(until_ns, Ordering::SeqCst);
        Ok(())
    }

    /// Has the programs answer no more for the group at an index, which keeps it. A packet that is in a program now may still
    /// be answered; [`Maps::grace`] waits for it.
    ///
    /// # Errors
    /// There is no such index.
    pub fn disarm(&self, index: u32) -> Result<(), Error> {
        self.group(index)?[GROUP_DEADLINE].store(0, Ordering::SeqCst);
        Ok(())
    }

    /// Gives an index back: no group has it.
    ///
    /// # Errors
    /// There is no such index.
    pub fn forget_group(&self, index: u32) -> Result<(), Error> {
        self.disarm(index)?;
        self.group(index)?[GROUP_NAME].store(0, Ordering::SeqCst);
        Ok(())
    }

    /// The groups that have an index, in the order of these.
    pub fn groups(&self) -> Vec<Group> {
        let entries = (0..).zip(self.groups.words().chunks_exact(GROUP_WORDS));
        let groups = entries.map(|(index, words)| Group {
            index,
            hash: words[GROUP_NAME].load(Ordering::SeqCst),
            until_ns: words[GROUP_DEADLINE].load(Ordering::SeqCst),
        });
        groups.filter(|group| group.hash != 0).collect()
    }

    fn group(&self, index: u32) -> Result<&[AtomicU64], Error> {
        let mut entries = self.groups.words().chunks_exact(GROUP_WORDS);
        let entry = entries.nth(index as usize);
        let missing = || io::Error::other(format!("no index {index}"));
        entry
            .ok_or_else(missing)
            .map_err(map_error(MapName::Groups, "write it"))
    }
}
