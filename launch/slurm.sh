#!/usr/bin/env bash
# Submits a training to SLURM, one process per task.
#
#   launch/slurm.sh [--dry-run] [SBATCH OPTIONS] -- TRAIN ARGUMENTS
#   launch/slurm.sh --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 --time=24:00:00 \
#       -- --config configs/dit.py:XL/2 --workdir /shared/runs/xl2 --config.mesh.fsdp=16
#
# Everything before "--" goes to sbatch, except --dry-run, which prints the sbatch command and the batch script. JAX takes
# one GPU per task, so --ntasks-per-node equals --gpus-per-node (and --gpus-per-task, which hides the others, is left out).
# The folder must be one that all nodes share, or in a bucket; the log is WORKDIR/slurm-JOB.log, of a run in a bucket
# ./slurm-JOB.log.
#
# While a job for the same folder is queued or running, nothing is submitted. A job that is preempted, loses a node or
# comes within five minutes of its time limit saves and goes back into the queue, and then resumes; scancel ends it.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

split_arguments "$@"
need_train_arguments
workdir=$(train_value workdir)
[[ $workdir ]] || fail "--workdir has no value: name the run's folder"
if [[ $workdir == *://* ]]; then
    folder=$workdir logs=.
else
    folder=$(realpath -m "$workdir") logs=$workdir
fi
job="$(dirname "$0")/slurm_job.sh"
# The name of the folder is the name of the job, by which a second one is recognised.
name="diffusion-jax:$(tr '/, ' '___' <<<"$folder")"
command=(
    sbatch --parsable "--job-name=$name" "--output=$logs/slurm-%j.log" ${own[@]+"${own[@]}"} "$job" "${train[@]}"
)

if [[ $dry_run ]]; then
    quoted "${command[@]}"
    echo
    cat "$job"
    exit 0
fi
command -v sbatch >/dev/null || fail "there is no sbatch here: run this on a login node of the cluster"
queued=$(squeue --noheader --format=%i --user="$(id -un)" --name="$name")
if [[ $queued ]]; then
    note "job ${queued//$'\n'/, } already trains $workdir; scancel ends it"
    exit 0
fi
mkdir -p "$logs"
id=$("${command[@]}")
note "submitted job $id; its log: $logs/slurm-$id.log"
