"""SLURM: a job of two processes on a cluster of one node, requeued, resumed and cancelled."""

import json
import re

import pytest

STEPS = 8
TRAINING = (
    "--config=configs/digits.py:smoke",
    "--config.train.sample_every=None",
    "--config.train.log_every=1",
    "--config.train.save_every=1000000",
)


def steps(workdir):
    """The steps in a run's log."""
    log = workdir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.exists() else []


def submitted(error):
    return re.search(r"submitted job (\d+)", error)[1]


@pytest.mark.slow
def test_two_tasks_train_as_two_processes_and_resume_when_requeued(slurm, tmp_path):
    arguments = ("--ntasks=2", "--", *TRAINING, f"--config.train.steps={STEPS}", f"--workdir={tmp_path / 'run'}")
    _, error = slurm.submit(*arguments)
    job, run = submitted(error), tmp_path / "run"
    slurm.wait_for(lambda: len(steps(run)) > 2, 240, "third step")
    slurm("scontrol", "requeue", job)
    slurm.start_requeued(job)
    slurm.wait_for(lambda: slurm.state(job) == "COMPLETED", 240, "end of the job")

    log = (run / f"slurm-{job}.log").read_text()
    assert log.count("mesh {'data': 2, 'fsdp': 1, 'tensor': 1}") == 2
    saved, resumed = re.search(r"SIGTERM: saved step (\d+)", log), re.search(r"resuming at step (\d+)", log)
    assert saved[1] == resumed[1]
    assert steps(run) == list(range(1, STEPS + 1))


STAND_IN = """#!/usr/bin/env bash
# Trains for a minute at its first start, saves on TERM; is finished at its second.
cd "$(dirname "$0")"
echo start >>starts
(($(wc -l <starts) == 2)) && exit 0
trap 'echo "saved $(wc -l <starts)" >>events; exit 75' TERM
for ((i = 0; i < 600; i++)); do sleep 0.1; done
"""


@pytest.fixture
def stand_in(slurm, tmp_path):
    """A job whose program is a stand-in for training, and a file for each thing that happens to it."""
    program = tmp_path / "program"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    _, error = slurm.submit("--ntasks=1", "--", f"--workdir={tmp_path / 'run'}", DIFFUSION_JAX=str(program))
    slurm.wait_for((tmp_path / "starts").exists, 60, "start")
    return submitted(error)


def test_near_its_time_limit_a_job_saves_and_goes_back_into_the_queue(slurm, stand_in, tmp_path):
    _, error = slurm.submit("--ntasks=1", "--", f"--workdir={tmp_path / 'run'}")
    assert f"job {stand_in} already trains" in error
    slurm("scancel", "--batch", "--signal=USR1", stand_in)  # as SLURM does five minutes before the limit
    slurm.wait_for((tmp_path / "events").exists, 60, "save")
    slurm.start_requeued(stand_in)
    slurm.wait_for(lambda: slurm.state(stand_in) == "COMPLETED", 60, "end of the job")
    assert (tmp_path / "starts").read_text() == "start\nstart\n"
    assert (tmp_path / "events").read_text() == "saved 1\n"


def test_a_cancelled_job_saves_and_stays_away(slurm, stand_in, tmp_path):
    slurm("scancel", stand_in)
    slurm.wait_for((tmp_path / "events").exists, 60, "save")
    slurm.wait_for(lambda: slurm("squeue", "--noheader", f"--jobs={stand_in}") == "", 60, "end of the job")
    assert slurm.state(stand_in) == "CANCELLED"
    assert (tmp_path / "starts").read_text() == "start\n"


def test_a_mistake_is_not_requeued_and_its_line_is_in_the_log(slurm, tmp_path):
    _, error = slurm.submit("--ntasks=1", "--", *TRAINING, f"--workdir={tmp_path / 'run'}", "--config.model.widht=3")
    job = submitted(error)
    slurm.wait_for(lambda: slurm.state(job) == "FAILED", 120, "failure")
    assert "did you mean 'width'" in (tmp_path / "run" / f"slurm-{job}.log").read_text()


def test_dry_run_prints_the_command_and_the_script(launcher, tmp_path):
    run = tmp_path / "a run"
    out, _ = launcher("slurm.sh", "--dry-run", "--nodes=2", "--", "--config=c.py", f"--workdir={run}")
    first, script = out.split("\n\n", 1)
    assert first.startswith("sbatch --parsable --job-name=") and " --nodes=2 " in first
    assert first.endswith(f"--config=c.py --workdir={str(run).replace(' ', chr(92) + ' ')}")
    assert script.startswith("#!/usr/bin/env bash\n#SBATCH --requeue") and "--coordinator auto" in script
    assert not run.exists()


def test_the_log_of_a_run_in_a_bucket_lies_here(launcher):
    out, _ = launcher("slurm.sh", "--dry-run", "--", "--config=c.py", "--workdir=gs://bucket/run")
    assert "--job-name=diffusion-jax:gs:__bucket_run --output=./slurm-%j.log" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nodes=2",), "no training to start: end the line with -- --config FILE --workdir FOLDER"),
        (("--", "--config=c.py"), "no training to start: end the line with -- --config FILE --workdir FOLDER"),
        (("--", "--workdir"), "--workdir has no value: name the run's folder"),
    ],
)
def test_without_a_folder_there_is_nothing_to_submit(launcher, arguments, message):
    _, error = launcher("slurm.sh", *arguments, status=2)
    assert error == f"slurm.sh: {message}\n"
