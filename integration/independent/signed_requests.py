"""HTTP message signatures by spec/http.md alone (S1 to S9): no code of the node's, no library of RFC 9421.

    signed_requests.py BASE_URL SEED_HEX

asks the node at BASE_URL as the DID of SEED_HEX, once rightly and once for each rule broken, and prints a line of JSON for
each: {"case", "status", "code"}.
"""

import base64
import hashlib
import http.client
import json
import os
import sys
import time
from urllib.parse import urlsplit

import base58
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def did_of(key: Ed25519PrivateKey) -> str:
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return "did:hn:z" + base58.b58encode(b"\xed\x01" + public).decode()


def content_digest(body: bytes) -> str:
    """S9, RFC 9530."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def headers(
    key: Ed25519PrivateKey,
    audience: str,
    method: str,
    target: str,
    body: bytes | None = None,
    *,
    created: int | None = None,
    nonce: str | None = None,
    keyid: str | None = None,
    algorithm: str = "ed25519",
    without: tuple[str, ...] = (),
    digest: tuple[str, str] | None = None,
) -> dict[str, str]:
    """The headers of a signed request; `target` is path and query. What is named is done otherwise than the rules say."""
    path, _, query = target.partition("?")
    values = {"@method": method, "@path": path, "@query": "?" + query, "hn-audience": audience}
    sent = {"hn-audience": audience}
    if body is not None or digest:
        name, value = digest or ("content-digest", content_digest(body or b""))
        values[name] = sent[name] = value
    covered = [name for name in values if name not in without]
    parameters = "(" + " ".join(f'"{name}"' for name in covered) + ")"
    # S3: in any order; this is another one than the node's own.
    parameters += f';keyid="{keyid or did_of(key)}"'
    parameters += f';nonce="{nonce or os.urandom(16).hex()}"'
    parameters += f';alg="{algorithm}"'
    parameters += f";created={created if created is not None else int(time.time())}"
    lines = [f'"{name}": {values[name]}' for name in covered]
    base = "\n".join([*lines, f'"@signature-params": {parameters}'])
    signature = base64.b64encode(key.sign(base.encode())).decode()
    return sent | {"signature-input": f"hn={parameters}", "signature": f"hn=:{signature}:"}


def ask(base: str, method: str, target: str, sent: dict[str, str], body: bytes | None = None):
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    connection.request(method, target, body=body, headers=sent)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    try:
        code = json.loads(data).get("code")
    except (ValueError, AttributeError):
        code = None
    return answer.status, code


def audience_of(base: str) -> str:
    """S7: the node's presence says who it is."""
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    connection.request("GET", "/.well-known/hn/presence")
    return json.loads(connection.getresponse().read())["did"]


def main(base: str, seed: str) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))
    audience, now = audience_of(base), int(time.time())
    other = did_of(Ed25519PrivateKey.generate())

    def case(name: str, method: str, target: str, body: bytes | None, sent: dict[str, str]) -> None:
        if body is not None:
            sent = sent | {"content-type": "application/x-ndjson"}
        status, code = ask(base, method, target, sent, body)
        print(json.dumps({"case": name, "status": status, "code": code}), flush=True)

    def post(name: str, body: bytes = b"", **how) -> None:
        case(name, "POST", "/publish", body, headers(key, audience, "POST", "/publish", body, **how))

    def read(name: str, target: str = "/federate/peers", **how) -> None:
        case(name, "GET", target, None, headers(key, audience, "GET", target, **how))

    read("read")
    read("read with a query", "/federate/index?cursor=0&limit=1")
    post("publish")
    case("missing", "POST", "/publish", b"", {})
    post("stale", created=now - 301)
    post("future", created=now + 320)
    post("keyid of another", keyid=other)
    post("unknown algorithm", algorithm="rsa-v1_5-sha256")
    post("uncovered audience", without=("hn-audience",))
    post("uncovered digest", without=("content-digest",))
    post("wrong digest", b"body", digest=("content-digest", content_digest(b"other")))
    case("wrong audience", "POST", "/publish", b"", headers(key, other, "POST", "/publish", b""))
    once = headers(key, audience, "GET", "/federate/peers")
    case("once", "GET", "/federate/peers", None, once)
    case("replayed", "GET", "/federate/peers", None, once)
    twice = headers(key, audience, "POST", "/publish", b"")
    for field in ("signature", "signature-input"):
        twice[field] += ", again" + twice[field][2:]
    case("two signatures", "POST", "/publish", b"", twice)
    foreign = headers(key, audience, "GET", "/federate/peers") | {"host": "evil.example"}
    case("foreign host", "GET", "/federate/peers", None, foreign)
    case("admin", "GET", "/admin/status", None, headers(key, audience, "GET", "/admin/status"))
    stranger = Ed25519PrivateKey.generate()
    sent = headers(stranger, audience, "POST", "/publish", b"")
    case("stranger", "POST", "/publish", b"", sent)
    for n in range(513):
        sent = headers(stranger, audience, "GET", "/federate/peers")
        status, code = ask(base, "GET", "/federate/peers", sent)
        if status != 200:
            break
    print(json.dumps({"case": "too many nonces", "status": status, "code": code}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
