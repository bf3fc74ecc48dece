//! A share as 35 words: 48 bytes, 11 bits a word, in the English list of BIP-39 (`spec/words.txt`).
//!
//! | bytes | |
//! |---|---|
//! | 1 | version 1 in the upper half; in the lower 1 with a passphrase, else 0 |
//! | 1 | threshold − 1 in the upper half, index − 1 in the lower |
//! | 4, 6, 32 | set, digest of the DID, share |
//! | 4 | checksum over what is before |

use zeroize::Zeroizing;

use super::{DID_DIGEST_BYTES, DidDigest, Layout, SET_BYTES, SetId, Share, ShareValue};

/// Words of a share: the fewest of 11 bits that hold 48 bytes. One bit is left, and is 0.
pub const WORD_COUNT: usize = (PACKED * 8).div_ceil(BITS);
const BITS: usize = 11;
const PACKED: usize = CHECKED + CHECKSUM;
const CHECKED: usize = VALUE + 32;
const VALUE: usize = DID + DID_DIGEST_BYTES;
const DID: usize = SET + SET_BYTES;
const SET: usize = 2;
/// Bytes of the checksum: a slip of the pen stays unnoticed once in 2^32.
const CHECKSUM: usize = 4;
const CONTEXT: &str = "hn key_share@1 words";
const VERSION: u8 = 1 << 4;
const PASSPHRASE: u8 = 1;
/// Room for 35 of the longest words, so that the text never moves and leaves copies.
const TEXT: usize = WORD_COUNT * 9;

/// 2,048 words, sorted, told apart by their first four letters.
const LIST: &str = include_str!("../../../spec/words.txt");

/// Why words are no share. None of them is repeated: they are a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    /// Too many or too few.
    #[error("a share has {WORD_COUNT} words, and these are {0}")]
    Count(usize),
    /// Not a word of the list.
    #[error("word {0} is none of the list")]
    Unknown(usize),
    /// A word was changed, or two were swapped.
    #[error("the checksum does not fit: a word is wrong, or two are swapped")]
    Checksum,
    /// Made by a newer hn.
    #[error("they are of a version that this hn does not know")]
    Version,
    /// Bits that are 0 in every share are not, or the threshold is none.
    #[error("they are not put together as a share is")]
    Layout,
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let hash = blake3::derive_key(CONTEXT, bytes);
    let mut checksum = [0; CHECKSUM];
    checksum.copy_from_slice(&hash[..CHECKSUM]);
    checksum
}

impl Share {
    /// The share as [`WORD_COUNT`] words with a blank between them.
    #[must_use]
    pub fn to_words(&self) -> Zeroizing<String> {
        let layout = &self.layout;
        let mut packed = Zeroizing::new([0; PACKED]);
        packed[0] = VERSION | if layout.passphrase { PASSPHRASE } else { 0 };
        packed[1] = (layout.threshold - 1) << 4 | (self.index - 1);
        packed[SET..DID].copy_from_slice(&layout.set.0);
        packed[DID..VALUE].copy_from_slice(&layout.did_digest.0);
        packed[VALUE..CHECKED].copy_from_slice(&self.value.0);
        let sum = checksum(&packed[..CHECKED]);
        packed[CHECKED..].copy_from_slice(&sum);
        let list: Vec<&str> = LIST.lines().collect();
        let mut text = Zeroizing::new(String::with_capacity(TEXT));
        for word in 0..WORD_COUNT {
            let at = (word * BITS..(word + 1) * BITS)
                .map(|bit| {
                    packed
                        .get(bit / 8)
                        .is_some_and(|byte| byte >> (7 - bit % 8) & 1 == 1)
                })
                .fold(0, |number, bit| number << 1 | usize::from(bit));
            if word > 0 {
                text.push(' ');
            }
            text.push_str(list[at]);
        }
        text
    }

    /// Reads words as people write them: in any case, with any white space between them.
    pub fn from_words(text: &str) -> Result<Self, WordsError> {
        let count = text.split_whitespace().count();
        if count != WORD_COUNT {
            return Err(WordsError::Count(count));
        }
        let list: Vec<&str> = LIST.lines().collect();
        // One byte more than there is takes the bit that is left.
        let mut bits = Zeroizing::new([0u8; PACKED + 1]);
        for (place, word) in text.split_whitespace().enumerate() {
            let word = Zeroizing::new(word.to_ascii_lowercase());
            let number = list
                .binary_search(&word.as_str())
                .map_err(|_| WordsError::Unknown(place + 1))?;
            for bit in 0..BITS {
                if number >> (BITS - 1 - bit) & 1 == 1 {
                    let at = place * BITS + bit;
                    bits[at / 8] |= 1 << (7 - at % 8);
                }
            }
        }
        let (packed, left) = bits.split_at(PACKED);
        let (checked, sum) = packed.split_at(CHECKED);
        if sum != checksum(checked) || left != [0] {
            return Err(WordsError::Checksum);
        }
        if checked[0] & 0xf0 != VERSION {
            return Err(WordsError::Version);
        }
        if checked[0] & 0x0f > PASSPHRASE {
            return Err(WordsError::Layout);
        }
        let (mut set, mut did, mut value) = (
            [0; SET_BYTES],
            [0; DID_DIGEST_BYTES],
            Zeroizing::new([0; 32]),
        );
        set.copy_from_slice(&checked[SET..DID]);
        did.copy_from_slice(&checked[DID..VALUE]);
        value.copy_from_slice(&checked[VALUE..]);
        let share = Self {
            layout: Layout {
                set: SetId(set),
                did_digest: DidDigest(did),
                threshold: (checked[1] >> 4) + 1,
                passphrase: checked[0] & PASSPHRASE == PASSPHRASE,
            },
            index: (checked[1] & 0x0f) + 1,
            value: ShareValue(*value),
        };
        share.check().map_err(|_| WordsError::Layout)?;
        Ok(share)
    }
}
