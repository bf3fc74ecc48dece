#!/usr/bin/env python3
"""Checks a publisher's log as a node serves it, by spec/index@2.md and spec/presence@2.md, with nothing but the DID.

    verify_log.py http://127.0.0.1:7733 did:hn:z6Mk…

Shares no code with the node: canonical bytes by `rfc8785`, signatures by `cryptography`, hashes by `blake3`, DIDs by
`base58`, pages over `urllib`. Prints what was proved as JSON and exits 0, or says what does not hold and exits 1.
"""

import base64
import json
import sys
import urllib.parse
import urllib.request

import base58
import blake3
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TIMEOUT_S = 30


def digest(data: bytes) -> bytes:
    return blake3.blake3(data).digest()


def public_key(did: str) -> Ed25519PublicKey:
    """did:hn:z… is base58btc of multicodec 0xed01 and the key."""
    prefix = "did:hn:z"
    assert did.startswith(prefix), f"not a did:hn: {did}"
    raw = base58.b58decode(did[len(prefix):])
    assert raw[:2] == b"\xed\x01" and len(raw) == 34, "the DID does not hold an Ed25519 key"
    return Ed25519PublicKey.from_public_bytes(raw[2:])


def no_duplicates(pairs):
    assert len({key for key, _ in pairs}) == len(pairs), "duplicate key"
    return dict(pairs)


def verified(line: bytes, did: str) -> tuple[dict, str]:
    """The document of one line, after its canonical bytes, id and signature were checked, and its digest."""
    document = json.loads(line.decode("utf-8"), object_pairs_hook=no_duplicates)
    assert rfc8785.dumps(document) == line, "the line is not in RFC 8785 form"
    body = dict(document)
    signature = body.pop("signature")
    assert signature.startswith("ed25519:"), signature
    raw = base64.urlsafe_b64decode(signature[len("ed25519:"):] + "==")
    public_key(did).verify(raw, rfc8785.dumps(body))
    name = body["type"].split("@")[0]
    claimed = body.pop("id")
    computed = digest(rfc8785.dumps(body)).hex()
    assert claimed == f"{name}:{computed}", f"the id {claimed} is not the digest"
    return document, computed


def root(leaves: list[bytes]) -> bytes:
    """RFC 6962: the largest power of two below the count goes left."""
    if not leaves:
        return digest(b"")
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return digest(b"\x01" + root(leaves[:split]) + root(leaves[split:]))


def pages(base: str, did: str):
    """Every line of every page, following rel="next"."""
    query = urllib.parse.urlencode({"publisher": did, "cursor": 0, "limit": 2})
    while query:
        with urllib.request.urlopen(f"{base}/federate/index?{query}", timeout=TIMEOUT_S) as answer:
            etag, link, body = answer.headers["ETag"], answer.headers["Link"], answer.read()
        assert etag == f'"{digest(body).hex()}"', "the ETag is not BLAKE3 of the body"
        yield from body.splitlines()
        query = None
        if link:
            reference, relation = link.split(">", 1)
            assert 'rel="next"' in relation and reference.startswith("<?"), link
            query = reference[2:]


def main(base: str, did: str) -> dict:
    leaves: list[bytes] = []
    roots = {0: root([])}
    presences: dict[str, dict] = {}
    head = None
    named = current = -1
    revoked = False
    for line in pages(base, did):
        assert not revoked, "a line behind the revocation"
        document, own = verified(line, did)
        if document["type"] == "revocation@1":
            assert document["did"] == did, "the revocation of somebody else"
            revoked = True
            continue
        if document["type"] == "presence@2":
            assert document["did"] == did, "a presence of somebody else"
            size = document["log_size"]
            assert size in roots, f"a presence binds {size}, where no slice ends"
            assert document["merkle_root"] == roots[size].hex(), f"a presence has another root at {size}"
            presences[own] = document
            current = max(current, document["sequence"])
            continue
        assert document["type"] == "index@2" and document["publisher"] == did, document["type"]
        assert document["cursor"] == str(len(leaves)), f"cursor {document['cursor']} after {len(leaves)} entries"
        assert [entry["seq"] for entry in document["entries"]] == list(
            range(len(leaves), len(leaves) + len(document["entries"]))
        ), "seqs do not run on"
        assert document.get("prev") == head, "prev does not chain"
        binding = presences[document["presence_digest"]]
        assert binding["log_size"] <= len(leaves) and binding["sequence"] >= named, "not the last presence before it"
        named = binding["sequence"]
        own_leaves = [digest(b"\x00" + rfc8785.dumps(entry)) for entry in document["entries"]]
        assert root(own_leaves).hex() == document["merkle_root"], "merkle_root is not the root of the entries"
        leaves += own_leaves
        roots[len(leaves)] = root(leaves)
        assert roots[len(leaves)].hex() == document["log_root"], "log_root does not follow"
        assert document["log_size"] == len(leaves) and document["next_cursor"] == str(len(leaves))
        head = own
    if not revoked:
        newest = max(presences.values(), key=lambda presence: presence["sequence"])
        assert newest["log_size"] == len(leaves), "the current presence does not bind the whole log"
    log_root = roots[len(leaves)].hex()
    return {"did": did, "log_size": len(leaves), "log_root": log_root, "head": head, "sequence": current, "revoked": revoked}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        print(json.dumps(main(sys.argv[1].rstrip("/"), sys.argv[2])))
    except Exception as error:  # whatever does not hold is the answer
        sys.exit(f"{type(error).__name__}: {error}")
