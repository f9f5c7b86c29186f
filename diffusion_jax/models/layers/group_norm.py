"""Group normalisation in float32 (arXiv 1803.08494)."""

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.errors import UserError


class GroupNorm(nnx.Module):
    """Normalises each group of adjacent channels of each image, then applies a learned scale and bias per channel.

    Args:
      channels: C, divisible by `groups`.
      groups: number of groups.
      eps: added to the variance; 1e-6 in the LDM autoencoders and spatial transformers, 1e-5 in the UNet.

    Raises:
      UserError: `groups` does not divide `channels`.
    """

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-6):
        if channels % groups:
            raise UserError(
                f"{channels} channels do not divide into {groups} norm groups: make every width a multiple of {groups}"
            )
        self.groups, self.eps = groups, eps
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] of any floating dtype to [B, H, W, C] float32."""
        x = x.astype(jnp.float32)
        batch, channels = x.shape[0], x.shape[-1]

        # Statistics of each channel first, merged into those of its group afterwards: XLA vectorises a reduction that
        # leaves the minor axis alone, which on a CPU is two to four times as fast as reducing [B, H·W, G, C/G]. The
        # variance is of centred values: E[x²] − E[x]² loses its digits where the mean is large.
        def grouped(statistic: jax.Array) -> jax.Array:
            return statistic.reshape(batch, self.groups, -1)  # [B, G, C/G]

        def spread(statistic: jax.Array) -> jax.Array:
            whole = jnp.broadcast_to(statistic, (batch, self.groups, channels // self.groups))
            return whole.reshape(batch, 1, 1, channels)  # [B, 1, 1, C]

        channel_mean = x.mean((1, 2))  # [B, C]
        channel_variance = jnp.square(x - channel_mean[:, None, None]).mean((1, 2))  # [B, C]
        mean = grouped(channel_mean).mean(-1, keepdims=True)  # [B, G, 1]
        between = jnp.square(grouped(channel_mean) - mean)  # [B, G, C/G]
        variance = (grouped(channel_variance) + between).mean(-1, keepdims=True)  # [B, G, 1]
        return (x - spread(mean)) * (spread(jax.lax.rsqrt(variance + self.eps)) * self.scale[...]) + self.bias[...]
