//! Text of a status: one line a field, conditions that are as expected left out, times in seconds since the case began.

use std::fmt::Write;
use std::net::IpAddr;

use serde_json::Value;
use sluice_api::jiff::Timestamp;

/// When every case begins, in seconds since 1970.
pub(crate) const BEGIN: i64 = 1_700_000_000;

/// A status as its lines.
pub(crate) fn status(status: &Value) -> String {
    let mut text = String::new();
    for (name, value) in status.as_object().into_iter().flatten() {
        match name.as_str() {
            "conditions" => {}
            "decision" => {
                text.push_str("decision:\n");
                for (name, value) in value.as_object().into_iter().flatten() {
                    field(&mut text, 2, name, value);
                }
            }
            name => field(&mut text, 0, name, value),
        }
    }
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let conditions: Vec<&Value> = conditions.collect();
    for condition in &conditions {
        if let Some(line) = self::condition(condition, conditions[0]) {
            text.push_str(&line);
        }
    }
    text
}

/// `Ready` comes first, and what `Reconciling` and `Stalled` repeat of it is left out.
fn condition(condition: &Value, ready: &Value) -> Option<String> {
    let part = |name: &str| condition[name].as_str().unwrap_or_default();
    let (kind, status, reason) = (part("type"), part("status"), part("reason"));
    if status == "False" && reason == "AsExpected" {
        return None;
    }
    let repeats = !std::ptr::eq(condition, ready)
        && ["reason", "message"]
            .iter()
            .all(|p| condition[*p] == ready[*p]);
    Some(if repeats {
        format!("{kind}: {status}\n")
    } else {
        format!("{kind}: {status}, {reason}: {}\n", part("message"))
    })
}

fn field(text: &mut String, indent: usize, name: &str, value: &Value) {
    let blank = "";
    let items = value
        .as_array()
        .filter(|items| items.len() > 1 && items[0].is_object());
    match items {
        Some(items) => {
            writeln!(text, "{blank:indent$}{name}:").expect("a String takes all");
            for item in items {
                writeln!(text, "{blank:indent$}- {}", flow(item)).expect("a String takes all");
            }
        }
        None => {
            writeln!(text, "{blank:indent$}{name}: {}", flow(value)).expect("a String takes all");
        }
    }
}

/// A value on one line.
fn flow(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(flow).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| format!("{name}: {}", flow(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        Value::String(text) => match text.parse::<Timestamp>() {
            Ok(time) => format!("{} s", time.as_second() - BEGIN),
            Err(_) => text.clone(),
        },
        other => other.to_string(),
    }
}

/// An address as maps hold it.
pub(crate) fn address(bytes: [u8; 16], ipv6: bool) -> IpAddr {
    if ipv6 {
        bytes.into()
    } else {
        let [a, b, c, d, ..] = bytes;
        [a, b, c, d].into()
    }
}
