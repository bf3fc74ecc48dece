#![allow(clippy::unwrap_used)]
use super::*;
use crate::did::SecretSeed;

const NOW: Timestamp = Timestamp(1_800_000_000_500);
const POST: Target<'static> = Target {
    method: "POST",
    path: "/publish",
    query: None,
};

fn alice() -> Identity {
    SecretSeed::from_bytes([1; 32]).identity()
}

fn bob() -> Did {
    SecretSeed::from_bytes([2; 32]).did()
}

fn content(body: &[u8]) -> BodyProof {
    BodyProof::Content(ContentDigest::field_of(body))
}

fn signed() -> SignatureFields {
    sign(
        POST,
        bob(),
        &content(b"body"),
        &alice(),
        NOW,
        "nonce-0123456789",
    )
    .unwrap()
}

fn received(fields: &SignatureFields) -> ReceivedFields<'_> {
    let proof = |wanted: &str| {
        let proof = fields.proof.as_ref().filter(|(name, _)| *name == wanted);
        proof.map(|(_, value)| value.as_str())
    };
    ReceivedFields {
        signature_input: Some(&fields.signature_input),
        signature: Some(&fields.signature),
        audience: Some(&fields.audience),
        content_digest: proof(CONTENT_DIGEST),
        hn_digest: proof(HN_DIGEST),
    }
}

fn code(fields: ReceivedFields<'_>) -> &'static str {
    verify(POST, fields, &Audience::new(bob()), NOW)
        .unwrap_err()
        .code()
}

#[test]
fn what_is_signed_verifies_with_and_without_a_body() {
    let digest = Digest::of(b"header");
    for proof in [
        BodyProof::None,
        content(b""),
        content(b"body"),
        BodyProof::Document(digest),
    ] {
        for query in [None, Some(""), Some("a=b%20c&d")] {
            let target = Target { query, ..POST };
            let fields = sign(target, bob(), &proof, &alice(), NOW, "12345678").unwrap();
            let request = verify(target, received(&fields), &Audience::new(bob()), NOW).unwrap();
            assert_eq!(request.caller, alice().did());
            assert_eq!(
                (request.nonce.as_str(), request.created),
                ("12345678", 1_800_000_000)
            );
            assert_eq!(request.proof, proof);
        }
    }
}

#[test]
fn the_base_is_the_one_that_the_spec_shows() {
    let fields = signed();
    let (_, input) = only_entry(&fields.signature_input).unwrap();
    let params = HttpSignatureParams::try_from(&input).unwrap();
    let covered: Vec<String> = params
        .covered_components
        .iter()
        .map(ToString::to_string)
        .collect();
    let base = base(input, &covered, POST, &fields.audience, &content(b"body"));
    let (alice, bob) = (alice().did(), bob());
    let expected = format!(
        "\"@method\": POST\n\"@path\": /publish\n\"@query\": ?\n\"hn-audience\": {bob}\n\"content-digest\": sha-256=:Iw2DWNyOiJC0xY3utikS7i8gNXrpKlzIYbmOaP4xrLU=:\n\"@signature-params\": (\"@method\" \"@path\" \"@query\" \"hn-audience\" \"content-digest\");created=1800000000;nonce=\"nonce-0123456789\";alg=\"ed25519\";keyid=\"{alice}\""
    );
    assert_eq!(base.unwrap(), expected);
}

#[test]
fn another_client_may_order_parameters_and_components_as_it_likes() {
    let proof = content(b"body");
    let (caller, audience) = (alice().did(), bob());
    let inner = format!(
        "(\"hn-audience\" \"content-digest\" \"@query\" \"@path\" \"@method\");keyid=\"{caller}\";tag=\"x\";nonce=\"abcdefgh\";created=1800000000;extra"
    );
    let BodyProof::Content(digest) = &proof else {
        unreachable!()
    };
    let base = format!(
        "\"hn-audience\": {audience}\n\"content-digest\": {digest}\n\"@query\": ?\n\"@path\": /publish\n\"@method\": POST\n\"@signature-params\": {inner}"
    );
    use base64::Engine;
    let signature = base64::engine::general_purpose::STANDARD.encode(alice().sign(base.as_bytes()));
    let (input, signature) = (format!("mine={inner}"), format!("mine=:{signature}:"));
    let audience = audience.to_string();
    let fields = ReceivedFields {
        signature_input: Some(&input),
        signature: Some(&signature),
        audience: Some(&audience),
        content_digest: Some(digest),
        hn_digest: None,
    };
    assert_eq!(
        verify(POST, fields, &Audience::new(bob()), NOW)
            .unwrap()
            .caller,
        caller
    );
}

#[test]
fn each_broken_rule_has_its_code() {
    let fields = signed();
    let good = received(&fields);
    assert!(verify(POST, good, &Audience::new(bob()), NOW).is_ok());
    assert_eq!(code(ReceivedFields::default()), "signature_required");
    assert_eq!(
        code(ReceivedFields {
            signature: None,
            ..good
        }),
        "signature_malformed"
    );
    assert_eq!(
        code(ReceivedFields {
            signature_input: Some("("),
            ..good
        }),
        "signature_malformed"
    );
    let two = (
        format!("{0}, b{0}", fields.signature_input),
        format!("{0}, b{0}", fields.signature),
    );
    let twice = ReceivedFields {
        signature_input: Some(&two.0),
        signature: Some(&two.1),
        ..good
    };
    assert_eq!(code(twice), "signature_several");
    let long = format!("{};x=\"{}\"", fields.signature_input, "y".repeat(MAX_FIELD));
    assert_eq!(
        code(ReceivedFields {
            signature_input: Some(&long),
            ..good
        }),
        "signature_malformed"
    );
    // A digest that is sent and not covered, covered and not sent, or exchanged.
    assert_eq!(
        code(ReceivedFields {
            content_digest: None,
            ..good
        }),
        "signature_components"
    );
    let hash = Digest::of(b"x").to_string();
    assert_eq!(
        code(ReceivedFields {
            hn_digest: Some(&hash),
            ..good
        }),
        "signature_components"
    );
    let other = ContentDigest::field_of(b"other");
    assert_eq!(
        code(ReceivedFields {
            content_digest: Some(&other),
            ..good
        }),
        "signature_invalid"
    );
    let carol = SecretSeed::from_bytes([3; 32]).did().to_string();
    assert_eq!(
        code(ReceivedFields {
            audience: Some(&carol),
            ..good
        }),
        "signature_audience"
    );
    assert_eq!(
        code(ReceivedFields {
            audience: None,
            ..good
        }),
        "signature_audience"
    );
    let changed = |from: &str, to: &str| fields.signature_input.replace(from, to);
    for (from, to, expected) in [
        ("\"hn-audience\" ", "", "signature_components"),
        (" \"content-digest\"", "", "signature_components"),
        ("\"@query\" ", "", "signature_components"),
        (
            "\"@method\"",
            "\"@method\" \"@authority\"",
            "signature_components",
        ),
        ("\"@method\"", "\"@method\";req", "signature_components"),
        ("\"@method\"", "\"@nonsense\"", "signature_malformed"),
        ("ed25519", "rsa-pss-sha512", "signature_algorithm"),
        ("keyid=\"did", "keyid=\"dad", "signature_keyid"),
        ("keyid", "kid", "signature_keyid"),
        (&alice().did().to_string(), &carol, "signature_invalid"),
        ("nonce-0123456789", "short", "signature_nonce"),
        ("nonce=", "nince=", "signature_nonce"),
        ("nonce-0123456789", "nonce-0123456780", "signature_invalid"),
        ("created=1800000000", "created=-1", "signature_malformed"),
        ("created=1800000000", "created=\"x\"", "signature_time"),
        ("created=1800000000", "created=1799999699", "signature_time"),
        ("created=1800000000", "created=1800000301", "signature_time"),
        (
            "created=1800000000",
            "created=1800000000;expires=1799999999",
            "signature_time",
        ),
        (
            "created=1800000000",
            "created=1800000001",
            "signature_invalid",
        ),
    ] {
        let input = changed(from, to);
        assert_ne!(input, fields.signature_input, "{from}");
        assert_eq!(
            code(ReceivedFields {
                signature_input: Some(&input),
                ..good
            }),
            expected,
            "{to}"
        );
    }
    for target in [
        Target {
            method: "PUT",
            ..POST
        },
        Target {
            path: "/publish/",
            ..POST
        },
        Target {
            query: Some("a"),
            ..POST
        },
    ] {
        let error = verify(target, good, &Audience::new(bob()), NOW).unwrap_err();
        assert_eq!(error, SignatureError::Signature(alice().did()));
    }
}

#[test]
fn time_is_taken_to_the_second_of_the_window() {
    let fields = signed();
    for (second, good) in [(-301, false), (-300, true), (300, true), (301, false)] {
        let now = Timestamp(NOW.0.saturating_add_signed(second * 1000));
        assert_eq!(
            verify(POST, received(&fields), &Audience::new(bob()), now).is_ok(),
            good,
            "{second}"
        );
    }
}

#[test]
fn a_signature_of_another_length_is_none() {
    let fields = signed();
    for signature in ["", "sig=:AAAA:", "sig=::", "sig=1", "other=:AAAA:"] {
        let fields = ReceivedFields {
            signature: Some(signature),
            ..received(&fields)
        };
        assert_eq!(code(fields), "signature_malformed", "{signature}");
    }
}

proptest::proptest! {
    #[test]
    fn nothing_that_is_sent_makes_it_panic(input in ".{0,200}", signature in ".{0,100}", audience in ".{0,60}") {
        let fields = ReceivedFields {
            signature_input: Some(&input),
            signature: Some(&signature),
            audience: Some(&audience),
            content_digest: Some(&signature),
            hn_digest: None,
        };
        proptest::prop_assert!(verify(POST, fields, &Audience::new(bob()), NOW).is_err());
    }

    #[test]
    fn a_changed_byte_is_noticed(at in 0usize..1000, bit in 0u8..7) {
        let fields = signed();
        let mut input = fields.signature_input.clone().into_bytes();
        let at = at % input.len();
        input[at] ^= 1 << bit;
        if let Ok(input) = String::from_utf8(input) {
            let changed = ReceivedFields { signature_input: Some(&input), ..received(&fields) };
            // A label is no part of what is signed; with another one the two fields do not belong together.
            proptest::prop_assert!(verify(POST, changed, &Audience::new(bob()), NOW).is_err());
        }
    }
}
