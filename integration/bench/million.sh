#!/usr/bin/env bash
# A log of 1,000,000 entries against one of 100,000, in the same run: following it between two real nodes on loopback, one
# entry more on it, and starts of both nodes after kill -9. The logs are made by `big_log`: signed as the node signs them.
#   bash integration/bench/million.sh
#   SMALL=100000 LARGE=1000000 SLICE=8192 (entries a commit: below 512, of slices as small) IDLE_AFTER_S=60 RUNS=3 ROUNDS=20
. "$(dirname "$0")/common.sh"
need curl curl
# News would be pulled before it is measured what they cost.
export HN_FEDERATION__WATCH=false
small=${SMALL:-100000} large=${LARGE:-1000000} slice=${SLICE:-8192}
idle_after=${IDLE_AFTER_S:-60} runs=${RUNS:-3} rounds=${ROUNDS:-20}

median() { sort -n | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] }'; }
# mean NAME: of the values that were noted under it.
mean() { awk '{ sum += $1 } END { printf "%.2f", sum / NR }' "$work/tmp/$1"; }
note() { echo "$2" >>"$work/tmp/$1"; }

publisher() { # publisher ENTRIES: makes its home, and starts it once, so that its log is verified and indexed
  local home=$work/tmp/publisher-$1
  hn "$home" id create publisher >/dev/null
  # A first start makes the home its log's own place; what it signed is replaced.
  serve "$home"
  end "$pid"
  rm -rf "$home/log" "$home/presence" "$home/state"
  "$tools/big_log" "$home" "$1" publisher "$slice" >/dev/null
  serve "$home"
  note "first-$1" "$ready_ms"
  publisher_rss=$(rss_mib "$pid" VmHWM)
  note "publisher-peak-$1" "$publisher_rss"
  end "$pid"
}

follow() { # follow ENTRIES HOME: follows the whole log into a new home; both nodes stay up: $publisher, $follower
  local from cpu report
  serve "$work/tmp/publisher-$1"
  publisher=$pid publisher_base=$base publisher_did=$did
  hn "$2" id create follower >/dev/null
  serve "$2"
  follower=$pid
  cpu=$(cpu_us "$follower")
  from=$(now_us)
  hn "$2" mcp federate add "$publisher_did" "$publisher_base" --scope own >/dev/null
  report=$(hn "$2" mcp federate refresh "$publisher_did")
  note "rate-$1" "$(calc "$1 * 1000000 / ($(now_us) - $from)")"
  note "cpu-$1" "$(calc "($(cpu_us "$follower") - $cpu) / $1")"
  note "peak-$1" "$(rss_mib "$follower" VmHWM)"
  note "publisher-serving-$1" "$(rss_mib "$publisher" VmHWM)"
  [ "$(jq '.peers[0].log_size' <<<"$report")" = "$1" ] || { echo "$report" >&2; exit 1; }
}

refresh() { curl -sS --unix-socket "$1/run/hn.sock" -H 'content-type: application/json' -d '{}' http://localhost/admin/federation/refresh >/dev/null; }

more() { # more ENTRIES HOME: CPU of a pull of one entry more, beyond that of a pull without news, and what it costs the publisher
  local spent=0 published=0 n from
  refresh "$2"
  from=$(cpu_us "$follower")
  for n in $(seq "$rounds"); do refresh "$2"; done
  note "quiet-$1" "$(calc "($(cpu_us "$follower") - $from) / $rounds / 1000")"
  for n in $(seq "$rounds"); do
    echo "news $n" >"$work/tmp/news-$n"
    from=$(cpu_us "$publisher")
    hn "$work/tmp/publisher-$1" shard publish --public "$work/tmp/news-$n" >/dev/null
    published=$((published + $(cpu_us "$publisher") - from))
    from=$(cpu_us "$follower")
    refresh "$2"
    spent=$((spent + $(cpu_us "$follower") - from))
  done
  note "more-$1" "$(calc "$spent / $rounds / 1000 - $(mean "quiet-$1")")"
  note "publish-$1" "$(calc "$published / $rounds / 1000")"
}

killed() { # killed NAME HOME: the median of starts after kill -9, each with a publication just before
  local n
  for n in $(seq "$runs"); do
    serve "$2"
    echo "after kill $1 $n" >"$work/tmp/kill-$n"
    hn "$2" shard publish --public "$work/tmp/kill-$n" >/dev/null
    end9 "$pid"
    serve "$2"
    echo "$ready_ms"
    end9 "$pid"
  done | median >"$work/tmp/killed-$1"
}

publisher "$small"
publisher "$large"
# The small log before and after, so that a machine that changes its mind in between is seen.
for n in 1 2; do
  follow "$small" "$work/tmp/small-$n"
  [ "$n" = 1 ] || more "$small" "$work/tmp/small-$n"
  end9 "$follower"
  end "$publisher"
  [ "$n" = 1 ] || break
  follow "$large" "$work/tmp/large"
  more "$large" "$work/tmp/large"
  sleep "$idle_after"
  note "after-$large" "$(rss_mib "$follower" VmRSS)"
  end9 "$follower"
  end9 "$publisher"
done
serve "$work/tmp/large"
note "at-once-$large" "$ready_ms"
end9 "$pid"
killed "publisher-$small" "$work/tmp/publisher-$small"
killed "publisher-$large" "$work/tmp/publisher-$large"
killed "follower-$small" "$work/tmp/small-2"
killed "follower-$large" "$work/tmp/large"

both() { row "$1" "$(mean "$2-$small")" "$(mean "$2-$large")" "${3:-}"; }
row "load average $(cut -d' ' -f1-3 /proc/loadavg), commits of $slice" "$small" "$large" ""
ratio=$(calc "100 * $(mean "rate-$large") / $(mean "rate-$small")")
both "following, entries/s ($(tr '\n' ' ' <"$work/tmp/rate-$small")before and after)" rate
row "  rate, % of the smaller's" "" "$ratio" ">= 90 $(verdict "$ratio" '>=' 90)"
both "CPU of the follower an entry, us" cpu
row "  % of the smaller's" "" "$(calc "100 * $(mean "cpu-$large") / $(mean "cpu-$small")")" ""
both "peak memory of the follower, MiB" peak "< 200 $(verdict "$(mean "peak-$large")" '<' 200)"
row "memory $idle_after s after, MiB" "" "$(mean "after-$large")" ""
both "one entry more: CPU beyond no change, ms" more "< 1 $(verdict "$(mean "more-$large")" '<' 1)"
both "no change: CPU of a whole refresh, ms" quiet
both "one entry more: CPU of the publisher, ms" publish
both "start that verifies the whole own log, ms" first
both "  peak memory, MiB" publisher-peak
both "peak memory of the publisher, serving, MiB" publisher-serving
both "publisher ready after kill -9, ms" killed-publisher "< 2000 $(verdict "$(mean "killed-publisher-$large")" '<' 2000)"
both "follower ready after kill -9, ms" killed-follower "< 2000 $(verdict "$(mean "killed-follower-$large")" '<' 2000)"
row "  at once after following" "" "$(mean "at-once-$large")" ""
