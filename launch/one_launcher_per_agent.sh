#!/usr/bin/env bash
# Every agent under a launcher of its own: when one dies, the others notice no more than a missing neighbour.
#
#   launch/one_launcher_per_agent.sh CONFIG [OUT]
#
# Starts a coordinator and all agents on this machine and waits for them. Ctrl-C once: all agents stop after the same
# round; twice: now. On several machines start the coordinator once and, on each machine, the command in `start_agent`
# for the agents that live there.
set -euo pipefail
# Every job in a process group of its own: Ctrl-C then reaches this script alone, which decides what it means.
set -m
config=${1:?usage: launch/one_launcher_per_agent.sh CONFIG [OUT]}
# PYTHON, else the environment that `make` made, else what is on the path.
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python3)}
agents=$("$python" -c 'import sys; from pathlib import Path; from dimat.config import load_config; print(load_config(Path(sys.argv[1])).agents)' "$config")
out=${2:-runs/$(basename "$config" .yaml)}
# The coordinator makes the run folder; what is said before that goes beside it.
logs=$out.logs
mkdir -p "$logs"

pids=()
interrupts=0
on_signal() {
    interrupts=$((interrupts + 1))
    if [ "$interrupts" = 1 ] && [ -n "${coordinator:-}" ]; then
        kill -INT "$coordinator" 2>/dev/null || true # it names a last round
    else
        kill "${pids[@]}" 2>/dev/null || true
    fi
}
trap on_signal INT TERM
# Whatever else ends this script ends what it started, and nothing else.
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT

# A trapped signal ends `wait` early; wait on until the process itself has ended.
await() {
    local code=0
    while true; do
        if wait "$1"; then code=0; else code=$?; fi
        kill -0 "$1" 2>/dev/null || return "$code"
    done
}

start_agent() {
    "$python" -m torch.distributed.run --standalone --nproc-per-node 1 --shutdown-timeout 90 \
        -m dimat agent "$config" --out "$out" --id "$1" --coordinator "$address" >"$logs/agent-$1.log" 2>&1 &
    pids+=($!)
}

: >"$logs/coordinator.log" # it is read before the shell of the job has made it
"$python" -m dimat coordinator "$config" --out "$out" >"$logs/coordinator.log" 2>&1 &
coordinator=$!
pids+=("$coordinator")
address=
while [ -z "$address" ]; do
    kill -0 "$coordinator" || { cat "$logs/coordinator.log" >&2; exit 1; }
    address=$(sed -n 's/^the coordinator of .* listens on //p' "$logs/coordinator.log")
    sleep 0.1
done

for ((agent = 0; agent < agents; agent++)); do
    start_agent "$agent"
done

failed=0
for worker in "${pids[@]:1}"; do
    await "$worker" || failed=1
done
code=0
await "$coordinator" || code=$?
trap - EXIT
# The coordinator knows how the run ended: 0, 1, 3 or 130.
[ "$code" != 0 ] && exit "$code"
exit "$failed"
