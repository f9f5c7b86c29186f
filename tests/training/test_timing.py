"""What the log says of a run's time, and the trace of some of its steps."""

import json

import pytest

from diffusion_jax.config import load_config
from diffusion_jax.errors import UserError
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.sections import ProfiledSteps
from diffusion_jax.training import timing as timing_module
from diffusion_jax.training.loop import train
from diffusion_jax.training.timing import Timing


class Clock:
    """Takes the place of module `time`: seconds pass only where a test says so."""

    def __init__(self):
        self.now = 1000.0

    def time(self):
        return self.now

    def perf_counter(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing_module, "time", clock)
    return clock


def test_steps_are_told_from_what_goes_on_between_them(clock):
    timing = Timing(None)
    clock.spend(30)
    timing.startup()
    clock.spend(8)
    with timing.aside("checkpoint"):
        clock.spend(5)
    clock.spend(2)
    assert timing.lap() == 10
    with timing.aside("evaluation"):
        clock.spend(15)
    assert timing.summary(10) == {
        "step_seconds": 10,
        "wall_seconds": 60,
        "goodput": pytest.approx(1 / 6),
        "startup_seconds": 30,
        "checkpoint_seconds": 5,
        "evaluation_seconds": 15,
    }
    clock.spend(20)
    assert timing.lap() == 20
    summary = timing.summary(19)
    assert summary["goodput"] == pytest.approx(29 / 80) and summary["evaluation_seconds"] == 0


def test_goodput_counts_what_a_kill_destroyed_and_the_pause_after_it(clock):
    timing = Timing(None)
    clock.spend(50)
    kept = {"time": clock.now, **timing.summary(40)}
    clock.spend(30)  # steps that are lost, and the pause
    timing = Timing(kept)
    clock.spend(20)
    assert timing.summary(15)["goodput"] == pytest.approx(55 / 100)


def test_a_run_writes_its_times_and_the_trace_of_the_steps_asked_for(tmp_path):
    words = ["train.steps=6", "train.log_every=2", "train.save_every=6", "train.sample_every=None", "train.profile=3:5"]
    train(load_config("configs/digits.py:smoke", [f"--config.{word}" for word in words], DIFFUSION_SCHEMA), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    names = {"goodput", "mfu", "input_seconds_per_step", "checkpoint_seconds", "evaluation_seconds", "seconds_per_step"}
    for before, line in zip([None, *lines], lines, strict=False):
        assert line.keys() >= names and 0 < line["goodput"] < 1
        spent = line["step_seconds"] - (before["step_seconds"] if before else 0)
        assert spent <= 2 * line["seconds_per_step"] + 1e-6
        assert not before or line["wall_seconds"] > before["wall_seconds"]
    assert lines[0]["startup_seconds"] > 0 == lines[1]["startup_seconds"]
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


@pytest.mark.parametrize("text", ["100", "5:5", "9:3", "0:3", "3:11", "a:b", "-1:4"])
def test_steps_to_trace_that_the_run_has_not_are_refused(text):
    with pytest.raises(UserError, match=r"train\.profile=.*: write FIRST:LAST with 0 < FIRST < LAST ≤ train\.steps=10"):
        ProfiledSteps(text, 10)
