#!/bin/bash
# nvidia-cuda-mps-control as far as agents use it: `-d` starts a daemon for a pipe directory, `quit` on its input ends it.
pipe=${CUDA_MPS_PIPE_DIRECTORY:?}
daemon=$(cat "$pipe/pid" 2>/dev/null)
echo "$* $CUDA_VISIBLE_DEVICES" >>"$(dirname "$0")/calls"
if [[ $1 == -d ]]; then
    if [[ $daemon ]] && kill -0 "$daemon" 2>/dev/null; then
        echo 'An instance of this daemon is already running' >&2
        exit 1
    fi
    setsid sleep 1017 >/dev/null 2>&1 </dev/null &
    echo $! >"$pipe/pid"
    touch "$pipe/control"
    exit 0
fi
read -r command
[[ $command == quit && $daemon ]] && kill "$daemon"
