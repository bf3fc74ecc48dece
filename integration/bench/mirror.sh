#!/usr/bin/env bash
# Mirroring 5,000 artifacts of 2 KiB, against one request after another, each durable before the next, in the same run.
#   bash integration/bench/mirror.sh
. "$(dirname "$0")/common.sh"
need curl curl
count=5000 bytes=2048

files "$work/tmp/artifacts" $count $bytes
hn "$work/tmp/publisher" id create publisher >/dev/null
serve "$work/tmp/publisher"
publisher=$pid publisher_base=$base publisher_did=$did
hn "$work/tmp/publisher" shard publish --public "$work/tmp/artifacts" | jq -r '.published[].digest' >"$work/tmp/digests"
[ "$(wc -l <"$work/tmp/digests")" = $count ]

follower_home=$work/tmp/follower
hn "$follower_home" id create follower >/dev/null
serve "$follower_home"
follower=$pid follower_base=$base
hn "$follower_home" mcp federate add "$publisher_did" "$publisher_base" >/dev/null
# The log first: what is measured are its artifacts.
hn "$follower_home" mcp federate refresh "$publisher_did" >/dev/null

# Before and after, so that a disk or a machine that changes its mind in between is seen.
one_by_one() { "$tools/one_by_one" "${publisher_base#http://}" "$work/tmp/$1" <"$work/tmp/digests"; }
first=$(one_by_one before)
cpu=$(cpu_us "$follower")
from=$(now_us)
report=$(hn "$follower_home" mcp federate refresh "$publisher_did" --mirror)
took=$(calc "($(now_us) - $from) / 1000")
settled=$from
until [ -z "$(ls "$follower_home/cache/federation/$publisher_did/artifacts/.bundles")" ]; do settled=$(now_us); done
settled=$(calc "($settled - $from) / 1000")
cpu=$(calc "($(cpu_us "$follower") - $cpu) / 1000")
second=$(one_by_one after)
[ "$(jq '.peers[0].mirrored.artifacts' <<<"$report")" = $count ] || { echo "$report" >&2; exit 1; }

# All of them are there, and what they should be.
here=$("$tools/one_by_one" "${follower_base#http://}" "$work/tmp/served" <"$work/tmp/digests")
peak=$(rss_mib "$follower" VmHWM)
end "$follower"
end "$publisher"

plain=$(calc "1000 * ($first + $second) / 2")
ratio=$(calc "$plain / $took")
row "mirroring $count artifacts of $bytes bytes" value target ""
row "by hn, ms, durable" "$took" "" ""
row "one request after another, ms ($first s, $second s)" "$plain" "" ""
row "times as fast" "$ratio" ">= 20" "$(verdict "$ratio" '>=' 20)"
row "until each has a file of its own, ms" "$settled" "" ""
row "CPU of the follower in all, ms" "$cpu" "" ""
row "peak memory of the follower, MiB" "$peak" "" ""
row "read back one by one, s" "$here" "" ""
