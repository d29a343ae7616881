//! Servers on loopback that answer well or badly.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::*;

fn check(value: Value) -> HealthCheck {
    let mut value = value;
    value["timeoutMilliseconds"] = json!(300);
    serde_json::from_value(value).expect("a check")
}

async fn outcome(server: SocketAddr, value: Value) -> Result<(), String> {
    let outcome = Prober::default().check(server, &check(value)).await;
    outcome.map(drop)
}

/// A server that answers each request with these bytes.
async fn answering(answer: &'static [u8]) -> SocketAddr {
    serving(move |mut stream| async move {
        let mut request = [0; 2_048];
        let _ = stream.read(&mut request).await;
        let _ = stream.write_all(answer).await;
    })
    .await
}

async fn serving<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

async fn closed() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn a_connection_is_enough_for_tcp() {
    let open = serving(|_| std::future::ready(())).await;
    assert_eq!(outcome(open, json!({"tcp": {}})).await, Ok(()));
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
    let v6 = listener.local_addr().unwrap();
    assert_eq!(outcome(v6, json!({"tcp": {}})).await, Ok(()));
    let refused = outcome(closed().await, json!({"tcp": {}}))
        .await
        .unwrap_err();
    assert!(
        refused.starts_with("cannot connect: Connection refused"),
        "{refused}"
    );
}

#[tokio::test]
async fn http_is_judged_by_status_and_body() {
    let good = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready").await;
    for value in [
        json!({"http": {}}),
        json!({"http": {"method": "HEAD"}}),
        json!({"http": {"bodyContains": "ead"}}),
        json!({"http": {"expectedStatuses": [{"min": 100, "max": 150}, {"min": 200, "max": 200}]}}),
    ] {
        assert_eq!(outcome(good, value.clone()).await, Ok(()), "{value}");
    }
    let text = outcome(good, json!({"http": {"bodyContains": "not there"}})).await;
    assert_eq!(
        text.unwrap_err(),
        "the body does not contain the expected text"
    );
    let other = outcome(
        good,
        json!({"http": {"expectedStatuses": [{"min": 204, "max": 204}]}}),
    )
    .await;
    assert_eq!(other.unwrap_err(), "answered with status 200");
    let redirect =
        answering(b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n")
            .await;
    assert_eq!(outcome(redirect, json!({"http": {}})).await, Ok(()));
    let bad = answering(b"HTTP/1.1 503 Not today\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(
        outcome(bad, json!({"http": {}})).await.unwrap_err(),
        "answered with status 503"
    );
}

#[tokio::test]
async fn the_request_has_what_was_asked_for() {
    let (sender, mut requests) = tokio::sync::mpsc::channel::<String>(1);
    let server = serving(move |mut stream| {
        let sender = sender.clone();
        async move {
            let mut request = vec![0; 4_096];
            let length = stream.read(&mut request).await.unwrap();
            request.truncate(length);
            sender
                .send(String::from_utf8(request).unwrap())
                .await
                .unwrap();
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        }
    })
    .await;
    let headers = json!([{"name": "X-Probe", "value": "a b"}]);
    let value = json!({"http": {"method": "OPTIONS", "path": "/ready?deep=1", "host": "shop.example", "headers": headers}});
    assert_eq!(outcome(server, value).await, Ok(()));
    let request = requests.recv().await.expect("a request").to_lowercase();
    assert!(
        request.starts_with("options /ready?deep=1 http/1.1\r\n"),
        "{request}"
    );
    for line in ["host: shop.example", "x-probe: a b", "connection: close"] {
        assert!(request.contains(&format!("{line}\r\n")), "{request}");
    }
    assert_eq!(outcome(server, json!({"http": {}})).await, Ok(()));
    let request = requests.recv().await.expect("a request").to_lowercase();
    assert!(
        request.contains(&format!("host: {server}\r\n")),
        "{request}"
    );
}

#[tokio::test]
async fn nonsense_is_no_answer() {
    let nonsense = answering(b"220 mail.example ESMTP\r\n").await;
    let garbage = outcome(nonsense, json!({"http": {}})).await.unwrap_err();
    assert!(garbage.starts_with("no answer by HTTP"), "{garbage}");
    let silent = serving(|stream| async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        drop(stream);
    })
    .await;
    let late = outcome(silent, json!({"http": {}})).await;
    assert_eq!(late.unwrap_err(), "did not answer within 300 ms");
    let closing = serving(|_| std::future::ready(())).await;
    let early = outcome(closing, json!({"http": {}})).await.unwrap_err();
    assert!(early.starts_with("no answer by HTTP"), "{early}");
    let short = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nready").await;
    let early = outcome(short, json!({"http": {"bodyContains": "other"}}))
        .await
        .unwrap_err();
    assert!(early.starts_with("the body ended early"), "{early}");
}

/// A server that answers `ready` by TLS, under this name; its certificate, as PEM.
async fn by_tls(name: &str) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let server = serving(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                return;
            };
            let mut request = [0; 2_048];
            let _ = stream.read(&mut request).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready";
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
        }
    })
    .await;
    (server, made.cert.pem())
}

#[tokio::test]
async fn a_certificate_is_of_the_right_authority_and_name() {
    let (server, own) = by_tls("shop.example").await;
    let (_, other) = by_tls("shop.example").await;
    let ask = |tls: Value| {
        outcome(
            server,
            json!({"http": {"bodyContains": "ready", "tls": tls}}),
        )
    };
    let right = json!({"serverName": "shop.example", "caCertificates": own});
    assert_eq!(ask(right).await, Ok(()));
    assert_eq!(ask(json!({"skipVerification": true})).await, Ok(()));
    for (tls, words) in [
        (
            json!({"serverName": "shop.example", "caCertificates": other}),
            "no TLS: ",
        ),
        (
            json!({"serverName": "else.example", "caCertificates": own}),
            "no TLS: ",
        ),
        (json!({"caCertificates": own}), "no TLS: "),
        (
            json!({"caCertificates": "no PEM"}),
            "there is no certificate in it",
        ),
        (
            json!({"caCertificates": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}),
            "cannot be used",
        ),
    ] {
        let failed = ask(tls.clone()).await.unwrap_err();
        assert!(failed.contains(words), "{tls}: {failed}");
    }
    let plain = answering(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let tls = json!({"http": {"tls": {"skipVerification": true}}});
    let failed = outcome(plain, tls).await.unwrap_err();
    assert!(failed.starts_with("no TLS: "), "{failed}");
}

/// Heads and bodies without an end.
#[tokio::test]
async fn what_never_ends_is_bounded() {
    let endless = |head: &'static [u8], more: &'static [u8]| {
        serving(move |mut stream| async move {
            let mut request = [0; 2_048];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(head).await;
            while stream.write_all(more).await.is_ok() {}
        })
    };
    let head = endless(
        b"HTTP/1.1 200 OK\r\n",
        b"X-More: and more and more and more\r\n",
    )
    .await;
    let start = Instant::now();
    let failed = outcome(head, json!({"http": {}})).await.unwrap_err();
    assert!(failed.starts_with("no answer by HTTP"), "{failed}");
    let body = endless(
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    )
    .await;
    let failed = outcome(body, json!({"http": {"bodyContains": "b"}}))
        .await
        .unwrap_err();
    assert_eq!(failed, "the body does not contain the expected text");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_datagram_is_to_be_answered() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let server = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut datagram = [0; 128];
        while let Ok((length, from)) = socket.recv_from(&mut datagram).await {
            if datagram[..length] == *b"ping" {
                let _ = socket.send_to(b"pong 1", from).await;
            }
        }
    });
    assert_eq!(
        outcome(server, json!({"udp": {"send": "ping"}})).await,
        Ok(())
    );
    assert_eq!(
        outcome(server, json!({"udp": {"send": "ping", "expect": "pong"}})).await,
        Ok(())
    );
    let other = outcome(server, json!({"udp": {"send": "ping", "expect": "gong"}})).await;
    assert_eq!(
        other.unwrap_err(),
        "the answer does not contain the expected text"
    );
    let silent = outcome(server, json!({"udp": {"send": "else"}})).await;
    assert_eq!(silent.unwrap_err(), "did not answer within 300 ms");
    let closed = outcome(closed().await, json!({"udp": {"send": "ping"}}))
        .await
        .unwrap_err();
    assert!(closed.contains("refused"), "{closed}");
}

/// A server of gRPC, and where it is told what to answer.
async fn by_grpc(tls: Option<ServerTlsConfig>) -> (SocketAddr, HealthReporter) {
    let (reporter, service) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server.tls_config(tls).unwrap();
    }
    tokio::spawn(async move {
        let incoming = TcpIncoming::from(listener);
        server.serve_with_incoming(service, incoming).await.unwrap();
    });
    (address, reporter)
}

#[tokio::test]
async fn grpc_says_which_service_serves() {
    let (server, reporter) = by_grpc(None).await;
    reporter
        .set_service_status("shop", ServingStatus::NotServing)
        .await;
    let shop = json!({"grpc": {"service": "shop"}});
    assert_eq!(outcome(server, json!({"grpc": {}})).await, Ok(()));
    let not = outcome(server, shop.clone()).await;
    assert_eq!(not.unwrap_err(), "answered with NOT_SERVING");
    reporter
        .set_service_status("shop", ServingStatus::Serving)
        .await;
    assert_eq!(outcome(server, shop).await, Ok(()));
    let other = outcome(server, json!({"grpc": {"service": "else"}})).await;
    assert_eq!(other.unwrap_err(), "answered with status NotFound");
    let nonsense = answering(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let failed = outcome(nonsense, json!({"grpc": {}})).await.unwrap_err();
    assert!(failed.starts_with("no answer by gRPC: "), "{failed}");
}

#[tokio::test]
async fn grpc_goes_by_tls() {
    let made = rcgen::generate_simple_self_signed(["shop.example".to_owned()]).unwrap();
    let identity = Identity::from_pem(made.cert.pem(), made.signing_key.serialize_pem());
    let (server, _reporter) = by_grpc(Some(ServerTlsConfig::new().identity(identity))).await;
    let tls = json!({"serverName": "shop.example", "caCertificates": made.cert.pem()});
    assert_eq!(outcome(server, json!({"grpc": {"tls": tls}})).await, Ok(()));
    let failed = outcome(server, json!({"grpc": {}})).await.unwrap_err();
    assert!(failed.starts_with("no answer by gRPC: "), "{failed}");
}

/// Needs `CAP_NET_RAW`, as the agent does.
#[tokio::test]
async fn an_echo_is_to_come_back() {
    for server in [
        Ipv4Addr::LOCALHOST.into(),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ] {
        let server = SocketAddr::new(server, 0);
        assert_eq!(outcome(server, json!({"icmp": {}})).await, Ok(()));
    }
    // Reserved, and so nobody's (RFC 1112 section 4).
    let nobody = SocketAddr::new(Ipv4Addr::new(240, 0, 0, 1).into(), 0);
    let failed = outcome(nobody, json!({"icmp": {}})).await.unwrap_err();
    assert!(
        failed.starts_with("cannot ask: ") || failed.starts_with("did not answer"),
        "{failed}"
    );
}
