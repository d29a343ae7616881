//! Errors of requests, and their texts.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use kube::core::Status;

/// A request that failed.
#[derive(thiserror::Error, Debug)]
pub enum RequestError {
    /// The API server refuses, or cannot be reached.
    #[error("{}", text(.0))]
    Api(#[from] kube::Error),
    /// It does not answer.
    #[error("the API server does not answer within {0:?}")]
    Slow(Duration),
    /// It ends watches as soon as they begin.
    #[error("the API server ends watches at once")]
    Short,
    /// It did not end a watch when it should have.
    #[error("the API server has gone silent")]
    Silent,
}

impl RequestError {
    /// The status that the API server answered with, if it answered.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Api(kube::Error::Api(status)) => Some(status),
            _ => None,
        }
    }

    /// The status code of an answer that refuses.
    pub fn code(&self) -> Option<u16> {
        self.status().map(|status| status.code)
    }
}

/// The answer to a request, if it comes in time.
pub async fn within<T>(
    limit: Duration,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, RequestError> {
    match tokio::time::timeout(limit, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(RequestError::Slow(limit)),
    }
}

/// An error with its causes; of what the API server answered, its message and code.
pub fn text(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let answer = answer(error);
        next = error.source().filter(|_| answer.is_none());
        let further = answer.unwrap_or_else(|| error.to_string());
        if text.is_empty() {
            text = further;
        } else if !text.contains(&further) {
            text = format!("{text}: {further}");
        }
    }
    text
}

/// The API server's message, in its own words, and the status code.
fn answer(error: &(dyn Error + 'static)) -> Option<String> {
    let Some(kube::Error::Api(status)) = error.downcast_ref::<kube::Error>() else {
        return None;
    };
    Some(format!("{} ({})", status.message.trim(), status.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(thiserror::Error, Debug)]
    #[error("outer")]
    struct Outer(#[source] kube::Error);

    fn refused() -> kube::Error {
        kube::Error::Api(Box::new(Status {
            message: "pods is forbidden ".to_owned(),
            code: 403,
            ..Status::default()
        }))
    }

    #[test]
    fn an_answer_is_told_in_the_servers_words() {
        assert_eq!(text(&refused()), "pods is forbidden (403)");
        assert_eq!(text(&Outer(refused())), "outer: pods is forbidden (403)");
        assert_eq!(RequestError::from(refused()).code(), Some(403));
    }

    #[test]
    fn causes_follow_once() {
        let io = std::io::Error::other("connection refused");
        let error = kube::Error::Service(Box::new(io));
        let text = text(&error);
        assert_eq!(text.matches("connection refused").count(), 1, "{text}");
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come_is_an_error() {
        let never = std::future::pending::<kube::Result<()>>();
        let error = within(Duration::from_millis(5), never).await;
        let text = error.expect_err("no answer").to_string();
        assert_eq!(text, "the API server does not answer within 5ms");
    }
}
