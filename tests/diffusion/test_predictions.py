import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.losses.base import noised
from diffusion_jax.diffusion.paths import PATHS, DiscretePath
from diffusion_jax.diffusion.point import Transition, align
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.errors import UserError

KINDS = ("epsilon", "x0", "v", "score", "velocity")


def draw(shape=(3, 2, 2, 4)):
    rng = np.random.default_rng(0)
    return rng.normal(size=shape), rng.normal(size=shape)


@pytest.mark.parametrize("path_name", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_target_gives_back_data_and_noise(kind, path_name):
    x0, epsilon = draw()
    point = PATHS[path_name]().point(np.array([0.1, 0.5, 0.9]))
    prediction = Prediction(kind)
    x, target = noised(x0, epsilon, point), prediction.target(x0, epsilon, point)
    np.testing.assert_allclose(prediction.to_x0(target, x, point), x0, atol=1e-9)
    np.testing.assert_allclose(prediction.to_epsilon(target, x, point), epsilon, atol=1e-9)


@pytest.mark.parametrize("path_name", PATHS)
def test_table_of_conversions(path_name):
    """Each kind from each other one at the same x, by the formula that leads there directly."""
    x0, epsilon = draw()
    point = PATHS[path_name]().point(np.array([0.1, 0.5, 0.9]))
    at = align(point, x0)
    a, s, a_dot, s_dot, delta = at.alpha, at.sigma, at.alpha_dot, at.sigma_dot, at.delta
    x = a * x0 + s * epsilon
    table = {
        "x0": {
            "epsilon": lambda m: (x - a * m) / s,
            "score": lambda m: (a * m - x) / s**2,
            "velocity": lambda m: s_dot / s * x - delta / s * m,
        },
        "epsilon": {
            "x0": lambda m: (x - s * m) / a,
            "score": lambda m: -m / s,
            "velocity": lambda m: a_dot / a * x + delta / a * m,
        },
        "score": {
            "x0": lambda m: (x + s**2 * m) / a,
            "epsilon": lambda m: -s * m,
            "velocity": lambda m: a_dot / a * x - s * delta / a * m,
        },
        "velocity": {
            "x0": lambda m: (s_dot * x - s * m) / delta,
            "epsilon": lambda m: (a * m - a_dot * x) / delta,
            "score": lambda m: -(a * m - a_dot * x) / delta / s,
        },
    }
    rng = np.random.default_rng(1)
    for kind, conversions in table.items():
        output = rng.normal(size=x.shape)  # any output, not only a right one
        given = Prediction(kind)
        data, noise = given.to_x0(output, x, point), given.to_epsilon(output, x, point)
        for other, formula in conversions.items():
            found = Prediction(other).target(data, noise, point)
            np.testing.assert_allclose(found, formula(output), rtol=1e-9, atol=1e-9, err_msg=f"{kind} to {other}")


def test_definitions():
    x0, epsilon = draw()
    point = DiscretePath().point(np.float64(0.5))
    a, s = point.alpha, point.sigma
    np.testing.assert_array_equal(Prediction("v").target(x0, epsilon, point), a * epsilon - s * x0)
    np.testing.assert_array_equal(Prediction("score").target(x0, epsilon, point), -epsilon / s)
    velocity = Prediction("velocity").target(x0, epsilon, point)
    np.testing.assert_array_equal(velocity, point.alpha_dot * x0 + point.sigma_dot * epsilon)


def test_variance_channels():
    output = jnp.arange(8.0).reshape(1, 1, 1, 8)
    fixed, learned = Prediction(variance="fixed_large"), Prediction(variance="learned_range")
    assert (fixed.output_channels(4), learned.output_channels(4)) == (4, 8)
    mean, variance = learned.split(output)
    assert mean.ravel().tolist() == [0, 1, 2, 3] and variance.ravel().tolist() == [4, 5, 6, 7]
    assert fixed.split(output)[1] is None


def test_reverse_variances():
    step = Transition(*(jnp.asarray(v) for v in (1.0, 0.0, -3.0, -1.0, 0.0)))
    last = step._replace(to_data=jnp.asarray(1.0))
    assert Prediction(variance="fixed_small").log_variance(None, step) == -3
    assert Prediction(variance="fixed_large").log_variance(None, step) == -1
    assert Prediction(variance="fixed_large").log_variance(None, last) == -3
    v = jnp.array([-1.0, 0.0, 1.0, 3.0])
    assert Prediction(variance="learned").log_variance(v, step).tolist() == v.tolist()
    assert Prediction(variance="learned_range").log_variance(v, step).tolist() == [-3, -2, -1, 1]


def test_float32_stays_float32_under_jit():
    point = DiscretePath().point(jnp.float32(0.5))
    x = jnp.ones((2, 2, 2, 1))
    for kind in KINDS:
        out = jax.jit(lambda x, kind=kind: Prediction(kind).to_x0(x, x, point))(x)
        assert out.dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"kind": "epsilonn"}, "did you mean 'epsilon'"), ({"variance": "learned_rang"}, "did you mean 'learned_range'")],
)
def test_unknown_names(arguments, message):
    with pytest.raises(UserError, match=message):
        Prediction(**arguments)
