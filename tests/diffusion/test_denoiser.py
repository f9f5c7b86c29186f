import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.denoiser import conditional, denoiser
from diffusion_jax.diffusion.paths import DiscretePath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.transforms import clip


def test_noise_is_derived_again_from_clipped_data():
    path = DiscretePath()
    point = path.point(jnp.float32(0.8))
    x = jnp.linspace(-3, 3, 8).reshape(1, 2, 2, 2)
    denoise = denoiser(conditional(lambda x, t, c: jnp.zeros_like(x)), Prediction(), (clip,))
    found = denoise(x, point)
    assert float(jnp.max(jnp.abs(found.x0))) == 1
    np.testing.assert_allclose(point.alpha * found.x0 + point.sigma * found.epsilon, x, rtol=1e-6)


def test_network_sees_the_time_as_a_batch_and_may_answer_in_bfloat16():
    seen = {}

    def model(x, timestep, cond):
        seen.update(timestep=timestep, cond=cond)
        return x.astype(jnp.bfloat16)

    point = DiscretePath().point(jnp.float32(0.5))
    found = denoiser(conditional(model, "condition"), Prediction())(jnp.ones((3, 2, 2, 1)), point)
    assert seen["timestep"].tolist() == [499, 499, 499] and seen["cond"] == "condition"
    assert found.x0.dtype == found.epsilon.dtype == jnp.float32


def test_log_variance_only_where_a_transition_is_given():
    path = DiscretePath()
    time = jnp.array([0.001, 0.5])
    x = jnp.zeros((2, 1, 1, 1))
    denoise = denoiser(conditional(lambda x, t, c: jnp.concatenate([x, x], -1)), Prediction(variance="learned_range"))
    assert denoise(x, path.point(time)).log_variance is None
    found = jax.jit(lambda t: denoise(x, path.point(t)._replace(transition=path.transition(t))))(time).log_variance
    step = path.transition(np.array([0.001, 0.5]))
    np.testing.assert_allclose(found.ravel(), (step.log_variance_min + step.log_variance_max) / 2, rtol=1e-6)
