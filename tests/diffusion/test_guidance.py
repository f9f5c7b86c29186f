import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from diffusion_jax.diffusion.denoiser import denoiser
from diffusion_jax.diffusion.guidance import ClassifierFreeGuidance
from diffusion_jax.diffusion.paths import VPPath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.errors import UserError


def counting_model(calls):
    """Output 2C channels that tell conditional from unconditional and sample from sample."""

    def model(x, timestep, cond):
        calls.append(x.shape[0])
        bias = cond.astype(x.dtype).reshape(-1, 1, 1, 1)
        return jnp.concatenate([x * bias + timestep.reshape(-1, 1, 1, 1), x - bias], axis=-1)

    return model


def setup(channels=5):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, channels)), jnp.float32)
    point = VPPath().point(jnp.array([0.1, 0.2, 0.3]))
    cond, null = jnp.array([1, 2, 3]), jnp.array([10, 10, 10])
    return x, point, cond, null


@pytest.mark.parametrize("batching", ["joint", "separate"])
@pytest.mark.parametrize("channels", ["all", "first3"])
def test_formula_and_calls(channels, batching):
    x, point, cond, null = setup()
    calls = []
    model = counting_model(calls)
    out = ClassifierFreeGuidance(1.5, channels, batching=batching)(model, cond, null)(x, point)
    assert calls == ([6] if batching == "joint" else [3, 3])
    strong, weak = model(x, point.timestep, cond), model(x, point.timestep, null)
    guided = 5 if channels == "all" else 3
    expected = weak + 1.5 * (strong - weak)
    np.testing.assert_allclose(out[..., :guided], expected[..., :guided], rtol=1e-6)
    # The rest of the prediction and the learned variance stay conditional.
    np.testing.assert_array_equal(np.asarray(out[..., guided:]), np.asarray(strong[..., guided:]))


def test_batching_suits_the_platform_that_a_program_is_for():
    x, point, cond, null = setup()

    def calls_on(platform):
        calls = []
        device = AbstractDevice(device_kind="", num_cores=1, platform=platform)
        with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=device)):
            jax.eval_shape(lambda: ClassifierFreeGuidance(1.5)(counting_model(calls), cond, null)(x, point))
        return calls

    assert calls_on("cpu") == [3, 3]
    assert calls_on("gpu") == calls_on("tpu") == [6]


def test_scale_one_makes_no_null_call():
    x, point, cond, _ = setup()
    calls = []
    model = counting_model(calls)
    out = ClassifierFreeGuidance(1.0)(model, cond)(x, point)
    assert calls == [3]
    np.testing.assert_array_equal(np.asarray(out), np.asarray(model(x, point.timestep, cond)))


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v", "score", "velocity"])
def test_guided_gaussians_stay_gaussian(kind, kit):
    """Equal s², means μ_c and μ_u: the guided denoiser is the ideal one of N(μ_u + s(μ_c − μ_u), s²)."""
    scale, mean_c, mean_u, path, prediction = 2.5, 0.7, -0.2, VPPath(), Prediction(kind)
    with jax.enable_x64(True):
        point = path.point(jnp.float64(0.4))
        x = jnp.linspace(-2.0, 2.0, 6).reshape(2, 1, 1, 3)

        def model(x, timestep, cond):
            k = point.alpha * 0.25**2 / (point.alpha**2 * 0.25**2 + point.sigma**2)
            mean = cond.reshape(-1, 1, 1, 1)
            x0 = mean + k * (x - point.alpha * mean)
            return prediction.target(x0, (x - point.alpha * x0) / point.sigma, point)

        guided = ClassifierFreeGuidance(scale)(model, jnp.full(2, mean_c), jnp.full(2, mean_u))
        found = jax.jit(denoiser(guided, prediction))(x, point)
        expected = kit.gaussian(mean_u + scale * (mean_c - mean_u), 0.25)(np.asarray(x), path.point(np.float64(0.4)))
        np.testing.assert_allclose(found.x0, expected.x0, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(found.epsilon, expected.epsilon, rtol=1e-11, atol=1e-12)


def test_bad_requests():
    with pytest.raises(UserError, match="needs a null condition"):
        ClassifierFreeGuidance(2.0)(lambda x, t, c: x, jnp.zeros(3))
    with pytest.raises(UserError, match="did you mean 'first3'"):
        ClassifierFreeGuidance(2.0, "first4")
    with pytest.raises(UserError, match="did you mean 'separate'"):
        ClassifierFreeGuidance(2.0, batching="seperate")
    with pytest.raises(UserError, match="cfg_scale must be at least 0"):
        ClassifierFreeGuidance(-1.0)
