"""The network that recognises digits, and its training from nothing in seconds."""

import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from diffusion_jax import keys
from diffusion_jax.data import Source
from diffusion_jax.data.digits import NATIVE_SIZE
from diffusion_jax.data.order import record_indices

NUM_CLASSES = 10


class DigitNetwork(nnx.Module):
    """A perceptron with two hidden layers and a narrow third one, whose activations are the features.

    Args:
      width: width of the two hidden layers.
      features: D, width of the third.
      rngs: initialiser streams.
    """

    def __init__(self, width: int, features: int, *, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(NATIVE_SIZE**2, width, rngs=rngs)
        self.fc2 = nnx.Linear(width, width, rngs=rngs)
        self.fc3 = nnx.Linear(width, features, rngs=rngs)
        self.head = nnx.Linear(features, NUM_CLASSES, rngs=rngs)

    def features(self, pixels: jax.Array) -> jax.Array:
        """Maps grey images [B, 64] in [−1, 1] to features [B, D]."""
        x = nnx.silu(self.fc1(pixels))  # [B, width]
        x = nnx.silu(self.fc2(x))
        return nnx.silu(self.fc3(x))  # [B, D]

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Maps grey images [B, 64] in [−1, 1] to logits [B, 10]."""
        return self.head(self.features(pixels))  # [B, 10]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the network is made.

    Attributes:
      width: width of the two hidden layers.
      features: D, number of features.
      steps: optimizer steps.
      batch_size: images per step.
      lr: peak learning rate of AdamW, which a cosine takes to zero.
      weight_decay: decoupled weight decay.
      label_smoothing: probability spread over all classes.
      noise: standard deviation of the noise added to images in [−1, 1].
      seed: of initialisation, order, shifts and noise.
    """

    width: int = 256
    features: int = 64
    steps: int = 1000
    batch_size: int = 128
    lr: float = 4e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.1
    noise: float = 0.2
    seed: int = 0

    def fingerprint(self, data: str) -> str:
        """Eight hexadecimal digits that change with the recipe, the data, this file or the libraries it calls.

        Args:
          data: identity of the training images.
        """
        versions = {"jax": jax.__version__, "flax": flax.__version__, "optax": importlib.metadata.version("optax")}
        # The source itself, because a version number would have to be remembered at each change.
        source = inspect.getsource(sys.modules[__name__])
        parts = json.dumps([dataclasses.asdict(self), data, versions, source])
        return hashlib.sha256(parts.encode()).hexdigest()[:8]

    def network(self) -> DigitNetwork:
        """The network before training."""
        return DigitNetwork(self.width, self.features, rngs=nnx.Rngs(keys.purpose_key(self.seed, "init")))


def to_pixels(images: jax.Array) -> jax.Array:
    """Averages the channels of uint8 images [B, 8, 8, C] and scales them: [B, 64] float32 in [−1, 1]."""
    return images.astype(jnp.float32).mean(-1).reshape(len(images), -1) / 127.5 - 1  # [B, 64]


def train(recipe: Recipe, source: Source, device: jax.Device) -> DigitNetwork:
    """Trains the network.

    Args:
      recipe: how.
      source: 8 × 8 images with labels 0 … 9.
      device: where.

    Returns:
      The trained network, on `device`.
    """
    records = [source[i] for i in range(len(source))]
    images = np.stack([record["image"] for record in records])  # [n, 8, 8, C]
    labels = np.stack([record["label"] for record in records])  # [n]
    positions = np.arange(recipe.steps * recipe.batch_size)
    order = record_indices(recipe.seed, positions, len(source)).reshape(recipe.steps, -1).astype(np.int32)
    return jax.jit(_run, static_argnums=0)(recipe, *jax.device_put((images, labels, order), device))


def _run(recipe: Recipe, images: jax.Array, labels: jax.Array, order: jax.Array) -> DigitNetwork:
    """All of the training as one program; images [n, 8, 8, C] uint8, labels [n], order [steps, batch_size]."""
    schedule = optax.cosine_decay_schedule(recipe.lr, recipe.steps)
    optimizer = optax.adamw(schedule, weight_decay=recipe.weight_decay)
    network = recipe.network()
    shifted = _shifts(to_pixels(images))  # [9, n, 64]

    def step(carry, inputs):
        network, optimizer_state = carry
        number, chosen = inputs
        shift_key = keys.purpose_key(recipe.seed, "shift", number)
        noise_key = keys.purpose_key(recipe.seed, "noise", number)
        shift = jax.random.randint(shift_key, chosen.shape, 0, len(shifted))  # [B]
        pixels = shifted[shift, chosen]  # [B, 64]
        pixels += recipe.noise * jax.random.normal(noise_key, pixels.shape)
        targets = optax.smooth_labels(jax.nn.one_hot(labels[chosen], NUM_CLASSES), recipe.label_smoothing)  # [B, 10]

        def loss(network: DigitNetwork) -> jax.Array:
            return optax.softmax_cross_entropy(network(pixels), targets).mean()

        gradients = jax.grad(loss)(network)
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes integers and floats
            updates, optimizer_state = optimizer.update(gradients, optimizer_state, network)
        return (optax.apply_updates(network, updates), optimizer_state), None

    (network, _), _ = jax.lax.scan(step, (network, optimizer.init(network)), (jnp.arange(recipe.steps), order))
    return network


def _shifts(pixels: jax.Array) -> jax.Array:
    """The images [n, 64] moved by −1, 0 and 1 pixels in both directions over a background of −1: [9, n, 64]."""
    square = pixels.reshape(-1, NATIVE_SIZE, NATIVE_SIZE)
    padded = jnp.pad(square, ((0, 0), (1, 1), (1, 1)), constant_values=-1.0)
    rows = [padded[:, i : i + NATIVE_SIZE] for i in range(3)]
    moved = [row[:, :, j : j + NATIVE_SIZE] for row in rows for j in range(3)]
    return jnp.stack(moved).reshape(len(moved), *pixels.shape)  # [9, n, 64]
