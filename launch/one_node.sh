#!/usr/bin/env bash
# All agents of a run on this machine, under one torchrun. Rank 0 starts the coordinator beside itself.
#
#   launch/one_node.sh CONFIG [OUT]
#
# The number of workers must be the number of agents in the config. A crash ends all agents; the same command continues
# the run from the newest round that every agent has a checkpoint of.
set -euo pipefail
config=${1:?usage: launch/one_node.sh CONFIG [OUT]}
out=${2:-runs/$(basename "$config" .yaml)}
# PYTHON, else the environment that `make` made, else what is on the path.
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python3)}

agents=$("$python" -c 'import sys; from pathlib import Path; from dimat.config import load_config; print(load_config(Path(sys.argv[1])).agents)' "$config")

# torchrun kills what has not left this many seconds after a signal: let agents finish their round.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$python" -m torch.distributed.run --standalone --nproc-per-node "$agents" --shutdown-timeout 90 \
    -m dimat agent "$config" --out "$out"
"$python" -m dimat report "$out"
