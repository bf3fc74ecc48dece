#![allow(clippy::unwrap_used)]
use super::*;

fn store(folder: &Path) -> ArtifactStore {
    ArtifactStore::new(&folder.join("artifacts"), SpaceGuard::new(folder, 0))
}

fn temps(store: &ArtifactStore) -> usize {
    fs::read_dir(&store.inner.temps).map_or(0, Iterator::count)
}

fn read(store: &ArtifactStore, digest: &Digest) -> Vec<u8> {
    let (mut file, size) = store.open(digest).unwrap().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, size);
    bytes
}

#[test]
fn an_artifact_appears_whole_under_its_digest() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let mut staging = store.stage(100).unwrap();
    staging.write_all(b"hello ").unwrap();
    staging.write_all(b"world").unwrap();
    let staged = staging.finish();
    let digest = Digest::of(b"hello world");
    assert_eq!((staged.digest(), staged.size()), (digest, 11));
    assert!(!store.contains(&digest), "not before its commit");
    store.commit(Purpose::Mirror, vec![staged]).unwrap();
    assert!(store.contains(&digest));
    assert_eq!(read(&store, &digest), b"hello world");
    assert_eq!(temps(&store), 0);
    assert!(store.open(&Digest::of(b"else")).unwrap().is_none());
}

#[test]
fn many_are_committed_together_and_repeats_cost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    for _ in 0..2 {
        let staged: Vec<Staged> = (0..100u32)
            .map(|n| store.stage_bytes(&(n / 2).to_be_bytes()).unwrap())
            .collect();
        store.commit(Purpose::Mirror, staged).unwrap();
    }
    let list: Vec<_> = store.list().unwrap().map(Result::unwrap).collect();
    assert_eq!(list.len(), 50);
    assert!(list.iter().all(|(_, size)| *size == 4));
    assert_eq!(temps(&store), 0);
}

#[test]
fn a_file_of_the_wrong_size_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let staged = store.stage_bytes(b"content").unwrap();
    let digest = staged.digest();
    fs::write(store.path(&digest), b"cut").unwrap();
    store.commit(Purpose::Mirror, vec![staged]).unwrap();
    assert_eq!(read(&store, &digest), b"content");
}

#[test]
fn what_is_too_large_or_given_up_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let mut endless = io::repeat(7);
    let error = store.stage_from(&mut endless, 200_000).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    drop(store.stage(10).unwrap());
    drop(store.stage_bytes(b"never committed").unwrap());
    assert_eq!(temps(&store), 0);
    let exact = store
        .stage_from(&mut io::repeat(7).take(200_000), 200_000)
        .unwrap();
    assert_eq!(exact.digest(), Digest::of(&vec![7; 200_000]));
}

#[test]
fn leftovers_of_a_crash_are_swept() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    assert_eq!(store.clean_temps().unwrap(), 0);
    std::mem::forget(store.stage_bytes(b"a crash follows").unwrap());
    assert_eq!(store.clean_temps().unwrap(), 1);
    assert_eq!(temps(&store), 0);
    assert_eq!(store.list().unwrap().count(), 0);
}

#[test]
fn a_transfer_that_broke_off_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let digest = Digest::of(b"hello world");
    assert!(!store.has_part(&digest));
    let mut staging = store.resume(&digest, 11).unwrap().unwrap();
    staging.write_all(b"hello ").unwrap();
    drop(staging);
    assert_eq!(store.clean_temps().unwrap(), 0, "kept over a start");
    assert!(store.has_part(&digest));
    assert_eq!(store.unfinished_bytes().unwrap(), 6);
    let mut staging = store.resume(&digest, 11).unwrap().unwrap();
    assert_eq!(staging.size(), 6);
    staging.write_all(b"world").unwrap();
    let staged = staging.finish();
    assert_eq!((staged.digest(), staged.size()), (digest, 11));
    store.commit(Purpose::Mirror, vec![staged]).unwrap();
    assert_eq!(read(&store, &digest), b"hello world");
    assert!(!store.has_part(&digest));
}

#[test]
fn unfinished_transfers_are_bounded_in_number_age_and_size() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let digest = |n: usize| Digest::of(&n.to_be_bytes());
    for n in 0..MAX_PARTS {
        let mut staging = store.resume(&digest(n), 11).unwrap().unwrap();
        staging.write_all(b"some").unwrap();
    }
    assert!(store.resume(&digest(MAX_PARTS), 11).unwrap().is_none());
    let old = SystemTime::now() - PART_LIFE - Duration::from_secs(60);
    let part = File::options().write(true).open(store.part(&digest(0)));
    part.unwrap().set_modified(old).unwrap();
    assert_eq!(store.clean_temps().unwrap(), 1);
    assert!(!store.has_part(&digest(0)) && store.has_part(&digest(1)));
    let staging = store.resume(&digest(1), 3).unwrap().unwrap();
    assert_eq!(staging.size(), 0, "longer than it can be: begun anew");
    staging.finish().discard();
    assert!(!store.has_part(&digest(1)));
}

#[test]
fn a_full_disk_fails_the_commit_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let staged = store.stage_bytes(b"x").unwrap();
    let digest = staged.digest();
    failpoint::set("publish.stage.before_sync", "error").unwrap();
    let error = store.commit(Purpose::Publish, vec![staged]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(!store.contains(&digest));
    assert_eq!(temps(&store), 0);
    let again = store.stage_bytes(b"x").unwrap();
    store.commit(Purpose::Publish, vec![again]).unwrap();
    let full = ArtifactStore::new(folder.path(), SpaceGuard::new(folder.path(), u64::MAX));
    assert_eq!(
        full.stage_bytes(b"y").unwrap_err().kind(),
        io::ErrorKind::StorageFull
    );
}
