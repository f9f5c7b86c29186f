"""Scoring a model while it trains."""

import json

import jax
import numpy as np
import pytest

from diffusion_jax.config import load_config
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.settings import EvaluateConfig
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runs.folder import RunFolder
from diffusion_jax.runs.open_run import restore
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.training import sample_scores as evaluation
from diffusion_jax.training.loop import train

WORDS = ["train.eval_every=1", "train.steps=3", "train.save_every=1", "train.keep=3", "train.sample_every=None"]
EVALUATE = [
    "evaluate.reference=digits",
    "evaluate.num=40",
    "evaluate.labels=balanced",
    "evaluate.best=frechet_distance",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    words = [f"--config.{word}" for word in (*WORDS, *EVALUATE, "optimizer.lr=0.3", "ema.max_decay=0.1")]
    train(load_config("configs/digits.py:smoke", words, DIFFUSION_SCHEMA), workdir)
    return workdir


def test_scores_join_the_log_and_state_what_they_depend_on(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    results = [json.loads(path.read_text()) for path in sorted((run / "evaluations").iterdir())]
    assert [line["step"] for line in lines] == [result["samples"]["checkpoint_step"] for result in results] == [1, 2, 3]
    for line, result in zip(lines, results, strict=True):
        assert line["eval/frechet_distance"] == result["frechet_distance"]
        assert line["eval/class_agreement"] == result["class_agreement"]
        assert result["samples"]["sampler"]["name"] == "ddim" and result["count"] == 40
    assert len({line["eval/frechet_distance"] for line in lines}) == 3


def test_the_best_checkpoint_is_kept_and_can_be_named(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = min(lines, key=lambda line: line["eval/frechet_distance"])
    checkpoints = Checkpoints(run, folder="best", read_only=True)
    assert checkpoints.steps() == [best["step"]]
    assert checkpoints.metadata(best["step"])["best"]["frechet_distance"] == best["eval/frechet_distance"]
    chosen, same = (restore(RunFolder(run), step).model for step in ("best", str(best["step"])))
    jax.tree.map(np.testing.assert_array_equal, chosen, same)


def test_higher_and_lower_may_be_better():
    assert EvaluateConfig(best="fid").improves(2.0, on=3.0) and not EvaluateConfig(best="fid").improves(3.0, on=3.0)
    assert EvaluateConfig(best="recall").improves(0.5, on=0.4) and not EvaluateConfig(best="recall").improves(
        0.3, on=0.4
    )
    assert EvaluateConfig(best="fid").improves(9.0, on=None)
    with pytest.raises(UserError, match="'fit' is not known; did you mean 'fid'"):
        EvaluateConfig(best="fit")


@pytest.mark.parametrize(("protocol", "rule"), [("ldm", "trunc(127.5(x+1))"), ("uvit", "trunc(127.5x+128)")])
def test_samples_become_uint8_by_the_protocol(monkeypatch, tmp_path, protocol, rule):
    config = load_config("configs/digits.py:smoke", [f"--config.evaluate.protocol={protocol}"], DIFFUSION_SCHEMA)
    system = DiffusionSystem(config, DatasetFacts(10, tuple("0123456789"), "none"))
    monkeypatch.setattr(evaluation, "open_scorer", lambda *_: None)
    assert evaluation.TrainingEvaluation(system, make_mesh(MeshConfig()), tmp_path).stream.uint8 == rule


def test_a_reference_is_read_as_the_data_of_the_run(monkeypatch, tmp_path):
    words = ["data.crop=celeba", "data.exif_orientation=False", "data.channels=1"]
    config = load_config("configs/digits.py:smoke", [f"--config.{word}" for word in words], DIFFUSION_SCHEMA)
    system = DiffusionSystem(config, DatasetFacts(10, tuple("0123456789"), "none"))
    monkeypatch.setattr(evaluation, "open_scorer", lambda *arguments: arguments[-1])
    settings = evaluation.TrainingEvaluation(system, make_mesh(MeshConfig()), tmp_path).scorer
    assert settings.facts() == {"crop": "celeba", "exif_orientation": False, "channels": 1, "dataset": "digits"}


def test_a_run_without_a_best_checkpoint_says_so(run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"--step best: .* has none"):
        restore(RunFolder(tmp_path), "best")
