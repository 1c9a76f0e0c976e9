#!/usr/bin/env bash
# Every figure of placement.md and of rounds.md that is not Sia's, in one run: some twenty minutes on an idle machine.
#
# usage: docs/benchmarks/placement.sh TRACES [CHURN_SEEDS]
#
# TRACES holds openb/, gavel/ and philly/, see the importers for the files; openb/arrivals/*.tar.zst, if there, has the orders
# in which the published curves saw the jobs arrive (seeds 42 to 46). Sia's traces: sia_rounds.py, inside its own simulator.
set -euo pipefail
cd "$(dirname "$0")/../.."
traces=${1:?the directory of the public traces} seeds=${2:-1-3}
say() { printf '\n== %s\n' "$*"; }

say "building"
cargo build --release --quiet --bin aquifer
cargo build --release --quiet -p aquifer-sim --example rounds
aquifer=target/release/aquifer rounds=target/release/examples/rounds

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
arrivals=()
for packed in "$traces"/openb/arrivals/*.tar.zst; do
    [ -e "$packed" ] || continue
    zstd -dqc "$packed" | tar -x -C "$scratch"
    orders=$(find "$scratch" -name '*.42.txt' -printf '%h\n' -quit)
    arrivals=(--arrivals "${orders:-$scratch}")
done

lists=$(cd "$traces/openb" && ls openb_pod_list_*.csv* | sed 's/openb_pod_list_//; s/\.csv.*//')
for list in $lists; do
    say "static fill, $list, seeds 42 to 46"
    "$aquifer" simulate --trace "openb:$traces/openb:$list" "${arrivals[@]}" --policy ours,fgd,best-fit --seeds 42-46
done
for load in 0.90 0.94 0.98; do
    say "arrivals and departures, load $load, seeds $seeds"
    "$aquifer" simulate --trace "openb:$traces/openb:default" --mode churn --load $load --policy ours,fgd --seeds "$seeds"
done
say "time of a decision, openb eightfold"
"$aquifer" simulate --trace "openb:$traces/openb:default" --mode churn --load 0.94 --times 8 --count 1600000 --policy ours \
    --seeds 1 --timing
say "time of a decision, pools of five makers"
"$aquifer" bench decisions
for which in gavel generated philly scale; do
    say "rounds: $which"
    "$rounds" $which "$traces"
done
