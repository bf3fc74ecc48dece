//! Streams as their readers have them, and what they may cost.

#![allow(clippy::unwrap_used)]
use std::net::Ipv4Addr;
use std::sync::Mutex;

use hn_protocol::did::SecretSeed;
use hn_protocol::digest::Digest;

use super::*;

const LONG: Duration = Duration::from_secs(1000);

fn did(n: u16) -> Did {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    SecretSeed::from_bytes(seed).did()
}

/// A catalog of sizes alone.
#[derive(Default)]
struct Sizes {
    news: News,
    sizes: Mutex<std::collections::BTreeMap<Did, u64>>,
}

impl Sizes {
    fn grow(&self, publisher: Did) {
        *self.sizes.lock().unwrap().entry(publisher).or_default() += 1;
        self.news.changed(publisher);
    }
}

impl Source for Arc<Sizes> {
    fn own(&self) -> Did {
        did(0)
    }

    fn news(&self) -> &News {
        &self.news
    }

    fn head(&self, publisher: &Did) -> Option<NewHead> {
        let log_size = *self.sizes.lock().unwrap().get(publisher)?;
        Some(NewHead {
            did: *publisher,
            epoch: 0,
            log_size,
            log_root: Digest::of(b"root"),
            head: None,
            presence: None,
            revoked: false,
        })
    }
}

fn open(streams: &Arc<Streams>, sizes: &Arc<Sizes>, last: Option<&str>) -> Watching<Arc<Sizes>> {
    let place = streams.enter(None, None).unwrap();
    Watching::new(Arc::clone(sizes), None, last, place, LONG)
}

/// The heads of a chunk as (publisher, size), and its last id.
fn heads(chunk: &[u8]) -> (Vec<(Did, u64)>, String) {
    let text = std::str::from_utf8(chunk).unwrap();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let heads = data.map(|json| serde_json::from_str::<NewHead>(json).unwrap());
    let mut ids = text.lines().filter_map(|line| line.strip_prefix("id: "));
    (
        heads.map(|head| (head.did, head.log_size)).collect(),
        ids.next_back().unwrap_or_default().to_owned(),
    )
}

#[actix_web::test]
async fn a_slow_reader_gets_the_newest_of_each_log_and_no_backlog() {
    let (streams, sizes) = (Arc::new(Streams::default()), Arc::new(Sizes::default()));
    sizes.grow(did(0));
    let mut slow = open(&streams, &sizes, None);
    let (begun, _) = heads(&slow.next().await.unwrap());
    assert_eq!(begun, [(did(0), 1)], "where the node itself stands");
    for _ in 0..1000 {
        sizes.grow(did(1));
        sizes.grow(did(2));
    }
    let (told, id) = heads(&slow.next().await.unwrap());
    assert_eq!(told, [(did(1), 1000), (did(2), 1000)]);
    // And from there on, in a stream of its own.
    drop(slow);
    sizes.grow(did(2));
    let mut again = open(&streams, &sizes, Some(&id));
    assert_eq!(heads(&again.next().await.unwrap()).0, [(did(2), 1001)]);
}

#[actix_web::test]
async fn ten_thousand_logs_are_told_in_pieces_each_once() {
    let (streams, sizes) = (Arc::new(Streams::default()), Arc::new(Sizes::default()));
    let mut reader = open(&streams, &sizes, None);
    reader.next().await.unwrap();
    (1..=10_000).for_each(|n| sizes.grow(did(n)));
    let mut told = BTreeSet::new();
    while told.len() < 10_000 {
        let chunk = reader.next().await.unwrap();
        assert!(chunk.len() < 32 << 10, "{}", chunk.len());
        for (publisher, _) in heads(&chunk).0 {
            assert!(told.insert(publisher), "each once");
        }
    }
}

#[actix_web::test]
async fn ids_of_another_run_or_of_the_future_resume_nothing() {
    let (streams, sizes) = (Arc::new(Streams::default()), Arc::new(Sizes::default()));
    sizes.grow(did(0));
    sizes.grow(did(1));
    let place = streams.enter(None, None).unwrap();
    let future = format!("{:016x}-3", place.run());
    for id in ["", "x", "0-1", "1-", &future] {
        let mut reader = open(&streams, &sizes, Some(id));
        let (begun, _) = heads(&reader.next().await.unwrap());
        assert_eq!(begun, [(did(0), 1)], "{id:?}");
    }
}

#[actix_web::test]
async fn a_quiet_stream_beats_and_ends_when_the_node_does() {
    let streams = Arc::new(Streams::every(Duration::from_millis(5)));
    let sizes = Arc::new(Sizes::default());
    let mut reader = open(&streams, &sizes, None);
    reader.next().await.unwrap();
    for _ in 0..3 {
        assert_eq!(&*reader.next().await.unwrap(), COMMENT);
    }
    let (ended, ()) = tokio::join!(reader.next(), async { streams.close() });
    assert!(ended.is_none());
    drop(reader);
    assert_eq!(streams.count(), 0);
}

#[actix_web::test]
async fn a_stream_that_is_old_ends_at_its_next_beat() {
    let streams = Arc::new(Streams::every(Duration::from_millis(5)));
    let sizes = Arc::new(Sizes::default());
    let place = streams.enter(None, None).unwrap();
    let mut reader = Watching::new(Arc::clone(&sizes), None, None, place, Duration::ZERO);
    reader.next().await.unwrap();
    assert!(reader.next().await.is_none());
}

#[actix_web::test]
async fn places_are_bounded_in_all_and_for_each_client_and_given_back() {
    let streams = Arc::new(Streams::default());
    streams.bound(16);
    let client = |n| Some(Ipv4Addr::new(192, 0, 2, n).into());
    let mut places = Vec::new();
    for n in 1..=4 {
        places.push(streams.enter(client(n), None).unwrap());
        places.push(streams.enter(client(n), None).unwrap());
        assert!(streams.enter(client(n), None).is_err(), "a quarter of all");
    }
    assert!(streams.enter(client(5), None).is_err(), "half of 16");
    places.pop();
    assert!(streams.enter(client(5), None).is_ok());
}

#[actix_web::test]
async fn who_takes_nothing_for_three_beats_is_cut_and_who_reads_is_not() {
    use std::io::Read;
    let connections = super::super::connections::Connections::default();
    let streams = Arc::new(Streams::every(Duration::from_millis(5)));
    let sizes = Arc::new(Sizes::default());
    let pair = || std::os::unix::net::UnixStream::pair().unwrap();
    let ((ours, mut idler), (others, mut reading)) = (pair(), pair());
    let _idle = streams.enter(None, connections.watch(&ours, None)).unwrap();
    let place = streams
        .enter(None, connections.watch(&others, None))
        .unwrap();
    let mut reader = Watching::new(sizes, None, None, place, LONG);
    for _ in 0..8 {
        reader.next().await.unwrap();
    }
    assert_eq!(idler.read(&mut [0]).unwrap(), 0, "cut");
    reading.set_nonblocking(true).unwrap();
    assert!(reading.read(&mut [0]).is_err(), "open");
}
