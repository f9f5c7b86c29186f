"""Sweeps from the command line: checked first, resumable, reported; trainings are stand-ins except in one slow test."""

import csv
import json
import pathlib
import shlex
import signal
import subprocess
import sys

import pytest
from PIL import Image

from diffusion_jax import __main__
from diffusion_jax.errors import UserError
from diffusion_jax.files import user_path
from diffusion_jax.sweeping import LaunchOptions, PlannedRun
from diffusion_jax.sweeping.launchers import launch_locally

ROOT = pathlib.Path(__file__).parents[2]
FILE = """
from diffusion_jax.sweeping import Sweep, product

def get_sweep():
    return Sweep(
        config="configs/digits.py:smoke",
        points=product({"optimizer.lr": [0.001, 0.01], "train.seed": [0, 1]}),
        fixed={"train.steps": 10, "train.sample_every": None},
    )
"""

# Takes five steps at each start; files in the folder of the sweep change that.
STAND_IN = """
import json, pathlib, signal, sys, time
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
run = pathlib.Path(flags["workdir"])
(run.parent / "starts").open("a").write(run.name + "\\n")
if (run.parent / "broken").exists() and "seed=1" in run.name:
    sys.exit("it is broken")
if (run.parent / "endless").exists():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (run.parent / "running").touch()
    time.sleep(60)
step = max([int(path.name) for path in run.glob("checkpoints/*")], default=0) + 5
if (run.parent / "whole").exists():
    step = 10
(run / "checkpoints" / str(step)).mkdir(parents=True)
with (run / "metrics.jsonl").open("a") as log:
    for i in range(step - 4, step + 1):
        line = {"step": i, "time": 0.0, "loss": 1 / i + float(flags["config.optimizer.lr"]), "grad_norm": 2.0}
        log.write(json.dumps(line | ({"eval/fid": 7.0} if i == 5 else {})) + "\\n")
    log.write('{"step": 11, "lo')
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A sweep of four runs; its folder is `sweep`."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    command = property(lambda run: [sys.executable, "-IS", str(tmp_path / "stand_in.py"), *run.arguments])
    monkeypatch.setattr(PlannedRun, "command", command)
    # A stand-in's checkpoints are empty folders.
    monkeypatch.setattr("diffusion_jax.sweeping.sweep._check_folder", lambda config, folder: None)
    (tmp_path / "file.py").write_text(FILE)
    (tmp_path / "sweep").mkdir()
    return tmp_path


def sweep(folder, *arguments):
    __main__.run("sweep", [f"--sweep={folder / 'file.py'}", f"--workdir={folder / 'sweep'}", *arguments])


def starts(folder):
    path = folder / "sweep" / "starts"
    return path.read_text().split() if path.exists() else []


NAMES = [f"lr={lr},seed={seed}" for lr in (0.001, 0.01) for seed in (0, 1)]


def test_runs_that_are_finished_are_passed_over_and_others_resumed(folder, capsys):
    (folder / "sweep" / "whole").touch()
    done = folder / "sweep" / NAMES[1] / "checkpoints" / "10"
    done.mkdir(parents=True)
    begun = folder / "sweep" / NAMES[2] / "checkpoints" / "5"
    begun.mkdir(parents=True)
    sweep(folder)
    assert starts(folder) == [NAMES[0], NAMES[2], NAMES[3]]
    error = capsys.readouterr().err
    assert f"starting {NAMES[0]}" in error and f"resuming {NAMES[2]}" in error
    assert "4 runs in" in error and "1 finished" in error

    sweep(folder)
    assert len(starts(folder)) == 3
    with open(folder / "sweep" / "report.csv") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert list(rows) == NAMES
    assert rows[NAMES[0]]["step"] == "10" and float(rows[NAMES[0]]["loss"]) == 1 / 10 + 0.001
    assert rows[NAMES[1]]["loss"] == "" and rows[NAMES[3]]["optimizer.lr"] == "0.01"


def test_several_runs_at_a_time_each_with_its_gpus(folder, monkeypatch):
    (folder / "stand_in.py").write_text(
        "import os, pathlib, sys, time\n"
        "run = pathlib.Path(sys.argv[-1].partition('=')[2]); root = run.parent\n"
        "(root / f'gpu.{os.environ[\"CUDA_VISIBLE_DEVICES\"]}').touch()\n"
        "end = time.time() + 30\n"
        "while len(list(root.glob('gpu.*'))) < 2 and time.time() < end: time.sleep(0.01)\n"
        "(run / 'checkpoints' / '10').mkdir(parents=True)\n"
        '(run / \'metrics.jsonl\').write_text(\'{"step": 10, "time": 0, "loss": 1.0}\\n\')\n'
    )
    sweep(folder, "--concurrency=2", "--gpus-per-run=2")
    assert sorted(path.name for path in (folder / "sweep").glob("gpu.*")) == ["gpu.0,1", "gpu.2,3"]


def test_a_failed_run_is_named_after_the_others_have_ended(folder, capsys):
    (folder / "sweep" / "whole").touch()
    (folder / "sweep" / "broken").touch()
    with pytest.raises(UserError, match=r"2 of 4 runs failed: see .*seed=1/train.log, .*seed=1/train.log"):
        sweep(folder)
    assert starts(folder) == NAMES
    assert f"failed   {NAMES[1]}: it is broken" in capsys.readouterr().err


def test_the_output_of_a_run_in_a_bucket_is_uploaded_when_it_ends(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(PlannedRun, "step", 0)
    for word in ("first", "second"):
        code = f"print('{word}')"
        monkeypatch.setattr(PlannedRun, "command", [sys.executable, "-c", code])
        run = PlannedRun("seed=0", {}, user_path(f"{bucket}/sweep/seed=0"), (), 10)
        assert launch_locally([run], LaunchOptions())
    assert (run.workdir / "train.log").read_text() == "first\nsecond\n"


def test_a_signal_stops_the_runs_and_starts_no_more(folder, monkeypatch):
    (folder / "sweep" / "endless").touch()

    def poll(seconds):
        if (folder / "sweep" / "running").exists():
            signal.raise_signal(signal.SIGTERM)
            (folder / "sweep" / "running").unlink()

    monkeypatch.setattr("diffusion_jax.sweeping.launchers.time.sleep", poll)
    with pytest.raises(SystemExit) as caught:
        sweep(folder)
    assert caught.value.code == 75
    assert starts(folder) == NAMES[:1]
    assert not (folder / "sweep" / NAMES[0] / "checkpoints").exists()


def test_print_gives_commands_that_a_shell_reads(folder, capsys):
    sweep(folder, "--launcher=print")
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[3] == [
        "diffusion-jax",
        "train",
        "--config=configs/digits.py:smoke",
        "--config.train.steps=10",
        "--config.train.sample_every=None",
        "--config.optimizer.lr=0.01",
        "--config.train.seed=1",
        f"--workdir={folder / 'sweep' / NAMES[3]}",
    ]
    assert starts(folder) == []


def test_slurm_gets_a_job_for_each_unfinished_run(folder, monkeypatch):
    (folder / "sweep" / NAMES[1] / "checkpoints" / "10").mkdir(parents=True)
    calls = []
    monkeypatch.setattr(
        "diffusion_jax.sweeping.launchers.subprocess.run",
        lambda command, **options: calls.append(command) or subprocess.CompletedProcess(command, 0),
    )
    sweep(folder, "--launcher=slurm", "--slurm=--gpus-per-node=1 --time=1:00:00")
    assert len(calls) == 3
    assert calls[0][:4] == [str(ROOT / "launch" / "slurm.sh"), "--gpus-per-node=1", "--time=1:00:00", "--"]
    assert calls[0][4] == "--config=configs/digits.py:smoke"


def test_the_report_shows_any_metric_of_the_logs(folder, capsys):
    sweep_folder = folder / "sweep"
    run = sweep_folder / NAMES[0]
    log = run / "metrics.jsonl"
    for _ in range(2):
        program = [sys.executable, folder / "stand_in.py", "--config.optimizer.lr=0.5", f"--workdir={run}"]
        subprocess.run(program, check=True)
        log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")))
    sweep(folder, "--report", "--metrics=loss,eval/fid")
    first = (sweep_folder / "report.md").read_text().splitlines()[2]
    assert [cell.strip() for cell in first.split("|")[1:-1]] == [NAMES[0], "0.001", "0", "10", "0.6", "7"]
    assert capsys.readouterr().out == (sweep_folder / "report.md").read_text()
    with Image.open(sweep_folder / "report.png") as image:
        assert len(image.convert("RGB").getcolors(10**6)) > 20
    with pytest.raises(UserError, match=r"--metrics los: no run has logged it; did you mean 'loss'"):
        sweep(folder, "--report", "--metrics=los")
    assert starts(folder) == [NAMES[0]] * 2


def test_a_report_needs_logs(folder):
    with pytest.raises(UserError, match="no run of the sweep has logged anything yet"):
        sweep(folder, "--report")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("optimizer.lr", "optimizer.lrr", "run 'lrr=0.001,seed=0': .* has no key 'lrr'; did you mean 'lr'"),
        ("0.01]", "'fast']", "run 'lr=fast,seed=0': "),
        (
            '"train.seed": [0, 1]',
            '"model.patch_size": [2, 3]',
            "run 'lr=0.001,patch_size=3': model.patch_size=3 does not divide",
        ),
        ('"train.seed": [0, 1]', '"loss.name": ["simple", "hybrid"]', "run 'lr=0.001,loss=hybrid': .*variance"),
        ("get_sweep", "sweep", r"needs a function get_sweep\(\)"),
        ("0.01]", "0.01", "file.py: "),
        ("product({", "[] and ({", "has no points"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(folder, old, new, message):
    (folder / "file.py").write_text(FILE.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        sweep(folder)
    assert "\n" not in str(caught.value)
    assert starts(folder) == []


def test_a_missing_file_is_named(folder):
    with pytest.raises(UserError, match=r"--sweep nowhere.py: there is no such file"):
        __main__.run("sweep", ["--sweep=nowhere.py"])


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.py")), ids=lambda path: path.stem)
def test_shipped_sweeps_can_be_started(folder, capsys, path):
    __main__.run("sweep", [f"--sweep={path}", f"--workdir={folder / 'sweep'}", "--launcher=print"])
    assert len(capsys.readouterr().out.splitlines()) >= 2


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    """With real trainings; the folder of a run is refused to a changed sweep."""
    few = FILE.replace('"train.seed": [0, 1]', '"train.seed": [0]').replace('"train.steps": 10', '"train.steps": 60')
    (tmp_path / "file.py").write_text(
        few.replace('"train.sample_every"', '"train.save_every": 5, "train.sample_every"')
    )
    run = tmp_path / "sweep" / NAMES[0]
    command = [sys.executable, "-m", "diffusion_jax", "sweep", f"--sweep={tmp_path / 'file.py'}"]
    command += [f"--workdir={tmp_path / 'sweep'}"]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log = run / "metrics.jsonl"
    while not log.exists() or log.read_text().count("\n") < 8:
        with pytest.raises(subprocess.TimeoutExpired):
            first.wait(timeout=0.05)
    first.send_signal(signal.SIGTERM)
    _, error = first.communicate(timeout=120)
    assert first.returncode == 75, error
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert second.returncode == 0, second.stderr
    assert f"resuming {NAMES[0]}" in second.stderr and f"starting {NAMES[2]}" in second.stderr
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 61))
    assert second.stdout.count("| 60 ") == 2

    (tmp_path / "file.py").write_text(few.replace("digits.py:smoke", "digits.py"))
    third = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert third.returncode == 2 and "holds a run with model.depth=2, not 4" in third.stderr
