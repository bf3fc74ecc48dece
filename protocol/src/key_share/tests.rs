#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::convert::Infallible;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

use super::words::WordsError;
use super::*;
use crate::did::SecretSeed;
use crate::document::{Keeper, KeyShare};
use crate::sign::{DocumentError, Signed};

/// The bytes that BLAKE3 makes of a number: chance that can be repeated.
struct Xof(blake3::OutputReader);

impl Xof {
    fn of(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        Self(hasher.finalize_xof())
    }
}

impl rand_core::TryRng for Xof {
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

impl rand_core::TryCryptoRng for Xof {}

fn seed(n: u8) -> SecretSeed {
    SecretSeed::from_bytes([n; 32])
}

fn shares(n: u8, threshold: u8, count: u8, pad: Option<&Pad>, chance: u64) -> Vec<Share> {
    let mut rng = Xof::of(chance);
    let did = seed(n).did();
    let layout = Layout::new(&did, threshold, count, pad.is_some(), &mut rng).unwrap();
    split(&seed(n), layout, count, pad, &mut rng).unwrap()
}

fn words(shares: &[Share]) -> Vec<String> {
    shares.iter().map(|s| s.to_words().to_string()).collect()
}

fn document(share: &Share, n: u8) -> String {
    let keeper = Keeper {
        did: seed(7).did(),
        url: "https://keeper.example.net".parse().unwrap(),
    };
    let document = KeyShare::new(share, seed(n).did(), vec![keeper]);
    let signed = Signed::create(&document, &seed(n).identity()).unwrap();
    String::from_utf8(signed.bytes().to_vec()).unwrap()
}

fn bad(texts: &[String]) -> Vec<(usize, &'static str)> {
    let recovered = Gathered::of(texts, None).and_then(|gathered| gathered.recover(None));
    match recovered.unwrap_err() {
        RecoverError::Bad(bad) => bad.iter().map(|(at, error)| (*at, error.code())).collect(),
        error => panic!("{error}"),
    }
}

#[test]
fn the_list_is_that_of_bip_39() {
    use sha2::Digest as _;
    let list = include_bytes!("../../../spec/words.txt");
    let digest: String = sha2::Sha256::digest(list)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    assert_eq!(
        digest,
        "2f5eed53a4727b4bf8880d8f3f199efc90e58503646d9ff8eff3a2ed3b24dbda"
    );
    let list: Vec<&str> = std::str::from_utf8(list).unwrap().lines().collect();
    assert_eq!(list.len(), 2048);
    assert!(list.is_sorted() && list.iter().all(|word| word.len() <= 8));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Y3: any threshold of them are the key, as words, as documents and mixed; one less is refused.
    #[test]
    fn any_k_of_n_are_the_key_and_k_less_one_are_not(
        (threshold, count) in (2..=16u8).prop_flat_map(|n| (2..=n, Just(n))),
        picks in vec(any::<Index>(), 16),
        locked in any::<bool>(),
        signed in vec(any::<bool>(), 16),
        chance in any::<u64>(),
    ) {
        let pad = Pad::from_bytes([0x5a; 32]);
        let pad = locked.then_some(&pad);
        let mut left = shares(1, threshold, count, pad, chance);
        let texts: Vec<String> = picks.iter().zip(signed).take(usize::from(threshold)).map(|(pick, signed)| {
            let share = left.remove(pick.index(left.len()));
            if signed { document(&share, 1) } else { share.to_words().to_string() }
        }).collect();
        let gathered = Gathered::of(&texts, None).unwrap();
        prop_assert_eq!(gathered.recover(pad).unwrap().seed.did(), seed(1).did());
        let fewer = Gathered::of(&texts[1..], None).unwrap();
        prop_assert_eq!(fewer.missing(), 1);
        let error = fewer.recover(pad).unwrap_err();
        prop_assert_eq!(error, RecoverError::TooFew { have: usize::from(threshold) - 1, need: Some(threshold) });
        // Not by saying that they are enough, either.
        if threshold > 2 {
            let lowered: Vec<String> = texts[1..].iter().map(|text| {
                let mut share = Gathered::of(&[text], None).unwrap().share(0).clone();
                share.layout.threshold -= 1;
                share.to_words().to_string()
            }).collect();
            let error = Gathered::of(&lowered, None).unwrap().recover(pad).unwrap_err();
            prop_assert_eq!(error, RecoverError::Mismatch { passphrase: locked });
        }
    }

    /// Y4: a word taken for another, or two swapped, is noticed in that share.
    #[test]
    fn a_slip_in_words_is_noticed(chance in any::<u64>(), place in 0..WORD_COUNT, other in 0..2048usize, to in 0..WORD_COUNT) {
        let text = shares(1, 2, 2, None, chance)[0].to_words().to_string();
        let list: Vec<&str> = include_str!("../../../spec/words.txt").lines().collect();
        let mut changed: Vec<&str> = text.split(' ').collect();
        changed[place] = list[other];
        let expected = if changed.join(" ") == text { None } else { Some(WordsError::Checksum) };
        prop_assert_eq!(Share::from_words(&changed.join(" ")).err(), expected);
        let mut swapped: Vec<&str> = text.split(' ').collect();
        swapped.swap(place, to);
        let expected = if swapped.join(" ") == text { None } else { Some(WordsError::Checksum) };
        prop_assert_eq!(Share::from_words(&swapped.join(" ")).err(), expected);
    }

    /// A letter changed anywhere: another word, or none.
    #[test]
    fn a_flipped_letter_is_noticed(chance in any::<u64>(), at in any::<Index>(), letter in b'a'..=b'z') {
        let text = shares(1, 2, 2, None, chance)[1].to_words().to_string();
        let mut bytes = text.clone().into_bytes();
        let letters: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i] != b' ').collect();
        let at = letters[at.index(letters.len())];
        bytes[at] = letter;
        let changed = String::from_utf8(bytes).unwrap();
        prop_assert_eq!(Share::from_words(&changed).is_ok(), changed == text);
    }

    #[test]
    fn no_text_is_too_odd_to_be_refused(text in "\\PC{0,300}", cut in any::<Index>()) {
        let _ = Gathered::of(std::slice::from_ref(&text), None);
        let whole = document(&shares(1, 2, 2, None, 0)[0], 1);
        let cut = cut.index(whole.len());
        prop_assert!(Gathered::of(&[&whole[..cut]], None).is_err());
    }

    /// Y7: which of many is forged is found where there are enough others.
    #[test]
    fn a_forged_share_among_enough_is_named(
        chance in any::<u64>(),
        order in subsequence((0..5usize).collect::<Vec<_>>(), 4),
        wrong in any::<Index>(),
    ) {
        let mut all = shares(1, 3, 5, None, chance);
        let wrong = wrong.index(order.len());
        all[order[wrong]].value.0[9] ^= 1;
        let texts: Vec<String> = order.iter().map(|i| all[*i].to_words().to_string()).collect();
        prop_assert_eq!(bad(&texts), [(wrong, "share_forged")]);
    }
}

#[test]
fn fewer_say_nothing() {
    // Two of three: each first byte of the seed is as possible as any other, whatever one share says.
    let mut seen = [false; 256];
    for first in 0..=255u8 {
        let mut bytes = [3; 32];
        bytes[0] = first;
        let key = SecretSeed::from_bytes(bytes);
        for chance in 0..64 {
            let mut rng = Xof::of(chance * 256 + u64::from(first));
            let layout = Layout::new(&key.did(), 2, 2, false, &mut rng).unwrap();
            let value = split(&key, layout, 2, None, &mut rng).unwrap()[0].value.0[0];
            seen[usize::from(value)] = true;
        }
    }
    assert!(seen.iter().all(|seen| *seen));
}

#[test]
fn sets_have_bounds() {
    let did = seed(1).did();
    for (threshold, count) in [(0, 3), (1, 3), (4, 3), (3, 17), (17, 17), (255, 255)] {
        let refused = Layout::new(&did, threshold, count, false, &mut Xof::of(1)).unwrap_err();
        assert!(
            matches!(refused, SplitError::Bounds { .. }),
            "{threshold} of {count}"
        );
    }
    let mut layout = Layout::new(&did, 2, 3, false, &mut Xof::of(1)).unwrap();
    let of = |layout, key: u8, pad| split(&seed(key), layout, 3, pad, &mut Xof::of(2)).err();
    assert_eq!(of(layout, 1, None), None);
    assert_eq!(of(layout, 2, None), Some(SplitError::Layout), "another key");
    let pad = Pad::from_bytes([1; 32]);
    assert_eq!(of(layout, 1, Some(&pad)), Some(SplitError::Layout));
    layout.threshold = 4;
    assert!(of(layout, 1, None).is_some());
}

#[test]
fn words_are_read_as_people_write_them() {
    let share = &shares(1, 3, 5, None, 1)[4];
    let text = share.to_words();
    assert_eq!(text.split(' ').count(), WORD_COUNT);
    let sloppy = format!("\n  {}\t", text.to_uppercase().replace(' ', "\n  "));
    assert_eq!(&Share::from_words(&sloppy).unwrap(), share);
    assert_eq!((share.index, share.layout.threshold), (5, 3));
    let first = text.split_once(' ').unwrap();
    assert_eq!(Share::from_words(first.1), Err(WordsError::Count(34)));
    assert_eq!(
        Share::from_words(&format!("{} zoo", *text)),
        Err(WordsError::Count(36))
    );
    assert_eq!(
        Share::from_words(&format!("abandn {}", first.1)),
        Err(WordsError::Unknown(1))
    );
}

#[test]
fn each_bad_share_is_named() {
    let (all, others) = (shares(1, 3, 5, None, 1), shares(1, 3, 5, None, 2));
    let good = words(&all);
    let mut damaged = good[1].clone();
    damaged.replace_range(..3, "xyz");
    let foreign = words(&others)[1].clone();
    let given = [
        good[0].clone(),
        damaged,
        foreign,
        good[2].clone(),
        good[0].clone(),
        "{}".into(),
    ];
    assert_eq!(
        bad(&given),
        [
            (1, "share_damaged"),
            (2, "share_foreign"),
            (4, "share_duplicate"),
            (5, "share_damaged")
        ]
    );
    let mut rival = all[0].clone();
    rival.value.0[0] ^= 1;
    let rival = [
        good[0].clone(),
        rival.to_words().to_string(),
        good[1].clone(),
    ];
    assert_eq!(bad(&rival), [(1, "share_duplicate")]);
    // The same set and number under another threshold is another set.
    let mut lower = all[1].clone();
    lower.layout.threshold = 2;
    assert_eq!(
        bad(&[good[0].clone(), lower.to_words().to_string()]),
        [(1, "share_foreign")]
    );
    assert!(matches!(
        Gathered::of::<&str>(&[], None),
        Err(RecoverError::TooFew {
            have: 0,
            need: None
        })
    ));
    assert!(matches!(
        Gathered::of(&[""; 65], None),
        Err(RecoverError::TooMany(65))
    ));
    let long = "abandon ".repeat(600);
    assert_eq!(bad(&[good[0].clone(), long]), [(1, "share_damaged")]);
}

#[test]
fn what_is_signed_is_its_owners() {
    let all = shares(1, 2, 3, None, 1);
    let honest = document(&all[0], 1);
    let edit = |from: &str, to: &str| {
        assert!(honest.contains(from));
        honest.replace(from, to)
    };
    // Changed, and its id no longer fits: damaged.
    assert_eq!(
        bad(&[edit("\"index\":1", "\"index\":2")]),
        [(0, "share_damaged")]
    );
    // Eve signs a share in alice's name.
    let share = KeyShare::new(&all[0], seed(1).did(), vec![]);
    let by_eve = Signed::create(&share, &seed(9).identity()).unwrap_err();
    assert!(matches!(by_eve, DocumentError::Signature(_)));
    let mut swapped: serde_json::Value = serde_json::from_str(&honest).unwrap();
    let other: serde_json::Value = serde_json::from_str(&document(&all[1], 1)).unwrap();
    swapped["signature"] = other["signature"].clone();
    assert_eq!(bad(&[swapped.to_string()]), [(0, "share_forged")]);
    // Eve's own share, in a set that she calls as alice's is called.
    let mut layout = all[0].layout;
    layout.did_digest = DidDigest::of(&seed(9).did());
    let eves = split(&seed(9), layout, 2, None, &mut Xof::of(3)).unwrap();
    let eves = document(&eves[1], 9);
    assert_eq!(
        bad(&[honest.clone(), words(&all)[1].clone(), eves]),
        [(2, "share_foreign")]
    );
    // did_digest of another DID, signed.
    let mut wrong = KeyShare::new(&all[0], seed(1).did(), vec![]);
    wrong.did_digest = DidDigest::of(&seed(2).did());
    assert!(Signed::create(&wrong, &seed(1).identity()).is_err());
    let keepers = Gathered::of(&[honest, document(&all[2], 1)], None).unwrap();
    assert_eq!(keepers.recover(None).unwrap().keepers.len(), 1, "each once");
}

#[test]
fn a_wrong_key_is_never_returned() {
    let mut all = shares(1, 3, 5, None, 1);
    all[1].value.0[31] ^= 0x80;
    let exactly = Gathered::of(&words(&all[..3]), None).unwrap();
    assert_eq!(
        exactly.recover(None).unwrap_err(),
        RecoverError::Mismatch { passphrase: false }
    );
    let right = shares(1, 3, 5, None, 1);
    let asked = |n: u8| Gathered::of(&words(&right), Some(seed(n).did()));
    assert_eq!(
        asked(1).unwrap().recover(None).unwrap().seed.did(),
        seed(1).did()
    );
    let RecoverError::Bad(all_of_them) = asked(2).unwrap_err() else {
        panic!("another DID was asked for");
    };
    assert_eq!(all_of_them.len(), 5);
    assert!(
        all_of_them
            .iter()
            .all(|(_, error)| *error == BadShare::ForeignDid)
    );
}

#[test]
fn a_passphrase_is_needed_where_there_is_one() {
    let pad = Pad::from_bytes([7; 32]);
    let texts = words(&shares(1, 2, 3, Some(&pad), 1));
    let gathered = Gathered::of(&texts, None).unwrap();
    assert!(gathered.layout().passphrase);
    assert_eq!(
        gathered.recover(None).unwrap_err(),
        RecoverError::PassphraseNeeded
    );
    let wrong = Pad::from_bytes([8; 32]);
    assert_eq!(
        gathered.recover(Some(&wrong)).unwrap_err(),
        RecoverError::Mismatch { passphrase: true }
    );
    assert_eq!(
        gathered.recover(Some(&pad)).unwrap().seed.did(),
        seed(1).did()
    );
    let open = Gathered::of(&words(&shares(1, 2, 2, None, 1)), None).unwrap();
    assert!(
        open.recover(Some(&pad)).is_ok(),
        "a pad that is not needed is not used"
    );
}

#[test]
fn debug_shows_no_secret() {
    let pad = Pad::from_bytes([1; 32]);
    let share = shares(1, 2, 2, None, 1).remove(0);
    let encoded = serde_json::to_string(&share.value).unwrap();
    let recovered = Gathered::of(&words(&shares(1, 2, 2, None, 1)), None).unwrap();
    let shown = format!(
        "{share:?} {pad:?} {recovered:?} {:?}",
        recovered.recover(None).unwrap()
    );
    assert!(shown.contains("ShareValue(…)") && shown.contains("Pad(…)"));
    assert!(!shown.contains(encoded.trim_matches('"')));
    assert!(!shown.contains(&format!("{:?}", share.value.0)));
}
