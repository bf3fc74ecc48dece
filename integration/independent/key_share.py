"""Brings a key back from shares, by spec/key_share@1.md and spec/words.txt alone.

    key_share.py WORDS_TXT [--passphrase TEXT] < LINES      a share a line, words or JSON → {"did", "seed_hex", "set"}

Shares no code with the node: canonical bytes by `rfc8785`, keys and Argon2id by `cryptography`, hashes by `blake3`, DIDs by
`base58`. Exits 1 with a sentence where there is no key.
"""

import base64
import json
import sys
from itertools import islice

import base58
import blake3
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def times(a: int, b: int) -> int:
    """Y1: GF(2^8), x^8 + x^4 + x^3 + x^2 + 1."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= 0x11D
        b >>= 1
    return product


def inverse(a: int) -> int:
    """a^254."""
    result = 1
    for _ in range(254):
        result = times(result, a)
    return result


def at_zero(points: list[tuple[int, bytes]]) -> bytes:
    """Lagrange."""
    secret = bytearray(32)
    for x, values in points:
        weight = 1
        for other, _ in points:
            if other != x:
                weight = times(weight, times(other, inverse(other ^ x)))
        for place, value in enumerate(values):
            secret[place] ^= times(weight, value)
    return bytes(secret)


def read_words(text: str, words: list[str]) -> dict:
    """Y4."""
    numbers = [words.index(word) for word in text.lower().split()]
    assert len(numbers) == 35, "35 words"
    bits = "".join(f"{number:011b}" for number in numbers)
    assert bits[384:] == "0", "the last bit"
    packed = int(bits[:384], 2).to_bytes(48, "big")
    checked, checksum = packed[:44], packed[44:]
    assert blake3.blake3(checked, derive_key_context="hn key_share@1 words").digest()[:4] == checksum, "checksum"
    assert checked[0] in (0x10, 0x11), "version"
    return {
        "passphrase": checked[0] == 0x11,
        "threshold": (checked[1] >> 4) + 1,
        "index": (checked[1] & 15) + 1,
        "set": checked[2:6].hex(),
        "did_digest": checked[6:12].hex(),
        "share": checked[12:44],
    }


def read_document(text: str) -> dict:
    """Y5."""
    document = json.loads(text)
    signature = document.pop("signature")
    signed = rfc8785.dumps(document)
    digest = blake3.blake3(rfc8785.dumps({k: v for k, v in document.items() if k != "id"})).hexdigest()
    assert document["type"] == "key_share@1" and document["id"] == f"key_share:{digest}", "id"
    key = base58.b58decode(document["did"].removeprefix("did:hn:z"))
    assert key[:2] == b"\xed\x01", "did"
    Ed25519PublicKey.from_public_bytes(key[2:]).verify(unpadded(signature.removeprefix("ed25519:")), signed)
    assert document["did_digest"] == digest_of(document["did"]), "did_digest"
    return document | {"share": unpadded(document["share"]), "passphrase": document.get("passphrase", False)}


def digest_of(did: str) -> str:
    """Y2."""
    return blake3.blake3(did.encode()).hexdigest()[:12]


def did_of(seed: bytes) -> str:
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return "did:hn:z" + base58.b58encode(b"\xed\x01" + public).decode()


def main() -> None:
    words = open(sys.argv[1], encoding="ascii").read().split()
    passphrase = sys.argv[3] if sys.argv[2:3] == ["--passphrase"] else None
    lines = [line.strip() for line in sys.stdin if line.strip()]
    shares = [read_document(line) if line.startswith("{") else read_words(line, words) for line in lines]
    layouts = {(s["set"], s["did_digest"], s["threshold"], s["passphrase"]) for s in shares}
    assert len(layouts) == 1, "one set"
    set_id, did_digest, threshold, locked = layouts.pop()
    points = {share["index"]: share["share"] for share in shares}
    assert len(points) >= threshold, "too few"
    seed = at_zero(list(islice(points.items(), threshold)))
    if locked:
        assert passphrase is not None, "a passphrase is needed"
        salt = bytes.fromhex(set_id) + bytes.fromhex(did_digest)
        stretch = Argon2id(salt=salt, length=32, iterations=3, lanes=1, memory_cost=64 << 10)
        seed = bytes(a ^ b for a, b in zip(seed, stretch.derive(passphrase.encode())))
    did = did_of(seed)
    assert digest_of(did) == did_digest, "another key"
    print(json.dumps({"did": did, "seed_hex": seed.hex(), "set": set_id}))


try:
    main()
except (AssertionError, ValueError, KeyError) as error:
    sys.exit(f"no key: {error!r}")
