#!/usr/bin/env bash
# Following 100,000 entries in 512-entry slices between two real nodes on loopback, against the floor of the same bytes.
#   bash integration/bench/follow.sh
. "$(dirname "$0")/common.sh"
need curl curl
need strace strace
# News would be pulled before it is measured what they cost.
export HN_FEDERATION__WATCH=false
idle_after=${IDLE_AFTER_S:-60}

large_home
serve "$large"
publisher=$pid publisher_base=$base publisher_did=$did

# The same bytes as the follower gets, for the floor.
pages=$work/tmp/pages
query="publisher=$did&cursor=0&limit=16"
while [ -n "$query" ]; do
  curl -sS -D "$work/tmp/head" "$base/federate/index?$query" >>"$pages"
  query=$(sed -n 's/^link: <?\([^>]*\)>.*/\1/Ip' "$work/tmp/head" | tr -d '\r')
done
read -r entries slices floor_s < <("$tools/floor" "$pages")

follower_home=$work/tmp/follower
hn "$follower_home" id create follower >/dev/null
serve "$follower_home"
follower=$pid
before=$(rss_mib "$follower" VmRSS)
from=$(now_us)
hn "$follower_home" mcp federate add "$publisher_did" "$publisher_base" --scope own >/dev/null
report=$(hn "$follower_home" mcp federate refresh "$publisher_did")
took_us=$(($(now_us) - from))
[ "$(jq '.peers[0].log_size' <<<"$report")" = "$entries" ] || { echo "$report" >&2; exit 1; }
peak=$(rss_mib "$follower" VmHWM)

rate=$(calc "$entries * 1000000 / $took_us")
floor_rate=$(calc "$entries / $floor_s")
ratio=$(calc "100 * $rate / $floor_rate")

# Nothing new: one request, answered 304.
etag=$(curl -sS -o /dev/null -D - "$publisher_base/federate/index?publisher=$publisher_did&cursor=$entries&limit=16" | sed -n 's/^etag: //Ip' | tr -d '\r')
read -r status unchanged_s < <(curl -sS -o /dev/null -w '%{http_code} %{time_total}\n' -H "If-None-Match: $etag" \
  "$publisher_base/federate/index?publisher=$publisher_did&cursor=$entries&limit=16")
[ "$status" = 304 ]
unchanged_ms=$(calc "$unchanged_s * 1000")

# A whole pull without news, and pulls of one new entry each: CPU of the follower's process, then its fsyncs.
refresh() { curl -sS --unix-socket "$follower_home/run/hn.sock" -H 'content-type: application/json' -d '{}' http://localhost/admin/federation/refresh >/dev/null; }
refresh
rounds=20
from=$(cpu_us "$follower")
for _ in $(seq $rounds); do refresh; done
quiet_cpu=$(calc "($(cpu_us "$follower") - $from) / $rounds / 1000")
spent=0
for n in $(seq $rounds); do
  echo "news $n" >"$work/tmp/news-$n"
  hn "$large" shard publish --public "$work/tmp/news-$n" >/dev/null
  from=$(cpu_us "$follower")
  refresh
  spent=$((spent + $(cpu_us "$follower") - from))
done
one_cpu=$(calc "$spent / $rounds / 1000")
echo "news" >"$work/tmp/news"
hn "$large" shard publish --public "$work/tmp/news" >/dev/null
strace -f -qq -e trace=fsync,fdatasync,sync_file_range,msync -o "$work/tmp/strace" -p "$follower" &
tracer=$!
until grep -q 'TracerPid:[[:space:]]*[1-9]' "/proc/$follower/status"; do :; done
refresh
kill "$tracer" && wait "$tracer" 2>/dev/null || true
fsyncs=$(grep -c sync "$work/tmp/strace" || true)

idle_now=$(rss_mib "$follower" VmRSS)
sleep "$idle_after"
idle=$(rss_mib "$follower" VmRSS)
end "$follower"
end "$publisher"
# The news must not grow the publisher that other benches take: it is made anew.
rm -rf "$large"

row "following $entries entries, $slices slices" value target ""
row "entries/s, durable" "$rate" ">= 20000" "$(verdict "$rate" '>=' 20000)"
row "floor, entries/s on one core" "$floor_rate" "" ""
row "% of the floor" "$ratio" ">= 30" "$(verdict "$ratio" '>=' 30)"
row "peak memory, MiB" "$peak" "< 100" "$(verdict "$peak" '<' 100)"
row "memory before, MiB" "$before" "< 40" "$(verdict "$before" '<' 40)"
row "memory at once after, MiB" "$idle_now" "< 40" "$(verdict "$idle_now" '<' 40)"
row "memory $idle_after s after, MiB" "$idle" "< 40" "$(verdict "$idle" '<' 40)"
row "no change: one 304, ms" "$unchanged_ms" "< 10" "$(verdict "$unchanged_ms" '<' 10)"
row "no change: CPU of a whole refresh, ms" "$quiet_cpu" "" ""
row "one entry more: CPU of a whole refresh, ms" "$one_cpu" "" ""
more=$(calc "$one_cpu - $quiet_cpu")
row "one entry more: CPU beyond no change, ms" "$more" "< 1" "$(verdict "$more" '<' 1)"
row "one entry more: fsyncs" "$fsyncs" "<= 1" "$(verdict "$fsyncs" '<=' 1)"
