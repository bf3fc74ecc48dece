"""What schemathesis has to know of a node beyond its OpenAPI: who asks (SEED_HEX in HN_FUZZ_SEED, a friend of the node's),
which DIDs there are, and how numbers are written.
"""

import json
import os
from urllib.parse import urlsplit

import requests
import schemathesis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import strategies as st
from requests.auth import AuthBase

from signed_requests import audience_of, did_of, headers

KEY = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(os.environ["HN_FUZZ_SEED"]))
BASE = os.environ["HN_FUZZ_BASE"]
AUDIENCE = audience_of(BASE)


def keys(seed: bytes) -> str:
    return did_of(Ed25519PrivateKey.from_private_bytes(seed))


schemathesis.openapi.format(
    "did-hn",
    st.one_of(st.sampled_from([AUDIENCE, did_of(KEY)]), st.binary(min_size=32, max_size=32).map(keys)),
)
schemathesis.openapi.format("base-url", st.sampled_from(["https://bob.example.net", "http://127.0.0.1:7733/mcp"]))
schemathesis.openapi.format("decimal", st.integers(min_value=0, max_value=10**15 - 1).map(str))


@schemathesis.serializer("application/x-ndjson", "application/octet-stream")
def as_bytes(_context, value):
    """Bodies are bytes: what is generated goes out as it is."""
    return value.encode() if isinstance(value, str) else bytes(value) if value is not None else None


def held() -> list[str]:
    """Digests of artifacts and presences that the node has: nothing in its OpenAPI could say them."""
    found = []
    for line in requests.get(f"{BASE}/federate/index", timeout=20).text.splitlines():
        document = json.loads(line)
        found.append(document["id"].split(":")[1])
        found += [entry["digest"] for entry in document.get("entries", [])]
    return found


HELD = held()


@schemathesis.hook
def map_path_parameters(_context, parameters):
    """Every other digest is one that is held."""
    digest = (parameters or {}).get("digest")
    if isinstance(digest, str) and len(digest) == 64 and digest[-1] in "02468ace":
        parameters["digest"] = HELD[hash(digest) % len(HELD)]
    return parameters


class Signed(AuthBase):
    """S1 to S9 over the request as it will be sent."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        parts = urlsplit(request.url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        body = request.body
        if isinstance(body, str):
            body = body.encode()
        request.headers.update(headers(KEY, AUDIENCE, request.method, target, body))
        return request


schemathesis.auth.set_from_requests(Signed())
