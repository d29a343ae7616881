//! How the servers of a pool are checked.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::forwarding::Protocol;
use crate::limits::{
    MAX_CERTIFICATES_LENGTH, MAX_CHECK_BODY_LENGTH, MAX_CHECK_DATAGRAM_LENGTH, MAX_CHECK_HEADERS,
    MAX_CHECK_INTERVAL_SECONDS, MAX_CHECK_JITTER_PERCENT, MAX_CHECK_PATH_LENGTH, MAX_CHECK_RESULTS,
    MAX_CHECK_STATUSES, MAX_CHECK_TIMEOUT_MILLISECONDS, MAX_HEADER_NAME_LENGTH,
    MAX_HEADER_VALUE_LENGTH, MAX_NAME_LENGTH,
};
use crate::rules;

/// How directors find out which servers of a pool work: exactly one of `tcp`, `http`, `grpc`, `udp` and `icmp`. Each director checks by itself.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::health_check()))]
pub struct HealthCheck {
    /// A server works that accepts a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// A server works that answers a request of HTTP/1.1 as expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// A server works that says so by gRPC's health checking protocol (`grpc.health.v1`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcCheck>,
    /// A server works that answers a datagram.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpCheck>,
    /// A server works that answers an echo request. That says little: a host answers whose service has died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpCheck>,
    /// Port on the servers that is checked, unless by ICMP. Absent: each port that a virtual server forwards to by the protocol of the
    /// check, UDP or TCP, is checked by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Seconds between two checks of a server.
    #[serde(default = "interval")]
    #[schemars(range(min = 1, max = MAX_CHECK_INTERVAL_SECONDS))]
    pub interval_seconds: u32,
    /// Percent of the interval by which each check is put off at random at most, so that servers are not always asked while
    /// something else happens there.
    #[serde(default)]
    #[schemars(range(max = MAX_CHECK_JITTER_PERCENT))]
    pub jitter_percent: u8,
    /// How long a check may take, at most the interval.
    #[serde(default = "timeout")]
    #[schemars(range(min = 10, max = MAX_CHECK_TIMEOUT_MILLISECONDS))]
    pub timeout_milliseconds: u32,
    /// Checks in a row that a server which is down has to pass. One that fell several times within ten minutes has to pass up to
    /// eight times as many.
    #[serde(default = "rise")]
    #[schemars(range(min = 1, max = MAX_CHECK_RESULTS))]
    pub rise: u8,
    /// Checks in a row that a server which is up has to fail before it is down.
    #[serde(default = "fall")]
    #[schemars(range(min = 1, max = MAX_CHECK_RESULTS))]
    pub fall: u8,
    /// A check that takes longer has failed, though it was answered. Absent: only the timeout counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_CHECK_TIMEOUT_MILLISECONDS))]
    pub max_response_milliseconds: Option<u32>,
}

const fn interval() -> u32 {
    2
}

const fn timeout() -> u32 {
    1_000
}

const fn rise() -> u8 {
    2
}

const fn fall() -> u8 {
    3
}

/// No settings: a connection is opened, and reset.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpCheck {}

/// A request, and the answer that is expected.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// The method.
    #[serde(default)]
    pub method: HttpMethod,
    /// Path and query.
    #[serde(default = "root")]
    #[schemars(length(min = 1, max = MAX_CHECK_PATH_LENGTH), regex(pattern = rules::PATH))]
    pub path: String,
    /// The header `Host`. Absent: the server's address and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_NAME_LENGTH), regex(pattern = rules::VISIBLE))]
    pub host: Option<String>,
    /// Further headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_CHECK_HEADERS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub headers: Vec<HttpHeader>,
    /// Statuses of an answer from a server that works. Absent: 200 to 399. Redirects are not followed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_CHECK_STATUSES))]
    pub expected_statuses: Vec<StatusRange>,
    /// Text that the first 64 KiB of the body contain. Absent: the body is not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_CHECK_BODY_LENGTH))]
    pub body_contains: Option<String>,
    /// Use TLS. Absent: plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<CheckTls>,
}

fn root() -> String {
    "/".to_owned()
}

/// A method without a body.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpMethod {
    /// GET.
    #[default]
    Get,
    /// HEAD.
    Head,
    /// OPTIONS.
    Options,
}

/// A header of a request.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct HttpHeader {
    /// Its name.
    #[schemars(length(min = 1, max = MAX_HEADER_NAME_LENGTH), regex(pattern = rules::HEADER_NAME))]
    pub name: String,
    /// Its value.
    #[schemars(length(max = MAX_HEADER_VALUE_LENGTH), regex(pattern = rules::PRINTABLE))]
    pub value: String,
}

/// Statuses of answers, both ends included.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::range_rises()))]
pub struct StatusRange {
    /// The first.
    #[schemars(range(min = 100, max = 599))]
    pub min: u16,
    /// The last.
    #[schemars(range(min = 100, max = 599))]
    pub max: u16,
}

/// How a server's certificate is looked at: exactly one of `caCertificates` and `skipVerification: true`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::one_trust()))]
pub struct CheckTls {
    /// The name that is asked for (SNI, RFC 6066 section 3) and that the certificate must have. Absent: the server's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_NAME_LENGTH), regex(pattern = rules::SUBDOMAIN))]
    pub server_name: Option<String>,
    /// Certificates of the authorities that may have signed, as PEM (RFC 7468).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_CERTIFICATES_LENGTH))]
    pub ca_certificates: Option<String>,
    /// Take any certificate.
    #[serde(default)]
    pub skip_verification: bool,
}

/// The service that is asked for.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct GrpcCheck {
    /// The service's name. Absent: the server as a whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = MAX_NAME_LENGTH))]
    pub service: String,
    /// Use TLS. Absent: HTTP/2 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<CheckTls>,
}

/// No settings.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IcmpCheck {}

/// A datagram, and what is expected in answer.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct UdpCheck {
    /// The text that is sent.
    #[schemars(length(min = 1, max = MAX_CHECK_DATAGRAM_LENGTH))]
    pub send: String,
    /// Text that the answer contains. Absent: any answer will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_CHECK_DATAGRAM_LENGTH))]
    pub expect: Option<String>,
}

impl HealthCheck {
    /// Whether exactly one way is given.
    pub(crate) fn has_one_way(&self) -> bool {
        let ways = [
            self.tcp.is_some(),
            self.http.is_some(),
            self.grpc.is_some(),
            self.udp.is_some(),
            self.icmp.is_some(),
        ];
        ways.iter().filter(|given| **given).count() == 1
    }

    /// Whether a port is given where there are ports.
    pub(crate) const fn may_have_port(&self) -> bool {
        self.icmp.is_none() || self.port.is_none()
    }

    /// The protocol by which servers are asked, where it has ports.
    pub const fn protocol(&self) -> Protocol {
        if self.udp.is_some() {
            Protocol::Udp
        } else {
            Protocol::Tcp
        }
    }

    /// Whether a server is checked as a whole rather than each port that is forwarded to.
    pub const fn is_by_address(&self) -> bool {
        self.port.is_some() || self.icmp.is_some()
    }

    /// How TLS is used, where it is, by the name of the field.
    pub(crate) fn tls(&self) -> impl Iterator<Item = (&'static str, &CheckTls)> {
        let http = self.http.as_ref().and_then(|http| http.tls.as_ref());
        let grpc = self.grpc.as_ref().and_then(|grpc| grpc.tls.as_ref());
        let http = http.map(|tls| ("http.tls", tls));
        http.into_iter().chain(grpc.map(|tls| ("grpc.tls", tls)))
    }

    /// Whether a check ends before the next one begins.
    pub(crate) fn fits(&self) -> bool {
        u64::from(self.timeout_milliseconds) <= u64::from(self.interval_seconds) * 1_000
    }
}

impl CheckTls {
    /// Whether exactly one is given.
    pub(crate) const fn has_one_trust(&self) -> bool {
        self.ca_certificates.is_some() != self.skip_verification
    }
}
