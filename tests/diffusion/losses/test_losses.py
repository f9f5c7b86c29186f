import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.losses import LOSSES, HybridLoss, SimpleLoss, VLBLoss
from diffusion_jax.diffusion.paths import DiscretePath, VPPath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.errors import UserError


def learned_model(scale):
    return lambda x, t, cond: jnp.concatenate([scale[0] * x, scale[1] * x], axis=-1)


def test_hybrid_bound_does_not_reach_the_mean_prediction():
    """The gradient of the bound with respect to the ε channels is exactly 0; the variance channels get one."""
    path, prediction = DiscretePath(), Prediction(variance="learned_range")
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 2, 3)), jnp.float32)

    def bound(scale):
        return jnp.sum(
            HybridLoss()(learned_model(scale), path, prediction, x0, None, jax.random.key(0), jnp.arange(4))[1]["vb"]
        )

    gradient = jax.jit(jax.grad(bound))(jnp.array([0.3, 0.4]))
    assert gradient[0] == 0 and gradient[1] != 0


def test_one_loss_per_sample_whatever_the_batch():
    path, prediction = DiscretePath(), Prediction(variance="learned_range")
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 2, 3)), jnp.float32)
    loss, key = HybridLoss(), jax.random.key(7)

    @jax.jit
    def evaluate(rows):
        return loss(learned_model((0.3, 0.4)), path, prediction, x0[rows], None, key, rows)

    whole, aux = evaluate(jnp.arange(6))
    part, _ = evaluate(jnp.array([4, 1]))
    assert whole.shape == (6,) and whole.dtype == jnp.float32 and set(aux) == {"time", "mse", "vb"}
    np.testing.assert_allclose(np.asarray(whole)[[4, 1]], part, rtol=1e-6)
    np.testing.assert_allclose(whole, aux["mse"] + aux["vb"], rtol=1e-6)


def test_l1():
    path, prediction = VPPath(), Prediction()
    x0, epsilon = jnp.zeros((2, 1, 1, 2)), jnp.array([[1.0, -3.0], [2.0, 0.0]]).reshape(2, 1, 1, 2)
    loss, aux = SimpleLoss(norm="l1").at(
        lambda x, t, c: jnp.zeros_like(x), path, prediction, x0, None, jnp.array([0.2, 0.7]), epsilon
    )
    np.testing.assert_allclose(loss, [2, 1])
    np.testing.assert_allclose(aux["mse"], [5, 2])


def test_predicting_the_noise_costs_nothing():
    path, key, index = VPPath(), jax.random.key(0), jnp.arange(3)
    x0 = jnp.ones((3, 2, 2, 1))

    def perfect(x, timestep, cond):
        point = path.point(timestep / 999)
        return (x - point.alpha.reshape(-1, 1, 1, 1)) / point.sigma.reshape(-1, 1, 1, 1)

    loss, _ = jax.jit(lambda x0: SimpleLoss()(perfect, path, Prediction(), x0, None, key, index))(x0)
    np.testing.assert_allclose(loss, 0, atol=1e-6)


def test_registry():
    assert set(LOSSES) >= {"simple", "hybrid", "vlb"}


@pytest.mark.parametrize(
    ("loss", "path", "variance", "message"),
    [
        (SimpleLoss(), DiscretePath(), "learned_range", "use loss 'hybrid'"),
        (HybridLoss(), DiscretePath(), "fixed_small", "use loss 'simple'"),
        (HybridLoss(), VPPath(), "learned_range", "path 'vp' has none; use 'ddpm'"),
        (VLBLoss(), VPPath(), "fixed_small", "path 'vp' has none; use 'ddpm'"),
    ],
)
def test_losses_that_do_not_apply(loss, path, variance, message):
    with pytest.raises(UserError, match=message):
        loss(
            lambda x, t, c: x,
            path,
            Prediction(variance=variance),
            jnp.zeros((1, 1, 1, 1)),
            None,
            jax.random.key(0),
            jnp.arange(1),
        )


def test_unknown_norm():
    with pytest.raises(UserError, match="did you mean 'l1'"):
        SimpleLoss(norm="l11")
