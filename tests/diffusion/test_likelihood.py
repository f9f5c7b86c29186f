import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.likelihood import bits_per_dim, bound_terms, log_likelihood, variational_bound
from diffusion_jax.diffusion.paths import DiscretePath, LinearPath, VEPath, VPPath
from diffusion_jax.diffusion.predictions import Prediction


@pytest.mark.parametrize("clipped", [0, 1])
@pytest.mark.parametrize("name", ["learned_range", "fixed_small"])
def test_bound_of_the_reference(golden, kit, name, clipped):
    data = golden("gd_bpd")
    case = next(case for case in data["config"]["cases"] if case["name"] == name)
    schedule = {"linear": "linear", "squaredcos_cap_v2": "cosine"}[case["noise_schedule"]]
    path = DiscretePath(schedule=schedule, respacing=case["timestep_respacing"])
    denoise = kit.golden_denoise(data["config"], Prediction(variance=name), clipped)
    for dtype, folder in ((jnp.float64, "out"), (jnp.float32, "out/f32")):
        with jax.enable_x64(dtype == jnp.float64):
            x0 = jnp.asarray(kit.to_nhwc(data["in/x_start"]), dtype)
            # The reference walks from the last timestep to the first.
            noise = jnp.asarray(kit.to_nhwc(data["in/noise"])[: path.chain_length][::-1], dtype)
            found = jax.jit(lambda x0, noise: bound_terms(path, denoise, x0, lambda n: noise[n]))(x0, noise)
            prefix = f"{folder}/{name}/clip{clipped}/"
            ours = {
                "total_bpd": found.total,
                "prior_bpd": found.prior,
                "vb": found.vb[:, ::-1],
                "xstart_mse": found.x0_mse[:, ::-1],
                "mse": found.epsilon_mse[:, ::-1],
            }
            for key, value in ours.items():
                expected = data[prefix + key]
                # Without clipping one bound is 6e6, of which the reference's own ᾱ, a product of 1 − β' with β' near 1,
                # has ten digits.
                exact = 1e-8 + 1e-9 * expected.max() * (expected.max() > 1e6)
                tolerance = exact if dtype == jnp.float64 else 1e-4 * max(1, expected.std())
                np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance, err_msg=key)


def test_bound_depends_on_the_sample_alone(kit):
    path = DiscretePath(respacing="4")
    denoise = kit.golden_denoise({"model": {"a": 0.7, "b": 0.5}}, Prediction())
    x0 = jnp.linspace(-1, 1, 12).reshape(3, 2, 2, 1)
    key = jax.random.key(0)
    whole = variational_bound(path, denoise, x0, key, jnp.arange(3))
    part = variational_bound(path, denoise, x0[2:], key, jnp.array([2]))
    np.testing.assert_allclose(whole.total[2:], part.total, rtol=1e-5)
    np.testing.assert_allclose(whole.total, whole.prior + whole.vb.sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("path", [VPPath(), LinearPath(time_min=1e-3), VEPath(kappa_max=200.0)])
def test_exact_gaussian_log_density(kit, path):
    """Data N(0.5, 0.25²): the density with the noise of time_min is known."""
    with jax.enable_x64(True):
        x = jnp.linspace(-0.3, 1.2, 5).reshape(5, 1, 1, 1)
        x = jnp.concatenate([x, 0.7 * x + 0.1], axis=-1)  # two dimensions
        options = {"rtol": 1e-6, "atol": 1e-6}
        evaluate = jax.jit(
            lambda x: log_likelihood(path, kit.gaussian(), x, jax.random.key(0), jnp.arange(5), **options)
        )
        found = evaluate(x)
        point = path.point(np.float64(path.time_min))
        variance = (point.alpha * 0.25) ** 2 + point.sigma**2
        residual = np.asarray(x) - point.alpha * 0.5
        expected = np.sum(-0.5 * residual**2 / variance - 0.5 * np.log(2 * np.pi * variance), axis=(1, 2, 3))
        # The estimate takes pure noise for the law at t = 1, where a path may keep a trace of the data.
        end, prior = path.point(np.float64(1.0)), path.prior_std(1.0)
        spread = ((end.alpha * 0.25) ** 2 + end.sigma**2) / prior**2
        there = residual * np.sqrt(spread / variance)
        trace = -0.5 * (end.alpha * 0.5 / prior + there) ** 2 + 0.5 * there**2 / spread + 0.5 * np.log(spread)
        np.testing.assert_allclose(found, expected + np.sum(trace, axis=(1, 2, 3)), atol=1e-4)


def test_bits_per_dim():
    """A uniform density over the 256 levels costs 8 bits."""
    dims = 12
    log_likelihood = -dims * jnp.log(2.0)
    np.testing.assert_allclose(bits_per_dim(log_likelihood, dims), 8.0, rtol=1e-6)


def test_a_solve_that_does_not_arrive_has_no_density(kit):
    x = jnp.zeros((2, 1, 1, 1))
    found = log_likelihood(VPPath(), kit.gaussian(), x, jax.random.key(0), jnp.arange(2), max_steps=2)
    assert np.isnan(found).all()
