"""One host: launch/local.sh with stand-ins of the training; the real one is in tests/commands/test_train.py."""

import signal
import subprocess

import pytest

TRAINING = ("--", "--config=configs/digits.py", "--workdir=a run")

# Process 1 does what $SECOND says; process 0 trains for a minute, unless it is told to stop.
STAND_IN = """#!/bin/bash
number=${@: -1}
cd "$(dirname "$0")"
trap 'echo "$number" >>stopped; exit 75' TERM
[[ $SECOND == deaf ]] && trap '' TERM
touch "started.$number"
[[ $SECOND == quick ]] && exit 0
((number)) && [[ $SECOND == [0-9]* ]] && exit "$SECOND"
[[ $SECOND == deaf ]] && ((number)) && exit 3
for ((i = 0; i < 600; i++)); do sleep 0.1; done
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program"
    path.write_text(STAND_IN)
    path.chmod(0o755)
    return str(path)


def test_dry_run_prints_one_command_a_process(launcher):
    out, _ = launcher("local.sh", "--dry-run", "--processes", "2", "--port", "7000", *TRAINING, DIFFUSION_JAX="")
    assert out.splitlines() == [
        "diffusion-jax train --config=configs/digits.py --workdir=a\\ run --coordinator localhost:7000 "
        f"--num-processes 2 --process-id {i}"
        for i in range(2)
    ]


def test_gpus_are_dealt_out(launcher):
    out, _ = launcher("local.sh", "--dry-run", "--processes", "2", "--gpus-per-process", "4", *TRAINING)
    assert [line.split()[1].replace("\\", "") for line in out.splitlines()] == [
        "CUDA_VISIBLE_DEVICES=0,1,2,3",
        "CUDA_VISIBLE_DEVICES=4,5,6,7",
    ]


def test_a_run_that_ends_well(launcher, program):
    launcher("local.sh", "--processes", "2", *TRAINING, DIFFUSION_JAX=program, SECOND="quick")


def test_a_failed_process_ends_the_others(launcher, program, tmp_path):
    _, error = launcher("local.sh", "--processes", "2", *TRAINING, status=2, DIFFUSION_JAX=program, SECOND="2")
    assert "a process ended with status 2: ending the others" in error
    assert (tmp_path / "stopped").read_text() == "0\n"


@pytest.mark.slow
def test_a_process_that_does_not_end_is_killed(launcher, program):
    """Such as one that waits for the failed one in a collective operation."""
    launcher("local.sh", "--processes", "2", *TRAINING, status=3, DIFFUSION_JAX=program, SECOND="deaf")


def test_a_signal_reaches_all_processes(start_launcher, program, tmp_path):
    launcher = start_launcher("local.sh", "--processes", "2", *TRAINING, DIFFUSION_JAX=program, SECOND="trains")
    while not all((tmp_path / f"started.{i}").exists() for i in range(2)):
        with pytest.raises(subprocess.TimeoutExpired):
            launcher.wait(timeout=0.05)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=60) == 75
    assert sorted((tmp_path / "stopped").read_text().split()) == ["0", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (TRAINING, "--processes is missing"),
        (("--processes", "two", *TRAINING), "--processes needs a positive number, not 'two'"),
        (("--processes", "2", "--prot", "7000", *TRAINING), "'--prot' is not an option"),
        (("--processes", "2"), "no training to start"),
    ],
)
def test_mistakes_are_one_line(launcher, arguments, message):
    _, error = launcher("local.sh", *arguments, status=2)
    assert message in error and error.count("\n") == 1
