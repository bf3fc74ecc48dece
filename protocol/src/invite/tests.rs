#![allow(clippy::unwrap_used)]
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::did::SecretSeed;
use crate::time::Timestamp;

const NOW: Timestamp = Timestamp(1_000_000);
const MONTH: Duration = Duration::from_secs(30 * 86_400);
/// Alice's DID is of the seed of 32 bytes `01`, as in `spec/`.
const ALICE: &str = "did:hn:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX";

fn did(n: u8) -> Did {
    SecretSeed::from_bytes([n; 32]).did()
}

fn token(n: u16) -> InviteToken {
    let mut bytes = [7; TOKEN_BYTES];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    InviteToken::from_bytes(bytes)
}

fn url(text: &str) -> BaseUrl {
    text.parse().unwrap()
}

fn said(n: u16, at: Option<&str>) -> Introduction {
    Introduction {
        token: token(n),
        url: at.map(url),
    }
}

fn later(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

#[test]
fn an_invite_is_one_line_that_reads_back() {
    let invite = Invite {
        did: ALICE.parse().unwrap(),
        url: url("https://alice.example.net"),
        token: InviteToken::from_bytes([0xff; TOKEN_BYTES]),
    };
    let line = invite.to_string();
    assert_eq!(
        line,
        format!("{ALICE}=https://alice.example.net#_____________________w")
    );
    assert_eq!(line.parse(), Ok(invite.clone()));
    assert!(!format!("{invite:?}").contains("___"), "no secret in a log");
}

#[test]
fn what_is_wrong_with_a_line_is_said() {
    use InviteTextError as E;
    let good = "AAAAAAAAAAAAAAAAAAAAAA";
    let cases: &[(String, E)] = &[
        (String::new(), E::NoUrl),
        (ALICE.to_owned(), E::NoUrl),
        (format!("{ALICE}=https://a.example"), E::NoToken),
        (format!("{ALICE}=#{good}"), E::Url(BaseUrlError::Scheme)),
        (
            format!("did:hn:alice=https://a.example#{good}"),
            E::Did(DidError::Form),
        ),
        (format!("{ALICE}=https://a.example#"), E::Token(TokenError)),
        (
            format!("{ALICE}=https://a.example#{}", &good[1..]),
            E::Token(TokenError),
        ),
        // The last character has four bits too many.
        (
            format!("{ALICE}=https://a.example#{}B", &good[1..]),
            E::Token(TokenError),
        ),
        (
            format!("{ALICE}=https://a.example#{good}#"),
            E::Token(TokenError),
        ),
        (
            format!("{ALICE}=https://a.example#{good}="),
            E::Token(TokenError),
        ),
        (
            format!("{ALICE}=https://u:p@a.example#{good}"),
            E::Url(BaseUrlError::User),
        ),
        (
            format!("{ALICE}=https://a.example/?q#{good}"),
            E::Url(BaseUrlError::Query),
        ),
        (
            format!("{ALICE}= https://a.example#{good}"),
            E::Url(BaseUrlError::Character),
        ),
        ("x".repeat(MAX_INVITE + 1), E::TooLong(MAX_INVITE + 1)),
    ];
    for (line, wrong) in cases {
        assert_eq!(line.parse::<Invite>(), Err(wrong.clone()), "{line}");
    }
}

#[test]
fn the_longest_invite_fits() {
    let longest = format!("https://a.example/{}", "p".repeat(MAX_URL - 18));
    assert_eq!(longest.len(), MAX_URL);
    let line = format!("{ALICE}={longest}#AAAAAAAAAAAAAAAAAAAAAA");
    assert!(line.parse::<Invite>().is_ok());
    assert_eq!(
        format!("{longest}p").parse::<BaseUrl>(),
        Err(BaseUrlError::TooLong)
    );
}

#[test]
fn a_base_url_is_plain() {
    use BaseUrlError as E;
    for good in [
        "http://127.0.0.1:7733",
        "https://[2001:db8::1]:443/hn",
        "https://a-b.example.net./x/y",
        "http://localhost",
    ] {
        assert_eq!(url(good).as_str(), good);
        assert_eq!(url(&format!("{good}//")).as_str(), good);
    }
    for (text, wrong) in [
        ("ftp://a", E::Scheme),
        ("HTTPS://a", E::Scheme),
        ("https:a", E::Scheme),
        ("https://", E::Host),
        ("https:///x", E::Host),
        ("https://a..b", E::Host),
        ("https://a%2eb", E::Host),
        ("https://[::1", E::Host),
        ("https://[::1]x", E::Host),
        ("https://[a]", E::Host),
        ("https://a:", E::Port),
        ("https://a:0", E::Port),
        ("https://a:+1", E::Port),
        ("https://a:65536", E::Port),
        ("https://a:1:2", E::Port),
        ("https://me@a", E::User),
        ("https://a/b?c", E::Query),
        ("https://a/../b", E::Path),
        ("https://a\\b", E::Character),
        ("https://a/\u{202e}", E::Character),
        ("https://a/\n", E::Character),
        ("https://a/\u{1b}[2J", E::Character),
    ] {
        assert_eq!(text.parse::<BaseUrl>(), Err(wrong), "{text:?}");
    }
}

#[test]
fn an_invite_is_used_by_the_first_who_comes() {
    let mut book = InviteBook::default();
    let until = book.create(&token(1), MONTH, NOW).unwrap();
    assert_eq!(until, NOW.plus(MONTH));
    let come = |book: &mut InviteBook, n, at| {
        book.introduce(did(n), &said(1, Some("https://bob.example")), false, at)
    };
    assert_eq!(come(&mut book, 2, later(1)), Ok(Introduced::Pending));
    let first = book.clone();
    assert_eq!(come(&mut book, 2, later(9)), Ok(Introduced::Pending));
    let silent = book.introduce(did(2), &said(1, None), false, later(9));
    assert_eq!(silent, Ok(Introduced::Pending));
    assert_eq!(book, first, "again is no news, and is not younger");
    assert_eq!(come(&mut book, 3, later(2)), Err(InviteRefusal::Used));
    let long_after = NOW.plus(MONTH).plus(MONTH);
    assert_eq!(come(&mut book, 2, long_after), Ok(Introduced::Pending));
    let [request] = book.requests() else {
        unreachable!("one request")
    };
    assert_eq!(
        (request.did, request.since, request.invite_made_at),
        (did(2), later(1), NOW)
    );
    assert!(book.settle(&did(2)));
    assert!(!book.settle(&did(2)));
    assert_eq!(book, InviteBook::default(), "nothing is left of it");
    assert_eq!(come(&mut book, 2, later(9)), Err(InviteRefusal::Unknown));
}

#[test]
fn an_invite_that_nobody_came_with_expires_and_can_be_taken_back() {
    let mut book = InviteBook::default();
    book.create(&token(1), MONTH, NOW).unwrap();
    let at = NOW.plus(MONTH);
    assert_eq!(
        book.introduce(did(2), &said(1, None), false, at),
        Err(InviteRefusal::Expired)
    );
    assert_eq!(
        book.introduce(did(2), &said(2, None), false, NOW),
        Err(InviteRefusal::Unknown)
    );
    assert_eq!(
        (book.open(NOW), book.withdraw(NOW), book.open(NOW)),
        (1, 1, 0)
    );
    let until = book.create(&token(1), Duration::MAX, NOW).unwrap();
    assert_eq!(until, NOW.plus(MAX_LIFE), "no invite lives for ever");
}

#[test]
fn a_friend_needs_no_invite_and_waits_no_longer() {
    let mut book = InviteBook::default();
    book.create(&token(1), MONTH, NOW).unwrap();
    book.introduce(did(2), &said(1, None), false, NOW).unwrap();
    let again = book.introduce(did(2), &said(9, None), true, NOW);
    assert_eq!(again, Ok(Introduced::Friend));
    assert!(book.requests().is_empty() && book.invites().is_empty());
}

#[test]
fn a_second_invite_of_one_who_waits_is_theirs_too() {
    let mut book = InviteBook::default();
    for n in [1, 2] {
        book.create(&token(n), MONTH, later(n.into())).unwrap();
        book.introduce(did(2), &said(n, None), false, later(9 + u64::from(n)))
            .unwrap();
    }
    let [request] = book.requests() else {
        unreachable!("one request")
    };
    assert_eq!(
        (request.since, request.invite_made_at),
        (later(10), later(2))
    );
    for n in [1, 2] {
        let other = book.introduce(did(3), &said(n, None), false, later(20));
        assert_eq!(other, Err(InviteRefusal::Used));
    }
}

#[test]
fn a_full_book_forgets_what_expired_first_and_nothing_that_is_open() {
    let mut book = InviteBook::default();
    let max = u16::try_from(MAX_INVITES).unwrap();
    for n in 0..max {
        let life = Duration::from_secs(100 + u64::from(n));
        book.create(&token(n), life, NOW).unwrap();
    }
    let before = book.clone();
    assert_eq!(
        book.create(&token(max), MONTH, later(99)),
        Err(InviteRefusal::TooManyInvites)
    );
    assert_eq!(book, before);
    book.create(&token(max), MONTH, later(101)).unwrap();
    assert_eq!(book.invites().len(), MAX_INVITES);
    let gone = book.introduce(did(2), &said(0, None), false, later(101));
    assert_eq!(gone, Err(InviteRefusal::Unknown));
    let kept = book.introduce(did(2), &said(1, None), false, later(101));
    assert_eq!(kept, Err(InviteRefusal::Expired));
}

#[test]
fn so_many_wait_and_no_more() {
    let mut book = InviteBook::default();
    let identity = |n: u16| {
        let mut seed = [9; 32];
        seed[..2].copy_from_slice(&n.to_be_bytes());
        SecretSeed::from_bytes(seed).did()
    };
    let max = u16::try_from(MAX_REQUESTS).unwrap();
    for n in 0..=max {
        // Each has expired when the next is made, so that the invites are not what ends it.
        let now = later(u64::from(n) * 10);
        book.create(&token(n), Duration::from_secs(5), now).unwrap();
        let come = book.introduce(identity(n), &said(n, None), false, now);
        let fits = n < max;
        assert_eq!(come.is_ok(), fits, "{n}");
        if !fits {
            assert_eq!(come, Err(InviteRefusal::TooManyRequests));
        }
    }
    assert_eq!(book.requests().len(), MAX_REQUESTS);
    let last = later(u64::from(max) * 10);
    book.settle(&identity(0));
    let come = book.introduce(identity(max), &said(max, None), false, last);
    assert_eq!(come, Ok(Introduced::Pending), "its invite was not used up");
}

fn begun() -> (Introductions, Agenda) {
    let mut introductions = Introductions::default();
    let at = url("https://alice.example");
    introductions.begin(did(1), at, token(1), NOW).unwrap();
    (introductions, Agenda::default())
}

/// Runs what is due, answers it like this, and gives the wait until the next.
fn tried(
    list: &mut Introductions,
    agenda: &mut Agenda,
    reply: &Reply,
    now: Timestamp,
) -> Option<u64> {
    let due = agenda.start_due(list, 8, now);
    assert_eq!(due.len(), 1, "due at {now}");
    assert!(agenda.start_due(list, 8, now).is_empty(), "once at a time");
    assert_eq!(agenda.next_wake(list), None);
    list.answered(&did(1), &due[0].token, reply, now);
    agenda.tried(&did(1), reply, now);
    Some(agenda.next_wake(list)?.since(now).as_secs())
}

#[test]
fn an_inviter_who_is_away_is_asked_ever_more_seldom_and_one_who_thinks_it_over_too() {
    let (mut list, mut agenda) = begun();
    let failed = Reply::Failed("no connection".into());
    let mut now = NOW;
    let mut waits = Vec::new();
    for reply in [&failed; 10].into_iter().chain([&Reply::Pending; 12]) {
        let wait = tried(&mut list, &mut agenda, reply, now).unwrap();
        waits.push(wait);
        now = now.plus(Duration::from_secs(wait));
    }
    assert_eq!(
        waits[..10],
        [4, 8, 16, 32, 64, 128, 256, 512, 900, 900],
        "away"
    );
    assert_eq!(waits[10..13], [60, 120, 240], "not decided");
    assert_eq!(waits[21], 6 * 3600);
    assert_eq!(list.of(&did(1)).unwrap().stage, Stage::Pending);
    assert_eq!(tried(&mut list, &mut agenda, &Reply::Friend, now), None);
    assert_eq!(list.of(&did(1)).unwrap().stage, Stage::Accepted);
}

#[test]
fn a_refusal_is_kept_with_its_reason_and_a_failure_is_not_one() {
    let (mut list, mut agenda) = begun();
    tried(&mut list, &mut agenda, &Reply::Failed("off".into()), NOW);
    assert_eq!(agenda.trouble(&did(1)), Some(("off", later(4))));
    assert_eq!(list.of(&did(1)).unwrap().stage, Stage::Sending);
    let no = Reply::Refused("n".repeat(1000));
    assert_eq!(tried(&mut list, &mut agenda, &no, later(4)), None);
    let refused = list.of(&did(1)).unwrap();
    assert_eq!(refused.stage, Stage::Refused);
    assert_eq!(refused.reason.as_ref().unwrap().len(), 256);
    assert_eq!(agenda.trouble(&did(1)), None);
}

#[test]
fn nobody_is_asked_for_longer_than_an_invite_lives() {
    for reply in [Reply::Failed("off".into()), Reply::Pending] {
        let (mut list, mut agenda) = begun();
        assert!(tried(&mut list, &mut agenda, &reply, NOW).is_some());
        let end = NOW.plus(MAX_LIFE);
        assert_eq!(tried(&mut list, &mut agenda, &reply, end), None);
        assert_eq!(list.of(&did(1)).unwrap().stage, Stage::Refused);
    }
}

#[test]
fn a_newer_invite_takes_the_place_of_an_older_one_also_while_that_is_tried() {
    let (mut list, mut agenda) = begun();
    let due = agenda.start_due(&list, 8, NOW);
    list.begin(did(1), url("https://new.example"), token(2), NOW)
        .unwrap();
    agenda.at_once(&did(1));
    assert!(agenda.start_due(&list, 8, NOW).is_empty(), "one at a time");
    list.answered(&did(1), &due[0].token, &Reply::Refused("used".into()), NOW);
    assert_eq!(list.of(&did(1)).unwrap().stage, Stage::Sending);
    agenda.dropped(&did(1));
    let due = agenda.start_due(&list, 8, NOW);
    assert_eq!(due[0].url.as_str(), "https://new.example");
    assert!(list.forget(&did(1)) && !list.forget(&did(1)));
    assert_eq!(agenda.next_wake(&list), None);
}

#[test]
fn introductions_that_ended_make_room_and_others_do_not() {
    let mut list = Introductions::default();
    let at = url("https://a.example");
    let identity = |n: usize| {
        let mut seed = [8; 32];
        seed[..8].copy_from_slice(&n.to_be_bytes());
        SecretSeed::from_bytes(seed).did()
    };
    for n in 0..MAX_INTRODUCTIONS {
        list.begin(identity(n), at.clone(), token(1), NOW).unwrap();
    }
    let one_more = identity(MAX_INTRODUCTIONS);
    let full = list.begin(one_more, at.clone(), token(1), NOW);
    assert_eq!(full, Err(IntroductionsFull));
    list.answered(&identity(5), &token(1), &Reply::Friend, NOW);
    list.begin(one_more, at, token(1), NOW).unwrap();
    assert!(list.of(&identity(5)).is_none());
    assert_eq!(list.list().len(), MAX_INTRODUCTIONS);
}

proptest! {
    #[test]
    fn every_invite_reads_back(
        seed in any::<[u8; 32]>(), bytes in any::<[u8; TOKEN_BYTES]>(),
        host in "[a-z0-9]{1,20}(\\.[a-z0-9-]{1,20}){0,4}", port in proptest::option::of(1u16..),
        path in "(/[a-zA-Z0-9_~!$&'()*+,;=:@%-]{1,20}){0,5}", tls in any::<bool>(),
    ) {
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let scheme = if tls { "https" } else { "http" };
        let invite = Invite {
            did: SecretSeed::from_bytes(seed).did(),
            url: format!("{scheme}://{host}{port}{path}").parse().unwrap(),
            token: InviteToken::from_bytes(bytes),
        };
        let line = invite.to_string();
        prop_assert!(line.len() <= MAX_INVITE && line.bytes().all(|b| b.is_ascii_graphic()));
        prop_assert_eq!(line.parse::<Invite>(), Ok(invite));
    }

    #[test]
    fn no_text_breaks_the_reader_and_what_it_takes_has_one_spelling(
        text in "\\PC{0,80}", did in "(did:hn:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX=)?",
        url in "(https?://)?[a-z.:/@?#\\[\\]0-9]{0,20}", token in "#?[A-Za-z0-9_-]{0,24}",
    ) {
        for line in [text, format!("{did}{url}{token}")] {
            if let Ok(invite) = line.parse::<Invite>() {
                let written = invite.to_string();
                prop_assert_eq!(written.parse::<Invite>(), Ok(invite));
            }
        }
    }

    /// Whatever happens: bounds hold, one request a DID, an invite belongs to one DID, and time only takes away.
    #[test]
    fn the_book_keeps_its_laws(steps in proptest::collection::vec((0u8..5, 0u8..4, 0u16..6, 0u64..40), 0..80)) {
        let mut book = InviteBook::default();
        let mut now = NOW;
        let mut owner: std::collections::BTreeMap<Digest, Did> = Default::default();
        for (what, who, which, wait) in steps {
            now = now.plus(Duration::from_secs(wait));
            match what {
                0 => {
                    let known = book.invites().iter().any(|i| i.token == token(which).digest());
                    if !known {
                        owner.remove(&token(which).digest());
                        book.create(&token(which), Duration::from_secs(60), now).unwrap();
                    }
                }
                1 | 2 => {
                    let before = book.clone();
                    let come = book.introduce(did(who), &said(which, None), false, now);
                    let token = token(which).digest();
                    match come {
                        Ok(_) => prop_assert_eq!(*owner.entry(token).or_insert(did(who)), did(who)),
                        Err(_) => prop_assert_eq!(&book, &before),
                    }
                }
                3 => {
                    book.settle(&did(who));
                    prop_assert!(book.requests().iter().all(|r| r.did != did(who)));
                }
                _ => { book.withdraw(now); prop_assert_eq!(book.open(now), 0); }
            }
            let mut dids: Vec<Did> = book.requests().iter().map(|r| r.did).collect();
            dids.sort_unstable();
            dids.dedup();
            prop_assert_eq!(dids.len(), book.requests().len());
            let bytes = crate::canonical::to_vec(&book).unwrap();
            prop_assert_eq!(crate::canonical::from_slice::<InviteBook>(&bytes).unwrap(), book.clone());
        }
    }
}
