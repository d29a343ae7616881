//! The table for people and the JSON for machines.

use super::{
    case::{Case, Family, Traffic},
    stats::{FEWEST_ROUNDS, Floors, Summary, Void},
};
use serde::Serialize;
use std::fmt::Write as _;

/// A line of the table, and an element of the JSON array.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Line {
    /// `floor_xdp_tx`, `floor_encapsulation`, `hit`, `new_flow`, `pure_hash` or `not_a_vip`.
    pub case: &'static str,
    /// The forwarding mode; `none` for the floors.
    pub mode: &'static str,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Flows that are established (hit) or in use; 0 where each packet or pair has its own.
    pub flows: u32,
    /// Median processor time per packet, in nanoseconds; the wrapper's included.
    pub ns: f64,
    /// Interquartile range of the rounds, in nanoseconds.
    pub spread: f64,
    /// (`ns` − XDP_TX floor) / (encapsulation floor − XDP_TX floor), of the same family.
    pub net_ratio: f64,
}

/// The floors of a family that was measured.
fn floors(figures: &[(Case, Summary)], family: Family) -> Option<Floors> {
    let of = |wanted| figures.iter().find(|(case, _)| *case == wanted);
    let (_, tx) = of(Case::FloorTx(family))?;
    let (_, encapsulation) = of(Case::FloorEncapsulation(family))?;
    Some(Floors {
        tx_ns: tx.ns,
        encapsulation_ns: encapsulation.ns,
    })
}

/// Whether the figures of a run of so many rounds say something.
pub fn check(figures: &[(Case, Summary)], rounds: usize) -> Result<(), Void> {
    for family in Family::ALL {
        if let Some(floors) = floors(figures, family) {
            floors.check()?;
        }
    }
    if rounds < FEWEST_ROUNDS {
        return Err(Void::FewRounds(rounds));
    }
    Ok(())
}

/// The lines of a run, whether it is void or not.
pub fn lines(figures: &[(Case, Summary)]) -> Vec<Line> {
    let mut lines = Vec::with_capacity(figures.len());
    for family in Family::ALL {
        let Some(floors) = floors(figures, family) else {
            continue;
        };
        let own = figures.iter().filter(|(case, _)| case.family() == family);
        lines.extend(own.map(|(case, summary)| line(*case, *summary, floors)));
    }
    lines
}

fn line(case: Case, summary: Summary, floors: Floors) -> Line {
    let flows = match case {
        Case::Sluice(_, Traffic::Hit(flows)) => flows,
        Case::Sluice(_, Traffic::NewFlow | Traffic::PureHash) => 0,
        _ => 1,
    };
    Line {
        case: case.kind(),
        mode: case.mode(),
        family: case.family().to_string(),
        protocol: case.protocol().to_string(),
        flows,
        ns: round(summary.ns),
        spread: round(summary.spread),
        net_ratio: round(floors.net_ratio(summary.ns)),
    }
}

/// To two decimals: more is noise.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// The lines as a table.
pub fn table(lines: &[Line]) -> String {
    let mut text = format!(
        "{:<20} {:<8} {:<6} {:<5} {:>9} {:>9} {:>8} {:>10}\n",
        "case", "mode", "family", "proto", "flows", "ns", "spread", "net ratio"
    );
    for line in lines {
        let flows = if line.flows == 0 {
            "-".to_owned()
        } else {
            line.flows.to_string()
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<20} {:<8} {:<6} {:<5} {:>9} {:>9.1} {:>8.1} {:>10.2}",
            line.case,
            line.mode,
            line.family,
            line.protocol,
            flows,
            line.ns,
            line.spread,
            line.net_ratio
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::case::VirtualServer;

    fn figures(tx: f64, encapsulation: f64) -> Vec<(Case, Summary)> {
        let figure = |case, ns| (case, Summary { ns, spread: 1.0 });
        let virtual_server = VirtualServer::all()[0];
        vec![
            figure(Case::FloorTx(Family::Ipv4), tx),
            figure(Case::FloorEncapsulation(Family::Ipv4), encapsulation),
            figure(Case::Sluice(virtual_server, Traffic::Hit(65_536)), 110.0),
        ]
    }

    #[test]
    fn json_has_the_documented_fields() {
        let lines = lines(&figures(40.0, 60.0));
        let json = serde_json::to_value(&lines).unwrap();
        assert_eq!(
            json[2],
            serde_json::json!({
                "case": "hit", "mode": "TUN", "family": "IPv4", "protocol": "TCP", "flows": 65_536,
                "ns": 110.0, "spread": 1.0, "net_ratio": 3.5,
            })
        );
        assert_eq!(json[0]["net_ratio"], 0.0);
        assert_eq!(json[1]["net_ratio"], 1.0);
    }

    #[test]
    fn a_heavy_wrapper_and_few_rounds_void_a_run() {
        check(&figures(40.0, 60.0), FEWEST_ROUNDS).unwrap();
        check(&figures(50.0, 60.0), FEWEST_ROUNDS).unwrap_err();
        check(&figures(40.0, 60.0), FEWEST_ROUNDS - 1).unwrap_err();
    }

    #[test]
    fn the_table_has_a_row_for_each_line() {
        let lines = lines(&figures(40.0, 60.0));
        assert_eq!(table(&lines).lines().count(), 4);
    }
}
