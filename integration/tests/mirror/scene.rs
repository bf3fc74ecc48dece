//! Bob, mallory before him, and alice who mirrors.

use std::path::PathBuf;

use hn_integration::cluster::{Node, Output};
use hn_integration::holder::{BREAK, Mallory};
use hn_protocol::digest::Digest;
use serde_json::Value;

/// The size of an artifact that takes several transfers where each breaks off after [`BREAK`] bytes.
pub const LARGE: usize = 6 * BREAK + 77;

pub struct Scene {
    pub bob: Node,
    pub mallory: Mallory,
    pub alice: Node,
}

impl Scene {
    /// Bob has published `files`; alice follows him through mallory and has mirrored nothing.
    pub async fn with(files: &[(String, Vec<u8>)]) -> Self {
        Self::of(Node::new("alice"), files).await
    }

    pub async fn of(mut alice: Node, files: &[(String, Vec<u8>)]) -> Self {
        let bob = Node::started("bob").await;
        publish(&bob, files).await;
        alice.start().await;
        let mallory = Mallory::before(&bob.base_url()).await;
        let did = bob.did().to_string();
        alice
            .ok(&["mcp", "federate", "add", &did, mallory.base_url()])
            .await;
        alice.refresh().await;
        Self {
            bob,
            mallory,
            alice,
        }
    }

    /// Mirrors once; what the report says of bob.
    pub async fn mirror(&self) -> (Output, Value) {
        let did = self.bob.did().to_string();
        let refresh = ["mcp", "federate", "refresh", &did, "--mirror"];
        let output = self.alice.cli(&refresh).await;
        let report = output.json["peers"][0].clone();
        assert!(report.is_object(), "{}{}", output.stdout, output.stderr);
        (output, report)
    }

    /// Mirrors once, all of it.
    pub async fn mirrors_all(&self, files: &[(String, Vec<u8>)]) -> Value {
        let (output, report) = self.mirror().await;
        assert_eq!(output.status, Some(0), "{report}");
        assert_eq!(report["mirrored"]["missing"], 0, "{report}");
        serves(&self.alice, files).await;
        report
    }

    pub fn copies(&self) -> PathBuf {
        let did = self.bob.did();
        self.alice
            .home()
            .join(format!("cache/federation/{did}/artifacts"))
    }

    /// The state of bob in alice's eyes, and why.
    pub async fn health(&self) -> (String, String) {
        let peer = self.alice.peer(self.bob.did()).await;
        let text = |name: &str| peer[name].as_str().unwrap_or_default().to_owned();
        (text("state"), text("reason"))
    }
}

pub async fn publish(node: &Node, files: &[(String, Vec<u8>)]) {
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
        .collect();
    node.publish(&files).await;
}

pub fn small(count: usize) -> Vec<(String, Vec<u8>)> {
    (0..count)
        .map(|n| {
            (
                format!("{n:04}"),
                format!("small {n}").repeat(n % 50 + 1).into_bytes(),
            )
        })
        .collect()
}

pub fn large(name: &str, size: usize) -> (String, Vec<u8>) {
    let seed = Digest::of(name.as_bytes()).0;
    let bytes = (0..size).map(|at| seed[at % 32] ^ (at / 32) as u8);
    (name.to_owned(), bytes.collect())
}

pub async fn serves(node: &Node, files: &[(String, Vec<u8>)]) {
    for (path, bytes) in files {
        let answer = node.get(&format!("/artifact/{}", Digest::of(bytes))).await;
        assert_eq!(answer.status(), 200, "{}: {path}", node.name());
        assert!(
            answer.bytes().await.unwrap() == bytes[..],
            "{path} is what bob published"
        );
    }
}

pub fn singles(asked: &[String]) -> usize {
    asked
        .iter()
        .filter(|path| path.starts_with("/artifact/"))
        .count()
}
