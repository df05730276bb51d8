#!/usr/bin/env bash
# One run on hosts that are reached by ssh: bare_hosts.sh HOSTS RECIPE OUTPUT [key=value ...]
# HOSTS is a file with one host per line, the first of which is the head. RECIPE, OUTPUT and R1_VENV are on a file system
# that all hosts mount at the same path. Stops what it has started, and only that. Run again, it goes on.
set -euo pipefail

hosts=$1 recipe=$2 output=$3
shift 3
venv=${R1_VENV:?set R1_VENV to the virtual environment, on the shared file system}
port=${R1_PORT:-6379}
temp=/tmp/r1-$(id -u)-$port
mapfile -t names <"$hosts"
head=${names[0]}
head_ip=$(ssh "$head" hostname -I | awk '{print $1}')

on() { # on HOST COMMAND...: in the foreground there; a terminal (-tt), so that it ends with the connection
  local host=$1
  shift
  ssh -tt "$host" "export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0; $*" </dev/null
}

started=()
stop() {
  for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
}
trap stop EXIT

on "$head" "$venv/bin/ray" start --head --block --node-ip-address="$head_ip" --port="$port" --temp-dir="$temp" \
  >"ray-$head.log" &
started+=($!)
until ssh "$head" "$venv/bin/ray" health-check --address "$head_ip:$port" 2>/dev/null; do sleep 2; done
for host in "${names[@]:1}"; do
  on "$host" "$venv/bin/ray" start --block --address="$head_ip:$port" >"ray-$host.log" &
  started+=($!)
done
until (($(ssh "$head" "$venv/bin/ray" status --address "$head_ip:$port" 2>/dev/null | grep -c ' node_') >= ${#names[@]})); do
  sleep 5
done

ssh "$head" "RAY_ADDRESS=$head_ip:$port $venv/bin/r1 run $(printf '%q ' "$recipe" "output=$output" "$@")"
