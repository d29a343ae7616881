//! The API server's clock.

use http::Request;
use kube::Client;
use kube::client::Body;
use sluice_api::jiff::fmt::rfc2822;

/// Seconds since 1970 by the API server's clock, as its answers are dated (RFC 9110, section 6.6.1); `None`: they are not.
pub async fn seconds(client: &Client) -> kube::Result<Option<i64>> {
    let request = Request::get("/version").body(Body::empty());
    let request = request.map_err(kube::Error::HttpError)?;
    let answer = client.send(request).await?;
    let date = answer.headers().get("date");
    let date = date.and_then(|date| rfc2822::parse(date.to_str().ok()?).ok());
    Ok(date.map(|date| date.timestamp().as_second()))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::Response;

    use super::*;

    #[tokio::test]
    async fn an_answer_is_dated() {
        let service = tower::service_fn(|_: Request<Body>| async {
            let answer = Response::builder().status(403);
            let answer = answer.header("Date", "Sun, 06 Nov 1994 08:49:37 GMT");
            Ok::<_, Infallible>(answer.body(Body::empty()).expect("an answer"))
        });
        let client = Client::new(service, "default");
        assert_eq!(
            seconds(&client).await.expect("an answer"),
            Some(784_111_777)
        );
    }
}
