"""DiT, the diffusion transformer with adaLN-Zero blocks (arXiv 2212.09748)."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.models.conditioning import Conditioning, ConditioningSpec
from diffusion_jax.models.embeddings import LabelEmbedder, TimestepEmbedder, sincos_2d
from diffusion_jax.models.norms import layer_norm
from diffusion_jax.models.patches import patch_grid, patchify, unpatchify
from diffusion_jax.models.precision import DTypeName, Precision
from diffusion_jax.models.remat import RematPolicy, remat
from diffusion_jax.models.transformer import MLP, Linear, SelfAttention


class DiTSize(NamedTuple):
    """Depth L, width D and number of heads of a published size."""

    depth: int
    width: int
    heads: int


DIT_SIZES: Mapping[str, DiTSize] = {
    "S": DiTSize(12, 384, 6),
    "B": DiTSize(12, 768, 12),
    "L": DiTSize(24, 1024, 16),
    "XL": DiTSize(28, 1152, 16),
}


def dit_config(variant: str) -> dict[str, int]:
    """The constructor arguments of a published model.

    Args:
      variant: size and patch, `"S/8"` … `"XL/2"` (arXiv 2212.09748, table 1).

    Returns:
      `depth`, `width`, `heads` and `patch_size` for `DiT`.

    Raises:
      UserError: no such variant.
    """
    size, _, patch = variant.partition("/")
    if size not in DIT_SIZES or not patch.isdigit() or int(patch) < 1:
        raise UserError(f"no DiT variant '{variant}': use S, B, L or XL, a slash and the patch size, as in 'XL/2'")
    return {**DIT_SIZES[size]._asdict(), "patch_size": int(patch)}


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Applies one [B, D] shift and scale to all tokens of [B, N, D]: x (1 + scale) + shift."""
    return x * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nnx.Module):
    """The adaLN-Zero block: shift, scale and gate of both branches are regressed from c; the identity at the start.

    Args:
      width: D.
      heads: number of heads.
      hidden: width of the MLP.
      precision: the mixed-precision policy.
      rngs: initialiser streams; `modulation` starts at zero.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, precision: Precision, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.attn = SelfAttention(width, heads, dtype=precision.compute_dtype, rngs=rngs)
        self.mlp = MLP(width, hidden, approximate=True, dtype=precision.compute_dtype, rngs=rngs)
        self.modulation = nnx.Linear(width, 6 * width, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        """Maps tokens [B, N, D] and the activated condition SiLU(c) [B, D] float32 to [B, N, D], dtype of x."""
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = jnp.split(self.modulation(c), 6, axis=-1)

        def branch(layer, x, shift, scale, gate):
            h = layer(modulate(layer_norm(x), shift, scale))
            return (x.astype(jnp.float32) + gate[:, None] * h.astype(jnp.float32)).astype(x.dtype)

        x = branch(self.attn, x, shift_attn, scale_attn, gate_attn)
        return branch(self.mlp, x, shift_mlp, scale_mlp, gate_mlp)


class FinalLayer(nnx.Module):
    """Modulated norm and the linear head to patches; head and modulation start at zero, so the output does too."""

    def __init__(self, width: int, out_features: int, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.modulation = nnx.Linear(width, 2 * width, kernel_init=zeros, rngs=rngs)
        self.linear = nnx.Linear(width, out_features, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        """Maps tokens [B, N, D] and SiLU(c) [B, D] to [B, N, out_features] float32."""
        shift, scale = jnp.split(self.modulation(c), 2, axis=-1)
        return self.linear(modulate(layer_norm(x), shift, scale))  # [B, N, p²·C]


class DiT(nnx.Module):
    """Class-conditional diffusion transformer over image or latent patches.

    Args:
      input_shape: (H, W, C) of x_t; H and W divisible by `patch_size`.
      out_channels: channels of the output, 2C with a learned variance.
      conditioning: what the model is told; a class label, or nothing for an unconditional model.
      depth: number of blocks L.
      width: D, divisible by 4 and by `heads`.
      heads: attention heads.
      patch_size: side p of a patch.
      mlp_ratio: hidden width of the MLP over D.
      time_scale: factor on the timestep; 1 for the index 0…999, 1000 for t ∈ [0, 1].
      freq_denominator: d of the time frequencies 10000^(−i/d); 128 official, 127 as diffusers computes them.
      remat: rematerialisation policy of the blocks.
      dtype: compute dtype.
      residual_dtype: dtype of the residual stream.
      rngs: initialiser streams.

    Raises:
      UserError: sizes that do not divide, or a condition other than a class label.
    """

    # Head- and hidden-wise over "tensor", the other matrix axis over "fsdp".
    partition_rules = (
        (r"blocks/attn/qkv/kernel", PartitionSpec(None, "fsdp", None, "tensor", None)),
        (r"blocks/attn/qkv/bias", PartitionSpec(None, None, "tensor", None)),
        (r"blocks/attn/proj/kernel", PartitionSpec(None, "tensor", "fsdp")),
        (r"blocks/mlp/fc1/kernel", PartitionSpec(None, "fsdp", "tensor")),
        (r"blocks/mlp/fc1/bias", PartitionSpec(None, "tensor")),
        (r"blocks/mlp/fc2/kernel", PartitionSpec(None, "tensor", "fsdp")),
        (r"blocks/modulation/kernel", PartitionSpec(None, "fsdp", None)),
        (r"time_embed/fc\d/kernel|final/modulation/kernel", PartitionSpec("fsdp", None)),
        (r"label_embed/table/embedding", PartitionSpec(None, "fsdp")),
    )

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        out_channels: int,
        conditioning: ConditioningSpec,
        depth: int = 28,
        width: int = 1152,
        heads: int = 16,
        patch_size: int = 2,
        mlp_ratio: float = 4.0,
        time_scale: float = 1.0,
        freq_denominator: int = 128,
        remat: RematPolicy = "none",
        dtype: DTypeName = "float32",
        residual_dtype: DTypeName = "float32",
        rngs: nnx.Rngs,
    ):
        height, image_width, channels = input_shape
        conditioning.check("dit", frozenset({"label"}))
        if width % heads or width % 4:
            raise UserError(f"model.width={width} must be divisible by 4 and by model.heads={heads}")
        self.precision = Precision(dtype, residual_dtype)
        self.remat = remat
        self.depth, self.width, self.patch_size = depth, width, patch_size
        self.grid = patch_grid(height, image_width, patch_size)
        hidden = int(width * mlp_ratio)

        def block(key: jax.Array) -> DiTBlock:
            return DiTBlock(width, heads, hidden, precision=self.precision, rngs=nnx.Rngs(key))

        self.patch_embed = Linear(
            patch_size**2 * channels,
            width,
            kernel_init=nnx.initializers.xavier_uniform(),
            dtype=self.precision.compute_dtype,
            rngs=rngs,
        )
        self.time_embed = TimestepEmbedder(width, time_scale=time_scale, freq_denominator=freq_denominator, rngs=rngs)
        if conditioning.num_classes:
            self.label_embed = LabelEmbedder(conditioning, width, rngs=rngs)
        self.blocks = jax.vmap(block)(jax.random.split(rngs.params(), depth))
        self.final = FinalLayer(width, patch_size**2 * out_channels, rngs=rngs)

    def __call__(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> jax.Array:
        """Predicts the path's target for noisy inputs.

        Args:
          x: [B, H, W, C] float noisy images or latents.
          timestep: [B] float.
          cond: its `label`, [B] int32 in 0…K, is used if the model has classes.

        Returns:
          [B, H, W, out_channels] float32.
        """
        tokens, c = self.embed(x, timestep, cond)  # [B, N, D], [B, D]

        def body(tokens: jax.Array, block: DiTBlock) -> tuple[jax.Array, None]:
            return block(tokens, c), None

        tokens, _ = jax.lax.scan(remat(body, self.remat), tokens, self.blocks)
        return unpatchify(self.final(tokens, c), self.grid, self.patch_size)  # [B, H, W, out_channels]

    def embed(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> tuple[jax.Array, jax.Array]:
        """The input of the blocks: tokens [B, N, D] in the residual dtype, and SiLU(c) [B, D] float32."""
        tokens = self.patch_embed(patchify(x, self.patch_size))  # [B, N, D]
        tokens = tokens.astype(jnp.float32) + sincos_2d(*self.grid, self.width)
        c = self.time_embed(timestep)  # [B, D]
        if hasattr(self, "label_embed"):
            c = c + self.label_embed(cond.label)
        return tokens.astype(self.precision.residual_dtype), jax.nn.silu(c)

    @property
    def tokens(self) -> int:
        """Length N of the sequence."""
        return self.grid[0] * self.grid[1]
