"""The head that representation alignment trains against patch features (REPA, arXiv 2410.06940)."""

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.models.layers.transformer import XAVIER_UNIFORM, Linear


class Projector(nnx.Module):
    """Three linear maps with SiLU between them.

    Args:
      width: D of the tokens.
      hidden: width of the two hidden layers.
      features: Z, the width of the features.
      dtype: compute dtype.
      rngs: initialiser streams.
    """

    def __init__(self, width: int, hidden: int, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.fc1 = Linear(width, hidden, kernel_init=XAVIER_UNIFORM, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, hidden, kernel_init=XAVIER_UNIFORM, dtype=dtype, rngs=rngs)
        self.fc3 = Linear(hidden, features, kernel_init=XAVIER_UNIFORM, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [B, N, D] to [B, N, Z] float32."""
        x = jax.nn.silu(self.fc2(jax.nn.silu(self.fc1(x))))  # [B, N, hidden]
        return self.fc3(x).astype(jnp.float32)  # [B, N, Z]
