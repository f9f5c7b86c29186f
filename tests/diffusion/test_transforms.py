import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.denoiser import conditional, denoiser
from diffusion_jax.diffusion.paths import DiscretePath, VPPath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import DDIM, DDPM, DPMSolverMultistep, UniPC
from diffusion_jax.diffusion.transforms import dynamic_threshold, known_region, snap_to_codebook
from diffusion_jax.errors import UserError


def test_dynamic_threshold():
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype(np.float32) * np.array([0.1, 1.0, 5.0]).reshape(
        3, 1, 1, 1
    )
    x = jnp.asarray(x, jnp.float32)
    found = dynamic_threshold(0.9)(x, None)
    np.testing.assert_array_equal(np.asarray(found[0]), np.asarray(x[0]))  # within [−1, 1] already
    for sample in (1, 2):
        limit = np.quantile(np.abs(x[sample]), 0.9)
        np.testing.assert_allclose(found[sample], np.clip(x[sample], -limit, limit) / limit, rtol=1e-5)
    with pytest.raises(UserError, match="quantile must lie in"):
        dynamic_threshold(99.5)


def test_snap_to_codebook():
    rng = np.random.default_rng(0)
    codes, x = rng.normal(size=(7, 3)), rng.normal(size=(2, 4, 4, 3))
    found = snap_to_codebook(jnp.asarray(codes, jnp.float32))(jnp.asarray(x, jnp.float32), None)
    nearest = np.argmin(((x[..., None, :] - codes) ** 2).sum(-1), axis=-1)
    np.testing.assert_allclose(found, codes[nearest], rtol=1e-6)


@pytest.mark.parametrize(
    "sampler", [DDPM(steps=20), DDIM(steps=10, eta=0.7), DPMSolverMultistep(steps=10), UniPC(steps=8)]
)
def test_known_region_comes_back_and_is_noised_like_the_forward_process(kit, sampler):
    path, rng = DiscretePath(), np.random.default_rng(0)
    known, start = rng.normal(size=(1, 4, 4, 1)), rng.normal(size=(64, 4, 4, 1))
    mask = np.zeros((1, 4, 4, 1))
    mask[:, :2] = 1
    model = kit.reference_model({"a": 0.7, "b": 0.5})
    denoise = denoiser(conditional(model), Prediction(), (known_region(jnp.asarray(known), jnp.asarray(mask)),))
    noise = rng.normal(size=(20, *start.shape))
    states = kit.walk(sampler, path, denoise, start, noise, dtype=np.float32)
    np.testing.assert_allclose(states[-1][:, :2], np.broadcast_to(known[:, :2], (64, 2, 4, 1)), atol=1e-5)
    # Halfway: mean α x_0 and standard deviation σ over the batch.
    row = len(states) // 2
    point = path.point(np.float64(sampler.times(path)[row + 1]))
    residual = (states[row][:, :2] - point.alpha * known[:, :2]) / point.sigma
    assert abs(residual.mean()) < 0.15 and abs(residual.std() - 1) < 0.1


def test_transforms_apply_in_order():
    calls = []

    def record(name):
        def transform(x0, point):
            calls.append(name)
            return x0

        return transform

    denoise = denoiser(conditional(lambda x, t, c: x), Prediction(), (record("first"), record("second")))
    denoise(jnp.zeros((1, 2, 2, 1)), VPPath().point(jnp.float32(0.5)))
    assert calls == ["first", "second"]
