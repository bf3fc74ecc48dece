//! The signed request that `spec/http.md` shows: made from alice's seed, checked by what an independent reader would do.

use hn_protocol::did::SecretSeed;
use hn_protocol::request::{
    Audience, BodyProof, CONTENT_DIGEST, ContentDigest, ReceivedFields, SignatureFields, Target,
    sign, verify,
};
use hn_protocol::time::Timestamp;

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const TARGET: Target<'static> = Target {
    method: "POST",
    path: "/publish",
    query: None,
};

fn fields() -> SignatureFields {
    let (alice, bob) = (
        SecretSeed::from_bytes([1; 32]),
        SecretSeed::from_bytes([2; 32]),
    );
    let proof = BodyProof::Content(ContentDigest::field_of(b"body"));
    sign(
        TARGET,
        bob.did(),
        &proof,
        &alice.identity(),
        NOW,
        "nonce-0123456789",
    )
    .unwrap()
}

/// What a reader of S2 to S5 writes down, without our code.
fn base(fields: &SignatureFields) -> String {
    let (_, digest) = fields.proof.as_ref().unwrap();
    let parameters = fields.signature_input.strip_prefix("sig=").unwrap();
    format!(
        "\"@method\": POST\n\"@path\": /publish\n\"@query\": ?\n\"hn-audience\": {}\n\"content-digest\": {digest}\n\"@signature-params\": {parameters}",
        fields.audience
    )
}

/// The blocks of the page; `None` for other marks.
pub fn block(mark: &str) -> Option<String> {
    let fields = fields();
    match mark {
        "base" => Some(base(&fields)),
        "headers" => Some(format!(
            "hn-audience: {}\n{CONTENT_DIGEST}: {}\nsignature-input: {}\nsignature: {}",
            fields.audience, fields.proof?.1, fields.signature_input, fields.signature
        )),
        _ => None,
    }
}

#[test]
fn the_example_of_a_signed_request_verifies_with_the_base_as_it_is_shown() {
    let (fields, alice) = (fields(), SecretSeed::from_bytes([1; 32]).did());
    use base64::Engine;
    let encoded = fields
        .signature
        .strip_prefix("sig=:")
        .and_then(|s| s.strip_suffix(':'));
    let signature = base64::engine::general_purpose::STANDARD
        .decode(encoded.unwrap())
        .unwrap();
    assert!(alice.verifies(base(&fields).as_bytes(), &signature.try_into().unwrap()));
    let received = ReceivedFields {
        signature_input: Some(&fields.signature_input),
        signature: Some(&fields.signature),
        audience: Some(&fields.audience),
        content_digest: fields.proof.as_ref().map(|(_, digest)| digest.as_str()),
        hn_digest: None,
    };
    let bob = SecretSeed::from_bytes([2; 32]).did();
    assert_eq!(
        verify(TARGET, received, &Audience::new(bob), NOW)
            .unwrap()
            .caller,
        alice
    );
}
