//! What is kept of a revocation, and of whom, one sentence a test.
#![allow(clippy::unwrap_used)]

use hn_protocol::did::{Identity, SecretSeed};

use super::*;
use crate::metrics::Metrics;
use crate::roster::RosterFile;
use crate::store::Store;
use crate::supervise::Registry;

struct Desk {
    folder: tempfile::TempDir,
    home: Home,
    store: Store,
}

fn identity(n: u8) -> Identity {
    SecretSeed::from_bytes([n; 32]).identity()
}

fn word(n: u8, at: u64) -> Bytes {
    let revocation = Revocation {
        did: identity(n).did(),
        at: Timestamp(at),
    };
    let signed = Signed::create(&revocation, &identity(n)).unwrap();
    signed.bytes().clone()
}

impl Desk {
    /// A node whose roster names the identity no. 1 as a peer and no. 2 as a friend, and whose own DID is no. 9.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(&folder.path().join("home")).unwrap();
        let registry = Registry::new(Metrics::new());
        let (store, _) = Store::open(&home.state_dir(), 1 << 20, &registry).unwrap();
        let (peer, friend) = (identity(1).did(), identity(2).did());
        fs::create_dir_all(home.config_dir()).unwrap();
        let roster = format!(
            "[[peer]]\ndid = \"{peer}\"\n[[friend]]\ndid = \"{friend}\"\nrights = [\"read\"]\n"
        );
        fs::write(home.federation_toml(), roster).unwrap();
        Self {
            folder,
            home,
            store,
        }
    }

    fn open(&self) -> Revocations {
        let catalog = Catalog::new(identity(9).did(), self.store.clone());
        let mut roster = RosterFile::new(self.home.federation_toml());
        roster.poll();
        Revocations::open(self.home.clone(), catalog, roster.standings())
    }
}

#[test]
fn what_was_accepted_is_known_to_the_next_start_and_the_first_one_stays() {
    let desk = Desk::new();
    let revocations = desk.open();
    let (peer, friend) = (identity(1).did(), identity(2).did());
    let before = revocations.inner.catalog.changes();
    assert_eq!(revocations.accept(word(1, 5)).unwrap(), Accepted::New(peer));
    assert!(revocations.inner.catalog.changes() > before, "heads change");
    assert_eq!(
        revocations.accept(word(1, 6)).unwrap(),
        Accepted::Known(peer)
    );
    assert!(revocations.is_revoked(&peer) && !revocations.is_revoked(&friend));
    assert_eq!(revocations.accept(word(2, 7)).unwrap().status(), "accepted");
    let again = desk.open();
    assert_eq!(again.get(&peer), Some(word(1, 5)));
    assert_eq!(again.get(&friend), Some(word(2, 7)));
    assert_eq!(again.reason(&peer).unwrap().code, "revoked");
    assert!(again.reason(&identity(3).did()).is_none());
}

#[test]
fn of_strangers_nothing_is_kept_but_at_the_operators_word() {
    let desk = Desk::new();
    let revocations = desk.open();
    let stranger = identity(3).did();
    let refused = revocations.accept(word(3, 5)).unwrap_err();
    assert!(matches!(refused, RevocationError::Unknown(did) if did == stranger));
    assert!(!desk.home.revocations_dir().exists());
    let kept = revocations.accept_from_operator(word(3, 5)).unwrap();
    assert_eq!(kept, Accepted::New(stranger));
    assert_eq!(
        revocations.accept(word(3, 6)).unwrap(),
        Accepted::Known(stranger)
    );
    // A log whose folder is there is held, whether it can be opened or not.
    fs::create_dir_all(desk.home.cache_dir(&identity(4).did())).unwrap();
    assert!(revocations.accept(word(4, 5)).is_ok());
}

#[test]
fn what_does_not_verify_is_refused_before_anything_is_looked_up() {
    let desk = Desk::new();
    let revocations = desk.open();
    let text = String::from_utf8(word(1, 5).to_vec()).unwrap();
    let forged = text.replace(".005Z", ".006Z");
    assert_ne!(text, forged);
    for (bytes, code) in [
        (forged, "wrong_id"),
        ("{}".to_owned(), "wrong_type"),
        (String::new(), "invalid_json"),
        (format!("{text}{}", " ".repeat(5000)), "document_too_large"),
    ] {
        match revocations.accept(bytes.into()).unwrap_err() {
            RevocationError::Document(error) => assert_eq!(error.code(), code),
            other => panic!("{other}"),
        }
    }
    assert!(!revocations.is_revoked(&identity(1).did()));
}

#[test]
fn a_damaged_file_hides_no_other_and_ends_nobody_else() {
    let desk = Desk::new();
    let revocations = desk.open();
    revocations.accept(word(1, 5)).unwrap();
    revocations.accept(word(2, 5)).unwrap();
    let (one, two, three) = (identity(1).did(), identity(2).did(), identity(3).did());
    fs::write(desk.home.revocation_file(&one), "torn").unwrap();
    fs::write(desk.home.revocation_file(&three), word(2, 5)).unwrap();
    fs::write(desk.home.revocations_dir().join("notes.txt"), "x").unwrap();
    let again = desk.open();
    assert!(again.is_revoked(&two));
    assert!(!again.is_revoked(&one) && !again.is_revoked(&three));
    // It is taken in again, in the place of what was damaged.
    assert_eq!(again.accept(word(1, 6)).unwrap(), Accepted::New(one));
    assert!(desk.open().is_revoked(&one));
}

#[test]
fn an_own_identity_whose_mark_was_damaged_stays_revoked() {
    let desk = Desk::new();
    let keyring = Keyring::open(&desk.home).unwrap();
    let own = keyring
        .create("me", None, Timestamp(5), &mut rand::rng())
        .unwrap()
        .did;
    let made = keyring.revocation("me").unwrap();
    assert!(!desk.open().is_revoked(&own));
    assert_eq!(
        desk.open().accept(made.bytes().clone()).unwrap(),
        Accepted::New(own)
    );
    fs::write(desk.home.revocation_file(&own), "torn").unwrap();
    assert_eq!(desk.open().get(&own), Some(made.bytes().clone()));
    drop(desk.folder);
}

#[test]
fn a_revocation_is_found_in_an_export_and_by_itself_and_nowhere_else() {
    let desk = Desk::new();
    let keyring = Keyring::open(&desk.home).unwrap();
    let mut rng = rand::rng();
    let own = keyring.create("me", None, Timestamp(5), &mut rng).unwrap();
    let made = keyring.revocation("me").unwrap();
    let export = keyring.export("me", None, true, &mut rng).unwrap();
    assert_eq!(in_file(&export).unwrap().bytes(), made.bytes());
    let pretty: serde_json::Value = serde_json::from_slice(made.bytes()).unwrap();
    let pretty = format!("{pretty:#}\n");
    assert_eq!(in_file(pretty.as_bytes()).unwrap().bytes(), made.bytes());
    let text = String::from_utf8(export.to_vec()).unwrap();
    let other = identity(3).did().to_string();
    // Only the first: the one that the export says it is of.
    let foreign = text.replacen(&own.did.to_string(), &other, 1);
    assert_eq!(
        in_file(foreign.as_bytes()).unwrap_err().code(),
        "malformed_document"
    );
    for (junk, code) in [
        ("", "invalid_json"),
        ("[]", "malformed_document"),
        ("7", "malformed_document"),
        ("{\"type\":\"hn_identity@1\"}", "malformed_document"),
        ("{\"type\":\"presence@2\"}", "wrong_type"),
    ] {
        assert_eq!(in_file(junk.as_bytes()).unwrap_err().code(), code, "{junk}");
    }
}
