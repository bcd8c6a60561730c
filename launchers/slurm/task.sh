#!/usr/bin/env bash
# Run one rank of a Slurm step that has one task per GPU; started by train.sbatch.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/../common.sh"

trap '' USR1 # Slurm sends its warning to every process; the training sets its own handler
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${hosts[0]}
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_WORLD_SIZE=$RANKS_PER_NODE
# Where Slurm binds a task to its share of the cores, the rank must not divide them again.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
prepare_environment "${hosts[@]}"
exec python -u -m showo_dist.train "$@"
