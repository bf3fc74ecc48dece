//! What the Store promises, one sentence a test.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::failpoint;
use crate::metrics::Metrics;
use crate::supervise::ActorState;
use std::fs;
use std::sync::Mutex as TestLock;

const CACHE: u64 = 1 << 20;

/// The failpoint `actor.store` is met by every writer of this process: the test that arms it wants to be alone.
static ALONE: TestLock<()> = TestLock::new(());

fn open(folder: &Path) -> (Store, Opened) {
    Store::open(folder, CACHE, &Registry::new(Metrics::new())).unwrap()
}

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn put(store: &Store, tree: Tree, key: &[u8], value: &str) {
    let mut batch = Batch::new();
    batch.put(tree, key, value).unwrap();
    store.apply(batch).unwrap();
}

fn fill(store: &Store, count: u32) {
    let mut batch = Batch::new();
    for n in 0..count {
        batch
            .put(Tree::Slices, &n.to_be_bytes(), &format!("value {n}"))
            .unwrap();
    }
    store.apply(batch).unwrap();
}

fn holds(store: &Store, key: &[u8]) -> bool {
    store.get_bytes(Tree::Meta, key).unwrap().is_some()
}

fn count(store: &Store, tree: Tree) -> usize {
    store
        .scan_prefix(tree, b"")
        .unwrap()
        .map(Result::unwrap)
        .count()
}

#[test]
fn what_was_applied_is_read_at_once_and_after_each_restart() {
    let _alone = alone();
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("state");
    for round in 0..6u32 {
        let (store, opened) = open(&folder);
        assert_eq!(
            opened == Opened::Fresh,
            round == 0,
            "round {round}: {opened:?}"
        );
        let before = store.get::<u32>(Tree::Meta, b"round").unwrap();
        assert_eq!(before, round.checked_sub(1));
        assert_eq!(count(&store, Tree::Slices), round as usize * 1000);
        let mut batch = Batch::new();
        batch.put(Tree::Meta, b"round", &round).unwrap();
        store.apply(batch).unwrap();
        fill(&store, 1000 * (round + 1));
        assert_eq!(store.get(Tree::Meta, b"round").unwrap(), Some(round));
        store.close().unwrap();
        store.close().unwrap();
        let closed = store.get::<u32>(Tree::Meta, b"round");
        assert!(matches!(closed, Err(StoreError::Closed)));
        let closed = store.apply(Batch::new());
        assert!(matches!(closed, Err(StoreError::Closed)));
        if round % 2 == 0 {
            // Opened and closed without a write.
            let (store, opened) = open(&folder);
            assert_eq!(opened, Opened::Existing { sealed: true });
            store.close().unwrap();
        }
    }
}

#[test]
fn trees_do_not_see_each_other() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    for tree in [Tree::Logs, Tree::Slices, Tree::Meta] {
        put(&store, tree, b"key", &format!("{tree:?}"));
    }
    assert_eq!(
        store.get::<String>(Tree::Slices, b"key").unwrap().unwrap(),
        "Slices"
    );
    assert_eq!(count(&store, Tree::Meta), 1);
    assert_eq!(count(&store, Tree::Peers), 0);
    assert_eq!(count(&store, Tree::Logs), 1);
}

#[test]
fn finds_the_slice_that_holds_a_cursor() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    let mut batch = Batch::new();
    for (log, seq) in [(b"a", 0u64), (b"a", 512), (b"a", 700), (b"b", 100)] {
        let key = [log.as_slice(), &seq.to_be_bytes()].concat();
        batch.put(Tree::Slices, &key, &seq).unwrap();
    }
    store.apply(batch).unwrap();
    let find = |log: &[u8], cursor: u64| {
        store
            .last_at_or_before(Tree::Slices, log, &cursor.to_be_bytes())
            .unwrap()
            .map(|pair| pair.value::<u64>().unwrap())
    };
    assert_eq!(find(b"a", 0), Some(0));
    assert_eq!(find(b"a", 699), Some(512));
    assert_eq!(find(b"a", u64::MAX), Some(700));
    assert_eq!(find(b"b", 99), None, "another log's slice is no answer");
    assert_eq!(find(b"c", 5), None);
    let mut both = store.scan_prefix(Tree::Slices, b"a").unwrap();
    assert_eq!(
        both.next().unwrap().unwrap().key(),
        [b"a".as_slice(), &[0; 8]].concat()
    );
    assert_eq!(
        both.next_back().unwrap().unwrap().value::<u64>().unwrap(),
        700
    );
}

#[test]
fn many_threads_and_tasks_write_at_once() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..200u8 {
                    put(store, Tree::Paths, &[thread, n], "x");
                }
            });
        }
    });
    assert_eq!(count(&store, Tree::Paths), 8 * 200);
}

#[test]
fn clearing_leaves_an_empty_store_that_works() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    fill(&store, 10_000);
    put(&store, Tree::Logs, b"a", "x");
    store.clear_all().unwrap();
    assert_eq!(count(&store, Tree::Slices) + count(&store, Tree::Logs), 0);
    fill(&store, 10);
    store.close().unwrap();
    let (store, opened) = open(folder.path());
    assert_eq!(opened, Opened::Existing { sealed: true });
    assert_eq!(count(&store, Tree::Slices), 10);
}

#[test]
fn a_panic_fails_one_request_and_is_counted() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::new(Metrics::new());
    let (store, _) = Store::open(folder.path(), CACHE, &registry).unwrap();
    failpoint::set("actor.store", "panic").unwrap();
    let mut batch = Batch::new();
    batch.put(Tree::Meta, b"a", "lost").unwrap();
    let failed = store.apply(batch);
    assert!(matches!(failed, Err(StoreError::Panicked(_))));
    put(&store, Tree::Meta, b"b", "kept");
    assert!(!holds(&store, b"a"));
    assert!(holds(&store, b"b"));
    failpoint::set("actor.store", "error").unwrap();
    let mut batch = Batch::new();
    batch.put(Tree::Meta, b"a", "lost").unwrap();
    assert!(matches!(store.apply(batch), Err(StoreError::Io(_))));
    let status = registry.list().remove(0);
    assert_eq!((status.name, status.restarts), ("store", 1));
    assert_eq!(status.state, ActorState::Running);
    store.close().unwrap();
    assert_eq!(registry.list()[0].state, ActorState::Stopped);
}

#[test]
fn after_a_disk_error_it_mends_itself_and_nothing_applied_is_lost() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    put(&store, Tree::Meta, b"flushed", "x");
    store.flush().unwrap();
    put(&store, Tree::Meta, b"applied", "x");
    store.ask(Order::Break).unwrap();
    let mut batch = Batch::new();
    batch.put(Tree::Meta, b"refused", "x").unwrap();
    let refused = store.apply(batch).unwrap_err();
    assert!(matches!(refused, StoreError::Io(_)), "says so");
    assert!(holds(&store, b"applied"), "reads go on");
    store.flush().unwrap();
    for key in [b"flushed".as_slice(), b"applied", b"refused"] {
        assert!(holds(&store, key));
    }
    put(&store, Tree::Meta, b"after", "x");
    store.close().unwrap();
    let (store, opened) = open(folder.path());
    assert_eq!(
        (opened, count(&store, Tree::Meta)),
        (Opened::Existing { sealed: true }, 4)
    );
}

fn damage(folder: &Path, harm: impl Fn(&mut Vec<u8>)) {
    let path = folder.join("db");
    let mut bytes = fs::read(&path).unwrap();
    harm(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_database_is_set_aside() {
    let _alone = alone();
    type Harm = fn(&mut Vec<u8>);
    let harms: [(&str, Harm); 5] = [
        ("one bit", |b| b[1000] ^= 4),
        ("garbage", |b| b.fill(0xa5)),
        ("zeros", |b| b.fill(0)),
        ("cut short", |b| b.truncate(b.len() / 2)),
        ("emptied", Vec::clear),
    ];
    for (name, harm) in harms {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("state");
        let (store, _) = open(&folder);
        fill(&store, 5000);
        store.close().unwrap();
        damage(&folder, harm);
        let (store, opened) = open(&folder);
        let Opened::Rebuilt { set_aside, .. } = opened else {
            panic!("{name}: {opened:?}");
        };
        assert!(set_aside.join("db").exists(), "{name}");
        assert!(
            set_aside
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("state.damaged-")
        );
        assert_eq!(count(&store, Tree::Slices), 0);
        fill(&store, 10);
        store.close().unwrap();
        let (store, opened) = open(&folder);
        assert_eq!(
            (opened, count(&store, Tree::Slices)),
            (Opened::Existing { sealed: true }, 10)
        );
    }
}

#[test]
fn damage_without_a_seal_is_found_too_or_does_no_harm() {
    let _alone = alone();
    type Harm = fn(&mut Vec<u8>);
    let harms: [(&str, Harm); 3] = [
        ("garbage", |b| b.fill(0xa5)),
        ("zeros", |b| b.fill(0)),
        ("emptied", Vec::clear),
    ];
    for (name, harm) in harms {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("state");
        let (store, _) = open(&folder);
        fill(&store, 5000);
        store.close().unwrap();
        fs::remove_file(folder.join("sealed")).unwrap();
        damage(&folder, harm);
        let (_, opened) = open(&folder);
        assert!(
            matches!(opened, Opened::Rebuilt { .. }),
            "{name}: {opened:?}"
        );
    }
}

#[test]
fn a_database_in_use_is_not_taken_for_a_damaged_one() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    let registry = Registry::new(Metrics::new());
    let second = Store::open(folder.path(), CACHE, &registry).unwrap_err();
    assert!(matches!(second, StoreError::InUse(_)), "{second}");
    put(&store, Tree::Meta, b"a", "still fine");
}

#[test]
fn values_that_do_not_fit_are_refused() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    let mut batch = Batch::new();
    let large = batch.put_bytes(Tree::Meta, b"a", vec![0; MAX_VALUE + 1]);
    assert!(matches!(large, Err(StoreError::TooLarge(_))));
    batch
        .put_bytes(Tree::Meta, b"a", vec![0xff; MAX_VALUE])
        .unwrap();
    store.apply(batch).unwrap();
    let wrong = store.get::<String>(Tree::Meta, b"a");
    assert!(matches!(wrong, Err(StoreError::Codec(_))));
}
