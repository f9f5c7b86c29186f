"""Training from the command line: killed, stopped, resumed, spread over processes, and given wrong input."""

import json
import random
import re
import signal

import numpy as np
import pytest

from diffusion_jax import __main__
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.errors import UserError

STEPS = 60
CONFIG = ("--config=configs/digits.py:smoke", f"--config.train.steps={STEPS}", "--config.train.sample_every=None")
CONFIG += ("--config.train.save_every=4", "--config.train.keep=3", "--config.data.flip=true")


@pytest.fixture(scope="module")
def unbroken(command_line, tmp_path_factory):
    """The run that the others must equal."""
    workdir = tmp_path_factory.mktemp("unbroken")
    command_line.run("train", *CONFIG, f"--workdir={workdir}", devices=8)
    return workdir


def assert_same_losses(ours, want):
    assert sorted(ours) == sorted(want) == list(range(1, STEPS + 1))
    np.testing.assert_allclose([ours[i] for i in sorted(ours)], [want[i] for i in sorted(want)], rtol=1e-5)


def test_a_run_leaves_what_its_help_promises(unbroken):
    assert sorted(int(path.name) for path in (unbroken / "checkpoints").iterdir()) == [52, 56, 60]
    assert json.loads((unbroken / "config.json").read_text())["train"]["steps"] == STEPS
    last = json.loads((unbroken / "metrics.jsonl").read_text().splitlines()[-1])
    assert last.keys() >= {"loss", "mse", "grad_norm", "learning_rate", "images_per_second", "mfu", "bad_images"}
    assert any(key.startswith("loss_t_") for key in last)


@pytest.mark.parametrize(
    "other_mesh",
    [(), ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")],
    ids=["same", "other"],
)
def test_killed_and_resumed_equals_unbroken(command_line, unbroken, tmp_path, other_mesh):
    step = random.randint(5, STEPS // 2)
    process = command_line.start("train", *CONFIG, f"--workdir={tmp_path}", devices=8)
    command_line.wait_for_step(process, tmp_path, step, checkpoint=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    _, error = command_line.run("train", *CONFIG, *other_mesh, f"--workdir={tmp_path}", devices=8)
    assert "resuming at step" in error
    assert_same_losses(command_line.losses(tmp_path), command_line.losses(unbroken))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_resumes(command_line, unbroken, tmp_path, number):
    endless = (*CONFIG, "--config.train.save_every=1000000")
    process = command_line.start("train", *endless, f"--workdir={tmp_path}")
    command_line.wait_for_step(process, tmp_path, 3, checkpoint=False)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 75, error
    assert f"{number.name}: saved step" in error
    _, error = command_line.run("train", *endless, f"--workdir={tmp_path}")
    assert "resuming at step" in error
    assert_same_losses(command_line.losses(tmp_path), command_line.losses(unbroken))


def test_two_processes_of_four_devices_equal_one_of_eight(command_line, unbroken, tmp_path):
    """Started by launch/local.sh, for a third of the steps."""
    steps = STEPS // 3
    few = (*CONFIG, f"--config.train.steps={steps}", f"--config.train.sample_every={steps}", "--config.mesh.fsdp=2")
    launcher = (command_line.root / "launch" / "local.sh", "--processes", "2", "--")
    process = command_line.start(*few, f"--workdir={tmp_path}", devices=4, launcher=launcher)
    _, error = process.communicate(timeout=400)
    assert process.returncode == 0, error
    ours, want = command_line.losses(tmp_path), command_line.losses(unbroken)
    np.testing.assert_allclose(
        [ours[i] for i in range(1, steps + 1)], [want[i] for i in range(1, steps + 1)], rtol=1e-5
    )
    assert len(ours) == steps
    assert (tmp_path / "samples" / f"{steps:08}.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model.widht=3"], "model 'dit' has no key 'widht'; did you mean 'width'"),
        (["--config.mesh.data=3"], "does not divide 8 devices"),
        (["--config.train.batch_size=7"], "batch size 7 does not divide over the 8 batch shards"),
        (["--config.train.microbatches=2"], "parts that do not divide over 8 batch shards"),
        (["--config.model.patch_size=3"], "patch_size=3 does not divide the input of 8×8"),
        (["--config.data.name=folder:/nowhere"], "/nowhere"),
        (["--config.loss.name=hybrid"], "variance"),
        (["--config.sampler.name=ddpm", "--config.sampler.steps=2000"], "2000"),
        (["--config.conditioner.label_drop=0"], "guidance.cfg_scale=2.0 needs a null condition"),
        (["--batch=3"], "--batch is not a flag"),
        (["--config.path.schedule=liner"], "did you mean 'linear'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    with pytest.raises(UserError) as caught:
        __main__.run("train", [*CONFIG, f"--workdir={tmp_path}", *arguments])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_mistake_ends_the_program_with_status_2_and_no_traceback(command_line, tmp_path):
    arguments = ("train", "--config=configs/digits.py", f"--workdir={tmp_path}", "--config.model.widht=3")
    out, error = command_line.run(*arguments, status=2)
    assert out == "" and len(error.splitlines()) == 1
    assert "model 'dit' has no key 'widht'; did you mean 'width'" in error
    _, error = command_line.run(*arguments, "--debug", status=2)
    assert "Traceback" in error


def test_a_cluster_is_joined_only_where_there_is_one(command_line, tmp_path):
    _, error = command_line.run("train", *CONFIG, f"--workdir={tmp_path}", "--coordinator=auto", status=2)
    assert "--coordinator auto: this is no process of a SLURM" in error and len(error.splitlines()) == 1


def test_another_config_is_refused_in_the_same_folder(command_line, unbroken):
    _, error = command_line.run(
        "train", *CONFIG, f"--workdir={unbroken}", "--config.model.width=64", devices=8, status=2
    )
    assert "holds a run with model.width=32, not 64" in error


def test_a_loss_that_is_not_finite_stops_the_run(command_line, tmp_path):
    """The checkpoint of step 1, whose next loss is not finite, is no good one; which are is in test_recovery."""
    arguments = (f"--workdir={tmp_path}", "--config.optimizer.lr=1e30", "--config.optimizer.warmup_steps=0")
    arguments += ("--config.optimizer.schedule=constant", "--config.train.save_every=1")
    _, error = command_line.run("train", *CONFIG, *arguments, status=2)
    assert re.search(r"of step 2 (is|has norm) (inf|nan): stopped, and no good checkpoint was saved", error)
    assert command_line.losses(tmp_path)[1] < float("inf")


def test_print_config_shows_the_resolved_config(command_line):
    out, _ = command_line.run("train", *CONFIG, "--config.train.seed=9", "--print-config")
    assert json.loads(out)["train"]["seed"] == 9


def test_help_of_every_command(command_line):
    out, _ = command_line.run("--help")
    for name in __main__.COMMANDS:
        assert name in out
        text, _ = command_line.run(name, "--help")
        assert f"diffusion-jax {name}" in text and "--" in text


def test_every_sampler_is_listed_with_what_it_is_for_and_its_options(command_line):
    out, _ = command_line.run("samplers")
    for name, sampler in SAMPLERS.items():
        (line,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        assert sampler.order in line and sampler.calls in line and line.endswith(sampler.purpose)
    assert "eta=0.0" in out and "solver_order=2" in out


def test_unknown_commands_are_named(command_line):
    _, error = command_line.run("trian", status=2)
    assert "'trian' is not a command; did you mean 'train'?" in error
