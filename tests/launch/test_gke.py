"""GKE: the JobSet manifest that launch/gke.sh writes."""

import pytest
import yaml

TPU = ("--name", "xl2", "--image", "registry/image:1", "--accelerator", "tpu-v5-lite-podslice", "--topology", "4x4")
TPU += ("--hosts", "4", "--chips", "4")
GPU = ("--name", "xl2", "--image", "registry/image:1", "--accelerator", "nvidia-h100-80gb", "--hosts", "2")
GPU += ("--chips", "8")
TRAINING = ("--", "--config=configs/digits.py", '--config.data.name=folder:/a "b" \\ $(c)', "--workdir=/data/run")


@pytest.fixture
def manifest(launcher):
    def write(*arguments):
        jobset = yaml.safe_load(launcher("gke.sh", "--dry-run", *arguments, *TRAINING, DIFFUSION_JAX="")[0])
        assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
        return jobset, jobset["spec"]["replicatedJobs"][0]["template"]["spec"]

    return write


def test_two_slices_of_a_spot_tpu(manifest):
    jobset, job = manifest(*TPU, "--slices", "2", "--spot", "--volume", "claim:/data")
    assert jobset["metadata"]["name"] == "xl2" and "annotations" in jobset["metadata"]
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 2
    assert (job["parallelism"], job["completions"], job["completionMode"], job["backoffLimit"]) == (4, 4, "Indexed", 0)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["cloud.google.com/gke-spot"]
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    # Kubernetes fills in $(...) and reads $$(...) as $(...).
    training = [word.replace("$(", "$$(") for word in TRAINING[1:]]
    assert container["command"] == ["diffusion-jax", "train", *training, "--coordinator", "auto"]
    assert {"name": "runs", "mountPath": "/data"} in container["volumeMounts"]
    assert {"name": "runs", "persistentVolumeClaim": {"claimName": "claim"}} in pod["volumes"]


def test_gpus_meet_at_the_first_pod(manifest):
    jobset, job = manifest(*GPU)
    pod = job["template"]["spec"]
    assert "annotations" not in jobset["metadata"] and "tolerations" not in pod
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert pod["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    joining = pod["containers"][0]["command"][-6:]
    assert joining[:2] == ["--coordinator", "xl2-workers-0-0.xl2:8476"]
    assert joining[2:] == ["--num-processes", "2", "--process-id", "$(JOB_COMPLETION_INDEX)"]


def test_a_stopped_pod_restarts_all_and_a_mistake_ends_all(manifest):
    jobset, job = manifest(*TPU, "--restarts", "7")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert jobset["spec"]["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]


def test_without_dry_run_kubectl_gets_the_manifest(launcher, manifest, tmp_path):
    (tmp_path / "kubectl").write_text(f'#!/bin/bash\necho "$*" >"{tmp_path}/words"; cat >"{tmp_path}/manifest"\n')
    (tmp_path / "kubectl").chmod(0o755)
    launcher("gke.sh", *TPU, *TRAINING, PATH=f"{tmp_path}:/usr/bin:/bin", DIFFUSION_JAX="")
    assert (tmp_path / "words").read_text() == "apply -f -\n"
    assert yaml.safe_load((tmp_path / "manifest").read_text()) == manifest(*TPU)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (TPU[2:], "--name is missing"),
        ((*TPU, "--name", "XL"), "--name XL: Kubernetes wants lower-case"),
        ((*TPU[:6], *TPU[8:]), "--topology is missing"),
        ((*GPU, "--slices", "2"), "--slices 2: GPUs have none"),
        ((*TPU, "--hosts", "four"), "--hosts four: not a positive number"),
        ((*TPU, "--volume", "claim"), "--volume claim: write CLAIM:DIR"),
        ((*TPU, "--chip", "4"), "'--chip' is not an option"),
    ],
)
def test_mistakes_are_one_line(launcher, arguments, message):
    _, error = launcher("gke.sh", "--dry-run", *arguments, *TRAINING, status=2)
    assert message in error and error.count("\n") == 1
