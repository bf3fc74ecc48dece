//! A seed → shares.

use blahaj::{Share as Point, Sharks};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::{DidDigest, Layout, MAX_SHARES, MIN_THRESHOLD, Pad, SetId, Share, ShareValue};
use crate::did::{Did, SecretSeed};

/// Why a seed was not split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// Not 2 ≤ threshold ≤ shares ≤ 16.
    #[error(
        "{threshold} of {shares} cannot be: a set has at most {MAX_SHARES} shares, and at least {MIN_THRESHOLD} and at most all of them are the key"
    )]
    Bounds {
        /// How many should be the key.
        threshold: u8,
        /// How many there should be.
        shares: u8,
    },
    /// A layout of another DID, or one with a passphrase and no pad, or the other way round.
    #[error("the layout is not that of this key")]
    Layout,
}

impl Layout {
    /// The layout of a new set of `shares` shares of `did`'s key, `threshold` of which are the key.
    /// Errors: [`SplitError::Bounds`].
    pub fn new(
        did: &Did,
        threshold: u8,
        shares: u8,
        passphrase: bool,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, SplitError> {
        if threshold < MIN_THRESHOLD || shares < threshold || shares > MAX_SHARES {
            return Err(SplitError::Bounds { threshold, shares });
        }
        Ok(Self {
            set: SetId::random(rng),
            did_digest: DidDigest::of(did),
            threshold,
            passphrase,
        })
    }
}

/// Splits `seed` into `shares` shares of the set `layout`, numbered from 1. `pad` is there when, and only when, the set
/// has a passphrase. Errors: see [`SplitError`].
pub fn split(
    seed: &SecretSeed,
    layout: Layout,
    shares: u8,
    pad: Option<&Pad>,
    rng: &mut impl CryptoRng,
) -> Result<Vec<Share>, SplitError> {
    let threshold = layout.threshold;
    if threshold < MIN_THRESHOLD || shares < threshold || shares > MAX_SHARES {
        return Err(SplitError::Bounds { threshold, shares });
    }
    if layout.did_digest != DidDigest::of(&seed.did()) || layout.passphrase != pad.is_some() {
        return Err(SplitError::Layout);
    }
    let mut secret = Zeroizing::new(*seed.expose());
    if let Some(pad) = pad {
        pad.apply(&mut secret);
    }
    let points = Sharks(threshold).dealer_rng(&*secret, rng);
    Ok(points
        .take(usize::from(shares))
        .filter_map(|point| share(layout, &point))
        .collect())
}

fn share(layout: Layout, point: &Point) -> Option<Share> {
    let bytes = Zeroizing::new(Vec::from(point));
    let (index, value) = bytes.split_first()?;
    let value = Zeroizing::new(<[u8; 32]>::try_from(value).ok()?);
    Some(Share {
        layout,
        index: *index,
        value: ShareValue(*value),
    })
}
