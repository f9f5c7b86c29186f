"""What UNets are made of: their layout, the levels of their two paths, and the middle between them."""

import dataclasses
from functools import cached_property
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.errors import UserError
from diffusion_jax.models.layers.convolution import conv3x3, upsample_nearest
from diffusion_jax.models.layers.key_stream import KeyStream
from diffusion_jax.models.layers.precision import Precision
from diffusion_jax.models.layers.remat import RematPolicy, remat
from diffusion_jax.models.unet.attention import AttentionBlock
from diffusion_jax.models.unet.residual_block import Resample, ResBlock
from diffusion_jax.models.unet.spatial_transformer import SpatialTransformer

DownsamplePadding = Literal["symmetric", "after"]


@dataclasses.dataclass(frozen=True)
class UNetLayout:
    """The shape of a UNet; the fields are arguments of `UNet`, which describes them.

    Attributes:
      context_width: width of the tokens to attend to; None for plain `AttentionBlock`s.

    Raises:
      UserError: not exactly one of `num_heads` and `num_head_channels`, or one that does not divide a width.
    """

    model_channels: int
    channel_mult: tuple[float, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    num_heads: int | None
    num_head_channels: int | None
    use_scale_shift_norm: bool
    resblock_updown: bool
    context_width: int | None = None
    transformer_depth: int = 1
    downsample_padding: DownsamplePadding = "symmetric"
    norm_groups: int = 32
    norm_eps: float = 1e-5
    dropout: float = 0.0
    remat: RematPolicy = "none"
    precision: Precision = dataclasses.field(default_factory=Precision)

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout={self.dropout}: must be at least 0 and below 1")
        if (self.num_heads is None) == (self.num_head_channels is None):
            raise UserError(
                f"model.num_heads={self.num_heads}, model.num_head_channels={self.num_head_channels}: set one of them"
            )
        attended = [width for width, attends in zip(self.widths, self.attends, strict=True) if attends]
        for width in (*attended, self.widths[-1]):
            divisor = self.num_heads or self.num_head_channels
            if divisor is None or divisor < 1 or width % divisor:
                raise UserError(
                    f"model.num_heads={self.num_heads}, model.num_head_channels={self.num_head_channels}: "
                    f"choose a divisor of the {width} channels of an attention"
                )

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return tuple(int(self.model_channels * multiplier) for multiplier in self.channel_mult)

    @property
    def attends(self) -> tuple[bool, ...]:
        """For each level, whether its blocks have attentions."""
        return tuple(2**level in self.attention_resolutions for level in range(len(self.channel_mult)))

    @property
    def embedding_width(self) -> int:
        """Width of the time embedding."""
        return 4 * self.model_channels

    @property
    def downsampling(self) -> int:
        """How many times smaller than the input the feature maps of the middle are."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def skip_widths(self) -> list[int]:
        """Channels of every feature map that the way down hands over to the way up, in order."""
        widths = [self.widths[0]]
        for level, width in enumerate(self.widths):
            is_last = level == len(self.widths) - 1
            widths += [width] * (self.num_res_blocks + (not is_last))
        return widths

    def heads(self, channels: int) -> int:
        """Number of heads of an attention on `channels` channels."""
        return self.num_heads or channels // (self.num_head_channels or channels)

    def check_size(self, height: int, width: int) -> None:
        """Refuses an input that cannot be halved often enough (`UserError`)."""
        if height % self.downsampling or width % self.downsampling:
            raise UserError(
                f"an input of {height}×{width} does not divide by {self.downsampling}, the downsampling of a UNet of "
                f"{len(self.channel_mult)} levels: change the image size or model.channel_mult"
            )

    def longest_sequence(self, height: int, width: int) -> int:
        """Pixels of the largest feature map with an attention, for an input of `height`×`width`."""
        factors = [2**level for level, attends in enumerate(self.attends) if attends]
        factor = min(factors, default=self.downsampling)
        return (height // factor) * (width // factor)

    def res_block(self, channels: int, features: int, *, resample: Resample = "none", rngs: KeyStream) -> ResBlock:
        """A residual block of this UNet."""
        return ResBlock(
            channels,
            features,
            self.embedding_width,
            scale_shift=self.use_scale_shift_norm,
            resample=resample,
            groups=self.norm_groups,
            eps=self.norm_eps,
            dropout=self.dropout,
            # Another number for each block, whatever stands before it.
            dropout_stream=rngs.drawn,
            dtype=self.precision.compute_dtype,
            rngs=rngs,
        )

    def resampling_conv(self, channels: int, resample: Literal["down", "up"], *, rngs: KeyStream) -> nnx.Conv:
        """The convolution that halves H and W, or that follows their doubling."""
        down = resample == "down"
        # The DDPM code pads as TensorFlow does, at the bottom and the right only.
        pad = (0, 1) if down and self.downsample_padding == "after" else (1, 1)
        dtype = self.precision.compute_dtype
        return conv3x3(channels, channels, strides=2 if down else 1, padding=(pad, pad), dtype=dtype, rngs=rngs)

    def attention(self, channels: int, *, rngs: KeyStream) -> AttentionBlock | SpatialTransformer:
        """An attention of this UNet, to a context if it has one."""
        heads, dtype = self.heads(channels), self.precision.compute_dtype
        if self.context_width is None:
            return AttentionBlock(channels, heads, groups=self.norm_groups, eps=self.norm_eps, dtype=dtype, rngs=rngs)
        return SpatialTransformer(
            channels,
            heads,
            depth=self.transformer_depth,
            context_width=self.context_width,
            groups=self.norm_groups,
            dtype=dtype,
            rngs=rngs,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What every block of a UNet is told.

    Attributes:
      embedding: [B, E] float32, SiLU of the time (and label) embedding.
      tokens: [B, M, context_width] to attend to, or None.
      mask: [B, M] bool, True where `tokens` is valid; None if all are.
      keys: [B] keys of the dropout, one per sample; None drops nothing.
    """

    embedding: jax.Array
    tokens: jax.Array | None = None
    mask: jax.Array | None = None
    keys: jax.Array | None = None


class Block(nnx.Module):
    """A residual block, with an attention behind it where the level has attentions."""

    def __init__(self, channels: int, features: int, layout: UNetLayout, *, attends: bool, rngs: KeyStream):
        self.remat = layout.remat
        self.res = layout.res_block(channels, features, rngs=rngs)
        self.attention = layout.attention(features, rngs=rngs) if attends else None

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """Maps [B, H, W, channels] to [B, H, W, features] in the dtype of x."""

        def apply(block: Block, x: jax.Array, context: Context) -> jax.Array:
            return attend(block.attention, block.res(x, context.embedding, context.keys), context)

        return remat(apply, self.remat, in_scan=False)(self, x, context)


def attend(attention: AttentionBlock | SpatialTransformer | None, x: jax.Array, context: Context) -> jax.Array:
    """Applies an attention, or none, to [B, H, W, C]."""
    if isinstance(attention, SpatialTransformer):
        return attention(x, context.tokens, context.mask)
    return x if attention is None else attention(x)


class Resampler(nnx.Module):
    """Halves or doubles H and W: by a convolution, or by a residual block with `resblock_updown`."""

    def __init__(self, channels: int, layout: UNetLayout, *, resample: Literal["down", "up"], rngs: KeyStream):
        self.resample = resample
        residual = layout.resblock_updown
        self.res = layout.res_block(channels, channels, resample=resample, rngs=rngs) if residual else None
        self.conv = None if residual else layout.resampling_conv(channels, resample, rngs=rngs)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """Maps [B, H, W, C] to [B, H/2, W/2, C] or [B, 2H, 2W, C] in the dtype of x."""
        if self.res is not None:
            return self.res(x, context.embedding, context.keys)
        assert self.conv is not None
        return self.conv(upsample_nearest(x) if self.resample == "up" else x).astype(x.dtype)


class DownLevel(nnx.Module):
    """The blocks of one resolution on the way down, and the step to the next."""

    def __init__(
        self, channels: int, features: int, layout: UNetLayout, *, attends: bool, is_last: bool, rngs: KeyStream
    ):
        widths = [channels] + [features] * (layout.num_res_blocks - 1)
        self.blocks = nnx.List([Block(width, features, layout, attends=attends, rngs=rngs) for width in widths])
        self.downsampler = None if is_last else Resampler(features, layout, resample="down", rngs=rngs)

    def __call__(self, x: jax.Array, context: Context) -> list[jax.Array]:
        """Maps [B, H, W, channels] to the outputs of all blocks and of the step down, in order."""
        skips = []
        for block in self.blocks:
            x = block(x, context)  # [B, H, W, features]
            skips.append(x)
        if self.downsampler is not None:
            skips.append(self.downsampler(x, context))  # [B, H/2, W/2, features]
        return skips


class UpLevel(nnx.Module):
    """The blocks of one resolution on the way up, each taking one feature map of the way down, and the step up."""

    def __init__(
        self,
        channels: int,
        features: int,
        skip_widths: list[int],
        layout: UNetLayout,
        *,
        attends: bool,
        is_last: bool,
        rngs: KeyStream,
    ):
        widths = [channels] + [features] * (len(skip_widths) - 1)
        self.blocks = nnx.List(
            [
                Block(width + skip, features, layout, attends=attends, rngs=rngs)
                for width, skip in zip(widths, skip_widths, strict=True)
            ]
        )
        self.upsampler = None if is_last else Resampler(features, layout, resample="up", rngs=rngs)

    def __call__(self, x: jax.Array, skips: list[jax.Array], context: Context) -> jax.Array:
        """Maps [B, H, W, channels] to [B, 2H, 2W, features], or without a step up to [B, H, W, features].

        `skips` holds one [B, H, W, skip] for each block.
        """
        for block, skip in zip(self.blocks, skips, strict=True):
            x = block(jnp.concatenate([x, skip], axis=-1), context)  # [B, H, W, features]
        return x if self.upsampler is None else self.upsampler(x, context)  # [B, 2H, 2W, features]


class Encoder(nnx.Module):
    """The way down and the middle of a UNet; also the trunk of a classifier of noisy images.

    Args:
      in_channels: channels of the input.
      layout: the shape.
      rngs: initialiser streams.
    """

    def __init__(self, in_channels: int, layout: UNetLayout, *, rngs: KeyStream):
        widths, top = layout.widths, layout.widths[-1]
        self.residual_dtype = layout.precision.residual_dtype
        self.conv_in = conv3x3(in_channels, widths[0], dtype=layout.precision.compute_dtype, rngs=rngs)
        self.levels = nnx.List(
            [
                DownLevel(channels, features, layout, attends=attends, is_last=level == len(widths) - 1, rngs=rngs)
                for level, (channels, features, attends) in enumerate(
                    zip((widths[0], *widths[:-1]), widths, layout.attends, strict=True)
                )
            ]
        )
        self.mid1 = Block(top, top, layout, attends=True, rngs=rngs)
        self.mid2 = Block(top, top, layout, attends=False, rngs=rngs)

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, list[jax.Array]]:
        """Encodes an input.

        Args:
          x: [B, H, W, in_channels].
          context: what the blocks are told.

        Returns:
          [B, h, w, widths[-1]], and the feature maps of the way down in order, of `layout.skip_widths` channels.
        """
        skips = [self.conv_in(x).astype(self.residual_dtype)]  # [B, H, W, widths[0]]
        for level in self.levels:
            skips += level(skips[-1], context)
        return self.mid2(self.mid1(skips[-1], context), context), skips  # [B, h, w, widths[-1]]
