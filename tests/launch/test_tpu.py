"""Cloud TPU: launch/tpu.sh against a stand-in of gcloud that plays preemptions and runs what workers are sent."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

RESOURCE = ("--name", "xl2", "--zone", "us-west4-a", "--type", "v5litepod-8", "--version", "v2-alpha-tpuv5-lite")
TRAINING = ("--", "--config=configs/digits.py", "--workdir=/data/a run")
WORKERS = ("xl2.0", "xl2.1")


class Cloud:
    """The stand-in's folder, and the launcher run beside it."""

    def __init__(self, folder, launcher):
        self.folder, self.launcher = folder, launcher
        (folder / "bin").mkdir()
        (folder / "bin" / "gcloud").write_text(
            f'#!/bin/bash\nexec {sys.executable} -IS {pathlib.Path(__file__).with_name("gcloud_stand_in.py")} "$@"\n'
        )
        (folder / "bin" / "gcloud").chmod(0o755)
        self.environment = {"GCLOUD_STAND_IN": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}

    def play(self, states, *trainings):
        """What the resource's states and the trainings of the two workers will be."""
        (self.folder / "states").write_text("\n".join(states.split()))
        for number, does in enumerate(trainings, 1):
            lines = [f"{worker}:{what}" for worker, what in zip(WORKERS, does, strict=True)]
            (self.folder / f"training.{number}").write_text("\n".join(lines) + "\n")

    def launch(self, *arguments, status=0):
        return self.launcher("tpu.sh", *arguments, status=status, **self.environment)[1]

    def calls(self):
        """The calls without what gcloud only looks at: (noun, verb, …)."""
        lines = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        return [words for line in lines if (words := json.loads(line)[2:])[1] != "describe"]

    def verbs(self):
        verbs = [words[1] for words in self.calls()]
        return [verb for verb in verbs if verb != "ssh"]

    def starts(self, worker):
        path = self.folder / f"{worker}.starts"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def cloud(tmp_path, launcher):
    cloud = Cloud(tmp_path, launcher)
    yield cloud
    for pid in tmp_path.glob("*.home/shm/*/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def test_a_preempted_resource_is_requested_again_and_the_training_started_again(cloud):
    cloud.play(
        "NONE WAITING_FOR_RESOURCES PROVISIONING ACTIVE ACTIVE SUSPENDING SUSPENDED NONE ACTIVE",
        ("hang", "hang"),
        ("0", "0"),
    )
    error = cloud.launch(*RESOURCE, "--poll", "0.1", "--create", "--spot", *TRAINING)
    assert cloud.verbs() == ["create", "scp", "delete", "create", "scp"]
    create = ["queued-resources", "create", "xl2", "--zone=us-west4-a", "--accelerator-type=v5litepod-8"]
    create += ["--runtime-version=v2-alpha-tpuv5-lite", "--node-id=xl2", "--spot"]
    assert cloud.calls()[0] == create
    for worker in WORKERS:
        assert cloud.starts(worker) == ["train --config=configs/digits.py --workdir=/data/a run --coordinator auto"] * 2
    assert "preempted" in error and "the run is finished" in error
    assert "the training ended on a worker" not in error


def test_a_crash_on_one_worker_starts_all_of_them_again(cloud):
    cloud.play("ACTIVE", ("hang", "1"), ("0", "0"))
    error = cloud.launch(*RESOURCE, "--poll", "0.1", *TRAINING)
    assert "create" not in cloud.verbs() and "delete" not in cloud.verbs()
    assert [len(cloud.starts(worker)) for worker in WORKERS] == [2, 2]
    assert "training 1 of xl2.1: 1" in error  # the last lines of its log
    assert "the training ended on a worker ( 1 1 1 running )" in error and "the run is finished" in error


def test_crash_after_crash_gives_up(cloud):
    cloud.play("ACTIVE", *[("hang", "1")] * 3)
    error = cloud.launch(*RESOURCE, "--poll", "0.1", "--restarts", "2", *TRAINING, status=2)
    assert len(cloud.starts("xl2.1")) == 3
    assert error.splitlines()[-1].endswith("3 times in a row: giving up")


def test_a_request_that_fails_is_repeated_a_few_times(cloud):
    cloud.play("NONE FAILED NONE FAILED NONE")
    error = cloud.launch(*RESOURCE, "--poll", "0.1", "--restarts", "1", *TRAINING, status=2)
    assert cloud.verbs() == ["create", "delete", "create"]
    assert "xl2 is FAILED, 2 times in a row: giving up" in error


def test_a_mistake_in_the_training_arguments_ends_it(cloud):
    cloud.play("ACTIVE", ("2", "2"))
    error = cloud.launch(*RESOURCE, "--poll", "0.1", *TRAINING, status=2)
    assert "training 1 of xl2.0: 2" in error and "the training refused its arguments" in error


def test_stopping_the_script_stops_no_training_and_starting_it_again_watches_on(cloud, start_launcher):
    cloud.play("ACTIVE", ("hang", "hang"))
    watching = start_launcher("tpu.sh", *RESOURCE, "--poll", "0.1", *TRAINING, **cloud.environment)
    pids = [cloud.folder / f"{worker}.home" / "shm" / "diffusion_jax.xl2" / "pid" for worker in WORKERS]
    while not all(pid.exists() for pid in pids) or not all(cloud.starts(worker) for worker in WORKERS):
        with pytest.raises(subprocess.TimeoutExpired):
            watching.wait(timeout=0.05)
    watching.kill()
    watching.wait()
    before = cloud.verbs()
    cloud.play("ACTIVE ACTIVE SUSPENDED NONE ACTIVE", ("hang", "hang"), ("0", "0"))
    error = cloud.launch(*RESOURCE, "--poll", "0.1", *TRAINING)
    assert "the training runs on xl2" in error
    assert cloud.verbs()[len(before) :] == ["delete", "create", "scp"]


def test_delete_deletes_what_is_there(cloud):
    cloud.play("NONE ACTIVE")
    cloud.launch(*RESOURCE[:4], "--delete")
    assert cloud.verbs() == []
    cloud.launch(*RESOURCE[:4], "--delete")
    assert cloud.calls() == [["queued-resources", "delete", "xl2", "--zone=us-west4-a", "--force", "--quiet"]]


def test_dry_run_prints_commands_and_runs_none(cloud, launcher):
    out, _ = launcher("tpu.sh", "--dry-run", *RESOURCE, "--slices", "2", *TRAINING, **cloud.environment)
    lines = [line.split() for line in out.splitlines() if line.startswith("gcloud ")]
    assert "--node-count=2" in lines[0] and "--node-prefix=xl2" in lines[0]
    assert [words[5] for words in lines if words[4] == "ssh"] == ["xl2-0", "xl2-1"] * 2
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--zone", "z", *TRAINING), "--name or --zone is missing"),
        (("--name", "a", "--zone", "z", *TRAINING), "--type or --version is missing"),
        ((*RESOURCE, "--slices", "0", *TRAINING), "--slices 0: not a positive number"),
        ((*RESOURCE, "--tpye", "x", *TRAINING), "'--tpye' is not an option"),
        ((*RESOURCE, "--poll"), "--poll has no value"),
        (RESOURCE, "no training to start"),
    ],
)
def test_mistakes_are_one_line(cloud, arguments, message):
    error = cloud.launch(*arguments, status=2)
    assert message in error and error.count("\n") == 1
