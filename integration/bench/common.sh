# Sourced by the benches: the release build, nodes on loopback, figures in a table.
# HN_BIN names another binary; BENCH_DIR another disk to work on.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=${BENCH_DIR:-$root/target/bench}
mkdir -p "$work"
# One bench at a time: they would measure each other.
exec 9>"$work/lock"
flock 9
export HN_FEDERATION__INTERVAL_S=900
pids=()

need() { # need COMMAND PACKAGE
  command -v "$1" >/dev/null && return
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$2" >/dev/null
  command -v "$1" >/dev/null || { echo "install $2 first" >&2; exit 1; }
}
need jq jq

if [ -z "${HN_BIN:-}" ]; then
  (cd "$root" && cargo build --quiet --release --workspace --bins)
  HN_BIN=$root/target/release/hn
fi
tools=$(dirname "$HN_BIN")

# Ends what was started here, by its pid, and nothing else.
finish() { for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done; rm -rf "$work/tmp"; }
trap finish EXIT
rm -rf "$work/tmp" && mkdir -p "$work/tmp"

hn() { local home=$1; shift; "$HN_BIN" --home "$home" -o json "$@"; }

now_ms() { local t=$EPOCHREALTIME; echo $((${t/./} / 1000)); }
now_us() { local t=$EPOCHREALTIME; echo "${t/./}"; }

serve() { # serve HOME: starts a node; sets $pid, $base, $did, $ready_ms
  local home=$1 pipe=$work/tmp/ready.$RANDOM line from
  mkfifo "$pipe"
  from=$(now_us)
  "$HN_BIN" --home "$home" mcp serve --listen 127.0.0.1:0 >"$pipe" 2>>"$work/tmp/stderr" 9>&- &
  pid=$!
  pids+=("$pid")
  # The descriptor stays open, so that the node's stdout never breaks.
  exec {ready}<"$pipe"
  read -r -t 60 line <&"$ready" || { cat "$work/tmp/stderr" >&2; exit 1; }
  ready_ms=$(calc "($(now_us) - $from) / 1000")
  rm "$pipe"
  line=${line#MCP_READY }
  base=$(jq -r .base_url <<<"$line")
  did=$(jq -r .did <<<"$line")
}

end() { stop TERM "$1"; }
end9() { stop KILL "$1"; }
# Ends a process of ours once: afterwards its pid may be somebody else's.
stop() {
  local at
  for at in "${!pids[@]}"; do
    [ "${pids[$at]}" = "$2" ] || continue
    unset "pids[$at]"
    kill "-$1" "$2" && wait "$2" 2>/dev/null || true
  done
}

calc() { awk "BEGIN { printf \"%.2f\", $1 }"; }
rss_mib() { calc "$(awk "/^$2:/ {print \$2}" "/proc/$1/status") / 1024"; }
# CPU of all threads so far, in microseconds: finer than the ticks of /proc/PID/stat.
cpu_us() { cat "/proc/$1"/task/*/schedstat | awk '{ sum += $1 } END { printf "%d", sum / 1000 }'; }

files() { # files FOLDER COUNT BYTES: distinct files, 1,000 a folder
  python3 - "$@" <<'PY'
import os, sys
folder, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for n in range(count):
    if n % 1000 == 0:
        os.makedirs(f"{folder}/{n // 1000:03}", exist_ok=True)
    with open(f"{folder}/{n // 1000:03}/{n:06}.txt", "w") as file:
        file.write(f"{n:016}".ljust(size, "."))
PY
}

large_home() { # the home of a publisher of 100,000 entries, made once; sets $large
  large=$work/publisher-100k
  [ -e "$large/complete" ] && return
  rm -rf "$large"
  files "$work/tmp/100k" 100000 16
  hn "$large" id create publisher >/dev/null
  hn "$large" shard publish --public "$work/tmp/100k" >"$work/tmp/published"
  [ "$(jq .log_size "$work/tmp/published")" = 100000 ]
  touch "$large/complete"
}

row() { printf '%-46s %14s %14s  %s\n' "$@"; }
# verdict VALUE OP TARGET: whether the target is met.
verdict() { awk "BEGIN { exit !($1 $2 $3) }" && echo ok || echo MISSED; }
