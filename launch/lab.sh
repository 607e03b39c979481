#!/usr/bin/env bash
# Hosts that are network namespaces of this machine, with lines between them as slow and lossy as you like.
#
#   launch/lab.sh run CONFIG OUT [MORE dimat-agent OPTIONS]    build the hosts, run one job across them, take all away
#   launch/lab.sh cut | heal                                   meanwhile, from another shell: cut all lines, mend them
#   launch/lab.sh up                                           only build; then: launch/lab.sh exec HOST COMMAND...
#   launch/lab.sh down                                         end what runs in the hosts, take them away
#   launch/lab.sh check                                        say what this machine can do
#
# Set by variables:
#   LAB=dimat          name of the lab; two labs side by side need two names
#   HOSTS=2            hosts; host H has the address 10.77.0.(H+1)
#   AGENTS_PER_HOST=2  HOSTS times AGENTS_PER_HOST must be the number of agents in the config
#   RATE=              limit of each host's line, such as 100mbit (tc tbf); empty: none
#   DELAY_MS=0         how long a packet is on its way, in one direction
#   LOSS_PERCENT=0     packets lost, in each direction
#
# Host H writes its run folder to OUT/host-H: no disk is shared. Host 0 has the coordinator, so the report is made from
# OUT/host-0. Delay and loss come from `tc netem`; where the kernel does not have it, from launch/lab_switch.py, which
# takes the place of the bridge. Needs root. Nothing of this machine's own network is touched.
set -euo pipefail
lab=${LAB:-dimat} hosts=${HOSTS:-2} agents=${AGENTS_PER_HOST:-2}
rate=${RATE:-} delay=${DELAY_MS:-0} loss=${LOSS_PERCENT:-0}
here=$(cd "$(dirname "$0")/.." && pwd)
# PYTHON, else the environment that `make` made, else what is on the path.
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python3)}
state=${TMPDIR:-/tmp}/dimat-lab-$lab
switch=$lab-switch
port=29400

address() { echo "10.77.0.$(($1 + 1))"; }
inside() { ip netns exec "$1" "${@:2}"; }

has_namespaces() {
    command -v ip >/dev/null && command -v tc >/dev/null || return 1
    ip netns add "$lab-probe" 2>/dev/null || return 1
    local code=0
    ip -n "$lab-probe" link add probe0 type veth peer name probe1 2>/dev/null || code=1
    ip netns del "$lab-probe"
    return "$code"
}

# Asked of the kernel itself, on a device that is thrown away.
has_qdisc() {
    local code=0
    ip netns add "$lab-probe"
    ip -n "$lab-probe" link add probe0 type veth peer name probe1
    tc -n "$lab-probe" qdisc add dev probe0 root "$@" 2>/dev/null || code=1
    ip netns del "$lab-probe"
    return "$code"
}

check() {
    has_namespaces || {
        echo "network namespaces: no (needs root, and \`ip\` and \`tc\` from iproute2)"
        return 1
    }
    echo "network namespaces: yes"
    if has_qdisc tbf rate 1mbit burst 32kb latency 50ms; then echo "bandwidth limits: tc tbf"; else echo "bandwidth limits: no"; fi
    if has_qdisc netem delay 1ms; then
        echo "delay and loss: tc netem"
    elif [ -c /dev/net/tun ]; then
        echo "delay and loss: launch/lab_switch.py"
    else
        echo "delay and loss: no (the kernel has neither netem nor /dev/net/tun)"
        return 1
    fi
}

up() {
    has_namespaces || { check >&2; exit 2; }
    [ ! -e "$state" ] || { echo "the lab $lab is there already; launch/lab.sh down takes it away" >&2; exit 2; }
    mkdir -p "$state"
    ip netns add "$switch"
    local host shape=none
    if [ "$delay" != 0 ] || [ "$loss" != 0 ]; then
        shape=netem
        has_qdisc netem delay 1ms || shape=switch
    fi
    if [ "$shape" = switch ]; then
        up_switch
    else
        ip -n "$switch" link add bridge type bridge
        ip -n "$switch" link set bridge up
    fi
    for ((host = 0; host < hosts; host++)); do
        ip netns add "$lab-$host"
        ip -n "$lab-$host" link set lo up
        if [ "$shape" = switch ]; then
            ip -n "$switch" link set "port$host" netns "$lab-$host"
            ip -n "$lab-$host" link set "port$host" name eth0
        else
            ip -n "$switch" link add "port$host" type veth peer name eth0 netns "$lab-$host"
            ip -n "$switch" link set "port$host" master bridge up
            # On the switch's side, so that bandwidth (there) and delay (here) do not have to be nested.
            [ "$shape" = none ] || tc -n "$switch" qdisc add dev "port$host" root netem delay "${delay}ms" loss "$loss%" limit 20000
        fi
        [ -z "$rate" ] || tc -n "$lab-$host" qdisc add dev eth0 root tbf rate "$rate" burst 64kb latency 400ms
        ip -n "$lab-$host" address add "$(address "$host")/24" dev eth0
        ip -n "$lab-$host" link set eth0 up
    done
    echo "$hosts hosts of lab $lab: ${rate:-no} limit, $delay ms, $loss % lost ($shape)" >&2
}

up_switch() {
    local ports=() host
    for ((host = 0; host < hosts; host++)); do ports+=("port$host"); done
    : >"$state/switch.log"
    inside "$switch" "$python" "$here/launch/lab_switch.py" --ports "${ports[@]}" --delay-ms "$delay" \
        --loss-percent "$loss" --control "$state/control" >"$state/switch.log" 2>&1 &
    local pid=$!
    until grep -q ready "$state/switch.log"; do
        kill -0 "$pid" 2>/dev/null || { cat "$state/switch.log" >&2; exit 1; }
        sleep 0.05
    done
}

order() {
    "$python" -c 'import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), sys.argv[1])' \
        "$state/control" "$*"
}

# Cut on the switch's side: the hosts' own interfaces stay up, as they do when a line far away is cut.
set_ports() {
    local host
    if [ -S "$state/control" ]; then
        order "$([ "$1" = down ] && echo cut || echo heal)"
    else
        for ((host = 0; host < hosts; host++)); do ip -n "$switch" link set "port$host" nomaster; done
        [ "$1" = down ] || for ((host = 0; host < hosts; host++)); do ip -n "$switch" link set "port$host" master bridge; done
    fi
}

down() {
    local name pid deadline
    local names=()
    for name in $(ip netns list | cut -d' ' -f1); do
        # Only names that `up` gives: the switch and numbered hosts of this lab.
        [[ $name =~ ^"$lab"-([0-9]+|switch)$ ]] && names+=("$name")
    done
    for name in ${names[@]+"${names[@]}"}; do
        for pid in $(ip netns pids "$name"); do kill "$pid" 2>/dev/null || true; done
    done
    for name in ${names[@]+"${names[@]}"}; do
        deadline=$((SECONDS + 10))
        while [ -n "$(ip netns pids "$name")" ]; do
            if [ "$SECONDS" -ge "$deadline" ]; then
                for pid in $(ip netns pids "$name"); do kill -9 "$pid" 2>/dev/null || true; done
            fi
            sleep 0.1
        done
        ip netns del "$name"
    done
    rm -rf "$state"
}

run() {
    local config=${1:?usage: launch/lab.sh run CONFIG OUT} out=${2:?usage: launch/lab.sh run CONFIG OUT} host code=0
    shift 2
    trap down EXIT
    trap 'interrupt' INT TERM
    up
    mkdir -p "$out"
    set -m # every launcher in a process group of its own: Ctrl-C reaches this script alone
    for ((host = 0; host < hosts; host++)); do
        # Twelve missed keep-alives of 5 s: a line that is cut for half a minute is not a dead node.
        OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ip netns exec "$lab-$host" "$python" -m torch.distributed.run \
            --nnodes "$hosts" --nproc-per-node "$agents" --shutdown-timeout 90 --local-addr "$(address "$host")" \
            --rdzv-backend c10d --rdzv-endpoint "$(address 0):$port" --rdzv-id "$lab" \
            --rdzv-conf "keep_alive_max_attempt=12,is_host=$((host == 0))" \
            -m dimat agent "$config" --out "$out/host-$host" --bind "$(address "$host")" --insecure "$@" \
            >"$out/host-$host.log" 2>&1 &
        launchers+=($!)
    done
    set +m
    for host in "${!launchers[@]}"; do
        await "${launchers[$host]}" || { code=$?; echo "host $host ended with exit code $code; its log: $out/host-$host.log" >&2; }
    done
    if [ -S "$state/control" ]; then
        order counts "$out/switch.json"
        until [ -e "$out/switch.json" ]; do sleep 0.05; done
    fi
    "$python" -m dimat report "$out/host-0" || code=$?
    return "$code"
}

launchers=()
interrupt() { kill "${launchers[@]}" 2>/dev/null || true; }

# A trapped signal ends `wait` early; wait on until the process itself has ended.
await() {
    local code=0
    while true; do
        if wait "$1"; then code=0; else code=$?; fi
        kill -0 "$1" 2>/dev/null || return "$code"
    done
}

case ${1:-} in
    run) run "${@:2}" ;;
    up) trap 'code=$?; [ "$code" = 0 ] || [ "$code" = 2 ] || down' EXIT; up ;;
    down) down ;;
    cut) set_ports down ;;
    heal) set_ports up ;;
    exec) inside "$lab-${2:?usage: launch/lab.sh exec HOST COMMAND...}" "${@:3}" ;;
    check) check ;;
    *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
