"""Streamed moments: the same whatever the batches, merges and offsets."""

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import FeatureStatistics


def streamed(rows, batch_size):
    statistics = FeatureStatistics(rows.shape[1])
    for start in range(0, len(rows), batch_size):
        statistics.update(rows[start : start + batch_size])
    return statistics


def assert_moments(statistics, rows, rtol=1e-12):
    mean, covariance = statistics.finalise()
    exact = rows.astype(np.longdouble)
    centred = exact - exact.mean(axis=0)
    want = (centred.T @ centred / (len(rows) - 1)).astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=0).astype(np.float64), atol=1e-14 * np.abs(rows).max())
    np.testing.assert_allclose(covariance, want, atol=rtol * np.abs(want).max())
    assert np.array_equal(covariance, covariance.T)


@pytest.mark.parametrize("name", ["small", "large", "singular"])
def test_equals_the_reference(golden_metrics, golden_features, name):
    x, y = golden_features(name)
    stored = golden_metrics[1]
    mean, covariance = streamed(y, 64).finalise()
    np.testing.assert_allclose(mean, stored[f"{name}_mu_y"], rtol=1e-13)
    if name == "small":
        np.testing.assert_allclose(covariance, stored["small_sigma_y"], atol=1e-15)
        np.testing.assert_allclose(streamed(x, 7).finalise()[1], stored["small_sigma_x"], atol=1e-15)
    mean, covariance = streamed(x, 7).finalise()
    np.testing.assert_allclose(mean, stored[f"{name}_mu_x"], rtol=1e-13)
    np.testing.assert_allclose(covariance[:3], stored[f"{name}_trace_sigma_rows_x"], rtol=0, atol=1e-14)
    assert_moments(streamed(x, 7), x)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 500])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_batch_size_does_not_matter_even_far_from_zero(batch_size, offset):
    rows = np.random.default_rng(0).normal(size=(500, 12)) + offset
    assert_moments(streamed(rows, batch_size), rows)


def test_merging_in_any_order_equals_one_pass():
    rng = np.random.default_rng(1)
    rows = np.concatenate([rng.normal(size=(100, 5)) + 50 * i for i in range(4)]).astype(np.float32)
    parts = [streamed(part, size) for part, size in zip(np.split(rows, 4), (100, 1, 33, 64), strict=True)]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        total = FeatureStatistics(5)
        for i in order:
            total.merge(parts[i])
        assert total.count == 400
        assert_moments(total, rows)
    assert_moments(parts[2], rows[200:300])
    late = streamed(rows[:100], 10)
    late.merge(FeatureStatistics(5))
    late.update(rows[100:])
    assert_moments(late, rows)


def test_merging_into_nothing_keeps_precision_far_from_zero():
    rows = np.random.default_rng(3).normal(size=(200, 4)) + 1e5
    total = FeatureStatistics(4)
    total.merge(streamed(rows, 50))
    assert_moments(total, rows)


def test_moments_can_be_taken_on_the_way():
    rows = np.random.default_rng(2).normal(size=(60, 3))
    statistics = streamed(rows[:30], 30)
    assert_moments(statistics, rows[:30])
    statistics.update(np.empty((0, 3)))
    statistics.update(rows[30:])
    assert_moments(statistics, rows)


def test_each_image_comes_once():
    rows = np.random.default_rng(4).normal(size=(20, 3))
    first, second = FeatureStatistics(3), FeatureStatistics(3)
    first.update(rows[::2], np.arange(0, 20, 2))
    second.update(rows[1::2], np.arange(1, 20, 2))
    with pytest.raises(UserError, match="features of image 1 are missing, and 9 in all"):
        first.finalise()
    with pytest.raises(UserError, match="image 4 comes twice; give each image of the set once"):
        first.update(rows[3:5], [3, 4])
    with pytest.raises(UserError, match="image 21 comes twice"):
        first.update(rows[3:5], [21, 21])
    with pytest.raises(UserError, match="3 indices came with 2 images"):
        first.update(rows[3:5], [21, 23, 25])
    first.merge(second)
    assert first.count == 20
    assert_moments(first, rows)
    with pytest.raises(UserError, match="image 1 comes twice"):
        first.merge(second)
    assert first.count == 20


def test_refuses_what_it_cannot_add():
    statistics = streamed(np.ones((5, 3)), 5)
    with pytest.raises(UserError, match=r"features of shape \[2, 4\]: statistics of width 3 need \[B, 3\]"):
        statistics.update(np.ones((2, 4)))
    rows = np.ones((4, 3))
    rows[2, 1] = np.nan
    with pytest.raises(UserError, match="features of image 7 are not finite"):
        statistics.update(rows)
    assert statistics.count == 5
    with pytest.raises(UserError, match="statistics of 3 and of 2 features do not merge"):
        statistics.merge(FeatureStatistics(2))
    with pytest.raises(UserError, match="at least 2 images, not 1"):
        streamed(np.ones((1, 3)), 1).finalise()
