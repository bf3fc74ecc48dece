#!/usr/bin/env bash
# The tests that need something of the system beyond Rust: independent verifiers, clients and a fuzzer in Python, a small
# disk to fill.
# Makes a Python environment under target/, installs what is missing where it may, and runs those tests.
#   bash integration/system-tests.sh
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/system-tests/venv
packages=(rfc8785 cryptography blake3 base58 schemathesis)

install() { # install PACKAGE: as root on Debian; elsewhere it says what is missing
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$1" >/dev/null
  else
    echo "system-tests: install $1 first" >&2
    return 1
  fi
}

imports="import $(IFS=,; echo "${packages[*]}")"

if ! "$venv/bin/python" -c "$imports" 2>/dev/null; then
  command -v python3 >/dev/null || install python3
  rm -rf "$venv"
  # Without ensurepip (Debian's python3-venv) the module is there and cannot finish.
  python3 -m venv "$venv" 2>/dev/null || { install python3-venv && python3 -m venv "$venv"; }
  "$venv/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}"
fi
"$venv/bin/python" -c "$imports"

echo "== documents verify with independent tools; a publisher and a caller that share no code with ours; a fuzzer of the API"
HN_PYTHON="$PWD/$venv/bin/python" cargo test --quiet --workspace --test main -- independent:: stranger:: callers:: key_shares::

if [ "$(id -u)" = 0 ]; then
  echo "== full disks (tmpfs)"
  cargo test --quiet --workspace --test main -- disk min_free
else
  echo "== full disks: left out, mounting a tmpfs takes root; the failpoints in cargo test stand for it"
fi
