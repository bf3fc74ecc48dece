#!/usr/bin/env bash
# Publishing 10,000 artifacts of 2 KiB, against as many files created and fsynced on the same disk in the same run.
#   bash integration/bench/publish.sh
. "$(dirname "$0")/common.sh"
count=10000 bytes=2048

files "$work/tmp/artifacts" $count $bytes
home=$work/tmp/home
hn "$home" id create publisher >/dev/null
serve "$home"
# Before and after, so that a disk that changes its mind in between is seen.
first=$("$tools/fsync_files" $count $bytes "$work/tmp/fsync-1")
from=$(now_us)
hn "$home" shard publish --public "$work/tmp/artifacts" >"$work/tmp/published"
took_us=$(($(now_us) - from))
second=$("$tools/fsync_files" $count $bytes "$work/tmp/fsync-2")
[ "$(jq .log_size "$work/tmp/published")" = $count ]
end "$pid"

rate=$(calc "$count * 1000000 / $took_us")
plain=$(calc "2 * $count / ($first + $second)")
ratio=$(calc "100 * $rate / $plain")
row "publishing $count artifacts of $bytes bytes" value target ""
row "artifacts/s" "$rate" ">= 2000" "$(verdict "$rate" '>=' 2000)"
row "fsynced file creations/s ($first s, $second s)" "$plain" "" ""
row "% of fsynced file creations" "$ratio" ">= 50" "$(verdict "$ratio" '>=' 50)"
