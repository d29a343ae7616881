//! Whether the API server still holds the state that was read from it.
//!
//! A server that was wiped, restored from a backup or exchanged for another cluster's counts its resource versions anew. A
//! watch that goes on from a version of before then stays silent for as long as the new count is lower, and misses what
//! happened until then when it is higher. Nothing in the watch tells. So whoever watches asks now and then for something that
//! cannot be the same in another state, and compares.

/// What an API server said of itself at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Position {
    /// The uid of an object that stays as long as the cluster does.
    pub uid: String,
    /// How far its resource versions had come; `None` where they are no numbers.
    pub version: Option<u64>,
}

impl Position {
    /// `version` as the API server gives it.
    pub fn new(uid: Option<String>, version: Option<&str>) -> Self {
        Self {
            uid: uid.unwrap_or_default(),
            version: version.and_then(|version| version.parse().ok()),
        }
    }

    /// Whether the server holds another state `now`, not a later one of the same.
    pub fn is_another(&self, now: &Self) -> bool {
        let went_back =
            matches!((self.version, now.version), (Some(then), Some(now)) if now < then);
        self.uid != now.uid || went_back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_state_is_known_by_uid_or_version() {
        let at = |uid: &str, version: &str| Position::new(Some(uid.to_owned()), Some(version));
        assert!(!at("a", "5").is_another(&at("a", "6")));
        assert!(!at("a", "5").is_another(&at("a", "5")));
        assert!(at("a", "5").is_another(&at("b", "6")), "wiped");
        assert!(at("a", "5").is_another(&at("a", "4")), "restored");
        assert!(!at("a", "5").is_another(&at("a", "x")));
    }
}
