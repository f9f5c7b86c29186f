# shellcheck shell=bash
# What the launchers share; they source it. Not a program.

# shellcheck disable=SC2034 # used by the scripts that source this
# The training command; DIFFUSION_JAX="python -m diffusion_jax" starts it from a clone that is not installed.
read -r -a program <<<"${DIFFUSION_JAX:-diffusion-jax}"

# Prints the comment at the head of the script that was started.
usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

# One line to stderr: the thing, the place and the remedy.
fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

note() {
    echo "$(basename "$0"): $*" >&2
}

# Splits the arguments at the first "--" into the arrays `own` and `train`, and takes --help and --dry-run out of `own`.
split_arguments() {
    own=() train=() dry_run=
    while (($#)); do
        case $1 in
        --)
            shift
            train=("$@")
            break
            ;;
        --help | -h)
            usage
            exit 0
            ;;
        --dry-run) dry_run=yes ;;
        *) own+=("$1") ;;
        esac
        shift
    done
}

need_train_arguments() {
    local word
    for word in "${train[@]}"; do
        [[ $word == --workdir || $word == --workdir=* ]] && return
    done
    fail "no training to start: end the line with -- --config FILE --workdir FOLDER"
}

# Prints the value of one of the training arguments, written --name VALUE or --name=VALUE; nothing if it is absent.
train_value() {
    local i
    for i in "${!train[@]}"; do
        case ${train[i]} in
        "--$1") echo "${train[i + 1]-}" ;;
        "--$1="*) echo "${train[i]#*=}" ;;
        esac
    done
}

# Prints words as one line that a shell reads back as the same words.
quoted() {
    local line
    printf -v line '%q ' "$@"
    echo "${line% }"
}

# Runs a command, or prints it under --dry-run.
run() {
    if [[ $dry_run ]]; then
        quoted "$@"
    else
        "$@"
    fi
}
