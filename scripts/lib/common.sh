# Sourced by every script: where things are, and how a step is told. Needs bash 5.
# shellcheck shell=bash

set -euo pipefail
umask 022

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
LIB=$ROOT/scripts/lib
VENV=$ROOT/.venv
CACHE=${PYRUN_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or PYRUN_CACHE}/.cache}/pyrun-quickstart}
# Administrators' programs (newuidmap, mmdebstrap, docker-registry) are not on every user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH ROOT LIB VENV CACHE

PROGRAM=${0##*/}
STEP_GROUP=''    # process group of the running step
STARTED=$EPOCHREALTIME

die() {
    printf '%s: %s\n' "$PROGRAM" "$*" >&2
    exit 1
}

elapsed() { # since $1, an $EPOCHREALTIME, in seconds with one decimal
    local us=$((${EPOCHREALTIME/[.,]/} - ${1/[.,]/}))
    printf '%d.%d' $((us / 1000000)) $((us / 100000 % 10))
}

say() {
    printf '[%6ss] %s\n' "$(elapsed "$STARTED")" "$*"
}

# step TEXT COMMAND...: run COMMAND with its output in a log, as one line with the time it took. Beside a terminal
# a line that keeps moving shows the last thing it said; elsewhere a long step says every 20 s that it lives.
# A failure shows the end of the log and ends the script.
step() {
    local text=$1 log began=$EPOCHREALTIME status=0 ticks=0 last
    shift
    mkdir -p "$CACHE/logs"
    log=$CACHE/logs/$PROGRAM-${text//[^A-Za-z0-9]/-}.log
    # A group of its own: Ctrl-C ends all of it, through stop_step.
    set -m
    "$@" >"$log" 2>&1 </dev/null &
    STEP_GROUP=$!
    set +m
    while kill -0 "$STEP_GROUP" 2>/dev/null; do
        sleep 0.1
        ticks=$((ticks + 1))
        if [[ -t 1 ]]; then
            last=$(last_line "$log")
            printf '\r\033[K[%6ss] %s %s  %.60s' "$(elapsed "$began")" "${text}" "$(spin "$ticks")" "$last"
        elif ((ticks % 200 == 0)); then
            last=$(last_line "$log")
            printf '[%6ss] %s … %.80s\n' "$(elapsed "$began")" "$text" "$last"
        fi
    done
    wait "$STEP_GROUP" || status=$?
    STEP_GROUP=''
    [[ ! -t 1 ]] || printf '\r\033[K'
    if ((status)); then
        printf '[%6ss] %s: failed (exit %d). The end of %s:\n' "$(elapsed "$began")" "$text" "$status" "$log" >&2
        tail -n 15 "$log" | sed 's/^/    /' >&2
        exit 1
    fi
    printf '[%6ss] %s\n' "$(elapsed "$began")" "$text"
}

last_line() { # of the log $1, with nothing in it that a terminal would obey
    tail -n 1 "$1" | tr '\r' '\n' | tail -n 1 | tr -cd '[:print:]'
}

spin() {
    local wheel='|/-+'
    printf '%s' "${wheel:$(($1 % 4)):1}"
}

stop_step() { # for a script's EXIT trap
    [[ -z $STEP_GROUP ]] || kill -TERM -- "-$STEP_GROUP" 2>/dev/null || true
    STEP_GROUP=''
}

usage() { # the comment block at the head of the script that was called
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
}
