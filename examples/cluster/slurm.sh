#!/usr/bin/env bash
# One run on a Slurm allocation: sbatch --nodes=64 slurm.sh RECIPE OUTPUT [key=value ...]
# RECIPE, OUTPUT and the virtual environment are on a file system that all nodes mount. Submitted again, it goes on.
#SBATCH --job-name=r1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=128
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=7-00:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

recipe=$1 output=$2
shift 2
. "${R1_VENV:?set R1_VENV to the virtual environment, on the shared file system}/bin/activate"

# The interface between the nodes; NCCL and gloo guess wrong where there are several.
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-ib0} GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-ib0}
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # steps do not inherit it, and would have one core
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 # processes that share GPUs are shown them all

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
head_ip=$(srun --overlap --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a login node's network, never a port
temp=/tmp/r1-$SLURM_JOB_ID             # local and short: Ray keeps sockets there, whose paths may have 107 characters

# --block keeps the processes in the step, so Slurm ends them with the job.
srun --overlap --nodes=1 --ntasks=1 -w "$head" \
  ray start --head --block --node-ip-address="$head_ip" --port="$port" --temp-dir="$temp" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus=8 --include-dashboard=false &
until srun --overlap --nodes=1 --ntasks=1 -w "$head" ray health-check --address "$head_ip:$port" 2>/dev/null; do
  sleep 2
done
if ((SLURM_JOB_NUM_NODES > 1)); then
  srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
    ray start --block --address="$head_ip:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus=8 &
fi
until (($(RAY_ADDRESS="$head_ip:$port" python -c 'import ray; ray.init(log_to_driver=False); print(len(ray.nodes()))' \
  2>/dev/null | tail -n 1) >= SLURM_JOB_NUM_NODES)); do
  sleep 5
done

# Slurm's TERM reaches this script five minutes before the end; the run stops, and the next submission resumes it.
srun --overlap --nodes=1 --ntasks=1 -w "$head" env RAY_ADDRESS="$head_ip:$port" r1 run "$recipe" output="$output" "$@" &
run=$!
trap 'kill -TERM "$run"' TERM
wait "$run" || true # ends at the signal too, before the run has
wait "$run"
