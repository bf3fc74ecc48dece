//! Homes as backups and careless hands leave them: copied whole, put back later, or beside the original.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::cluster::Node;

/// A copy of a home, as `cp -a` makes it. Of a node that does not run, or nothing can be said of what is in it.
pub struct Copy(TempDir);

impl Copy {
    /// Copies the home of `node`.
    pub fn of(node: &Node) -> Self {
        let dir = tempfile::tempdir().expect("a folder for a copy");
        copy(node.home(), &dir.path().join("home"));
        Self(dir)
    }

    /// Wipes the home of `node` and puts the copy in its place.
    pub fn restore(&self, node: &Node) {
        wipe(node);
        copy(&self.0.path().join("home"), node.home());
    }

    /// Another node, whose home is the copy: the same key at another address.
    pub fn node(&self, name: &str) -> Node {
        let dir = tempfile::tempdir().expect("a folder for a node");
        let home = dir.path().join("home");
        copy(&self.0.path().join("home"), &home);
        Node::at(name, dir, home)
    }
}

/// Deletes the home of `node`.
pub fn wipe(node: &Node) {
    fs::remove_dir_all(node.home()).expect("a home can be deleted");
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(
        status.expect("cp can be started").success(),
        "{} cannot be copied",
        from.display()
    );
}
