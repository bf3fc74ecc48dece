#!/usr/bin/env bash
# GET /federate/index, warm, under wrk, against a bare actix-web handler that gives the same bytes in the same run.
#   bash integration/bench/gateway.sh
. "$(dirname "$0")/common.sh"
need curl curl
need wrk wrk
seconds=${SECONDS_EACH:-8}
workers=2
export HN_GATEWAY__WORKERS=$workers

# Requests a second of one URL: a short warm-up, then the measurement.
measure() { wrk -t1 -c32 -d2s "$1" >/dev/null; wrk -t1 -c32 "-d${seconds}s" "$1" | awk '/^Requests\/sec:/ { print $2 } /Non-2xx/ { exit 1 }'; }

compare() { # compare NAME URL TARGET-RATIO TARGET-RATE
  local name=$1 url=$2 bare_pid address ours bare ratio
  curl -sSf "$url" >"$work/tmp/page"
  "$tools/bare_gateway" $workers "$work/tmp/page" >"$work/tmp/bare" 9>&- &
  bare_pid=$!
  pids+=("$bare_pid")
  until grep -q READY "$work/tmp/bare"; do :; done
  address=$(sed -n 's/^READY //p' "$work/tmp/bare")
  # Alternating, so that neither has the quieter machine.
  bare=$(measure "http://$address/") ours=$(measure "$url")
  bare=$(calc "($bare + $(measure "http://$address/")) / 2") ours=$(calc "($ours + $(measure "$url")) / 2")
  end "$bare_pid"
  ratio=$(calc "100 * $ours / $bare")
  row "$name ($(stat -c %s "$work/tmp/page") bytes)" "$ours" "bare: $bare" ""
  row "  % of bare" "$ratio" ">= $3" "$(verdict "$ratio" '>=' "$3")"
  [ "$4" = 0 ] || row "  requests/s" "$ours" ">= $4" "$(verdict "$ours" '>=' "$4")"
}

small=$work/tmp/small
hn "$small" id create small >/dev/null
files "$work/tmp/99" 99 16
hn "$small" shard publish --public "$work/tmp/99" >/dev/null
echo "the hundredth" >"$work/tmp/one"
hn "$small" shard publish --public "$work/tmp/one" >/dev/null
middle=$work/tmp/middle
hn "$middle" id create middle >/dev/null
files "$work/tmp/512" 512 16
hn "$middle" shard publish --public "$work/tmp/512" >/dev/null
large_home
cp -r "$large" "$work/tmp/large"
hn "$work/tmp/large" shard publish --public "$work/tmp/one" >/dev/null

row "GET /federate/index" "requests/s" "" ""
serve "$small"
compare "1 entry of a log of 100" "$base/federate/index?cursor=99&limit=1" 40 14000
end "$pid"
serve "$middle"
compare "512 entries, the whole log" "$base/federate/index?cursor=0&limit=1" 70 0
end "$pid"
serve "$work/tmp/large"
compare "1 entry of a log of 100,001" "$base/federate/index?cursor=100000&limit=1" 40 14000
compare "512 entries of a log of 100,001" "$base/federate/index?cursor=51200&limit=1" 70 0
end "$pid"
