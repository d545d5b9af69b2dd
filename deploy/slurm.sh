#!/bin/bash
# A run on a SLURM allocation: starts Ray on its nodes, and goes on in a new allocation where the time limit ends this one.
#
#   sbatch deploy/slurm.sh my.yaml [options of semrsm run]
#
# Before: fit the four lines of resources below, and put whatever makes `semrsm` available on the nodes (`module load`,
# `source .../bin/activate`) in place of the comment further down. The run directory must lie on a file system that all
# nodes share, as must the home directory, where Ray keeps the token without which nobody can join or submit.
#
#SBATCH --job-name=semrsm
#SBATCH --nodes=4
#SBATCH --cpus-per-task=32
#SBATCH --mem-per-cpu=3G
#SBATCH --time=12:00:00
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=semrsm-%j.log
set -euo pipefail

# module load python/3.12
# source "$HOME/semrsm-env/bin/activate"

if [ $# -eq 0 ] || [ ! -r "$1" ]; then
    echo "usage: sbatch deploy/slurm.sh CONFIG [options of semrsm run]; ${1:-no configuration} cannot be read" >&2
    exit 2
fi

cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
export SRUN_CPUS_PER_TASK=$cpus # since SLURM 22.05, steps no longer inherit it
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
mkdir -p "$HOME/.ray"
[ -e "$HOME/.ray/auth_token" ] || (umask 077 && ray get-auth-token --generate > /dev/null)

# SLURM sends USR1 three minutes before the time limit, to this script alone.
driver=
limit=
at_limit() {
    limit=1
    if [ -n "$driver" ]; then kill -TERM "$driver" || true; else scontrol requeue "$SLURM_JOB_ID"; fi
}
trap at_limit USR1
trap 'if [ -n "$driver" ]; then kill -TERM "$driver" || true; else exit 143; fi' TERM

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap hostname --ip-address | awk '{print $1}')
if [ "$SLURM_JOB_NUM_NODES" -eq 1 ]; then address=127.0.0.1; fi # nobody else needs to reach it
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node do not meet

# Ray counts the processors of the whole node, of which the allocation may be a part. The driver keeps one.
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
    ray start --head --block --node-ip-address="$address" --port="$port" --include-dashboard=false \
    --num-cpus=$((cpus > 1 ? cpus - 1 : 1)) --temp-dir="/tmp/ray-$SLURM_JOB_ID" &
ray=$!
workers=
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    # Each waits until the head is there, and leaves with it.
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" --overlap \
        bash -c "until ray start --address=$address:$port --block --num-cpus=$cpus; do sleep 5; done" &
    workers=$!
fi

until ray status --address="$address:$port" > /dev/null 2>&1; do
    kill -0 "$ray" || { echo "Ray did not start on $head; its messages are above" >&2; exit 1; }
    sleep 2
done

semrsm run "$@" --engine ray --address "$address:$port" &
driver=$!
status=0
wait "$driver" || status=$?
while kill -0 "$driver" 2> /dev/null; do # a trap ended the wait before the driver ended
    status=0
    wait "$driver" || status=$?
done

[ -z "$workers" ] || kill "$workers" 2> /dev/null || true
kill "$ray" 2> /dev/null || true
wait "$ray" ${workers:+"$workers"} 2> /dev/null || true

if [ -n "$limit" ] && [ "$status" -ne 0 ]; then
    echo "time limit: the finished tiles are kept; the same job goes on when it is scheduled again"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # SLURM ends the script when it takes the job back
fi
exit "$status"
