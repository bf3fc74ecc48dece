#!/usr/bin/env python3
"""Checks a fork_evidence@1 by spec/fork_evidence@1.md, with nothing but the file.

    verify_fork.py FILE

Prints what it proves as JSON and exits 0, or says why it proves nothing and exits 1.
"""

import json
import sys

import rfc8785

from verify_log import no_duplicates, verified

MAX_BYTES = 2_113_536


def side(document: dict, publisher: str, epoch: int) -> dict:
    """One of the two documents: verified on its own (K4), of the publisher and epoch (K5), and what it speaks for."""
    found, digest = verified(rfc8785.dumps(document), publisher)
    signer, size, root = {
        "index@2": ("publisher", "log_size", "log_root"),
        "presence@2": ("did", "log_size", "merkle_root"),
    }[found["type"]]
    assert found[signer] == publisher and found["epoch"] == epoch, "a document of another log"
    return {"type": found["type"], "digest": digest, "size": found[size], "root": found[root], "document": found}


def conflict(a: dict, b: dict) -> str:
    """K1–K3."""
    one, other = a["document"], b["document"]
    if a["type"] == b["type"] == "index@2" and (
        int(one["cursor"]) < int(other["next_cursor"]) and int(other["cursor"]) < int(one["next_cursor"])
    ):
        return "K1"
    if a["type"] == b["type"] == "presence@2" and one["sequence"] == other["sequence"]:
        return "K3"
    assert a["size"] == b["size"] and a["root"] != b["root"], "the documents do not contradict each other"
    return "K2"


def main(path: str) -> dict:
    with open(path, "rb") as file:
        line = file.read(MAX_BYTES + 1).strip()
    assert len(line) <= MAX_BYTES, "longer than any evidence"
    observer = json.loads(line, object_pairs_hook=no_duplicates)["observer"]
    evidence, _ = verified(line, observer)
    assert evidence["type"] == "fork_evidence@1", evidence["type"]
    ids = [document["id"] for document in evidence["documents"]]
    assert len(ids) == 2 and ids[0] < ids[1], "not two documents, sorted by id"
    sides = [side(document, evidence["publisher"], evidence["epoch"]) for document in evidence["documents"]]
    return {
        "publisher": evidence["publisher"],
        "observer": observer,
        "law": conflict(*sides),
        "documents": [found["digest"] for found in sides],
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        print(json.dumps(main(sys.argv[1])))
    except Exception as error:  # whatever does not hold is the answer
        sys.exit(f"{type(error).__name__}: {error}")
