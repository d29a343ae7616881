//! `kubectl sluice status`.

use anyhow::bail;
use sluice_api::jiff::Timestamp;
use sluice_api::{ObjectKey, Time};

use crate::args::{Connection, Status};
use crate::text::Paint;
use crate::{EXIT_DONE, connect, document, fetch, problem, put, text, view};

/// Fetches, builds and prints the view.
pub async fn run(connection: &Connection, args: &Status) -> anyhow::Result<u8> {
    let cluster = connect::connect(connection).await?;
    let (mut objects, notes) = fetch::objects(&cluster, args.all_namespaces).await?;
    if let Some(name) = &args.name {
        let known: Vec<String> = objects
            .virtual_servers
            .iter()
            .map(|object| ObjectKey::of(object).name)
            .collect();
        if !known.contains(name) {
            bail!(problem::not_found(
                "VirtualServer",
                name,
                &cluster.namespace,
                &known
            ));
        }
        objects
            .virtual_servers
            .retain(|object| ObjectKey::of(object).name == *name);
    }
    for note in notes {
        eprintln!("note: {note}");
    }
    let view = view::status(&objects, &Time(Timestamp::now()));
    if let Some(document) = document(args.output, &view)? {
        put(&document)?;
        return Ok(EXIT_DONE);
    }
    if view.virtual_servers.is_empty() {
        let place = cluster.place(args.all_namespaces);
        eprintln!("No virtual servers in {place}.");
    }
    put(&text::status(&view, Paint::for_stdout()))?;
    Ok(EXIT_DONE)
}
