//! Asks the API server about tokens.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use sluice_kube::error::within;
use sluice_stream::AUDIENCE;
use tokio::sync::Semaphore;

use super::elapsed_ms;
use super::limits::{Bucket, REVIEWS};
use super::proof::{Account, Reason, Refusal};
use crate::metrics::Metrics;

/// How long an answer is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Questions under way at one time.
const AT_ONCE: usize = 8;

/// Asks, and no more than the API server has to bear.
pub(super) struct Reviewer {
    api: Api<TokenReview>,
    account: Account,
    permits: Semaphore,
    bucket: Mutex<Bucket>,
    metrics: Arc<Metrics>,
    start: Instant,
}

impl Reviewer {
    /// Takes tokens of this account.
    pub(super) fn new(client: Client, account: Account, metrics: Arc<Metrics>) -> Self {
        Self {
            api: Api::all(client),
            account,
            permits: Semaphore::new(AT_ONCE),
            bucket: Mutex::new(Bucket::new(REVIEWS, 0)),
            metrics,
            start: Instant::now(),
        }
    }

    /// Whether a token proves that its sender is the agent on this node.
    pub(super) async fn review(&self, token: &str, node: &str) -> Result<(), Refusal> {
        let unavailable = |message: String| Refusal::new(Reason::Unavailable, message);
        let is_within = {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.take(1, elapsed_ms(self.start))
        };
        if !is_within {
            let message = "too many tokens are to be looked at";
            return Err(Refusal::new(Reason::TooMany, message));
        }
        let permit = self.permits.acquire().await;
        let _permit = permit.map_err(|error| unavailable(error.to_string()))?;
        let question = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                token: token.to_owned(),
            },
            ..TokenReview::default()
        };
        self.metrics.stream.reviews.inc();
        let parameters = PostParams::default();
        let answer = within(ANSWER_TIMEOUT, self.api.create(&parameters, &question)).await;
        let answer = answer.map_err(|error| {
            unavailable(format!("the API server says nothing of the token: {error}"))
        })?;
        let status = answer.status.unwrap_or_default();
        self.account.judge(&status, node)
    }
}
