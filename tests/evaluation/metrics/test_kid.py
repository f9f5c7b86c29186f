"""KID and CMMD against reference implementations."""

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import clip_distance, kernel_distance


@pytest.mark.parametrize("name", ["small", "large", "singular"])
def test_equals_the_reference_implementations(golden_metrics, golden_features, name):
    fake, real = golden_features(name)
    want = golden_metrics[0][name]
    ours = kernel_distance(real, fake, *want["config"]["kid"])
    kid = want["kid"]
    np.testing.assert_allclose(ours, [kid["torch_fidelity_mean"], kid["torch_fidelity_std"]], rtol=0, atol=1e-12)
    full = kernel_distance(real, fake, subsets=None).mean
    np.testing.assert_allclose(full, kid["full_unbiased"], rtol=0, atol=1e-12)
    assert abs(full - kid["full_biased"]) > 1e-4
    np.testing.assert_allclose(clip_distance(real, fake), want["cmmd"], rtol=1e-9)
    shifted = clip_distance(real - 0.75, fake - 0.75)
    np.testing.assert_allclose(shifted, want["cmmd_of_features_minus_0.75"], rtol=1e-9)


def test_subsets_drawn_in_another_order_or_from_another_seed_show(golden_metrics, golden_features):
    fake, real = golden_features("small")
    count, size = golden_metrics[0]["small"]["config"]["kid"]
    want = golden_metrics[0]["small"]["kid"]["torch_fidelity_mean"]
    assert abs(kernel_distance(fake, real, count, size).mean - want) > 1e-6
    assert abs(kernel_distance(real, fake, count, size, seed=0).mean - want) > 1e-6


def test_halves_of_one_set_are_as_often_below_zero_as_above():
    rng = np.random.default_rng(0)
    values = [kernel_distance(*rng.normal(size=(2, 60, 5)), subsets=None).mean for _ in range(200)]
    assert 0.35 < np.mean(np.array(values) < 0) < 0.75
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200)


def test_blocks_do_not_matter(golden_features, monkeypatch):
    fake, real = golden_features("small")
    whole, clip = kernel_distance(real, fake, subsets=None).mean, clip_distance(real, fake)
    monkeypatch.setattr("diffusion_jax.evaluation.metrics.kid.BLOCK_ROWS", 100)
    np.testing.assert_allclose(kernel_distance(real, fake, subsets=None).mean, whole, atol=1e-14)
    np.testing.assert_allclose(clip_distance(real, fake), clip, atol=1e-12)


def test_clip_distance_keeps_its_digits_where_all_kernels_are_nearly_one():
    rng = np.random.default_rng(0)
    fake = rng.normal(size=(50, 16))
    assert abs(clip_distance(fake, fake)) < 1e-12
    assert clip_distance(3 * fake, fake) == pytest.approx(0, abs=1e-12)


def test_refuses_too_few_or_other_features():
    with pytest.raises(UserError, match=r"subsets of 1000 need as many images .* 20 real and 30 fake"):
        kernel_distance(np.zeros((20, 3)), np.zeros((30, 3)))
    with pytest.raises(UserError, match="real images have 3 features and fake ones 4"):
        kernel_distance(np.zeros((20, 3)), np.zeros((30, 4)))
    with pytest.raises(UserError, match="fake features: those of image 2 are all zero"):
        clip_distance(np.ones((2, 2)), np.array([[1.0, 0], [0, 1], [0, 0]]))
    with pytest.raises(UserError, match="fake features: those of image 1 are not finite"):
        kernel_distance(np.zeros((2, 1)), np.array([[0.0], [np.inf]]), None)
