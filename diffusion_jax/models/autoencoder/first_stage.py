"""First stages: what stands between images and the space in which diffusion happens.

The `autoencoder` section of a config names an entry of `FIRST_STAGES` and its keyword arguments. The entry describes;
`build` makes the first stage itself, a pytree that goes into jitted functions as an argument:

    stage = KLConfig(preset="sd-vae", weights="weights/sd-vae-ft-ema").build(load_weights, seed=0)
    latents = stage.encode(images, noise)
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.errors import UserError
from diffusion_jax.keys import purpose_key
from diffusion_jax.models.autoencoder.autoencoder import (
    AUTOENCODERS,
    VQ_AUTOENCODERS,
    AutoencoderKL,
    AutoencoderVQ,
)
from diffusion_jax.models.autoencoder.tiling import Tiling, map_tiles
from diffusion_jax.models.layers.precision import DTypeName
from diffusion_jax.schema import Options


class FirstStage(Protocol):
    """Images to latents and back; a pytree whose leaves are the frozen parameters."""

    def latent_shape(self, image_size: int | tuple[int, int], channels: int) -> tuple[int, int, int]:
        """The shape of one image's latents.

        Args:
          image_size: H and W in pixels; one number for squares.
          channels: channels of the images.

        Returns:
          (h, w, c).

        Raises:
          UserError: this first stage cannot take such images.
        """

    def encode(self, images: jax.Array, noise: jax.Array) -> jax.Array:
        """Draws the latents a diffusion model is trained on.

        Args:
          images: [B, H, W, C] float in [-1, 1].
          noise: [B, h, w, c] standard normal, of `latent_shape`; decides the draw from the posterior.

        Returns:
          [B, h, w, c] float32, scaled to a variance near one.
        """

    def decode(self, latents: jax.Array) -> jax.Array:
        """The images of latents as `encode` gives them.

        Args:
          latents: [B, h, w, c] float.

        Returns:
          [B, H, W, C] float32 about [-1, 1]; not clipped, so gradients pass.
        """


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Identity:
    """Diffusion on pixels: the latents are the images."""

    def latent_shape(self, image_size: int | tuple[int, int], channels: int) -> tuple[int, int, int]:
        """(H, W, C) of the images; see `FirstStage`."""
        return (image_size, image_size, channels) if isinstance(image_size, int) else (*image_size, channels)

    def encode(self, images: jax.Array, noise: jax.Array) -> jax.Array:
        """Returns `images`; `noise` is not used, since there is nothing to draw."""
        return images.astype(jnp.float32)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Returns `latents`."""
        return latents.astype(jnp.float32)

    def abstract(self) -> "Identity":
        """Returns itself; there is nothing but shapes."""
        return self

    def build(self, load_weights: Callable[..., Any], seed: int) -> "Identity":
        """Returns itself; there are no weights."""
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KLFirstStage:
    """Diffusion on the scaled latents of a KL autoencoder (arXiv 2112.10752, §4.3.2 and appendix D.1).

    Attributes:
      autoencoder: the frozen autoencoder.
      scale: float32 s, a scalar or one for each channel [c]; the diffusion model sees s · (z − m).
      shift: float32 m, likewise; zero unless channels are normalised one by one.
      tiling: how larger latents are cut to bound memory; None never cuts.
    """

    autoencoder: AutoencoderKL
    scale: jax.Array
    shift: jax.Array
    tiling: Tiling | None = dataclasses.field(default=None, metadata={"static": True})

    def latent_shape(self, image_size: int | tuple[int, int], channels: int) -> tuple[int, int, int]:
        """(H/f, W/f, embed_dim); needs no weights. See `FirstStage`."""
        return self.autoencoder.latent_shape(image_size, channels)

    def encode(self, images: jax.Array, noise: jax.Array) -> jax.Array:
        """s · (mean + std · noise − m); see `FirstStage`."""
        return self.draw(self.posterior(images), noise)

    def posterior(self, images: jax.Array) -> dict[str, jax.Array]:
        """What `draw` needs of images [B, H, W, C]: `mean` and `std`, [B, h, w, c] float32, not scaled."""
        moments = _encode(self, images)
        return {"mean": moments.mean, "std": moments.std}

    def draw(self, posterior: Mapping[str, jax.Array], noise: jax.Array) -> jax.Array:
        """The latents that `encode` gives of images with this `posterior`."""
        return self.scale * (posterior["mean"] + posterior["std"] * noise - self.shift)

    def decode(self, latents: jax.Array) -> jax.Array:
        """The decoder's images of latents / s + m; see `FirstStage`."""
        return _decode(self, self.autoencoder.decode, latents / self.scale + self.shift)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VQFirstStage:
    """Diffusion on the latents of a VQ autoencoder before quantisation, which its decoder absorbs (§3.1).

    Attributes:
      autoencoder: the frozen autoencoder.
      scale: float32 s, a scalar or one for each channel [c]; the diffusion model sees s · (z − m).
      shift: float32 m, likewise; zero unless channels are normalised one by one.
      quantize: whether `decode` rounds to the codebook.
      tiling: how larger latents are cut to bound memory; None never cuts.
    """

    autoencoder: AutoencoderVQ
    scale: jax.Array
    shift: jax.Array
    quantize: bool = dataclasses.field(default=True, metadata={"static": True})
    tiling: Tiling | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def codebook(self) -> jax.Array:
        """[K, embed_dim] float32, the codes in the scale of the latents."""
        return self.scale * (self.autoencoder.quantizer.codebook[...] - self.shift)

    def latent_shape(self, image_size: int | tuple[int, int], channels: int) -> tuple[int, int, int]:
        """(H/f, W/f, embed_dim); needs no weights. See `FirstStage`."""
        return self.autoencoder.latent_shape(image_size, channels)

    def encode(self, images: jax.Array, noise: jax.Array) -> jax.Array:
        """s · (z − m); `noise` is not used, since z is a function of the image. See `FirstStage`."""
        return self.draw(self.posterior(images), noise)

    def posterior(self, images: jax.Array) -> dict[str, jax.Array]:
        """What `draw` needs of images [B, H, W, C]: `mean`, [B, h, w, c] float32, not scaled."""
        return {"mean": _encode(self, images)}

    def draw(self, posterior: Mapping[str, jax.Array], noise: jax.Array) -> jax.Array:
        """The latents that `encode` gives of images with this `posterior`."""
        return self.scale * (posterior["mean"] - self.shift)

    def decode(self, latents: jax.Array) -> jax.Array:
        """The decoder's images of latents / s + m, rounded to the codebook; see `FirstStage`."""
        decode = functools.partial(self.autoencoder.decode, quantize=self.quantize)
        return _decode(self, decode, latents / self.scale + self.shift)


PUBLISHED_SCALES: Mapping[str, float] = {"sd-vae": 0.18215}
"""Latent scales that belong to weights; the LDM models measure theirs on the first training batch or use one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArchitectureConfig(abc.ABC):
    """Where an autoencoder's weights come from, and arguments of `Autoencoder` that replace those of a preset.

    Attributes:
      weights: file or folder to read the weights from, or "random" for an untrained autoencoder (smoke runs). The
        folder of a run that trained an autoencoder also decides the architecture, and the scale or the statistics of
        the channels where none are set.
      normalize: "scale" multiplies latents by one number, as LDM does; "channel" gives each channel a mean of 0 and a
        deviation of 1.
      channel_mean: means of the channels of the latents, for "channel"; None takes those of the run in `weights`.
      channel_std: their deviations, likewise.
      tile: latents with more cells than this along a side are encoded and decoded in tiles of this size, which bounds
        memory and blurs norms and attentions at the seams; None never does. LDM takes 128.
      tile_stride: distance between tiles; None takes half of `tile`.
      in_channels: this and the rest replace the preset's arguments of `Autoencoder`; None keeps them.
    """

    weights: str | None = None
    normalize: Literal["scale", "channel"] = "scale"
    channel_mean: tuple[float, ...] | None = None
    channel_std: tuple[float, ...] | None = None
    tile: int | None = None
    tile_stride: int | None = None
    in_channels: int | None = None
    out_channels: int | None = None
    ch: int | None = None
    ch_mult: tuple[int, ...] | None = None
    num_res_blocks: int | None = None
    attn_resolutions: tuple[int, ...] | None = None
    resolution: int | None = None
    mid_attention: bool | None = None
    z_channels: int | None = None
    embed_dim: int | None = None
    norm_groups: int | None = None
    dtype: DTypeName | None = None

    def __post_init__(self) -> None:
        _ = self.tiling
        if (self.channel_mean is None) != (self.channel_std is None):
            raise UserError("autoencoder.channel_mean and autoencoder.channel_std: set both or neither")
        if self.channel_mean is not None and self.normalize == "scale":
            raise UserError("autoencoder.channel_mean has no effect: set autoencoder.normalize='channel'")
        if self.channel_std is not None and not all(std > 0 for std in self.channel_std):
            raise UserError(f"autoencoder.channel_std={self.channel_std}: must all be positive")

    @abc.abstractmethod
    def make_autoencoder(self, key: jax.Array) -> Any:
        """The untrained autoencoder whose weights `key` draws.

        Raises:
          UserError: `Autoencoder` does not allow this architecture.
        """

    @abc.abstractmethod
    def abstract(self) -> Any:
        """The first stage with a `jax.ShapeDtypeStruct` for each parameter: for shapes, and as a form to load into.

        Raises:
          UserError: as `make_autoencoder`.
        """

    def build(self, load_weights: Callable[[Any, str], Any], seed: int) -> Any:
        """Makes the first stage with its weights.

        Args:
          load_weights: fills the abstract first stage from the file or folder `weights`; this package's reader is
            `diffusion_jax.runs.trained_first_stage.load_first_stage`.
          seed: seed of the weights when they are "random".

        Returns:
          The first stage, with concrete parameters.

        Raises:
          UserError: `weights` is not set, as `abstract`, or whatever `load_weights` finds wrong.
        """
        if self.weights is None:
            raise UserError(
                "autoencoder.weights is not set: name the file or folder of the trained autoencoder, "
                "or 'random' to run with an untrained one"
            )
        if self.weights == "random":
            autoencoder = self.make_autoencoder(purpose_key(seed, "autoencoder"))
            return dataclasses.replace(self.abstract(), autoencoder=autoencoder)
        return load_weights(self.abstract(), self.weights)

    @property
    def tiling(self) -> Tiling | None:
        """The tiles, None for none; `UserError` if they leave gaps."""
        if self.tile is None:
            return None
        return Tiling(self.tile, max(self.tile // 2, 1) if self.tile_stride is None else self.tile_stride)

    def _channels(self, autoencoder: AutoencoderKL | AutoencoderVQ) -> tuple[jax.Array, jax.Array]:
        """s and m, [c] each, that normalise every channel."""
        if self.channel_mean is None or self.channel_std is None:
            raise UserError(
                "autoencoder.normalize='channel' needs means and deviations: name the folder of the autoencoder's run "
                "as autoencoder.weights, or set autoencoder.channel_mean and channel_std (from a cache's metadata.json)"
            )
        channels = autoencoder.embed_dim
        for name, values in (("channel_mean", self.channel_mean), ("channel_std", self.channel_std)):
            if len(values) != channels:
                raise UserError(
                    f"autoencoder.{name} has {len(values)} values, and the latents have {channels} channels"
                )
        return 1 / jnp.array(self.channel_std, jnp.float32), jnp.array(self.channel_mean, jnp.float32)

    def _arguments(self, preset: Options, *more: str) -> Options:
        """The arguments of a preset and those that replace them; `more` are fields of a subclass that may too."""
        own = {"weights", "normalize", "channel_mean", "channel_std", "tile", "tile_stride"}
        names = [field.name for field in dataclasses.fields(ArchitectureConfig) if field.name not in own]
        given = {name: getattr(self, name) for name in (*names, *more)}
        return {**preset, **{name: value for name, value in given.items() if value is not None}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLConfig(ArchitectureConfig):
    """The `autoencoder` section of diffusion in the latent space of an `AutoencoderKL`.

    Attributes:
      preset: the published architecture to start from, a key of `AUTOENCODERS`.
      scale: s of `KLFirstStage` where one number scales all channels; None takes the published one of the preset.

    Raises:
      UserError: a scale that is not positive; from `abstract`, none for a preset that has none.
    """

    preset: Literal["sd-vae", "kl-f4", "kl-f8", "kl-f16", "kl-f32"] = "sd-vae"
    scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and not self.scale > 0:
            raise UserError(f"autoencoder.scale={self.scale} must be positive")

    def make_autoencoder(self, key: jax.Array) -> AutoencoderKL:
        """See `ArchitectureConfig`."""
        return AutoencoderKL(**self._arguments(AUTOENCODERS[self.preset]), rngs=nnx.Rngs(key))

    def abstract(self) -> KLFirstStage:
        """See `ArchitectureConfig`."""
        autoencoder = jax.eval_shape(lambda: self.make_autoencoder(jax.random.key(0)))
        if self.normalize == "channel":
            return KLFirstStage(autoencoder, *self._channels(autoencoder), self.tiling)
        # Not asked for earlier: a run that trains the autoencoder has no scale yet.
        if self.scale is None and self.preset not in PUBLISHED_SCALES:
            raise UserError(
                f"autoencoder.scale is not set and {self.preset} has no published one: give 1 / std of its latents"
            )
        scale = PUBLISHED_SCALES[self.preset] if self.scale is None else self.scale
        return KLFirstStage(autoencoder, jnp.float32(scale), jnp.float32(0), self.tiling)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQConfig(ArchitectureConfig):
    """The `autoencoder` section of diffusion in the latent space of an `AutoencoderVQ`.

    Attributes:
      preset: the published architecture to start from, a key of `VQ_AUTOENCODERS`.
      scale: s of `VQFirstStage` where one number scales all channels; the published models use 1.
      quantize: whether the decoder rounds to the codebook.
      num_codes: replaces the preset's size of the codebook; None keeps it.

    Raises:
      UserError: a scale that is not positive.
    """

    preset: Literal["vq-f4", "vq-f4-noattn", "vq-f8", "vq-f8-n256", "vq-f16"] = "vq-f4"
    scale: float = 1.0
    quantize: bool = True
    num_codes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise UserError(f"autoencoder.scale={self.scale} must be positive")

    def make_autoencoder(self, key: jax.Array) -> AutoencoderVQ:
        """See `ArchitectureConfig`."""
        arguments = self._arguments(VQ_AUTOENCODERS[self.preset], "num_codes")
        return AutoencoderVQ(**arguments, rngs=nnx.Rngs(key))

    def abstract(self) -> VQFirstStage:
        """See `ArchitectureConfig`."""
        autoencoder = jax.eval_shape(lambda: self.make_autoencoder(jax.random.key(0)))
        scale, shift = jnp.float32(self.scale), jnp.float32(0)
        if self.normalize == "channel":
            scale, shift = self._channels(autoencoder)
        return VQFirstStage(autoencoder, scale, shift, self.quantize, self.tiling)


FIRST_STAGES: Mapping[str, Callable[..., Identity | KLConfig | VQConfig]] = {
    "identity": Identity,
    "kl": KLConfig,
    "vq": VQConfig,
}
"""The names that the `autoencoder` section of a config may have."""


def _encode(stage: KLFirstStage | VQFirstStage, images: jax.Array) -> Any:
    """What the autoencoder encodes, in tiles where the images are larger than one."""
    if stage.tiling is None:
        return stage.autoencoder.encode(images)
    return map_tiles(stage.autoencoder.encode, images, stage.tiling, cell_in=stage.autoencoder.layout.downsampling)


def _decode(
    stage: KLFirstStage | VQFirstStage, decode: Callable[[jax.Array], jax.Array], latents: jax.Array
) -> jax.Array:
    if stage.tiling is None:
        return decode(latents)
    return map_tiles(decode, latents, stage.tiling, cell_out=stage.autoencoder.layout.downsampling)
