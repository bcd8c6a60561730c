#!/usr/bin/env bash
# launchers/torchrun.sh [options of torchrun] config=FILE key=value …
#
# Starts this host's ranks; run the same command on every host. The hosts are those of the Slurm allocation
# when inside one, else those of launchers/hosts (or $HOSTFILE). docs/launchers/torchrun.md.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/common.sh"

trap '' USR1 # Slurm sends its warning to every process; the ranks set their own handler
split_arguments "$@"
for word in "${launcher_arguments[@]}"; do # torchrun would undo a stop, and go back to a checkpoint that is named
    [[ $word != --max* ]] || die "$word: torchrun restarts a run whatever its exit code: use launchers/supervise"
done
if [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    place=$SLURM_NODEID
    slots=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
else
    read_hosts "${HOSTFILE:-$root/launchers/hosts}"
    place=$(own_place "${hosts[@]}")
    slots=${slots_of[place]}
fi
prepare_run
prepare_environment "${hosts[@]}"

# Local rank 0 also writes to the console; the logs of all ranks are kept by host.
exec torchrun --nnodes "${#hosts[@]}" --node-rank "$place" --nproc-per-node "$slots" \
    --master-addr "${hosts[0]}" --master-port "${MASTER_PORT:-29500}" \
    --log-dir "$logs/$(hostname)" --redirects 3 --tee 0:3 --max-restarts 0 \
    "${launcher_arguments[@]}" -m showo_dist.train "${training_arguments[@]}"
