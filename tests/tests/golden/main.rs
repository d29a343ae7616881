//! From manifests to maps: what the operator decides of the objects of a case, and what nodes' maps hold then.
//!
//! `tests/golden/README.md` says how a case reads and how to add one.

mod case;
mod cluster;
mod maps;
mod node;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use sluice_api::jiff::Timestamp;
use sluice_api::{NodeRole, Time, read_peers, write_peers};
use sluice_directory::manifest;

use case::{Document, Step};
use cluster::Cluster;
use node::Node;

/// Rounds in which everything must have settled.
const MAX_ROUNDS: usize = 64;

/// Sections of the dump, by heading.
type Sections = Vec<(String, String)>;

struct Case {
    cluster: Cluster,
    nodes: BTreeMap<String, Node>,
    now: i64,
    last: BTreeMap<String, String>,
    text: String,
}

impl Case {
    fn new(steps: &[Step]) -> Self {
        let source = steps.first().expect("a case has a step").header.source;
        Self {
            cluster: Cluster::new(source),
            nodes: BTreeMap::new(),
            now: text::BEGIN,
            last: BTreeMap::new(),
            text: String::new(),
        }
    }

    fn step(&mut self, number: usize, step: &Step) {
        let header = &step.header;
        self.now += header.after;
        self.say(format!("=== {number}: {}", header.step));
        for (name, news) in &header.nodes {
            self.nodes.entry(name.clone()).or_default().hear(news);
        }
        for path in &header.delete {
            self.cluster.delete(path);
        }
        for document in &step.documents {
            self.apply(document);
        }
        for (policy, command) in &header.commands {
            self.cluster.command(policy, command);
        }
        self.settle();
        let sections = self.sections();
        self.tell_changes(sections);
    }

    fn apply(&mut self, document: &Document) {
        match document {
            Document::EndpointSlice(slice) => self.cluster.endpoints(slice),
            Document::Service(service) => self.cluster.service(service),
            Document::Manifest(text) => match manifest::parse(text) {
                Ok(objects) => {
                    for object in objects {
                        self.cluster.apply(object);
                    }
                }
                Err(errors) => {
                    for error in errors {
                        self.say(format!("manifest refused: {error}"));
                    }
                }
            },
        }
    }

    /// Operator and agents work in turn until nothing changes. No time passes.
    fn settle(&mut self) {
        let now = Time(Timestamp::from_second(self.now).expect("a time"));
        for round in 0.. {
            assert!(round < MAX_ROUNDS, "not settled:\n{}", self.text);
            self.report();
            let changed = self.cluster.round(&now);
            let before: Vec<_> = self.nodes.values().map(Node::status).collect();
            let maps: Vec<_> = self
                .nodes
                .values()
                .map(|node| node.image().clone())
                .collect();
            self.follow();
            let same = self.nodes.values().map(Node::status).eq(before)
                && self.nodes.values().map(Node::image).eq(&maps);
            if !changed && same {
                return;
            }
        }
    }

    fn report(&mut self) {
        for (name, node) in &self.nodes {
            if self.cluster.role(name).is_some() {
                self.cluster.report(name, node.status(), node.agent);
            }
        }
    }

    fn follow(&mut self) {
        let decided = self.cluster.decided();
        let directors = self
            .nodes
            .iter()
            .filter(|(name, _)| self.cluster.role(name) == Some(NodeRole::Director))
            .map(|(name, node)| (name.clone(), node.peer()));
        let (list, _) = write_peers(&directors.collect());
        let directors = read_peers(&list).expect("a list");
        for (name, node) in &mut self.nodes {
            let Some(role) = self.cluster.role(name) else {
                continue;
            };
            let mut peers = directors.clone();
            peers.remove(name);
            node.follow(name, role, &peers, &decided);
        }
    }

    fn sections(&self) -> Sections {
        let statuses = self.cluster.statuses().into_iter();
        let mut sections: Sections = statuses
            .map(|(name, status)| (name, text::status(&status)))
            .collect();
        for (name, node) in &self.nodes {
            let notes = node.notes().join("\n");
            if !notes.is_empty() {
                sections.push((format!("{name} | notes"), notes));
            }
            let maps = maps::sections(node).into_iter();
            sections.extend(maps.map(|(heading, text)| (format!("{name} | {heading}"), text)));
        }
        sections
    }

    /// Tells what is new or has changed since the last step.
    fn tell_changes(&mut self, sections: Sections) {
        let mut quiet = true;
        for (heading, text) in &sections {
            if self.last.get(heading) != Some(text) {
                self.section(heading, text);
                quiet = false;
            }
        }
        let now: BTreeMap<String, String> = sections.into_iter().collect();
        for heading in std::mem::replace(&mut self.last, now).into_keys() {
            if !self.last.contains_key(&heading) {
                self.section(&heading, "is gone");
                quiet = false;
            }
        }
        let nodes = self.nodes.iter_mut();
        let writes = nodes.map(|(name, node)| (name.clone(), maps::writes(&node.take_writes())));
        for (name, writes) in writes.collect::<Sections>() {
            if !writes.is_empty() {
                self.section(&format!("{name} | writes"), &writes);
                quiet = false;
            }
        }
        self.say(if quiet { "\nnothing changes\n" } else { "" });
    }

    fn section(&mut self, heading: &str, text: &str) {
        self.say(format!("\n{heading}"));
        for line in text.lines() {
            self.say(format!("  {line}"));
        }
    }

    fn say(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }
}

fn dump(input: &str) -> Result<String, String> {
    let steps = case::read(input)?;
    let mut case = Case::new(&steps);
    for (i, step) in steps.iter().enumerate() {
        case.step(i + 1, step);
    }
    Ok(case.text.trim_end().to_owned() + "\n")
}

/// The files of the suite with this extension.
fn files(extension: &str) -> BTreeSet<PathBuf> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    let files = std::fs::read_dir(directory).expect("the suite's directory");
    files
        .map(|file| file.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect()
}

#[test]
fn manifests_lead_to_the_expected_maps() {
    let mut failures = String::new();
    for path in files("yaml") {
        let input = std::fs::read_to_string(&path).expect("a case can be read");
        let result = match dump(&input) {
            Ok(text) => {
                let golden = path.with_extension("txt");
                sluice_golden_file::check(&golden, &text).map_err(|error| error.to_string())
            }
            Err(error) => Err(format!("{}: {error}", path.display())),
        };
        if let Err(error) = result {
            failures += &error;
            failures.push('\n');
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn no_expectation_is_left_without_its_case() {
    let cases: BTreeSet<PathBuf> = files("yaml")
        .into_iter()
        .map(|path| path.with_extension("txt"))
        .collect();
    let left: Vec<_> = files("txt").difference(&cases).cloned().collect();
    assert!(left.is_empty(), "remove {left:?}");
}
