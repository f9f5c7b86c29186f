import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import variational
from diffusion_jax.diffusion.losses.base import noised
from diffusion_jax.diffusion.paths import DiscretePath
from diffusion_jax.diffusion.predictions import Prediction


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 0.1), (0.7, 0.01), (-1.5, 2.0), (3.0, 0.5)])
def test_decoder_probabilities_sum_to_one(mean, scale, exact):
    with jax.enable_x64(True):
        levels = jnp.linspace(-1, 1, 256)
        total = jnp.sum(variational.decoder_probability(levels, mean, jnp.log(scale), exact))
    np.testing.assert_allclose(total, 1, rtol=1e-12)


def test_cdf_approximation_error():
    with jax.enable_x64(True):
        z = jnp.linspace(-6, 6, 2001)
        error = float(jnp.max(jnp.abs(variational.approx_normal_cdf(z) - jax.scipy.stats.norm.cdf(z))))
    assert 1.7e-4 < error < 1.8e-4


def test_true_data_with_the_small_variance_is_free():
    """A predictor that returns the true x_0 has L_n = 0 for n ≥ 1."""
    path = DiscretePath()
    with jax.enable_x64(True):
        n = np.array([1, 2, 50, 999])
        time = jnp.asarray((n + 1) / 1000)
        step = path.transition(time)
        x0, epsilon = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 2, 2, 3)))
        x = noised(x0, epsilon, path.point(time))
        log_variance = Prediction().log_variance(None, jax.tree.map(lambda f: f.reshape(-1, 1, 1, 1), step))
        np.testing.assert_allclose(variational.vlb_term(x0, x0, x, log_variance, step), 0, atol=1e-12)


def test_prior_term():
    path = DiscretePath()
    with jax.enable_x64(True):
        alpha_bar = path.alpha_bar[-1]
        found = variational.prior_term(jnp.ones((2, 3)), alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
    np.testing.assert_allclose(found, 2.911295e-5, rtol=2e-7)


def test_kl():
    with jax.enable_x64(True):
        found = variational.normal_kl(jnp.float64(0.3), jnp.log(0.5), jnp.float64(-0.2), jnp.log(2.0))
    np.testing.assert_allclose(found, 0.5 * (np.log(4) + 0.25 + 0.25 / 2 - 1), rtol=1e-12)
