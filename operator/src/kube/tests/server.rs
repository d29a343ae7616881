//! An API server that answers as a test says.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// Requests that came: method, path, and body.
pub(super) type Requests = Arc<Mutex<Vec<(String, String, Value)>>>;

/// A client of a server that answers a method, a path and a body with what `answer` returns: code and body.
pub(super) fn server(
    answer: impl FnMut(&str, &str, &Value) -> (u16, Value) + Send + 'static,
) -> (Client, Requests) {
    let requests = Requests::default();
    let noted = Arc::clone(&requests);
    let answer = Arc::new(Mutex::new(answer));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (noted, answer) = (Arc::clone(&noted), Arc::clone(&answer));
        async move {
            let method = request.method().to_string();
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect_bytes().await.expect("a body");
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let (code, text) = (answer.lock().expect("no panic"))(&method, &path, &body);
            noted.lock().expect("no panic").push((method, path, body));
            let body = Body::from(text.to_string().into_bytes());
            let response = Response::builder().status(code);
            Ok::<_, Infallible>(response.body(body).expect("a response"))
        }
    });
    (Client::new(service, "default"), requests)
}

/// The answer to a DELETE that succeeds.
pub(super) fn deleted() -> (u16, Value) {
    let body = json!({"apiVersion": "v1", "kind": "Status", "status": "Success", "code": 200});
    (200, body)
}

/// The answer to a write over a version that is no longer the newest.
pub(super) fn conflict() -> (u16, Value) {
    let body = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 409, "reason": "Conflict",
        "message": "the object has been modified",
    });
    (409, body)
}
