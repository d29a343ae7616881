//! `kubectl sluice vips`.

use crate::args::{Connection, Vips};
use crate::text::Paint;
use crate::{EXIT_DONE, connect, document, fetch, put, text, view};

/// Fetches, builds and prints the view.
pub async fn run(connection: &Connection, args: &Vips) -> anyhow::Result<u8> {
    let cluster = connect::connect(connection).await?;
    let (objects, notes) = fetch::vips(&cluster, args.all_namespaces).await?;
    for note in notes {
        eprintln!("note: {note}");
    }
    let view = view::vips(&objects);
    if let Some(document) = document(args.output, &view)? {
        put(&document)?;
    } else if view.vips.is_empty() {
        let place = cluster.place(args.all_namespaces);
        eprintln!("No virtual server in {place} is served at any address.");
    } else {
        put(&text::vips(&view, Paint::for_stdout()))?;
    }
    Ok(EXIT_DONE)
}
