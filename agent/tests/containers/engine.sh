#!/bin/bash
# A container engine without containers, for tests: it takes docker's command line, writes down how it was called, and
# runs the program in a session of its own, with the environment that a container would have and no other. Images are
# `localhost/missing`, which there is not, and all others.
# Its state is in the directory `containers` beside it: for each one `pid`, and `state` as `inspect` tells it.
here=$(cd "$(dirname "$0")" && pwd)/containers
verb=$1
shift
printf '%s\n' "$verb${*:+ }$*" >>"$here/../calls"
case $verb in
info)
    echo '{"ServerVersion":"0.1","MemoryLimit":true,"CpuCfsQuota":true,"CPUSet":true,"SecurityOptions":[]}'
    ;;
run)
    env=() entrypoint='' dir=/
    while [[ $1 == --* ]]; do
        case $1 in
        --name=*) name=${1#*=} ;;
        --entrypoint=*) entrypoint=${1#*=} ;;
        --workdir=*) dir=${1#*=} ;;
        --env=*=*) env+=("${1#*=}") ;;
        --env=*) variable=${1#*=} && env+=("$variable=${!variable}") ;;
        esac
        shift
    done
    image=$1
    shift
    if [[ $image == localhost/missing ]]; then
        echo 'Error: localhost/missing: no such image' >&2
        exit 125
    fi
    mkdir -p "$here/$name"
    echo '{"StartedAt":"2026-01-01T00:00:00Z","OOMKilled":false}' >"$here/$name/state"
    cd "$dir" || exit 125
    setsid env -i "${env[@]}" "$entrypoint" "$@" &
    program=$!
    echo $program >"$here/$name/pid"
    trap 'kill -TERM $program; again=yes' TERM
    while :; do
        again=''
        wait $program
        code=$?
        [[ $again ]] || exit $code
    done
    ;;
exec)
    # As of docker, what runs stays when its client is killed.
    env=()
    while [[ $1 == --* ]]; do
        [[ $1 == --env=* ]] && env+=("${1#*=}")
        shift
    done
    name=$1
    shift
    program=$(cat "$here/$name/pid") || exit 125
    mapfile -d '' -t own <"/proc/$program/environ"
    cd "/proc/$program/cwd" || exit 125
    setsid env -i "${own[@]}" "${env[@]}" "$@" <&0 &
    echo $! >>"$here/$name/beside"
    wait $!
    exit $?
    ;;
inspect)
    cat "$here/${*: -1}/state" || { echo 'Error: no such container' >&2; exit 1; }
    ;;
rm)
    name=${*: -1}
    if [[ ! -e $here/$name ]]; then
        echo "Error: No such container: $name" >&2
        exit 1
    fi
    for program in $(cat "$here/$name/pid" "$here/$name/beside" 2>/dev/null); do
        kill -KILL -"$program" 2>/dev/null
    done
    rm -r "${here:?}/$name"
    ;;
esac
