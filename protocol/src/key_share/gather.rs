//! What people brought → the seed, or which share is bad and why. A seed is returned only after its DID was compared with
//! what every share says of it.

use blahaj::{Share as Point, Sharks};
use bytes::Bytes;
use zeroize::Zeroizing;

use super::{DidDigest, Layout, MAX_SHARES, Pad, Share, WordsError};
use crate::did::{Did, SecretSeed};
use crate::document::{Keeper, KeyShare};
use crate::sign::{DocumentError, Signed};

/// The longest text that can be a share: the largest document, with room for white space.
pub const MAX_SHARE_TEXT: usize = 4 << 10;
/// The most texts that are looked at: two whole sets, some of them twice.
pub const MAX_GIVEN: usize = 64;

/// Why one of the shares cannot be used. Numbers are places in what was given, from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadShare {
    /// Words that are no share.
    #[error("damaged: {0}")]
    Words(WordsError),
    /// A file or QR code that is no share.
    #[error("damaged: {0}")]
    Document(DocumentError),
    /// More than [`MAX_SHARE_TEXT`] bytes.
    #[error("no share: it has {0} bytes, and a share has at most {MAX_SHARE_TEXT}")]
    TooLong(usize),
    /// Of another set than most of the others.
    #[error("of another set ({0}) than the others")]
    Foreign(super::SetId),
    /// Of another DID than the one asked for, or than what the others are of.
    #[error("a share of another DID's key")]
    ForeignDid,
    /// Its signature is not that of the DID that it names.
    #[error("forged: its signature is not that of the DID that it names")]
    Signature,
    /// It does not lie where the others do.
    #[error("forged: it does not belong to the key that the others are of")]
    Forged,
    /// The same number and content as another.
    #[error("the same share as no. {}", .0 + 1)]
    Duplicate(usize),
    /// The same number as another, and another content.
    #[error("numbered as no. {} is, and has another content: one of the two is forged", .0 + 1)]
    Rival(usize),
}

impl BadShare {
    /// A stable word for it.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Words(_) | Self::Document(_) | Self::TooLong(_) => "share_damaged",
            Self::Foreign(_) | Self::ForeignDid => "share_foreign",
            Self::Signature | Self::Forged => "share_forged",
            Self::Duplicate(_) | Self::Rival(_) => "share_duplicate",
        }
    }
}

/// Why there is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// These, by their place from 0 in what was given, and why. There is at least one.
    #[error("{} of the shares cannot be used", .0.len())]
    Bad(Vec<(usize, BadShare)>),
    /// All are sound, and more are needed. Without any it is not known how many.
    #[error("{have} shares are too few")]
    TooFew {
        /// How many there are.
        have: usize,
        /// How many are the key.
        need: Option<u8>,
    },
    /// More than [`MAX_GIVEN`] texts.
    #[error("{0} shares are more than the {MAX_GIVEN} that are looked at")]
    TooMany(usize),
    /// The set has a passphrase, and none was given.
    #[error("these shares need their passphrase as well")]
    PassphraseNeeded,
    /// The key that they are is another DID's. With a passphrase that is most often the reason.
    #[error("what the shares are together is not the key that they say")]
    Mismatch {
        /// Whether the set has a passphrase.
        passphrase: bool,
    },
}

/// Shares of one set, each once and sound in itself.
#[derive(Debug)]
pub struct Gathered {
    layout: Layout,
    /// By place in what was given.
    shares: Vec<(usize, Given)>,
    expected: Option<Did>,
}

/// A key that was brought back.
#[derive(Debug)]
pub struct Recovered {
    /// The seed, of the DID that the shares are of.
    pub seed: SecretSeed,
    /// Who keeps backups of it, as far as signed shares say; each once.
    pub keepers: Vec<Keeper>,
}

/// One share, and what is known of it beyond the share.
#[derive(Debug)]
struct Given {
    share: Share,
    signed: Option<(Did, Vec<Keeper>)>,
}

impl Given {
    /// Reads words, or the JSON of a file or QR code.
    fn parse(text: &str) -> Result<Self, BadShare> {
        let text = text.trim();
        if text.len() > MAX_SHARE_TEXT {
            return Err(BadShare::TooLong(text.len()));
        }
        if !text.starts_with('{') {
            let share = Share::from_words(text).map_err(BadShare::Words)?;
            return Ok(Self {
                share,
                signed: None,
            });
        }
        let document = Signed::<KeyShare>::verify(Bytes::copy_from_slice(text.as_bytes()));
        let document = document.map_err(|error| match error {
            DocumentError::Signature(_) => BadShare::Signature,
            error => BadShare::Document(error),
        })?;
        Ok(Self {
            share: document.share(),
            signed: Some((document.did, document.keepers.clone())),
        })
    }

    fn signer(&self) -> Option<Did> {
        self.signed.as_ref().map(|(did, _)| *did)
    }

    /// Whether it can be a share of `did`'s key.
    fn is_of(&self, did: &Did) -> bool {
        match &self.signed {
            Some((signer, _)) => signer == did,
            None => self.share.layout.did_digest == DidDigest::of(did),
        }
    }
}

impl Gathered {
    /// Judges the texts: words, or signed documents. `expected` is the DID whose key is wanted, where that is known. The
    /// set of most of them counts, of several the one whose share came first. Errors: [`RecoverError::Bad`] with every
    /// bad one, [`RecoverError::TooFew`] without any, [`RecoverError::TooMany`].
    pub fn of<T: AsRef<str>>(texts: &[T], expected: Option<Did>) -> Result<Self, RecoverError> {
        if texts.len() > MAX_GIVEN {
            return Err(RecoverError::TooMany(texts.len()));
        }
        let (mut given, mut bad) = (Vec::new(), Vec::new());
        for (place, text) in texts.iter().enumerate() {
            match Given::parse(text.as_ref()) {
                Ok(share) if expected.is_some_and(|did| !share.is_of(&did)) => {
                    bad.push((place, BadShare::ForeignDid));
                }
                Ok(share) => given.push((place, share)),
                Err(error) => bad.push((place, error)),
            }
        }
        let Some(layout) = common(&given) else {
            return Err(match bad.is_empty() {
                true => RecoverError::TooFew {
                    have: 0,
                    need: None,
                },
                false => RecoverError::Bad(bad),
            });
        };
        let mut shares: Vec<(usize, Given)> = Vec::new();
        for (place, share) in given {
            let twin = shares
                .iter()
                .find(|(_, known)| known.share.index == share.share.index);
            let signer = shares.iter().find_map(|(_, known)| known.signer());
            let wrong = if share.share.layout != layout {
                Some(BadShare::Foreign(share.share.layout.set))
            } else if signer.is_some_and(|did| !share.is_of(&did)) {
                Some(BadShare::ForeignDid)
            } else {
                twin.map(|(twin, known)| match known.share == share.share {
                    true => BadShare::Duplicate(*twin),
                    false => BadShare::Rival(*twin),
                })
            };
            match wrong {
                Some(error) => bad.push((place, error)),
                None => shares.push((place, share)),
            }
        }
        if bad.is_empty() {
            // All signers are one: the whole DID is compared where it is known, not its digest alone.
            let signer = shares.iter().find_map(|(_, given)| given.signer());
            return Ok(Self {
                layout,
                shares,
                expected: expected.or(signer),
            });
        }
        bad.sort_by_key(|(place, _)| *place);
        Err(RecoverError::Bad(bad))
    }

    /// What the shares have in common: also the salt of a passphrase, where one is needed.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    #[cfg(test)]
    pub(super) fn share(&self, at: usize) -> &Share {
        &self.shares[at].1.share
    }

    /// How many shares are missing.
    #[must_use]
    pub fn missing(&self) -> usize {
        usize::from(self.layout.threshold).saturating_sub(self.shares.len())
    }

    /// The key. A pad that is not needed is not used. With more shares than are needed, a forged one is found and named.
    /// Errors: [`RecoverError::TooFew`], [`RecoverError::PassphraseNeeded`], [`RecoverError::Mismatch`],
    /// [`RecoverError::Bad`] with every share that does not lie where the others do.
    pub fn recover(&self, pad: Option<&Pad>) -> Result<Recovered, RecoverError> {
        if self.missing() > 0 {
            return Err(RecoverError::TooFew {
                have: self.shares.len(),
                need: Some(self.layout.threshold),
            });
        }
        let pad = match (self.layout.passphrase, pad) {
            (true, None) => return Err(RecoverError::PassphraseNeeded),
            (true, pad) => pad,
            (false, _) => None,
        };
        let (chosen, seed) = self.find(pad).ok_or(RecoverError::Mismatch {
            passphrase: self.layout.passphrase,
        })?;
        let did = seed.did();
        let forged: Vec<(usize, BadShare)> = (0..self.shares.len())
            .filter(|place| !chosen.contains(place) && !self.fits(*place, &chosen, pad, &did))
            .map(|place| (self.shares[place].0, BadShare::Forged))
            .collect();
        if !forged.is_empty() {
            return Err(RecoverError::Bad(forged));
        }
        let mut keepers: Vec<Keeper> = Vec::new();
        for (_, given) in &self.shares {
            let named = given.signed.iter().flat_map(|(_, keepers)| keepers);
            for keeper in named {
                if !keepers.contains(keeper) {
                    keepers.push(keeper.clone());
                }
            }
        }
        Ok(Recovered { seed, keepers })
    }

    /// The first choice of as many shares as are needed that is the key which they say, and that key. At most
    /// C(16, 8) = 12,870 choices, each one interpolation and one public key.
    fn find(&self, pad: Option<&Pad>) -> Option<(Vec<usize>, SecretSeed)> {
        let (count, needed) = (self.shares.len(), usize::from(self.layout.threshold));
        let mut chosen: Vec<usize> = (0..needed).collect();
        loop {
            if let Some(seed) = self
                .combine(&chosen, pad)
                .filter(|seed| self.is_right(seed))
            {
                return Some((chosen, seed));
            }
            // The next choice in lexical order: the last one that can move moves, and those behind it follow.
            let moves = (0..needed)
                .rev()
                .find(|i| chosen[*i] < count - needed + i)?;
            chosen[moves] += 1;
            for i in moves + 1..needed {
                chosen[i] = chosen[i - 1] + 1;
            }
        }
    }

    /// Whether the share at `place` gives the same key in the stead of one that is known to be good.
    fn fits(&self, place: usize, good: &[usize], pad: Option<&Pad>, did: &Did) -> bool {
        let mut chosen = good.to_vec();
        if let Some(first) = chosen.first_mut() {
            *first = place;
        }
        self.combine(&chosen, pad)
            .is_some_and(|seed| seed.did() == *did)
    }

    fn combine(&self, chosen: &[usize], pad: Option<&Pad>) -> Option<SecretSeed> {
        let points: Vec<Point> = chosen
            .iter()
            .filter_map(|place| {
                let share = &self.shares[*place].1.share;
                let mut bytes = Zeroizing::new([0; 33]);
                bytes[0] = share.index;
                bytes[1..].copy_from_slice(&share.value.0);
                Point::try_from(&bytes[..]).ok()
            })
            .collect();
        let secret = Zeroizing::new(Sharks(self.layout.threshold).recover(&points).ok()?);
        let mut seed = Zeroizing::new(<[u8; 32]>::try_from(&secret[..]).ok()?);
        if let Some(pad) = pad {
            pad.apply(&mut seed);
        }
        Some(SecretSeed::from_bytes(*seed))
    }

    /// Whether it is the key of the DID that was asked for or signed, and that every share says.
    fn is_right(&self, seed: &SecretSeed) -> bool {
        let did = seed.did();
        self.layout.did_digest == DidDigest::of(&did)
            && self.expected.is_none_or(|expected| expected == did)
    }
}

/// The layout that most of them have; of several the one that came first.
fn common(given: &[(usize, Given)]) -> Option<Layout> {
    let layouts: Vec<Layout> = given.iter().map(|(_, given)| given.share.layout).collect();
    let votes = |layout: &Layout| layouts.iter().filter(|other| *other == layout).count();
    // The last of equals wins `max_by_key`, so they are looked at from the end.
    layouts
        .iter()
        .rev()
        .max_by_key(|layout| votes(layout))
        .copied()
}

// More shares than this would make the choices of `find` too many.
const _: () = assert!(MAX_SHARES <= 16);
