"""What a publisher can tell against spec/index@2.md with its own key, each wrong in that one way and rightly signed.

`LIES` maps a name to the code that the page's table "What a verifier must refuse" gives it, and to a function from the
honest publisher, whose log has been accepted, to what is served in its place. `FORKS` are those that prove, by two
signed documents, that there are two logs; `FRONTIERS` are told to who holds nothing of the log yet.
"""

import rfc8785

from author import DAY_MS, Author, Key, Shown, View, digest, digest_of, frontier, leaf, now_ms, root, written

OTHER = digest(b"another root").hex()
AHEAD_MS = 10 * 60_000


def told(twin: Author, document: dict, key: Key | None = None) -> View:
    """`document` as the next slice, and a presence that agrees with whatever it says."""
    twin.append(document, key)
    twin.show(twin.presence(log_size=document["log_size"], merkle_root=document["log_root"]))
    return twin.view


def slice_with(**members):
    """An honest slice but for `members`."""
    def tell(author: Author) -> View:
        twin = author.copy()
        return told(twin, twin.slice(twin.entries(2), **members))
    return tell


def entry_with(**members):
    """An honest slice but for `members` of its second entry; every root follows from them."""
    def tell(author: Author) -> View:
        twin = author.copy()
        entries = twin.entries(2)
        entries[1] |= members
        return told(twin, twin.slice(entries))
    return tell


def presence_with(made):
    """The honest log, with another current presence: the members that `made` gives for it."""
    def tell(author: Author) -> View:
        twin = author.copy()
        twin.show(twin.presence(**made(twin)))
        return twin.view
    return tell


def log_size_beside(author: Author) -> View:
    twin = author.copy()
    document = twin.slice(twin.entries(2))
    document["log_size"] += 1
    return told(twin, document)


def prev_left_out(author: Author) -> View:
    twin = author.copy()
    document = twin.slice(twin.entries(2))
    del document["prev"]
    return told(twin, document)


def seqs_skip(author: Author) -> View:
    twin = author.copy()
    entries = twin.entries(2)
    entries[1]["seq"] += 1
    return told(twin, twin.slice(entries))


def slice_begins_beyond(author: Author) -> View:
    """One seq is left out between the accepted log and the slice."""
    twin = author.copy()
    entries = twin.entries(2)
    for entry in entries:
        entry["seq"] += 1
    size = twin.size
    return told(twin, twin.slice(entries, cursor=str(size + 1), next_cursor=str(size + 3), log_size=size + 3))


def names_an_older_presence(author: Author) -> View:
    """The slice before names a later one."""
    twin = author.copy()
    first = twin.view.slices[0].names
    return told(twin, twin.slice(twin.entries(2), presence_digest=first))


def names_the_presence_after(author: Author) -> View:
    """The presence that covers the slice is made first, shown before it, and named by it."""
    twin = author.copy()
    entries = twin.entries(2)
    leaves = twin.leaves + [leaf(entry) for entry in entries]
    after = twin.presence(log_size=len(leaves), merkle_root=root(leaves).hex())
    document = twin.slice(entries, presence_digest=digest_of(after))
    twin.append(document)
    twin.show(after)
    twin.show(twin.presence())
    return twin.view


def slice_of_another(author: Author) -> View:
    twin, mallory = author.copy(), Key()
    return told(twin, twin.slice(twin.entries(2), publisher=mallory.did), mallory)


def slice_signed_by_another(author: Author) -> View:
    twin = author.copy()
    return told(twin, twin.slice(twin.entries(2)), Key())


def presence_of_another(author: Author) -> View:
    twin = author.copy()
    twin.view.current = Author(twin.base).view.current
    return twin.view


def path_twice(author: Author) -> View:
    twin = author.copy()
    entries = twin.entries(2)
    entries[1]["path"] = entries[0]["path"]
    return told(twin, twin.slice(entries))


def replaces_itself(author: Author) -> View:
    return entry_with(replaces=author.size + 1)(author)


def slice_left_out(author: Author) -> View:
    twin = author.copy()
    twin.publish(2)
    twin.view.slices.pop(-2)
    return twin.view


def last_slice_withheld(author: Author) -> View:
    """Everything as it was before the last commit."""
    return author.before.view


def rolled_back(author: Author) -> View:
    """The last commit is undone, and a new presence says so."""
    twin = branch(author)
    twin.show(twin.presence())
    return twin.view


def no_presence(author: Author) -> View:
    twin = author.copy()
    twin.publish()
    twin.view.current = None
    return twin.view


def presence_inside_a_slice(author: Author) -> View:
    twin = author.copy()
    twin.publish()
    inside = author.size + 1
    twin.show(twin.presence(log_size=inside, merkle_root=root(twin.leaves[:inside]).hex()))
    return twin.view


def entry_beside_the_root(author: Author) -> View:
    """The entries that `merkle_root` and `log_root` cover are not all that the slice has."""
    twin = author.copy()
    entries = twin.entries(3)
    honest = twin.slice(entries[:2])
    members = {member: honest[member] for member in ("merkle_root", "log_root")}
    return told(twin, twin.slice(entries, **members))


# A pruned log: the beginning is gone, up to the end of a slice that is kept whole (R1-R3).


def pruned(author: Author, kept: int = 2, **members) -> View:
    """The last `kept` slices of the honest log, behind a frontier line, with `members` in place of the honest ones."""
    slices = author.view.slices[-kept:]
    before = author.leaves[:slices[0].next]
    hashes = [part.hex() for part in frontier(before)]
    opening = {"type": "frontier", "publisher": author.did, "epoch": author.epoch, "size": len(before), "hashes": hashes}
    return View(slices, author.view.presences, author.view.current, rfc8785.dumps(opening | members))


def frontier_that_does_not_fold(author: Author) -> View:
    size = author.view.slices[-2].next
    return pruned(author, hashes=[digest(part).hex() for part in frontier(author.leaves[:size])])


def frontier_of_another_size(author: Author) -> View:
    """It folds to a root of the log, but not to that of the slice behind it."""
    size = author.view.slices[-2].cursor
    return pruned(author, size=size, hashes=[part.hex() for part in frontier(author.leaves[:size])])


def frontier_with_a_hash_too_many(author: Author) -> View:
    size = author.view.slices[-2].next
    hashes = [part.hex() for part in frontier(author.leaves[:size])]
    return pruned(author, hashes=hashes + hashes[-1:])


def frontier_further_down(author: Author) -> View:
    """Right, and once more where no page begins."""
    view = pruned(author)
    last = view.slices[-1]
    view.slices[-1] = Shown(view.opening + b"\n" + last.line, last.cursor, last.next, last.names)
    return view


def no_frontier(author: Author) -> View:
    """The beginning is left out without a word."""
    view = pruned(author)
    view.opening = None
    return view


# Two histories: the second begins before the last commit of the first, which has been accepted.


def branch(author: Author) -> Author:
    twin = author.before.copy()
    twin.sequence = author.sequence
    return twin


def fork_of_one_size(author: Author) -> View:
    """As long as the log that was accepted; only the presence can be seen from there."""
    twin = branch(author)
    twin.publish(1, author.size - twin.size)
    return twin.view


def fork_with_the_same_boundaries(author: Author) -> View:
    """Longer, in slices of the same sizes. The presence between them contradicts what was accepted."""
    twin = branch(author)
    twin.publish(1, author.size - twin.size)
    twin.publish()
    return twin.view


def fork_with_other_boundaries(author: Author) -> View:
    """Longer, and where the accepted log ends no slice of it does."""
    twin = branch(author)
    twin.publish(1, author.size - twin.size + 1)
    twin.publish()
    return twin.view


def fork_in_one_commit(author: Author) -> View:
    """The same boundaries, but no presence between them: from where the log ends, only `prev` does not chain."""
    twin = branch(author)
    twin.publish(2, author.size - twin.size)
    return twin.view


def two_presences_of_one_sequence(author: Author) -> View:
    twin = author.copy()
    twin.show(twin.presence(sequence=author.sequence, services=["relay"]))
    return twin.view


def another_root_at_the_head(author: Author) -> View:
    return presence_with(lambda _: {"merkle_root": OTHER})(author)


FORKS = {
    "fork_of_one_size": ("fork", fork_of_one_size),
    "fork_with_the_same_boundaries": ("fork", fork_with_the_same_boundaries),
    "fork_with_other_boundaries": ("fork", fork_with_other_boundaries),
    "fork_in_one_commit": ("fork", fork_in_one_commit),
    "two_presences_of_one_sequence": ("fork", two_presences_of_one_sequence),
    "another_root_at_the_head": ("fork", another_root_at_the_head),
}

FRONTIERS = {
    "frontier_that_does_not_fold": ("wrong_frontier", frontier_that_does_not_fold),
    "frontier_of_another_size": ("wrong_frontier", frontier_of_another_size),
    "frontier_with_a_hash_too_many": ("malformed_document", frontier_with_a_hash_too_many),
    "frontier_further_down": ("wrong_frontier", frontier_further_down),
    "frontier_of_another_log": ("wrong_publisher", lambda author: pruned(author, publisher=Key().did)),
    "frontier_of_another_epoch": ("wrong_epoch", lambda author: pruned(author, epoch=1)),
    "no_frontier": ("unbound_presence", no_frontier),
}

LIES = {
    "wrong_merkle_root": ("malformed_document", slice_with(merkle_root=OTHER)),
    "entry_beside_the_root": ("malformed_document", entry_beside_the_root),
    "wrong_log_root": ("wrong_log_root", slice_with(log_root=OTHER)),
    "wrong_log_size": ("malformed_document", log_size_beside),
    "wrong_prev": ("broken_chain", slice_with(prev=OTHER)),
    "no_prev": ("malformed_document", prev_left_out),
    "wrong_seq": ("malformed_document", seqs_skip),
    "slice_begins_beyond": ("gap", slice_begins_beyond),
    "slice_left_out": ("gap", slice_left_out),
    "wrong_presence_digest": ("unbound_slice", slice_with(presence_digest=OTHER)),
    "names_an_older_presence": ("unbound_slice", names_an_older_presence),
    "names_the_presence_after": ("unbound_presence", names_the_presence_after),
    "slice_of_another": ("wrong_publisher", slice_of_another),
    "slice_signed_by_another": ("wrong_signature", slice_signed_by_another),
    "presence_of_another": ("wrong_publisher", presence_of_another),
    "wrong_epoch": ("wrong_epoch", slice_with(epoch=1)),
    "wrong_type": ("wrong_type", slice_with(type="index@3")),
    "slice_ahead_of_the_clock": ("ahead_of_clock", slice_with(generated_at=written(now_ms() + AHEAD_MS))),
    "climbing_path": ("bad_path", entry_with(path="../../home/.ssh/authorized_keys")),
    "path_that_climbs_further_in": ("bad_path", entry_with(path="notes/../../x")),
    "absolute_path": ("bad_path", entry_with(path="/etc/passwd")),
    "path_with_an_empty_part": ("bad_path", entry_with(path="notes//x")),
    "path_with_a_backslash": ("bad_path", entry_with(path="..\\x")),
    "path_with_a_line_end": ("bad_path", entry_with(path="a\nb")),
    "path_twice": ("malformed_document", path_twice),
    "replaces_itself": ("malformed_document", replaces_itself),
    "digest_of_no_file": ("malformed_document", entry_with(digest="A" * 64)),
    "negative_size": ("malformed_document", entry_with(size=-1)),
    "presence_inside_a_slice": ("unbound_presence", presence_inside_a_slice),
    "presence_beyond_the_log": ("unbound_presence", presence_with(lambda a: {"log_size": a.size + 9})),
    "lower_sequence": ("rollback", presence_with(lambda a: {"sequence": a.sequence - DAY_MS})),
    "presence_ahead_of_the_clock": ("ahead_of_clock", presence_with(lambda _: {"sequence": now_ms() + AHEAD_MS})),
    "expired_presence": ("expired_presence", presence_with(
        lambda _: {"issued_at": written(now_ms() - 2000), "expires_at": written(now_ms() - 1000)})),
    "no_presence": ("no_current_presence", no_presence),
    "last_slice_withheld": ("rollback", last_slice_withheld),
    "rolled_back": ("rollback", rolled_back),
}
