//! Sluice's kinds on an API server.

use std::time::Duration;

use anyhow::Result;
use sluice_api::{GROUP, Kind, schema};

use super::account::{Account, has_condition};

/// How long an API server may take to serve new kinds.
const LIMIT: Duration = Duration::from_mins(1);

impl Account {
    /// Gives the API server the definitions of Sluice's kinds, and waits until it serves them.
    pub fn define_kinds(&self) -> Result<()> {
        for kind in Kind::ALL {
            self.apply(&serde_json::to_string(&schema::definition(kind))?)?;
        }
        for kind in Kind::ALL {
            let plural = schema::definition(kind).spec.names.plural;
            self.until(
                &["get", &format!("crd/{plural}.{GROUP}")],
                LIMIT,
                |object| has_condition(object, "Established"),
            )?;
        }
        Ok(())
    }
}
