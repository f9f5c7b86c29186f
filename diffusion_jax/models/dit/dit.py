"""DiT, the diffusion transformer (arXiv 2212.09748), with the refinements that later papers made to it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec, given_tokens, sequence_mask
from diffusion_jax.models.dit.blocks import (
    AdaLNBlock,
    BlockDesign,
    CrossAttentionBlock,
    FinalLayer,
    Layers,
    MLPKind,
    NormKind,
    PlainBlock,
)
from diffusion_jax.models.layers.embeddings import LabelEmbedder, TimestepEmbedder, VectorEmbedder, sincos_2d
from diffusion_jax.models.layers.patches import patch_grid, patchify, unpatchify
from diffusion_jax.models.layers.precision import DTypeName, Precision
from diffusion_jax.models.layers.projector import Projector
from diffusion_jax.models.layers.remat import RematPolicy
from diffusion_jax.models.layers.rotary import rotary_2d
from diffusion_jax.models.layers.scan_blocks import scan_blocks
from diffusion_jax.models.layers.transformer import XAVIER_UNIFORM, Linear, QKNorm


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

MODERN: Mapping[str, Any] = {"norm": "rms", "mlp": "swiglu", "qk_norm": "rms", "rope": True, "time_scale": 1000.0}
"""What the `modern` presets set beside the size, for velocity networks told t ∈ [0, 1]; the defaults are `classic`."""


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
    if size not in DIT_SIZES or not patch.isdecimal() or int(patch) < 1:
        raise UserError(f"no DiT variant '{variant}': use S, B, L or XL, a slash and the patch size, as in 'XL/2'")
    return {**DIT_SIZES[size]._asdict(), "patch_size": int(patch)}


class DiT(nnx.Module):
    """Diffusion transformer over image or latent patches, unconditional, of classes, or of a sequence of tokens.

    The paper tells the model time and class. A pooled embedding is added to the embedding of the time. A sequence of
    tokens, such as a text, goes where the designs without modulation have a sequence already: after the embeddings of
    time and class, projected to D and without positions.

    The defaults are the published model ("classic"); `MODERN` lists what newer ones set.

    Args:
      input_shape: (H, W, C) of x_t; H and W divisible by `patch_size`, square or not.
      out_channels: channels of the output, 2C with a learned variance.
      conditioning: what the model is told: a class label, a pooled embedding, tokens (`cross_attention` and
        `in_context` only), in any combination, or nothing.
      depth: number of blocks L.
      width: D, divisible by 4 and by `heads`.
      heads: attention heads.
      patch_size: side p of a patch.
      mlp_ratio: hidden width of the MLP over D; SwiGLU has ⅔ of it.
      block: how blocks are told time and class: `adaln_zero`, `adaln` (no gates), `cross_attention` (to the two
        embeddings, and tokens) or `in_context` (the two embeddings, and tokens, as further tokens of the sequence).
      norm: LayerNorm (`layer`), or RMSNorm with a learned scale (`rms`), everywhere.
      mlp: `gelu` in its tanh form, or `swiglu`.
      qk_norm: norm of queries and keys over each head, for stability in bfloat16.
      rope: rotate queries and keys by row and column, beside the added position table.
      modulation_shift: whether the modulation of the adaLN designs shifts.
      mlp_norm_eps: eps of the norm before the MLP; diffusers takes 1e-5 unless told otherwise.
      base_grid: token rows and columns (h, w) whose positions a grid of another size shares: row r of H/p stands at
        r · h/(H/p), as in diffusers and LightningDiT. With the grid of a trained model, its weights see familiar
        positions at a new resolution. None counts rows and columns by ones.
      time_scale: factor on the timestep; 1 for the index 0…999, 1000 for t ∈ [0, 1].
      freq_denominator: d of the time frequencies 10000^(−i/d); 128 official, 127 as diffusers computes them.
      label_std: standard deviation of the class embeddings at the start, 0.02 official. Runs of a few thousand steps
        then hardly tell classes apart; UNets and U-ViT begin with 1.
      repa_depth: the block, counted from 1, whose tokens `project` maps to patch features (REPA); 0 for none. REPA
        takes 8.
      repa_width: width of those features, 768 for DINOv2-B.
      repa_hidden: hidden width of the projector.
      remat: rematerialisation policy of the blocks.
      dtype: compute dtype.
      residual_dtype: dtype of the residual stream.
      rngs: initialiser streams.

    Raises:
      UserError: sizes that do not divide, options that exclude each other, or a condition that the model cannot take.
    """

    # Head- and hidden-wise over "tensor", the other matrix axis over "fsdp".
    partition_rules = (
        (r"blocks/(attn/qkv|cross/kv)/kernel", PartitionSpec(None, "fsdp", None, "tensor", None)),
        (r"blocks/(attn/qkv|cross/kv)/bias", PartitionSpec(None, None, "tensor", None)),
        (r"blocks/cross/q/kernel", PartitionSpec(None, "fsdp", "tensor", None)),
        (r"blocks/cross/q/bias", PartitionSpec(None, "tensor", None)),
        (r"blocks/(attn|cross)/proj/kernel", PartitionSpec(None, "tensor", "fsdp")),
        (r"blocks/mlp/fc1/kernel", PartitionSpec(None, "fsdp", "tensor")),
        (r"blocks/mlp/fc1/bias", PartitionSpec(None, "tensor")),
        (r"blocks/mlp/w12/kernel", PartitionSpec(None, "fsdp", None, "tensor")),
        (r"blocks/mlp/w12/bias", PartitionSpec(None, None, "tensor")),
        (r"blocks/mlp/(fc2|w3)/kernel", PartitionSpec(None, "tensor", "fsdp")),
        (r"blocks/modulation/kernel", PartitionSpec(None, "fsdp", None)),
        (r"(time_embed|projector)/fc\d/kernel|final/modulation/kernel", PartitionSpec("fsdp", None)),
        (r"vector_embed/linear/kernel|context_embed/kernel", PartitionSpec(None, "fsdp")),
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
        block: BlockDesign = "adaln_zero",
        norm: NormKind = "layer",
        mlp: MLPKind = "gelu",
        qk_norm: QKNorm = "none",
        rope: bool = False,
        modulation_shift: bool = True,
        mlp_norm_eps: float = 1e-6,
        base_grid: tuple[int, int] | None = None,
        time_scale: float = 1.0,
        freq_denominator: int = 128,
        label_std: float = 0.02,
        repa_depth: int = 0,
        repa_width: int = 768,
        repa_hidden: int = 2048,
        remat: RematPolicy = "none",
        dtype: DTypeName = "float32",
        residual_dtype: DTypeName = "float32",
        rngs: nnx.Rngs,
    ):
        height, image_width, channels = input_shape
        self.adaln = block in ("adaln_zero", "adaln")
        if self.adaln and conditioning.token_length:
            raise UserError(
                f"model.block='{block}' cannot take the tokens that the conditioner provides: set model.block to "
                "'cross_attention' or 'in_context'"
            )
        conditioning.check("dit", frozenset({"label", "vector", "tokens"}))
        if width % heads or width % 4:
            raise UserError(f"model.width={width} must be divisible by 4 and by model.heads={heads}")
        if rope and width // heads % 4:
            raise UserError(
                f"model.rope needs heads of a width divisible by 4, not {width // heads}: choose model.heads"
            )
        if base_grid is not None and min(base_grid) < 1:
            raise UserError(f"model.base_grid={base_grid}: rows and columns must be at least 1")
        if not 0 <= repa_depth <= depth:
            raise UserError(f"model.repa_depth={repa_depth}: must be 0 (none) or one of the {depth} blocks")
        if not modulation_shift and not self.adaln:
            raise UserError(f"model.modulation_shift=False: block '{block}' has no modulation; leave it True")
        self.conditioning = conditioning
        self.precision = Precision(dtype, residual_dtype)
        self.remat = remat
        self.depth, self.width, self.patch_size = depth, width, patch_size
        self.grid = patch_grid(height, image_width, patch_size)
        self.base_grid = base_grid
        self.in_context = block == "in_context"
        self.head_width = width // heads if rope else 0
        self.repa_depth = repa_depth
        compute = self.precision.compute_dtype
        layers = Layers(width, heads, mlp_ratio, norm, mlp, qk_norm, mlp_norm_eps, compute)

        def make_block(key: jax.Array) -> AdaLNBlock | CrossAttentionBlock | PlainBlock:
            rngs = nnx.Rngs(key)
            if self.adaln:
                return AdaLNBlock(layers, gate=block == "adaln_zero", shift=modulation_shift, rngs=rngs)
            return PlainBlock(layers, rngs=rngs) if self.in_context else CrossAttentionBlock(layers, rngs=rngs)

        def linear(inputs: int) -> Linear:
            return Linear(inputs, width, kernel_init=XAVIER_UNIFORM, dtype=compute, rngs=rngs)

        self.patch_embed = linear(patch_size**2 * channels)
        self.time_embed = TimestepEmbedder(width, time_scale=time_scale, freq_denominator=freq_denominator, rngs=rngs)
        classes, vector, tokens = conditioning.num_classes, conditioning.vector_width, conditioning.token_length
        self.label_embed = LabelEmbedder(conditioning, width, stddev=label_std, rngs=rngs) if classes else None
        self.vector_embed = VectorEmbedder(conditioning, width, rngs=rngs) if vector else None
        self.context_embed = linear(conditioning.token_width) if tokens else None
        self.blocks = jax.vmap(make_block)(jax.random.split(rngs.params(), depth))
        self.final = FinalLayer(layers, patch_size**2 * out_channels, modulated=self.adaln, rngs=rngs)
        self.projector = Projector(width, repa_hidden, repa_width, dtype=compute, rngs=rngs) if repa_depth else None

    def __call__(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> jax.Array:
        """Predicts the path's target for noisy inputs.

        Args:
          x: [B, H, W, C] float noisy images or latents.
          timestep: [B] float.
          cond: the parts that the model was built for: `label`, [B] int32 in 0…K; `vector`; `tokens`, of which those
            that `token_mask` masks have no influence, with `token_mask`.

        Returns:
          [B, H, W, out_channels] float32.
        """
        tokens, condition = self.embed(x, timestep, cond)  # [B, N, D], [B, D] or [B, M, D]
        tokens, _ = self._run_blocks(tokens, condition, self._mask(cond))  # [B, N, D]
        return self._to_image(tokens, condition)  # [B, H, W, out_channels]

    def project(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> tuple[jax.Array, jax.Array]:
        """The prediction, and what its tokens say of patch features; for training only (REPA, arXiv 2410.06940).

        Args: those of a call.

        Returns:
          [B, H, W, out_channels] float32, the value of a call, and [B, N, repa_width] float32, row-major.

        Raises:
          ValueError: the model has no projector.
        """
        if self.projector is None:
            raise ValueError("project of a DiT with repa_depth 0")
        tokens, condition = self.embed(x, timestep, cond)  # [B, N, D], [B, D] or [B, M, D]
        tokens, tapped = self._run_blocks(tokens, condition, self._mask(cond), self.repa_depth)  # [B, N, D] each
        return self._to_image(tokens, condition), self.projector(tapped)

    def embed(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> tuple[jax.Array, jax.Array]:
        """The input of the blocks.

        Args: those of a call.

        Returns:
          Tokens [B, N, D] in the residual dtype, and the condition float32: SiLU(c) [B, D] of the adaLN designs, else
          the embeddings of time and, if there are any, of class and tokens as a sequence [B, M, D].
        """
        tokens = self.patch_embed(patchify(x, self.patch_size))  # [B, N, D]
        tokens = tokens.astype(jnp.float32) + sincos_2d(*self.grid, self.width, self.base_grid)
        time = self.time_embed(timestep)  # [B, D]
        if self.vector_embed is not None:
            time = time + self.vector_embed(cond.vector)  # [B, D]
        parts = [time]
        if self.label_embed is not None:
            parts.append(self.label_embed(cond.label))  # [B, D]
        condition = jax.nn.silu(sum(parts[1:], parts[0])) if self.adaln else jnp.stack(parts, axis=1)
        if self.context_embed is not None:
            context = self.context_embed(given_tokens(cond)).astype(jnp.float32)  # [B, token_length, D]
            condition = jnp.concatenate([condition, context], axis=1)  # [B, M, D]
        return tokens.astype(self.precision.residual_dtype), condition

    def _mask(self, cond: Conditioning) -> jax.Array | None:
        """What of the sequence that holds the tokens of the condition may be attended to, [B, M] or [B, N + M] bool."""
        if self.context_embed is None:
            return None
        others = 1 + (self.label_embed is not None)
        return sequence_mask(cond.token_mask, others + (self.grid[0] * self.grid[1] if self.in_context else 0))

    def _run_blocks(
        self, tokens: jax.Array, condition: jax.Array, mask: jax.Array | None, tap: int = 0
    ) -> tuple[jax.Array, Any]:
        """The image tokens [B, N, D] after all blocks, and after block `tap`, counted from 1; None if it is 0."""
        count = tokens.shape[1]
        rotation = rotary_2d(*self.grid, self.head_width, self.base_grid) if self.head_width else None  # [N, d/2]
        if self.in_context:
            tokens = jnp.concatenate([tokens, condition.astype(tokens.dtype)], axis=1)  # [B, N + M, D]
            if rotation is not None:  # the condition has no place in the image and is not rotated
                rotation = np.pad(rotation, ((0, condition.shape[1]), (0, 0)))  # [N + M, d/2]

        def body(carry: tuple, layer: tuple) -> tuple[tuple, None]:
            (tokens, tapped), (number, block) = carry, layer
            tokens = block(tokens, condition, rotation, mask)  # [B, N (+ M), D]
            return (tokens, jnp.where(number == tap, tokens, tapped) if tap else None), None

        start = (tokens, jnp.zeros_like(tokens) if tap else None)
        layers = (np.arange(1, self.depth + 1), self.blocks)
        (tokens, tapped), _ = scan_blocks(body, start, layers, self.remat)
        return jax.tree.map(lambda tokens: tokens[:, :count], (tokens, tapped))  # [B, N, D]

    def _to_image(self, tokens: jax.Array, condition: jax.Array) -> jax.Array:
        return unpatchify(self.final(tokens, condition), self.grid, self.patch_size)  # [B, H, W, out_channels]

    @property
    def sequence_length(self) -> int:
        """Length of the sequence, the tokens of an in-context condition included."""
        context = 1 + bool(self.conditioning.num_classes) + self.conditioning.token_length
        return self.grid[0] * self.grid[1] + (context if self.in_context else 0)
