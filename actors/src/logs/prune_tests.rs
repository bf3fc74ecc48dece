#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hn_protocol::did::{Did, Identity, SecretSeed};
use hn_protocol::log::{
    Commit, CommitRequest, EntryDraft, Line, NoHistory, PageContext, PresenceFacts, Source,
    first_presence,
};
use hn_protocol::proof::InclusionProof;

use crate::catalog::{Catalog, Page, ReadError};
use crate::home::Home;
use crate::prove::Prover;
use crate::store::Store;
use crate::supervise::Registry;
use crate::vault::{FileCache, SpaceGuard};

const START: Timestamp = Timestamp(1_767_225_600_000);
const SECOND: u64 = 1000;

/// Failpoints are the process's: whoever arms one is alone with those who pass it.
static POINTS: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    POINTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A holder's shelf, and a publisher whose log it follows: one slice of three entries a second.
struct Scene {
    shelf: Shelf,
    log: Log,
    bob: Identity,
    now: Timestamp,
    _folder: tempfile::TempDir,
}

fn draft(path: String) -> EntryDraft {
    EntryDraft {
        kind: "file".into(),
        digest: Digest::of(path.as_bytes()),
        size: 1,
        path,
        tags: Default::default(),
        metadata: Default::default(),
        replaces: None,
        retracts: None,
    }
}

impl Scene {
    fn new(slices: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(&folder.path().join("home")).unwrap();
        let registry = Registry::new(crate::metrics::Metrics::new());
        let (store, _) = Store::open(&home.state_dir(), 1 << 20, &registry).unwrap();
        let identity = |n| SecretSeed::from_bytes([n; 32]).identity();
        let shelf = Shelf {
            catalog: Catalog::new(identity(9).did(), store.clone()),
            files: FileCache::default(),
            space: SpaceGuard::new(home.root(), 0),
            home,
            store,
        };
        let bob = identity(1);
        let (log, _) = shelf.open(bob.did(), Place::Cached).unwrap();
        let mut scene = Self {
            shelf,
            log,
            bob,
            now: START,
            _folder: folder,
        };
        let facts = scene.facts();
        let first = first_presence(&scene.bob, 0, &facts, START).unwrap();
        scene.take(first);
        (0..slices).for_each(|_| scene.grow());
        scene
    }

    fn facts(&self) -> PresenceFacts {
        PresenceFacts {
            ttl_ms: 1 << 40,
            ..PresenceFacts::default()
        }
    }

    fn take(&mut self, commit: Commit) {
        self.now.0 += SECOND;
        let Self { shelf, log, .. } = self;
        shelf
            .append(log, &commit.lines, commit.state, self.now, None)
            .unwrap();
    }

    fn grow(&mut self) {
        let size = self.log.state.size();
        let entries = (size..size + 3).map(|n| draft(n.to_string())).collect();
        let facts = self.facts();
        let request = CommitRequest {
            entries,
            facts: &facts,
            now: self.now,
        };
        let commit = self.log.state.commit(request, &self.bob).unwrap();
        self.take(commit);
    }

    fn did(&self) -> Did {
        self.bob.did()
    }

    fn prune(&mut self, policy: PrunePolicy) -> Option<Pruned> {
        self.shelf.prune(&mut self.log, &policy, self.now).unwrap()
    }

    fn reopen(&mut self) -> super::super::Replayed {
        let (log, replayed) = self.shelf.open(self.did(), Place::Cached).unwrap();
        self.log = log;
        replayed
    }

    fn page(&self, cursor: u64) -> Result<Page, ReadError> {
        let view = self.shelf.catalog.log(&self.did()).unwrap();
        self.shelf.catalog.page(&view, cursor, 64)
    }

    /// What a follower who holds nothing makes of the page at the log's first cursor.
    fn follow(&self) -> LogState {
        let Err(ReadError::Pruned { first_cursor }) = self.page(0) else {
            panic!("the log is pruned")
        };
        let page = self.page(first_cursor).unwrap();
        assert!(first_cursor == 0 || self.page(first_cursor - 1).is_err());
        let lines: Vec<Bytes> = page
            .body
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(Bytes::copy_from_slice)
            .collect();
        assert!(matches!(
            Line::verify(lines[0].clone()),
            Ok(Line::Frontier(_))
        ));
        let context = PageContext {
            now: self.now,
            source: Source::Holder,
            reaches_head: page.next.is_none(),
        };
        let empty = LogState::empty(self.did(), self.log.state.epoch);
        empty.follow(&lines, context, &NoHistory).unwrap().state
    }

    /// Everything that is promised of a log that begins at `base`.
    fn check(&self, base: u64) {
        let view = self.shelf.catalog.log(&self.did()).unwrap();
        assert_eq!((view.state.base, &view.state), (base, &self.log.state));
        let prover = Prover::default();
        let (home, catalog) = (&self.shelf.home, &self.shelf.catalog);
        for seq in base..view.state.size() {
            let proof = prover.prove(home, catalog, &view, seq).unwrap();
            assert_eq!(InclusionProof::verify(&proof).unwrap().claim.seq, seq);
        }
        if base > 0 {
            let followed = self.follow();
            assert_eq!((followed.base, followed.root()), (base, view.state.root()));
            assert!(prover.prove(home, catalog, &view, 0).is_err());
        }
        let kept = self.shelf.catalog.slices(&view, 0);
        assert_eq!(
            kept.map(Result::unwrap).count() as u64,
            (view.state.size() - base) / 3
        );
        let folder = self.shelf.home.cache_dir(&self.did());
        let names = std::fs::read_dir(folder).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(
            names.len(),
            view.reader.files().len(),
            "nothing is left over: {names:?}"
        );
    }
}

#[test]
fn a_log_keeps_the_entries_that_its_policy_asks_for_and_every_one_of_them_proves() {
    let _alone = alone();
    let mut scene = Scene::new(10);
    let keep = |entries| PrunePolicy {
        entries,
        ..PrunePolicy::default()
    };
    assert_eq!(scene.prune(PrunePolicy::default()), None);
    assert_eq!(scene.prune(keep(28)), None, "an eighth more may be there");
    scene.check(0);
    let pruned = scene.prune(keep(10)).unwrap();
    assert_eq!(
        (pruned.base, pruned.entries),
        (18, 18),
        "12 stay: whole slices"
    );
    assert!(pruned.bytes > 0);
    scene.check(18);
    assert_eq!(scene.prune(keep(12)), None);
    for round in 0..12 {
        scene.grow();
        scene.prune(keep(10));
        let (base, size) = (scene.log.state.base, scene.log.state.size());
        assert!(
            (10..=14).contains(&(size - base)),
            "{round}: {base} of {size}"
        );
        scene.check(base);
    }
    assert_eq!(
        scene.prune(keep(1)).unwrap().base,
        scene.log.state.size() - 3
    );
    scene.check(scene.log.state.size() - 3);
    assert_eq!(scene.prune(keep(1)), None, "the newest slice always stays");
}

#[test]
fn a_log_keeps_the_bytes_and_the_time_that_its_policy_asks_for() {
    let _alone = alone();
    let mut scene = Scene::new(30);
    let bytes = scene.log.journal.total_len();
    let policy = PrunePolicy {
        bytes: bytes / 2,
        ..PrunePolicy::default()
    };
    scene.prune(policy).unwrap();
    assert!(scene.log.journal.total_len() <= bytes / 2);
    let base = scene.log.state.base;
    assert!((30..80).contains(&base), "about half of 90: {base}");
    scene.check(base);
    let policy = PrunePolicy {
        age: Duration::from_secs(3),
        ..PrunePolicy::default()
    };
    scene.prune(policy).unwrap();
    assert_eq!(
        scene.log.state.base, 81,
        "the last three slices were signed within 3 s"
    );
    scene.check(81);
}

#[test]
fn a_pruned_log_is_the_same_log_after_a_start_and_after_its_index_is_lost() {
    let _alone = alone();
    let mut scene = Scene::new(10);
    let policy = PrunePolicy {
        entries: 9,
        ..PrunePolicy::default()
    };
    scene.prune(policy).unwrap();
    let state = scene.log.state.clone();
    assert_eq!(scene.reopen().slices, 0, "the index knows it");
    assert_eq!(scene.log.state, state);
    scene.check(21);
    scene.shelf.store.clear_all().unwrap();
    assert_eq!(
        scene.reopen().slices,
        4,
        "the last pruned one and three behind it"
    );
    assert_eq!(scene.log.state, state);
    scene.check(21);
    scene.grow();
    scene.grow();
    scene.check(21);
    scene.prune(policy).unwrap();
    scene.check(27);
}

#[test]
fn a_page_judged_before_a_pruning_is_appended_after_it() {
    let _alone = alone();
    let mut scene = Scene::new(6);
    let judged = scene.log.state.clone();
    let facts = scene.facts();
    let request = CommitRequest {
        entries: vec![draft("late".into())],
        facts: &facts,
        now: scene.now,
    };
    let commit = judged.commit(request, &scene.bob).unwrap();
    scene
        .prune(PrunePolicy {
            entries: 3,
            ..PrunePolicy::default()
        })
        .unwrap();
    let state = LogState {
        base: scene.log.state.base,
        ..commit.state
    };
    let Scene { shelf, log, .. } = &mut scene;
    shelf
        .append(log, &commit.lines, state, START, None)
        .unwrap();
    scene.shelf.store.clear_all().unwrap();
    scene.reopen();
    assert_eq!((scene.log.state.size(), scene.log.state.base), (19, 15));
    assert!(
        scene.page(15).is_ok(),
        "every presence that it names is there"
    );
}

#[test]
fn a_pruning_that_fails_at_any_point_leaves_the_log_as_it_was_or_as_it_should_be() {
    let _alone = alone();
    let points = failpoint::NAMES
        .iter()
        .filter(|name| name.starts_with("prune."));
    for (number, point) in points.enumerate() {
        let mut scene = Scene::new(10);
        failpoint::set(point, "error").unwrap();
        let policy = PrunePolicy {
            entries: 9,
            ..PrunePolicy::default()
        };
        let now = scene.now;
        scene
            .shelf
            .prune(&mut scene.log, &policy, now)
            .expect_err(point);
        failpoint::set(point, "off").unwrap();
        scene.reopen();
        let renamed = number >= 2;
        assert_eq!(
            scene.log.state.base,
            if renamed { 21 } else { 0 },
            "{point}"
        );
        scene.check(scene.log.state.base);
        scene.grow();
        scene.prune(policy);
        scene.check(24);
    }
}

#[test]
fn small_files_are_joined_and_nothing_else_changes() {
    let _alone = alone();
    let mut scene = Scene::new(4);
    let folder = scene.shelf.home.cache_dir(&scene.did());
    // As if the journal had been written in pieces.
    let file = scene.log.journal.files()[0].clone();
    let text = std::fs::read_to_string(folder.join(&file.name)).unwrap();
    for (number, line) in text.lines().enumerate() {
        let name = format!("index-{}.jsonl", file.id.0 + 10 * number as u64);
        std::fs::write(folder.join(name), format!("{line}\n")).unwrap();
    }
    scene.reopen();
    let before = scene.page(0).unwrap().body;
    assert_eq!(scene.log.journal.files().len(), text.lines().count());
    assert!(scene.shelf.compact(&mut scene.log).unwrap());
    assert_eq!(scene.log.journal.files().len(), 1);
    assert_eq!(scene.page(0).unwrap().body, before);
    scene.check(0);
    assert_eq!(scene.reopen().slices, 0, "the index knows it");
    scene.grow();
    scene.check(0);
    assert!(!scene.shelf.compact(&mut scene.log).unwrap());
}

#[test]
fn earlier_epochs_go_with_the_beginning_of_the_newest() {
    let _alone = alone();
    let mut scene = Scene::new(3);
    let facts = scene.facts();
    let first = first_presence(&scene.bob, 1, &facts, scene.now).unwrap();
    let state = LogState {
        floor: scene.log.state.next_epoch(1).floor,
        ..first.state
    };
    scene.take(Commit {
        lines: first.lines,
        state,
    });
    (0..5).for_each(|_| scene.grow());
    let earlier = |scene: &Scene| {
        let catalog = &scene.shelf.catalog;
        let view = catalog.log(&scene.did()).unwrap();
        catalog.earlier(&view, 0).unwrap().is_some()
    };
    assert!(earlier(&scene), "both epochs are there");
    let policy = PrunePolicy {
        entries: 6,
        ..PrunePolicy::default()
    };
    assert_eq!(scene.prune(policy).unwrap().base, 9);
    for _ in 0..2 {
        assert_eq!((scene.log.state.epoch, scene.log.state.base), (1, 9));
        assert!(!earlier(&scene));
        scene.check(9);
        scene.shelf.store.clear_all().unwrap();
        scene.reopen();
    }
    let trees = scene.shelf.home.trees_dir();
    assert_eq!(std::fs::read_dir(trees).unwrap().count(), 1);
}
