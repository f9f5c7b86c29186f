"""The Fréchet distance against closed forms, reference implementations, and bad input."""

import hashlib

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import frechet_distance


def moments(rows):
    return rows.mean(axis=0), np.cov(rows, rowvar=False)


def random_covariance(seed, width):
    root = np.random.default_rng(seed).normal(size=(width, 2 * width))
    return root @ root.T / width


def rotation(seed, width):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


@pytest.mark.parametrize("name", ["small", "large", "singular"])
def test_equals_the_reference_implementations(golden_metrics, golden_features, name):
    x, y = golden_features(name)
    values, stored = golden_metrics
    assert hashlib.sha256(x.tobytes()).hexdigest() == values[name]["sha256_x"]
    ours = frechet_distance(*moments(x), *moments(y))
    np.testing.assert_allclose(ours, values[name]["fid"]["from_data"], rtol=1e-10)
    # Where covariances are singular, the reference implementations take roots of rounding errors.
    tolerance = 1e-6 if name == "singular" else 1e-9
    np.testing.assert_allclose(ours, values[name]["fid"]["torch_fidelity"], rtol=tolerance)
    np.testing.assert_allclose(ours, values[name]["fid"]["pytorch_fid_scipy_sqrtm"], rtol=tolerance)
    np.testing.assert_allclose(ours, values[name]["fid"]["svd_of_roots"], rtol=1e-7)
    assert abs(ours - values[name]["fid"]["always_offset_1e-6"]) > 1e-6 * ours
    np.testing.assert_allclose(moments(x)[0], stored[f"{name}_mu_x"], rtol=1e-12)


def test_fewer_images_than_features_equals_the_nuclear_norm_of_the_data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 50)), rng.normal(size=(30, 50)) + 0.1
    root_trace = np.linalg.norm((x - x.mean(0)) @ (y - y.mean(0)).T, "nuc") / np.sqrt(19 * 29)
    (mu_x, sigma_x), (mu_y, sigma_y) = moments(x), moments(y)
    want = np.square(mu_x - mu_y).sum() + np.trace(sigma_x) + np.trace(sigma_y) - 2 * root_trace
    np.testing.assert_allclose(frechet_distance(mu_x, sigma_x, mu_y, sigma_y), want, rtol=1e-9)
    full = random_covariance(1, 50)
    forth = frechet_distance(mu_x, sigma_x, mu_y, full)
    np.testing.assert_allclose(frechet_distance(mu_y, full, mu_x, sigma_x), forth, rtol=1e-9)


def test_commuting_covariances_have_a_closed_form():
    width = 30
    rng = np.random.default_rng(2)
    a, b, mu1, mu2 = rng.uniform(0.1, 2, (4, width))
    basis = rotation(3, width)
    want = np.square(mu1 - mu2).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    ours = frechet_distance(mu1, (basis * a) @ basis.T, mu2, (basis * b) @ basis.T)
    np.testing.assert_allclose(ours, want, rtol=1e-11)


def test_two_dimensional_covariances_have_a_closed_form():
    a, b = random_covariance(4, 2), random_covariance(5, 2)
    root_trace = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    want = np.trace(a) + np.trace(b) - 2 * root_trace
    np.testing.assert_allclose(frechet_distance([0, 0], a, [0, 0], b), want, rtol=1e-12)


def test_rank_one_covariances_have_a_closed_form_without_square_roots_of_rounding():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(2, 40))
    b -= a * (a @ b) / (a @ a)
    zero = np.zeros(40)
    ours = frechet_distance(zero, np.outer(a, a), zero, np.outer(b, b))
    np.testing.assert_allclose(ours, a @ a + b @ b, rtol=1e-12)
    same = frechet_distance(zero, np.outer(a, a), zero, np.outer(a, a))
    assert 0 <= same < 1e-12 * (a @ a)


def test_is_a_symmetric_distance_that_ignores_the_order_of_features():
    width = 40
    rng = np.random.default_rng(7)
    mu1, mu2 = rng.normal(size=(2, width))
    sigma1, sigma2 = random_covariance(8, width), random_covariance(9, width)
    value = frechet_distance(mu1, sigma1, mu2, sigma2)
    assert 0 <= frechet_distance(mu1, sigma1, mu1, sigma1) < 1e-9 * np.trace(sigma1)
    np.testing.assert_allclose(frechet_distance(mu2, sigma2, mu1, sigma1), value, rtol=1e-12)
    order = rng.permutation(width)
    shuffled = [mu1[order], sigma1[np.ix_(order, order)], mu2[order], sigma2[np.ix_(order, order)]]
    np.testing.assert_allclose(frechet_distance(*shuffled), value, rtol=1e-12)


def test_constant_features_add_nothing():
    sigma1, sigma2 = random_covariance(10, 6), random_covariance(11, 6)
    wide1, wide2 = np.zeros((2, 8, 8))
    wide1[:6, :6], wide2[:6, :6] = sigma1, sigma2
    value = frechet_distance(np.zeros(6), sigma1, np.ones(6), sigma2)
    ones = np.r_[np.ones(6), 0, 0]
    np.testing.assert_allclose(frechet_distance(np.zeros(8), wide1, ones, wide2), value, rtol=1e-9)
    nothing = np.zeros((6, 6))
    assert frechet_distance(np.zeros(6), nothing, np.ones(6), nothing) == 6


def test_moments_stored_in_float32_are_accepted():
    sigma = random_covariance(12, 30)
    stored = sigma.astype(np.float32)
    stored[0, 1] = np.nextafter(stored[0, 1], np.float32(9))
    np.testing.assert_allclose(frechet_distance(np.zeros(30), stored, np.ones(30), sigma), 30, rtol=1e-6)
    value = frechet_distance(np.zeros(30), stored, np.ones(30), np.eye(30))
    assert frechet_distance(np.zeros(30), stored.T, np.ones(30), np.eye(30)) == value


eye, zero = np.eye(3), np.zeros(3)
lopsided, negative = eye.copy(), np.diag([1.0, 1.0, -0.1])
lopsided[0, 2] = 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((zero, eye, np.zeros(4), np.eye(4)), "the first distribution has 3 features and the second 4"),
        ((zero, eye, zero, np.eye(4)), r"the second mean \[3\] and covariance \[4, 4\] do not fit"),
        ((np.zeros((3, 1)), eye, zero, eye), r"the first mean \[3, 1\] and covariance \[3, 3\] do not fit"),
        ((zero, lopsided, zero, eye), "the first covariance is not symmetric"),
        ((zero, eye, [0, np.nan, 0], eye), "the second distribution has values that are not finite"),
        ((zero, np.full((3, 3), np.inf), zero, eye), "the first distribution has values that are not finite"),
        ((zero, negative, zero, eye), "the first covariance has an eigenvalue -0.1 < 0"),
        ((zero, eye, zero, negative), "the second covariance has an eigenvalue -0.1 < 0"),
    ],
)
def test_refuses_what_is_no_distribution(arguments, message):
    with pytest.raises(UserError, match=message):
        frechet_distance(*arguments)
