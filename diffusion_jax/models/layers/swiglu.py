"""The gated MLP of the newer transformers."""

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.models.layers.transformer import XAVIER_UNIFORM, Linear


class SwiGLU(nnx.Module):
    """SiLU(x W₁) ⊙ (x W₂) through a last linear map, with biases (arXiv 2002.05202).

    Args:
      width: D.
      hidden: width of both factors; ⅔ of that of a plain MLP gives the same number of parameters.
      kernel_init: initialiser of both kernels, W₁ and W₂ fused; biases are zero.
      dtype: compute dtype.
      rngs: initialiser streams.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        kernel_init: nnx.Initializer = XAVIER_UNIFORM,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.w12 = Linear(width, (2, hidden), kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.w3 = Linear(hidden, width, kernel_init=kernel_init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D] in the compute dtype."""
        gates = self.w12(x)  # [..., 2, hidden]
        return self.w3(jax.nn.silu(gates[..., 0, :]) * gates[..., 1, :])
