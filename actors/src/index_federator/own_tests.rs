//! What the gate keeps, and what recovery may do to our own log, one sentence a test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use actix::{Actor, Addr};
use hn_protocol::did::{Identity, SecretSeed};
use hn_protocol::digest::Digest;
use hn_protocol::log::{EntryDraft, LogState, PageContext, Source, VerifiedPage};

use crate::artifacts::ArtifactShelf;
use crate::catalog::Catalog;
use crate::home::Home;
use crate::index_federator::*;
use crate::store::Store;
use crate::supervise::Registry;
use crate::vault::{FileCache, SpaceGuard};

/// A home of one identity; the same identity may have another home elsewhere.
struct Desk {
    folder: tempfile::TempDir,
    shelf: Shelf,
}

fn identity() -> Identity {
    SecretSeed::from_bytes([7; 32]).identity()
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(&folder.path().join("home")).unwrap();
        let registry = Registry::new(Metrics::new());
        let (store, _) = Store::open(&home.state_dir(), 1 << 20, &registry).unwrap();
        let shelf = Shelf {
            catalog: Catalog::new(identity().did(), store.clone()),
            space: SpaceGuard::new(home.root(), 0),
            files: FileCache::default(),
            home,
            store,
        };
        Self { folder, shelf }
    }

    fn start(&self, gate: Gate) -> Addr<IndexFederator> {
        let clock = Clock::system();
        let (home, catalog) = (self.shelf.home.clone(), self.shelf.catalog.clone());
        let (store, space) = (self.shelf.store.clone(), self.shelf.space.clone());
        let artifacts = ArtifactShelf::new(home.clone(), store, space, "node");
        let options = FederatorOptions {
            forks: Forks::open(home, identity(), clock, catalog, Metrics::new()),
            prune: PrunePolicy::default(),
            sweeper: Sweeper::new(artifacts, self.shelf.catalog.clone()),
            identity: identity(),
            alias: "node".into(),
            presence_ttl: Duration::from_secs(3600),
            clock,
            metrics: Metrics::new(),
            gate,
        };
        IndexFederator::new(options, self.shelf.clone()).start()
    }

    fn state(&self) -> LogState {
        let empty = LogState::empty(identity().did(), 0);
        let view = self.shelf.catalog.log(&identity().did());
        view.map_or(empty, |view| view.state.clone())
    }

    fn journal(&self) -> std::path::PathBuf {
        let folder = self.folder.path().join("home/log/node");
        folder.join("index-00000000000000000000.jsonl")
    }

    /// What this home shows beyond `state`, judged as a page of a holder.
    fn page_beyond(&self, state: &LogState) -> VerifiedPage {
        let catalog = &self.shelf.catalog;
        let view = catalog.log(&identity().did()).unwrap();
        let page = catalog.page(&view, state.size(), 64).unwrap();
        let lines: Vec<_> = page.body.split(|byte| *byte == b'\n').collect();
        let lines: Vec<bytes::Bytes> = lines
            .into_iter()
            .filter(|line| !line.is_empty())
            .map(bytes::Bytes::copy_from_slice)
            .collect();
        let context = PageContext {
            now: Clock::system().now(),
            source: Source::Holder,
            reaches_head: true,
        };
        state
            .follow(&lines, context, &hn_protocol::log::NoHistory)
            .unwrap()
    }
}

fn entry(path: &str) -> PublishEntries {
    PublishEntries {
        entries: vec![EntryDraft {
            kind: "file".into(),
            digest: Digest::of(path.as_bytes()),
            size: path.len() as u64,
            path: path.into(),
            tags: BTreeMap::new(),
            metadata: BTreeMap::new(),
            replaces: None,
            retracts: None,
        }],
    }
}

fn closed() -> Gate {
    Gate::Closed("it was restored".into())
}

async fn move_to(federator: &Addr<IndexFederator>, gate: Gate) {
    federator.send(SetGate { gate }).await.unwrap();
}

#[actix_web::test]
async fn publications_wait_while_holders_are_asked_and_are_signed_when_the_gate_opens() {
    let desk = Desk::new();
    let federator = desk.start(Gate::Asking);
    let publishing = actix::spawn(federator.send(entry("a")));
    // Longer than a commit waits for company.
    tokio::time::sleep(COMMIT_WINDOW * 3).await;
    assert!(!publishing.is_finished());
    assert_eq!(desk.state().presence, None, "not even a presence");
    assert!(!desk.shelf.catalog.is_recovering(&identity().did()));
    move_to(&federator, Gate::Open).await;
    let published = publishing.await.unwrap().unwrap().unwrap();
    assert_eq!((published.log_size, desk.state().size()), (1, 1));
}

#[actix_web::test]
async fn a_gate_that_closes_refuses_what_waited_and_what_comes_and_signs_nothing() {
    let desk = Desk::new();
    let federator = desk.start(Gate::Asking);
    let waiting = actix::spawn(federator.send(entry("a")));
    tokio::time::sleep(COMMIT_WINDOW).await;
    move_to(&federator, closed()).await;
    let refused = waiting.await.unwrap().unwrap().unwrap_err();
    assert!(matches!(refused, FederateError::Recovering(_)), "{refused}");
    let endpoints = Endpoints {
        mcp: Some("https://new.example".into()),
        ..Endpoints::default()
    };
    federator
        .send(Announce { endpoints })
        .await
        .unwrap()
        .unwrap();
    let refused = federator.send(entry("b")).await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("it was restored"), "{refused}");
    assert_eq!(desk.state().presence, None);
    assert!(desk.shelf.catalog.is_recovering(&identity().did()));
    let own = federator.send(GetOwnLog).await.unwrap();
    assert_eq!(own.state, "recovering");
    move_to(&federator, Gate::Open).await;
    assert!(desk.state().presence.is_some(), "signed before the answer");
    assert!(!desk.shelf.catalog.is_recovering(&identity().did()));
}

/// ```text
///   one key, two homes: the second is a copy of before the first went on
/// ```
#[actix_web::test]
async fn what_was_signed_elsewhere_is_taken_while_the_gate_is_closed_and_gone_on_from() {
    let (first, second) = (Desk::new(), Desk::new());
    let original = first.start(Gate::Open);
    original.send(entry("a")).await.unwrap().unwrap();
    let restored = second.start(Gate::Asking);
    let base = second.state();
    let offer = || AppendPage {
        base: base.clone(),
        page: first.page_beyond(&base),
        seen: None,
    };
    let early = restored.send(offer()).await.unwrap().unwrap();
    assert_eq!(
        early,
        Appended::Overtaken,
        "nothing grows behind a gate that may open"
    );
    move_to(&restored, closed()).await;
    let taken = restored.send(offer()).await.unwrap().unwrap();
    assert_eq!(taken, Appended::Taken);
    assert_eq!(second.state(), first.state());
    move_to(&restored, Gate::Open).await;
    restored.send(entry("b")).await.unwrap().unwrap();
    let (before, after) = (first.state(), second.state());
    assert!(
        hn_protocol::invariants::is_extension(&before, &after),
        "{after:?}"
    );
    assert_eq!(after.size(), 2);
}

#[actix_web::test]
async fn a_damaged_journal_is_set_aside_whole_and_gone_on_from_what_is_good() {
    let desk = Desk::new();
    let federator = desk.start(Gate::Open);
    federator.send(entry("a")).await.unwrap().unwrap();
    let good = fs::read(desk.journal()).unwrap();
    fs::write(desk.journal(), [good.as_slice(), b"{}\n"].concat()).unwrap();
    federator.send(Reindex).await.unwrap().unwrap();
    let refused = federator.send(entry("b")).await.unwrap().unwrap_err();
    assert!(matches!(refused, FederateError::Recovering(_)), "{refused}");
    let standing = federator.send(CheckOwnLog).await.unwrap();
    assert!(standing.damaged.is_some());
    assert_eq!(standing.state.size(), 1, "what is before the damage counts");
    let used = Clock::system().now().0 + 60_000;
    federator
        .send(MendOwnLog { above: used })
        .await
        .unwrap()
        .unwrap();
    federator.send(entry("b")).await.unwrap().unwrap();
    let state = desk.state();
    assert_eq!(state.size(), 2);
    assert!(
        state.presence.unwrap().sequence > used,
        "no sequence is used twice"
    );
    let folder = desk.journal().parent().unwrap().to_owned();
    let aside = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .find(|path| path.to_string_lossy().contains(".damaged-"));
    assert_eq!(
        fs::read(aside.unwrap()).unwrap(),
        [good.as_slice(), b"{}\n"].concat()
    );
}

#[actix_web::test]
async fn the_copied_presence_is_put_back_behind_what_it_binds() {
    let desk = Desk::new();
    let federator = desk.start(Gate::Open);
    federator.send(entry("a")).await.unwrap().unwrap();
    let line = desk
        .shelf
        .catalog
        .log(&identity().did())
        .unwrap()
        .presence
        .clone();
    let copy = desk.shelf.home.presence_file("node");
    fs::create_dir_all(copy.parent().unwrap()).unwrap();
    fs::write(copy, &line).unwrap();
    // Its line is the journal's last.
    let journal = fs::read(desk.journal()).unwrap();
    fs::write(desk.journal(), &journal[..journal.len() - line.len() - 1]).unwrap();
    federator.send(Reindex).await.unwrap().unwrap();
    let standing = federator.send(CheckOwnLog).await.unwrap();
    assert!(
        standing.damaged.is_some(),
        "a presence that was shown is missing"
    );
    move_to(&federator, closed()).await;
    let standing = federator.send(CheckOwnLog).await.unwrap();
    assert_eq!(standing.damaged, None);
    assert_eq!(fs::read(desk.journal()).unwrap(), journal);
}

#[actix_web::test]
async fn a_reset_begins_an_epoch_that_goes_on_in_sequence_and_keeps_the_old_one() {
    let desk = Desk::new();
    let federator = desk.start(Gate::Open);
    federator.send(entry("a")).await.unwrap().unwrap();
    let before = desk.state();
    move_to(&federator, closed()).await;
    let begun = federator
        .send(ResetOwnLog { after: 4 })
        .await
        .unwrap()
        .unwrap();
    assert_eq!((begun.state.epoch, begun.state.size()), (5, 0));
    assert!(begun.state.presence.unwrap().sequence > before.presence.unwrap().sequence);
    move_to(&federator, Gate::Open).await;
    let own = federator.send(GetOwnLog).await.unwrap();
    assert_eq!(own.state, "reset");
    let again = federator.send(entry("a")).await.unwrap().unwrap();
    assert_eq!(
        again.published[0].status, "appended",
        "the new log has nothing yet"
    );
    let view = desk.shelf.catalog.log(&identity().did()).unwrap();
    let earlier = desk.shelf.catalog.earlier(&view, 0).unwrap().unwrap();
    assert_eq!(earlier.state.root(), before.root());
    federator.send(Reindex).await.unwrap().unwrap();
    assert_eq!(desk.state().epoch, 5, "read back, it is the same");
    assert_eq!(desk.state().size(), 1);
}

#[actix_web::test]
async fn once_the_own_did_is_revoked_nothing_is_signed_through_any_gate() {
    let desk = Desk::new();
    let federator = desk.start(Gate::Open);
    federator.send(entry("a")).await.unwrap().unwrap();
    let (before, journal) = (desk.state(), fs::read(desk.journal()).unwrap());
    let waiting = {
        move_to(&federator, Gate::Asking).await;
        actix::spawn(federator.send(entry("b")))
    };
    let catalog = &desk.shelf.catalog;
    catalog.revoke(
        identity().did(),
        bytes::Bytes::from_static(b"its last word"),
    );
    for gate in [Gate::Asking, Gate::Open, closed()] {
        move_to(&federator, gate).await;
        let refused = federator.send(entry("c")).await.unwrap().unwrap_err();
        assert!(matches!(refused, FederateError::Revoked(_)), "{refused}");
    }
    assert!(waiting.await.unwrap().unwrap().is_err(), "nobody waits on");
    let endpoints = Endpoints {
        mcp: Some("https://new.example".into()),
        ..Endpoints::default()
    };
    federator
        .send(Announce { endpoints })
        .await
        .unwrap()
        .unwrap();
    let reset = federator.send(ResetOwnLog { after: 0 }).await.unwrap();
    assert!(matches!(reset, Err(FederateError::Revoked(_))));
    let own = federator.send(GetOwnLog).await.unwrap();
    assert_eq!((own.state, own.size), ("revoked", 1));
    federator.send(Reindex).await.unwrap().unwrap();
    assert_eq!(desk.state(), before);
    assert_eq!(fs::read(desk.journal()).unwrap(), journal);
    assert!(!catalog.is_recovering(&identity().did()), "it has ended");
}

#[actix_web::test]
async fn a_page_that_was_judged_before_the_revocation_came_is_not_taken_in_after_it() {
    let (here, there) = (Desk::new(), Desk::new());
    let (ours, theirs) = (here.start(Gate::Open), there.start(Gate::Open));
    ours.send(entry("a")).await.unwrap().unwrap();
    theirs.send(GetOwnLog).await.unwrap();
    let base = LogState::empty(identity().did(), 0);
    let page = here.page_beyond(&base);
    let more = AppendPage {
        base: base.clone(),
        page,
        seen: None,
    };
    there.shelf.catalog.revoke(
        identity().did(),
        bytes::Bytes::from_static(b"its last word"),
    );
    let refused = theirs.send(more).await.unwrap().unwrap_err();
    assert!(matches!(refused, FederateError::Revoked(_)), "{refused}");
    assert_eq!(there.state().size(), 0);
}
