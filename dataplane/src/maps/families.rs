//! Maps of which there is one for each address family.

use sluice_abi::MapName;
use sluice_planner::ByFamily;

use super::sys::{Plain, RawMap};
use super::table::Hash;
use super::{Error, map_error};

/// The two maps of one kind, with their keys.
#[derive(Debug)]
pub(super) struct Families<K4, K6, V> {
    v4: Named<K4, V>,
    v6: Named<K6, V>,
}

#[derive(Debug)]
struct Named<K, V> {
    name: MapName,
    map: Hash<K, V>,
}

impl<K4: Plain, K6: Plain, V: Plain> Families<K4, K6, V> {
    pub(super) fn new(v4: (MapName, RawMap), v6: (MapName, RawMap)) -> Result<Self, Error> {
        Ok(Self {
            v4: Named::new(v4)?,
            v6: Named::new(v6)?,
        })
    }

    /// What either holds at least.
    pub(super) fn max_entries(&self) -> u32 {
        let (v4, v6) = (&self.v4.map, &self.v6.map);
        v4.max_entries().min(v6.max_entries())
    }

    pub(super) fn set(&self, key: &ByFamily<K4, K6>, value: &V) -> Result<(), Error> {
        match key {
            ByFamily::V4(key) => self.v4.set(key, value),
            ByFamily::V6(key) => self.v6.set(key, value),
        }
    }

    /// Removes a key; one that is not there is no error.
    pub(super) fn remove(&self, key: &ByFamily<K4, K6>) -> Result<(), Error> {
        match key {
            ByFamily::V4(key) => self.v4.remove(key),
            ByFamily::V6(key) => self.v6.remove(key),
        }
    }

    /// All entries of both.
    pub(super) fn entries<K: From<K4> + From<K6>>(
        &self,
    ) -> Result<impl Iterator<Item = (K, V)> + use<K, K4, K6, V>, Error> {
        let v4 = self.v4.entries()?.into_iter();
        let v6 = self.v6.entries()?.into_iter();
        let v4 = v4.map(|(key, value)| (key.into(), value));
        let v6 = v6.map(|(key, value)| (key.into(), value));
        Ok(v4.chain(v6))
    }
}

impl<K: Plain, V: Plain> Named<K, V> {
    fn new((name, map): (MapName, RawMap)) -> Result<Self, Error> {
        let map = Hash::new(map).map_err(map_error(name, "use it"))?;
        Ok(Self { name, map })
    }

    fn set(&self, key: &K, value: &V) -> Result<(), Error> {
        let result = self.map.set(key, value);
        result.map_err(map_error(self.name, "write it"))
    }

    fn remove(&self, key: &K) -> Result<(), Error> {
        let result = self.map.remove(key);
        result.map_err(map_error(self.name, "write it"))
    }

    fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        let entries = self.map.entries();
        entries.map_err(map_error(self.name, "read it"))
    }
}
