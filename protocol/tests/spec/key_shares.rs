//! `spec/vectors/key_share.json`: sets of shares, and what must be refused of them; and the words of the page's example.

use std::convert::Infallible;

use hn_protocol::did::{Did, SecretSeed};
use hn_protocol::document::{Keeper, KeyShare};
use hn_protocol::key_share::{
    BadShare, DidDigest, Gathered, Layout, Pad, RecoverError, Share, WORD_COUNT, WordsError, split,
};
use hn_protocol::sign::{DocumentError, Signed};
use serde_json::{Value, json};

use crate::common::identity;
use crate::forge::{self, Object};
use crate::{page, promised};

/// The bytes that BLAKE3 makes of a text: chance that is the same every time.
struct Chance(blake3::OutputReader);

impl rand_core::TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(bytes);
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Chance {}

/// One set of vectors: whose, its layout, how many, and its passphrase with the pad that it becomes.
struct Set {
    name: &'static str,
    seed: u8,
    set: &'static str,
    threshold: u8,
    shares: u8,
    passphrase: Option<(&'static str, &'static str)>,
    keepers: bool,
}

const SETS: [Set; 4] = [
    Set {
        name: "three of five of alice's key",
        seed: 1,
        set: "a11ce001",
        threshold: 3,
        shares: 5,
        passphrase: None,
        keepers: true,
    },
    Set {
        name: "another set of the same key",
        seed: 1,
        set: "a11ce002",
        threshold: 2,
        shares: 3,
        passphrase: None,
        keepers: false,
    },
    Set {
        name: "a set with a passphrase",
        seed: 1,
        set: "a11ce003",
        threshold: 2,
        shares: 2,
        // The pad by an independent Argon2; that ours agrees is a test of actors/.
        passphrase: Some(("correct horse b\u{e4}ttery", PAD)),
        keepers: false,
    },
    Set {
        name: "as large as a set can be, of bob's key",
        seed: 2,
        set: "b0b00001",
        threshold: 16,
        shares: 16,
        passphrase: None,
        keepers: false,
    },
];

const PAD: &str = "1914dde2296191552a14583d6fee264bb0b6ceaff04a758fa0d8feb77fbb1942";

fn bytes_of(hex: &str) -> [u8; 32] {
    hex.parse::<hn_protocol::digest::Digest>().unwrap().0
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Set {
    fn key(&self) -> SecretSeed {
        SecretSeed::from_bytes([self.seed; 32])
    }

    fn layout(&self) -> Layout {
        Layout {
            set: self.set.parse().unwrap(),
            did_digest: DidDigest::of(&self.key().did()),
            threshold: self.threshold,
            passphrase: self.passphrase.is_some(),
        }
    }

    fn pad(&self) -> Option<Pad> {
        self.passphrase
            .map(|(_, pad)| Pad::from_bytes(bytes_of(pad)))
    }

    fn split(&self) -> Vec<Share> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.name.as_bytes());
        let mut chance = Chance(hasher.finalize_xof());
        let pad = self.pad();
        split(
            &self.key(),
            self.layout(),
            self.shares,
            pad.as_ref(),
            &mut chance,
        )
        .unwrap()
    }

    fn document(&self, share: &Share) -> Signed<KeyShare> {
        let keeper = |n: u8, url: &str| Keeper {
            did: identity(n).did(),
            url: url.parse().unwrap(),
        };
        let keepers = [
            keeper(4, "https://dora.example.net"),
            keeper(5, "https://example.org/emil/mcp"),
        ];
        let keepers = if self.keepers { keepers.into() } else { vec![] };
        let document = KeyShare::new(share, self.key().did(), keepers);
        Signed::create(&document, &self.key().identity()).unwrap()
    }
}

/// The share that the page shows: the second of alice's first set.
pub fn example() -> Signed<KeyShare> {
    SETS[0].document(&SETS[0].split()[1])
}

/// The words of it, seven a line; `None` for other marks.
pub fn block(name: &str) -> Option<String> {
    let words = (name == "key_share@1.json").then(|| example().share().to_words())?;
    let words: Vec<&str> = words.split(' ').collect();
    let lines: Vec<String> = words.chunks(7).map(|line| line.join(" ")).collect();
    Some(lines.join("\n"))
}

fn text(document: &Signed<KeyShare>) -> String {
    String::from_utf8(document.bytes().to_vec()).unwrap()
}

fn sets() -> Vec<Value> {
    SETS.iter()
        .map(|set| {
            let shares = set.split();
            let texts: Vec<String> = shares.iter().map(|s| s.to_words().to_string()).collect();
            let last = &texts[texts.len() - usize::from(set.threshold)..];
            let recovered = Gathered::of(last, None)
                .unwrap()
                .recover(set.pad().as_ref());
            assert_eq!(
                recovered.unwrap().seed.expose(),
                set.key().expose(),
                "{}",
                set.name
            );
            let shares: Vec<Value> = shares
                .iter()
                .zip(texts)
                .map(|(share, words)| {
                    let document = text(&set.document(share));
                    json!({"index": share.index, "words": words, "document_utf8": document})
                })
                .collect();
            json!({
                "name": set.name,
                "seed_hex": hex(set.key().expose()),
                "did": set.key().did(),
                "did_digest": set.layout().did_digest,
                "set": set.set,
                "threshold": set.threshold,
                "passphrase": set.passphrase.map(|(text, _)| text),
                "salt_hex": hex(&set.layout().salt()),
                "pad_hex": set.passphrase.map(|(_, pad)| pad),
                "shares": shares,
            })
        })
        .collect()
}

/// One of the ways of `forge` to change a document.
type Forge = fn(&bytes::Bytes, &dyn Fn(&mut Object)) -> bytes::Bytes;

/// Name, the texts, the DID that is asked for.
fn lies() -> Vec<(&'static str, Vec<String>, Option<Did>)> {
    let words = |set: usize| -> Vec<String> {
        let shares = SETS[set].split();
        shares.iter().map(|s| s.to_words().to_string()).collect()
    };
    let (alice, again, locked, bob) = (words(0), words(1), words(2), words(3));
    let honest: Vec<String> = SETS[0]
        .split()
        .iter()
        .map(|share| text(&SETS[0].document(share)))
        .collect();
    let edit = |make: Forge, change: &dyn Fn(&mut Object)| {
        let own = bytes::Bytes::from(honest[0].clone());
        String::from_utf8(make(&own, change).to_vec()).unwrap()
    };
    let edited = |change: &dyn Fn(&mut Object)| edit(|b, c| forge::edited(b, c), change);
    let with_id = |change: &dyn Fn(&mut Object)| edit(|b, c| forge::with_id(b, c), change);
    let own = |change: &dyn Fn(&mut Object)| edit(|b, c| forge::signed(b, &identity(1), c), change);
    let eves =
        |change: &dyn Fn(&mut Object)| edit(|b, c| forge::signed(b, &identity(9), c), change);
    let put = |member: &'static str, value: Value| {
        move |o: &mut Object| drop(o.insert(member.into(), value.clone()))
    };
    let changed = |word: usize, to: &str| {
        let mut words: Vec<&str> = alice[0].split(' ').collect();
        words[word] = to;
        words.join(" ")
    };
    let mut swapped: Vec<&str> = alice[0].split(' ').collect();
    swapped.swap(20, 21);
    let mut wrong = SETS[0].split()[3].clone();
    wrong.value = SETS[1].split()[0].value.clone();
    let wrong = wrong.to_words().to_string();
    let mut lowered = SETS[0].split();
    for share in &mut lowered {
        share.layout.threshold = 2;
    }
    let lowered: Vec<String> = lowered[..2]
        .iter()
        .map(|s| s.to_words().to_string())
        .collect();
    let cut: Vec<&str> = alice[0].split(' ').take(WORD_COUNT - 1).collect();
    let with = |first: String| vec![first, alice[1].clone(), alice[2].clone()];
    let of = |texts: &[&String]| -> Vec<String> { texts.iter().map(|t| (*t).clone()).collect() };
    let other = json!(text(&SETS[0].document(&SETS[0].split()[1])));
    let other: Value = serde_json::from_str(other.as_str().unwrap()).unwrap();
    vec![
        ("words: one left out", with(cut.join(" ")), None),
        (
            "words: one too many",
            with(format!("{} zoo", alice[0])),
            None,
        ),
        ("words: none of the list", with(changed(6, "kangaro")), None),
        ("words: another of the list", with(changed(30, "zoo")), None),
        ("words: two swapped", with(swapped.join(" ")), None),
        ("no JSON", with("{".into()), None),
        (
            "another document",
            with(json!({"type": "revocation@1"}).to_string()),
            None,
        ),
        ("altered", with(edited(&put("threshold", json!(2)))), None),
        (
            "no signature",
            with(edited(&|o| drop(o.remove("signature")))),
            None,
        ),
        (
            "signed: no share",
            with(own(&|o| drop(o.remove("share")))),
            None,
        ),
        (
            "signed: a share of 31 bytes",
            with(own(&put("share", json!("A".repeat(42))))),
            None,
        ),
        (
            "signed: a threshold of 1",
            with(own(&put("threshold", json!(1)))),
            None,
        ),
        ("signed: number 0", with(own(&put("index", json!(0)))), None),
        (
            "signed: a set in upper case",
            with(own(&put("set", json!("A11CE001")))),
            None,
        ),
        (
            "signed: did_digest of another DID",
            with(own(&put(
                "did_digest",
                json!(DidDigest::of(&identity(2).did())),
            ))),
            None,
        ),
        (
            "signed: a keeper without URL",
            with(own(&put("keepers", json!([{"did": identity(4).did()}])))),
            None,
        ),
        (
            "altered, id made to fit",
            with(with_id(&put("index", json!(5)))),
            None,
        ),
        ("in her name, signed by another", with(eves(&|_| {})), None),
        (
            "the signature of another share",
            with(edited(&put("signature", other["signature"].clone()))),
            None,
        ),
        (
            "of another set of the same key",
            of(&[&alice[0], &again[1], &alice[2]]),
            None,
        ),
        ("of another key", of(&[&alice[0], &alice[1], &bob[2]]), None),
        (
            "as many of another set, given later",
            of(&[&alice[0], &again[0], &again[1], &alice[1]]),
            None,
        ),
        (
            "of another DID than was asked for",
            alice.clone(),
            Some(identity(2).did()),
        ),
        (
            "a document of another DID in the same set",
            of(&[
                &honest[0],
                &alice[1],
                &eves(&|o| {
                    o.insert("did".into(), json!(identity(9).did()));
                    o.insert(
                        "did_digest".into(),
                        json!(DidDigest::of(&identity(9).did())),
                    );
                }),
            ]),
            None,
        ),
        (
            "the same twice",
            of(&[&alice[0], &alice[1], &alice[0]]),
            None,
        ),
        (
            "the same in both forms",
            of(&[&alice[0], &alice[1], &honest[0]]),
            None,
        ),
        (
            "two of one number",
            of(&[&alice[3], &alice[1], &wrong]),
            None,
        ),
        (
            "one forged among four",
            of(&[&alice[0], &alice[1], &wrong, &alice[2]]),
            None,
        ),
        (
            "one forged among three",
            of(&[&alice[0], &alice[1], &wrong]),
            None,
        ),
        ("two that say that they are enough", lowered, None),
        ("two of three", of(&[&alice[0], &alice[4]]), None),
        ("fifteen of sixteen", bob[1..].to_vec(), None),
        ("no passphrase", locked, None),
    ]
}

#[test]
fn shares_are_as_the_vectors_say() {
    let refuse: Vec<Value> = lies()
        .into_iter()
        .map(|(name, texts, did)| {
            let error = Gathered::of(&texts, did)
                .and_then(|gathered| gathered.recover(None))
                .expect_err(name);
            let (code, bad) = match &error {
                RecoverError::Bad(bad) => {
                    let named = bad
                        .iter()
                        .map(|(place, bad)| json!({"place": place, "code": bad.code()}));
                    (bad[0].1.code(), named.collect())
                }
                RecoverError::TooFew { .. } => ("too_few_shares", vec![]),
                RecoverError::PassphraseNeeded => ("share_passphrase_needed", vec![]),
                RecoverError::Mismatch { .. } => ("share_forged", vec![]),
                RecoverError::TooMany(_) => panic!("{name}"),
            };
            json!({"name": name, "did": did, "shares": texts, "code": code, "bad": bad})
        })
        .collect();
    let made = json!({
        "about": "shares of keys by spec/key_share@1.md: sets, of which any threshold bring the seed back, and what must be refused; places count from 0",
        "sets": sets(),
        "refuse": refuse,
    });
    promised(
        "vectors/key_share.json",
        &format!("{}\n", serde_json::to_string_pretty(&made).unwrap()),
    );
}

#[test]
fn every_code_of_a_share_stands_on_its_page() {
    let set = SETS[0].layout().set;
    let all = [
        BadShare::Words(WordsError::Checksum),
        BadShare::Document(DocumentError::Id),
        BadShare::TooLong(0),
        BadShare::Foreign(set),
        BadShare::ForeignDid,
        BadShare::Signature,
        BadShare::Forged,
        BadShare::Duplicate(0),
        BadShare::Rival(0),
    ];
    let explained = page("key_share@1.md");
    for bad in all {
        assert!(explained.contains(&format!("`{}`", bad.code())), "{bad}");
    }
}
