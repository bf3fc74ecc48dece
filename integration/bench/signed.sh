#!/usr/bin/env bash
# What a caller costs a node: a signed request over an unsigned one, a forged one against the check of its signature
# alone, a gate's decision, and an honest client beside a thousand slow ones.
#   bash integration/bench/signed.sh
. "$(dirname "$0")/common.sh"
count=${COUNT:-5000}
home=$work/tmp/host
caller=$tools/caller

hn "$home" id create host >/dev/null
mkdir -p "$home/config"
printf '[[friend]]\ndid = "%s"\nfriend = true\n' "$("$caller" did)" >"$home/config/federation.toml"
serve "$home"
host=${base#http://}
# What is signed must be signed after the second of the node's start.
until "$caller" signed "$host" "$did" 1 | grep -q '"200"'; do sleep 0.1; done

# Microseconds of the node's CPU for each of $count requests.
costs() { # costs KIND STATUS
  local before after
  before=$(cpu_us "$pid")
  "$caller" "$1" "$host" "$did" "$count" >"$work/tmp/said"
  after=$(cpu_us "$pid")
  [ "$(jq -c .statuses "$work/tmp/said")" = "{\"$2\":$count}" ] || { cat "$work/tmp/said" >&2; exit 1; }
  calc "($after - $before) / $count"
}

row "a caller, $count times each" "here" "target" ""
costs forged 401 >/dev/null # warm
unsigned=$(costs unsigned 401) signed=$(costs signed 200)
more=$(calc "$signed - $unsigned")
row "unsigned POST, refused: CPU us" "$unsigned" "" ""
row "signed POST, taken: CPU us" "$signed" "" ""
row "  more than the unsigned one" "$more" "< 200" "$(verdict "$more" '<' 200)"
floor=$("$caller" verify 20000 | jq .each_us)
forged=$(costs forged 401)
floor=$(calc "($floor + $("$caller" verify 20000 | jq .each_us)) / 2")
share=$(calc "100 * $floor / $forged")
row "Ed25519 verification alone: CPU us" "$floor" "" ""
row "forged POST, refused: CPU us" "$forged" "" ""
row "  % of the verification limit" "$share" ">= 60" "$(verdict "$share" '>=' 60)"

# The same address has no bound on its connections in the profile local; the slow ones come from another.
quiet=$("$caller" latency "$host" 2000 | jq .p95_ms)
"$caller" slow "$host" 1000 >"$work/tmp/slow" 9>&- &
slow=$!
pids+=("$slow")
until [ -s "$work/tmp/slow" ]; do sleep 0.1; done
beside=$("$caller" latency "$host" 2000 | jq .p95_ms)
ratio=$(calc "$beside / $quiet")
row "honest p95, alone: ms" "$(calc "$quiet")" "" ""
row "honest p95 beside $(jq .open "$work/tmp/slow") slow headers: ms" "$(calc "$beside")" "" ""
row "  times as long" "$ratio" "<= 2" "$(verdict "$ratio" '<=' 2)"
end9 "$slow"
end "$pid"
echo "a gate's decision: cargo bench -p hn-protocol --bench gate"
