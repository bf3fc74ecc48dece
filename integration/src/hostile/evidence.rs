//! Evidence of forks, and what looks like it: a peer that accuses somebody of a fork which never happened.

use bytes::Bytes;
use hn_protocol::did::{Did, Identity, SecretSeed};
use hn_protocol::digest::Digest;
use serde_json::{Map, Value, json};

use super::Author;
use super::author::{object, sign};
use crate::log::now;

/// Bytes of an evidence that is longer than any may be (`spec/fork_evidence@1.md`).
const TOO_LONG: usize = 5 << 20;

/// Evidence that proves nothing, though somebody signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgery {
    /// Two slices of one and the same log.
    NoConflict,
    /// A slice and the presence that covers it.
    HeadsThatAgree,
    /// One document twice.
    OneDocumentTwice,
    /// A conflict whose second document somebody else signed in the publisher's name.
    SignedByAnother,
    /// A conflict whose second document was altered after it was signed.
    Altered,
    /// A document of the publisher and one of somebody else, at the same place.
    OfTwoPublishers,
    /// Two slices at the same place, of two epochs.
    OfTwoEpochs,
    /// A conflict, in the wrong order.
    Unsorted,
    /// A conflict of three documents.
    ThreeDocuments,
    /// A conflict that the observer has not signed.
    OfAnotherObserver,
    /// A conflict of somebody else, shown as if it were the publisher's.
    OfAnother,
    /// A conflict whose documents are texts.
    DocumentsAsText,
    /// A page for people.
    Html,
    /// Arrays within arrays, a hundred thousand deep.
    Depth,
    /// More bytes than an evidence can have.
    TooLong,
    /// Bytes that are no UTF-8.
    InvalidUtf8,
}

impl Forgery {
    /// Every forgery.
    pub const ALL: [Self; 16] = [
        Self::NoConflict,
        Self::HeadsThatAgree,
        Self::OneDocumentTwice,
        Self::SignedByAnother,
        Self::Altered,
        Self::OfTwoPublishers,
        Self::OfTwoEpochs,
        Self::Unsorted,
        Self::ThreeDocuments,
        Self::OfAnotherObserver,
        Self::OfAnother,
        Self::DocumentsAsText,
        Self::Html,
        Self::Depth,
        Self::TooLong,
        Self::InvalidUtf8,
    ];

    /// The code under which a follower refuses it.
    pub const fn refused_as(self) -> &'static str {
        match self {
            Self::TooLong => "answer_too_large",
            _ => "bad_evidence",
        }
    }

    /// The line with which `observer` accuses `publisher`, whose honest log has two slices at least. What only she can
    /// have signed is signed with her key, so that nothing but what is wrong is wrong.
    pub fn told_of(self, publisher: &Author, observer: &Identity) -> Bytes {
        let mallory = SecretSeed::from_bytes(rand::random()).identity();
        let slice = publisher.last_slice();
        let other = sign(another(&slice), &publisher.identity);
        let accuse = |documents| signed(publisher.did(), sorted(documents), observer);
        let both: Vec<Value> = vec![Value::Object(slice.clone()), Value::Object(object(&other))];
        match self {
            Self::NoConflict => {
                let first = &publisher.pages.slices.first().expect("two slices").bytes;
                accuse(vec![Value::Object(object(first)), Value::Object(slice)])
            }
            Self::HeadsThatAgree => accuse(vec![
                Value::Object(slice),
                Value::Object(publisher.presence()),
            ]),
            Self::OneDocumentTwice => accuse(vec![both[0].clone(), both[0].clone()]),
            Self::SignedByAnother => {
                let forged = sign(another(&slice), &mallory);
                accuse(vec![both[0].clone(), Value::Object(object(&forged))])
            }
            Self::Altered => {
                let mut altered = both.clone();
                altered[1]["generated_at"] = slice["generated_at"].clone();
                altered[1]["log_root"] = json!(Digest::of(b"y"));
                accuse(altered)
            }
            Self::OfTwoPublishers => {
                let mut theirs = another(&slice);
                theirs.insert("publisher".into(), json!(mallory.did()));
                accuse(vec![
                    both[0].clone(),
                    Value::Object(object(&sign(theirs, &mallory))),
                ])
            }
            Self::OfTwoEpochs => {
                let mut later = another(&slice);
                later.insert("epoch".into(), json!(1));
                let later = sign(later, &publisher.identity);
                accuse(vec![both[0].clone(), Value::Object(object(&later))])
            }
            Self::Unsorted => {
                let documents = sorted(both).into_iter().rev().collect();
                signed(publisher.did(), documents, observer)
            }
            Self::ThreeDocuments => {
                let first = &publisher.pages.slices.first().expect("two slices").bytes;
                accuse([both, vec![Value::Object(object(first))]].concat())
            }
            Self::OfAnotherObserver => sign(object(&accuse(both)), &mallory),
            Self::OfAnother => {
                let mut guilty = Author::new("http://127.0.0.1:1");
                guilty.publish();
                let slice = guilty.last_slice();
                let other = sign(another(&slice), &guilty.identity);
                let documents = vec![Value::Object(slice), Value::Object(object(&other))];
                signed(guilty.did(), sorted(documents), observer)
            }
            Self::DocumentsAsText => signed(
                publisher.did(),
                both.iter().map(|d| json!(d.to_string())).collect(),
                observer,
            ),
            Self::Html => Bytes::from_static(b"<html>It works!</html>"),
            Self::Depth => Bytes::from(format!(
                "{{\"type\":\"fork_evidence@1\",\"documents\":{}{}}}",
                "[".repeat(100_000),
                "]".repeat(100_000)
            )),
            Self::TooLong => Bytes::from(vec![b'a'; TOO_LONG]),
            Self::InvalidUtf8 => Bytes::from_static(b"{\"type\":\"fork_evidence@1\xff\"}"),
        }
    }
}

/// True evidence, by `observer`, of two lines that one publisher signed and that contradict each other.
pub fn proof(publisher: Did, lines: [&Bytes; 2], observer: &Identity) -> Bytes {
    let documents = lines.map(|line| Value::Object(object(line)));
    signed(publisher, sorted(documents.to_vec()), observer)
}

/// A document in the same place as `slice`, which differs from it.
fn another(slice: &Map<String, Value>) -> Map<String, Value> {
    let mut other = slice.clone();
    other.insert("source".into(), json!("https://elsewhere.example.net"));
    other
}

fn sorted(mut documents: Vec<Value>) -> Vec<Value> {
    documents.sort_by(|a, b| a["id"].as_str().cmp(&b["id"].as_str()));
    documents
}

fn signed(publisher: Did, documents: Vec<Value>, observer: &Identity) -> Bytes {
    let evidence = json!({"type": "fork_evidence@1", "observer": observer.did(), "publisher": publisher, "epoch": 0,
        "documents": documents, "observed_at": now()});
    let Value::Object(evidence) = evidence else {
        unreachable!("an object was written")
    };
    sign(evidence, observer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hn_protocol::document::ForkEvidence;
    use hn_protocol::sign::Signed;

    /// So that a refusal in the tests of nodes is the forgery's doing, not a mistake of this harness.
    #[test]
    fn a_true_proof_verifies_and_no_forgery_of_one_does() {
        let mut bob = Author::new("http://127.0.0.1:1");
        bob.publish();
        bob.publish();
        let observer = SecretSeed::from_bytes(rand::random()).identity();
        let slice = bob.last_slice();
        let lines = [
            sign(slice.clone(), &bob.identity),
            sign(another(&slice), &bob.identity),
        ];
        let true_proof = proof(bob.did(), [&lines[0], &lines[1]], &observer);
        let verified = Signed::<ForkEvidence>::verify(true_proof).unwrap();
        assert!(verified.conflict().is_some());
        for forgery in Forgery::ALL {
            let refused = Signed::<ForkEvidence>::verify(forgery.told_of(&bob, &observer));
            if forgery == Forgery::OfAnother {
                assert_ne!(refused.unwrap().publisher, bob.did());
            } else {
                refused.expect_err(&format!("{forgery:?}"));
            }
        }
    }
}
