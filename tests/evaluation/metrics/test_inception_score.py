"""The Inception Score by every convention, against reference implementations and closed forms."""

import hashlib

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import inception_score
from diffusion_jax.evaluation.metrics.inception_score import split_indices

ADM_BLOCKS = {"logits_a": 300, "logits_b": 100}


@pytest.fixture(scope="module", params=["logits_a", "logits_b"])
def case(request, golden_metrics, golden_logits):
    expected = golden_metrics[0][request.param]
    logits = golden_logits(request.param)
    assert hashlib.sha256(logits.tobytes()).hexdigest() == expected["sha256"]
    return request.param, logits, expected["isc"]


def test_equals_the_reference_implementations(case):
    name, logits, want = case
    for convention, key in (
        ("torch_fidelity", "torch_fidelity_shuffled"),
        ("openai", "torch_fidelity_unshuffled"),
        ("dgm", "floor_division_splits_shuffled"),
    ):
        ours = inception_score(logits, convention=convention)
        np.testing.assert_allclose(ours, [want[f"{key}_mean"], want[f"{key}_std"]], rtol=1e-9)
    ours = inception_score(logits, ADM_BLOCKS[name], "adm")
    np.testing.assert_allclose(ours, [want["adm_mean"], np.std(want["adm_parts"])], rtol=1e-9)
    np.testing.assert_allclose(inception_score(logits, 1, "openai"), [want["single_split"], 0], rtol=1e-9)
    assert inception_score(logits) == inception_score(logits, 5000)


def test_the_conventions_differ_by_more_than_their_rounding(case):
    _, logits, _ = case
    means = [inception_score(logits, convention=c).mean for c in ("torch_fidelity", "openai", "adm")]
    assert np.diff(np.sort(means)).min() > 1e-4
    biased = logits + np.linspace(0, 1, logits.shape[1])
    assert abs(inception_score(biased).mean - inception_score(logits).mean) > 1e-3


def test_probabilities_and_logits_give_the_same(case):
    _, logits, _ = case
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(inception_score(probs), inception_score(logits), rtol=1e-12)
    np.testing.assert_allclose(inception_score(logits + 100), inception_score(logits), rtol=1e-11)


def test_closed_forms():
    np.testing.assert_allclose(inception_score(np.zeros((50, 7))), (1, 0), atol=1e-14)
    assert inception_score(np.full((50, 7), 1 / 7)).mean == pytest.approx(1, abs=1e-14)
    one_hot = np.eye(10)[np.arange(100) % 10]
    assert inception_score(one_hot).mean == pytest.approx(10, rel=1e-14)
    sure = 1e4 * one_hot.astype(np.float32)  # a textbook softmax in float32 gives 0 · log 0 here
    assert inception_score(sure).mean == pytest.approx(10, rel=1e-6)


def test_sorted_samples_score_lower_unless_shuffled():
    logits = 8 * np.eye(10)[np.arange(1000) // 100] + np.random.default_rng(0).normal(size=(1000, 10))
    mixed = logits[np.random.default_rng(1).permutation(1000)]
    assert inception_score(logits, 100, "adm").mean < 0.5 * inception_score(mixed, 100, "adm").mean
    shuffled = inception_score(logits, convention="torch_fidelity").mean
    assert shuffled == pytest.approx(inception_score(mixed, convention="torch_fidelity").mean, rel=0.02)


def test_splits_cover_every_image_once():
    for convention in ("adm", "torch_fidelity", "openai"):
        parts = split_indices(513, 10, convention)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(513))
    assert sorted(map(len, split_indices(513, 10, "dgm"))) == [51] * 10
    assert len(split_indices(513, 100, "adm")[-1]) == 13


def test_refuses_what_has_no_score():
    with pytest.raises(UserError, match=r"no convention 'amd'; did you mean 'adm'\?"):
        inception_score(np.zeros((5, 3)), convention="amd")
    with pytest.raises(UserError, match="5 images are too few for 10 splits"):
        inception_score(np.zeros((5, 3)), convention="openai")
    with pytest.raises(UserError, match="those of image 2 are not finite"):
        inception_score(np.array([[0.0, 1], [2, 3], [np.nan, 1]]))
    with pytest.raises(UserError, match=r"logits have shape \[0, 3\]"):
        inception_score(np.zeros((0, 3)))
