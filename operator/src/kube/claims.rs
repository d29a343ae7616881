//! Events of LoadBalancerNodes whose agents say that other hosts claim their VIPs.

use sluice_api::{Condition, ConditionType, Kind, LoadBalancerNode, ObjectKey, true_condition};
use sluice_kube::store::Change;

use super::events::{About, News};
use super::index::Index;

/// What the agent says of claims, if anything is claimed.
fn claimed(node: &LoadBalancerNode) -> Option<&Condition> {
    let status = node.status.as_ref()?;
    true_condition(&status.conditions, ConditionType::AddressClaimed)
}

/// The event that follows from a change of a node. What stood there when the operator began was told before.
pub(super) fn news(index: &Index, change: &Change<LoadBalancerNode>) -> Option<News> {
    let before = claimed(change.before.as_ref().filter(|_| !change.replaced)?);
    let after = claimed(index.nodes.objects.get(&change.key)?);
    if before.map(|it| &it.message) == after.map(|it| &it.message) {
        return None;
    }
    let uid = index.nodes.stamp(&change.key)?.uid.clone();
    let (reason, note) = match after {
        Some(it) => (it.reason.clone(), it.message.clone()),
        None => (
            "AnsweredHereAlone".to_owned(),
            "no other host claims a VIP of this node any more".to_owned(),
        ),
    };
    Some(News {
        about: About {
            kind: Kind::LoadBalancerNode.name(),
            key: ObjectKey::new("", &change.key.name),
            uid,
        },
        warning: after.is_some(),
        reason,
        action: "Announce",
        note,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sluice_kube::{Item, Stamp};

    use super::*;

    /// A node whose agent says this of claims.
    fn item(version: u64, claim: Option<&str>) -> Item<LoadBalancerNode> {
        let condition = claim.map(|message| {
            json!({"type": "AddressClaimed", "status": "True", "reason": "AnsweredElsewhere", "message": message,
                "lastTransitionTime": "2026-03-01T10:00:00Z"})
        });
        let object = json!({"metadata": {"name": "d1"}, "spec": {"interfaces": ["eth0"]},
            "status": {"conditions": condition.into_iter().collect::<Vec<_>>()}});
        Item {
            key: ObjectKey::new("", "d1"),
            stamp: Stamp {
                uid: "u".to_owned(),
                version,
            },
            content: Ok(serde_json::from_value(object).expect("a node")),
        }
    }

    #[test]
    fn each_other_claim_is_an_event_and_so_is_their_end() {
        let mut index = Index::new("sluice-system");
        let said = [
            Some("one"),
            Some("one"),
            Some("one and two"),
            None,
            None,
            Some("one"),
        ];
        let events = (1..).zip(said).map(|(version, claim)| {
            let change = index.nodes.apply(item(version, claim))?;
            let news = news(&index, &change)?;
            assert_eq!(
                (news.about.uid.as_str(), news.warning),
                ("u", claim.is_some())
            );
            Some(format!("{}: {}", news.reason, news.note))
        });
        let events: Vec<Option<String>> = events.collect();
        let event = |text: &str| Some(format!("AnsweredElsewhere: {text}"));
        let gone = "AnsweredHereAlone: no other host claims a VIP of this node any more";
        assert_eq!(
            events,
            [
                None,
                None,
                event("one and two"),
                Some(gone.to_owned()),
                None,
                event("one")
            ]
        );
    }
}
