//! A scripted API server for tests: it answers one request after the other, and is silent when the script is over.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// Status code and body.
pub(crate) type Answer = (u16, String);
/// The URIs of the requests that came.
pub(crate) type Requests = Arc<Mutex<Vec<String>>>;

/// A client of such a server.
pub(crate) fn client(answers: &[Answer]) -> (Client, Requests) {
    let answers = Arc::new(Mutex::new(VecDeque::from(answers.to_vec())));
    let requests = Requests::default();
    let noted = Arc::clone(&requests);
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = answers.lock().expect("no panic").pop_front();
        let mut noted = noted.lock().expect("no panic");
        noted.push(request.uri().to_string());
        async move {
            let Some((code, body)) = answer else {
                return std::future::pending().await;
            };
            let response = Response::builder().status(code);
            let body = Body::from(body.into_bytes());
            Ok::<_, Infallible>(response.body(body).expect("a response"))
        }
    });
    (Client::new(service, "default"), requests)
}

/// A list of this version with these objects.
pub(crate) fn list(version: u32, items: &[Value], more: bool) -> Answer {
    let token = if more { "more" } else { "" };
    let metadata = json!({"resourceVersion": version.to_string(), "continue": token});
    let list =
        json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": metadata, "items": items});
    (200, list.to_string())
}

/// A watch that tells of one change and ends.
pub(crate) fn watch_of(change: &str, object: &Value) -> Answer {
    let line = json!({"type": change, "object": object});
    (200, format!("{line}\n"))
}

pub(crate) fn refusal(code: u16) -> Answer {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": "x", "message": "no",
    });
    (code, status.to_string())
}
