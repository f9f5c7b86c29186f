"""Representation alignment: its value, and how it joins a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.losses import FlowMatchingLoss, RepresentationAlignment
from diffusion_jax.diffusion.losses.alignment import alignment
from diffusion_jax.diffusion.paths import LinearPath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.errors import UserError


def test_is_the_mean_negative_cosine_of_the_tokens():
    projected = jnp.asarray([[[3.0, 4.0], [0.0, 2.0]], [[1.0, 1.0], [-5.0, 0.0]]])
    features = jnp.asarray([[[6.0, 8.0], [1.0, 0.0]], [[1.0, 0.0], [7.0, 0.0]]])
    np.testing.assert_allclose(alignment(projected, features), [-0.5, (1 - np.sqrt(0.5)) / 2], rtol=1e-5)
    assert np.all(np.isfinite(jax.grad(lambda p: alignment(p, features).sum())(jnp.zeros_like(projected))))
    with pytest.raises(UserError, match=r"features of shape \(2, 2\) cannot align 2 tokens projected to 3"):
        alignment(jnp.zeros((2, 2, 3)), features)


class Network:
    """Projects half its input, and counts its calls."""

    def __init__(self):
        self.calls = 0

    def project(self, x, timestep, cond):
        self.calls += 1
        return 2 * x + timestep[:, None, None] + cond, x.reshape(x.shape[0], -1, 2) / 2


def test_adds_to_the_loss_of_the_same_forward_pass():
    rng = np.random.default_rng(0)
    x0, epsilon = (jnp.asarray(rng.normal(size=(3, 4, 2)), jnp.float32) for _ in range(2))
    features = jnp.asarray(rng.normal(size=(3, 4, 2)), jnp.float32)
    time, path, prediction = jnp.asarray([0.1, 0.5, 0.9]), LinearPath(time_scale=1000.0), Prediction("velocity")
    loss, network = FlowMatchingLoss(direction_weight=1.0), Network()
    got, aux = RepresentationAlignment(weight=0.7).at(loss, network, path, prediction, x0, 5.0, time, epsilon, features)
    assert network.calls == 1
    want, parts = loss.at(lambda *inputs: Network().project(*inputs)[0], path, prediction, x0, 5.0, time, epsilon)
    x = (1 - time)[:, None, None] * x0 + time[:, None, None] * epsilon
    np.testing.assert_allclose(aux["alignment"], alignment(x, features), rtol=1e-5)
    np.testing.assert_allclose(got, want + 0.7 * aux["alignment"], rtol=1e-5)
    for name in parts:
        np.testing.assert_array_equal(aux[name], parts[name])


def test_a_weight_must_be_positive():
    with pytest.raises(UserError, match=r"alignment\.weight=0: must be positive"):
        RepresentationAlignment(weight=0)
