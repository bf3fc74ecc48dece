//! What the keyring promises, one sentence a test.
#![allow(clippy::unwrap_used)]

use super::*;
use std::os::unix::fs::PermissionsExt;

const NOW: Timestamp = Timestamp(1_790_000_000_000);

fn keyring() -> (tempfile::TempDir, Keyring) {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::open(folder.path()).unwrap();
    let keyring = Keyring::open(&home).unwrap();
    (folder, keyring)
}

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(text.to_owned())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_new_identity_signs_for_its_did_and_is_active() {
    let (_home, keyring) = keyring();
    assert_eq!(keyring.active().unwrap(), None);
    let alice = keyring
        .create("alice", None, NOW, &mut rand::rng())
        .unwrap();
    assert_eq!((alice.alias.as_str(), alice.created_at), ("alice", NOW));
    assert!(!alice.sealed);
    assert_eq!(keyring.unlock("alice", None).unwrap().did(), alice.did);
    let revocation = keyring.revocation("alice").unwrap();
    assert_eq!((revocation.did, revocation.at), (alice.did, NOW));
    assert_eq!(keyring.list().unwrap(), std::slice::from_ref(&alice));
    assert_eq!(keyring.active().unwrap().as_deref(), Some("alice"));
    let folder = keyring.folder.join("alice");
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&folder.join("secret.json")), 0o600);
    let secret: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("secret.json")).unwrap()).unwrap();
    assert_eq!(secret["kdf"], "none");
    assert_eq!(secret["seed"].as_str().unwrap().len(), 43);
}

#[test]
fn the_active_identity_changes_only_when_told() {
    let (_home, keyring) = keyring();
    for alias in ["alice", "bob"] {
        keyring.create(alias, None, NOW, &mut rand::rng()).unwrap();
        assert_eq!(keyring.active().unwrap().as_deref(), Some("alice"));
    }
    keyring.set_active("bob").unwrap();
    assert_eq!(keyring.active().unwrap().as_deref(), Some("bob"));
    let unknown = keyring.set_active("carol").unwrap_err();
    assert!(matches!(unknown, KeyringError::Unknown(_)));
    fs::remove_file(keyring.folder.join(ACTIVE)).unwrap();
    assert_eq!(keyring.active().unwrap(), None, "nobody has chosen");
    fs::remove_dir_all(keyring.folder.join("bob")).unwrap();
    assert_eq!(keyring.active().unwrap().as_deref(), Some("alice"));
}

#[test]
fn a_sealed_secret_opens_with_its_passphrase_alone() {
    let (_home, keyring) = keyring();
    let right = passphrase("correct horse");
    let alice = keyring
        .create("alice", Some(&right), NOW, &mut rand::rng())
        .unwrap();
    assert!(alice.sealed);
    let seed = keyring.unlock("alice", Some(&right)).unwrap();
    assert_eq!(seed.did(), alice.did);
    let wrong = keyring.unlock("alice", Some(&passphrase("battery")));
    assert!(matches!(wrong, Err(KeyringError::WrongPassphrase(_))));
    let none = keyring.unlock("alice", None);
    assert!(matches!(none, Err(KeyringError::PassphraseNeeded(_))));

    // Put beside another identity it does not open, though the passphrase is right.
    keyring.create("eve", None, NOW, &mut rand::rng()).unwrap();
    let stolen = keyring.folder.join("alice/secret.json");
    fs::copy(&stolen, keyring.folder.join("eve/secret.json")).unwrap();
    let moved = keyring.unlock("eve", Some(&right));
    assert!(matches!(moved, Err(KeyringError::WrongPassphrase(_))));
}

#[test]
fn a_file_cannot_ask_for_all_our_memory() {
    let (_home, keyring) = keyring();
    let right = passphrase("correct horse");
    keyring
        .create("alice", Some(&right), NOW, &mut rand::rng())
        .unwrap();
    let path = keyring.folder.join("alice/secret.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("65536", "4294967295")).unwrap();
    let greedy = keyring.unlock("alice", Some(&right));
    assert!(matches!(greedy, Err(KeyringError::Damaged { .. })));
}

#[test]
fn aliases_that_climb_or_confuse_are_refused() {
    let (_home, keyring) = keyring();
    let long = "a".repeat(64);
    for alias in [
        "", ".", "..", "../x", "a/b", "a..b", "Alice", "-a", ".a", "a b", "é", "active", &long,
    ] {
        let refused = keyring.create(alias, None, NOW, &mut rand::rng());
        assert!(matches!(refused, Err(KeyringError::Alias(_))), "{alias:?}");
        assert!(keyring.unlock(alias, None).is_err());
    }
    let longest = "a".repeat(63);
    for alias in ["a", "0", "bob.home-2_x", &longest] {
        keyring.create(alias, None, NOW, &mut rand::rng()).unwrap();
    }
    let again = keyring.create("a", None, NOW, &mut rand::rng());
    assert!(matches!(again, Err(KeyringError::Exists(_))));
}

#[test]
fn an_export_is_recovered_elsewhere() {
    let (_home, here) = keyring();
    let (_other, there) = keyring();
    let alice = here.create("alice", None, NOW, &mut rand::rng()).unwrap();
    let refused = here.export("alice", None, false, &mut rand::rng());
    assert!(matches!(refused, Err(KeyringError::PlainExport(_))));
    let plain = here.export("alice", None, true, &mut rand::rng()).unwrap();
    let recovered = there.recover(&plain, None, None, &mut rand::rng()).unwrap();
    assert_eq!(recovered, alice);
    assert_eq!(there.active().unwrap().as_deref(), Some("alice"));
    let revocation = there.revocation("alice").unwrap();
    assert_eq!(
        revocation.bytes(),
        here.revocation("alice").unwrap().bytes(),
        "byte for byte"
    );
    let taken = there.recover(&plain, None, None, &mut rand::rng());
    assert!(matches!(taken, Err(KeyringError::Exists(_))));
    let twice = there.recover(&plain, Some("alice2"), None, &mut rand::rng());
    assert!(matches!(twice, Err(KeyringError::DidExists { .. })));
}

#[test]
fn a_sealed_export_stays_sealed() {
    let (_home, here) = keyring();
    let (_other, there) = keyring();
    let right = passphrase("correct horse");
    let alice = here.create("alice", None, NOW, &mut rand::rng()).unwrap();
    let sealed = here
        .export("alice", Some(&right), false, &mut rand::rng())
        .unwrap();
    let seed = fs::read_to_string(here.folder.join("alice/secret.json")).unwrap();
    let seed: serde_json::Value = serde_json::from_str(&seed).unwrap();
    let text = std::str::from_utf8(&sealed).unwrap();
    assert!(!text.contains(seed["seed"].as_str().unwrap()));
    let none = there.recover(&sealed, None, None, &mut rand::rng());
    assert!(matches!(none, Err(KeyringError::PassphraseNeeded(_))));
    let recovered = there
        .recover(&sealed, Some("me"), Some(&right), &mut rand::rng())
        .unwrap();
    assert_eq!((recovered.did, recovered.sealed), (alice.did, true));
    assert_eq!(there.unlock("me", Some(&right)).unwrap().did(), alice.did);
    let again = there.export("me", None, false, &mut rand::rng()).unwrap();
    let before: Export = serde_json::from_slice(&sealed).unwrap();
    let after: Export = serde_json::from_slice(&again).unwrap();
    assert_eq!(
        serde_json::to_value(&before.secret).unwrap(),
        serde_json::to_value(&after.secret).unwrap()
    );
}

#[test]
fn an_export_that_was_changed_is_refused() {
    let (_home, here) = keyring();
    let (_other, there) = keyring();
    here.create("alice", None, NOW, &mut rand::rng()).unwrap();
    here.create("bob", None, NOW, &mut rand::rng()).unwrap();
    let export = |alias| {
        let bytes = here.export(alias, None, true, &mut rand::rng()).unwrap();
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()
    };
    for member in ["did", "secret", "revocation", "type"] {
        let mut changed = export("alice");
        changed[member] = match member {
            "type" => "identity@9".into(),
            _ => export("bob")[member].clone(),
        };
        let bytes = serde_json::to_vec(&changed).unwrap();
        let refused = there.recover(&bytes, None, None, &mut rand::rng());
        assert!(
            matches!(refused, Err(KeyringError::Document(_))),
            "{member}: {refused:?}"
        );
    }
    assert_eq!(there.list().unwrap(), []);
    let text = there
        .recover(b"{\"seed\":\"hunter2", None, None, &mut rand::rng())
        .unwrap_err()
        .to_string();
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn secrets_are_not_printed() {
    assert_eq!(format!("{:?}", passphrase("hunter2")), "Passphrase(…)");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p");
    for (content, text) in [
        ("hunter2\n", "hunter2"),
        ("two words\r\n", "two words"),
        ("x", "x"),
    ] {
        fs::write(&path, content).unwrap();
        let (_home, keyring) = keyring();
        let read = Passphrase::from_file(&path).unwrap();
        keyring
            .create("a", Some(&read), NOW, &mut rand::rng())
            .unwrap();
        keyring.unlock("a", Some(&passphrase(text))).unwrap();
    }
    fs::write(&path, "\n").unwrap();
    assert!(matches!(
        Passphrase::from_file(&path),
        Err(PassphraseError::Empty)
    ));
    fs::write(&path, "x".repeat(2000)).unwrap();
    assert!(matches!(
        Passphrase::from_file(&path),
        Err(PassphraseError::TooLarge)
    ));
}

#[test]
fn what_a_crash_left_unfinished_is_swept() {
    let (home, keyring) = keyring();
    // No process has the highest pid: the kernel's limit is 2^22.
    let gone = keyring.folder.join(format!("{MAKING}{}-0", i32::MAX));
    let alive = keyring
        .folder
        .join(format!("{MAKING}{}-0", std::process::id()));
    for folder in [&gone, &alive] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("secret.json"), "{}").unwrap();
    }
    let keyring = Keyring::open(&Home::open(home.path()).unwrap()).unwrap();
    assert!(!gone.exists() && alive.exists());
    assert_eq!(keyring.list().unwrap(), []);
}

#[test]
fn an_identity_that_was_made_here_has_its_place_and_one_that_was_recovered_has_none() {
    let (_home, keyring) = keyring();
    keyring
        .create("alice", None, NOW, &mut rand::rng())
        .unwrap();
    let place = |alias: &str| PlaceMarker::new(&keyring.folder.join(alias)).read();
    assert_eq!(place("alice"), Troubles::default());
    let (_elsewhere, other) = super::tests::keyring();
    let export = keyring
        .export("alice", None, true, &mut rand::rng())
        .unwrap();
    other
        .recover(&export, None, None, &mut rand::rng())
        .unwrap();
    assert!(
        PlaceMarker::new(&other.folder.join("alice"))
            .read()
            .restored
    );
}

#[test]
fn a_key_that_was_brought_back_is_the_same_and_comes_without_a_place() {
    let (_home, keyring) = keyring();
    let alice = keyring
        .create("alice", None, NOW, &mut rand::rng())
        .unwrap();
    assert!(keyring.folder.join("alice/place.json").exists());
    let seed = keyring.unlock("alice", None).unwrap();
    let twice = keyring.restore("again", &seed, None, NOW, &mut rand::rng());
    assert!(matches!(twice, Err(KeyringError::DidExists { .. })));

    let folder = tempfile::tempdir().unwrap();
    let other = Keyring::open(&Home::open(folder.path()).unwrap()).unwrap();
    let secret = passphrase("correct horse");
    let later = Timestamp(NOW.0 + 1);
    let back = other
        .restore("back", &seed, Some(&secret), later, &mut rand::rng())
        .unwrap();
    assert_eq!((back.did, back.created_at), (alice.did, later));
    assert!(back.sealed);
    assert_eq!(other.active().unwrap().as_deref(), Some("back"));
    let opened = other.unlock("back", Some(&secret)).unwrap();
    assert_eq!(opened.expose(), seed.expose());
    assert_eq!(other.revocation("back").unwrap().did, alice.did);
    // It may have signed elsewhere, so it signs nothing here before its followers were asked.
    assert!(!other.folder.join("back/place.json").exists());
    let taken = other.restore("back", &seed, None, NOW, &mut rand::rng());
    assert!(matches!(taken, Err(KeyringError::Exists(_))));
}

/// Y6: the pad of the vectors was made by another Argon2.
#[test]
fn the_pad_of_a_passphrase_is_that_of_the_vectors() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../spec/vectors/key_share.json"
    );
    let vectors: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mut tried = 0;
    for set in vectors["sets"].as_array().unwrap() {
        let Some(text) = set["passphrase"].as_str() else {
            continue;
        };
        let words: Vec<&str> = set["shares"]
            .as_array()
            .unwrap()
            .iter()
            .map(|share| share["words"].as_str().unwrap())
            .collect();
        let gathered = hn_protocol::key_share::Gathered::of(&words, None).unwrap();
        let right = passphrase(text).pad(&gathered.layout().salt()).unwrap();
        let key = gathered.recover(Some(&right)).unwrap();
        assert_eq!(key.seed.did().to_string(), set["did"]);
        let wrong = passphrase("another")
            .pad(&gathered.layout().salt())
            .unwrap();
        assert!(gathered.recover(Some(&wrong)).is_err());
        tried += 1;
    }
    assert_eq!(tried, 1);
}
