#!/usr/bin/env bash
# Every agent under a launcher of its own: when one dies, the others notice no more than a missing neighbour.
#
#   launch/one_launcher_per_agent.sh CONFIG [OUT]
#
# Starts a coordinator and all agents on this machine and waits for them. On several machines start the coordinator once
# and, on each machine, the last command of this script for the agents that live there.
set -euo pipefail
config=${1:?usage: launch/one_launcher_per_agent.sh CONFIG [OUT]}
python=${PYTHON:-python3}
agents=$("$python" -c 'import sys; from pathlib import Path; from dimat.config import load_config; print(load_config(Path(sys.argv[1])).agents)' "$config")
out=${2:-runs/$(basename "$config" .yaml)}

pids=()
# Whatever ends this script ends what it started, and nothing else.
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT

# The coordinator makes the run folder; what it says before that goes beside it.
logs=$out.logs
mkdir -p "$logs"
"$python" -m dimat coordinator "$config" --out "$out" >"$logs/coordinator.log" 2>&1 &
coordinator=$!
pids+=("$coordinator")
address=
while [ -z "$address" ]; do
    kill -0 "$coordinator" || { cat "$logs/coordinator.log" >&2; exit 1; }
    address=$("$python" - "$out/processes.json" "$coordinator" <<'PYTHON'
import json, pathlib, sys
path = pathlib.Path(sys.argv[1])
entries = json.loads(path.read_text()) if path.exists() else []
print(next((entry["address"] for entry in entries if entry["pid"] == int(sys.argv[2])), ""))
PYTHON
    )
    sleep 0.1
done

workers=()
for ((agent = 0; agent < agents; agent++)); do
    "$python" -m torch.distributed.run --standalone --nproc-per-node 1 --shutdown-timeout 90 \
        -m dimat agent "$config" --out "$out" --id "$agent" --coordinator "$address" >"$logs/agent-$agent.log" 2>&1 &
    workers+=($!)
    pids+=($!)
done

failed=0
for worker in "${workers[@]}"; do
    wait "$worker" || failed=1
done
wait "$coordinator" || failed=1
trap - EXIT
exit "$failed"
