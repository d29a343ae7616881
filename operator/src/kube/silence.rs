//! The condition `Silent` of a LoadBalancerNode, which the operator writes beside what the node's agent reports. A node that
//! was never silent has none, so that nothing is written when a node joins.

use sluice_api::{
    Condition, ConditionType, LoadBalancerNode, LoadBalancerNodeStatus, NODE_SILENT_SECONDS,
    Reason, Time, find_condition, is_true, set_condition,
};

use super::index::Index;

/// Whether a node is silent, where its object says something else.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Silence {
    /// The node.
    pub(super) node: String,
    /// Whether it is.
    pub(super) is_silent: bool,
    /// The condition that stands.
    before: Option<Condition>,
}

impl Silence {
    /// For people.
    pub(super) fn message(&self) -> String {
        if self.is_silent {
            format!(
                "no report for more than {NODE_SILENT_SECONDS} s: start the agent there or remove the LoadBalancerNode; it is \
                 not waited for"
            )
        } else {
            "reports again".to_owned()
        }
    }

    /// The condition.
    pub(super) fn condition(&self, now: &Time) -> Vec<Condition> {
        let mut conditions: Vec<Condition> = self.before.clone().into_iter().collect();
        let reason = if self.is_silent {
            Reason::NodeSilent
        } else {
            Reason::AsExpected
        };
        let message = if self.is_silent {
            self.message()
        } else {
            String::new()
        };
        let generation = self.before.as_ref().and_then(|c| c.observed_generation);
        set_condition(
            &mut conditions,
            ConditionType::Silent,
            self.is_silent,
            reason,
            &message,
            generation.unwrap_or_default(),
            now,
        );
        conditions
    }
}

/// The nodes whose object is to say something else.
pub(super) fn news(index: &Index) -> Vec<Silence> {
    let mut news = Vec::new();
    for (key, object) in &index.nodes.objects {
        let conditions = object.status.iter().flat_map(|status| &status.conditions);
        let before = conditions
            .into_iter()
            .find(|condition| condition.type_ == ConditionType::Silent.name());
        let is_told = says_silent(object);
        let node = index.known_nodes.get(&key.name);
        let is_silent = node.is_some_and(|node| !node.live);
        // An operator that has just begun takes every node for live until it knows better.
        let is_known = is_silent || node.is_none() || index.liveness.was_heard(&key.name);
        if is_told != is_silent && is_known {
            news.push(Silence {
                node: key.name.clone(),
                is_silent,
                before: before.cloned(),
            });
        }
    }
    news
}

/// Whether the node's object says that it is silent.
pub(super) fn says_silent(object: &LoadBalancerNode) -> bool {
    let status = object.status.as_ref();
    status.is_some_and(|status| is_true(&status.conditions, ConditionType::Silent))
}

/// Whether the node's agent has reported anything: the operator's condition alone is no report.
pub(super) fn is_reported(object: &LoadBalancerNode) -> bool {
    let Some(status) = &object.status else {
        return false;
    };
    let conditions = &status.conditions;
    let is_silence_alone = match find_condition(conditions, ConditionType::Silent) {
        Some(_) => conditions.len() == 1,
        None => return true,
    };
    let rest = LoadBalancerNodeStatus {
        conditions: Vec::new(),
        ..status.clone()
    };
    !is_silence_alone || rest != LoadBalancerNodeStatus::default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use sluice_api::ObjectKey;
    use sluice_kube::{Item, Stamp};

    use super::*;
    use crate::core::{Node, Standing, Trust};

    fn time(second: i64) -> Time {
        Time(sluice_api::jiff::Timestamp::from_second(second).expect("a time"))
    }

    fn object(status: &Value) -> LoadBalancerNode {
        let object =
            json!({"metadata": {"name": "d1"}, "spec": {"interfaces": ["eth0"]}, "status": status});
        serde_json::from_value(object).expect("a node")
    }

    /// An index that knows one node, of which the operator thinks this.
    fn index(version: u64, status: &Value, live: bool) -> Index {
        let mut index = Index::new("sluice-system");
        let stamp = Stamp {
            uid: "u".to_owned(),
            version,
        };
        let object = object(status);
        let node = Node {
            status: object.status.clone().unwrap_or_default(),
            live,
            wanted: true,
            starting: false,
            standing: Standing::Joined,
            trust: Trust::Believed,
        };
        index.nodes.apply(Item {
            key: ObjectKey::new("", "d1"),
            stamp,
            content: Ok(object),
        });
        index.known_nodes.insert("d1".to_owned(), node);
        index
    }

    #[test]
    fn a_node_that_was_never_silent_has_no_condition() {
        assert_eq!(
            news(&index(1, &json!({"acknowledgedRevision": 7}), true)),
            []
        );
    }

    #[test]
    fn a_silent_node_is_told_once_and_taken_back_when_it_is_heard() {
        let report = json!({"acknowledgedRevision": 7});
        let told = news(&index(1, &report, false));
        assert_eq!(told.len(), 1);
        let condition = told[0].condition(&time(5));
        assert_eq!(condition[0].type_, "Silent");
        assert_eq!(condition[0].status, "True");
        let mut report = report;
        report["conditions"] = json!(condition);
        assert_eq!(news(&index(2, &report, false)), []);
        // An operator that has just begun takes it for live.
        let mut index = index(2, &report, true);
        index.liveness.observe("d1", Some(&time(1)), 0, 0);
        assert_eq!(news(&index), []);
        index.liveness.observe("d1", Some(&time(6)), 0, 5_000);
        let told = news(&index);
        assert_eq!((told.len(), told[0].is_silent), (1, false));
        let condition = &told[0].condition(&time(9))[0];
        assert_eq!(
            (condition.status.as_str(), &condition.last_transition_time),
            ("False", &time(9))
        );
    }

    #[test]
    fn the_condition_alone_is_no_report() {
        let silent = json!({"type": "Silent", "status": "True", "reason": "NodeSilent", "message": "",
            "lastTransitionTime": "2026-03-01T10:00:00Z"});
        assert!(!is_reported(&object(&json!(null))));
        assert!(!is_reported(&object(&json!({"conditions": [silent]}))));
        let report = json!({"conditions": [silent], "observedGeneration": 1});
        assert!(is_reported(&object(&report)));
        assert!(is_reported(&object(&json!({"addresses": ["10.0.0.1"]}))));
    }
}
