#!/usr/bin/env bash
# Run the unit tests on the newest Python, that of Debian's testing release, in a root file system of its own, with the
# versions of the lock. Needs root. Says so where that Python, or a package for it, cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."

WORK=$(mktemp -d)
ROOT=$WORK/root
trap 'rm -rf "$WORK"' EXIT

prepare() {
    debootstrap --variant=minbase --include=ca-certificates,g++,git,make,python3-dev,python3-venv testing "$ROOT" &&
        cp -r /etc/ssl/certs "$ROOT/etc/ssl" &&
        cp /etc/resolv.conf "$ROOT/etc" &&
        git clone --quiet . "$ROOT/project"
}

# A command in the root file system, with /proc and /dev as long as it runs. The shell stays, to reap orphans.
inside() {
    unshare --mount --pid --fork bash -c '
        mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && chroot "$0" "$@"; exit' "$ROOT" "$@"
}

if ! { prepare && inside make --directory project .venv/installed-test; } >"$WORK/log" 2>&1; then
    tail -n 20 "$WORK/log"
    echo "not tested: the newest Python"
    exit
fi
inside env --chdir=/project .venv/bin/python -m pytest tests/unit --numprocesses 2 --dist worksteal
