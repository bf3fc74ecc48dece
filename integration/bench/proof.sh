#!/usr/bin/env bash
# Inclusion proofs of a log of 1,000,000 entries, each of a random entry and checked for its length; and the first one
# after the file of nodes was lost.
#   bash integration/bench/proof.sh
. "$(dirname "$0")/common.sh"
entries=${ENTRIES:-1000000}
requests=5000

home=$work/tmp/holder
hn "$home" id create holder >/dev/null
publisher=$("$tools/big_log" "$home" "$entries")
serve "$home"
verified_ms=$ready_ms

measure() { # measure COUNT [healthz]: asks for random entries on one connection; prints p50 and p99 in milliseconds
  python3 - "$base" "$publisher" "$entries" "$@" <<'PY'
import http.client, json, random, sys, time, urllib.parse
base, publisher, entries, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
healthz = sys.argv[5:] == ["healthz"]
host = urllib.parse.urlsplit(base).netloc
connection = http.client.HTTPConnection(host)
random.seed(7)
took = []
for _ in range(count):
    seq = random.randrange(entries)
    begun = time.perf_counter()
    connection.request("GET", "/healthz" if healthz else f"/federate/proof/{publisher}/{seq}")
    answer = connection.getresponse()
    body = answer.read()
    took.append(time.perf_counter() - begun)
    assert answer.status == 200, body
    if healthz:
        continue
    proof = json.loads(body)
    assert proof["seq"] == proof["entry"]["seq"] == seq
    assert 0 < len(proof["proof"]) <= (entries - 1).bit_length()
took.sort()
print(f"{took[len(took) // 2] * 1000:.3f} {took[len(took) * 99 // 100] * 1000:.3f}")
PY
}
measure 200 >/dev/null
read -r p50 p99 < <(measure "$requests")
# What the machine and this client take for a request that does nothing.
read -r floor50 floor99 < <(measure "$requests" healthz)
from=$(cpu_us "$pid")
measure "$requests" >/dev/null
cpu=$(calc "($(cpu_us "$pid") - $from) / $requests")

nodes=$(ls "$home"/state/trees/*"$publisher"*.nodes)
bytes=$(stat -c %s "$nodes")
whole=$(b3sum --no-names "$nodes" 2>/dev/null || sha256sum <"$nodes")
rm "$nodes"
read -r rebuilt_ms _ < <(measure 1)
[ "$(b3sum --no-names "$nodes" 2>/dev/null || sha256sum <"$nodes")" = "$whole" ] || { echo "the nodes are others now" >&2; exit 1; }

row "inclusion proofs at $entries entries" value target ""
row "GET /federate/proof, p50 of $requests, ms" "$p50" "< 1" "$(verdict "$p50" '<' 1)"
row "GET /federate/proof, p99 of $requests, ms" "$p99" "< 1" "$(verdict "$p99" '<' 1)"
row "GET /healthz from the same client, p50 and p99, ms" "$floor50" "$floor99" ""
row "CPU of the node a proof, us" "$cpu" "" ""
row "file of nodes, bytes an entry" "$(calc "$bytes / $entries")" "<= 64" "$(verdict "$bytes" '<=' $((64 * entries)))"
row "first proof after the file was lost, ms" "$rebuilt_ms" "" ""
row "start that verifies the whole log, ms" "$verified_ms" "" ""
