#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use hn_protocol::did::SecretSeed;
use hn_protocol::log::{CommitRequest, EntryDraft, LogState, PresenceFacts};

use super::*;
use crate::store::Store;
use crate::supervise::Registry;

fn identity(n: u8) -> Identity {
    SecretSeed::from_bytes([n; 32]).identity()
}

/// The slice and the presence of bob's log, which has one entry of this path; two paths are two logs.
fn bobs(path: &str) -> Vec<Line> {
    let facts = PresenceFacts {
        ttl_ms: 60_000,
        ..PresenceFacts::default()
    };
    let commit = |state: &LogState, entries, now| {
        let request = CommitRequest {
            entries,
            facts: &facts,
            now: Timestamp(now),
        };
        state.commit(request, &identity(2)).unwrap()
    };
    let first = commit(&LogState::empty(identity(2).did(), 0), vec![], 1_000_000);
    let entry = EntryDraft {
        kind: "file".into(),
        digest: Digest::of(path.as_bytes()),
        size: 1,
        path: path.into(),
        tags: BTreeMap::new(),
        metadata: BTreeMap::new(),
        replaces: None,
        retracts: None,
    };
    commit(&first.state, vec![entry], 2_000_000).lines
}

struct Scene {
    _folder: tempfile::TempDir,
    home: Home,
    catalog: Catalog,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(&folder.path().join("home")).unwrap();
        let registry = Registry::new(Metrics::new());
        let (store, _) = Store::open(&folder.path().join("state"), 1 << 20, &registry).unwrap();
        let catalog = Catalog::new(identity(1).did(), store);
        Self {
            _folder: folder,
            home,
            catalog,
        }
    }

    fn open(&self) -> Forks {
        let clock = Clock::system();
        let (home, catalog) = (self.home.clone(), self.catalog.clone());
        Forks::open(home, identity(1), clock, catalog, Metrics::new())
    }
}

fn accepted(line: &Line) -> Accepted {
    let side = ForkSide::of(line).unwrap();
    Accepted {
        epoch: 0,
        head: side.digest,
        log_size: side.log_size,
        log_root: side.log_root,
        at: Timestamp(4_000_000),
        settles: Vec::new(),
    }
}

#[test]
fn evidence_is_durable_is_kept_once_and_is_there_after_a_restart() {
    let scene = Scene::new();
    let (bob, forks) = (identity(2).did(), scene.open());
    assert!(forks.of(&bob).is_none());
    let before = scene.catalog.changes();
    let (a, b) = (bobs("a"), bobs("b"));
    let fork = forks.observe(&a[0], &b[0]).unwrap();
    assert!(
        scene.catalog.changes() > before,
        "who lists the heads is told"
    );
    let again = forks.observe(&a[1], &b[1]).unwrap();
    assert_eq!(again.evidence, fork.evidence, "one is enough");
    let read = forks.evidence(&fork).unwrap();
    assert!(Signed::<ForkEvidence>::verify(read).is_ok());
    assert!(
        scene.home.root().join(&fork.file).is_file(),
        "where it says"
    );
    let after = scene.open().of(&bob).unwrap();
    assert_eq!((after.evidence, after.file), (fork.evidence, fork.file));
}

#[test]
fn what_is_no_conflict_is_not_kept() {
    let scene = Scene::new();
    let (forks, a) = (scene.open(), bobs("a"));
    assert!(matches!(
        forks.observe(&a[0], &a[1]),
        Err(ForkError::Document(DocumentError::NoConflict))
    ));
    assert!(forks.list().is_empty());
}

#[test]
fn an_accepted_log_goes_on_until_something_newer_contradicts_it() {
    let scene = Scene::new();
    let (bob, forks) = (identity(2).did(), scene.open());
    let (a, b) = (bobs("a"), bobs("b"));
    let fork = forks.observe(&a[0], &b[0]).unwrap();
    forks.accept(&bob, accepted(&a[0])).unwrap();
    for forks in [forks, scene.open()] {
        assert!(forks.of(&bob).is_none(), "it goes on");
        assert!(forks.list()[0].accepted, "the evidence stays");
        let decided = forks.accepted(&bob).unwrap();
        assert_eq!(decided.settles, [fork.evidence]);
        assert!(decided.covers(&b[0]) && decided.refuses(&b[0]) && !decided.refuses(&a[0]));
        // Somebody else's evidence of the same is no news.
        let theirs = ForkEvidence::sign(&a[1], &b[1], Timestamp(5), &identity(3)).unwrap();
        assert!(forks.adopt(&theirs).unwrap().is_none());
    }
    // A decision for a shorter log leaves what is beyond it open.
    let mut short = accepted(&a[0]);
    short.log_size = 0;
    assert!(!short.covers(&b[0]));
}

#[test]
fn evidence_of_somebody_else_counts_as_our_own() {
    let scene = Scene::new();
    let forks = scene.open();
    let theirs =
        ForkEvidence::sign(&bobs("a")[0], &bobs("b")[0], Timestamp(5), &identity(3)).unwrap();
    let fork = forks.adopt(&theirs).unwrap().unwrap();
    assert_eq!(fork.observer, identity(3).did());
    assert_eq!(
        forks.evidence(&fork).unwrap(),
        *theirs.bytes(),
        "byte for byte"
    );
    assert!(forks.adopt(&theirs).unwrap().is_none(), "once");
}

#[test]
fn a_damaged_or_misplaced_file_hides_no_other_and_proves_nothing() {
    let scene = Scene::new();
    let (bob, forks) = (identity(2).did(), scene.open());
    let fork = forks.observe(&bobs("a")[0], &bobs("b")[0]).unwrap();
    let folder = scene.home.cache_dir(&bob);
    std::fs::write(folder.join("fork-0-damaged.json"), b"{").unwrap();
    let carol = scene.home.cache_dir(&identity(4).did());
    vault::create_dirs(&carol).unwrap();
    std::fs::copy(
        scene.home.root().join(&fork.file),
        carol.join("fork-0-x.json"),
    )
    .unwrap();
    std::fs::write(folder.join(ACCEPTED_FILE), b"nonsense").unwrap();
    let after = scene.open();
    assert_eq!(after.list().len(), 1);
    assert!(
        after.of(&bob).is_some(),
        "an unreadable decision decides nothing"
    );
    assert!(after.of(&identity(4).did()).is_none());
}

#[test]
fn evidence_that_cannot_be_written_calls_nobody_forked() {
    let scene = Scene::new();
    let forks = scene.open();
    // A file stands where the folder should be.
    std::fs::create_dir_all(scene.home.root()).unwrap();
    std::fs::write(scene.home.root().join("cache"), b"").unwrap();
    let kept = forks.observe(&bobs("a")[0], &bobs("b")[0]);
    assert!(matches!(kept, Err(ForkError::Io(_))));
    assert!(forks.of(&identity(2).did()).is_none());
}

#[test]
fn whose_own_did_has_ended_signs_no_evidence_and_keeps_that_of_others() {
    let (scene, other) = (Scene::new(), Scene::new());
    let (a, b) = (bobs("a"), bobs("b"));
    let evidence = ForkEvidence::sign(&a[0], &b[0], Timestamp(3_000_000), &identity(3)).unwrap();
    let forks = scene.open();
    let word = Bytes::from_static(b"its last word");
    scene.catalog.revoke(identity(1).did(), word);
    let refused = forks.observe(&a[0], &b[0]).unwrap_err();
    assert!(matches!(refused, ForkError::Revoked), "{refused}");
    assert!(forks.of(&identity(2).did()).is_none());
    assert!(forks.adopt(&evidence).unwrap().is_some());
    assert!(other.open().observe(&a[0], &b[0]).is_ok(), "others do");
}
