//! `kubectl sluice vips` as text, and who announces a VIP in `kubectl sluice status`.

use sluice_api::parse_vip_group;

use crate::view::{AnnouncementView, HoldState, VipView, VipsView};

use super::{Cell, Paint, Table, Tone, age, field};

/// One row for each address, then what is amiss.
pub fn vips(view: &VipsView, paint: Paint) -> String {
    let headings = [
        "ADDRESS",
        "POOL",
        "GROUP",
        "HOLDER",
        "SINCE",
        "BY",
        "STATE",
        "VIRTUAL SERVERS",
    ];
    let mut table = Table::new(0, &headings).with_whole_first();
    for vip in &view.vips {
        table.row(row(vip));
    }
    let mut out = table.render(paint);
    let mut told: Vec<&str> = Vec::new();
    for vip in &view.vips {
        // Addresses of a group share its message.
        let message = vip.announcement.message.as_deref();
        if let Some(message) = message.filter(|message| !told.contains(message)) {
            out.push_str(&field("Warning", message));
            told.push(message);
        }
    }
    out
}

fn row(vip: &VipView) -> [Cell; 8] {
    let it = &vip.announcement;
    let number = it.group.as_deref().and_then(parse_vip_group);
    let since = it.held_seconds.map(age);
    let authority = it.authority.map(|authority| format!("{authority:?}"));
    [
        it.address.to_string().into(),
        or_dash(it.pool.clone()),
        or_dash(number.map(|(_, number)| number.to_string())),
        holder(it),
        or_dash(since),
        or_dash(authority),
        state(it.state),
        vip.virtual_servers.join(", ").into(),
    ]
}

fn or_dash(text: Option<String>) -> Cell {
    text.unwrap_or_else(|| "-".to_owned()).into()
}

fn holder(it: &AnnouncementView) -> Cell {
    match it.state {
        HoldState::NoHolder => Cell::new(Tone::Bad, "none"),
        HoldState::Contested => all_holders(it).join(", ").into(),
        _ => or_dash(it.holder.clone()),
    }
}

/// The node that the Lease names, then the others that say that they hold the group.
fn all_holders(it: &AnnouncementView) -> Vec<&str> {
    let named = it.holder.as_deref();
    let saying = it.holding_nodes.iter().flatten().map(String::as_str);
    let others = saying.filter(|node| Some(*node) != named);
    named.into_iter().chain(others).collect()
}

fn state(state: HoldState) -> Cell {
    match state {
        HoldState::Armed => Cell::new(Tone::Good, "armed"),
        HoldState::Renewed => Cell::new(Tone::Good, "renewed"),
        HoldState::TakingOver => Cell::new(Tone::Waiting, "taking over"),
        HoldState::Contested => Cell::new(Tone::Bad, "contested"),
        HoldState::Expired => Cell::new(Tone::Bad, "expired"),
        HoldState::NoHolder => Cell::new(Tone::Bad, "no holder"),
        HoldState::NotAnnounced => "not announced".into(),
        HoldState::Unknown => "unknown".into(),
    }
}

/// A VIP with who announces it in brackets, where that is known and anybody is to.
pub(super) fn announced(it: &AnnouncementView) -> String {
    let holder = it.holder.as_deref().unwrap_or_default();
    let who = match it.state {
        HoldState::Armed | HoldState::Renewed => format!("at {holder}"),
        HoldState::TakingOver => format!("{holder} takes over"),
        HoldState::Contested => format!("contested by {}", all_holders(it).join(" and ")),
        HoldState::Expired => format!("at {holder}, expired"),
        HoldState::NoHolder => match it.held_seconds {
            Some(seconds) => format!("no holder for {}", age(seconds)),
            None => "no holder".to_owned(),
        },
        HoldState::NotAnnounced | HoldState::Unknown => return it.address.to_string(),
    };
    format!("{} ({who})", it.address)
}
