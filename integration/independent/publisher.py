#!/usr/bin/env python3
"""A publisher made from spec/ alone, on 127.0.0.1: honest until it is told to lie, and honest again after.

    publisher.py [DOORS]

Opens so many ports (1 by default), all of one publisher, and prints {"did","doors"}. Then it obeys the lines of its
stdin, answers each with one line of JSON, and ends with them:

    publish [SLICES [ENTRIES]]   one more commit on the honest log
    tell LIE [DOOR]              serves the lie, at one door or at all
    honest [DOOR]                the honest log again
    hold [LIE]                   says that it holds the log of another, and serves that; the other one never answers
    prune                        the honest log from its last slices on, behind a frontier
    lies                         every lie, and the code of spec/index@2.md by which it is to be refused
    requests                     what it was asked since the last time
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from author import Author, View, digest, digest_of, root, written, now_ms
from lies import FORKS, FRONTIERS, LIES, pruned

ALL = LIES | FORKS | FRONTIERS

# Nothing that a follower asks has a longer head, and nothing has a body.
MAX_LIMIT = 64


class Door(ThreadingHTTPServer):
    """One port, and what is shown there: a log for each publisher."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.logs: dict[str, View] = {}
        self.own = ""
        self.artifacts: dict[str, bytes] = {}
        self.requests: list[str] = []


class Answer(BaseHTTPRequestHandler):
    """The routes that a follower needs (spec/http.md): pages, presence, artifacts; heads where it holds others' logs."""

    protocol_version = "HTTP/1.1"
    server: Door

    def do_GET(self):
        self.server.requests.append(self.path)
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if url.path == "/federate/index":
            return self.index(query)
        if url.path in ("/.well-known/hn/presence", "/presence"):
            return self.bytes(self.server.logs[self.server.own].current, "application/json")
        if url.path.startswith("/artifact/"):
            return self.bytes(self.server.artifacts.get(url.path.removeprefix("/artifact/")), "application/octet-stream")
        if url.path == "/federate/peers" and len(self.server.logs) > 1:
            return self.bytes(json.dumps({"peers": self.heads()}).encode(), "application/json")
        self.problem(404, "unknown_route")

    do_HEAD = do_GET

    def index(self, query: dict):
        view = self.server.logs.get(query.get("publisher", self.server.own))
        if view is None:
            return self.problem(404, "unknown_publisher")
        cursor, limit = query.get("cursor", "0"), query.get("limit", "16")
        if not cursor.isdecimal():
            return self.problem(400, "bad_cursor")
        if not limit.isdecimal() or not 1 <= int(limit) <= MAX_LIMIT:
            return self.problem(400, "bad_limit")
        lines, following = view.page(int(cursor), int(limit))
        head = {}
        if following is not None:
            publisher = query.get("publisher", self.server.own)
            head["Link"] = f'<?publisher={publisher}&cursor={following}&limit={limit}>; rel="next"'
        self.bytes(b"".join(line + b"\n" for line in lines), "application/x-ndjson", head)

    def heads(self) -> list[dict]:
        """Every log held. A lie is believed here, or nobody would come to look."""
        heads = []
        for did, view in self.server.logs.items():
            slices = [json.loads(shown.line) for shown in view.slices]
            last = slices[-1] if slices else {"log_size": 0, "log_root": root([]).hex()}
            heads.append({
                "did": did, "epoch": 0, "log_size": last["log_size"], "log_root": last["log_root"],
                "head": digest_of(view.slices[-1].line) if slices else None,
                "presence": digest_of(view.current) if view.current else None,
                "last_seen": written(now_ms()), "forked": False,
            })
        return heads

    def bytes(self, body: bytes | None, kind: str, head: dict | None = None):
        if body is None:
            return self.problem(404, "unknown_artifact")
        etag = f'"{digest(body).hex()}"'
        asked = self.headers.get("If-None-Match", "")
        if etag in asked or asked.strip() == "*":
            return self.send(304, kind, b"", {"ETag": etag})
        self.send(200, kind, body, {"ETag": etag} | (head or {}))

    def problem(self, status: int, code: str):
        problem = {"type": f"urn:hn:problem:{code}", "title": code, "status": status, "detail": self.path, "code": code}
        self.send(status, "application/problem+json", json.dumps(problem).encode(), {})

    def send(self, status: int, kind: str, body: bytes, head: dict):
        self.send_response(status)
        for name, value in head.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        """Said on `requests`, not on stderr."""


class Publisher:
    """The honest log, and what each door says of it."""

    def __init__(self, doors: int):
        self.doors = [Door() for _ in range(doors)]
        self.author = Author(self.doors[0].url)
        self.other: Author | None = None
        for door in self.doors:
            door.own = self.author.did
        self.honest()
        for door in self.doors:
            threading.Thread(target=door.serve_forever, daemon=True).start()

    def some(self, door: str | None) -> list[Door]:
        return self.doors if door is None else [self.doors[int(door)]]

    def state(self) -> dict:
        author = self.author
        return {"did": author.did, "size": author.size, "root": root(author.leaves).hex(), "head": author.head,
                "sequence": author.sequence}

    def show(self, author: Author, view: View, doors: list[Door]):
        for door in doors:
            door.logs = door.logs | {author.did: view}
            door.artifacts = door.artifacts | author.artifacts

    def honest(self, door: str | None = None) -> dict:
        self.show(self.author, self.author.copy().view, self.some(door))
        return self.state()

    def publish(self, slices: str = "1", entries: str = "2") -> dict:
        self.author.publish(int(slices), int(entries))
        return self.honest()

    def tell(self, lie: str, door: str | None = None) -> dict:
        code, told = ALL[lie]
        self.show(self.author, told(self.author), self.some(door))
        return {"lie": lie, "code": code, "fork": lie in FORKS}

    def hold(self, lie: str | None = None) -> dict:
        if self.other is None:
            self.other = Author("http://127.0.0.1:1")
            self.other.publish()
        if lie is None:
            self.other.publish()
        view = ALL[lie][1](self.other) if lie else self.other.copy().view
        self.show(self.other, view, self.doors)
        said = {"did": self.other.did, "size": self.other.size, "root": root(self.other.leaves).hex()}
        return said | ({"code": ALL[lie][0]} if lie else {})

    def prune(self) -> dict:
        self.show(self.author, pruned(self.author), self.doors)
        return self.state()

    def lies(self) -> dict:
        kinds = {"lies": LIES, "forks": FORKS, "frontiers": FRONTIERS}
        return {kind: {name: code for name, (code, _) in lies.items()} for kind, lies in kinds.items()}

    def requests(self) -> dict:
        asked = [request for door in self.doors for request in door.requests]
        for door in self.doors:
            door.requests = []
        return {"requests": asked}


COMMANDS = {"publish", "tell", "honest", "hold", "prune", "lies", "requests"}


def main(doors: int):
    publisher = Publisher(doors)
    print(json.dumps({"did": publisher.author.did, "doors": [door.url for door in publisher.doors]}), flush=True)
    for line in sys.stdin:
        command, *rest = line.split()
        if command not in COMMANDS:
            sys.exit(f"no such command: {command}")
        print(json.dumps(getattr(publisher, command)(*rest)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
