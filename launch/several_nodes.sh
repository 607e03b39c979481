#!/usr/bin/env bash
# The agents of one run spread over several machines; type this on each of them.
#
#   launch/several_nodes.sh CONFIG NODES AGENTS_PER_NODE RENDEZVOUS_HOST:PORT [OUT] [MORE dimat-agent OPTIONS]
#
# NODES times AGENTS_PER_NODE must be the number of agents in the config. Weights travel over gRPC between all machines,
# so each must listen where the others can dial; beyond loopback that needs --bind and certificates (docs/security.md):
#
#   launch/several_nodes.sh run.yaml 2 4 10.0.0.1:29400 runs/shared --bind 0.0.0.0 --advertise 10.0.0.1 --certs certs
set -euo pipefail
usage='usage: launch/several_nodes.sh CONFIG NODES AGENTS_PER_NODE RENDEZVOUS_HOST:PORT [OUT] [OPTIONS]'
config=${1:?$usage} nodes=${2:?$usage} agents=${3:?$usage} endpoint=${4:?$usage} out=${5:-}
shift $(($# < 5 ? $# : 5))
# PYTHON, else the environment that `make` made, else what is on the path.
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python3)}

# Twelve missed keep-alives of 5 s: a line that is cut for half a minute is not a dead node.
exec "$python" -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$agents" --shutdown-timeout 90 \
    --rdzv-backend c10d --rdzv-endpoint "$endpoint" --rdzv-id "${RDZV_ID:-dimat}" --rdzv-conf keep_alive_max_attempt=12 \
    -m dimat agent "$config" ${out:+--out "$out"} "$@"
