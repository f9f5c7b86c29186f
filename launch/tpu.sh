#!/usr/bin/env bash
# Trains on Cloud TPU slices through queued resources, and goes on after preemptions until the run is finished.
#
#   launch/tpu.sh --name NAME --zone ZONE --type TYPE --version VERSION [OPTIONS] -- TRAIN ARGUMENTS
#   launch/tpu.sh --name xl2 --zone us-west4-a --type v5litepod-16 --version v2-alpha-tpuv5-lite --create --spot \
#       -- --config configs/dit.py:XL/2 --workdir gs://my-bucket/runs/xl2 \
#       --config.data.name=cache:gs://my-bucket/caches/imagenet
#   launch/tpu.sh --name NAME --zone ZONE --delete
#
#   --name NAME, --zone ZONE  the queued resource, and its slices NAME or NAME-0, NAME-1, ...
#   --type TYPE               accelerator type, such as v5litepod-16 or v6e-64
#   --version VERSION         software of the TPU VM, such as v2-alpha-tpuv5-lite, v2-alpha-tpuv6e, v2-alpha-tpuv5
#   --slices N                number of slices (default 1)
#   --create OPTION           passed on to "queued-resources create", such as --spot or --reserved; repeat it for more
#   --project PROJECT         the project, if it is not gcloud's own
#   --setup COMMAND           run on every worker before training starts, such as to mount data that is in no bucket
#   --poll SECONDS            between looks at the resource and the workers (default 60)
#   --restarts N              ends after so many crashes in a row without a preemption between them (default 5)
#   --delete                  delete the queued resource and its slices
#   --dry-run                 print the commands of a start without obstacles, and run none
#
# It creates the resource unless it exists, waits for it, copies the commit checked out here to every worker, installs
# it, starts the training there in the background, and watches. Stopping this script stops nothing on the TPU; starting
# it again goes on watching. A preempted resource is deleted and requested again, and the training, started again,
# resumes from its folder, which therefore has to be on storage that all workers share and that outlives them: a bucket
# to which the TPU's service account may write.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

split_arguments "$@"
name='' zone='' type='' version='' slices=1 project='' setup=true poll=60 restarts=5 delete='' create=()
set -- ${own[@]+"${own[@]}"}
while (($#)); do
    case $1 in
    --delete) delete=yes && shift && continue ;;
    --name | --zone | --type | --version | --slices | --project | --setup | --poll | --restarts | --create) ;;
    *) fail "'$1' is not an option; see $0 --help" ;;
    esac
    (($# > 1)) || fail "$1 has no value"
    case $1 in
    --create) create+=("$2") ;;
    *) printf -v "${1#--}" %s "$2" ;;
    esac
    shift 2
done
[[ $name && $zone ]] || fail "--name or --zone is missing: the queued resource and where it is"
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices $slices: not a positive number"
[[ $dry_run ]] || command -v gcloud >/dev/null || fail "there is no gcloud here: install the Google Cloud CLI"

where=("--zone=$zone" ${project:+"--project=$project"})
tpus=(gcloud compute tpus)
nodes=("$name")
if ((slices > 1)); then
    nodes=()
    for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
fi
# In memory, so that a rebooted worker has forgotten the training that died with it.
folder=/dev/shm/diffusion_jax.$name

request() {
    local node=("--node-id=$name")
    ((slices > 1)) && node=("--node-count=$slices" "--node-prefix=$name")
    run "${tpus[@]}" queued-resources create "$name" "${where[@]}" "--accelerator-type=$type" \
        "--runtime-version=$version" "${node[@]}" ${create[@]+"${create[@]}"}
}

release() {
    run "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet
}

# The state of the resource, such as ACTIVE; NONE if there is none.
resource_state() {
    local answer
    if answer=$("${tpus[@]}" queued-resources describe "$name" "${where[@]}" "--format=value(state.state)" 2>&1); then
        echo "${answer##*$'\n'}"
    elif [[ $answer == *NOT_FOUND* || $answer == *"was not found"* ]]; then
        echo NONE
    else
        note "$answer"
        echo UNKNOWN
    fi
}

# Runs a command on all workers of all slices.
on_workers() {
    local node
    for node in "${nodes[@]}"; do
        run "${tpus[@]}" tpu-vm ssh "$node" "${where[@]}" --worker=all "--command=$1" || return
    done
}

install() {
    local archive node
    if ! git -C "$(dirname "$0")" diff --quiet HEAD; then
        note "changes that are not committed are not copied to the TPU"
    fi
    archive=$(mktemp --suffix=.tar.gz)
    run git -C "$(dirname "$0")/.." archive --format=tar.gz "--output=$archive" HEAD . ':!tests' || return
    for node in "${nodes[@]}"; do
        run "${tpus[@]}" tpu-vm scp "$archive" "$node:diffusion_jax.tar.gz" "${where[@]}" --worker=all || return
    done
    rm "$archive"
    # The TPU VMs' own Python is older than 3.11.
    on_workers "set -e; mkdir -p diffusion_jax; tar -xzf diffusion_jax.tar.gz -C diffusion_jax; cd diffusion_jax
python3 -m pip install --quiet --user uv; python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu,gcs]'"
}

# Starts the training on every worker, in the background, unless it is running or over there.
start() {
    local training
    training="cd ~/diffusion_jax; .venv/bin/diffusion-jax train $(quoted "${train[@]}") --coordinator auto"
    on_workers "set -e; $setup
mkdir -p $folder; cd $folder
[ -e status ] && exit; kill -0 \"\$(cat pid 2>/dev/null)\" 2>/dev/null && exit
setsid bash -c $(quoted "($training) >$folder/log 2>&1; echo \$? >$folder/status") >/dev/null 2>&1 </dev/null &
echo \$! >pid"
}

# One line for each worker: running, gone, or the status that its training ended with.
worker_states() {
    on_workers "cd $folder 2>/dev/null || { echo training=gone; exit; }
if [ -e status ]; then echo training=\$(cat status)
elif kill -0 \"\$(cat pid 2>/dev/null)\" 2>/dev/null; then echo training=running; else echo training=gone; fi" |
        sed -n 's/.*training=\([a-z0-9]*\).*/\1/p'
}

# Ends what is left of a training on every worker: the others cannot go on without one that is lost.
clear_workers() {
    on_workers "cd $folder 2>/dev/null || exit 0; kill -KILL -- -\$(cat pid) 2>/dev/null; cd; rm -rf $folder"
}

last_lines() {
    on_workers "tail -n 5 $folder/log 2>/dev/null || true" >&2
}

# Starts the training on workers that do not run it yet.
begin() {
    local states
    if states=$(worker_states) && [[ $states ]] && ! grep -qvx 'running\|0' <<<"$states"; then
        note "the training runs on $name"
    else
        note "$name is ACTIVE: installing and starting"
        install && start
    fi
}

# Looks at the workers, and ends this script when the run has ended.
watch_workers() {
    local states
    if ! states=$(worker_states) || [[ ! $states ]]; then
        note "could not reach all workers; trying again"
    elif ! grep -qvx 0 <<<"$states"; then
        note "the run is finished; delete the TPU with $0 --name $name --zone $zone --delete"
        exit 0
    elif grep -qx 2 <<<"$states"; then
        last_lines
        clear_workers
        fail "the training refused its arguments (above): mend them and start again"
    elif grep -qvx 'running\|0' <<<"$states"; then
        last_lines
        crashed "the training ended on a worker ($(sort <<<"$states" | uniq -c | tr -s ' \n' ' '))"
        clear_workers
        started=
    fi
}

# Counts failures in a row; a preemption between them starts the count again.
crashed() {
    crashes=$((crashes + 1))
    ((crashes <= restarts)) || fail "$1, $crashes times in a row: giving up"
    note "$1: starting again"
}

if [[ $delete ]]; then
    [[ $dry_run || $(resource_state) != NONE ]] && release
    exit 0
fi
need_train_arguments
[[ $type && $version ]] || fail "--type or --version is missing: the accelerator type and the TPU VM's software"
if [[ $dry_run ]]; then
    request
    install
    start
    exit 0
fi

crashes=0
started=
while true; do
    state=$(resource_state)
    case $state in
    NONE)
        note "requesting $slices × $type as $name"
        request
        ;;
    SUSPENDED | FAILED)
        if [[ $state == FAILED ]]; then
            crashed "$name is FAILED"
        else
            note "$name is SUSPENDED, that is, preempted: requesting it again"
            crashes=0
        fi
        started=
        release
        continue
        ;;
    ACTIVE)
        if [[ $started ]]; then
            watch_workers
        elif begin; then
            started=yes
        else
            note "could not reach all workers; trying again"
        fi
        ;;
    *) note "$name is $state: waiting" ;;
    esac
    sleep "$poll"
done
