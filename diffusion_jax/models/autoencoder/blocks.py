"""The convolutional encoder and decoder of the LDM first stages (arXiv 2112.10752, appendix G)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.errors import UserError
from diffusion_jax.models.layers.attention import attention
from diffusion_jax.models.layers.convolution import conv3x3, pointwise, upsample_nearest
from diffusion_jax.models.layers.group_norm import GroupNorm


@dataclass(frozen=True)
class Layout:
    """The shape that an encoder and its decoder share.

    Attributes:
      widths: channels of each level, full resolution first; every further level halves H and W.
      stem: channels of the encoder's first convolution.
      num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
      attention: for each level, whether an attention follows each of its blocks.
      mid_attention: whether the blocks at the lowest resolution have an attention between them.
      norm_groups: groups of every norm.
      dtype: compute dtype of convolutions and attention; norms are float32.
    """

    widths: tuple[int, ...]
    stem: int
    num_res_blocks: int
    attention: tuple[bool, ...]
    mid_attention: bool
    norm_groups: int
    dtype: jnp.dtype

    @property
    def downsampling(self) -> int:
        """The factor f between image and latent sizes."""
        return 2 ** (len(self.widths) - 1)


def make_layout(
    *,
    ch: int,
    ch_mult: tuple[int, ...],
    num_res_blocks: int,
    attn_resolutions: tuple[int, ...],
    resolution: int,
    mid_attention: bool,
    norm_groups: int,
    dtype: str,
) -> Layout:
    """Reads the constructor arguments of the published autoencoders (see `AutoencoderKL`).

    Raises:
      UserError: an attention resolution that no level has.
    """
    sizes = [resolution // 2**level for level in range(len(ch_mult))]
    for size in attn_resolutions:
        if size not in sizes:
            raise UserError(
                f"autoencoder.attn_resolutions has {size}, but at resolution={resolution} the levels have {sizes}"
            )
    return Layout(
        widths=tuple(ch * multiplier for multiplier in ch_mult),
        stem=ch,
        num_res_blocks=num_res_blocks,
        attention=tuple(size in attn_resolutions for size in sizes),
        mid_attention=mid_attention,
        norm_groups=norm_groups,
        dtype=jnp.dtype(dtype),
    )


class ResBlock(nnx.Module):
    """Norm, SiLU, convolution, twice, added to the input (through a 1×1 convolution where the width changes)."""

    def __init__(self, channels: int, features: int, layout: Layout, *, rngs: nnx.Rngs):
        dtype = layout.dtype
        self.norm1 = GroupNorm(channels, groups=layout.norm_groups)
        self.conv1 = conv3x3(channels, features, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(features, groups=layout.norm_groups)
        self.conv2 = conv3x3(features, features, dtype=dtype, rngs=rngs)
        self.shortcut = None if channels == features else pointwise(channels, features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, channels] to [B, H, W, features], both of the compute dtype."""
        h = self.conv1(jax.nn.silu(self.norm1(x)))  # [B, H, W, features]
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class SpatialAttention(nnx.Module):
    """Single-head self-attention between the pixels, added to the input."""

    def __init__(self, channels: int, layout: Layout, *, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, groups=layout.norm_groups)
        self.qkv = pointwise(channels, 3 * channels, dtype=layout.dtype, rngs=rngs)
        self.proj = pointwise(channels, channels, dtype=layout.dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, C], both of the compute dtype."""
        batch, height, width, channels = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, height * width, 3, 1, channels)  # [B, N, 3, heads = 1, C]
        h = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])  # [B, N, 1, C]
        return x + self.proj(h.reshape(x.shape))  # [B, H, W, C]


class Level(nnx.Module):
    """The residual blocks of one resolution, each followed by an attention where the level has attentions."""

    def __init__(self, channels: int, features: int, blocks: int, layout: Layout, *, attention: bool, rngs: nnx.Rngs):
        widths = [channels] + [features] * (blocks - 1)
        self.blocks = nnx.List([ResBlock(width, features, layout, rngs=rngs) for width in widths])
        self.attentions = nnx.List([SpatialAttention(features, layout, rngs=rngs) for _ in widths if attention])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, channels] to [B, H, W, features]."""
        for i, block in enumerate(self.blocks):
            x = block(x)  # [B, H, W, features]
            if self.attentions:
                x = self.attentions[i](x)
        return x


class Middle(nnx.Module):
    """Residual block, attention, residual block at the lowest resolution: [B, h, w, C] to [B, h, w, C]."""

    def __init__(self, channels: int, layout: Layout, *, rngs: nnx.Rngs):
        self.block1 = ResBlock(channels, channels, layout, rngs=rngs)
        self.attention = SpatialAttention(channels, layout, rngs=rngs) if layout.mid_attention else None
        self.block2 = ResBlock(channels, channels, layout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.block1(x)
        if self.attention is not None:
            x = self.attention(x)
        return self.block2(x)


class Encoder(nnx.Module):
    """Images to features at 1/f of their size.

    Args:
      layout: the shape; f = `layout.downsampling`.
      in_channels: channels of the images.
      out_channels: channels of the result; two per latent channel for a KL bottleneck.
      rngs: initialiser streams.
    """

    def __init__(self, layout: Layout, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        inputs = (layout.stem, *layout.widths[:-1])
        top = layout.widths[-1]
        self.conv_in = conv3x3(in_channels, layout.stem, dtype=layout.dtype, rngs=rngs)
        self.levels = nnx.List(
            [
                Level(channels, features, layout.num_res_blocks, layout, attention=attends, rngs=rngs)
                for channels, features, attends in zip(inputs, layout.widths, layout.attention, strict=True)
            ]
        )
        # Zeros at the bottom and the right only, as published; symmetric padding would shift every feature.
        self.downsamplers = nnx.List(
            [
                conv3x3(features, features, strides=2, padding=((0, 1), (0, 1)), dtype=layout.dtype, rngs=rngs)
                for features in layout.widths[:-1]
            ]
        )
        self.mid = Middle(top, layout, rngs=rngs)
        self.norm_out = GroupNorm(top, groups=layout.norm_groups)
        self.conv_out = conv3x3(top, out_channels, dtype=layout.dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, in_channels] to [B, H/f, W/f, out_channels] in the compute dtype."""
        x = self.conv_in(x)  # [B, H, W, stem]
        for i, level in enumerate(self.levels):
            x = level(x)  # [B, H/2^i, W/2^i, widths[i]]
            if i < len(self.downsamplers):
                x = self.downsamplers[i](x)  # [B, H/2^(i+1), W/2^(i+1), widths[i]]
        x = self.mid(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))  # [B, H/f, W/f, out_channels]


class Decoder(nnx.Module):
    """Features at 1/f of the size to images; `levels` and `upsamplers` are numbered as the encoder's, from the top.

    Args:
      layout: the shape of the encoder.
      in_channels: channels of the features.
      out_channels: channels of the images.
      rngs: initialiser streams.
    """

    def __init__(self, layout: Layout, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        inputs = (*layout.widths[1:], layout.widths[-1])
        self.conv_in = conv3x3(in_channels, layout.widths[-1], dtype=layout.dtype, rngs=rngs)
        self.mid = Middle(layout.widths[-1], layout, rngs=rngs)
        self.levels = nnx.List(
            [
                Level(channels, features, layout.num_res_blocks + 1, layout, attention=attends, rngs=rngs)
                for channels, features, attends in zip(inputs, layout.widths, layout.attention, strict=True)
            ]
        )
        # Upsampler i leads from level i + 1 to level i.
        self.upsamplers = nnx.List(
            [conv3x3(features, features, dtype=layout.dtype, rngs=rngs) for features in layout.widths[1:]]
        )
        self.norm_out = GroupNorm(layout.widths[0], groups=layout.norm_groups)
        self.conv_out = conv3x3(layout.widths[0], out_channels, dtype=layout.dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, in_channels] to [B, f·h, f·w, out_channels] in the compute dtype, without an output bound."""
        return self.conv_out(self.features(x))  # [B, H, W, out_channels]

    def features(self, x: jax.Array) -> jax.Array:
        """What the last convolution reads, [B, f·h, f·w, widths[0]]: the adversarial weight is a gradient there."""
        x = self.mid(self.conv_in(x))  # [B, h, w, widths[-1]]
        for i in reversed(range(len(self.levels))):
            x = self.levels[i](x)  # [B, H/2^i, W/2^i, widths[i]]
            if i > 0:
                x = self.upsamplers[i - 1](upsample_nearest(x))  # [B, H/2^(i-1), W/2^(i-1), widths[i]]
        return jax.nn.silu(self.norm_out(x))  # [B, H, W, widths[0]]
