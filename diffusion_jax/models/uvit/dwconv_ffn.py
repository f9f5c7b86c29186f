"""DWConvFFN, the feed-forward of IU-ViT: an MLP that also looks at its neighbours (arXiv 2212.13771)."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.models.layers.activations import gelu
from diffusion_jax.models.layers.convolution import uniform
from diffusion_jax.models.layers.norms import LayerNorm, layer_norm
from diffusion_jax.models.layers.remat import recomputed
from diffusion_jax.models.layers.transformer import XAVIER_UNIFORM, Linear

ExtraTokens = Literal["pointwise", "none"]


class DepthwiseConv(nnx.Module):
    """A 3×3 convolution of each channel by itself, stride 1, zeros around the image.

    Args:
      channels: C.
      rngs: initialiser streams; weights and biases uniform in ±1/3, PyTorch's default.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(uniform(9)(rngs.params(), (3, 3, channels), jnp.float32))
        self.bias = nnx.Param(uniform(9)(rngs.params(), (channels,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] of any floating dtype to [B, H, W, C] float32."""

        def convolve(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
            height, width = x.shape[1:3]
            padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))  # [B, H + 2, W + 2, C]
            out = bias
            # Nine products that XLA fuses into one pass; its grouped convolution is ten times slower on a CPU.
            for row in range(3):
                for column in range(3):
                    out = out + padded[:, row : row + height, column : column + width] * kernel[row, column]
            return out  # [B, H, W, C]

        return recomputed(convolve)(x, self.kernel[...], self.bias[...])  # [B, H, W, C]


class DWConvFFN(nnx.Module):
    """Linear, GELU and norm, 3×3 depth-wise convolution, GELU and norm, linear.

    Tokens beside the image's have no place on the grid; the paper does not say what becomes of them.

    Args:
      width: D.
      hidden: width between the linear maps.
      grid: (h, w), rows and columns of image tokens, which are the last h·w of a sequence.
      norm_affine: whether the norms have a scale and bias.
      norm_first: norm before GELU instead of after it.
      extra_tokens: "pointwise" sends the other tokens past the convolution and the GELU and norm that follow it, "none"
        gives zero for them.
      eps: of the norms.
      kernel_init: initialiser of the linear maps; their biases are zero.
      dtype: compute dtype of the linear maps; all else is float32.
      rngs: initialiser streams.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        grid: tuple[int, int],
        *,
        norm_affine: bool = True,
        norm_first: bool = False,
        extra_tokens: ExtraTokens = "pointwise",
        eps: float = 1e-5,
        kernel_init: nnx.Initializer = XAVIER_UNIFORM,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.grid, self.norm_first, self.extra_tokens, self.eps = grid, norm_first, extra_tokens, eps
        self.dtype = dtype
        self.fc1 = Linear(width, hidden, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(hidden, eps=eps) if norm_affine else None
        self.depthwise = DepthwiseConv(hidden, rngs=rngs)
        self.norm2 = LayerNorm(hidden, eps=eps) if norm_affine else None
        self.fc2 = Linear(hidden, width, kernel_init=kernel_init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [B, E + h·w, D] to [B, E + h·w, D] in the compute dtype."""
        height, width = self.grid
        extras = x.shape[1] - height * width
        if self.extra_tokens == "none":
            return jnp.pad(self._pass(x[:, extras:], 0), ((0, 0), (extras, 0), (0, 0)))  # [B, E + h·w, D]
        return self._pass(x, extras)

    def _pass(self, x: jax.Array, extras: int) -> jax.Array:
        h = self._activate(self.fc1(x), self.norm1)  # [B, E + h·w, hidden]
        image = h[:, extras:].reshape(h.shape[0], *self.grid, h.shape[-1])  # [B, h, w, hidden]
        image = self._activate(self.depthwise(image), self.norm2)  # [B, h, w, hidden]
        image = image.reshape(h.shape[0], -1, h.shape[-1])  # [B, h·w, hidden]
        return self.fc2(jnp.concatenate([h[:, :extras], image], axis=1))  # [B, E + h·w, D]

    def _activate(self, h: jax.Array, norm: LayerNorm | None) -> jax.Array:
        """GELU and norm, the exact form, in float32; the result has the compute dtype."""

        def compute(h: jax.Array, norm: LayerNorm | None) -> jax.Array:
            h = h.astype(jnp.float32)
            if not self.norm_first:
                h = gelu(h, approximate=False)
            h = layer_norm(h, self.eps) if norm is None else norm(h)
            if self.norm_first:
                h = gelu(h, approximate=False)
            return h.astype(self.dtype)

        return recomputed(compute)(h, norm)
