"""An honest publisher, by spec/did-hn.md, spec/index@2.md and spec/presence@2.md alone.

Shares no code with the node: canonical bytes by `rfc8785`, keys by `cryptography`, hashes by `blake3`, DIDs by `base58`.
"""

import base64
import copy
import json
import os
import time
from dataclasses import dataclass, field

import base58
import blake3
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

DAY_MS = 86_400_000


def digest(data: bytes) -> bytes:
    return blake3.blake3(data).digest()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def written(at_ms: int) -> str:
    """RFC 3339, UTC, `Z`, three digits of milliseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_ms // 1000)) + f".{at_ms % 1000:03}Z"


def leaf(entry: dict) -> bytes:
    """M1."""
    return digest(b"\x00" + rfc8785.dumps(entry))


def perfect(count: int) -> int:
    """M2: how many leaves go left: the largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


def root(leaves: list[bytes]) -> bytes:
    """M1, M2."""
    if not leaves:
        return digest(b"")
    if len(leaves) == 1:
        return leaves[0]
    split = perfect(len(leaves))
    return digest(b"\x01" + root(leaves[:split]) + root(leaves[split:]))


def frontier(leaves: list[bytes]) -> list[bytes]:
    """M3: the roots of the perfect subtrees that the size consists of, largest first."""
    hashes, start = [], 0
    for bit in reversed(range(len(leaves).bit_length())):
        if len(leaves) >> bit & 1:
            hashes.append(root(leaves[start:start + (1 << bit)]))
            start += 1 << bit
    return hashes


class Key:
    """An Ed25519 key and the DID that it is."""

    def __init__(self, seed: bytes | None = None):
        self.secret = Ed25519PrivateKey.from_private_bytes(seed or os.urandom(32))
        public = self.secret.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.did = "did:hn:z" + base58.b58encode(b"\xed\x01" + public).decode()

    def sign(self, document: dict) -> bytes:
        """The canonical line of `document` with its id and signature (D2, D3), whatever it says."""
        body = {member: value for member, value in document.items() if member not in ("id", "signature")}
        body["id"] = f'{body["type"].split("@")[0]}:{digest(rfc8785.dumps(body)).hex()}'
        signature = self.secret.sign(rfc8785.dumps(body))
        body["signature"] = "ed25519:" + base64.urlsafe_b64encode(signature).decode().rstrip("=")
        return rfc8785.dumps(body)


def digest_of(line: bytes) -> str:
    """The digest by which others name a signed line: the hex part of its id."""
    return json.loads(line)["id"].split(":")[1]


@dataclass
class Shown:
    """A slice as it is served: the line, where it stands, and the presence that it names."""

    line: bytes
    cursor: int
    next: int
    names: str


@dataclass
class View:
    """What is served of one log."""

    slices: list[Shown] = field(default_factory=list)
    presences: dict[str, bytes] = field(default_factory=dict)
    current: bytes | None = None
    # A line that stands before everything, for a log whose beginning is said to be pruned.
    opening: bytes | None = None

    def page(self, cursor: int, limit: int) -> tuple[list[bytes], int | None]:
        """H12, H13: the lines, and the cursor of the next page if there is one."""
        due = [shown for shown in self.slices if shown.next > cursor]
        lines: list[bytes] = []
        if self.opening and due and due[0] is self.slices[0]:
            lines.append(self.opening)
        for shown in due[:limit]:
            presence = self.presences.get(shown.names)
            if presence and presence not in lines:
                lines.append(presence)
            lines.append(shown.line)
        if len(due) > limit:
            return lines, due[limit].cursor
        return lines + ([self.current] if self.current else []), None


class Author:
    """A publisher with a key and an honest log: presence no. 1, then commits of slices and a presence that covers them."""

    def __init__(self, base: str, key: Key | None = None, epoch: int = 0):
        self.key, self.base, self.epoch = key or Key(), base, epoch
        self.leaves: list[bytes] = []
        self.view = View()
        self.artifacts: dict[str, bytes] = {}
        self.sequence = 0
        self.files = 0
        self.head: str | None = None
        # The publisher as it was before its last commit: where another history may begin.
        self.before: Author | None = None
        self.show(self.presence())

    @property
    def did(self) -> str:
        return self.key.did

    @property
    def size(self) -> int:
        return len(self.leaves)

    def copy(self) -> "Author":
        """The same publisher, as if the home had been copied."""
        twin = copy.copy(self)
        twin.leaves, twin.artifacts = list(self.leaves), dict(self.artifacts)
        twin.view = View(list(self.view.slices), dict(self.view.presences), self.view.current)
        return twin

    def presence(self, **members) -> bytes:
        """A presence of the log as it is (P1–P3), with `members` in place of the honest ones."""
        at = now_ms()
        self.sequence = max(self.sequence + 1, at)
        document = {
            "type": "presence@2",
            "did": self.did,
            "epoch": self.epoch,
            "sequence": self.sequence,
            "endpoints": {"mcp": self.base, "presence": f"{self.base}/.well-known/hn/presence", "libp2p": []},
            "services": [],
            "merkle_root": root(self.leaves).hex(),
            "log_size": self.size,
            "issued_at": written(at),
            "expires_at": written(at + DAY_MS),
        }
        return self.key.sign(document | members)

    def show(self, presence: bytes):
        self.view.presences[digest_of(presence)] = presence
        self.view.current = presence

    def entries(self, count: int, **members) -> list[dict]:
        """New files, as entries that follow the log."""
        made = []
        for seq in range(self.size, self.size + count):
            self.files += 1
            content = f"{self.did} file {self.files} {os.urandom(4).hex()}".encode()
            name = digest(content).hex()
            self.artifacts[name] = content
            entry = {"seq": seq, "type": "file", "digest": name, "size": len(content),
                     "path": f"stranger/{self.files:05}.txt", "tags": {"by": "python"}, "metadata": {}}
            made.append(entry | members)
        return made

    def slice(self, entries: list[dict], **members) -> dict:
        """The next slice, unsigned, of `entries`, with `members` in place of the honest ones."""
        leaves = [leaf(entry) for entry in entries]
        document = {
            "type": "index@2",
            "publisher": self.did,
            "epoch": self.epoch,
            "source": self.base,
            "generated_at": written(now_ms()),
            "cursor": str(self.size),
            "next_cursor": str(self.size + len(entries)),
            "entries": entries,
            "merkle_root": root(leaves).hex(),
            "log_size": self.size + len(entries),
            "log_root": root(self.leaves + leaves).hex(),
            "presence_digest": digest_of(self.view.current),
        }
        if self.head:
            document["prev"] = self.head
        return document | members

    def append(self, document: dict, key: Key | None = None):
        """Signs `document` and takes it as the next slice, whatever it says."""
        line = (key or self.key).sign(document)
        following = self.size + len(document["entries"])
        self.view.slices.append(Shown(line, self.size, following, document["presence_digest"]))
        self.leaves += [leaf(entry) for entry in document["entries"]]
        self.head = digest_of(line)

    def publish(self, slices: int = 1, entries: int = 2):
        """One commit: so many slices of so many files, which all name the presence before it, and one that covers them."""
        self.before = self.copy()
        for _ in range(slices):
            self.append(self.slice(self.entries(entries)))
        self.show(self.presence())
