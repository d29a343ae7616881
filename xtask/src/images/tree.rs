//! The files of an image.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsString,
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tar::{Builder, EntryType, Header};

use super::libraries;

/// As many symbolic links as Linux follows in one path.
const MAX_SYMLINKS: usize = 40;

enum Entry {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Symlink { target: PathBuf },
}

/// Files by path from the image's root, without a leading slash. Everything belongs to root.
#[derive(Default)]
pub(super) struct Tree {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Tree {
    /// Adds a directory, and those above it with mode 755. One that is there keeps its mode.
    pub(super) fn directory(&mut self, path: impl AsRef<Path>, mode: u32) {
        let path = path.as_ref();
        if let Some(parent) = path.parent().filter(|parent| *parent != Path::new("")) {
            self.directory(parent, 0o755);
        }
        self.entries
            .entry(path.to_owned())
            .or_insert(Entry::Directory { mode });
    }

    /// Adds a file.
    pub(super) fn file(&mut self, path: impl AsRef<Path>, mode: u32, content: impl Into<Vec<u8>>) {
        let content = content.into();
        self.add(path.as_ref(), Entry::File { mode, content });
    }

    fn add(&mut self, path: &Path, entry: Entry) {
        if let Some(parent) = path.parent().filter(|parent| *parent != Path::new("")) {
            self.directory(parent, 0o755);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Adds an executable of this machine under another path, and the libraries that it needs under their own.
    pub(super) fn program(&mut self, path: &str, from: &Path, content: Vec<u8>) -> Result<()> {
        self.file(path, 0o755, content);
        for library in libraries::of(from)? {
            self.copy(&library)?;
        }
        Ok(())
    }

    /// Adds a file of this machine under its own path, with the symbolic links on the way to it.
    pub(super) fn copy(&mut self, path: &Path) -> Result<()> {
        self.copy_below(Path::new("/"), path)
    }

    /// As `copy`, of a file system whose root is `root`.
    fn copy_below(&mut self, root: &Path, path: &Path) -> Result<()> {
        let mut left: VecDeque<OsString> = names(path);
        let mut done = PathBuf::new();
        let mut followed = 0;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                done.pop();
                continue;
            }
            let here = done.join(&name);
            let full = root.join(&here);
            let kind = fs::symlink_metadata(&full)
                .with_context(|| format!("cannot look at {}", full.display()))?
                .file_type();
            if kind.is_symlink() {
                followed += 1;
                if followed > MAX_SYMLINKS {
                    bail!("{} is a loop of symbolic links", path.display());
                }
                let target = fs::read_link(&full)
                    .with_context(|| format!("cannot read the link {}", full.display()))?;
                if target.is_absolute() {
                    done = PathBuf::new();
                }
                for part in names(&target).into_iter().rev() {
                    left.push_front(part);
                }
                self.add(&here, Entry::Symlink { target });
            } else {
                done = here;
            }
        }
        let full = root.join(&done);
        let content = fs::read(&full).with_context(|| format!("cannot read {}", full.display()))?;
        self.file(&done, mode(&full)?, content);
        Ok(())
    }

    /// The files as a tar archive: sorted, without times and names of users, so that equal files give equal bytes.
    pub(super) fn layer(&self) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = header();
            match entry {
                Entry::Directory { mode } => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(*mode);
                    archive.append_data(&mut header, path, &[][..])?;
                }
                Entry::File { mode, content } => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_mode(*mode);
                    header.set_size(content.len() as u64);
                    archive.append_data(&mut header, path, content.as_slice())?;
                }
                Entry::Symlink { target } => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    archive.append_link(&mut header, path, target)?;
                }
            }
        }
        Ok(archive.into_inner()?)
    }
}

/// A header that depends on nothing but what is set afterwards.
pub(super) fn header() -> Header {
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

/// Directories and file name of a path; a leading slash and dots are left out.
fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// 755 for what is executable here, else 644: the umask of whoever installed it does not reach the image.
fn mode(path: &Path) -> Result<u32> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path)
        .with_context(|| format!("cannot look at {}", path.display()))?
        .permissions()
        .mode();
    Ok(if mode & 0o100 == 0 { 0o644 } else { 0o755 })
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::fs::symlink, process};

    use super::*;

    /// (path, kind, mode, link target, content) of each entry.
    fn read(layer: &[u8]) -> Vec<(String, EntryType, u32, Option<String>, String)> {
        let mut archive = tar::Archive::new(layer);
        let entries = archive.entries().unwrap();
        entries
            .map(|entry| {
                let mut entry = entry.unwrap();
                assert_eq!(entry.header().mtime().unwrap(), 0);
                assert_eq!(entry.header().uid().unwrap(), 0);
                let mut content = String::new();
                let path = entry.path().unwrap().display().to_string();
                let target = entry.link_name().unwrap();
                let target = target.map(|target| target.display().to_string());
                let (kind, mode) = (entry.header().entry_type(), entry.header().mode().unwrap());
                entry.read_to_string(&mut content).unwrap();
                (path, kind, mode, target, content)
            })
            .collect()
    }

    #[test]
    fn a_layer_is_sorted_and_has_the_directories_above_its_files() {
        let mut tree = Tree::default();
        tree.file("usr/bin/b", 0o755, "B");
        tree.directory("tmp", 0o1777);
        tree.file("usr/bin/a", 0o644, "A");
        let layer = tree.layer().unwrap();
        let found = read(&layer);
        let paths: Vec<_> = found.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(paths, ["tmp", "usr", "usr/bin", "usr/bin/a", "usr/bin/b"]);
        assert_eq!(found[0].1, EntryType::Directory);
        assert_eq!(found[0].2, 0o1777);
        assert_eq!((found[3].2, found[3].4.as_str()), (0o644, "A"));
        assert_eq!((found[4].2, found[4].4.as_str()), (0o755, "B"));
    }

    #[test]
    fn links_on_the_way_to_a_file_are_kept() {
        let root = std::env::temp_dir().join(format!("sluice-images-{}", process::id()));
        fs::create_dir_all(root.join("usr/lib/deep")).unwrap();
        fs::write(root.join("usr/lib/deep/library.so.1.2"), "L").unwrap();
        symlink("usr/lib", root.join("lib")).unwrap();
        symlink(
            "../lib/deep/library.so.1.2",
            root.join("usr/lib/library.so.1"),
        )
        .unwrap();
        symlink("/lib/loop", root.join("usr/lib/loop")).unwrap();
        let mut tree = Tree::default();
        let copied = tree.copy_below(&root, Path::new("/lib/library.so.1"));
        let looped = tree.copy_below(&root, Path::new("/lib/loop"));
        fs::remove_dir_all(&root).unwrap();
        copied.unwrap();
        let message = format!("{:#}", looped.unwrap_err());
        assert!(message.contains("loop of symbolic links"), "{message}");
        let found: Vec<_> = read(&tree.layer().unwrap())
            .into_iter()
            .filter(|entry| entry.1 != EntryType::Directory)
            .map(|(path, _, _, target, content)| (path, target.unwrap_or(content)))
            .collect();
        let expected = [
            ("lib", "usr/lib"),
            ("usr/lib/deep/library.so.1.2", "L"),
            ("usr/lib/library.so.1", "../lib/deep/library.so.1.2"),
            ("usr/lib/loop", "/lib/loop"),
        ];
        assert_eq!(
            found,
            expected.map(|(path, content)| (path.to_owned(), content.to_owned()))
        );
    }
}
