"""The page on Python: its blocks run one after the other, as in a notebook."""

import pathlib
import re

import numpy as np
import pytest

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "python.md").read_text()
RUNS, LOOP, SAMPLER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.usefixtures("shared_compilations")
def test_runs_are_trained_opened_sampled_and_scored(tmp_path):
    scope: dict = {}
    exec(RUNS.replace('"runs/', f'"{tmp_path}/'), scope)
    run, samples = scope["run"], scope["samples"]
    assert run.step == 4 and run.finished and samples.images.shape == (8, 8, 8, 1)
    assert samples.labels.tolist() == list(range(8)) and samples.captions == list("01234567")
    assert samples.facts["sampler"]["steps"] == 4 and samples.facts["guidance"]["cfg_scale"] == 1.5
    assert scope["result"]["count"] == 16 and "class_agreement" in scope["result"]
    assert len(scope["loss"]) == 4 and np.all(np.isfinite(scope["loss"]))
    assert run._repr_png_()[1:4] == b"PNG" and "step 4 of 4" in run._repr_html_()


def test_a_loop_and_a_sampler_by_hand():
    scope: dict = {}
    exec(LOOP, scope)
    losses = scope["losses"]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    exec(SAMPLER, scope)
    images = np.asarray(scope["images"])
    assert images.shape == (10, 8, 8, 1) and np.all(np.isfinite(images)) and np.ptp(images) > 0.5


def test_the_training_loop_is_short():
    body = LOOP[LOOP.index("path, prediction") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 36
