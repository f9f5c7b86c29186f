"""LPIPS, the learned perceptual distance (arXiv 1801.03924), on the features of VGG16 (arXiv 1409.1556)."""

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.models.layers.convolution import conv3x3
from diffusion_jax.models.layers.precision import DTypeName

# Channels of the convolutions between two poolings; features are read before each pooling and at the end.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

# What takes images in [−1, 1] to the statistics that VGG16 was trained with.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class LPIPS(nnx.Module):
    """A distance between images that agrees with people better than pixels do.

    Without published weights it means nothing, so build it by `diffusion_jax.interop.lpips.load_lpips`, which reads
    them; this constructor only gives the shapes.

    Args:
      dtype: compute dtype of the convolutions; the distance itself is float32.
      rngs: initialiser streams.
    """

    def __init__(self, *, dtype: DTypeName = "float32", rngs: nnx.Rngs):
        compute = jnp.dtype(dtype)
        stages, channels = [], 3
        for widths in STAGES:
            convs = []
            for width in widths:
                convs.append(conv3x3(channels, width, dtype=compute, rngs=rngs))
                channels = width
            stages.append(nnx.List(convs))
        self.stages = nnx.List(stages)
        self.heads = nnx.List([nnx.Param(jnp.zeros(widths[-1])) for widths in STAGES])

    def features(self, images: jax.Array) -> list[jax.Array]:
        """What the five stages see in images [B, H, W, 3] in [−1, 1]: [B, H/2^i, W/2^i, C_i] each, ≥ 0."""
        x = (images - jnp.array(SHIFT)) / jnp.array(SCALE)  # [B, H, W, 3]
        seen = []
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = nnx.max_pool(x, (2, 2), (2, 2))  # [B, H/2^i, W/2^i, C_(i-1)]
            for conv in stage:
                x = jax.nn.relu(conv(x))  # [B, H/2^i, W/2^i, C_i]
            seen.append(x)
        return seen

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The distance of each pair of images.

        Args:
          a: [B, H, W, 3] float in [−1, 1], H and W at least 16.
          b: the images to compare them with.

        Returns:
          [B] float32 ≥ 0 (with the published heads, which are not negative).
        """
        distance = jnp.zeros(a.shape[0])
        for in_a, in_b, head in zip(self.features(a), self.features(b), self.heads, strict=True):
            squares = (_unit(in_a) - _unit(in_b)) ** 2  # [B, H/2^i, W/2^i, C_i]
            distance += jnp.sum(squares * head[...], axis=-1).mean((1, 2))  # [B]
        return distance


def _unit(x: jax.Array) -> jax.Array:
    """Scales the channels [..., C] of each pixel to length one, in float32."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x**2, axis=-1, keepdims=True)
    # Where rectifiers have left nothing, the root has no gradient.
    length = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return x / (length + 1e-10)
