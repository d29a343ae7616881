//! `rollout get --watch` against an API server that is played: it cuts a watch, and says what is there afterwards.
#![allow(clippy::unwrap_used, reason = "what cannot be set up ends the test")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);

fn policy() -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "RolloutPolicy",
        "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "1"},
        "spec": {"virtualServerName": "vip", "stablePoolName": "v1", "candidatePoolName": "v2",
                 "strategy": {"canary": {"steps": [{"weight": 10}]}}},
    })
}

fn list(kind: &str, items: &[Value]) -> Value {
    json!({"apiVersion": "sluice.dev/v1alpha1", "kind": kind, "metadata": {"resourceVersion": "2"}, "items": items})
}

fn failure(code: u16, reason: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": code,
           "reason": reason, "message": reason, "details": {"name": "vip"}})
}

/// The answer to a request, with its HTTP status; `None`: there is none. The policy is deleted after its first list.
fn answer(path: &str, policy_lists: &AtomicUsize) -> Option<(u16, Value)> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let watch = query.split('&').any(|part| part == "watch=true");
    if path == "/apis/sluice.dev/v1alpha1/loadbalancernodes" {
        return Some((403, failure(403, "Forbidden")));
    }
    let resource = path.strip_prefix("/apis/sluice.dev/v1alpha1/namespaces/shop/")?;
    match (resource, watch) {
        ("rolloutpolicies/web", _) => Some((200, policy())),
        ("rolloutpolicies", false) => {
            let first = policy_lists.fetch_add(1, Ordering::Relaxed) == 0;
            let items = if first { vec![policy()] } else { Vec::new() };
            Some((200, list("RolloutPolicyList", &items)))
        }
        // The watch does not tell of the deletion: it ends because the version has expired.
        ("rolloutpolicies", true) => {
            let expired = failure(410, "Expired");
            Some((200, json!({"type": "ERROR", "object": expired})))
        }
        ("virtualservers", false) => Some((200, list("VirtualServerList", &[]))),
        ("virtualservers", true) => None,
        _ => Some((404, failure(404, "NotFound"))),
    }
}

fn serve(mut connection: TcpStream, policy_lists: &AtomicUsize) -> std::io::Result<()> {
    let mut head = BufReader::new(connection.try_clone()?).lines();
    let request = head.next().unwrap_or_else(|| Ok(String::new()))?;
    for line in head {
        if line?.is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let Some((status, body)) = answer(path, policy_lists) else {
        thread::sleep(LIMIT);
        return Ok(());
    };
    let body = format!("{body}\n");
    let length = body.len();
    write!(
        connection,
        "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

/// The address of a server that lives as long as the test's process.
fn start() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let policy_lists = Arc::new(AtomicUsize::new(0));
    thread::spawn(move || {
        for connection in listener.incoming() {
            let policy_lists = Arc::clone(&policy_lists);
            thread::spawn(move || serve(connection.unwrap(), &policy_lists));
        }
    });
    format!("http://{address}")
}

#[test]
fn a_policy_that_is_deleted_while_the_watch_is_cut_ends_it() {
    let configuration = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "played",
        "clusters": [{"name": "played", "cluster": {"server": start()}}],
        "users": [{"name": "nobody", "user": {}}],
        "contexts": [{"name": "played", "context": {"cluster": "played", "user": "nobody", "namespace": "shop"}}],
    });
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("watch.kubeconfig");
    std::fs::write(&file, configuration.to_string()).unwrap();
    let mut plugin = Command::new(env!("CARGO_BIN_EXE_kubectl-sluice"))
        .args(["rollout", "get", "web", "--watch", "--kubeconfig"])
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while plugin.try_wait().unwrap().is_none() && start.elapsed() < LIMIT {
        thread::sleep(Duration::from_millis(50));
    }
    let ended = plugin.try_wait().unwrap().is_some();
    // One that has ended already is left as it is.
    plugin.kill().unwrap();
    let output = plugin.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(ended, "it waits for ever: {said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("RolloutPolicy shop/web is gone"), "{said}");
}
