"""The KL- and VQ-regularised autoencoders of latent diffusion (arXiv 2112.10752)."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoder.blocks import Decoder, Encoder, make_layout
from diffusion_jax.models.autoencoder.quantizer import VectorQuantizer
from diffusion_jax.models.layers.convolution import pointwise
from diffusion_jax.models.layers.precision import DTypeName
from diffusion_jax.schema import Options

AUTOENCODERS: Mapping[str, Options] = {
    "kl-f4": {"ch_mult": (1, 2, 4), "z_channels": 3, "embed_dim": 3},
    "kl-f8": {"ch_mult": (1, 2, 4, 4), "z_channels": 4, "embed_dim": 4},
    "kl-f16": {"ch_mult": (1, 1, 2, 2, 4), "attn_resolutions": (16,), "z_channels": 16, "embed_dim": 16},
    "kl-f32": {"ch_mult": (1, 1, 2, 2, 4, 4), "attn_resolutions": (16, 8), "z_channels": 64, "embed_dim": 64},
    "sd-vae": {"ch_mult": (1, 2, 4, 4), "z_channels": 4, "embed_dim": 4},
}
"""Constructor arguments of `AutoencoderKL` for the published models; those of LDM are named by their factor f."""

_VQ_F8: Options = {"ch_mult": (1, 2, 2, 4), "attn_resolutions": (32,), "z_channels": 4, "embed_dim": 4}
VQ_AUTOENCODERS: Mapping[str, Options] = {
    "vq-f4": {"ch_mult": (1, 2, 4), "z_channels": 3, "embed_dim": 3, "num_codes": 8192},
    "vq-f4-noattn": {
        "ch_mult": (1, 2, 4),
        "mid_attention": False,
        "z_channels": 3,
        "embed_dim": 3,
        "num_codes": 8192,
    },
    "vq-f8": {**_VQ_F8, "num_codes": 16384},
    "vq-f8-n256": {**_VQ_F8, "num_codes": 256},
    "vq-f16": {
        "ch_mult": (1, 1, 2, 2, 4),
        "attn_resolutions": (16,),
        "z_channels": 8,
        "embed_dim": 8,
        "num_codes": 16384,
    },
}
"""Constructor arguments of `AutoencoderVQ` for the published models, named by their factor f."""


class Moments(NamedTuple):
    """A diagonal Gaussian over latents, what the encoder says of a batch of images.

    Attributes:
      mean: [B, h, w, embed_dim] float32; also the mode.
      logvar: [B, h, w, embed_dim] float32, in [-30, 20].
    """

    mean: jax.Array
    logvar: jax.Array

    @property
    def std(self) -> jax.Array:
        """[B, h, w, embed_dim], the standard deviation."""
        return jnp.exp(0.5 * self.logvar)

    def sample(self, noise: jax.Array) -> jax.Array:
        """mean + std · noise: the latents [B, h, w, embed_dim] drawn by standard normal `noise` of that shape."""
        return self.mean + self.std * noise

    def kl(self) -> jax.Array:
        """[B] divergence from N(0, I) in nats, ½ Σ (mean² + var − 1 − ln var) over h, w and channels."""
        return 0.5 * jnp.sum(self.mean**2 + jnp.exp(self.logvar) - 1 - self.logvar, axis=(1, 2, 3))

    def negative_log_likelihood(self, latents: jax.Array) -> jax.Array:
        """[B] −ln density in nats of `latents` [B, h, w, embed_dim], summed over h, w and channels."""
        squares = (latents - self.mean) ** 2 * jnp.exp(-self.logvar)
        return 0.5 * jnp.sum(np.log(2 * np.pi).astype(np.float32) + self.logvar + squares, axis=(1, 2, 3))


class Autoencoder(nnx.Module):
    """The convolutional encoder and decoder that the two regularisations share (§3.1, appendix G).

    The defaults are those of the Stable Diffusion autoencoder ("sd-vae", f = 8).

    Args:
      in_channels: channels of the images read.
      out_channels: channels of the images written.
      ch: width of the first level.
      ch_mult: width of each level over `ch`; f = 2^(levels − 1).
      num_res_blocks: residual blocks per encoder level; the decoder has one more.
      attn_resolutions: sizes of the levels that attend, for images of `resolution`; the placement does not follow
        the size of actual inputs.
      resolution: nominal image size, used only to place `attn_resolutions`.
      mid_attention: whether the lowest resolution attends (off in the "noattn" variant).
      z_channels: channels between the encoder and the bottleneck.
      embed_dim: channels of the latents.
      norm_groups: groups of every norm; divides `ch`.
      dtype: compute dtype; parameters and norms are float32.
      rngs: initialiser streams; convolutions uniform in ±1/√fan_in.

    Raises:
      UserError: an attention resolution that no level has, or a width that does not divide into groups.
    """

    moments: ClassVar[int]
    """Channels that the encoder writes for each channel of the latents."""

    # The input of a block's first convolution over "fsdp", what lies between the two over "tensor".
    partition_rules = (
        (r"conv1/kernel", PartitionSpec(None, None, "fsdp", "tensor")),
        (r"conv1/bias", PartitionSpec("tensor")),
        (r"conv2/kernel", PartitionSpec(None, None, "tensor", "fsdp")),
        (r"conv_in/kernel", PartitionSpec(None, None, None, "fsdp")),
        (r"(conv_out|samplers/\d+)/kernel", PartitionSpec(None, None, "fsdp", None)),
        (r"(shortcut|qkv|proj)/kernel", PartitionSpec("fsdp", None)),
    )

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        ch: int = 128,
        ch_mult: tuple[int, ...] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attn_resolutions: tuple[int, ...] = (),
        resolution: int = 256,
        mid_attention: bool = True,
        z_channels: int = 4,
        embed_dim: int = 4,
        norm_groups: int = 32,
        dtype: DTypeName = "float32",
        rngs: nnx.Rngs,
    ):
        self.layout = make_layout(
            ch=ch,
            ch_mult=ch_mult,
            num_res_blocks=num_res_blocks,
            attn_resolutions=attn_resolutions,
            resolution=resolution,
            mid_attention=mid_attention,
            norm_groups=norm_groups,
            dtype=dtype,
        )
        self.in_channels, self.out_channels, self.embed_dim = in_channels, out_channels, embed_dim
        self.encoder = Encoder(self.layout, in_channels, self.moments * z_channels, rngs=rngs)
        self.decoder = Decoder(self.layout, z_channels, out_channels, rngs=rngs)
        # The bottleneck is 0.01 % of the work, and its outputs are the latents themselves: always float32.
        float32, moments = jnp.dtype("float32"), self.moments
        self.quant_conv = pointwise(moments * z_channels, moments * embed_dim, dtype=float32, rngs=rngs)
        self.post_quant_conv = pointwise(embed_dim, z_channels, dtype=float32, rngs=rngs)

    def latent_shape(self, image_size: int | tuple[int, int], channels: int) -> tuple[int, int, int]:
        """The shape of one image's latents; needs no weights.

        Args:
          image_size: H and W in pixels; one number for squares.
          channels: channels of the images.

        Returns:
          (H/f, W/f, embed_dim).

        Raises:
          UserError: H or W does not divide by f, or the autoencoder takes other channels.
        """
        factor = self.layout.downsampling
        if channels != self.in_channels:
            raise UserError(
                f"the data has {channels} channels, but autoencoder.in_channels={self.in_channels}: "
                f"set data.channels={self.in_channels}, or name another autoencoder"
            )
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if height % factor or width % factor:
            raise UserError(
                f"an image size of {height}×{width} does not divide by {factor}, the autoencoder's downsampling "
                f"factor: take a multiple of {factor} for data.image_size"
            )
        return height // factor, width // factor, self.embed_dim


class AutoencoderKL(Autoencoder):
    """Autoencoder whose latents are kept close to N(0, I) by a KL penalty; arguments as for `Autoencoder`."""

    moments = 2

    def encode(self, images: jax.Array) -> Moments:
        """The distribution of the latents of images.

        Args:
          images: [B, H, W, in_channels] float in [-1, 1], H and W divisible by f.

        Returns:
          Moments of [B, H/f, W/f, embed_dim] float32.
        """
        moments = self.quant_conv(self.encoder(images))  # [B, H/f, W/f, 2·embed_dim]
        mean, logvar = jnp.split(moments, 2, axis=-1)  # [B, H/f, W/f, embed_dim] each
        return Moments(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: jax.Array) -> jax.Array:
        """The images of latents.

        Args:
          latents: [B, h, w, embed_dim] float, unscaled (as `encode` gives them).

        Returns:
          [B, f·h, f·w, out_channels] float32, about [-1, 1] but not clipped.
        """
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)  # [B, H, W, out_channels]


class AutoencoderVQ(Autoencoder):
    """Autoencoder whose decoder begins by rounding the latents to a codebook.

    Latents are what stands before the rounding, so a diffusion model learns a continuous space and the decoder removes
    its small errors (§3.1).

    Args:
      num_codes: |Z|, the size of the codebook.
      rngs: initialiser streams.
      **architecture: as for `Autoencoder`.
    """

    moments = 1

    def __init__(self, *, num_codes: int, rngs: nnx.Rngs, **architecture: Any):
        super().__init__(rngs=rngs, **architecture)
        self.quantizer = VectorQuantizer(num_codes, self.embed_dim, rngs=rngs)

    def encode(self, images: jax.Array) -> jax.Array:
        """The latents of images, before quantisation.

        Args:
          images: [B, H, W, in_channels] float in [-1, 1], H and W divisible by f.

        Returns:
          [B, H/f, W/f, embed_dim] float32.
        """
        return self.quant_conv(self.encoder(images))  # [B, H/f, W/f, embed_dim]

    def decode(self, latents: jax.Array, *, quantize: bool = True) -> jax.Array:
        """The images of latents.

        Args:
          latents: [B, h, w, embed_dim] float, as `encode` gives them.
          quantize: round to the codebook first; gradients pass straight through.

        Returns:
          [B, f·h, f·w, out_channels] float32, about [-1, 1] but not clipped.
        """
        codes = self.quantizer(latents).latents if quantize else latents  # [B, h, w, embed_dim]
        return self.decoder(self.post_quant_conv(codes)).astype(jnp.float32)  # [B, H, W, out_channels]
