#!/usr/bin/env bash
# Trains with several processes on this host, joined by a port of it.
#
#   launch/local.sh --processes N [--port PORT] [--gpus-per-process K] [--dry-run] -- TRAIN ARGUMENTS
#   launch/local.sh --processes 2 -- --config configs/digits.py:smoke --workdir runs/two
#
#   --processes N         number of processes
#   --port PORT           where they meet; a free one by default
#   --gpus-per-process K  process i sees GPUs i·K … i·K + K − 1; without it, each sees all of them
#   --dry-run             print the commands and start nothing
#
# TERM and INT are passed on as TERM: the run saves and ends with status 75. If a process fails, the others are ended
# too. The same command resumes the run. The status is that of the first process to fail, or 0.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

split_arguments "$@"
processes='' port='' gpus=''
set -- ${own[@]+"${own[@]}"}
while (($#)); do
    case $1 in
    --processes | --port | --gpus-per-process)
        [[ ${2-} =~ ^[1-9][0-9]*$ ]] || fail "$1 needs a positive number, not '${2-}'"
        case $1 in
        --processes) processes=$2 ;;
        --port) port=$2 ;;
        --gpus-per-process) gpus=$2 ;;
        esac
        shift 2
        ;;
    *) fail "'$1' is not an option; see $0 --help" ;;
    esac
done
[[ $processes ]] || fail "--processes is missing: the number of processes to start"
need_train_arguments

port_is_free() {
    ! (: <>"/dev/tcp/localhost/$1") 2>/dev/null
}

while [[ ! $port ]]; do
    port=$((20000 + RANDOM % 10000))
    port_is_free "$port" || port=
done

started=()
stop() {
    kill -TERM "${started[@]}" 2>/dev/null || true
}
trap stop TERM INT

for ((i = 0; i < processes; i++)); do
    command=(
        "${program[@]}" train "${train[@]}"
        --coordinator "localhost:$port" --num-processes "$processes" --process-id "$i"
    )
    if [[ $gpus ]]; then
        visible=$(seq -s, $((i * gpus)) $((i * gpus + gpus - 1)))
        command=(env "CUDA_VISIBLE_DEVICES=$visible" "${command[@]}")
    fi
    if [[ $dry_run ]]; then
        quoted "${command[@]}"
    else
        "${command[@]}" &
        started+=("$!")
    fi
done

status=0
deadline=
left=(${started[@]+"${started[@]}"})
while ((${#left[@]})); do
    sleep 0.2
    running=()
    for process in "${left[@]}"; do
        if kill -0 "$process" 2>/dev/null; then
            running+=("$process")
            continue
        fi
        one=0
        wait "$process" || one=$?
        ((status)) || status=$one
        # The others would wait for it for minutes; but after status 75, "saved and stopped", they end by themselves.
        if ((one && one != 75)) && [[ ! $deadline ]]; then
            note "a process ended with status $one: ending the others"
            stop
            deadline=$((SECONDS + 10))
        fi
    done
    left=(${running[@]+"${running[@]}"})
    if [[ $deadline ]] && ((SECONDS > deadline && ${#left[@]})); then
        kill -KILL "${left[@]}" 2>/dev/null || true
    fi
done
exit "$status"
