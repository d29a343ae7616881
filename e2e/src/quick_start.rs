//! The commands of the quick start in `docs/kubernetes.md`, run as they stand there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// First line of a block that a client outside the cluster runs.
const ON_A_CLIENT: &str = "# on a client";

/// A block of commands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// The commands, for a shell.
    pub script: String,
    /// Whether a client runs it, and not whoever administers the cluster.
    pub on_client: bool,
}

/// The root of the source tree, where the commands are run.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The blocks of the page by the title of their section, in order.
pub fn sections() -> Result<BTreeMap<String, Vec<Block>>> {
    let path = root().join("docs/kubernetes.md");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    blocks(&text)
}

fn blocks(text: &str) -> Result<BTreeMap<String, Vec<Block>>> {
    let mut sections: BTreeMap<String, Vec<Block>> = BTreeMap::new();
    let mut title = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(found) = line.strip_prefix("## ") {
            found.clone_into(&mut title);
        } else if line == "```sh" {
            let commands: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            sections.entry(title.clone()).or_default().push(Block {
                on_client: commands.first() == Some(&ON_A_CLIENT),
                script: commands.join("\n"),
            });
        } else if line.starts_with("```") {
            bail!("a block that is not of `sh` cannot be run: {line}");
        }
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_its_section_and_place() {
        let text = "# T\n## One\n```sh\na\nb\n```\ntext\n## Two\n```sh\n# on a client\nc\n```\n";
        let found = blocks(text).expect("blocks");
        let block = |script: &str, on_client| Block {
            script: script.to_owned(),
            on_client,
        };
        assert_eq!(found["One"], [block("a\nb", false)]);
        assert_eq!(found["Two"], [block("# on a client\nc", true)]);
        assert!(blocks("```yaml\n```\n").is_err());
    }

    #[test]
    fn the_readme_has_no_command_that_the_page_has_not() {
        let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
        let (_, rest) = readme.split_once("## On Kubernetes").expect("a section");
        let (_, rest) = rest.split_once("```sh\n").expect("a block");
        let (block, _) = rest.split_once("```").expect("the block's end");
        let sections = sections().expect("the page");
        let run: Vec<&str> = sections
            .values()
            .flatten()
            .flat_map(|block| block.script.lines())
            .collect();
        for command in block.lines() {
            assert!(run.contains(&command), "{command} is not run by a test");
        }
    }

    #[test]
    fn the_page_has_the_sections_that_the_tests_run() {
        let sections = sections().expect("the page");
        let titles: Vec<&str> = sections.keys().map(String::as_str).collect();
        assert_eq!(
            titles,
            [
                "A canary",
                "A virtual server",
                "Images",
                "Installing",
                "Removing"
            ]
        );
    }
}
