"""Every sampler with a real DiT: guided, under bfloat16, and on a mesh of eight devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.diffusion.denoiser import denoiser
from diffusion_jax.diffusion.guidance import ClassifierFreeGuidance
from diffusion_jax.diffusion.paths import DiscretePath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import SAMPLERS, initial_noise, sample
from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec
from diffusion_jax.models.dit.dit import DiT


@functools.cache
def build_model(dtype):
    @jax.jit
    def init():
        return DiT(
            input_shape=(4, 4, 2),
            out_channels=4,
            conditioning=ConditioningSpec(num_classes=3, null_class=True),
            patch_size=2,
            depth=1,
            width=16,
            heads=2,
            dtype=dtype,
            rngs=nnx.Rngs(0),
        )

    # A fresh DiT answers zero; give every weight something to say.
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: jnp.asarray(p + 0.2 * rng.normal(size=p.shape), p.dtype), jax.device_get(init()))


def drawing(name):
    path, prediction = DiscretePath(), Prediction("v", "learned_range")
    fields = {field.name for field in dataclasses.fields(SAMPLERS[name])}
    sampler = SAMPLERS[name](**({"steps": 4} if "steps" in fields else {"rtol": 0.1, "atol": 0.1}))
    guidance = ClassifierFreeGuidance(2.0)

    @jax.jit
    def draw(model, label, index):
        start, walk = jax.random.split(jax.random.key(0))
        x = initial_noise(sampler, path, start, index, (4, 4, 2))
        null = jnp.full_like(label, 3)
        denoise = denoiser(guidance(model, Conditioning(label=label), Conditioning(label=null)), prediction)
        return sample(sampler, path, denoise, x, walk, index)

    return draw


def on_devices(draw, model, index, count):
    """Images of samples `index`, the batch spread over `count` devices."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    index = jnp.asarray(index)
    return np.asarray(draw(jax.device_put(model, whole), jax.device_put(index % 3, rows), jax.device_put(index, rows)))


# One in every run of the tests, the others in `make test-slow`.
QUICK = ("unipc",)
SELECTED = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SAMPLERS]


@pytest.mark.parametrize("name", SELECTED)
def test_same_images_on_any_number_of_devices(name):
    """Bit for bit where every device has as many samples; else up to the rounding of the network's matrix products."""
    draw, model = drawing(name), build_model("float32")
    eight = on_devices(draw, model, range(16), 8)
    assert np.all(np.isfinite(eight)) and len(np.unique(eight[:, 0, 0, 0])) == 16
    np.testing.assert_array_equal(on_devices(draw, model, [4, 5], 1), eight[4:6])
    if name in QUICK:
        one = on_devices(draw, model, range(16), 1)
        np.testing.assert_allclose(one, eight, rtol=0, atol=1e-4 * max(1, eight.std()))


@pytest.mark.parametrize("name", SELECTED)
def test_bfloat16(name):
    """The walk stays float32 and follows the float32 network closely enough to be the same image."""
    draw = drawing(name)
    full, half = (
        np.asarray(draw(build_model(dtype), jnp.arange(2), jnp.arange(2))) for dtype in ("float32", "bfloat16")
    )
    assert half.dtype == np.float32 and not np.array_equal(full, half)
    correlation = np.corrcoef(full.ravel(), half.ravel())[0, 1]
    # The error control of adaptive steps sees the rounding of the network.
    assert correlation > (0.98 if "steps" in SAMPLERS[name].__dataclass_fields__ else 0.8), correlation
