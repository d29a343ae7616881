//! Image archives as the OCI image layout specifies them, in the form that `ctr images import`, `podman load` and
//! `skopeo` read: an index with one manifest, which names a configuration and one layer, each stored under its digest.

use std::{collections::BTreeMap, env::consts};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::Builder;

use super::tree::{self, Tree};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIGURATION: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Where programs are looked for in a container.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The longest tag that registries accept.
const MAX_TAG_LENGTH: usize = 128;

/// A full image name, such as `localhost/sluice:dev`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Name {
    repository: String,
    tag: String,
}

impl Name {
    /// Refuses a repository without its registry: container runtimes would look for it under another name than it is stored.
    pub(super) fn new(repository: &str, tag: &str) -> Result<Self> {
        let registry = repository.split_once('/').map(|(registry, _)| registry);
        if !registry.is_some_and(|name| name == "localhost" || name.contains(['.', ':'])) {
            bail!(
                "the repository {repository:?} names no registry: write it in full, such as localhost/sluice"
            );
        }
        let plain = |text: &str, more: &[char]| {
            text.chars().all(|character| {
                character.is_ascii_lowercase()
                    || character.is_ascii_digit()
                    || more.contains(&character)
            })
        };
        if !plain(repository, &['.', ':', '/', '-', '_']) || repository.ends_with('/') {
            bail!(
                "the repository {repository:?} is not made of lower-case letters, digits and . : / - _"
            );
        }
        let word = plain(&tag.to_ascii_lowercase(), &['.', '-', '_']);
        if tag.is_empty() || tag.len() > MAX_TAG_LENGTH || tag.starts_with(['.', '-']) || !word {
            bail!(
                "the tag {tag:?} is not made of at most {MAX_TAG_LENGTH} letters, digits and . - _, the first none of . -"
            );
        }
        Ok(Self {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
        })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.repository, self.tag)
    }
}

/// How a container of the image is run unless a pod says otherwise.
#[derive(Clone, Copy, Default)]
pub(super) struct Run {
    /// The program to start and its first arguments; without any, a pod must give its command.
    pub(super) entrypoint: &'static [&'static str],
    /// User and group; the empty text is root.
    pub(super) user: &'static str,
    /// The signal that asks it to end; the empty text is SIGTERM.
    pub(super) stop_signal: &'static str,
}

/// The archive of an image. Equal arguments give equal bytes.
pub(super) fn archive(name: &Name, tree: &Tree, run: Run) -> Result<Vec<u8>> {
    let mut blobs = BTreeMap::new();
    let layer = store(&mut blobs, LAYER, tree.layer()?);
    let configuration = serde_json::to_vec(&configuration(run, &layer["digest"]))?;
    let configuration = store(&mut blobs, CONFIGURATION, configuration);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": configuration,
        "layers": [layer],
    });
    let mut manifest = store(&mut blobs, MANIFEST, serde_json::to_vec(&manifest)?);
    manifest["platform"] = json!({"architecture": architecture(), "os": "linux"});
    // containerd takes the full name from its own annotation, other tools the tag from OCI's.
    manifest["annotations"] = json!({
        "io.containerd.image.name": name.to_string(),
        "org.opencontainers.image.ref.name": name.tag,
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]});
    let mut files = BTreeMap::from([
        ("index.json".to_owned(), serde_json::to_vec(&index)?),
        (
            "oci-layout".to_owned(),
            serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?,
        ),
    ]);
    files.extend(blobs);
    let mut archive = Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tree::header();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, path, content.as_slice())?;
    }
    Ok(archive.into_inner()?)
}

fn configuration(run: Run, layer: &Value) -> Value {
    let mut defaults = json!({"Env": [PATH], "WorkingDir": "/"});
    if !run.entrypoint.is_empty() {
        defaults["Entrypoint"] = json!(run.entrypoint);
    }
    if !run.user.is_empty() {
        defaults["User"] = json!(run.user);
    }
    if !run.stop_signal.is_empty() {
        defaults["StopSignal"] = json!(run.stop_signal);
    }
    json!({
        "architecture": architecture(),
        "os": "linux",
        "config": defaults,
        // The layer is not compressed, so its digest is also that of its content.
        "rootfs": {"type": "layers", "diff_ids": [layer]},
        "history": [{"created_by": "cargo xtask images"}],
    })
}

/// Keeps the content under its digest and describes it.
fn store(blobs: &mut BTreeMap<String, Vec<u8>>, kind: &str, content: Vec<u8>) -> Value {
    let hash = format!("{:x}", Sha256::digest(&content));
    let descriptor = json!({
        "mediaType": kind,
        "digest": format!("sha256:{hash}"),
        "size": content.len(),
    });
    blobs.insert(format!("blobs/sha256/{hash}"), content);
    descriptor
}

/// This machine's architecture by the name that images use.
fn architecture() -> &'static str {
    match consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const RUN: Run = Run {
        entrypoint: &["/bin/a", "-b"],
        user: "1:1",
        stop_signal: "SIGQUIT",
    };

    fn example(content: &str) -> Vec<u8> {
        let mut tree = Tree::default();
        tree.file("bin/a", 0o755, content);
        let name = Name::new("localhost/a", "dev").unwrap();
        archive(&name, &tree, RUN).unwrap()
    }

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap();
        entries
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (entry.path().unwrap().display().to_string(), content)
            })
            .collect()
    }

    /// The content of the file that a descriptor names, after its digest and size were compared.
    fn follow<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let digest = descriptor["digest"].as_str().unwrap();
        let hash = digest.strip_prefix("sha256:").unwrap();
        let content = &files[&format!("blobs/sha256/{hash}")];
        assert_eq!(format!("{:x}", Sha256::digest(content)), hash);
        assert_eq!(descriptor["size"], content.len());
        content
    }

    fn parsed(content: &[u8]) -> Value {
        serde_json::from_slice(content).unwrap()
    }

    #[test]
    fn the_index_leads_to_the_files() {
        let files = files(&example("A"));
        assert_eq!(
            parsed(&files["oci-layout"]),
            json!({"imageLayoutVersion": "1.0.0"})
        );
        let index = parsed(&files["index.json"]);
        let descriptor = &index["manifests"][0];
        assert_eq!(
            descriptor["annotations"],
            json!({
                "io.containerd.image.name": "localhost/a:dev",
                "org.opencontainers.image.ref.name": "dev",
            })
        );
        let manifest = parsed(follow(&files, descriptor));
        let configuration = parsed(follow(&files, &manifest["config"]));
        assert_eq!(
            configuration["config"],
            json!({
                "Entrypoint": ["/bin/a", "-b"],
                "Env": [PATH],
                "StopSignal": "SIGQUIT",
                "User": "1:1",
                "WorkingDir": "/",
            })
        );
        let layer = &manifest["layers"][0];
        assert_eq!(
            configuration["rootfs"]["diff_ids"],
            json!([layer["digest"]])
        );
        let layer = follow(&files, layer);
        let mut archive = tar::Archive::new(layer);
        let paths: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(paths, ["bin", "bin/a"]);
        // Index, layout, manifest, configuration and layer, and nothing that none of them names.
        assert_eq!(files.len(), 5);
    }

    #[test]
    fn equal_files_give_equal_archives() {
        assert!(example("A") == example("A"));
        assert!(example("A") != example("B"));
    }

    #[test]
    fn names_are_full() {
        let name = |repository, tag| Name::new(repository, tag).map(|name| name.to_string());
        assert_eq!(
            name("localhost/sluice", "dev").unwrap(),
            "localhost/sluice:dev"
        );
        assert!(name("registry.example:5000/a/sluice", "V1.0_x").is_ok());
        for (repository, tag, told) in [
            ("sluice", "dev", "names no registry"),
            ("team/sluice", "dev", "names no registry"),
            ("localhost/Sluice", "dev", "lower-case"),
            ("localhost/", "dev", "lower-case"),
            ("localhost/sluice", "", "the tag"),
            ("localhost/sluice", "-x", "the tag"),
            ("localhost/sluice", "a b", "the tag"),
        ] {
            let message = name(repository, tag).unwrap_err().to_string();
            assert!(message.contains(told), "{message}");
        }
    }
}
