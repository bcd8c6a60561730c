#!/usr/bin/env bash
# Run one rank of a Slurm step that has one task per GPU; started by train.sbatch.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/../common.sh"

trap '' USR1 # Slurm sends its warning to every process; the training sets its own handler
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_WORLD_SIZE=$RANKS_PER_NODE
prepare_environment "$MASTER_ADDR"
exec python -u -m showo_dist.train "$@"
