//! Intended and actual maps side by side.

use std::collections::BTreeSet;

use serde::Serialize;
use sluice_planner::Image;

use crate::state::State;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dump {
    node: String,
    acknowledged_revision: u64,
    acknowledged_pool_revision: u64,
    not_ready: Vec<String>,
    exceptions: Vec<String>,
    /// Lines of `intended` that are not in `actual`.
    missing: Vec<String>,
    /// Lines of `actual` that are not in `intended`.
    unexpected: Vec<String>,
    intended: Vec<String>,
    actual: Vec<String>,
}

/// The last plan's maps beside those in the kernel now. While the core applies a plan they differ.
pub(super) fn json(state: &State) -> Result<String, String> {
    let maps = state
        .maps()
        .ok_or("the node is detached: there are no maps")?;
    let actual = maps.image().map_err(|error| error.to_string())?;
    let published = state.published();
    let planner = published.planner.as_ref();
    let intended = planner.map(|planner| planner.read().image().clone());
    let (intended, actual) = (lines(&intended.unwrap_or_default()), lines(&actual));
    let exception = |exception: &sluice_api::NodeException| {
        let (kind, namespace) = (exception.kind, &exception.namespace);
        let (name, reason) = (&exception.name, &exception.reason);
        format!(
            "{kind:?} {namespace}/{name}: {reason}: {}",
            exception.message
        )
    };
    let dump = Dump {
        node: state.node.clone(),
        acknowledged_revision: published.acknowledged_revision,
        acknowledged_pool_revision: published.acknowledged_pool_revision,
        exceptions: published.exceptions.iter().map(exception).collect(),
        not_ready: published.not_ready,
        missing: without(&intended, &actual),
        unexpected: without(&actual, &intended),
        intended,
        actual,
    };
    serde_json::to_string_pretty(&dump)
        .map(|text| text + "\n")
        .map_err(|error| error.to_string())
}

fn lines(image: &Image) -> Vec<String> {
    image.to_string().lines().map(str::to_owned).collect()
}

fn without(lines: &[String], others: &[String]) -> Vec<String> {
    let others: BTreeSet<&String> = others.iter().collect();
    let mut left = lines.to_vec();
    left.retain(|line| !others.contains(line));
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_keep_their_order() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(without(&lines("c a b"), &lines("a x")), ["c", "b"]);
    }
}
