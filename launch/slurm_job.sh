#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
# The batch script that launch/slurm.sh submits: one training process per task, joined through SLURM's own variables.
# Its arguments are those of diffusion-jax train.

set -uo pipefail
read -r -a program <<<"${DIFFUSION_JAX:-diffusion-jax}"
# Since 22.05 srun no longer takes this from the job.
[[ ${SLURM_CPUS_PER_TASK-} ]] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# The time limit is near: the steps save and end with status 75.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' USR1
# Only scancel and SLURM's own requeueing reach this shell with TERM; neither wants another requeue.
cancelled=
trap 'cancelled=yes' TERM

srun --kill-on-bad-exit=1 "${program[@]}" train "$@" --coordinator auto &
step=$!
status=0
while kill -0 "$step" 2>/dev/null; do
    status=0
    wait "$step" || status=$?
done

# 143: TERM came before the training was there to catch it.
if ((status == 75 || status == 143)) && [[ ! $cancelled ]]; then
    echo "job $SLURM_JOB_ID was stopped before its end: back into the queue"
    scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$status"
