"""What holds for every backbone of the registry: it learns, and any sampler draws from it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from diffusion_jax.data import DataConfig, open_source
from diffusion_jax.diffusion.denoiser import conditional, denoiser
from diffusion_jax.diffusion.losses import SimpleLoss
from diffusion_jax.diffusion.paths import VPPath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import SAMPLERS, initial_noise, sample
from diffusion_jax.models.backbones import BACKBONES
from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec
from diffusion_jax.smoke import tiny_options

SHAPE = (8, 8, 1)
STEPS, BOUND = 150, 0.1

LABELS, NOTHING = ConditioningSpec(num_classes=10), ConditioningSpec()
UNCONDITIONAL = ("ascend", "iuvit")
# Training those with many convolutions takes half a minute each.
EVERY = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("ascend", "unet"))) for name in sorted(BACKBONES)]
)


def tiny(name):
    """What a backbone is told, labels where it takes them, and its options."""
    options = tiny_options(name)
    if "width" in options:
        options |= {"width": 64, "heads": 4}  # transformers of half of that fit too slowly
    return NOTHING if name in UNCONDITIONAL else LABELS, options


@functools.cache
def digits():
    source = open_source(DataConfig(name="digits", image_size=8, channels=1))
    records = [source[i] for i in range(16)]
    images = np.stack([record["image"] for record in records]).astype(np.float32) / 127.5 - 1
    return jnp.asarray(images), jnp.asarray([int(record["label"]) for record in records], jnp.int32)


@functools.cache
def fitted(name):
    """The backbone after fitting 16 digits at fixed times and noise, and its loss before and after."""
    spec, options = tiny(name)
    x0, label = digits()
    cond = Conditioning(label=label if spec.num_classes else None)
    path, prediction, optimizer = VPPath(), Prediction("epsilon"), optax.adam(3e-3)
    time = jnp.linspace(0.05, 0.95, 16)
    epsilon = jax.random.normal(jax.random.key(1), x0.shape)

    def loss(model):
        return SimpleLoss().at(model, path, prediction, x0, cond, time, epsilon)[0].mean()

    @jax.jit
    def init(key):
        model = BACKBONES[name](
            input_shape=SHAPE, out_channels=1, conditioning=spec, **options, time_scale=1.0, rngs=nnx.Rngs(key)
        )
        return model, optimizer.init(model)

    # A loop here and not in the program: XLA's CPU backend runs convolutions inside its loops on one thread.
    @jax.jit
    def step(model, state):
        value, gradients = jax.value_and_grad(loss)(model)
        with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
            updates, state = optimizer.update(gradients, state, model)
            return optax.apply_updates(model, updates), state, value

    model, state = init(jax.random.key(0))
    losses = []
    for _ in range(STEPS):
        model, state, value = step(model, state)
        losses.append(float(value))
    return model, losses


@EVERY
def test_sixteen_samples_are_fitted(name):
    """A model that cannot overfit is wired wrongly: the output, a skip, the time or the condition does not arrive."""
    _, losses = fitted(name)
    assert losses[0] > 0.5
    assert losses[-1] < BOUND, losses[::50]


@EVERY
def test_samplers_of_three_kinds_draw_from_it(name):
    """DDIM, DPM-Solver++(2M) and Euler-Maruyama stay finite and end near the range of the data."""
    spec, _ = tiny(name)
    model, _ = fitted(name)
    path, index = VPPath(), jnp.arange(4)

    @jax.jit
    def draw(model, label):
        cond = Conditioning(label=label if spec.num_classes else None)
        denoise = denoiser(conditional(model, cond), Prediction("epsilon"))

        def run(kind):
            sampler = SAMPLERS[kind](steps=5)
            noise = initial_noise(sampler, path, jax.random.key(0), index, SHAPE)
            return sample(sampler, path, denoise, noise, jax.random.key(1), index)

        return {kind: run(kind) for kind in ("ddim", "dpm_solver_multistep", "euler_maruyama")}

    drawn = draw(model, jnp.arange(4, dtype=jnp.int32))
    for kind, images in drawn.items():
        assert images.shape == (4, *SHAPE) and np.all(np.isfinite(images)), kind
        assert len(np.unique(np.asarray(images)[:, 0, 0, 0])) == 4
    assert not np.allclose(drawn["ddim"], drawn["euler_maruyama"])
