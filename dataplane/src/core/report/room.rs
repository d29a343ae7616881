//! Which tables have little room left.
//!
//! A table is told from the higher mark on until it is below the lower one, and not how much of it is used: the status of a
//! table about which something changes all the time is not to change with it.

use std::collections::BTreeSet;

use crate::state::Capacity;

/// Percent of a table from which on it is told.
const TOLD_FROM: u64 = 90;
/// Percent of a table up to which it is told.
const TOLD_TO: u64 = 80;

/// Names of the tables that are nearly full.
#[derive(Debug, Default)]
pub(super) struct NearlyFull(BTreeSet<&'static str>);

impl NearlyFull {
    /// Takes in how much of each table is used.
    pub(super) fn look(&mut self, tables: &[Capacity]) {
        let before = std::mem::take(&mut self.0);
        let is_told = |table: &&Capacity| {
            let from = if before.contains(table.name) {
                TOLD_TO
            } else {
                TOLD_FROM
            };
            table.used * 100 >= table.limit * from
        };
        let told = tables.iter().filter(is_told);
        self.0 = told.map(|table| table.name).collect();
    }

    /// What to tell of each.
    pub(super) fn texts(&self, tables: &[Capacity]) -> Vec<String> {
        let told = tables.iter().filter(|table| self.0.contains(table.name));
        let text = |table: &Capacity| {
            format!(
                "{} holds {TOLD_TO} % or more of its {} entries: remove virtual servers, servers or sources, or give the agent \
                 larger maps, before something finds no room",
                table.name, table.limit
            )
        };
        told.map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_told_from_one_mark_to_another() {
        let mut nearly_full = NearlyFull::default();
        let mut told = |used| {
            let table = |name, used| Capacity {
                name,
                limit: 1000,
                used,
            };
            let tables = [table("Heads", 10), table("Servers", used)];
            nearly_full.look(&tables);
            nearly_full.texts(&tables)
        };
        for (used, is_told) in [
            (899, false),
            (900, true),
            (1000, true),
            (800, true),
            (799, false),
            (899, false),
        ] {
            let texts = told(used);
            assert_eq!(texts.len(), usize::from(is_told), "{used}: {texts:?}");
            let mut texts = texts.iter();
            assert!(texts.all(|text| text.starts_with("Servers holds 80 % or more of its 1000")));
        }
    }
}
