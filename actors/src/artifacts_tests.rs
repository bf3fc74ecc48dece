#![allow(clippy::unwrap_used)]

use std::io::Read;

use hn_protocol::did::SecretSeed;

use super::*;
use crate::metrics::Metrics;
use crate::supervise::Registry;

struct Place {
    _folder: tempfile::TempDir,
    home: Home,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(&folder.path().join("home")).unwrap();
        let registry = Registry::new(Metrics::new());
        let (store, _) = Store::open(&home.state_dir(), 1 << 20, &registry).unwrap();
        Self {
            _folder: folder,
            home,
            store,
        }
    }

    fn shelf(&self) -> ArtifactShelf {
        let space = SpaceGuard::new(self.home.root(), 0);
        ArtifactShelf::new(self.home.clone(), self.store.clone(), space, "alice")
    }
}

fn did() -> Did {
    SecretSeed::from_bytes([1; 32]).did()
}

fn bundled(shelf: &ArtifactShelf, contents: &[&[u8]]) -> Option<Arc<Bundle>> {
    let mut writer = shelf.mirrored(&did()).bundle().unwrap();
    for bytes in contents {
        writer.push(Digest::of(bytes), bytes).unwrap();
    }
    shelf.keep_bundle(&did(), writer).unwrap()
}

fn read(shelf: &ArtifactShelf, digest: &Digest) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (mut file, size) = shelf.open(digest).unwrap().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(size, bytes.len() as u64);
    bytes
}

#[test]
fn an_artifact_is_held_from_its_bundle_on_and_has_a_file_afterwards() {
    let place = Place::new();
    let shelf = place.shelf();
    let bundle = bundled(&shelf, &[b"one", b"two"]).unwrap();
    let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
    assert!(shelf.contains(&one).unwrap() && shelf.has_unsettled());
    assert_eq!(read(&shelf, &one), b"one", "before it is settled");
    let usage = |artifacts, bytes| Usage { artifacts, bytes };
    assert_eq!(shelf.usage(&did()).unwrap(), usage(2, 6));
    shelf.settle(&bundle).unwrap();
    assert!(!shelf.has_unsettled());
    assert!(shelf.mirrored(&did()).contains(&two));
    assert_eq!(read(&shelf, &two), b"two");
    shelf.settle(&bundle).unwrap();
    assert_eq!(place.shelf().usage(&did()).unwrap(), usage(2, 6));
}

#[test]
fn a_start_takes_up_the_bundles_of_the_process_before() {
    let place = Place::new();
    bundled(&place.shelf(), &[b"one", b"two"]).unwrap();
    let shelf = place.shelf();
    assert!(!shelf.contains(&Digest::of(b"one")).unwrap());
    shelf.clean().unwrap();
    assert_eq!(read(&shelf, &Digest::of(b"one")), b"one");
    assert_eq!(shelf.find_mirrored().unwrap(), 2);
    assert!(!shelf.has_unsettled());
    let store = shelf.mirrored(&did());
    assert!(store.bundles().unwrap().is_empty());
    assert!(store.contains(&Digest::of(b"two")));
}

#[test]
fn bundles_that_wait_are_bounded() {
    let place = Place::new();
    let shelf = place.shelf();
    for n in 0..MAX_UNSETTLED as u8 {
        assert!(bundled(&shelf, &[&[n]]).is_some());
    }
    assert!(bundled(&shelf, &[b"more"]).is_none(), "settled at once");
    assert_eq!(shelf.unsettled.all().len(), MAX_UNSETTLED);
}
