"""The four block designs of DiT and the layers they end in (arXiv 2212.09748, §3.2 and figure 3).

A block is called as `block(x, condition, rotation, mask)`: tokens [B, N, D], the condition, rotary angles or None, and
a mask, True where a token may be attended to, or None. The condition of the adaLN designs is SiLU(c) [B, D], and there
is no mask. That of the others is a sequence [B, M, D]: cross-attention reads it, with a mask [B, M]; in-context blocks
have it among their tokens, with a mask [B, N]. The release has adaLN-Zero only; the other designs follow the text of
the paper.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffusion_jax.models.layers.norms import LayerNorm, RMSNorm
from diffusion_jax.models.layers.remat import recomputed
from diffusion_jax.models.layers.residual import add
from diffusion_jax.models.layers.swiglu import SwiGLU
from diffusion_jax.models.layers.transformer import MLP, CrossAttention, QKNorm, SelfAttention

BlockDesign = Literal["adaln_zero", "adaln", "cross_attention", "in_context"]
NormKind = Literal["layer", "rms"]
MLPKind = Literal["gelu", "swiglu"]


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers that the blocks of one model are made of.

    Attributes:
      width: D.
      heads: attention heads.
      mlp_ratio: hidden width of a plain MLP over D; a gated one has ⅔ of it.
      norm: LayerNorm, or RMSNorm with a learned scale.
      mlp: GELU (tanh form), or SwiGLU.
      qk_norm: norm of queries and keys over each head.
      mlp_norm_eps: eps of the norm before the MLP.
      dtype: compute dtype.
    """

    width: int
    heads: int
    mlp_ratio: float
    norm: NormKind
    mlp: MLPKind
    qk_norm: QKNorm
    mlp_norm_eps: float
    dtype: jnp.dtype

    def make_norm(self, *, affine: bool, eps: float = 1e-6) -> LayerNorm | RMSNorm:
        """A norm; `affine` says whether a LayerNorm has scale and bias."""
        return RMSNorm(self.width, eps=eps) if self.norm == "rms" else LayerNorm(self.width, eps=eps, affine=affine)

    def make_attention(self, rngs: nnx.Rngs) -> SelfAttention:
        """Self-attention."""
        return SelfAttention(self.width, self.heads, qk_norm=self.qk_norm, dtype=self.dtype, rngs=rngs)

    def make_mlp(self, rngs: nnx.Rngs) -> MLP | SwiGLU:
        """The MLP."""
        hidden = self.width * self.mlp_ratio
        if self.mlp == "swiglu":
            return SwiGLU(self.width, int(2 * hidden / 3), dtype=self.dtype, rngs=rngs)
        return MLP(self.width, int(hidden), approximate=True, dtype=self.dtype, rngs=rngs)


def modulate(x: jax.Array, shift: jax.Array | None, scale: jax.Array) -> jax.Array:
    """Applies one [B, D] scale, and shift if there is one, to all tokens of [B, N, D]: x (1 + scale) + shift."""
    x = x * (1 + scale[:, None])
    return x if shift is None else x + shift[:, None]


class AdaLNBlock(nnx.Module):
    """Shift and scale of both norms, and in adaLN-Zero a gate of both branches, are regressed from the condition.

    Args:
      layers: what the block is made of.
      gate: adaLN-Zero; False is adaLN.
      shift: whether there are shifts; LightningDiT has tried to leave them out.
      rngs: initialiser streams; `modulation` starts at zero, so that adaLN-Zero is the identity at first and adaLN an
        unmodulated block.
    """

    def __init__(self, layers: Layers, *, gate: bool, shift: bool, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.shift, self.gate = shift, gate
        self.norm1 = layers.make_norm(affine=False)
        self.attn = layers.make_attention(rngs)
        self.norm2 = layers.make_norm(affine=False, eps=layers.mlp_norm_eps)
        self.mlp = layers.make_mlp(rngs)
        parts = 2 * (shift + 1 + gate)
        self.modulation = nnx.Linear(layers.width, parts * layers.width, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: jax.Array, c: jax.Array, rotation: np.ndarray | None = None, mask: None = None) -> jax.Array:
        """Maps tokens [B, N, D] and SiLU(c) [B, D] float32 to [B, N, D], dtype of x."""
        of_attn, of_mlp = jnp.split(self.modulation(c), 2, axis=-1)
        x = self._branch(x, self.norm1, partial(self.attn, rotation=rotation), of_attn)
        return self._branch(x, self.norm2, self.mlp, of_mlp)

    def _branch(self, x: jax.Array, norm: Callable, layer: Callable, modulation: jax.Array) -> jax.Array:
        parts = iter(jnp.split(modulation, self.shift + 1 + self.gate, axis=-1))
        shift = next(parts) if self.shift else None
        scale = next(parts)
        normalise = recomputed(lambda norm, x, shift, scale: modulate(norm(x), shift, scale))
        return add(x, layer(normalise(norm, x, shift, scale)), next(parts) if self.gate else None)


class CrossAttentionBlock(nnx.Module):
    """Self-attention, attention to the condition as a sequence, and MLP, each behind its norm."""

    def __init__(self, layers: Layers, *, rngs: nnx.Rngs):
        width = layers.width
        self.norm1 = layers.make_norm(affine=True)
        self.attn = layers.make_attention(rngs)
        self.norm_cross = layers.make_norm(affine=True)
        self.cross = CrossAttention(width, width, layers.heads, dtype=layers.dtype, rngs=rngs)
        self.norm2 = layers.make_norm(affine=True, eps=layers.mlp_norm_eps)
        self.mlp = layers.make_mlp(rngs)

    def __call__(
        self, x: jax.Array, context: jax.Array, rotation: np.ndarray | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps tokens [B, N, D] and the context [B, M, D], with its mask [B, M], to [B, N, D], dtype of x."""
        x = add(x, self.attn(self.norm1(x), rotation))
        x = add(x, self.cross(self.norm_cross(x), context, mask))
        return add(x, self.mlp(self.norm2(x)))


class PlainBlock(nnx.Module):
    """The pre-norm block of ViT, for conditions that are tokens of the sequence themselves."""

    def __init__(self, layers: Layers, *, rngs: nnx.Rngs):
        self.norm1 = layers.make_norm(affine=True)
        self.attn = layers.make_attention(rngs)
        self.norm2 = layers.make_norm(affine=True, eps=layers.mlp_norm_eps)
        self.mlp = layers.make_mlp(rngs)

    def __call__(
        self, x: jax.Array, context: jax.Array, rotation: np.ndarray | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps tokens [B, N, D], the context among them, and their mask [B, N], to [B, N, D], dtype of x."""
        x = add(x, self.attn(self.norm1(x), rotation, mask=mask))
        return add(x, self.mlp(self.norm2(x)))


class FinalLayer(nnx.Module):
    """Norm, modulated in the adaLN designs, and the linear head to patches.

    Args:
      layers: what the blocks are made of.
      out_features: p²·C.
      modulated: whether shift and scale come from the condition; otherwise a LayerNorm has its own.
      rngs: initialiser streams; head and modulation start at zero, and so does the output.
    """

    def __init__(self, layers: Layers, out_features: int, *, modulated: bool, rngs: nnx.Rngs):
        zeros, width = nnx.initializers.zeros_init(), layers.width
        self.norm = layers.make_norm(affine=not modulated)
        self.modulation = nnx.Linear(width, 2 * width, kernel_init=zeros, rngs=rngs) if modulated else None
        self.linear = nnx.Linear(width, out_features, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Maps tokens [B, N, D] and the condition of the blocks to [B, N, out_features] float32."""
        x = self.norm(x)  # [B, N, D]
        if self.modulation is not None:
            x = modulate(x, *jnp.split(self.modulation(condition), 2, axis=-1))
        return self.linear(x)  # [B, N, p²·C]
