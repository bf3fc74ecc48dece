//! What a journal promises, one sentence a test.
#![allow(clippy::unwrap_used)]

use super::super::scan::Scanned;
use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

fn open(folder: &Path) -> Journal {
    Journal::open(folder, &FileCache::new(4), SpaceGuard::new(folder, 0)).unwrap()
}

fn name(number: u64) -> String {
    format!("index-{number:020}.jsonl")
}

/// Appends under a scope whose failpoints nobody arms.
fn append(journal: &mut Journal, lines: &[&str]) -> Vec<Span> {
    let lines: Vec<&[u8]> = lines.iter().map(|l| l.as_bytes()).collect();
    journal.append(name, &lines, "test").unwrap()
}

fn lines(journal: &Journal) -> Vec<String> {
    let mut scan = journal.scan_all();
    let mut lines = Vec::new();
    while let Some(scanned) = scan.next().unwrap() {
        match scanned {
            Scanned::Line { span, bytes } => {
                assert_eq!(journal.read(span).unwrap(), bytes);
                lines.push(String::from_utf8(bytes.to_vec()).unwrap());
            }
            Scanned::Torn { len, .. } => lines.push(format!("torn {len}")),
        }
    }
    lines
}

#[test]
fn what_was_appended_is_read_back_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(folder.path());
    let spans = append(&mut journal, &["{\"a\":1}", "{\"bb\":22}"]);
    assert_eq!((spans[0].offset, spans[0].len, spans[0].end()), (0, 7, 8));
    assert_eq!(spans[1].offset, 8);
    let more = append(&mut journal, &["{}"]);
    assert_eq!(journal.read(spans[1]).unwrap(), b"{\"bb\":22}");
    let range = journal.read_range(spans[0].file, 8, 1000).unwrap();
    assert_eq!(range, b"{\"bb\":22}\n{}\n");
    assert_eq!(journal.read_range(spans[0].file, 8, 3).unwrap(), b"{\"b");
    let reader = journal.reader();
    drop(journal);
    let journal = open(folder.path());
    assert_eq!(lines(&journal), ["{\"a\":1}", "{\"bb\":22}", "{}"]);
    assert_eq!(journal.total_len(), more[0].end());
    assert_eq!(reader.files(), journal.files());
    assert_eq!(journal.files()[0].name, name(0));
}

#[test]
fn a_scan_starts_at_any_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(folder.path());
    let spans = append(&mut journal, &["one", "two", "three"]);
    let mut scan = journal.scan(spans[1].file, spans[1].offset);
    let Some(Scanned::Line { span, bytes }) = scan.next().unwrap() else {
        panic!("a line is expected");
    };
    assert_eq!((span, bytes), (spans[1], b"two".as_slice()));
}

#[test]
fn a_full_file_is_followed_by_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let nearly_full = File::create(folder.path().join(name(0))).unwrap();
    nearly_full.set_len(MAX_FILE - 4).unwrap();
    let mut journal = open(folder.path());
    append(&mut journal, &["one"]);
    assert_eq!(journal.files()[0].len, MAX_FILE);
    let backwards = journal.append(|_| name(0), &[b"x"], "test").unwrap_err();
    assert_eq!(backwards.kind(), io::ErrorKind::InvalidInput);
    let spans = append(&mut journal, &["two", "three"]);
    let names: Vec<String> = journal.files().into_iter().map(|f| f.name).collect();
    assert_eq!(names, [name(0), name(1)], "the smallest free number");
    assert_eq!((spans[1].file, spans[1].offset), (FileId(1), 4));
    assert_eq!(open(folder.path()).files(), journal.files());
}

#[test]
fn timestamps_name_files_too() {
    assert_eq!(
        FileId::of("index-20261123T230124123Z.jsonl"),
        Some(FileId(20_261_123_230_124_123))
    );
    assert_eq!(FileId::of("index-12.jsonl.torn-0"), None);
    assert_eq!(FileId::of("index.jsonl"), None);
}

#[test]
fn lines_that_would_break_the_format_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(folder.path());
    let long = vec![b'x'; MAX_LINE + 1];
    for line in [b"".as_slice(), b"a\nb", &long] {
        let error = journal.append(name, &[b"good", line], "test").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!(journal.files(), []);
    append(&mut journal, &["x".repeat(MAX_LINE).as_str()]);
    assert_eq!(lines(&journal)[0].len(), MAX_LINE);
}

/// Failpoints are global, so one test walks through all of them.
#[test]
fn a_failed_append_leaves_nothing_and_the_next_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(folder.path());
    let points = ["before_write", "torn_write", "after_write", "after_fsync"];
    let mut expected = Vec::new();
    for action in ["error", "panic"] {
        for point in points {
            for first in ["in a new file", "in a file that has lines"] {
                let point = format!("sync.journal.{point}");
                failpoint::set(&point, action).unwrap();
                let failed = catch_unwind(AssertUnwindSafe(|| {
                    journal.append(
                        name,
                        &[b"never acknowledged, long enough to be cut"],
                        "sync",
                    )
                }));
                match failed {
                    Ok(result) => assert_eq!(
                        result.unwrap_err().kind(),
                        io::ErrorKind::StorageFull,
                        "{point}"
                    ),
                    Err(_) => assert_eq!(action, "panic"),
                }
                assert_eq!(journal.total_len(), expected.len() as u64 * 3);
                journal.append(name, &[b"ok"], "sync").unwrap();
                expected.push("ok");
                assert_eq!(lines(&journal), expected, "{point} {action} {first}");
                assert_eq!(lines(&open(folder.path())), expected);
                assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
            }
            // Again from an empty folder.
            fs::remove_dir_all(folder.path()).unwrap();
            journal = open(folder.path());
            expected.clear();
        }
    }
}

#[test]
fn a_torn_tail_is_reported_and_cut_but_kept_aside() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(folder.path());
    append(&mut journal, &["one", "two"]);
    let path = folder.path().join(name(0));
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(b"{\"half");
    fs::write(&path, bytes).unwrap();

    let mut journal = open(folder.path());
    let mut scan = journal.scan_all();
    let mut torn = None;
    while let Some(scanned) = scan.next().unwrap() {
        if let Scanned::Torn { file, offset, len } = scanned {
            torn = Some((file, offset, len));
        }
    }
    assert_eq!(torn, Some((FileId(0), 8, 6)));
    journal.truncate_tail(FileId(0), 8).unwrap();
    assert_eq!(lines(&journal), ["one", "two"]);
    append(&mut journal, &["three"]);
    assert_eq!(lines(&open(folder.path())), ["one", "two", "three"]);
    let aside = folder.path().join(format!("{}.torn-0", name(0)));
    assert_eq!(fs::read(aside).unwrap(), b"{\"half");
}

#[test]
fn a_cut_in_an_earlier_file_sets_later_files_aside() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(name(0)), "one\ntwo\n").unwrap();
    fs::write(folder.path().join(name(7)), "three\n").unwrap();
    let mut journal = open(folder.path());
    assert_eq!(lines(&journal), ["one", "two", "three"]);
    journal.truncate_tail(FileId(0), 4).unwrap();
    assert_eq!(lines(&journal), ["one"]);
    assert_eq!(lines(&open(folder.path())), ["one"]);
    for (torn, content) in [(0, "two\n"), (7, "three\n")] {
        let aside = folder.path().join(format!("{}.torn-0", name(torn)));
        assert_eq!(fs::read_to_string(aside).unwrap(), content);
    }
}

#[test]
fn zeros_that_a_power_cut_left_are_a_torn_tail() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = b"one\n".to_vec();
    bytes.resize(bytes.len() + MAX_LINE * 2, 0);
    bytes.push(b'\n');
    fs::write(folder.path().join(name(0)), &bytes).unwrap();
    let journal = open(folder.path());
    let torn = format!("torn {}", bytes.len() - 4);
    assert_eq!(lines(&journal), ["one", torn.as_str()]);
}

#[test]
fn no_more_handles_are_open_than_the_cache_holds() {
    let folder = tempfile::tempdir().unwrap();
    let cache = FileCache::new(4);
    let space = SpaceGuard::new(folder.path(), 0);
    let mut journals: Vec<Journal> = (0..50)
        .map(|n| Journal::open(&folder.path().join(n.to_string()), &cache, space.clone()).unwrap())
        .collect();
    for round in 0..3 {
        for journal in &mut journals {
            let spans = append(journal, &["line"]);
            assert_eq!(journal.read(spans[0]).unwrap(), b"line");
        }
        assert!(cache.inner.handles.len() <= 4, "round {round}");
    }
}

#[test]
fn lines_are_not_seen_beyond_what_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(folder.path());
    let spans = append(&mut journal, &["line"]);
    let beyond = Span {
        offset: spans[0].end(),
        ..spans[0]
    };
    assert!(journal.holds(spans[0]) && !journal.holds(beyond));
    let error = journal.read(beyond).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let elsewhere = Span {
        file: FileId(9),
        ..spans[0]
    };
    assert!(journal.read(elsewhere).is_err());
    let full = SpaceGuard::new(folder.path(), u64::MAX);
    let mut journal = Journal::open(folder.path(), &FileCache::default(), full).unwrap();
    let error = journal.append(name, &[b"x"], "test").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}
