#!/bin/sh
# What:    the few functions that the scripts beside it share; it does nothing by itself.
# When:    sourced, after `root` is set to the project's folder.
# Example: . "$root/scripts/lib.sh"
# shellcheck disable=SC2154 # root comes from the script that sources this

build_dir=${CARGO_TARGET_DIR:-$root/target}
case $build_dir in /*) ;; *) build_dir=$root/$build_dir ;; esac
# No single wait is longer: whatever takes more on one machine hangs.
wait_seconds=30

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# need PROGRAM PACKAGE: says what to install before anything is begun.
need() { command -v "$1" >/dev/null 2>&1 || die "needs $1: install $2"; }

# wait_for WHAT COMMAND...: until COMMAND succeeds.
wait_for() {
    what=$1
    shift
    tenths=0
    until "$@" >/dev/null 2>&1; do
        tenths=$((tenths + 1))
        [ "$tenths" -le $((wait_seconds * 10)) ] || die "waited $wait_seconds s for $what"
        sleep 0.1
    done
}

has_port_or_ended() { [ -s "$2" ] || ! kill -0 "$1"; }

# wait_for_port PID FILE: until the server PID has written its port there.
wait_for_port() {
    wait_for "the server's port file" has_port_or_ended "$1" "$2"
    [ -s "$2" ] || die "the server ended before it listened"
}

# stop PID...: asks each to end, and insists after 15 s; one that is gone already is no error.
stop() {
    for pid in "$@"; do
        kill "$pid" 2>/dev/null || :
        tenths=0
        while kill -0 "$pid" 2>/dev/null && [ "$tenths" -lt 150 ]; do
            tenths=$((tenths + 1))
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || :
        wait "$pid" 2>/dev/null || :
    done
}

# same A B: both files exist and hold the same bytes.
same() { cmp -- "$1" "$2" || die "$1 and $2 differ"; }

# random_file PATH KIB
random_file() { dd if=/dev/urandom of="$1" bs=1024 count="$2" iflag=fullblock 2>/dev/null; }

# static_target: the musl target where rustup has it, else the gnu one of this machine.
static_target() {
    host=$(rustc -vV | sed -n 's/^host: //p')
    musl=$(printf '%s' "$host" | sed 's/-gnu/-musl/')
    if [ -d "$(rustc --print target-libdir --target "$musl" 2>/dev/null)" ]; then say "$musl"; else say "$host"; fi
}
