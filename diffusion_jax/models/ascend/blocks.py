"""What ASCEND is made of: its layout, the levels of its two halves, and the steps between them (arXiv 2212.13771)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from diffusion_jax.errors import UserError
from diffusion_jax.models.ascend.swin import PatchExpanding, PatchMerging, SwinBlock
from diffusion_jax.models.conditioning.text_features import Text
from diffusion_jax.models.layers.convolution import UNIFORM_FAN_IN, conv3x3, uniform, upsample_nearest
from diffusion_jax.models.layers.group_norm import GroupNorm
from diffusion_jax.models.layers.precision import Precision
from diffusion_jax.models.layers.remat import RematPolicy, remat
from diffusion_jax.models.layers.residual import add
from diffusion_jax.models.layers.scan_blocks import scan_blocks
from diffusion_jax.models.layers.transformer import CrossAttention, Linear
from diffusion_jax.models.unet.attention import AttentionBlock
from diffusion_jax.models.unet.residual_block import ResBlock

BlockKind = Literal["swin", "conv"]
Skips = Literal["level", "block", "none"]
Resampling = Literal["patch", "conv"]

EPS = 1e-5


class Context(NamedTuple):
    """What every block is told.

    Attributes:
      embedding: [B, E] float32, SiLU of the embedding of time (and text).
      text: what to attend to; None without text.
      keys: [B] keys of the dropout, one per sample; None drops nothing.
    """

    embedding: jax.Array
    text: Text | None
    keys: jax.Array | None

    def part(self, number: int) -> "Context":
        """The same for part `number` of a whole, with dropout keys of its own."""
        if self.keys is None:
            return self
        return self._replace(keys=jax.vmap(lambda key: jax.random.fold_in(key, number))(self.keys))


@dataclass(frozen=True)
class Layout:
    """The shape of an ASCEND; the fields are arguments of `ASCEND`, which describes them.

    Attributes:
      grid: (H, W) of the input.
      context_width: width of the text's tokens; 0 without text.

    Raises:
      UserError: sizes that do not fit together.
    """

    grid: tuple[int, int]
    model_channels: int
    channel_mult: tuple[int, ...]
    enc_depths: tuple[int, ...]
    dec_blocks: tuple[int, ...]
    encoder: BlockKind
    decoder: BlockKind
    skips: Skips
    resampling: Resampling
    attention_resolutions: tuple[int, ...]
    num_head_channels: int
    window_size: int
    mlp_ratio: float
    dropout: float
    context_width: int
    remat: RematPolicy
    precision: Precision

    def __post_init__(self) -> None:
        levels = len(self.channel_mult)
        for name in ("enc_depths", "dec_blocks"):
            depths = getattr(self, name)
            if len(depths) != levels or min(depths) < 1:
                raise UserError(f"model.{name}={depths}: give a number of at least 1 for each of the {levels} levels")
        if self.skips == "block" and self.dec_blocks != tuple(depth + 1 for depth in self.enc_depths):
            raise UserError(
                f"model.dec_blocks={self.dec_blocks}: with model.skips='block' every level of the decoder has one "
                f"block more than the encoder's {self.enc_depths}"
            )
        if any(width % self.num_head_channels for width in self.widths):
            raise UserError(f"model.num_head_channels={self.num_head_channels} must divide the widths {self.widths}")
        height, width = self.grid
        step = 2 ** (levels - 1)
        if height % step or width % step:
            raise UserError(
                f"the input of {height}×{width} does not divide by {step}, the reduction of {levels} levels: change "
                "the image size or model.channel_mult"
            )
        heights = [grid[0] for grid in self.grids]
        for size in self.attention_resolutions:
            if size not in heights:
                raise UserError(f"model.attention_resolutions has {size}, but the levels are {heights} pixels high")
        if "swin" in (self.encoder, self.decoder):
            for side in (side for grid in self.grids for side in grid):
                if side % min(side, self.window_size):
                    raise UserError(f"model.window_size={self.window_size} does not divide a feature map of {side}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout={self.dropout}: must be at least 0 and below 1")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return tuple(self.model_channels * multiplier for multiplier in self.channel_mult)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(H, W) of each level."""
        return tuple((self.grid[0] >> level, self.grid[1] >> level) for level in range(len(self.channel_mult)))

    @property
    def attends(self) -> tuple[bool, ...]:
        """For each level, whether it is at an attention resolution."""
        return tuple(height in self.attention_resolutions for height, _ in self.grids)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Channels that each level of the encoder gets."""
        # Between convolutions the first block of a level changes the width, as in ADM; Swin blocks cannot.
        changed_before = self.encoder == "swin" or self.resampling == "patch"
        return self.widths if changed_before else (self.widths[0], *self.widths[:-1])

    def skip_widths(self, level: int) -> list[int]:
        """Channels of what a level of the encoder hands to the decoder, in the order of its making."""
        blocks = [self.widths[level]] * self.enc_depths[level]
        return {"level": blocks[:1], "block": [self.inputs[level], *blocks], "none": []}[self.skips]

    @property
    def embedding_width(self) -> int:
        """Width E of the embedding of time."""
        return 4 * self.model_channels

    @property
    def dtype(self) -> jnp.dtype:
        """Compute dtype."""
        return self.precision.compute_dtype

    @property
    def longest_sequence(self) -> int:
        """Pixels that attend to each other in the widest attention."""
        windows = [min(h, self.window_size) * min(w, self.window_size) for h, w in self.grids]
        attended = [h * w for (h, w), attends in zip(self.grids, self.attends, strict=True) if attends]
        middle = self.grids[-1][0] * self.grids[-1][1]
        return max([middle, *windows, *attended])

    def swin_block(self, level: int, *, rngs: nnx.Rngs) -> SwinBlock:
        """A Swin block of a level."""
        width = self.widths[level]
        return SwinBlock(
            width,
            width // self.num_head_channels,
            self.embedding_width,
            self.grids[level],
            window_size=self.window_size,
            context_width=self.context_width if self.attends[level] else 0,
            mlp_ratio=self.mlp_ratio,
            dtype=self.dtype,
            rngs=rngs,
        )

    def res_block(self, channels: int, features: int, *, rngs: nnx.Rngs) -> ResBlock:
        """A residual block with scale-shift norm."""
        return ResBlock(
            channels,
            features,
            self.embedding_width,
            scale_shift=True,
            eps=EPS,
            dropout=self.dropout,
            dtype=self.dtype,
            rngs=rngs,
        )


class Attention(nnx.Module):
    """Self-attention between all pixels, then attention to the text if there is one; each added to the input."""

    def __init__(self, channels: int, layout: Layout, *, rngs: nnx.Rngs):
        heads = channels // layout.num_head_channels
        self.pixels = AttentionBlock(channels, heads, eps=EPS, dtype=layout.dtype, rngs=rngs)
        self.attends_to_text = layout.context_width > 0
        if self.attends_to_text:
            self.norm_cross = GroupNorm(channels, eps=EPS)
            self.cross = CrossAttention(
                channels,
                layout.context_width,
                heads,
                kernel_init=UNIFORM_FAN_IN,
                bias_init=uniform(channels),
                dtype=layout.dtype,
                rngs=rngs,
            )

    def __call__(self, x: jax.Array, text: Text | None) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, C] in the dtype of x."""
        x = self.pixels(x)
        if self.attends_to_text and text is not None:
            pixels = rearrange(self.norm_cross(x), "b h w c -> b (h w) c")
            x = add(x, self.cross(pixels, text.tokens, text.mask).reshape(x.shape))
        return x


class ConvBlock(nnx.Module):
    """A residual block, with an attention behind it at attention resolutions."""

    def __init__(self, channels: int, level: int, layout: Layout, *, rngs: nnx.Rngs):
        features = layout.widths[level]
        self.res = layout.res_block(channels, features, rngs=rngs)
        self.attention = Attention(features, layout, rngs=rngs) if layout.attends[level] else None

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """Maps [B, H, W, channels] to [B, H, W, C] in the dtype of x."""
        x = self.res(x, context.embedding, context.keys)  # [B, H, W, C]
        return x if self.attention is None else self.attention(x, context.text)


class SwinDecoderBlock(nnx.Module):
    """A linear map to the width of the level, where it is not that already, and a Swin block."""

    def __init__(self, channels: int, level: int, layout: Layout, *, rngs: nnx.Rngs):
        features = layout.widths[level]
        self.project = None if channels == features else Linear(channels, features, dtype=layout.dtype, rngs=rngs)
        self.swin = layout.swin_block(level, rngs=rngs)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """Maps [B, H, W, channels] to [B, H, W, C] in the dtype of x."""
        if self.project is not None:
            x = self.project(x).astype(x.dtype)  # [B, H, W, C]
        return self.swin(x, context.embedding, context.text)


def handed_over(skips: Skips, x: jax.Array, outputs: list[jax.Array]) -> list[jax.Array]:
    """What a level of the encoder hands to the decoder, of its input and the outputs of its blocks."""
    return {"level": outputs[-1:], "block": [x, *outputs], "none": []}[skips]


class SwinLevel(nnx.Module):
    """The Swin blocks of one resolution of the encoder, stacked."""

    def __init__(self, level: int, layout: Layout, *, rngs: nnx.Rngs):
        def block(key: jax.Array) -> SwinBlock:
            return layout.swin_block(level, rngs=nnx.Rngs(key))

        self.remat, self.skips = layout.remat, layout.skips
        self.stack = jax.vmap(block)(jax.random.split(rngs.params(), layout.enc_depths[level]))

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, list[jax.Array]]:
        """Maps [B, H, W, C] to the output of the last block and what the decoder is handed, of the same shape."""

        def body(x: jax.Array, block: SwinBlock) -> tuple[jax.Array, jax.Array | None]:
            x = block(x, context.embedding, context.text)
            return x, x if self.skips == "block" else None

        out, outputs = scan_blocks(body, x, self.stack, self.remat)  # [B, H, W, C], [depth, B, H, W, C]
        return out, handed_over(self.skips, x, [out] if outputs is None else list(outputs))


class ConvLevel(nnx.Module):
    """The residual blocks of one resolution of the encoder, the first of which may change the width."""

    def __init__(self, level: int, layout: Layout, *, rngs: nnx.Rngs):
        self.remat, self.skips = layout.remat, layout.skips
        widths = [layout.inputs[level]] + [layout.widths[level]] * (layout.enc_depths[level] - 1)
        self.blocks = nnx.List([ConvBlock(channels, level, layout, rngs=rngs) for channels in widths])

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, list[jax.Array]]:
        """Maps [B, H, W, channels] to the output [B, H, W, C] of the last block and what the decoder is handed."""
        outputs = [x]
        for number, block in enumerate(self.blocks):
            apply = remat(ConvBlock.__call__, self.remat, in_scan=False)
            outputs.append(apply(block, outputs[-1], context.part(number)))  # [B, H, W, C]
        return outputs[-1], handed_over(self.skips, x, outputs[1:])


class DecoderLevel(nnx.Module):
    """The blocks of one resolution of the decoder; the first ones each take one feature map of the encoder."""

    def __init__(self, channels: int, level: int, layout: Layout, *, rngs: nnx.Rngs):
        kind = {"conv": ConvBlock, "swin": SwinDecoderBlock}[layout.decoder]
        self.remat = layout.remat
        blocks, skips = layout.dec_blocks[level], layout.skip_widths(level)[::-1]
        widths = [channels] + [layout.widths[level]] * (blocks - 1)
        skips += [0] * (blocks - len(skips))
        self.blocks = nnx.List(
            [kind(width + skip, level, layout, rngs=rngs) for width, skip in zip(widths, skips, strict=True)]
        )

    def __call__(self, x: jax.Array, skips: list[jax.Array], context: Context) -> jax.Array:
        """Maps [B, H, W, channels] to [B, H, W, C]; `skips` in the order of their making, the last is taken first."""
        for number, block in enumerate(self.blocks):
            if number < len(skips):
                x = jnp.concatenate([x, skips[-1 - number]], axis=-1)
            x = remat(type(block).__call__, self.remat, in_scan=False)(block, x, context.part(number))
        return x


class Middle(nnx.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, layout: Layout, *, rngs: nnx.Rngs):
        channels = layout.widths[-1]
        self.block1 = layout.res_block(channels, channels, rngs=rngs)
        self.attention = Attention(channels, layout, rngs=rngs)
        self.block2 = layout.res_block(channels, channels, rngs=rngs)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """Maps [B, h, w, C] to [B, h, w, C]."""
        x = self.attention(self.block1(x, context.embedding, context.part(0).keys), context.text)
        return self.block2(x, context.embedding, context.part(1).keys)


class Downsampler(nnx.Module):
    """Halves H and W: PatchMerging, or a convolution of stride 2."""

    def __init__(self, channels: int, features: int, layout: Layout, *, rngs: nnx.Rngs):
        self.layer: nnx.Module
        if layout.resampling == "patch":
            self.layer = PatchMerging(channels, features, dtype=layout.dtype, rngs=rngs)
        else:
            self.layer = conv3x3(channels, features, strides=2, dtype=layout.dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, channels] to [B, H/2, W/2, features] in the dtype of x."""
        return self.layer(x).astype(x.dtype)


class Upsampler(nnx.Module):
    """Doubles H and W: PatchExpanding, or repeated pixels and a convolution."""

    def __init__(self, channels: int, layout: Layout, *, rngs: nnx.Rngs):
        self.resampling = layout.resampling
        self.layer: nnx.Module
        if layout.resampling == "patch":
            self.layer = PatchExpanding(channels, dtype=layout.dtype, rngs=rngs)
        else:
            self.layer = conv3x3(channels, channels, dtype=layout.dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, 2H, 2W, C] in the dtype of x."""
        return self.layer(x if self.resampling == "patch" else upsample_nearest(x)).astype(x.dtype)
