#!/usr/bin/env bash
# From exec to MCP_READY: on an existing home, and with 100,000 entries after kill -9.
#   bash integration/bench/start.sh
. "$(dirname "$0")/common.sh"
runs=5

median() { sort -n | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] }'; }

small=$work/tmp/small
hn "$small" id create small >/dev/null
files "$work/tmp/some" 20 16
hn "$small" shard publish --public "$work/tmp/some" >/dev/null
existing=$(for _ in $(seq $runs); do serve "$small"; echo "$ready_ms"; end "$pid"; done | median)

large_home
cp -r "$large" "$work/tmp/large"
serve "$work/tmp/large"
end9 "$pid"
killed=$(for n in $(seq $runs); do
  echo "after kill $n" >"$work/tmp/kill-$n"
  serve "$work/tmp/large"
  echo "$ready_ms"
  # Written just before the next kill, so that it finds work undone.
  hn "$work/tmp/large" shard publish --public "$work/tmp/kill-$n" >/dev/null
  end9 "$pid"
done | median)

row "from exec to MCP_READY, median of $runs" value target ""
row "existing home, ms" "$existing" "< 100" "$(verdict "$existing" '<' 100)"
row "100,000 entries after kill -9, ms" "$killed" "< 1000" "$(verdict "$killed" '<' 1000)"
