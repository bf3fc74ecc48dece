#!/usr/bin/env bash
# A new entry to followers by streams of news: 1 publisher, 50 followers, a process each, on loopback. From the answer to
# the publication until the entry is in a follower's index, which the follower's own stream tells the moment it is so.
#   bash integration/bench/watch.sh
#   FOLLOWERS=50 ROUNDS=40 PAUSE_S=0.5 IDLE_S=30
. "$(dirname "$0")/common.sh"
need python3 python3
export HN_FEDERATION__WATCH=true
followers=${FOLLOWERS:-50} rounds=${ROUNDS:-40} pause_s=${PAUSE_S:-0.5} idle_s=${IDLE_S:-30}

home=$work/tmp/publisher
hn "$home" id create publisher >/dev/null
serve "$home"
publisher=$pid publisher_base=$base publisher_did=$did
bases=() watchers=()
for n in $(seq "$followers"); do
  follower=$work/tmp/follower-$n
  hn "$follower" id create "follower-$n" >/dev/null
  serve "$follower"
  bases+=("$base") watchers+=("$pid")
  hn "$follower" mcp federate add "$publisher_did" "$publisher_base" >/dev/null
done
streams() { curl -sS --unix-socket "$home/run/hn.sock" http://localhost/metrics | awk '$1 == "hn_watch_streams" { print $2 }'; }
until [ "$(streams)" = "$followers" ]; do sleep 0.2; done

cpu() { local sum=0; for pid in "$@"; do sum=$((sum + $(cpu_us "$pid"))); done; echo "$sum"; }
before=$(cpu "$publisher" "${watchers[@]}")
python3 - "$home/run/hn.sock" "$publisher_did" "$rounds" "$pause_s" "${bases[@]}" >"$work/tmp/latencies" <<'PY'
import io, select, socket, sys, tarfile, time
from urllib.parse import urlsplit

admin, publisher, rounds, pause, bases = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:]

def watch(base):
    at = urlsplit(base)
    stream = socket.create_connection((at.hostname, at.port))
    stream.sendall(f"GET /federate/watch?publisher={publisher} HTTP/1.1\r\nHost: {at.netloc}\r\n\r\n".encode())
    return stream

def publish(name):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        info = tarfile.TarInfo(name)
        content = name.encode()
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    body = tar.getvalue()
    with socket.socket(socket.AF_UNIX) as node:
        node.connect(admin)
        node.sendall(b"POST /admin/log/publish?public=true HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/x-tar\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        answer = b""
        while piece := node.recv(65536):
            answer += piece
    acknowledged = time.monotonic()
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return acknowledged

streams = {watch(base): b"" for base in bases}
size = 0
for round in range(rounds):
    acknowledged = publish(f"news-{round}.txt")
    size += 1
    waiting, deadline = set(streams), time.monotonic() + 30
    while waiting:
        readable, _, _ = select.select(list(streams), [], [], max(0, deadline - time.monotonic()))
        assert readable, f"{len(waiting)} followers have not heard of entry {size}"
        now = time.monotonic()
        for stream in readable:
            piece = stream.recv(65536)
            assert piece, "a follower ended its stream"
            streams[stream] = (streams[stream] + piece)[-8192:]
            if stream in waiting and f'"log_size":{size},'.encode() in streams[stream]:
                waiting.discard(stream)
                print(f"{max(0.0, now - acknowledged) * 1000:.3f}")
    time.sleep(pause)
PY
spent=$(($(cpu "$publisher" "${watchers[@]}") - before))

# What the streams said is so: every follower serves the whole log.
for base in "${bases[@]}"; do
  served=$(curl -sS "$base/federate/peers" | jq --arg did "$publisher_did" '.peers[] | select(.did == $did) | .log_size')
  [ "$served" = "$rounds" ] || { echo "$base serves $served of $rounds" >&2; exit 1; }
done
at() { sort -n "$work/tmp/latencies" | awk -v share="$1" '{ all[NR] = $1 } END { print all[int(NR * share + 0.999999)] }'; }

# What quiet costs: context switches of the publisher with all its streams open, and of a follower. Of threads that were
# there all the time: one that ends takes its count with it.
switches() { for task in "/proc/$1"/task/*; do echo "${task##*/} $(awk '/ctxt_switches/ { sum += $2 } END { print sum }' "$task/status")"; done | sort; }
rate() { calc "$(join "$1" <(switches "$2") | awk '{ sum += $3 - $2 } END { print sum + 0 }') / $idle_s"; }
# Threads that wait for work go within ten seconds.
sleep 12
switches "$publisher" >"$work/tmp/publisher-switches"
switches "${watchers[0]}" >"$work/tmp/follower-switches"
sleep "$idle_s"
p_idle=$(rate "$work/tmp/publisher-switches" "$publisher")
f_idle=$(rate "$work/tmp/follower-switches" "${watchers[0]}")
memory=$(rss_mib "$publisher" VmRSS)
for pid in "${watchers[@]}" "$publisher"; do end "$pid"; done

row "news to $followers followers, $rounds entries" value target ""
row "publish to visible, p50 ms" "$(at 0.5)" "" ""
row "publish to visible, p95 ms" "$(at 0.95)" "< 300" "$(verdict "$(at 0.95)" '<' 300)"
row "publish to visible, last ms" "$(at 1)" "" ""
row "CPU of all nodes an entry, ms" "$(calc "$spent / 1000 / $rounds")" "" ""
row "publisher's memory, MiB" "$memory" "" ""
row "publisher's context switches/s when quiet" "$p_idle" "" ""
row "a follower's context switches/s when quiet" "$f_idle" "" ""
