#!/usr/bin/env bash
# Trains on a GKE cluster as a JobSet (v0.6 or newer): one pod per host, restarted together when one is lost.
#
#   launch/gke.sh --name NAME --image IMAGE --accelerator KIND --hosts N --chips N [OPTIONS] -- TRAIN ARGUMENTS
#   launch/gke.sh --name xl2 --image REGISTRY/diffusion_jax:1 --accelerator tpu-v5-lite-podslice --topology 4x4 \
#       --hosts 4 --chips 4 --spot \
#       -- --config configs/dit.py:XL/2 --workdir gs://my-bucket/runs/xl2
#
#   --name NAME         name of the JobSet
#   --image IMAGE       container image with this library installed, the clone being its working directory
#   --accelerator KIND  label of the node pool: tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice, or a GPU such as
#                       nvidia-h100-80gb
#   --topology AxB      of a TPU slice
#   --hosts N           hosts, of a TPU those of a slice
#   --chips N           TPU chips or GPUs per host
#   --slices N          TPU slices (default 1)
#   --volume CLAIM:DIR  a persistent volume claim, ReadWriteMany, that the pods see at DIR, for a run that is in no bucket
#   --spot              use spot nodes
#   --restarts N        restarts after crashes and preemptions, altogether (default 1000)
#   --dry-run           print the manifest instead of handing it to kubectl
#
# The same line again changes nothing while the JobSet exists. A preempted pod saves and ends with status 75, and the
# JobSet starts all of them again; a mistake in the arguments, status 2, ends it. kubectl delete jobset NAME removes it.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

split_arguments "$@"
name='' image='' accelerator='' topology='' hosts='' chips='' slices=1 volume='' spot='' restarts=1000
set -- ${own[@]+"${own[@]}"}
while (($#)); do
    case $1 in
    --spot) spot=yes && shift && continue ;;
    --name | --image | --accelerator | --topology | --hosts | --chips | --slices | --volume | --restarts) ;;
    *) fail "'$1' is not an option; see $0 --help" ;;
    esac
    (($# > 1)) || fail "$1 has no value"
    printf -v "${1#--}" %s "$2"
    shift 2
done
for option in name image accelerator hosts chips; do
    [[ ${!option} ]] || fail "--$option is missing; see $0 --help"
done
for option in hosts chips slices restarts; do
    [[ ${!option} =~ ^[1-9][0-9]*$ ]] || fail "--$option ${!option}: not a positive number"
done
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name $name: Kubernetes wants lower-case letters, digits and dashes"
[[ ! $volume || $volume == *:/* ]] || fail "--volume $volume: write CLAIM:DIR, such as runs:/data"
need_train_arguments

if [[ $accelerator == tpu-* ]]; then
    [[ $topology ]] || fail "--topology is missing: the shape of a slice of $accelerator, such as 4x4"
    resource=google.com/tpu
    selector="cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology"
    join=(--coordinator auto)
else
    ((slices == 1)) || fail "--slices $slices: GPUs have none; use --hosts"
    resource=nvidia.com/gpu
    selector="cloud.google.com/gke-accelerator: $accelerator"
    # Said outright, so that the pods need no right to ask Kubernetes; it fills in $(...).
    join=(--coordinator "$name-workers-0-0.$name:8476" --num-processes "$hosts" --process-id "\$(JOB_COMPLETION_INDEX)")
fi
[[ $spot ]] && selector+="
                cloud.google.com/gke-spot: \"true\""

# A string in YAML's double quotes, which are JSON's.
json() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

manifest() {
    cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
YAML
    if [[ $accelerator == tpu-* ]]; then
        cat <<YAML
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
YAML
    fi
    cat <<YAML
spec:
  network:
    enableDNSHostnames: true
  failurePolicy:
    maxRestarts: $restarts
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: workers
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [2]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 300
              nodeSelector:
                $selector
YAML
    if [[ $spot ]]; then
        cat <<YAML
              tolerations:
                - key: cloud.google.com/gke-spot
                  operator: Equal
                  value: "true"
                  effect: NoSchedule
YAML
    fi
    cat <<YAML
              containers:
                - name: train
                  image: $(json "$image")
                  command:
YAML
    local word
    for word in "${program[@]}" train "${train[@]}"; do
        # Kubernetes reads \$\$( as \$(.
        echo "                    - $(json "${word//\$(/\$\$(}")"
    done
    for word in "${join[@]}"; do
        echo "                    - $(json "$word")"
    done
    cat <<YAML
                  resources:
                    limits:
                      $resource: $chips
                  volumeMounts:
                    - name: shared-memory
                      mountPath: /dev/shm
YAML
    if [[ $volume ]]; then
        cat <<YAML
                    - name: runs
                      mountPath: $(json "${volume#*:}")
YAML
    fi
    cat <<YAML
              volumes:
                - name: shared-memory
                  emptyDir:
                    medium: Memory
YAML
    if [[ $volume ]]; then
        cat <<YAML
                - name: runs
                  persistentVolumeClaim:
                    claimName: ${volume%%:*}
YAML
    fi
}

if [[ $dry_run ]]; then
    manifest
    exit 0
fi
command -v kubectl >/dev/null || fail "there is no kubectl here: install it and get the cluster's credentials"
manifest | kubectl apply -f -
