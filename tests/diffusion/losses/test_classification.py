"""The objective of noisy classifiers, and the log-probability that guidance makes of their logits."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.classifier_guidance import log_probability
from diffusion_jax.diffusion.losses import ClassificationLoss
from diffusion_jax.diffusion.losses.base import noised
from diffusion_jax.diffusion.paths import DiscretePath
from diffusion_jax.diffusion.predictions import Prediction


class Labelled(NamedTuple):
    label: Any


RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(12, 5)).astype(np.float32)
X0, EPSILON = RNG.normal(size=(2, 4, 2, 2, 3)).astype(np.float32)
LABEL = np.array([0, 4, 2, 2], np.int32)
TIME = np.array([0.1, 0.4, 0.6, 0.9], np.float32)


def classifier(x, timestep, cond):
    assert cond is None or cond.label is None
    return x.reshape(4, 12) @ WEIGHT + 0.01 * timestep[:, None]


def test_cross_entropy_of_the_noisy_image():
    path = DiscretePath()
    point = path.point(jnp.asarray(TIME))
    x = np.asarray(noised(jnp.asarray(X0), jnp.asarray(EPSILON), point)).reshape(4, 12).astype(np.float64)
    logits = x @ WEIGHT + 0.01 * np.asarray(point.timestep)[:, None]
    likely = np.exp(logits - logits.max(1, keepdims=True))
    expected = -np.log(likely[np.arange(4), LABEL] / likely.sum(1))
    arguments = (jnp.asarray(X0), Labelled(jnp.asarray(LABEL)), jnp.asarray(TIME), jnp.asarray(EPSILON))
    loss, aux = ClassificationLoss().at(classifier, path, Prediction("epsilon"), *arguments)
    np.testing.assert_allclose(loss, expected, rtol=2e-5)
    np.testing.assert_array_equal(aux["accuracy"], logits.argmax(1) == LABEL)
    np.testing.assert_array_equal(aux["time"], TIME)

    value = log_probability(classifier, jnp.asarray(LABEL))(noised(jnp.asarray(X0), jnp.asarray(EPSILON), point), point)
    np.testing.assert_allclose(value, -expected, rtol=2e-5)
